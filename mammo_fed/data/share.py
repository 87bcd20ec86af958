"""How training patients are split over sites."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Share"]


@dataclass(frozen=True, kw_only=True)
class Share:
    """How a pool is split over sites.

    Attributes:
      num_sites: number of sites, >= 1.
      how: "uniform", "size" or "label"; the phantom's hospitals come ready-made and ignore it.
      alpha: skew of "size" and "label", > 0.
      seed: of the split (and of the phantom's images).
    """

    num_sites: int
    how: str
    alpha: float
    seed: int
