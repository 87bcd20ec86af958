"""Four accountants with one interface: what a sequence of privacy events costs."""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import ClassVar, Final

import numpy as np
from dp_accounting import rdp

from mammo_fed.errors import InvalidSetting
from mammo_fed.privacy.accounting.composition import Protected, Release, coarse_epsilon, merge, reach
from mammo_fed.privacy.accounting.gdp import check_delta, check_epsilon, gaussian_delta, gaussian_epsilon
from mammo_fed.privacy.accounting.pld import LARGEST_LOSS, pld_delta, pld_epsilon
from mammo_fed.privacy.events import PrivacyEvent

__all__ = ["GdpAccountant", "PldAccountant", "PrivacyAccountant", "PrvAccountant", "RdpAccountant"]

# Every epsilon and delta shown is the computed upper bound raised by this part of itself: more than any conversion or root
# finding can be off, and far below the fourth digit that anybody reads.
SAFETY_MARGIN: Final = 1e-6


class PrivacyAccountant(ABC):
    """Prices events; holds no state, so that one price never depends on an earlier question.

    Guarantee: `epsilon` and `delta` are upper bounds for releases declared before the first output, used adaptively
    otherwise. Nothing here is a filter: choosing later events by earlier outputs needs GDP or Renyi at one fixed order.
    Neighbouring datasets: the data of one unit zeroed out, the cohort's size public (see `Release` for why add-or-remove
    prices hold for it).
    Edge cases: no events cost 0; an event without noise costs infinity; equal events are merged first, so a price depends
    neither on their order nor on how a run was cut into events.

    Attributes:
      name: value of privacy.accountant.
    """

    name: ClassVar[str]

    def epsilon(self, events: Sequence[PrivacyEvent], *, delta: float) -> float:
        """Epsilon of all `events` together for their own unit, rounded up.

        Raises:
          InvalidSetting: If `delta` is not in (0, 1), the units differ, or this accountant cannot price an event.
        """
        return self._rounded_epsilon(events, protected="unit", delta=delta)

    def patient_epsilon(self, events: Sequence[PrivacyEvent], *, delta: float) -> float:
        """Epsilon of all `events` together for one patient, rounded up.

        Patient-level events cost what they cost. Image-level ones are priced for `max_images_per_patient` = k images zeroed
        out at once: sensitivity k in the full batch, a Binomial(k, sample_rate) mixture of sensitivities when sampled.

        Raises:
          InvalidSetting: As `epsilon`; also for sampled image-level events with k > 1 unless the accountant is PLD.
        """
        return self._rounded_epsilon(events, protected="patient", delta=delta)

    def delta(self, events: Sequence[PrivacyEvent], *, epsilon: float) -> float:
        """Delta of all `events` together at `epsilon` >= 0 for their own unit, rounded up.

        Raises:
          InvalidSetting: If `epsilon` is negative or this accountant cannot say.
        """
        check_epsilon(epsilon, name="epsilon")
        releases = merge(events, protected="unit")
        if releases is None:
            return 1.0
        if not releases:
            return 0.0
        return min(1.0, self._delta(releases, epsilon) * (1 + SAFETY_MARGIN))

    def _rounded_epsilon(self, events: Sequence[PrivacyEvent], *, protected: Protected, delta: float) -> float:
        check_delta(delta)
        releases = merge(events, protected=protected)
        if releases is None:
            return math.inf
        if not releases:
            return 0.0
        return self._epsilon(releases, delta) * (1 + SAFETY_MARGIN)

    @abstractmethod
    def _epsilon(self, releases: Sequence[Release], delta: float) -> float:
        """Upper bound on the epsilon of one or more releases."""

    @abstractmethod
    def _delta(self, releases: Sequence[Release], epsilon: float) -> float:
        """Upper bound on the delta of one or more releases."""


class PldAccountant(PrivacyAccountant):
    """Privacy loss distributions (google dp-accounting, pessimistic): tight for every event, and prices groups.

    Full-batch Gaussian events have an exact closed form (`GdpAccountant`); here they are discretised like any other.
    """

    name = "pld"

    def _epsilon(self, releases: Sequence[Release], delta: float) -> float:
        return pld_epsilon(releases, delta=delta)

    def _delta(self, releases: Sequence[Release], epsilon: float) -> float:
        return pld_delta(releases, epsilon=epsilon)


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


