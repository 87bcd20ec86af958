"""What the door turned away, told in one line a minute however much it was."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable
from typing import Final

__all__ = ["OftenSaid", "TurnedAway"]

logger = logging.getLogger("uvicorn.error")

EVERY_SECONDS: Final = 60.0
# Addresses that are counted one by one between two lines.
NAMED: Final = 256
# Lines of one kind that a log takes a minute.
LINES: Final = 1000


class TurnedAway:
    """Counts, by reason and by address; `tell` writes them down at most once a minute.

    Args:
      say: writes a line.
      clock: monotonic seconds.
    """

    def __init__(self, say: Callable[[str], None] = logger.warning, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._say, self._clock = say, clock
        self._reasons: Counter[str] = Counter()
        self._addresses: Counter[str] = Counter()
        self._told = -EVERY_SECONDS

    def count(self, reason: str, address: str = "") -> None:
        """Note one."""
        self._reasons[reason] += 1
        if address and (address in self._addresses or len(self._addresses) < NAMED):
            self._addresses[address] += 1

    def tell(self) -> None:
        """Write what has been counted, if the last line is a minute old."""
        now = self._clock()
        if not self._reasons or now < self._told + EVERY_SECONDS:
            return
        self._told = now
        reasons = ", ".join(f"{count} {reason}" for reason, count in self._reasons.most_common())
        most = ", ".join(f"{address} ({count})" for address, count in self._addresses.most_common(3))
        self._say(f"turned away: {reasons}" + (f"; most from {most}" if most else ""))
        self._reasons.clear()
        self._addresses.clear()


class OftenSaid(logging.Filter):
    """Lets a line of one kind through so many times a minute; refused requests are only counted.

    Args:
      turned_away: counts what is left out.
      clock: monotonic seconds.
    """

    def __init__(self, turned_away: TurnedAway, *, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._turned_away, self._clock = turned_away, clock
        self._since, self._seen = 0.0, Counter[str]()

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the line is written."""
        if record.name == "uvicorn.access" and isinstance(record.args, tuple) and len(record.args) == 5:
            client, status = record.args[0], record.args[4]
            if isinstance(status, int) and 400 <= status < 500:
                self._turned_away.count(f"answered {status}", str(client).rpartition(":")[0])
                return False
        if record.name == "uvicorn.error" and str(record.msg).startswith(("Invalid HTTP request", "Unsupported upgrade")):
            self._turned_away.count("not HTTP")
            return False
        now = self._clock()
        if now >= self._since + EVERY_SECONDS:
            self._since = now
            self._seen.clear()
        kind = f"{record.name}:{record.msg}"[:200]
        if len(self._seen) >= 1000 and kind not in self._seen:
            return False
        self._seen[kind] += 1
        if self._seen[kind] <= LINES:
            return True
        self._turned_away.count("lines of this log left out")
        return False
