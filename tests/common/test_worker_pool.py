"""Work in processes of its own: crashes, hangs and floods of memory cost one task each."""

from __future__ import annotations

import os
import signal
import time

from mammo_fed.common.worker_pool import Lost, run_isolated


def misbehave(task: str) -> str:
    if task == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if task == "hang":
        time.sleep(600)
    if task == "flood":
        try:
            return str(len(bytearray(4 << 30)))
        except MemoryError:
            return "no memory"
    return f"{task} done"


def results(tasks: list[str], **changes: float) -> dict[str, str | Lost]:
    options = {"processes": 2, "seconds": 60.0, "memory_bytes": 1 << 30, **changes}
    return dict(run_isolated(misbehave, tasks, **options))  # type: ignore[arg-type]


def test_isolated_tasks_give_their_results():
    assert results([str(number) for number in range(20)]) == {str(number): f"{number} done" for number in range(20)}
    assert results([]) == {}


def test_isolated_crash_and_flood_cost_their_own_task_only():
    found = results(["a", "crash", "b", "flood", "c"])
    assert found == {"a": "a done", "crash": Lost(how="crashed"), "b": "b done", "flood": "no memory", "c": "c done"}


def test_isolated_task_that_hangs_is_ended_and_the_others_go_on():
    found = results(["hang", "a", "b"], seconds=3.0)
    assert found == {"hang": Lost(how="timed_out"), "a": "a done", "b": "b done"}