class RdpAccountant(PrivacyAccountant):
    """Renyi divergences at Opacus' default orders, computed by Opacus: the accountant of the paper's rows.

    Source: arXiv:1908.10530, Sec 3.3 (sampled Gaussian); arXiv:2004.00010, Prop 12 (conversion).
    """

    name = "rdp"
    # Opacus' series stops at terms of exp(-30) and can come out this much too small, even negative.
    SERIES_ERROR: Final = 1e-11

    def _epsilon(self, releases: Sequence[Release], delta: float) -> float:
        orders, divergences = self._curve(releases)
        return float(rdp.compute_epsilon(orders, divergences, delta)[0])

    def _delta(self, releases: Sequence[Release], epsilon: float) -> float:
        orders, divergences = self._curve(releases)
        return float(rdp.rdp_privacy_accountant.compute_delta(orders, divergences, epsilon)[0])

    def _curve(self, releases: Sequence[Release]) -> tuple[list[float], list[float]]:
        """Orders and the divergence of all releases together at each."""
        _refuse_groups(releases, accountant=self.name)
        orders = _orders()
        total = np.zeros(len(orders))
        for release in releases:
            noise = release.noise_multiplier
            one_step = np.array(_opacus_step(release.sample_rate, noise))
            if not release.full_batch:
                unsampled = np.array(orders) / (2 * noise**2)
                one_step = np.minimum(np.maximum(one_step, 0.0) + self.SERIES_ERROR, unsampled)
            total += release.steps * one_step
        return list(orders), [float(value) for value in total]


class PrvAccountant(PrivacyAccountant):
    """Privacy random variables by Opacus, with the UPPER end of its error interval (0.01 above its estimate).

    Opacus follows the person's removal only; for steps sampled at several rates no proof says that the other direction
    is never worse, so this accountant is a second opinion, and PLD (both directions) the one to plan with.

    Source: arXiv:2106.02848.
    """

    name = "prv"
    EPSILON_ERROR: Final = 0.01
    MAX_POINTS: Final = 2**24

    def _epsilon(self, releases: Sequence[Release], delta: float) -> float:
        _refuse_groups(releases, accountant=self.name)
        if reach(releases) > LARGEST_LOSS:
            return coarse_epsilon(releases, delta=delta)
        self._refuse_what_does_not_fit(releases, delta)
        from opacus.accountants import PRVAccountant

        accountant = PRVAccountant()
        accountant.history = [(each.noise_multiplier, each.sample_rate, each.steps) for each in releases]
        try:
            with _quiet_opacus():
                upper = float(accountant.get_epsilon(delta, eps_error=self.EPSILON_ERROR))
        except (RuntimeError, ValueError) as error:
            raise self._cannot(delta) from error
        if math.isnan(upper):
            raise self._cannot(delta)
        return max(0.0, upper)

    def _delta(self, releases: Sequence[Release], epsilon: float) -> float:  # noqa: ARG002
        raise InvalidSetting("accountant='prv' must be 'pld', 'rdp' or 'gdp' to ask for a delta; check privacy.accountant")

    def _refuse_what_does_not_fit(self, releases: Sequence[Release], delta: float) -> None:
        steps = math.fsum(release.steps for release in releases)
        mesh = self.EPSILON_ERROR / math.sqrt(steps * math.log(12_000 / delta) / 2)
        if 2 * coarse_epsilon(releases, delta=delta / 1e4) / mesh > self.MAX_POINTS:
            raise self._cannot(delta)

    def _cannot(self, delta: float) -> InvalidSetting:
        return InvalidSetting(
            f"accountant='prv' must be another accountant for these events at delta={delta}: "
            "Opacus cannot discretise them; check privacy.accountant (pld)"
        )


@lru_cache(maxsize=1)
def _orders() -> tuple[float, ...]:
    """Opacus' default orders."""
    # Opacus imports torch: seconds that the other accountants need not wait for.
    from opacus.accountants import RDPAccountant

    return tuple(float(order) for order in RDPAccountant.DEFAULT_ALPHAS)


@lru_cache(maxsize=256)
def _opacus_step(sample_rate: float, noise_multiplier: float) -> tuple[float, ...]:
    """Renyi divergences of one step at `_orders`: asked again after every round of a run, and always the same."""
    from opacus.accountants.analysis.rdp import compute_rdp

    found = compute_rdp(q=sample_rate, noise_multiplier=noise_multiplier, steps=1, orders=list(_orders()))
    return tuple(float(value) for value in np.asarray(found, dtype=np.float64))


def _refuse_groups(releases: Sequence[Release], *, accountant: str) -> None:
    if any(release.group > 1 for release in releases):
        raise InvalidSetting(
            f"accountant={accountant!r} must be 'pld' to price a patient with several sampled images; check privacy.accountant"
        )


@contextmanager
def _quiet_opacus() -> Iterator[None]:
    """Silence what Opacus says about its own first guess of a domain and about log(0) at a sampling rate of 1."""
    with warnings.catch_warnings(), np.errstate(divide="ignore", over="ignore", under="ignore", invalid="ignore"):
        warnings.filterwarnings("ignore", message="Optimal order is the .* alpha", category=UserWarning)
        yield
