"""Work in processes of its own, where a native library may crash, hang or ask for too much without taking the caller along."""

from __future__ import annotations

import contextlib
import multiprocessing
import resource
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, Final, Generic, Literal, TypeVar

__all__ = ["Lost", "run_isolated"]

Task = TypeVar("Task")
Result = TypeVar("Result")
# How many tasks a process may do before a fresh one takes over, so that a library's leaks stay small.
TASKS_OF_A_PROCESS: Final = 500


@dataclass(frozen=True, kw_only=True)
class Lost:
    """A task whose process ended without an answer: "crashed", or "timed_out" and was ended."""

    how: Literal["crashed", "timed_out"]


def run_isolated(
    work: Callable[[Task], Result],
    tasks: Iterable[Task],
    *,
    processes: int,
    seconds: float,
    memory_bytes: int,
) -> Iterator[tuple[Task, Result | Lost]]:
    """Do each task in one of a few processes, and yield tasks with their results as they are finished.

    Args:
      work: a function of a module; what it raises ends its process, so it should return what it has to say.
      tasks: taken one at a time, as processes get free; each must be picklable.
      processes: how many run at once, >= 1.
      seconds: after which a task's process is killed.
      memory_bytes: private memory of a process; more raises MemoryError there.
    """
    pending = iter(tasks)
    workers: list[_Worker[Task, Result]] = []
    try:
        for _ in range(processes):
            worker = _Worker(work, memory_bytes)
            workers.append(worker)
            if not worker.give(pending):
                break
        while busy := [worker for worker in workers if worker.busy]:
            first = min(worker.begun for worker in busy) + seconds
            wait([worker.connection for worker in busy], timeout=max(0.0, first - time.monotonic()))
            for worker in busy:
                done = worker.answer(seconds)
                if done is not None:
                    yield done
                    worker.give(pending)
    finally:
        for worker in workers:
            worker.end()


class _Worker(Generic[Task, Result]):
    """One process and the task that it has, if any."""

    def __init__(self, work: Callable[[Task], Result], memory_bytes: int) -> None:
        self._work, self._memory = work, memory_bytes
        self._task: list[Task] = []
        self._done = 0
        self.begun = 0.0
        self._start()

    @property
    def busy(self) -> bool:
        """Whether a task is with the process."""
        return bool(self._task)

    def give(self, tasks: Iterator[Task]) -> bool:
        """Hand over the next task; False where there is none."""
        for task in tasks:
            if self._done >= TASKS_OF_A_PROCESS:
                self.end()
                self._start()
            self._task, self.begun = [task], time.monotonic()
            with contextlib.suppress(OSError):
                self.connection.send(task)
            return True
        return False

    def answer(self, seconds: float) -> tuple[Task, Result | Lost] | None:
        """The task with its result, or with how it was lost; None while neither is known."""
        result: Result | Lost
        try:
            if self.connection.poll():
                result = self.connection.recv()
                self._done += 1
            elif time.monotonic() < self.begun + seconds:
                return None
            else:
                result = Lost(how="timed_out")
        except (EOFError, OSError):
            result = Lost(how="crashed")
        (task,), self._task = self._task, []
        if isinstance(result, Lost):
            self.end()
            self._start()
        return task, result

    def end(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.join()
        self.connection.close()

    def _start(self) -> None:
        # Spawned: a fork would carry the caller's threads' locks, and its memory, along.
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, self._work, self._memory), daemon=True)
        self._process.start()
        theirs.close()
        self._done = 0


def _serve(connection: Connection, work: Callable[[Any], Any], memory_bytes: int) -> None:
    # Ctrl-C reaches the whole group: the caller decides what happens then.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(EOFError, OSError):
        while True:
            connection.send(work(connection.recv()))
