"""Site-level (central) differential privacy at the server, and sums that hide the single site's update."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from mammo_fed.errors import InvalidSetting
from mammo_fed.settings.checks import Auto, at_least

__all__ = ["CentralSettings", "SecureSettings"]


@dataclass(frozen=True, kw_only=True)
class CentralSettings:
    """Site-level differential privacy: the server clips each site's update and adds noise to the average.

    It protects a whole site's part in the released models, against everybody but the server; it comes on top of what the sites
    do for their patients.

    Attributes:
      noise_multiplier: standard deviation of the noise on the average, in units of `clipping_norm` / sites; 0 is off.
      clipping_norm: largest norm of one site's update.
      delta: at which the site-level epsilon is reported.
    """

    noise_multiplier: float
    clipping_norm: float
    delta: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.noise_multiplier) and self.noise_multiplier >= 0):
            raise InvalidSetting(
                f"federation.central.noise_multiplier={self.noise_multiplier} must be a finite number, at least 0 (off)"
            )
        if not (math.isfinite(self.clipping_norm) and self.clipping_norm > 0):
            raise InvalidSetting(f"federation.central.clipping_norm={self.clipping_norm} must be a finite number above 0")
        if not 0 < self.delta < 1:
            raise InvalidSetting(f"federation.central.delta={self.delta} must be in (0, 1)")


@dataclass(frozen=True, kw_only=True)
class SecureSettings:
    """Secure aggregation: the server learns the sum of the sites' updates and no single one.

    Attributes:
      use: "none"; "masks" (every site's update carries its own noise, and the sum hides it); or "shared_noise" (each site adds
        a share of the noise, and only the sum carries all of it).
      min_survivors: below so many sites nothing is unmasked; "auto" is all but one, at least 2. Under "shared_noise" the shares
        are sized for so many, less the colluders.
      colluders: sites that may tell the server what they know; the declared threat model of "shared_noise".
    """

    use: Literal["none", "masks", "shared_noise"]
    min_survivors: int | Auto
    colluders: int

    def __post_init__(self) -> None:
        if self.min_survivors != "auto":
            at_least("federation.secure.min_survivors", self.min_survivors, 2)
        at_least("federation.secure.colluders", self.colluders, 0)
        if self.min_survivors != "auto" and self.colluders >= self.min_survivors:
            raise InvalidSetting(
                f"federation.secure.colluders={self.colluders} must be below min_survivors={self.min_survivors}"
            )

    def survivors(self, sites: int) -> int:
        """The smallest number of sites, of `sites`, whose sum is unmasked."""
        return max(2, sites - 1) if self.min_survivors == "auto" else self.min_survivors
