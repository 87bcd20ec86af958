"""The Gaussian release of a mean, and full-batch DP gradient descent in closed form.

Both release a sum of clipped contributions with whatever draws they are given: in floating point, or with every contribution
rounded to a public grid, summed in integers and hidden by discrete Gaussian noise, at the same price: see
mammo_fed.privacy.noise.integer_grid.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mammo_fed.errors import InvalidSetting
from mammo_fed.privacy.events import PrivacyEvent
from mammo_fed.privacy.mechanisms.logistic_gradients import LogisticData, clipped_logistic_sum, unit_gradients
from mammo_fed.privacy.noise.integer_grid import clip_factors, grid_sum
from mammo_fed.privacy.noise.source import ClippedSum, Draws

__all__ = [
    "LogisticData",
    "clip_factors",
    "clipped_logistic_sum",
    "descend",
    "gradient_grid_sum",
    "mean_grid_sum",
    "private_descent",
    "private_mean",
]


def private_mean(
    features: NDArray[np.float32],
    units: NDArray[np.int64],
    *,
    event: PrivacyEvent,
    public_count: int,
    noise: Draws,
) -> NDArray[np.float32]:
    """Mean of `features`, every unit's sum clipped once, Gaussian noise added to the total.

    Guarantee: one Gaussian mechanism with sensitivity `event.clipping_norm` and noise multiplier `event.noise_multiplier`.
    Neighbouring cohorts: the rows of one unit zeroed out; the cohort's size is public.
    Edge cases: a unit with a value that is not finite counts as zero; an empty cohort still releases noise.

    Args:
      features: float32, shape (images, dims).
      units: int64, shape (images,), dense index of the protected unit.
      event: the one that the ledger has reserved for this release.
      public_count: denominator (images), declared public by the site: never `len(features)`.
      noise: draws for this noise alone; their kind decides between the grid and floating point.

    Returns:
      The noisy mean, float32, shape (dims,).

    Raises:
      InvalidSetting: If the event is not one full-batch step on a mean, or `public_count` < 1.

    Source: per-user clipping, arXiv:2407.07737 (ULS); Gaussian mechanism, arXiv:1905.02383, Thm 1.
    """
    _check_mean(event)
    _check_count(public_count)
    total = noise.release(_FeatureSum(features=features, units=units), event=event)
    return (total / public_count).astype(np.float32)


def mean_grid_sum(features: NDArray[np.float32], units: NDArray[np.int64], *, event: PrivacyEvent) -> NDArray[np.int64]:
    """Sum of every unit's clipped sum of features on the grid, without noise, int64, shape (dims,).

    Guarantee: zeroing out one unit moves it by an integer vector of norm at most GRID_STEPS (see `grid_sum`).
    """
    _check_mean(event)
    return _FeatureSum(features=features, units=units).on_grid(clipping_norm=event.clipping_norm)


def gradient_grid_sum(data: LogisticData, weights: NDArray[np.float32], *, event: PrivacyEvent) -> NDArray[np.int64]:
    """Sum of every unit's clipped gradient on the grid, without noise, int64, shape (dims + 1,).

    Guarantee: as `mean_grid_sum`.
    """
    _check_gradient(event)
    return _GradientSum(data=data, weights=weights).on_grid(clipping_norm=event.clipping_norm)


def private_descent(
    data: LogisticData,
    weights: NDArray[np.float32],
    *,
    event: PrivacyEvent,
    public_count: int,
    learning_rate: float,
    proximal: float,
    noise: Draws,
) -> NDArray[np.float32]:
    """Full-batch DP gradient descent on the logistic loss, `event.steps` steps from `weights`.

    Guarantee: `event.steps` adaptive Gaussian mechanisms, each with sensitivity `event.clipping_norm` and noise multiplier
    `event.noise_multiplier`; it rests on clipping each unit's whole gradient, never on the features' norm.
    Neighbouring cohorts: the rows of one unit zeroed out; the cohort's size is public.
    Edge cases: an empty cohort still takes noisy steps.

    In floating point no gradient of a single unit is ever formed. On the grid each unit's is, in blocks of bounded size,
    because rounding acts on each contribution.

    Args:
      data: the site's prepared features.
      weights: float32, shape (dims + 1,); where the site starts.
      event: the one that the ledger has reserved for these steps.
      public_count: denominator (images), declared public by the site.
      learning_rate: step size on the mean gradient, > 0.
      proximal: FedProx's mu, >= 0: pulls towards `weights`; it uses no patient's data.
      noise: draws for this noise alone; their kind decides between the grid and floating point.

    Returns:
      The new weights, float32, shape (dims + 1,).

    Source: DP gradient descent, arXiv:1607.00133 with sampling rate 1; FedProx, arXiv:1812.06127.
    """
    return descend(
        lambda current: _GradientSum(data=data, weights=current),
        weights,
        event=event,
        public_count=public_count,
        learning_rate=learning_rate,
        proximal=proximal,
        noise=noise,
    )


def descend(
    sum_at: Callable[[NDArray[np.float32]], ClippedSum],
    weights: NDArray[np.float32],
    *,
    event: PrivacyEvent,
    public_count: int,
    learning_rate: float,
    proximal: float,
    noise: Draws,
) -> NDArray[np.float32]:
    """`private_descent` on any sum of clipped gradients.

    Guarantee: as `private_descent`, if zeroing out one unit moves each sum by at most the clipping norm.

    Args:
      sum_at: the sum of the units' clipped gradients at given weights.
      weights, event, public_count, learning_rate, proximal, noise: as of `private_descent`.
    """
    _check_gradient(event)
    _check_count(public_count)
    current = weights.copy()
    for _ in range(event.steps):
        total = noise.release(sum_at(current), event=event).astype(np.float32)
        current = current - np.float32(learning_rate / public_count) * total
        if proximal > 0:
            # Implicit, so that the pull never overshoots however large the step is.
            pull = np.float32(learning_rate * proximal)
            current = ((current + pull * weights) / (1 + pull)).astype(np.float32)
    return current


@dataclass(frozen=True, kw_only=True, eq=False)
class _FeatureSum:
    """The sum of every unit's clipped sum of features."""

    features: NDArray[np.float32]
    units: NDArray[np.int64]

    def on_grid(self, *, clipping_norm: float) -> NDArray[np.int64]:
        return grid_sum(_sums_of_units(self.features, self.units), clipping_norm=clipping_norm)

    def in_floating_point(self, *, event: PrivacyEvent, noise: np.random.Generator) -> NDArray[np.floating[Any]]:
        sums = _sums_of_units(self.features, self.units)
        factors = clip_factors(np.linalg.norm(sums, axis=1), clipping_norm=event.clipping_norm)
        scale = event.noise_multiplier * event.clipping_norm
        total: NDArray[np.float64] = factors @ sums + scale * noise.standard_normal(self.features.shape[1])
        return total


