"""What comes out of a masked sum at the server, and the fixed-point grid on which updates are summed.

No overflow: every one of n sites sends numbers of at most (2^63 - 1) // n in size, larger ones are cut to that before they are
masked; a sum of at most n of them is below 2^63, so the sum modulo 2^64 is the sum. Cut, never refused: whether a noisy number
is in the range depends on patients, and a refusal would tell.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations, islice
from typing import Final

import numpy as np
from numpy.typing import NDArray

from mammo_fed.errors import DataError, InvalidSetting
from mammo_fed.federation.flwr_internals.secagg import public_of, rebuild_secret
from mammo_fed.federation.secure_aggregation.double_masks import Member, Roster, commitment, mask_context, pair_mask, seed_mask

__all__ = ["LARGEST", "WEIGHTED_STEPS", "open_sum", "quantised", "rebuilt_key", "rebuilt_seed", "weighted_sum", "within_range"]

# Fixed-point steps in 1 for weighted updates: a step is 1e-9, and 4,000 sites may send numbers of up to two million.
WEIGHTED_STEPS: Final = 1 << 30
LARGEST: Final = (1 << 63) - 1
# How many sets of shares are tried where some are wrong: with honest sites the first one fits.
MOST_TRIES: Final = 64


def within_range(values: NDArray[np.int64], *, sites: int) -> NDArray[np.int64]:
    """The numbers, cut to what a sum over `sites` sites can hold; post-processing of noisy ones."""
    bound = LARGEST // sites
    return np.clip(values, -bound, bound)


def quantised(values: NDArray[np.float64], *, sites: int) -> NDArray[np.int64]:
    """A weighted update, which carries its own noise already, rounded to the fixed-point grid.

    Guarantee: within half a step of `values` where they are in the range; post-processing of what was released, and defined for
    whatever was: larger numbers are cut to the range, NaN becomes 0.

    Args:
      values: float64, shape (length,).
      sites: number of sites on the roster.

    Returns:
      int64, shape (length,), in steps of 1 / WEIGHTED_STEPS.
    """
    with np.errstate(over="ignore"):
        scaled = np.nan_to_num(np.asarray(values, np.float64) * WEIGHTED_STEPS, nan=0.0)
    # Up to 2^62 a float64 converts exactly; the bound of the range is kept in integers.
    return within_range(np.rint(np.clip(scaled, -(2.0**62), 2.0**62)).astype(np.int64), sites=sites)


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
    """A survivor's seed from the shares of at least `min_survivors` sites, compared with its commitment.

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
    """A lost site's private mask key in hex, compared with its public one.

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
