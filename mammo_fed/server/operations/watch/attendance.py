"""In which stage a run is, whom it has asked and who is missing, from the file that the server's app rewrites at a change."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mammo_fed.reporting.formatting import duration_text, moment_text, readable

__all__ = ["Attendance", "AttendanceWatch", "SiteAttendance", "read_attendance"]


@dataclass(frozen=True, kw_only=True)
class SiteAttendance:
    """One site in the stage.

    Attributes:
      state: asked, answered, missing, aside (asked on the side), revoked or refused.
      since: when it came to that, seconds since 1970; None where it is not said.
      missed: rounds in a row that it did not answer, >= 0.
    """

    state: str
    since: float | None
    missed: int


@dataclass(frozen=True, kw_only=True)
class Attendance:
    """The stage that a run is in.

    Attributes:
      stage: declaration, mean or train.
      round_index, rounds: of the run.
      attempt: of the round, from 1.
      begun, deadline: of the attempt, seconds since 1970; None where there is none.
      sites: by name.
    """

    stage: str
    round_index: int
    rounds: int
    attempt: int
    begun: float | None
    deadline: float | None
    sites: Mapping[str, SiteAttendance] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The stage for people."""
        if self.stage != "train":
            return {"declaration": "declaration", "mean": "private mean"}.get(self.stage, self.stage)
        again = f", attempt {self.attempt}" if self.attempt > 1 else ""
        return f"round {self.round_index} of {self.rounds}{again}"

    def until(self, now: float) -> str:
        """How long until the deadline, for people; empty where there is none."""
        if self.deadline is None:
            return ""
        left = self.deadline - now
        when = f"its deadline, {moment_text(self.deadline)}"
        return f"{duration_text(left)} until {when}" if left > 0 else f"{duration_text(-left)} past {when}"


def read_attendance(path: Path) -> Attendance | None:
    """What the file says; None where there is none yet, or it cannot be read."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return Attendance(
            stage=readable(str(found["stage"])),
            round_index=int(found.get("round", 0)),
            rounds=int(found.get("rounds", 0)),
            attempt=int(found.get("attempt", 1)),
            begun=_moment(found.get("begun")),
            deadline=_moment(found.get("deadline")),
            sites={readable(str(name)): _site(one) for name, one in found.get("sites", {}).items()},
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


class AttendanceWatch:
    """Tells a console what has changed.

    Args:
      path: of the file.
      clock: seconds since 1970.
    """

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.time) -> None:
        self._path, self._clock = path, clock
        self._stage: tuple[str, int, int] | None = None
        self._states: dict[str, str] = {}
        # Of a run that is resumed: where it was when it broke off, until its app is there.
        self._left = read_attendance(path)

    def news(self) -> list[str]:
        """Lines for a stage that has begun, and for every site that is missing, aside, revoked or back since the last call."""
        found = read_attendance(self._path)
        if found is None or found == self._left:
            return []
        lines = []
        stage = (found.stage, found.round_index, found.attempt)
        if stage != self._stage:
            self._stage = stage
            until = found.until(self._clock())
            lines.append(f"{found.name} has begun" + (f"; {until}" if until else ""))
        for name, site in found.sites.items():
            before = self._states.get(name)
            if site.state == before:
                continue
            self._states[name] = site.state
            since = "" if site.since is None else f" since {moment_text(site.since)}"
            if site.state in ("missing", "aside", "revoked"):
                many = f", {site.missed} rounds in a row" if site.missed > 1 else ""
                lines.append(f"{name} is {_WORDS[site.state]}{since}{many}")
            elif before in ("missing", "aside") and site.state == "answered":
                lines.append(f"{name} answers again")
        return lines


_WORDS = {"missing": "missing", "aside": "missing and asked on the side", "revoked": "revoked"}


def _site(found: Any) -> SiteAttendance:
    missed = found.get("missed", 0)
    return SiteAttendance(
        state=readable(str(found["state"])),
        since=_moment(found.get("since")),
        missed=missed if isinstance(missed, int) and missed >= 0 else 0,
    )


def _moment(value: Any) -> float | None:
    """A finite number as seconds since 1970."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)
