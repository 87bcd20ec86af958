"""The Gaussian release of a mean, and full-batch DP gradient descent on the logistic loss in closed form.

Both release a sum of clipped contributions with whatever draws they are given: in floating point, or with every contribution
rounded to a public grid, summed in integers and hidden by discrete Gaussian noise, at the same price: see
mammo_fed.privacy.noise. The gradients of the logistic loss per privacy unit have a closed form.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mammo_fed.errors import InvalidSetting
from mammo_fed.privacy.events import PrivacyEvent
from mammo_fed.privacy.noise import ClippedSum, Draws, clip_factors, grid_sum

__all__ = [
    "LogisticData",
    "clip_factors",
    "clipped_logistic_sum",
    "descend",
    "gradient_grid_sum",
    "mean_grid_sum",
    "private_descent",
    "private_mean",
    "unit_gradients",
]

# A logit beyond this is saturated anyway; the bound keeps exp() from overflowing.
LOGIT_BOUND: Final = 60.0
# Relative rounding error of a sum of products in float64, with room for a thousand dimensions and a hundred images.
CANCELLATION: Final = 1e-12
# Numbers in one block of unit gradients: small enough for the processor's cache.
BLOCK_NUMBERS: Final = 1 << 16


@dataclass(frozen=True, kw_only=True, eq=False)
class LogisticData:
    """A site's features, ready for closed-form per-unit clipping; rows are ordered by unit.

    Attributes:
      rows: float32, shape (images, dims + 1): features, then the bias column.
      labels: float32, shape (images,), 0 or 1.
      units: int64, shape (images,), dense unit index, ascending.
      num_units: number of units.
      pairs: (first, second, product): all ordered pairs of different images of one unit and the products of their rows.
      squares: float64, shape (images,): squared norms of the rows.
    """

    rows: NDArray[np.float32]
    labels: NDArray[np.float32]
    units: NDArray[np.int64]
    num_units: int
    pairs: tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]
    squares: NDArray[np.float64]

    @classmethod
    def build(
        cls, features: NDArray[np.float32], labels: NDArray[np.int64], units: NDArray[np.int64], *, bias_scale: float
    ) -> LogisticData:
        """Append the bias column and precompute the products within each unit.

        Edge cases: an image whose features are all zero, and every image of a unit with a feature that is not finite, has
        its row set to zero, bias included.
        """
        num_units = int(units.max()) + 1 if len(units) else 0
        order = np.argsort(units, kind="stable")
        features, labels, units = features[order], labels[order], units[order]
        bad = np.zeros(num_units, bool)
        np.logical_or.at(bad, units, ~np.isfinite(features).all(axis=1))
        rows = np.concatenate([features, np.full((len(features), 1), bias_scale, np.float32)], axis=1)
        # Such an image gives nothing, not even to the bias: that is the neighbouring cohort whose distance is priced.
        empty = bad[units] | ~np.any(features != 0, axis=1) if len(units) else np.zeros(0, bool)
        rows[empty] = 0.0
        first, second = _pairs_within(units)
        wide = rows.astype(np.float64)
        return cls(
            rows=rows,
            labels=labels.astype(np.float32),
            units=units,
            num_units=num_units,
            pairs=(first, second, np.einsum("ij,ij->i", wide[first], wide[second])),
            squares=np.einsum("ij,ij->i", wide, wide),
        )


def clipped_logistic_sum(data: LogisticData, weights: NDArray[np.float32], *, clipping_norm: float) -> NDArray[np.float32]:
    """Sum over units of each unit's whole clipped gradient (bias included) of the logistic loss.

    An image's gradient is (p - y) x, so a unit's norm follows from products of rows and no gradient of a single unit is
    ever formed: |sum_i c_i x_i|^2 = sum_i c_i^2 |x_i|^2 + sum_{i != j} c_i c_j <x_i, x_j>.

    Guarantee: one unit moves the result by at most `clipping_norm` in L2, up to the rounding of the sum in float32.
    Neighbouring cohorts: one unit contributes nothing.
    Edge cases: an empty cohort gives zeros; a unit whose gradient is not finite, by its data or by the weights, counts as zero.

    Args:
      data: the site's prepared features.
      weights: float32, shape (dims + 1,): weights, then bias.
      clipping_norm: largest contribution of one unit, > 0.

    Returns:
      float32, shape (dims + 1,).
    """
    with np.errstate(invalid="ignore", over="ignore"):
        logits = data.rows @ weights
    residuals = _residuals(logits, data.labels)
    norms = np.sqrt(_squared_norms(data, residuals))
    factors = clip_factors(norms, clipping_norm=clipping_norm)[data.units]
    # Hostile weights can make the logits of a single patient NaN, and 0 * NaN would spread that patient over the whole sum.
    coefficients = np.where(factors > 0, residuals, np.float32(0)) * factors
    total: NDArray[np.float32] = coefficients.astype(np.float32) @ data.rows
    return total


def unit_gradients(data: LogisticData, weights: NDArray[np.float32]) -> Iterator[NDArray[np.float64]]:
    """Each unit's whole, unclipped gradient (bias included) of the logistic loss, a block of units at a time.

    A block holds about 2^16 numbers (or one unit's images, where they are more), however large the cohort.

    Guarantee: a unit's gradient is a function of its own rows, bit for bit: no sum runs over rows of two units, and every
    dot product runs along its row in one order, wherever the row lies.

    Args:
      data: the site's prepared features.
      weights: float32, shape (dims + 1,).

    Yields:
      float64, shape (units of the block, dims + 1); the blocks together hold every unit once.
    """
    starts = np.searchsorted(data.units, np.arange(data.num_units + 1))
    rows_per_block = max(1, BLOCK_NUMBERS // data.rows.shape[1])
    wide_weights = weights.astype(np.float64)
    unit = 0
    while unit < data.num_units:
        first = starts[unit]
        after = max(unit + 1, int(np.searchsorted(starts, first + rows_per_block, side="right")) - 1)
        rows = data.rows[first : starts[after]].astype(np.float64)
        # Not BLAS: its kernels treat the last rows of a block differently, so that a row's result depends on its place.
        with np.errstate(invalid="ignore", over="ignore"):
            logits = np.einsum("ij,j->i", rows, wide_weights)
        residuals = _residuals(logits, data.labels[first : starts[after]])
        rows *= residuals[:, None]
        yield _sum_within(rows, starts[unit : after + 1] - first)
        unit = after


def _sum_within(rows: NDArray[np.float64], starts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Sums of consecutive rows, each in its order: rows starts[u] to starts[u + 1] for unit u."""
    counts = np.diff(starts)
    if (counts == 1).all():
        return rows
    sums = np.zeros((len(counts), rows.shape[1]))
    sums[counts > 0] = rows[starts[:-1][counts > 0]]
    for rank in range(1, int(counts.max())):
        has = np.flatnonzero(counts > rank)
        sums[has] += rows[starts[has] + rank]
    return sums


def _residuals(logits: NDArray[Any], labels: NDArray[np.float32]) -> NDArray[Any]:
    with np.errstate(invalid="ignore"):
        bounded = np.clip(logits, -LOGIT_BOUND, LOGIT_BOUND)
    residuals: NDArray[Any] = 1.0 / (1.0 + np.exp(-bounded)) - labels
    return residuals


def _squared_norms(data: LogisticData, residuals: NDArray[np.float32]) -> NDArray[np.float64]:
    """Squared gradient norm per unit, float64, shape (units,)."""
    wide = residuals.astype(np.float64)
    own = wide * wide * data.squares
    if data.num_units == len(own):
        return own
    first, second, product = data.pairs
    totals = np.bincount(data.units, own, data.num_units)
    totals += np.bincount(data.units[first], wide[first] * wide[second] * product, data.num_units)
    # Where a unit's images cancel, the true norm can drown in rounding: the bound on that error is added to the safe side.
    largest = np.bincount(data.units, np.abs(wide) * np.sqrt(data.squares), data.num_units)
    bounded: NDArray[np.float64] = np.maximum(totals, 0.0) + CANCELLATION * largest * largest
    return bounded


def _pairs_within(units: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Ordered pairs (i, j), i != j, of rows that belong to one unit; `units` ascends."""
    firsts, seconds = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for group in np.split(np.arange(len(units)), np.flatnonzero(np.diff(units)) + 1):
        if len(group) > 1:
            grid = np.meshgrid(group, group, indexing="ij")
            off = ~np.eye(len(group), dtype=bool)
            firsts.append(grid[0][off])
            seconds.append(grid[1][off])
    return np.concatenate(firsts), np.concatenate(seconds)


def private_mean(
    features: NDArray[np.float32],
    units: NDArray[np.int64],
    *,
    event: PrivacyEvent,
    public_images: int,
    noise: Draws,
) -> NDArray[np.float32]:
    """Mean of `features`, every unit's sum clipped once, Gaussian noise added to the total.

    Guarantee: one Gaussian mechanism with sensitivity `event.clipping_norm` and noise multiplier `event.noise_multiplier`.
    Neighbouring cohorts: one unit contributes nothing; the cohort's size is public.
    Edge cases: a unit with a value that is not finite counts as zero; an empty cohort still releases noise.

    Args:
      features: float32, shape (images, dims).
      units: int64, shape (images,), dense index of the protected unit.
      event: the one that the ledger has reserved for this release.
      public_images: denominator (images), declared public by the site: never `len(features)`.
      noise: draws for this noise alone; their kind decides between the grid and floating point.

    Returns:
      The noisy mean, float32, shape (dims,).

    Raises:
      InvalidSetting: If the event is not one full-batch step on a mean, or `public_images` < 1.

    Source: per-user clipping, arXiv:2407.07737 (ULS); Gaussian mechanism, arXiv:1905.02383, Thm 1.
    """
    _check_mean(event)
    _check_count(public_images)
    total = noise.release(_FeatureSum(features=features, units=units), event=event)
    return (total / public_images).astype(np.float32)


def mean_grid_sum(features: NDArray[np.float32], units: NDArray[np.int64], *, event: PrivacyEvent) -> NDArray[np.int64]:
    """Sum of every unit's clipped sum of features on the grid, without noise, int64, shape (dims,).

    Guarantee: one unit moves it by an integer vector of norm at most GRID_STEPS (see `grid_sum`).
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
    public_images: int,
    learning_rate: float,
    proximal: float,
    noise: Draws,
) -> NDArray[np.float32]:
    """Full-batch DP gradient descent on the logistic loss, `event.steps` steps from `weights`.

    Guarantee: `event.steps` adaptive Gaussian mechanisms, each with sensitivity `event.clipping_norm` and noise multiplier
    `event.noise_multiplier`; it rests on clipping each unit's whole gradient, never on the features' norm.
    Neighbouring cohorts: one unit contributes nothing; the cohort's size is public.
    Edge cases: an empty cohort still takes noisy steps.

    In floating point no gradient of a single unit is ever formed. On the grid each unit's is, in blocks of bounded size,
    because rounding acts on each contribution.

    Args:
      data: the site's prepared features.
      weights: float32, shape (dims + 1,); where the site starts.
      event: the one that the ledger has reserved for these steps.
      public_images: denominator (images), declared public by the site.
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
        public_images=public_images,
        learning_rate=learning_rate,
        proximal=proximal,
        noise=noise,
    )


def descend(
    sum_at: Callable[[NDArray[np.float32]], ClippedSum],
    weights: NDArray[np.float32],
    *,
    event: PrivacyEvent,
    public_images: int,
    learning_rate: float,
    proximal: float,
    noise: Draws,
) -> NDArray[np.float32]:
    """`private_descent` on any sum of clipped gradients.

    Guarantee: as `private_descent`, if one unit moves each sum by at most the clipping norm.

    Args:
      sum_at: the sum of the units' clipped gradients at given weights.
      weights, event, public_images, learning_rate, proximal, noise: as of `private_descent`.
    """
    _check_gradient(event)
    _check_count(public_images)
    current = weights.copy()
    for _ in range(event.steps):
        total = noise.release(sum_at(current), event=event).astype(np.float32)
        current = current - np.float32(learning_rate / public_images) * total
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


def _check_count(public_images: int) -> None:
    if public_images < 1:
        raise InvalidSetting(f"public_images={public_images} must be at least 1; check the site's policy")
