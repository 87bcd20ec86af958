"""Work in processes of its own, where a native library may crash, hang or ask for too much without taking the caller along."""

from __future__ import annotations

import argparse
import contextlib
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, Final, Generic, Literal, TypeVar

from mammo_fed.common.isolation import isolated_environment, python_command

__all__ = ["Lost", "main", "run_isolated"]

Task = TypeVar("Task")
Result = TypeVar("Result")
# How many tasks a process may do before a fresh one takes over, so that a library's leaks stay small.
TASKS_OF_A_PROCESS: Final = 500
# Each process has a core; threads of its own would only wait for each other.
ONE_THREAD: Final = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


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
        self._process.wait()
        self.connection.close()

    def _start(self) -> None:
        # A program of its own: multiprocessing would import the caller's command line, with all its libraries, again.
        ours, theirs = socket.socketpair()
        with theirs:
            command = python_command(__name__, "--socket", str(theirs.fileno()), "--memory-bytes", str(self._memory))
            self._process = subprocess.Popen(
                command,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                # Decoders print what they think of a file, which may quote it.
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={**isolated_environment(), **ONE_THREAD},
            )
        self.connection = Connection(ours.detach())
        with contextlib.suppress(OSError):
            self.connection.send(sys.path)
            self.connection.send(self._work)
        self._done = 0


def main() -> None:
    """Do tasks until the caller is gone."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--socket", type=int, required=True)
    parser.add_argument("--memory-bytes", type=int, required=True)
    options = parser.parse_args()
    # Ctrl-C reaches the whole group: the caller decides what happens then.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_DATA, (options.memory_bytes, options.memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    connection = Connection(options.socket)
    with contextlib.suppress(EOFError, OSError):
        # Where the caller finds its modules, the work is found.
        sys.path[:] = connection.recv()
        work: Callable[[Any], Any] = connection.recv()
        while True:
            connection.send(work(connection.recv()))


if __name__ == "__main__":
    main()
