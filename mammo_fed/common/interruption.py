"""What Ctrl-C, SIGTERM and SIGHUP do to a command: one line, an exit code, no process left behind, and within seconds.

Python runs a signal's handler between two steps of the main thread only. One that waits in a library's code would end minutes
later; and at its end Python waits for every other thread, such as a site's that trains. Here the first signal raises
`Interrupted` in the main thread, so that what can be put in order is; a thread that the system wakes at once ends the process
when that takes too long. Whatever a command writes is whole or not there at any moment, as for a power loss.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Final, NoReturn

__all__ = ["SIGNALS", "Interrupted", "advise", "interruptible", "leave", "received", "stop_signals"]

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# What an orderly end may take.
ORDERLY_SECONDS: Final = 4.0


class Interrupted(KeyboardInterrupt):
    """A signal asked this command to end.

    Args:
      number: of the signal; the command's exit code is 128 more.
    """

    def __init__(self, number: int) -> None:
        super().__init__()
        self.exit_code = 128 + number


class _State:
    """What the whole process knows of signals: they are the process's, and so is this."""

    def __init__(self) -> None:
        self.line = ""
        self.number = 0
        # Whether somebody sees to it that the process ends within seconds.
        self.watched = False
        # Whether a supervisor decides itself what a signal does.
        self.aside = False


_state = _State()


def received() -> int:
    """The number of the signal that asked this command to end, or 0."""
    return _state.number


def advise(line: str) -> None:
    """From now on an interrupted command says this: what is kept, and how to go on."""
    _state.line = line


@contextmanager
def interruptible(line: str, *, whole_process: bool) -> Iterator[Callable[[], str]]:
    """While the block runs, a signal raises `Interrupted` in it.

    SIGINT counts even where the shell had it ignored, as it does for a job in the background. SIGHUP stays ignored where it
    was: nohup asks for that.

    Args:
      line: what to say after an interrupt, until `advise` knows better.
      whole_process: the block is all that this process is for: where an interrupt does not end it within seconds, the process
        is ended.

    Yields:
      Tells what to say.
    """
    _state.line, _state.number = line, 0
    if threading.current_thread() is not threading.main_thread():
        # Only the main thread may set handlers: a caller's program decides itself what they do.
        yield lambda: _state.line
        return
    with contextlib.ExitStack() as stack:
        if whole_process:
            stack.enter_context(_watched())
        stack.enter_context(_handled(_raise))
        yield lambda: _state.line


@contextmanager
def stop_signals(handler: Callable[[int], Any]) -> Iterator[None]:
    """While the block runs, a signal calls `handler` with its number and does nothing else: the block ends when it is ready."""
    before, _state.aside = _state.aside, True
    try:
        with _handled(lambda number, _: handler(number)):
            yield
    finally:
        _state.aside = before


def leave(code: int) -> NoReturn:
    """End this process now, with all that it started, and wait for no thread."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    _end_descendants()
    os._exit(code)


def _raise(number: int, _: FrameType | None) -> None:
    first, _state.number = not _state.number, _state.number or number
    # A second one must not break off what puts things in order, where that has its time.
    if first or not _state.watched:
        raise Interrupted(number)


@contextmanager
def _handled(handler: Callable[[int, FrameType | None], Any]) -> Iterator[None]:
    before = {}
    for number in SIGNALS:
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            before[number] = signal.signal(number, handler)
    try:
        yield
    finally:
        for number, earlier in before.items():
            # None: a handler that was not set from Python.
            signal.signal(number, signal.SIG_DFL if earlier is None else earlier)


@contextmanager
def _watched() -> Iterator[None]:
    """A thread that hears of every signal at once, whatever the main thread does."""
    reading, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    os.set_blocking(reading, True)
    over = threading.Event()
    threading.Thread(target=_watch, args=(reading, over), name="signals", daemon=True).start()
    before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    _state.watched = True
    try:
        yield
    finally:
        _state.watched = False
        signal.set_wakeup_fd(before)
        over.set()
        os.close(writing)


def _watch(reading: int, over: threading.Event) -> None:
    with open(reading, "rb", buffering=0) as numbers:
        while number := numbers.read(1):
            if number[0] not in SIGNALS or _state.aside:
                continue
            if not over.wait(ORDERLY_SECONDS):
                sys.stderr.write(f"{_state.line}\n")
                leave(128 + number[0])
            return


def _end_descendants() -> None:
    """Kill all processes below this one: engines and pools start some that nobody would end."""
    below: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            parent = int(path.read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()[1])
            below.setdefault(parent, []).append(int(path.parent.name))
    found = [os.getpid()]
    for process in found:
        found += below.get(process, [])
    for process in found[1:]:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(process, signal.SIGKILL)
