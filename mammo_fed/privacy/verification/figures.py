"""Figures side by side: what was recorded, what was recomputed, and whether the two agree."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from mammo_fed.errors import DataError, InvalidSetting, PrivacyRefused
from mammo_fed.privacy.events import PrivacyEvent
from mammo_fed.privacy.verification.prices import Price

__all__ = ["MOST_BYTES", "Figure", "Sheet", "at", "events_of", "number", "read_strict", "rounded", "texts", "whole"]

MOST_BYTES: Final = 64 * 1024 * 1024
# Sentences show two decimals, rounded up.
SHOWN: Final = 0.01
EQUAL: Final = 1e-9


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One figure.

    Attributes:
      name: where it stands.
      recorded, recomputed: as text.
      agrees: None where it cannot be recomputed.
      note: how it was recomputed, or why it cannot be.
    """

    name: str
    recorded: str
    recomputed: str
    agrees: bool | None
    note: str = ""


class Sheet:
    """Figures as they are checked, one after the other."""

    def __init__(self) -> None:
        self._figures: list[Figure] = []

    def as_dicts(self) -> list[dict[str, Any]]:
        """The figures as values that JSON knows."""
        return [asdict(figure) for figure in self._figures]

    def priced(self, name: str, recorded: float, price: Callable[[], Price]) -> float:
        """Compare an epsilon with its recomputed price; returns the latter, of several sound ones that which was recorded."""
        try:
            found = price()
        except PrivacyRefused as error:
            self._add(name, rounded(recorded), "", False, str(error))
            return recorded
        agrees = found.agrees(recorded)
        self._add(name, rounded(recorded), rounded(found.epsilon), agrees, found.source)
        return min(found.figures, key=lambda figure: abs(figure - recorded)) if agrees else found.epsilon

    def within(self, name: str, recorded: float, low: float, high: float, note: str) -> None:
        """Compare with an interval, which a ten-thousandth widens on both sides."""
        slack = 1e-6 if math.isinf(high) else 1e-6 + 1e-4 * high
        shown = rounded(low) if low == high else f"{rounded(low)} to {rounded(high)}"
        self._add(name, rounded(recorded), shown, low - slack <= recorded <= high + slack, note)

    def same(self, name: str, recorded: object, recomputed: object, note: str = "") -> None:
        """Compare two values that must be equal, numbers up to rounding."""
        if isinstance(recorded, float) and isinstance(recomputed, float) and math.isfinite(recorded + recomputed):
            agrees = math.isclose(recorded, recomputed, rel_tol=EQUAL, abs_tol=0.0)
        else:
            agrees = recorded == recomputed
        self._add(name, _text(recorded), _text(recomputed), agrees, note)

    def holds(self, name: str, recorded: str, rule: str, met: bool) -> None:
        """Note whether a rule is met."""
        self._add(name, recorded, rule, met)

    def shown(self, name: str, text: str, value: float) -> None:
        """Compare a number in a sentence, rounded up to two decimals there, with what it is about."""
        number = math.inf if text == "∞" else float(text)
        slack = 0.0 if math.isinf(value) else 1e-6 + 1e-4 * value
        agrees = number == value or value - slack <= number <= value + slack + SHOWN
        self._add(name, text, rounded(value), agrees, "rounded up to two decimals")

    def unknown(self, name: str, recorded: str, why: str) -> None:
        """Note a figure that cannot be recomputed, and why."""
        self._add(name, recorded, "", None, why)

    def _add(self, name: str, recorded: str, recomputed: str, agrees: bool | None, note: str = "") -> None:
        self._figures.append(Figure(name=name, recorded=recorded, recomputed=recomputed, agrees=agrees, note=note))


def rounded(value: float) -> str:
    """A number with six digits."""
    return "no bound" if math.isinf(value) else f"{value:.6g}"


def _text(value: object) -> str:
    return f"{value:.12g}" if isinstance(value, float) else str(value)


def read_strict(path: Path) -> Mapping[str, Any]:
    """The JSON object in a file.

    Raises:
      DataError: If it cannot be read, is larger than 64 MiB, or is no strict JSON object.
    """
    if path.is_file() and path.stat().st_size > MOST_BYTES:
        raise DataError(f"{path} has more than {MOST_BYTES} bytes: it is no record of a run")
    try:
        found = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse)
    except OSError as error:
        raise DataError(f"{path} cannot be read; give the folder of a finished run, or its record.json") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not strict JSON: no record can be read from it") from error
    if not isinstance(found, dict):
        raise DataError(f"{path} is no JSON object: it is no record of a run")
    return found


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is not a JSON value")


def at(values: Any, path: str) -> Any:
    """What stands at a path of keys and positions, None where nothing does."""
    for part in path.split("."):
        if isinstance(values, list) and part.isdigit() and int(part) < len(values):
            values = values[int(part)]
        elif isinstance(values, dict):
            values = values.get(part)
        else:
            return None
    return values


def number(values: Any, path: str, *, default: float | None = None) -> float:
    """The number at a path; null is infinity, as records have it.

    Raises:
      DataError: If it is missing (and has no default), no number, or negative.
    """
    *above, key = path.split(".")
    home = at(values, ".".join(above)) if above else values
    there = key in home if isinstance(home, dict) else isinstance(home, list) and int(key) < len(home)
    if not there and default is not None:
        return default
    found = at(values, path)
    if found is None and there:
        return math.inf
    if isinstance(found, bool) or not isinstance(found, int | float) or found < 0:
        raise DataError(f"{path}={_short(found)} must be a number, at least 0; this is no record of a run")
    try:
        return float(found)
    except OverflowError as error:
        raise DataError(f"{path} is a number that is out of range; this is no record of a run") from error


def whole(values: Any, path: str, *, least: int = 0) -> int:
    """The whole number at a path.

    Raises:
      DataError: If it is none, or below `least`.
    """
    found = at(values, path)
    if isinstance(found, bool) or not isinstance(found, int) or found < least:
        raise DataError(f"{path}={_short(found)} must be a whole number, at least {least}; this is no record of a run")
    return found


def events_of(values: Any, path: str, *, relation: str) -> tuple[PrivacyEvent, ...]:
    """The privacy events at a path.

    Raises:
      DataError: If they are no list of events.
    """
    found = at(values, path)
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
        raise DataError(f"{path} must be a list of privacy events; this is no record of a run")
    try:
        return tuple(PrivacyEvent.from_dict({"relation": relation, **item}) for item in found)
    except InvalidSetting as error:
        raise DataError(f"{path}: {error}") from error


def texts(values: Sequence[Any] | None) -> tuple[str, ...]:
    """The texts of a list; none where it is no list."""
    return tuple(item for item in values if isinstance(item, str)) if isinstance(values, list) else ()


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}..."
