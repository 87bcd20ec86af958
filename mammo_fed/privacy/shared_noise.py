"""Noise in shares: each site adds a part, and only the sum over enough sites carries all of it.

A declared threat model says how many honest sites every sum holds: the smallest number that is ever unmasked less those that
collude with the server. The noise that the schedule asks for is divided among so many shares. Whoever knows more shares than
that faces less noise, and the figures for such adversaries are given beside the declared one.

Why a sum of discrete Gaussians is priced as one. Let two have scales a and b in grid steps and c^2 = a^2 b^2 / (a^2 + b^2). At
every integer m their convolution is

    sum_k exp(-k^2 / 2a^2 - (m - k)^2 / 2b^2) = exp(-m^2 / 2(a^2 + b^2)) sum_k exp(-(k - m a^2 / (a^2 + b^2))^2 / 2c^2),

and by Poisson summation the last sum depends on m by no more than a factor of 1 +- 2.1 exp(-2 pi^2 c^2). With scales of at
least 64, c^2 is at least 2048 and that factor 1 +- 1e-17000. So k shares of scale s are, coordinate by coordinate, one
discrete Gaussian of scale s sqrt(k) up to a factor that adds less than 1e-16000 to epsilon over any number of coordinates that
fits into memory, and the argument of mammo_fed.privacy.noise prices that one: k s^2 >= (z 2^30)^2 + 16 for a
noise multiplier z. A share beyond those counted is independent of all data: adding it is post-processing. So is reduction
modulo 2^64.

Source: distributed discrete Gaussian mechanism, arXiv:2102.06387; convolution, Peikert, CRYPTO 2010, Thm 3.1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from mammo_fed.errors import InvalidSetting
from mammo_fed.privacy.accounting.pricing import epsilon
from mammo_fed.privacy.events import PrivacyEvent
from mammo_fed.privacy.names import AccountantName
from mammo_fed.privacy.noise import GRID_STEPS, ROUNDING_VARIANCE, GridDraws

__all__ = [
    "Adversaries",
    "adversary_epsilons",
    "exposed",
    "largest_share",
    "noisy_share",
    "release_of_sum",
    "share_sigma",
    "with_shares",
]

# Far above what the argument needs, far below any noise that protects anything.
SMALLEST_SIGMA: Final = 64
# Standard deviations that noise stays within but for a chance of exp(-2000); the check of the range decides, not this.
FAR: Final = 64


@dataclass(frozen=True, kw_only=True)
class Adversaries:
    """Epsilon of a run by who looks at it.

    Attributes:
      declared: the server with as many colluding sites as declared: what the ledger charges.
      other_site: a site that knows its own share alone, where no more sites took part than the smallest number.
      all_colluding: the server with every other site: the site's own share alone stands between them and its patients.
    """

    declared: float
    other_site: float
    all_colluding: float


def with_shares(event: PrivacyEvent, *, shares: int) -> PrivacyEvent:
    """The same release, its noise divided among the shares of `shares` sites."""
    return replace(event, noise_shares=shares)


def share_sigma(*, noise_multiplier: float, shares: int) -> int:
    """Scale of one share in grid steps.

    Guarantee: for every k from 1 to `shares`, k * result^2 >= (noise_multiplier * GRID_STEPS)^2 * k / shares + 16, so k shares
    hide as much as a continuous Gaussian of noise multiplier noise_multiplier * sqrt(k / shares).

    Raises:
      InvalidSetting: If there are no shares, or the noise multiplier is not above 0.
    """
    if shares < 1 or not noise_multiplier > 0:
        raise InvalidSetting(f"shares={shares} must be at least 1 and noise_multiplier={noise_multiplier} above 0")
    paid = math.ceil(noise_multiplier * GRID_STEPS)
    return max(SMALLEST_SIGMA, 1 + math.isqrt(-(-paid * paid // shares) + ROUNDING_VARIANCE))


def noisy_share(total: NDArray[np.int64], *, event: PrivacyEvent, draws: GridDraws) -> NDArray[np.int64]:
    """A site's sum on the grid with its share of the noise; it must leave the site under a mask only.

    Guarantee: in a sum over `event.noise_shares` honest sites, that of `event`; see the module's docstring.
    Neighbouring cohorts: one unit of one site contributes nothing: it moves the sum of all sites by an integer
    vector of norm at most GRID_STEPS, as it moves its own site's.
    Edge cases: a noise multiplier of 0 adds no noise.

    Args:
      total: int64, shape (dims,), from mammo_fed.privacy.noise.grid_sum.
      event: the one that was reserved.
      draws: for this release alone.

    Returns:
      int64, shape (dims,), in grid steps.
    """
    if event.noise_multiplier == 0:
        return total
    sigma = share_sigma(noise_multiplier=event.noise_multiplier, shares=event.noise_shares)
    return total + draws.gaussian(len(total), sigma=sigma)


def release_of_sum(total: NDArray[np.int64], *, clipping_norm: float) -> NDArray[np.float64]:
    """A sum of sites' sums on the grid in the units of the contributions, float64, same shape."""
    return total.astype(np.float64) * (clipping_norm / GRID_STEPS)


def largest_share(*, images: int, event: PrivacyEvent) -> int:
    """A bound on the numbers of `noisy_share` from public figures alone: `images` units at their largest, and the noise.

    The bound on the noise holds but for a chance of exp(-2000).
    """
    noise = event.noise_multiplier
    return images * GRID_STEPS + (FAR * share_sigma(noise_multiplier=noise, shares=event.noise_shares) if noise else 0)


def exposed(events: Sequence[PrivacyEvent], *, honest: int) -> tuple[PrivacyEvent, ...]:
    """The events as they look to an adversary who knows the shares of all but `honest` sites.

    Raises:
      InvalidSetting: If `honest` is below 1: without the site's own share there is no site to protect.
    """
    if honest < 1:
        raise InvalidSetting(f"honest={honest} must be at least 1: the site itself is")
    return tuple(
        replace(event, noise_multiplier=event.noise_multiplier * math.sqrt(honest / event.noise_shares), noise_shares=1)
        for event in events
    )


def adversary_epsilons(
    events: Sequence[PrivacyEvent], *, min_survivors: int, delta: float, accountant: AccountantName
) -> Adversaries:
    """What a run costs against the declared adversary, against another site, and against all others together.

    Guarantee: each figure is (epsilon, delta)-DP of everything in `events` against that adversary, rounded up.

    Args:
      events: of the run, with their numbers of shares; where a site adds all of the noise, every figure is the same.
      min_survivors: the smallest number of sites in a sum.
      delta, accountant: as mammo_fed.privacy.accounting.pricing.epsilon.
    """

    def price(honest: int) -> float:
        return epsilon(exposed(events, honest=honest), delta=delta, accountant=accountant)

    declared = epsilon(events, delta=delta, accountant=accountant)
    if all(event.noise_shares == 1 for event in events):
        return Adversaries(declared=declared, other_site=declared, all_colluding=declared)
    return Adversaries(declared=declared, other_site=price(max(1, min_survivors - 1)), all_colluding=price(1))
