"""What a record says of a price whose noise was drawn in floating point."""

from __future__ import annotations

from typing import Final

__all__ = ["FLOATING", "in_reals"]

FLOATING: Final = (
    "Noise was drawn and sums were made in floating point (privacy.noise=float): epsilon is about real numbers, and gaps "
    "between floating-point numbers may tell more than it says; privacy.noise=secure draws on a public grid."
)


def in_reals(floating: bool) -> str:
    """What qualifies a price whose noise was drawn in floating point."""
    return " in exact arithmetic (the noise was drawn in floating point)" if floating else ""
