"""How far the clocks of a federation may differ, and which registered sites a SuperLink refused for theirs alone.

A site proves itself by signing the time. The SuperLink's guard notes whose time was too far off, and the coordinator's own
process reads that.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from mammo_fed.common.json_lines import read_object
from mammo_fed.common.private_files import write_private

__all__ = [
    "CLOCKS_NAME",
    "CLOCK_TOLERANCE_SECONDS",
    "REFUSED_FOR_CLOCK",
    "REFUSED_HEADER",
    "WrongClocks",
    "difference",
    "read_wrong_clocks",
]

# How far a site's clock may be ahead of or behind the server's: a proof of who asks is as old as the difference.
CLOCK_TOLERANCE_SECONDS: Final = 300.0
# With which a server tells a site that has proved itself why it is refused all the same.
REFUSED_HEADER: Final = "x-mammo-fed-refused"
REFUSED_FOR_CLOCK: Final = "clock"

# Beside the secret of the control side.
CLOCKS_NAME: Final = "clocks.json"
# Between two notes of the same site, which asks again and again.
EVERY_SECONDS: Final = 10.0
# Unless its clock was set in between.
MOVED_SECONDS: Final = 60.0


class WrongClocks:
    """Writes the last time of each such site to a file; safe to use from several threads.

    Args:
      path: of the file; what a SuperLink before this one left there is removed.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._noted: dict[str, dict[str, float]] = {}
        self._lock = threading.Lock()
        path.unlink(missing_ok=True)

    def note(self, public_key: bytes, ahead_seconds: float) -> None:
        """A site's clock is so far ahead of this machine's (negative: behind); no room on the disk is no reason to fail."""
        name, moment = public_key.hex(), time.monotonic()
        with self._lock:
            before = self._noted.get(name)
            if (
                before
                and moment - before["noted"] < EVERY_SECONDS
                and abs(before["ahead_seconds"] - ahead_seconds) < MOVED_SECONDS
            ):
                return
            self._noted[name] = {"ahead_seconds": round(ahead_seconds, 1), "noted": moment}
            with contextlib.suppress(OSError):
                write_private(self._path, json.dumps(self._noted).encode())


def difference(ahead_seconds: float) -> str:
    """How far a clock is off, in words.

    >>> difference(-5400.4), difference(12.3)
    ('5400 s behind', '12 s ahead of')
    """
    return f"{abs(ahead_seconds):.0f} s {'ahead of' if ahead_seconds > 0 else 'behind'}"


def read_wrong_clocks(path: Path) -> Mapping[bytes, float]:
    """By public key, how many seconds a refused site's clock was ahead of this machine's (negative: behind)."""
    try:
        return {bytes.fromhex(name): float(note["ahead_seconds"]) for name, note in read_object(path).items()}
    except (ValueError, KeyError, TypeError, OverflowError):
        return {}
