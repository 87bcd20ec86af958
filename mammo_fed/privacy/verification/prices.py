"""What events cost by dp-accounting alone: a second price beside that of our accountants, of which nothing is imported here.

Full-batch events have an exact price: N(0, 1) against N(mu, 1), whose curve dp-accounting knows in closed form. Sampled events
are priced by privacy loss distributions on a grid of our own choice, or by Renyi divergences where the figure claims to be one.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Final, Literal

import numpy as np
from dp_accounting import NeighboringRelation, dp_event, rdp
from dp_accounting.pld import privacy_loss_distribution as pld
from dp_accounting.pld.privacy_loss_mechanism import GaussianPrivacyLoss

from mammo_fed.errors import PrivacyRefused
from mammo_fed.privacy.events import PrivacyEvent

__all__ = ["MOST_SAMPLED_STEPS", "Price", "Protected", "beside", "price_of", "renyi_price"]

Protected = Literal["unit", "patient"]
# A figure is rounded up, and the other grid rounds up too: by less than this part of the price.
TOLERANCE: Final = 1e-4
# What a second grid may lie above a sound figure, and what floats cost where the price is exact.
GRID_SLACK: Final = 5e-5
EXACT_SLACK: Final = 1e-9
SMALLEST: Final = 1e-6
# Upper end of Opacus' interval less its estimate, twice: what a figure of accountant prv may lie above a tight one.
PRV_INTERVAL: Final = 0.021
# The grid: points per standard deviation of one step's loss, its widest step, and the most points of one step.
GRID_PER_DEVIATION: Final = 70
WIDEST_GRID: Final = 2e-3
MOST_POINTS: Final = 100_000
MOST_MIXTURE_POINTS: Final = 20_000
STEPS_AT_ONCE: Final = 4096
MOST_SAMPLED_STEPS: Final = 10_000_000
MOST_IMAGES: Final = 1000
# Above this loss an accountant may answer with the Renyi bound of order 2; a tail of 1e-15 adds TAIL to a loss.
LARGEST_LOSS: Final = 1000.0
NEAR_LARGEST: Final = 0.9
TAIL: Final = 33.2
LARGEST_NOISE: Final = 1e6
# The trapezoidal rule is exact to rounding at this many points; less noise takes too many of them.
DEVIATIONS: Final = 14.0
POINTS_PER_DEVIATION: Final = 30
LEAST_INTEGRATED: Final = 0.01
OPACUS_ORDERS: Final = (*(1 + x / 10 for x in range(1, 100)), *range(12, 64))


@dataclass(frozen=True, kw_only=True)
class Price:
    """A recomputed epsilon, and which recorded figures agree with it.

    Attributes:
      epsilon: the independent price.
      source: how it was computed.
      low: least figure that is no understatement.
      figures: figures that a sound accountant may show, each a ten-thousandth, `spread` above or `below` it.
      spread, below: see `figures`.
    """

    epsilon: float
    source: str
    low: float
    figures: tuple[float, ...]
    spread: float = 0.0
    below: float = 0.0

    def agrees(self, recorded: float) -> bool:
        """Whether `recorded` is not below the price, and no more above it than rounding accounts for."""
        if math.isinf(self.epsilon) or math.isinf(recorded):
            return self.epsilon == recorded
        if recorded < self.low:
            return False
        return any(
            figure * (1 - TOLERANCE) - SMALLEST - self.below <= recorded <= figure * (1 + TOLERANCE) + SMALLEST + self.spread
            for figure in self.figures
        )


def price_of(events: Sequence[PrivacyEvent], *, delta: float, accountant: str, protected: Protected = "unit") -> Price:
    """Epsilon of all `events` together, recomputed.

    Guarantee: `Price.low` is at most the true epsilon, up to the slack of floats and of a grid.
    Neighbouring datasets: one unit (or patient) contributes nothing, the cohort's size a public constant.

    Args:
      events: what was released.
      delta: in (0, 1).
      accountant: who priced the figure: "pld", "gdp", "rdp", "prv", or another distribution's, which is only held against the
        tight price from below.
      protected: "patient" prices image-level events for a patient with `max_images_per_patient` images.

    Raises:
      PrivacyRefused: If the events take more steps, or a patient more images, than can be priced here.
    """
    noiseless = any(event.noise_multiplier < 1 / LARGEST_NOISE for event in events)
    if not events or noiseless:
        epsilon = math.inf if noiseless else 0.0
        return Price(epsilon=epsilon, source="by definition", low=epsilon, figures=(epsilon,))
    squared_mu, sampled = _merged(events, protected)
    coarse = _coarse(squared_mu, sampled, delta)
    if not sampled:
        tight, source, slack = _gaussian_epsilon(math.sqrt(squared_mu), delta), "closed form", EXACT_SLACK
    elif _loss(squared_mu, sampled) > LARGEST_LOSS:
        tight, source, slack = coarse, "Renyi bound of order 2", GRID_SLACK
    else:
        tight, source, slack = (
            _pld_epsilon(squared_mu, tuple(sorted(sampled.items())), delta),
            "privacy loss distribution",
            GRID_SLACK,
        )
    low = min(tight, coarse) * (1 - slack) - EXACT_SLACK
    figures = (tight, coarse) if _loss(squared_mu, sampled) > NEAR_LARGEST * LARGEST_LOSS else (tight,)
    if accountant == "rdp" and protected == "unit":
        epsilon = _rdp_epsilon(squared_mu, tuple(sorted(sampled.items())), delta)
        # So little noise that the fractional orders cannot be integrated: the figure lies between the two prices.
        below = epsilon - low if any(noise < LEAST_INTEGRATED for _, noise, _ in sampled) else 0.0
        return Price(
            epsilon=epsilon, source="Renyi divergences", low=min(low, epsilon), figures=(epsilon,), below=max(0.0, below)
        )
    if accountant == "prv" and protected == "unit":
        return Price(epsilon=tight, source=source, low=low, figures=figures, spread=PRV_INTERVAL)
    if accountant not in ("pld", "gdp", "rdp", "prv") and protected == "unit":
        return Price(epsilon=tight, source=f"{source}, from below", low=low, figures=(tight,), spread=math.inf)
    return Price(epsilon=tight, source=source, low=low, figures=figures)


def renyi_price(*, noise_multiplier: float, releases: int, delta: float) -> Price:
    """Epsilon of Gaussian releases by dp-accounting's Renyi accountant at its own orders, never below the closed form."""
    accountant = rdp.RdpAccountant(neighboring_relation=NeighboringRelation.ADD_OR_REMOVE_ONE)
    accountant.compose(dp_event.GaussianDpEvent(noise_multiplier), releases)
    epsilon = float(accountant.get_epsilon(delta))
    low = _gaussian_epsilon(math.sqrt(releases) / noise_multiplier, delta) * (1 - EXACT_SLACK)
    return Price(epsilon=epsilon, source="Renyi divergences", low=low, figures=(epsilon,))


