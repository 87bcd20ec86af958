"""Files that are replaced whole or not at all, secrets that are made once, and locks that end with their process."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mammo_fed.common.private_files import (
    SECRET_BYTES,
    exclusive,
    file_lock,
    load_or_create_secret,
    write_atomically,
    write_private,
)
from mammo_fed.errors import DataError, InvalidSetting

OLD, NEW = b"o" * 1_000_000, b"n" * 2_000_000
# Each of these is killed at one step of writing; the last is left alone.
STEPS = ("open", "write", "fsync", "replace", "fsync the folder", "none")

KILLED = """
import os, signal, sys
from pathlib import Path
from mammo_fed.common import private_files
step, path = sys.argv[1], Path(sys.argv[2])
syncs = []

def killed(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

def cut(event, arguments):
    if event == "open" and step == "open" and isinstance(arguments[0], str) and arguments[0].startswith(f"{path.parent}/."):
        killed()
    if event == "os.rename" and step == "replace":
        killed()

def fsync(descriptor):
    syncs.append(descriptor)
    if step == "fsync" or (step == "fsync the folder" and len(syncs) == 2):
        killed()
    real(descriptor)

real, os.fsync = os.fsync, fsync
if step == "write":
    import resource
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_500_000, 1_500_000))
sys.addaudithook(cut)
private_files.write_private(path, b"n" * 2_000_000)
"""

FULL = """
import resource, sys
from pathlib import Path
from mammo_fed.common.private_files import write_atomically
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    write_atomically(Path(sys.argv[1]), b"n" * 2_000_000)
except OSError as error:
    print(error.errno)
"""

HOLDER = """
import sys, time
from pathlib import Path
from mammo_fed.common.private_files import file_lock
with file_lock(Path(sys.argv[1]), what="site-client"):
    print("held", flush=True)
    time.sleep(600)
"""

COUNTER = """
import sys
from pathlib import Path
from mammo_fed.common.private_files import exclusive
path = Path(sys.argv[1])
for _ in range(40):
    with exclusive(path.with_name("count.lock")):
        path.write_text(str(int(path.read_text()) + 1))
"""


def python(code: str, *arguments: str | Path) -> list[str]:
    return [sys.executable, "-c", code, *map(str, arguments)]


@pytest.mark.parametrize("step", STEPS)
def test_a_writer_that_is_killed_at_any_step_leaves_the_old_file_or_the_new_one(tmp_path, step):
    path = tmp_path / "ledger-head"
    write_private(path, OLD)
    code = subprocess.run(python(KILLED, step, path), check=False).returncode
    killed_by = {"none": 0, "write": -signal.SIGXFSZ}.get(step, -signal.SIGKILL)
    assert code == killed_by
    assert path.read_bytes() == (NEW if step in ("fsync the folder", "none") else OLD)
    write_private(path, NEW)
    assert path.read_bytes() == NEW


def test_a_full_disk_leaves_the_old_file_and_no_draft(tmp_path):
    path = tmp_path / "record.json"
    write_atomically(path, OLD)
    done = subprocess.run(python(FULL, path), check=True, capture_output=True, text=True)
    assert done.stdout.strip().isdigit()
    assert path.read_bytes() == OLD
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_is_not_there_raises_and_makes_nothing(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_atomically(tmp_path / "absent" / "file", b"")
    assert list(tmp_path.iterdir()) == []


def test_a_private_file_is_its_owners_alone_whatever_mode_the_old_one_had(tmp_path):
    path = tmp_path / "key"
    path.write_bytes(b"old")
    path.chmod(0o644)
    assert write_private(path, "new\u00e9") == path
    assert path.read_bytes() == "new\u00e9".encode()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_file_for_others_has_the_mode_that_the_umask_gives(tmp_path):
    path = tmp_path / "page.html"
    before = os.umask(0o027)
    try:
        write_atomically(path, "text")
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_a_link_in_the_place_of_the_file_is_replaced_and_its_target_kept(tmp_path):
    target, path = tmp_path / "target", tmp_path / "file"
    target.write_bytes(b"kept")
    path.symlink_to(target)
    write_private(path, b"new")
    assert (target.read_bytes(), path.read_bytes(), path.is_symlink()) == (b"kept", b"new", False)


def test_a_secret_is_made_once_among_threads_that_ask_at_once(tmp_path):
    path = tmp_path / "new" / "fingerprint.key"
    with ThreadPoolExecutor(8) as pool:
        secrets = set(pool.map(load_or_create_secret, [path] * 32))
    assert len(secrets) == 1
    assert len(secrets.pop()) == SECRET_BYTES
    assert list(path.parent.iterdir()) == [path]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("content", [b"", b"short", bytes(SECRET_BYTES + 1)])
def test_a_secret_that_was_cut_is_refused_and_not_made_again(tmp_path, content):
    path = tmp_path / "fingerprint.key"
    path.write_bytes(content)
    with pytest.raises(DataError, match="restore it from a backup"):
        load_or_create_secret(path)
    assert path.read_bytes() == content


def test_a_lock_excludes_other_processes_says_whose_it_is_and_ends_with_its_process(tmp_path):
    path = tmp_path / "private" / "lock"
    path.parent.mkdir()
    with subprocess.Popen(python(HOLDER, path), stdout=subprocess.PIPE) as holder:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(InvalidSetting, match=f"FOLDER={tmp_path} is in use by another site-client"), lock(path):
            pass
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    with lock(path):
        pass
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def lock(path: Path):
    return file_lock(path, what="site-client")


def test_a_lock_excludes_its_own_process_too_and_is_free_after_the_block(tmp_path):
    path = tmp_path / "lock"
    with lock(path):
        with pytest.raises(InvalidSetting, match="in use"), lock(path):
            pass
        with pytest.raises(InvalidSetting, match="in use"), lock(path):
            pass
    with lock(path):
        pass


def test_a_lock_file_that_was_left_behind_locks_nothing(tmp_path):
    path = tmp_path / "lock"
    path.write_text("12345\n")
    with lock(path):
        pass
    assert path.read_text() == "12345\n"


def test_exclusive_blocks_of_several_processes_take_turns(tmp_path):
    path = tmp_path / "count"
    path.write_text("0")
    workers = [subprocess.Popen(python(COUNTER, path)) for _ in range(3)]
    assert [worker.wait() for worker in workers] == [0, 0, 0]
    assert path.read_text() == "120"


def test_an_exclusive_block_waits_for_another_thread(tmp_path):
    path, order = tmp_path / "lock", []

    def second() -> None:
        with exclusive(path):
            order.append("second")

    with ThreadPoolExecutor(1) as pool:
        with exclusive(path):
            waiting = pool.submit(second)
            time.sleep(0.2)
            order.append("first")
        waiting.result()
    assert order == ["first", "second"]
