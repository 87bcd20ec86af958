"""Which registered sites are connected, and since when, in a file that other commands read.

A site counts as there until its SuperNode has not been heard for about a minute: an interruption shows that late.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from mammo_fed.common.private_files import write_private
from mammo_fed.reporting.formatting import duration_text, moment_text

__all__ = ["PRESENCE_NAME", "Presence", "Seen", "read_presence"]

PRESENCE_NAME: Final = "presence.json"


@dataclass(frozen=True, kw_only=True)
class Seen:
    """One site: whether it is connected, and since when it is or is not; seconds since 1970, UTC."""

    connected: bool
    since: float


class Presence:
    """Keeps the file.

    Args:
      path: of the file; what it says of sites that have not changed is kept, also over a restart of the server.
      clock: seconds since 1970.
    """

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.time) -> None:
        self._path, self._clock = path, clock
        self._known = read_presence(path)
        self._written = False

    def note(self, online: Mapping[str, bool]) -> list[str]:
        """Take in who is there; a line for every site that came or went. A disk that is full loses nothing but the file."""
        now, lines = self._clock(), list[str]()
        seen = {}
        for site, here in sorted(online.items()):
            before = self._known.get(site)
            if before is not None and before.connected == here:
                seen[site] = before
                continue
            seen[site] = Seen(connected=here, since=now)
            if here:
                # True of a site that comes for the first time, too.
                away = "" if before is None else f", after {duration_text(now - before.since)} without a connection"
                lines.append(f"{site} is connected{away}")
            elif before is not None:
                lines.append(f"{site} is not connected any more (since {moment_text(now)})")
        if seen != self._known or not self._written:
            with suppress(OSError):
                write_private(self._path, json.dumps({site: asdict(one) for site, one in seen.items()}).encode())
                self._written = True
        self._known = seen
        return lines


def read_presence(path: Path) -> dict[str, Seen]:
    """What the file says by site; nothing where there is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {
            str(site): Seen(connected=bool(one["connected"]), since=float(one["since"])) for site, one in sorted(found.items())
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}
