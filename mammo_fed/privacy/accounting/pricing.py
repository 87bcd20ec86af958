"""What privacy events cost, by the accountant that was asked for.

| accountant | prices | tight | offers delta | patient price of sampled images |
|---|---|---|---|---|
| pld | every event | yes | yes | yes |
| gdp | full-batch events | exact | yes | no sampled events |
| rdp | every event | no (about 10 % above) | yes | no |
| prv | every event | within 0.02 | no | no |

None of these prices is a filter: they hold for events declared before the first output. A site that decides from round to
round whether to go on uses GDP or Renyi at one fixed order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from mammo_fed.errors import InvalidSetting
from mammo_fed.extensions import kinds
from mammo_fed.privacy.accounting.accountants import PrvAccountant, RdpAccountant
from mammo_fed.privacy.accounting.composition import (
    PrivacyAccountant,
    Protected,
    Release,
    gaussian_delta,
    gaussian_epsilon,
    merge,
)
from mammo_fed.privacy.accounting.pld import PldAccountant, is_coarse
from mammo_fed.privacy.events import PrivacyEvent
from mammo_fed.privacy.names import AccountantName

__all__ = [
    "ACCOUNTANTS",
    "GdpAccountant",
    "accountant_named",
    "coarsely_priced",
    "delta_at",
    "epsilon",
    "patient_epsilon",
]


class GdpAccountant(PrivacyAccountant):
    """Gaussian differential privacy in closed form: exact for full-batch events, and for nothing else."""

    name = "gdp"

    def _epsilon(self, releases: Sequence[Release], delta: float) -> float:
        return gaussian_epsilon(mu=self._mu(releases), delta=delta)

    def _delta(self, releases: Sequence[Release], epsilon: float) -> float:
        return gaussian_delta(mu=self._mu(releases), epsilon=epsilon)

    def _mu(self, releases: Sequence[Release]) -> float:
        for release in releases:
            if not release.full_batch:
                # The central-limit formula for sampled steps is not a bound: 4.01 where the true epsilon is 5.15.
                raise InvalidSetting(
                    f"sample_rate={release.sample_rate} must be 1 for accountant='gdp'; "
                    "check privacy.accountant (pld prices sampled steps)"
                )
        return math.sqrt(math.fsum(release.steps / release.noise_multiplier**2 for release in releases))


ACCOUNTANTS: Final[dict[str, PrivacyAccountant]] = {
    each.name: each for each in (PldAccountant(), RdpAccountant(), GdpAccountant(), PrvAccountant())
}


class _AtLeastPld(PrivacyAccountant):
    """An accountant from outside that never shows less than PLD does.

    Guarantee: that of PLD, whatever the other one computes: the larger of the two is shown. Nothing sound is lost by it, as PLD
    is within a thousandth of the true price of every event that we have.
    """

    def __init__(self, other: PrivacyAccountant) -> None:
        self._other, self._pld = other, PldAccountant()

    def _epsilon(self, releases: Sequence[Release], delta: float) -> float:
        return _larger(self._pld._epsilon(releases, delta), self._other._epsilon(releases, delta))

    def _delta(self, releases: Sequence[Release], epsilon: float) -> float:
        return _larger(self._pld._delta(releases, epsilon), self._other._delta(releases, epsilon))


def _larger(ours: float, theirs: float) -> float:
    """The larger; infinity where the other is no number, which max() may pass over."""
    return math.inf if math.isnan(theirs) else max(ours, theirs)


def accountant_named(name: str) -> PrivacyAccountant:
    """The accountant of that name; one from outside is imported now, and never prices below PLD.

    Raises:
      InvalidSetting: If there is none, or it is none.
    """
    if name in ACCOUNTANTS:
        return ACCOUNTANTS[name]
    found = kinds.ACCOUNTANTS.load(name)
    if not isinstance(found, PrivacyAccountant):
        raise InvalidSetting(
            f"privacy.accountant={name} from {kinds.ACCOUNTANTS.origin(name)} must be an instance of PrivacyAccountant"
        )
    return _AtLeastPld(found)


def epsilon(events: Sequence[PrivacyEvent], *, delta: float, accountant: AccountantName) -> float:
    """Epsilon of all `events` together, for their own unit, rounded up.

    Guarantee: (epsilon, delta)-DP of everything in `events`, if they were declared before the first output; never below the
    true value (bounds are upper bounds, then raised by 1e-6 of themselves).
    Neighbouring datasets: one unit (`PrivacyEvent.unit`) contributes nothing, the cohort's size is public.
    Edge cases: no events cost 0, an event without noise costs infinity.

    Args:
      events: what was or will be released; order and grouping do not matter.
      delta: in (0, 1).
      accountant: who prices.

    Raises:
      InvalidSetting: If delta is out of range, the units differ, or the accountant is unknown or cannot price an event.

    >>> from mammo_fed.privacy.events import PrivacyEvent
    >>> step = PrivacyEvent(mechanism="gradient", noise_multiplier=15.0, steps=100, sample_rate=1.0, unit="patient",
    ...                     clipping_norm=1.0, max_images_per_patient=4)
    >>> round(epsilon([step], delta=1e-5, accountant="gdp"), 4)
    2.7534
    """
    return accountant_named(accountant).epsilon(events, delta=delta)


def delta_at(events: Sequence[PrivacyEvent], *, epsilon: float, accountant: AccountantName) -> float:
    """Delta of all `events` together at `epsilon`, for their own unit, rounded up; `prv` does not offer it.

    Raises:
      InvalidSetting: If epsilon is negative, the units differ, or the accountant is unknown or cannot say.
    """
    return accountant_named(accountant).delta(events, epsilon=epsilon)


def coarsely_priced(
    events: Sequence[PrivacyEvent], *, delta: float, accountant: AccountantName, protected: Protected = "unit"
) -> bool:
    """Whether the price is a loose upper bound here, far above the true one: losses too large for a grid (pld, prv)."""
    releases = merge(events, protected=protected) if accountant not in ("rdp", "gdp") else None
    return releases is not None and is_coarse(releases, delta=delta)


def patient_epsilon(events: Sequence[PrivacyEvent], *, delta: float, accountant: AccountantName) -> float:
    """Epsilon of all `events` together for one patient, whatever their unit, rounded up.

    Guarantee: as `epsilon`, with the unit replaced by a patient who has at most `max_images_per_patient` images.
    Neighbouring datasets: one patient contributes nothing, the numbers of images and patients are public.
    Image-level events in the full batch have sensitivity k times the clipping norm; with Poisson sampling over images the
    number that is drawn is Binomial(k, sample_rate), which only `pld` prices.

    Raises:
      InvalidSetting: If delta is out of range, or the accountant is unknown or cannot price an event.

    >>> from mammo_fed.privacy.events import PrivacyEvent
    >>> step = PrivacyEvent(mechanism="gradient", noise_multiplier=15.0, steps=100, sample_rate=1.0, unit="image",
    ...                     clipping_norm=1.0, max_images_per_patient=2)
    >>> epsilon([step], delta=1e-5, accountant="gdp") < patient_epsilon([step], delta=1e-5, accountant="gdp")
    True
    """
    return accountant_named(accountant).patient_epsilon(events, delta=delta)
