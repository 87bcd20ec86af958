"""The ledger among processes: budgets that many charge at once, processes killed anywhere, disks that refuse."""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from ledger_workers import TASK, Nursery, digest, event, open_ledger

from mammo_fed.errors import LedgerError
from mammo_fed.privacy.accounting.filters import PrivacyFilter, adaptive_epsilon, as_steps
from mammo_fed.privacy.ledger.report import show_ledger, verify_ledger

STRESS = os.environ.get("MAMMO_FED_STRESS") == "1"
MOUNT, UMOUNT = shutil.which("mount"), shutil.which("umount")
GDP = PrivacyFilter(kind="gdp", order=None)


@pytest.fixture(scope="module")
def nursery():
    with Nursery() as warm:
        yield warm


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 1 MiB of its own."""
    if os.geteuid() != 0 or MOUNT is None or UMOUNT is None:
        pytest.skip("mounting a small disk needs root")
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run([MOUNT, "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True, check=False)
    if mounted.returncode != 0:
        pytest.skip("this system does not let root mount a small disk")
    yield folder
    subprocess.run([UMOUNT, folder], check=True)


def charges(nursery, tmp_path, *, processes, rounds, max_epsilon):
    """Charge one account from many processes at once; gives how many rounds each was granted."""
    notes = [tmp_path / f"granted {number}" for number in range(processes)]
    workers = [
        nursery.start("charge", str(tmp_path / "ledger"), number, processes, rounds, max_epsilon, str(note))
        for number, note in enumerate(notes)
    ]
    assert [nursery.wait(worker) for worker in workers] == [0] * processes
    return [int(note.read_text()) for note in notes]


def check_budget_is_used_up_and_not_passed(tmp_path, granted, *, max_epsilon):
    steps = sum(granted)
    (account,) = show_ledger(tmp_path / "ledger", delta=1e-4, accountant="gdp").accounts
    assert sum(run.reserved_steps for run in account.runs) == steps
    assert adaptive_epsilon(GDP, as_steps([event(steps=steps)]), delta=1e-4) <= max_epsilon * (1 + 1e-6)
    assert adaptive_epsilon(GDP, as_steps([event(steps=steps + 1)]), delta=1e-4) > max_epsilon


def test_ledger_grants_eight_processes_its_budget_once(nursery, tmp_path):
    granted = charges(nursery, tmp_path, processes=8, rounds=30, max_epsilon=2.0)
    assert 30 < sum(granted) < 8 * 30
    check_budget_is_used_up_and_not_passed(tmp_path, granted, max_epsilon=2.0)


@pytest.mark.slow
def test_ledger_grants_eight_processes_its_budget_once_over_many_charges(nursery, tmp_path):
    rounds = 1250 if STRESS else 150
    max_epsilon = 20.0 if STRESS else 6.0
    granted = charges(nursery, tmp_path, processes=8, rounds=rounds, max_epsilon=max_epsilon)
    assert rounds < sum(granted) < 8 * rounds
    check_budget_is_used_up_and_not_passed(tmp_path, granted, max_epsilon=max_epsilon)


def test_ledger_lets_one_reply_leave_for_one_task_given_to_many_processes(nursery, tmp_path):
    notes = [tmp_path / f"answer {number}" for number in range(6)]
    workers = [nursery.start("answer_one_task", str(tmp_path / "ledger"), str(note)) for note in notes]
    assert [nursery.wait(worker) for worker in workers] == [0] * 6
    assert len({note.read_text() for note in notes}) == 1
    with open_ledger(tmp_path / "ledger") as ledger:
        assert ledger.events() == (event(),)


def check_what_was_sent_is_charged(folder, sent):
    """The ledger verifies, holds every reply that left, as the only one of its round, and charged every round once."""
    lines = [line.split() for line in sent.read_text().splitlines()] if sent.exists() else []
    if not folder.exists():
        assert not lines
        return 0
    verify_ledger(folder)
    with open_ledger(folder) as ledger:
        assert len({number for number, _ in lines}) == len(lines)
        for number, reply in lines[-3:]:
            assert digest(ledger.stored_reply(run_id="run", round_index=int(number), task_hash=TASK)) == reply
        # At most the round in progress is charged beyond what left, however often it was killed and trained again.
        assert len(lines) <= len(ledger.events()) <= len(lines) + 1
        return len(ledger.events())


def kill_at_random_moments(nursery, tmp_path, *, kills):
    moments = np.random.default_rng(7)
    folder, sent = tmp_path / "ledger", tmp_path / "sent"
    number, charged = 0, 0
    # On a busy machine a worker gets less done before it is killed, and more of them are started.
    while number < kills or charged <= kills:
        worker = nursery.start("train", str(folder), 100_000, number, str(sent))
        time.sleep(moments.uniform(0, 0.12))
        os.kill(worker, signal.SIGKILL)
        assert nursery.wait(worker) == -signal.SIGKILL
        charged = check_what_was_sent_is_charged(folder, sent)
        number += 1
    with open_ledger(folder) as ledger:
        for line in sent.read_text().splitlines():
            number, reply = line.split()
            assert digest(ledger.stored_reply(run_id="run", round_index=int(number), task_hash=TASK)) == reply


def test_ledger_survives_a_site_killed_at_random_moments(nursery, tmp_path):
    kill_at_random_moments(nursery, tmp_path, kills=15)


@pytest.mark.slow
def test_ledger_survives_a_site_killed_very_often(nursery, tmp_path):
    kill_at_random_moments(nursery, tmp_path, kills=300 if STRESS else 60)


def fill_up(file):
    while True:
        file.write(bytes(1024))


def reserve_rounds(ledger, rounds):
    for round_index in range(rounds):
        ledger.reserve(run_id="run", round_index=round_index, task_hash=TASK, events=[event()])


def test_ledger_on_a_full_disk_reserves_nothing_and_goes_on_when_there_is_space(small_disk):
    with open_ledger(small_disk / "ledger") as ledger:
        ledger.declare(run_id="run", schedule=[event(steps=400)], patients=["p1"])
        filler = small_disk / "filler"
        with filler.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
            fill_up(file)
        with pytest.raises(LedgerError, match=r"disk is full; nothing is released; free space"):
            reserve_rounds(ledger, 400)
        filler.unlink()
        charged = len(ledger.events())
        assert charged < 400
        reservation = ledger.reserve(run_id="run", round_index=charged, task_hash=TASK, events=[event()])
        ledger.settle(reservation, b"reply")
        ledger.verify()
        assert len(ledger.events()) == charged + 1


def test_ledger_that_cannot_store_a_reply_keeps_the_reservation_for_the_next_attempt(small_disk):
    key = {"run_id": "run", "round_index": 0, "task_hash": TASK}
    with open_ledger(small_disk / "ledger") as ledger:
        ledger.declare(run_id="run", schedule=[event()], patients=["p1"])
        reservation = ledger.reserve(**key, events=[event()])
        with pytest.raises(LedgerError, match="disk is full"):
            ledger.settle(reservation, bytes(2 << 20))
        assert ledger.stored_reply(**key) is None
    with open_ledger(small_disk / "ledger") as ledger:
        assert ledger.reserve(**key, events=[event()]) == reservation
        ledger.settle(reservation, b"smaller")
        assert ledger.stored_reply(**key) == b"smaller"
        assert ledger.events() == (event(),)


def test_ledger_refuses_when_its_files_may_not_grow(nursery, tmp_path):
    said = tmp_path / "said"
    worker = nursery.start("fill", str(tmp_path / "ledger"), 256 * 1024, str(said))
    assert nursery.wait(worker) == 0
    assert "nothing is released" in said.read_text()
    verify_ledger(tmp_path / "ledger")
    with open_ledger(tmp_path / "ledger") as ledger:
        rounds = len(ledger.events())
        assert 5 < rounds < 500
        stored = [ledger.stored_reply(run_id="run", round_index=index, task_hash=TASK) for index in range(rounds)]
        assert all(reply is not None and len(reply) == 4096 for reply in stored[:-1])


def test_ledger_on_a_read_only_disk_is_not_opened(small_disk):
    open_ledger(small_disk / "ledger").close()
    subprocess.run([MOUNT, "-o", "remount,ro", small_disk], check=True)
    for folder in (small_disk / "ledger", small_disk / "new"):
        with pytest.raises(LedgerError, match="read-only"):
            open_ledger(folder)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write where the mode forbids it")
def test_ledger_in_a_folder_that_the_site_may_not_write_is_not_opened(tmp_path):
    open_ledger(tmp_path / "ledger").close()
    for part in (tmp_path / "ledger").iterdir():
        part.chmod(0o400)
    with pytest.raises(LedgerError, match="read-only or not the site's"):
        open_ledger(tmp_path / "ledger")


def test_ledger_is_refused_to_a_child_of_the_process_that_opened_it(nursery, tmp_path):
    said = tmp_path / "said"
    assert nursery.wait(nursery.start("inherit", str(tmp_path / "ledger"), str(said))) == 0
    assert "opened by another process" in said.read_text()


def test_ledger_leaves_nothing_behind_when_created_twice_at_once(nursery, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    workers = [
        nursery.start("charge", str(home / "ledger"), number, 4, 1, 6.0, str(tmp_path / f"{number}")) for number in range(4)
    ]
    assert [nursery.wait(worker) for worker in workers] == [0] * 4
    assert [path.name for path in Path(home).iterdir()] == ["ledger"]
