"""What happens in a run between real machines, as lines of JSON that the server's app appends and the console reads.

A line that a crash or a full disk cut short is skipped by readers, and the next event starts on a line of its own.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from mammo_fed.common.serialization import plain

__all__ = ["Event", "EventKind", "EventLog", "EventReader", "WarningEvents"]

EventKind: TypeAlias = Literal["started", "features", "round", "warning"]


@dataclass(frozen=True, kw_only=True)
class Event:
    """One thing that happened.

    Attributes:
      time: ISO 8601, UTC.
      kind: what it was.
      lines: for people, printable.
      values: for programs, by name; what is there depends on the kind.
    """

    time: str
    kind: EventKind
    lines: tuple[str, ...]
    values: Mapping[str, Any]


class EventLog:
    """Appends events to a file that only its owner can read; a disk that is full or away loses events and stops nothing."""

    def __init__(self, path: Path) -> None:
        self._path, self._lock = path, threading.Lock()

    def write(self, kind: EventKind, lines: Sequence[str], **values: object) -> None:
        """Append one event."""
        time = datetime.now(UTC).isoformat(timespec="milliseconds")
        event = {"time": time, "kind": kind, "lines": list(lines), "values": plain(values)}
        content = json.dumps(event, allow_nan=False).encode() + b"\n"
        with self._lock:
            try:
                self._append(content)
            except OSError:
                # Not a warning: that would become the next event. The log of the run and the outcome are kept elsewhere.
                logging.getLogger(__name__).info("an event cannot be written")

    def _append(self, content: bytes) -> None:
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            size = os.fstat(descriptor).st_size
            cut = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
            os.write(descriptor, b"\n" * cut + content)
        finally:
            os.close(descriptor)


class WarningEvents(logging.Handler):
    """Makes an event of every warning that the packages log."""

    def __init__(self, events: EventLog) -> None:
        super().__init__(logging.WARNING)
        self._events = events

    def emit(self, record: logging.LogRecord) -> None:
        """Append a warning; errors are in the run's outcome."""
        if record.levelno == logging.WARNING:
            self._events.write("warning", record.getMessage().splitlines(), logger=record.name)


class EventReader:
    """Reads events as they come.

    Args:
      path: of the file; it need not be there yet.
      seen: whether what is there now has been read before.
    """

    def __init__(self, path: Path, *, seen: bool = False) -> None:
        self._path = path
        self._offset = path.stat().st_size if seen and path.exists() else 0

    def read(self) -> list[Event]:
        """Events since the last call, without lines that were cut short."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                content = file.read()
        except FileNotFoundError:
            return []
        whole = content[: content.rfind(b"\n") + 1]
        self._offset += len(whole)
        return [event for line in whole.splitlines() if (event := _parse(line)) is not None]


def _parse(line: bytes) -> Event | None:
    try:
        found = json.loads(line)
        kind, lines, values = found["kind"], found["lines"], found["values"]
        if kind not in get_args(EventKind) or not isinstance(lines, list) or not isinstance(values, dict):
            return None
        return Event(time=str(found["time"]), kind=kind, lines=tuple(map(_printable, lines)), values=values)
    except (ValueError, KeyError, TypeError):
        return None


def _printable(text: object) -> str:
    """Text that can do nothing to a terminal."""
    return "".join(character if character.isprintable() else "?" for character in str(text))