# Sampling rate, noise multiplier, largest number of items of the protected person; and steps of each.
_Kind = tuple[float, float, int]
_Sampled = Counter[_Kind]


def _merged(events: Sequence[PrivacyEvent], protected: Protected) -> tuple[float, _Sampled]:
    """Squared mu of all full-batch steps, and the sampled steps."""
    squares, sampled = [], _Sampled()
    for event in events:
        group = event.max_images_per_patient if protected == "patient" and event.unit == "image" else 1
        if group > MOST_IMAGES:
            raise PrivacyRefused(f"max_images_per_patient={group} must be at most {MOST_IMAGES} to be priced again here")
        if event.full_batch:
            squares.append(event.steps * (group / event.noise_multiplier) ** 2)
        else:
            sampled[event.sample_rate, min(event.noise_multiplier, LARGEST_NOISE), group] += event.steps
    if sum(sampled.values()) > MOST_SAMPLED_STEPS:
        raise PrivacyRefused(f"steps={sum(sampled.values())} must be at most {MOST_SAMPLED_STEPS} to be priced again here")
    return math.fsum(squares), sampled


def beside(epsilon: float, *, cap: float, delta: float) -> float:
    """Epsilon of the Gaussian release that composes with one of `epsilon` to `cap`, all at `delta`; an upper bound."""
    if epsilon >= cap:
        return 0.0
    squares = _gaussian_mu(cap, delta, up=True) ** 2 - _gaussian_mu(epsilon, delta, up=False) ** 2
    return min(cap, _gaussian_epsilon(math.sqrt(squares), delta))


