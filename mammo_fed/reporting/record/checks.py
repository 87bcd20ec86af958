"""Checks of a record's values as its sections are built."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from mammo_fed.errors import DataError

__all__ = ["require_count", "require_distinct", "require_epsilon", "require_fraction"]


def require_count(name: str, value: float) -> None:
    """Raise DataError unless `value` is finite and at least 0."""
    if not (math.isfinite(value) and value >= 0):
        raise DataError(f"{name}={value} must be a finite number, at least 0")


def require_epsilon(name: str, value: float) -> None:
    """Raise DataError unless `value` is at least 0; infinity is no bound."""
    if not value >= 0:
        raise DataError(f"{name}={value} must be at least 0 or infinite")


def require_fraction(name: str, value: float | None) -> None:
    """Raise DataError unless `value` is in [0, 1], or withheld."""
    if value is not None and not 0 <= value <= 1:
        raise DataError(f"{name}={value} must be in [0, 1]")


def require_distinct(name: str, values: Sequence[str]) -> None:
    """Raise DataError where a name is there twice."""
    twice = [value for value, count in Counter(values).items() if count > 1]
    if twice:
        raise DataError(f"{name}: {twice} named more than once; give each site a name of its own")
