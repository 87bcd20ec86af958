"""Processes that are kept running: what becomes of a log that grows while its process runs."""

from __future__ import annotations

import sys
import time

import pytest

from mammo_fed.common.supervision import LOG_BYTES, ManagedProcess, Supervisor

CHATTER = """
import sys, time
number = 0
while True:
    for _ in range(1_000):
        number += 1
        sys.stdout.write(f"line {number} {'x' * 2000}\\n")
    sys.stdout.flush()
    time.sleep(0.2)
"""


def until(happened, *, seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture
def chatter(tmp_path):
    """A process that fills its log without a pause."""
    managed = ManagedProcess(name="chatter", command=[sys.executable, "-c", CHATTER], log=tmp_path / "chatter.log")
    yield managed
    managed.end(seconds=1.0)


def numbers(path) -> list[int]:
    return [int(line.split()[1]) for line in path.read_text().splitlines() if line.startswith("line ")]


def test_supervision_a_log_is_put_aside_while_its_process_runs(chatter):
    supervisor = Supervisor([chatter], on_death=lambda *_: None)
    aside = chatter.log.with_name("chatter.log.1")

    def turned() -> bool:
        supervisor.tick()
        return aside.exists() and chatter.log.stat().st_size > 0

    until(turned)
    pid = chatter.process.pid
    first = numbers(aside)[-1]
    until(lambda: turned() and numbers(aside)[-1] > first)
    chatter.process.kill()
    chatter.process.wait()
    # The process was never started again for it, and wrote on at the beginning of its emptied log.
    assert (chatter.deaths, chatter.process.pid) == (0, pid)
    assert numbers(chatter.log)[-1] > numbers(aside)[-1]
    assert not chatter.log.read_bytes().startswith(b"\0")
    assert aside.stat().st_size <= LOG_BYTES
    assert aside.stat().st_mode & 0o777 == 0o600
    assert sorted(path.name for path in chatter.log.parent.iterdir()) == ["chatter.log", "chatter.log.1"]


def test_supervision_a_log_that_cannot_be_copied_is_emptied_all_the_same(tmp_path):
    log = tmp_path / "a.log"
    log.write_bytes(b"x" * (LOG_BYTES + 1))
    # A folder in its place stands for every way in which a copy cannot be written.
    (tmp_path / "a.log.1").mkdir()
    ManagedProcess(name="a", command=[sys.executable, "-c", ""], log=log).rotate()
    assert log.stat().st_size == 0


def test_supervision_a_small_log_stays_as_it_is(tmp_path):
    log = tmp_path / "a.log"
    log.write_text("a line\n")
    ManagedProcess(name="a", command=[sys.executable, "-c", ""], log=log).rotate()
    assert log.read_text() == "a line\n"
    assert list(tmp_path.iterdir()) == [log]


def test_supervision_a_process_gets_the_descriptors_that_are_named(tmp_path):
    with (tmp_path / "given").open("w+") as given:
        code = f"import os; os.write({given.fileno()}, b'arrived')"
        managed = ManagedProcess(
            name="a", command=[sys.executable, "-c", code], log=tmp_path / "a.log", inherited=(given.fileno(),)
        )
        managed.start()
        assert managed.process.wait(60) == 0
    assert (tmp_path / "given").read_text() == "arrived"
