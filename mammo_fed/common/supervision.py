"""Processes that are kept running: started again with a growing pause when they die, ended together, never left behind."""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Final

from mammo_fed.common.isolation import isolated_environment

__all__ = ["ManagedProcess", "Supervisor", "installed_command"]

FIRST_PAUSE_SECONDS: Final = 0.5
LAST_PAUSE_SECONDS: Final = 30.0
# A process that lived so long was well: its next death starts with a short pause again.
WELL_SECONDS: Final = 60.0
LOG_BYTES: Final = 8 << 20
# Between looks at the size of logs.
LOOK_SECONDS: Final = 2.0
PR_SET_PDEATHSIG: Final = 1
LIBC: Final = ctypes.CDLL(None, use_errno=True)


def installed_command(name: str) -> str:
    """Path of a command that was installed beside this Python."""
    return str(Path(sys.executable).parent / name)


@dataclass(kw_only=True)
class ManagedProcess:
    """One process.

    Attributes:
      name: for people.
      command: its arguments.
      log: its output is appended here; a log above 8 MiB is copied to NAME.1 and emptied, at a start and while it runs.
      environment: on top of this process's own.
      inherited: descriptors of this process that it gets under the same numbers.
      started: when it was last started, on the monotonic clock.
      deaths: how often it ended without being asked.
    """

    name: str
    command: Sequence[str]
    log: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    inherited: Sequence[int] = ()
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    deaths: int = 0
    pause: float = FIRST_PAUSE_SECONDS
    due: float = 0.0

    @property
    def running(self) -> bool:
        """Whether the process is there."""
        return self.process is not None and self.process.poll() is None

    def start(self) -> None:
        """Start the process; it is ended by the system if this process dies."""
        self.rotate()
        parent = os.getpid()
        with _appended(self.log) as log:
            self.process = subprocess.Popen(
                self.command,
                env={**isolated_environment(), **self.environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                pass_fds=tuple(self.inherited),
                preexec_fn=lambda: _die_with(parent),
            )
        self.started = time.monotonic()

    def rotate(self) -> None:
        """Put a log aside that has grown beyond 8 MiB; the process goes on at the beginning of the emptied file.

        Its descriptor appends, so that what it writes next lands at the new end. Lines of the moment in between are lost.
        """
        try:
            if self.log.stat().st_size <= LOG_BYTES:
                return
            aside = self.log.with_name(f"{self.log.name}.1")
            with self.log.open("rb") as grown, _private(aside) as kept:
                # A flood may have written more than can be kept: the newest lines tell the most.
                grown.seek(-min(LOG_BYTES, os.fstat(grown.fileno()).st_size), os.SEEK_END)
                kept.write(grown.read(LOG_BYTES))
        except FileNotFoundError:
            return
        except OSError:
            # No room for a copy: the room that the log itself takes is the first to be given back.
            pass
        with contextlib.suppress(FileNotFoundError):
            os.truncate(self.log, 0)

    def end(self, *, seconds: float) -> None:
        """Ask the process to end, and kill it with all its own after `seconds`."""
        if self.process is None:
            return
        if self.running:
            self.process.terminate()
            try:
                self.process.wait(seconds)
            except subprocess.TimeoutExpired:
                self.process.kill()
        # What it started itself is of its session.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.process = None


class Supervisor:
    """Keeps processes running.

    Args:
      processes: in the order of their start.
      on_death: called with a process that ended without being asked, and the seconds until it is started again.
    """

    def __init__(self, processes: Sequence[ManagedProcess], *, on_death: Callable[[ManagedProcess, float], None]) -> None:
        self.processes = tuple(processes)
        self._on_death = on_death
        self._looked = 0.0

    def tick(self) -> None:
        """Start what is due, and put logs aside that have grown."""
        now = time.monotonic()
        if now >= self._looked + LOOK_SECONDS:
            self._looked = now
            for managed in self.processes:
                managed.rotate()
        for managed in self.processes:
            if managed.process is not None and not managed.running:
                self._restart_later(managed, now)
            if managed.process is None and now >= managed.due:
                self._start(managed, now)

    def end(self, *, seconds: float) -> None:
        """End all, the last started first."""
        for managed in reversed(self.processes):
            managed.end(seconds=seconds)

    def _start(self, managed: ManagedProcess, now: float) -> None:
        try:
            managed.start()
        except OSError:
            # A full disk or process table: tried again.
            managed.process, managed.due = None, now + LAST_PAUSE_SECONDS / 10

    def _restart_later(self, managed: ManagedProcess, now: float) -> None:
        managed.end(seconds=0.0)
        managed.deaths += 1
        if now - managed.started > WELL_SECONDS:
            managed.pause = FIRST_PAUSE_SECONDS
        # Many sites must not come back in step.
        wait = managed.pause * random.uniform(0.8, 1.2)  # noqa: S311 - a pause, not a secret
        managed.due, managed.pause = now + wait, min(2 * managed.pause, LAST_PAUSE_SECONDS)
        self._on_death(managed, wait)


def _appended(path: Path) -> IO[bytes]:
    return open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600), "ab", buffering=0)


def _private(path: Path) -> IO[bytes]:
    return open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb")


def _die_with(parent: int) -> None:
    """In the new process: be ended when the parent is; it may have died before this line."""
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
