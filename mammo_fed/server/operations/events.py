"""What happens in a run between real machines, as lines of JSON that the server's app appends and the console reads.

A line that a crash or a full disk cut short is skipped by readers, and the next event starts on a line of its own.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from mammo_fed.common.json_lines import LineReader, append_line
from mammo_fed.common.serialization import plain
from mammo_fed.reporting.formatting import readable

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
        with self._lock:
            try:
                append_line(self._path, event)
            except OSError:
                # Not a warning: that would become the next event. The log of the run and the outcome are kept elsewhere.
                logging.getLogger(__name__).info("an event cannot be written")


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
        self._lines = LineReader(path, seen=seen)

    def read(self) -> list[Event]:
        """Events since the last call, without lines that were cut short."""
        return [event for found in self._lines.read() if (event := _parse(found)) is not None]


def _parse(found: Mapping[str, Any]) -> Event | None:
    try:
        kind, lines, values = found["kind"], found["lines"], found["values"]
        if kind not in get_args(EventKind) or not isinstance(lines, list) or not isinstance(values, dict):
            return None
        return Event(time=str(found["time"]), kind=kind, lines=tuple(readable(str(line)) for line in lines), values=values)
    except (ValueError, KeyError, TypeError):
        return None