def _gaussian_mu(epsilon: float, delta: float, *, up: bool) -> float:
    """The shift at which N(0, 1) against N(mu, 1) has `epsilon`, by bisection; the upper or the lower end."""
    low, high = 1 / LARGEST_NOISE, 1.0
    while _gaussian_epsilon(high, delta) < epsilon:
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _gaussian_epsilon(middle, delta) < epsilon else (low, middle)
    return high * (1 + SMALLEST) if up else low * (1 - SMALLEST)


@lru_cache(maxsize=4096)
def _gaussian_epsilon(mu: float, delta: float) -> float:
    """Epsilon of N(0, 1) against N(mu, 1), by bisection of the exact curve; the upper end of the last interval."""
    if mu < 1 / LARGEST_NOISE:
        mu = 1 / LARGEST_NOISE
    curve = GaussianPrivacyLoss(1 / mu)
    if curve.get_delta_for_epsilon(0.0) <= delta:
        return 0.0
    low, high = 0.0, 1.0
    while curve.get_delta_for_epsilon(high) > delta:
        low, high = high, 2 * high
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if curve.get_delta_for_epsilon(middle) > delta else (low, middle)
    return high


def _renyi_two(rate: float, noise: float, group: int) -> float:
    """An upper bound on the Renyi divergence of order 2 of one step: the whole group at once, whenever any of it is drawn."""
    drawn, exponent = -math.expm1(group * math.log1p(-rate)), (group / noise) ** 2
    # log(1 + q^2 (exp(x) - 1)) without overflow.
    return math.log1p(drawn**2 * math.expm1(exponent)) if exponent < 500 else exponent + 2 * math.log(drawn)


def _coarse(squared_mu: float, sampled: _Sampled, delta: float) -> float:
    """Renyi composition at order 2 (arXiv:2004.00010, Prop 12): what accountants answer where no grid holds the losses."""
    divergence = squared_mu + math.fsum(steps * _renyi_two(*step) for step, steps in sampled.items())
    return max(0.0, divergence - math.log(4 * delta))


def _loss(squared_mu: float, sampled: _Sampled) -> float:
    """About the largest loss outside a negligible tail, by the divergence of order 2 of the mixtures themselves."""
    return squared_mu + math.fsum(steps * _mixture_two(*kind) for kind, steps in sampled.items()) + TAIL


@cache
def _mixture_two(rate: float, noise: float, group: int) -> float:
    """Renyi divergence of order 2 of one step: log sum_ij p_i p_j exp(i j / noise^2), p binomial."""
    items = np.arange(group + 1)
    log_choices = np.array([math.log(math.comb(group, item)) for item in range(group + 1)])
    log_p = log_choices + items * math.log(rate) + (group - items) * math.log1p(-rate)
    exponent = log_p[:, None] + log_p[None, :] + np.outer(items, items) / noise**2
    peak = float(exponent.max())
    return max(0.0, peak + math.log(float(np.exp(exponent - peak).sum())))


