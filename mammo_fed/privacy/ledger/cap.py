"""The cap that an account promises its patients: how much, at which delta, since when, and every raise. No files, no clock.

The first declaration under an account's name notes the policy's cap in the ledger; from then on it is a promise. A declaration
under a smaller cap lowers it for good, as its record quotes that cap over all runs. Only an entry of the operator's raises it.
Each name keeps the history of its own: what is told of one study's account does not say which others it merged with. Patients
whose accounts merged hold the promises of all, so that the smallest decides.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from mammo_fed.errors import DataError, InvalidSetting

__all__ = [
    "Cap",
    "CapRaise",
    "Caps",
    "after_raise",
    "check_raise",
    "check_time",
    "promise",
    "raises_from_json",
    "raises_to_json",
]


@dataclass(frozen=True, kw_only=True)
class CapRaise:
    """One raise of a cap by a site's operator.

    Attributes:
      at: when, ISO 8601 with time zone.
      from_epsilon: what was promised until then, >= 0.
      to_epsilon: what holds from then on, above `from_epsilon`; may be infinite.

    Raises:
      DataError: If the time is none, or the cap does not rise.
    """

    at: str
    from_epsilon: float
    to_epsilon: float

    def __post_init__(self) -> None:
        check_time("at", self.at)
        if not 0 <= self.from_epsilon < self.to_epsilon:
            raise DataError(f"from_epsilon={self.from_epsilon} must be at least 0 and below to_epsilon={self.to_epsilon}")


@dataclass(frozen=True, kw_only=True)
class Cap:
    """The most that all runs charged to an account may cost its patients.

    Attributes:
      max_epsilon: the cap in force; infinite where there is none.
      delta: at which it is read.
      since: time of the entry that set it, ISO 8601.
      raised: every raise so far, the oldest first.
    """

    max_epsilon: float
    delta: float
    since: str
    raised: tuple[CapRaise, ...] = ()

    def lowered(self, max_epsilon: float, *, at: str) -> Cap:
        """The cap once a declaration has promised `max_epsilon`: itself unless that is less."""
        return replace(self, max_epsilon=max_epsilon, since=at) if max_epsilon < self.max_epsilon else self

    def raised_to(self, max_epsilon: float, *, at: str) -> Cap:
        """The cap once the operator has raised it."""
        step = CapRaise(at=at, from_epsilon=self.max_epsilon, to_epsilon=max_epsilon)
        return replace(self, max_epsilon=max_epsilon, since=at, raised=(*self.raised, step))


Caps = Mapping[str, Cap]
"""The cap of every account by the account's own name; an account of a ledger that did not note caps yet is absent."""


def promise(*, max_epsilon: float, delta: float) -> dict[str, Any]:
    """What a declaration's entry says of the cap under which it was accepted."""
    return {"max_epsilon": to_json(max_epsilon), "delta": delta}


def check_raise(cap: Cap | None, *, account: str, promised: float, max_epsilon: float) -> float:
    """The cap that a raise to `max_epsilon` starts from: the noted one, else the policy's, `promised`.

    Raises:
      InvalidSetting: If `max_epsilon` is not above it.
    """
    before = promised if cap is None else cap.max_epsilon
    if not max_epsilon > before:
        since = "by the site's policy" if cap is None else f"since {cap.since}"
        raise InvalidSetting(
            f"--max-epsilon={max_epsilon:g} must be above {before:g}, the cap that account {account} promises {since}; "
            "a smaller cap needs no raise: set max_epsilon in the site's policy"
        )
    return before


def after_raise(caps: Caps, details: Mapping[str, Any], *, delta: float) -> dict[str, Cap]:
    """`caps` after an entry of a raise; `delta` is that of an account whose cap was not noted before."""
    account, at = details["account"], details["at"]
    known = caps.get(account) or Cap(max_epsilon=from_json(details["from"]), delta=delta, since=at)
    return {**caps, account: known.raised_to(from_json(details["to"]), at=at)}


def raises_to_json(raises: Sequence[CapRaise]) -> str:
    """Strict JSON of raises; infinity is null."""
    values = [{"at": step.at, "from": step.from_epsilon, "to": to_json(step.to_epsilon)} for step in raises]
    return json.dumps(values, sort_keys=True, allow_nan=False)


def raises_from_json(text: str) -> tuple[CapRaise, ...]:
    """Inverse of `raises_to_json`.

    Raises:
      DataError: If the text is no list of raises, or one of them is none.
    """
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError("the raises of a cap cannot be read: they are not JSON") from error
    if not isinstance(values, list) or not all(
        isinstance(step, dict) and step.keys() == {"at", "from", "to"} for step in values
    ):
        raise DataError("the raises of a cap must be a list of objects with at, from and to")
    return tuple(
        CapRaise(at=step["at"], from_epsilon=_number(step["from"]), to_epsilon=from_json(step["to"])) for step in values
    )


def to_json(max_epsilon: float) -> float | None:
    """A cap as JSON knows it: null where there is none."""
    return None if math.isinf(max_epsilon) else max_epsilon


def from_json(value: Any) -> float:
    """Inverse of `to_json`.

    Raises:
      DataError: If `value` is no number and not null.
    """
    return math.inf if value is None else _number(value)


def check_time(name: str, value: Any) -> None:
    """Raise DataError unless `value` is a time with its zone, in the one form that a ledger writes."""
    try:
        moment = datetime.fromisoformat(value)
    except (TypeError, ValueError):
        moment = None
    if moment is None or moment.tzinfo is None or moment.isoformat(timespec="seconds") != value:
        raise DataError(f"{name}={value!r:.80} must be a time as a ledger writes it, such as 2026-01-31T09:30:00+00:00")


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise DataError(f"a cap={value!r:.80} must be a number, or null where there is none")
    return float(value)
