"""The accountants of Opacus, which the paper's rows were priced with: Renyi divergences and privacy random variables."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Final

import numpy as np
from dp_accounting import rdp

from mammo_fed.errors import InvalidSetting
from mammo_fed.privacy.accounting.composition import LARGEST_LOSS, PrivacyAccountant, Release, coarse_epsilon, reach

__all__ = ["PrvAccountant", "RdpAccountant"]


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
        # Late, as in `_orders`.
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
    # Late, as in `_orders`.
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
