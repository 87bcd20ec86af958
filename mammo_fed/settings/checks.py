"""Checks that several sections of the settings share."""

from __future__ import annotations

from typing import Final, Literal

from mammo_fed.errors import InvalidSetting

__all__ = ["Auto", "at_least", "check_delta", "check_drawn", "check_seed", "delta_warning"]

Auto = Literal["auto"]
# From here on nothing that epsilon says is worth saying, however few patients there are.
DELTA_BOUND: Final = 0.1
# PyTorch takes 64 bits, and no message carries more than 63.
MOST_SEEDS: Final = 1 << 63
# Some hundred gigabytes of the smallest images.
MOST_DRAWN: Final = 10**7


def at_least(name: str, value: float, least: int) -> None:
    """Raise InvalidSetting where the setting `name` is below `least`."""
    if value < least:
        raise InvalidSetting(f"{name}={value} must be at least {least}")


def check_drawn(name: str, value: int, least: int) -> None:
    """Raise InvalidSetting unless the setting `name`, a number of images to draw, is one that a machine can hold."""
    if not least <= value <= MOST_DRAWN:
        raise InvalidSetting(f"{name}={value} must be from {least} to {MOST_DRAWN}")


def check_seed(name: str, seed: int | None, *, least: int = 0) -> None:
    """Raise InvalidSetting unless `seed` is None or a number that every generator and every message takes."""
    if seed is not None and not least <= seed < MOST_SEEDS:
        raise InvalidSetting(f"{name}={seed} must be from {least} to {MOST_SEEDS - 1}")


def check_delta(name: str, delta: float) -> None:
    """Raise InvalidSetting unless `delta` is in (0, 0.1): above, it permits to publish a tenth of the patients outright."""
    if not 0 < delta < DELTA_BOUND:
        raise InvalidSetting(f"{name}={delta} must be in (0, {DELTA_BOUND:g}); well below 1 / patients is usual, such as 1e-4")


def delta_warning(*, delta: float, patients: int, name: str = "privacy.delta") -> str | None:
    """What to say of a delta that permits to publish one patient whole, None of a smaller one.

    >>> delta_warning(delta=1e-2, patients=100)
    'privacy.delta=0.01 is not below 1 / 100 patients: it permits to publish one of them whole, whatever epsilon says'
    >>> delta_warning(delta=1e-4, patients=100)
    """
    if delta * patients < 1:
        return None
    allowed = "it permits to publish one of them whole, whatever epsilon says"
    return f"{name}={delta:g} is not below 1 / {patients:,} patients: {allowed}"
