"""Checks that several sections of the settings share."""

from __future__ import annotations

from typing import Literal

from mammo_fed.errors import InvalidSetting

__all__ = ["Auto", "at_least"]

Auto = Literal["auto"]


def at_least(name: str, value: float, least: int) -> None:
    """Raise InvalidSetting where the setting `name` is below `least`."""
    if value < least:
        raise InvalidSetting(f"{name}={value} must be at least {least}")
