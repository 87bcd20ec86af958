"""Ctrl-C, SIGTERM and SIGHUP end a command within seconds: one line, its exit code, no traceback, no process left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import pytest

from mammo_fed.privacy.ledger.report import verify_ledger

pytestmark = pytest.mark.timeout(1200)

# Longer than any machine takes to end a command, shorter than what the commands below would still have to do.
PATIENCE = 300
KEPT = "interrupted; finished rounds are kept: mammo-fed simulate --resume "
# A command whose main thread is in a library's code for hours, with a thread that does not end and a process of its own.
STUCK = """
import argparse, hashlib, subprocess, sys, threading, time
from concurrent.futures import ThreadPoolExecutor
from mammo_fed.common.command_line import Command, CommandLine

def stuck(options, console):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"], start_new_session=True)
    pool = ThreadPoolExecutor(1)
    pool.submit(time.sleep, 3600)
    print(child.pid, flush=True)
    if sys.argv[1] == "library":
        hashlib.pbkdf2_hmac("sha256", b"x", b"y", 2**31 - 1)
    elif sys.argv[1] == "swallows":
        while True:
            try:
                time.sleep(3600)
            except BaseException:
                pass
    elif sys.argv[1] == "breaks":
        try:
            time.sleep(3600)
        except KeyboardInterrupt:
            raise ValueError("a library was broken off")
    time.sleep(3600)

commands = [Command(name, name, lambda parser: None, "__main__:stuck") for name in ("library", "swallows", "breaks", "waits")]
sys.exit(CommandLine("stuck", "Stuck.", interrupted="interrupted; nothing was done", commands=commands).run(None))
"""


started: list[subprocess.Popen[str]] = []


def start(*command: str, ignoring: Sequence[int] = ()) -> subprocess.Popen[str]:
    """A command as a shell would start it that ignores some signals: SIGINT for a job in the background, SIGHUP under nohup."""

    def ignore() -> None:
        for number in ignoring:
            signal.signal(number, signal.SIG_IGN)

    process = subprocess.Popen(
        [sys.executable, *command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "80"},
        preexec_fn=ignore,
        start_new_session=True,
    )
    started.append(process)
    return process


@pytest.fixture(autouse=True)
def _nothing_left_behind() -> Iterator[None]:
    """Whatever a test that failed has started ends with it."""
    yield
    while started:
        process = started.pop()
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def wait_for(condition: Callable[[], object], process: subprocess.Popen[str]) -> None:
    limit = time.monotonic() + PATIENCE
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < limit, "waited in vain"
        time.sleep(0.02)


def ended(process: subprocess.Popen[str], number: int) -> tuple[int, str, str]:
    """Exit code, standard output and error of a process after a signal; it ends itself."""
    process.send_signal(number)
    out, err = process.communicate(timeout=PATIENCE)
    return process.returncode, out, err


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize(
    ("what", "number", "ignoring", "code"),
    [
        ("library", signal.SIGINT, (), 130),
        ("library", signal.SIGTERM, (), 143),
        ("swallows", signal.SIGHUP, (), 129),
        ("breaks", signal.SIGINT, (), 130),
        ("waits", signal.SIGINT, (signal.SIGINT,), 130),
    ],
)
def test_signals_end_a_command_that_is_stuck_with_all_that_it_started(tmp_path, what, number, ignoring, code):
    script = tmp_path / "stuck.py"
    script.write_text(STUCK, encoding="utf-8")
    process = start(str(script), what, ignoring=ignoring)
    assert process.stdout is not None
    child = int(process.stdout.readline())
    assert ended(process, number) == (code, "", "interrupted; nothing was done\n")
    assert not alive(child)


def test_signals_that_nohup_ignores_stay_ignored(tmp_path):
    script = tmp_path / "stuck.py"
    script.write_text(STUCK, encoding="utf-8")
    process = start(str(script), "waits", ignoring=(signal.SIGHUP,))
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGHUP)
    # Handled in turn: had the first counted, its number would be the exit code.
    assert ended(process, signal.SIGTERM)[0] == 143


def simulation(small: Sequence[str], folder: Path, *overrides: str, **named: Sequence[int]) -> subprocess.Popen[str]:
    return start(
        *("-m", "mammo_fed.cli.main", "simulate", *small, "federation.num_sites=2", *overrides),
        f"hydra.run.dir={folder}",
        **named,
    )


def begun(folder: Path) -> Callable[[], bool]:
    """Whether every site has reserved a step that takes hours."""
    return lambda: len(list(folder.glob("sites/*/ledger/*"))) >= 2 and "sites take part" in (folder / "run.log").read_text()


@pytest.mark.parametrize(("number", "ignoring"), [(signal.SIGINT, (signal.SIGINT,)), (signal.SIGTERM, ())])
def test_signals_end_a_simulation_in_the_middle_of_a_step_that_takes_hours(small, tmp_path, number, ignoring):
    folder = tmp_path / "run"
    process = simulation(
        small, folder, "federation.rounds=1", "federation.local_steps=1000000", "privacy.mean_fraction=0", ignoring=ignoring
    )
    wait_for(begun(folder), process)
    time.sleep(1.0)
    code, out, err = ended(process, number)
    *_, last = err.splitlines()
    assert (code, out, last) == (128 + number, "", f"{KEPT}{folder}")
    assert "Traceback" not in err
    assert not (folder / "record.json").exists()
    for site in ("site-1", "site-2"):
        verify_ledger(folder / "sites" / site / "ledger")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_signals_end_a_simulation_on_ray_with_all_its_processes(small, tmp_path, number):
    folder = tmp_path / "run"
    process = simulation(
        small,
        folder,
        *("engine=ray", "engine.workers=2", "federation.rounds=1"),
        *("federation.local_steps=1000000", "privacy.mean_fraction=0"),
    )
    wait_for(begun(folder), process)
    below = descendants(process.pid)
    assert below
    code, out, err = ended(process, number)
    *_, last = err.splitlines()
    assert (code, out, last) == (128 + number, "", f"{KEPT}{folder}")
    assert "Traceback" not in err
    wait_for_the_end_of(below)


def descendants(root: int) -> list[int]:
    below: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError, IndexError, ValueError):
            parent = int(path.read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()[1])
            below.setdefault(parent, []).append(int(path.parent.name))
    found = [root]
    for process in found:
        found += below.get(process, [])
    return found[1:]


def wait_for_the_end_of(processes: Sequence[int]) -> None:
    limit = time.monotonic() + PATIENCE
    while left := [process for process in processes if alive(process)]:
        assert time.monotonic() < limit, f"left behind: {left}"
        time.sleep(0.1)
