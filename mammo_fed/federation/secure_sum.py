"""What comes out of a masked sum at the server, and the fixed-point grid on which updates are summed.

No overflow: every one of n sites sends numbers of at most (2^63 - 1) // n in size, checked before they are masked; a sum of at
most n of them is below 2^63, so the sum modulo 2^64 is the sum.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations, islice
from typing import Final

import numpy as np
from numpy.typing import NDArray

from mammo_fed.errors import DataError, InvalidSetting
from mammo_fed.federation.flwr_internals.secagg import public_of, rebuild_secret
from mammo_fed.federation.secure import Member, Roster, commitment, mask_context, pair_mask, seed_mask

__all__ = ["LARGEST", "WEIGHTED_STEPS", "check_range", "open_sum", "quantised", "rebuilt_key", "rebuilt_seed", "weighted_sum"]

# Fixed-point steps in 1 for weighted updates: a step is 1e-9, and 4,000 sites may send numbers of up to two million.
WEIGHTED_STEPS: Final = 1 << 30
LARGEST: Final = (1 << 63) - 1
# How many sets of shares are tried where some are wrong: with honest sites the first one fits.
MOST_TRIES: Final = 64


def check_range(values: NDArray[np.int64], *, sites: int) -> None:
    """Raise InvalidSetting where a number is so large that a sum over `sites` sites could leave the range."""
    bound = LARGEST // sites
    if len(values) and not (-bound <= int(values.min()) and int(values.max()) <= bound):
        raise InvalidSetting(f"a number to be summed over {sites} sites is outside +-{bound}: the sum could overflow")


def quantised(values: NDArray[np.float64], *, sites: int) -> NDArray[np.int64]:
    """A weighted update, which carries its own noise already, rounded to the fixed-point grid.

    Guarantee: within half a step of `values`; post-processing of what was released.

    Args:
      values: float64, shape (length,).
      sites: number of sites on the roster.

    Returns:
      int64, shape (length,), in steps of 1 / WEIGHTED_STEPS.

    Raises:
      InvalidSetting: If a number is not finite or too large.
    """
    scaled = values * WEIGHTED_STEPS
    # Below 2^62 a float64 converts exactly; the bound of the range is checked in integers.
    if not (np.abs(scaled) < 2.0**62).all():
        raise InvalidSetting("an update to be summed is not finite or too large; check privacy.learning_rate")
    steps = np.rint(scaled).astype(np.int64)
    check_range(steps, sites=sites)
    return steps


def weighted_sum(total: NDArray[np.int64]) -> NDArray[np.float64]:
    """A sum of `quantised` updates in their own units."""
    return total.astype(np.float64) / WEIGHTED_STEPS


def open_sum(
    masked: Mapping[str, NDArray[np.uint64]],
    *,
    roster: Roster,
    present: Sequence[str],
    seeds: Mapping[str, bytes],
    keys: Mapping[str, str],
) -> NDArray[np.int64]:
    """The sum over the survivors, without masks.

    Args:
      masked: every survivor's masked vector, uint64, shape (length,).
      roster, present: as the sites used them.
      seeds: the survivors' rebuilt seeds.
      keys: the rebuilt private mask keys of those present that did not survive, in hex.

    Returns:
      int64, shape (length,).

    Raises:
      InvalidSetting: If there are fewer survivors than the roster's threshold, or secrets are missing or too many.
    """
    survivors = roster.present(sorted(masked))
    if set(seeds) != set(survivors) or set(keys) != set(present) - set(survivors):
        raise InvalidSetting("a sum needs the seed of every survivor and the mask key of every other present site, and no more")
    context = mask_context(roster, present)
    length = len(masked[survivors[0]])
    total = np.zeros(length, np.uint64)
    for site in survivors:
        total += masked[site]
        total -= seed_mask(seeds[site], context, length)
    for lost, private in keys.items():
        for site in survivors:
            # The lost site's own sign is the opposite of the survivor's: adding its mask takes the survivor's away.
            total += pair_mask(private, lost, roster.member(site), context, length)
    return total.view(np.int64)


def rebuilt_seed(shares: Sequence[bytes], *, roster: Roster, site: str, committed: str) -> bytes:
    """A survivor's seed from the shares of at least `min_survivors` sites, held against its commitment.

    Raises:
      DataError: If no set of shares gives it.
    """
    for chosen in _sets(shares, roster.terms.min_survivors):
        try:
            seed = rebuild_secret(chosen)
        except DataError:
            continue
        if commitment(roster, site, seed) == committed:
            return seed
    raise DataError(f"the seed of {site} cannot be rebuilt from {len(shares)} shares")


def rebuilt_key(shares: Sequence[bytes], *, roster: Roster, lost: Member) -> str:
    """A lost site's private mask key in hex, held against its public one.

    Raises:
      DataError: If no set of shares gives it.
    """
    for chosen in _sets(shares, roster.terms.min_survivors):
        try:
            private = rebuild_secret(chosen).hex()
            if public_of(private) == lost.mask_key:
                return private
        except DataError:
            continue
    raise DataError(f"the mask key of {lost.site} cannot be rebuilt from {len(shares)} shares")


def _sets(shares: Sequence[bytes], threshold: int) -> list[tuple[bytes, ...]]:
    return list(islice(combinations(shares, threshold), MOST_TRIES))
