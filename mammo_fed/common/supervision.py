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

__all__ = ["Child", "Keeper", "installed_command"]

FIRST_PAUSE_SECONDS: Final = 0.5
LAST_PAUSE_SECONDS: Final = 30.0
# A process that lived so long was well: its next death starts with a short pause again.
WELL_SECONDS: Final = 60.0
LOG_BYTES: Final = 8 << 20
PR_SET_PDEATHSIG: Final = 1
LIBC: Final = ctypes.CDLL(None, use_errno=True)


def installed_command(name: str) -> str:
    """Path of a command that was installed beside this Python."""
    return str(Path(sys.executable).parent / name)


@dataclass(kw_only=True)
class Child:
    """One process.

    Attributes:
      name: for people.
      command: its arguments.
      log: its output is appended here; a log above 8 MiB is put aside once as NAME.1.
      environment: on top of this process's own.
      started: when it was last started, on the monotonic clock.
      deaths: how often it ended without being asked.
    """

    name: str
    command: Sequence[str]
    log: Path
    environment: Mapping[str, str] = field(default_factory=dict)
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
        if self.log.exists() and self.log.stat().st_size > LOG_BYTES:
            self.log.replace(self.log.with_name(f"{self.log.name}.1"))
        parent = os.getpid()
        with _appended(self.log) as log:
            self.process = subprocess.Popen(
                self.command,
                env={**isolated_environment(), **self.environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=lambda: _die_with(parent),
            )
        self.started = time.monotonic()

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


class Keeper:
    """Keeps children running.

    Args:
      children: in the order of their start.
      on_death: called with a child that ended without being asked, and the seconds until it is started again.
    """

    def __init__(self, children: Sequence[Child], *, on_death: Callable[[Child, float], None]) -> None:
        self.children = tuple(children)
        self._on_death = on_death

    def tick(self) -> None:
        """Start what is due."""
        now = time.monotonic()
        for child in self.children:
            if child.process is not None and not child.running:
                self._bury(child, now)
            if child.process is None and now >= child.due:
                self._start(child, now)

    def end(self, *, seconds: float) -> None:
        """End all, the last started first."""
        for child in reversed(self.children):
            child.end(seconds=seconds)

    def _start(self, child: Child, now: float) -> None:
        try:
            child.start()
        except OSError:
            # A full disk or process table: tried again.
            child.process, child.due = None, now + LAST_PAUSE_SECONDS / 10

    def _bury(self, child: Child, now: float) -> None:
        child.end(seconds=0.0)
        child.deaths += 1
        if now - child.started > WELL_SECONDS:
            child.pause = FIRST_PAUSE_SECONDS
        # Many sites must not come back in step.
        wait = child.pause * random.uniform(0.8, 1.2)  # noqa: S311 - a pause, not a secret
        child.due, child.pause = now + wait, min(2 * child.pause, LAST_PAUSE_SECONDS)
        self._on_death(child, wait)


def _appended(path: Path) -> IO[bytes]:
    return open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600), "ab", buffering=0)


def _die_with(parent: int) -> None:
    """In the child: be ended when the parent is; it may have died before this line."""
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