@dataclass(frozen=True, kw_only=True, eq=False)
class _GradientSum:
    """The sum of every unit's clipped gradient of the logistic loss."""

    data: LogisticData
    weights: NDArray[np.float32]

    def on_grid(self, *, clipping_norm: float) -> NDArray[np.int64]:
        steps = np.zeros(len(self.weights), np.int64)
        for gradients in unit_gradients(self.data, self.weights):
            steps += grid_sum(gradients, clipping_norm=clipping_norm)
        return steps

    def in_floating_point(self, *, event: PrivacyEvent, noise: np.random.Generator) -> NDArray[np.floating[Any]]:
        total = clipped_logistic_sum(self.data, self.weights, clipping_norm=event.clipping_norm)
        scale = event.noise_multiplier * event.clipping_norm
        if scale > 0:
            total = total + (scale * noise.standard_normal(len(total))).astype(np.float32)
        return total


def _sums_of_units(features: NDArray[np.float32], units: NDArray[np.int64]) -> NDArray[np.float64]:
    """Sum of rows per unit, float64, shape (units, dims)."""
    sums = np.zeros((int(units.max()) + 1 if len(units) else 0, features.shape[1]))
    np.add.at(sums, units, features)
    # NaN and overflow are folded into zero per unit, not per image: a partial sum would still be that unit's data.
    sums[~np.isfinite(sums).all(axis=1)] = 0.0
    return sums


def _check_mean(event: PrivacyEvent) -> None:
    if event.mechanism != "mean" or event.steps != 1 or not event.full_batch:
        raise InvalidSetting(f"event={event} must be one full-batch step on a mean; reserve that event first")


def _check_gradient(event: PrivacyEvent) -> None:
    if event.mechanism != "gradient" or not event.full_batch:
        raise InvalidSetting(f"event={event} must be full-batch gradient steps; reserve that event first")


def _check_count(public_count: int) -> None:
    if public_count < 1:
        raise InvalidSetting(f"public_count={public_count} must be at least 1; check the site's policy")