@lru_cache(maxsize=4096)
def _rdp_epsilon(squared_mu: float, sampled: tuple[tuple[_Kind, int], ...], delta: float) -> float:
    """Epsilon at Opacus' orders: whole ones by dp-accounting; its series for others is a loose bound: these are integrated."""
    orders = OPACUS_ORDERS if not sampled else [order for order in OPACUS_ORDERS if order == int(order)]
    accountant = rdp.RdpAccountant(list(orders), NeighboringRelation.ADD_OR_REMOVE_ONE)
    if squared_mu:
        accountant.compose(dp_event.GaussianDpEvent(1 / math.sqrt(squared_mu)))
    for (rate, noise, _), steps in sampled:
        accountant.compose(dp_event.PoissonSampledDpEvent(rate, dp_event.GaussianDpEvent(noise)), steps)
    epsilon = float(accountant.get_epsilon(delta))
    fractional = np.array([order for order in OPACUS_ORDERS if order != int(order)])
    if not sampled or any(noise < LEAST_INTEGRATED for (_, noise, _), _ in sampled):
        return epsilon
    total = squared_mu * fractional / 2
    for (rate, noise, _), steps in sampled:
        total = total + steps * np.array(_integrated(rate, noise, tuple(fractional)))
    return min(epsilon, float(rdp.compute_epsilon(list(fractional), list(total), delta)[0]))


@cache
def _integrated(rate: float, noise: float, orders: tuple[float, ...]) -> tuple[float, ...]:
    """Renyi divergences of one sampled step from everybody else's, by the trapezoidal rule (arXiv:1908.10530, Sec 3.3)."""
    x = np.arange(-DEVIATIONS * noise, max(orders) + DEVIATIONS * noise, noise / POINTS_PER_DEVIATION)
    density = -(x**2) / (2 * noise**2) - math.log(noise * math.sqrt(2 * math.pi))
    ratio = np.logaddexp(math.log1p(-rate), math.log(rate) + (2 * x - 1) / (2 * noise**2))
    found = []
    for order in orders:
        exponent = density + order * ratio
        peak = float(exponent.max())
        found.append((peak + math.log(float(np.trapezoid(np.exp(exponent - peak), x)))) / (order - 1))
    return tuple(max(0.0, value) for value in found)


@lru_cache(maxsize=4096)
def _pld_epsilon(squared_mu: float, sampled: tuple[tuple[_Kind, int], ...], delta: float) -> float:
    grid = _grid(tuple(kind for kind, _ in sampled))
    whole = pld.identity(value_discretization_interval=grid)
    if squared_mu:
        whole = _step(1.0, 1 / math.sqrt(squared_mu), 1, grid)
    for step, steps in sampled:
        whole = whole.compose(_repeated(_step(*step, grid), steps))
    return float(whole.get_epsilon_for_delta(delta))


def _repeated(part: pld.PrivacyLossDistribution, steps: int) -> pld.PrivacyLossDistribution:
    """In blocks: the library raises the size of a grid to the power of the steps as a whole number."""
    blocks, rest = divmod(steps, STEPS_AT_ONCE)
    if not blocks:
        return part.self_compose(rest)
    whole = _repeated(part.self_compose(STEPS_AT_ONCE), blocks)
    return whole.compose(part.self_compose(rest)) if rest else whole


@cache
def _grid(steps: tuple[_Kind, ...]) -> float:
    """Step of the grid by the kinds of sampled steps alone, so that all prefixes of a run share it, and each step's loss."""
    fine = min(rate * group / noise for rate, noise, group in steps) / GRID_PER_DEVIATION
    coarsest = 1e-7
    for _, noise, group in steps:
        shift = group / noise
        most = MOST_POINTS if group == 1 else MOST_MIXTURE_POINTS
        coarsest = max(coarsest, 2 * (10 * shift + shift**2 / 2) / most)
    return max(min(fine, WIDEST_GRID), coarsest)


@cache
def _step(rate: float, noise: float, group: int, grid: float) -> pld.PrivacyLossDistribution:
    if group == 1:
        return pld.from_gaussian_mechanism(
            noise,
            value_discretization_interval=grid,
            sampling_prob=rate,
            neighboring_relation=NeighboringRelation.REPLACE_SPECIAL,
        )
    weights = [math.comb(group, items) * rate**items * (1 - rate) ** (group - items) for items in range(group + 1)]
    return pld.from_mixture_gaussian_mechanism(noise, list(range(group + 1)), weights, value_discretization_interval=grid)
