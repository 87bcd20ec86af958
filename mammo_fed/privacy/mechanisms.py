"""Clipping per unit, the Gaussian release of a mean, and full-batch DP gradient descent in closed form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mammo_fed.errors import InvalidSetting
from mammo_fed.privacy.events import PrivacyEvent

__all__ = ["LogisticData", "clip_factors", "clipped_logistic_sum", "private_descent", "private_mean"]

NORM_FLOOR: Final = 1e-12
# Factors are shrunk by this much, so that rounding in float32 never lets a unit pass its clipping norm.
ROUNDING_MARGIN: Final = 1e-6
# A logit beyond this is saturated anyway; the bound keeps exp() from overflowing.
LOGIT_BOUND: Final = 60.0


def clip_factors(norms: NDArray[np.float64], *, clipping_norm: float) -> NDArray[np.float64]:
    """Factor in [0, 1] per unit that brings its norm to at most `clipping_norm`.

    Guarantee: factor * norm <= clipping_norm for every finite norm.
    Edge cases: a norm of zero keeps its (zero) contribution; a norm that is not finite gives the factor 0.
    """
    factors = np.minimum(1.0, clipping_norm * (1 - ROUNDING_MARGIN) / np.maximum(norms, NORM_FLOOR))
    return np.where(np.isfinite(norms), factors, 0.0)


def private_mean(
    features: NDArray[np.float32],
    units: NDArray[np.int64],
    *,
    charged: PrivacyEvent,
    public_count: int,
    noise: np.random.Generator,
) -> NDArray[np.float32]:
    """Mean of `features`, every unit's sum clipped once, Gaussian noise added to the total.

    Guarantee: one Gaussian mechanism with sensitivity `charged.clipping_norm` and noise multiplier `charged.noise_multiplier`.
    Neighbouring cohorts: the rows of one unit zeroed out; the cohort's size is public.
    Edge cases: a unit with a value that is not finite counts as zero; an empty cohort still releases noise.

    Args:
      features: float32, shape (images, dims).
      units: int64, shape (images,), dense index of the protected unit.
      charged: the event that the ledger has reserved for this release.
      public_count: denominator (images), declared public by the site: never `len(features)`.
      noise: generator for this noise alone.

    Returns:
      The noisy mean, float32, shape (dims,).

    Raises:
      InvalidSetting: If the event is not one full-batch step on a mean, or `public_count` < 1.

    Source: per-user clipping, arXiv:2407.07737 (ULS); Gaussian mechanism, arXiv:1905.02383, Thm 1.
    """
    if charged.mechanism != "mean" or charged.steps != 1 or not charged.full_batch:
        raise InvalidSetting(f"charged={charged} must be one full-batch step on a mean; reserve that event first")
    _check_count(public_count)
    sums = np.zeros((int(units.max()) + 1 if len(units) else 0, features.shape[1]))
    np.add.at(sums, units, features)
    # NaN and overflow are folded into zero per unit, not per image: a partial sum would still be that unit's data.
    sums[~np.isfinite(sums).all(axis=1)] = 0.0
    factors = clip_factors(np.linalg.norm(sums, axis=1), clipping_norm=charged.clipping_norm)
    total = factors @ sums
    total = total + charged.noise_multiplier * charged.clipping_norm * noise.standard_normal(features.shape[1])
    return (total / public_count).astype(np.float32)


@dataclass(frozen=True, kw_only=True, eq=False)
class LogisticData:
    """A site's features, ready for closed-form per-unit clipping.

    Attributes:
      rows: float32, shape (images, dims + 1): features, then the bias column.
      labels: float32, shape (images,), 0 or 1.
      units: int64, shape (images,), dense unit index.
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

        Edge cases: a unit with a feature that is not finite has all its rows (bias included) set to zero.
        """
        num_units = int(units.max()) + 1 if len(units) else 0
        bad = np.zeros(num_units, bool)
        np.logical_or.at(bad, units, ~np.isfinite(features).all(axis=1))
        rows = np.concatenate([features, np.full((len(features), 1), bias_scale, np.float32)], axis=1)
        rows = np.ascontiguousarray(np.where(bad[units][:, None] if len(units) else False, np.float32(0), rows), np.float32)
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

    Guarantee: zeroing out one unit moves the result by at most `clipping_norm` in L2.
    Neighbouring cohorts: the rows of one unit zeroed out.
    Edge cases: an empty cohort gives zeros; weights that are not finite give zeros.

    Args:
      data: the site's prepared features.
      weights: float32, shape (dims + 1,): weights, then bias.
      clipping_norm: largest contribution of one unit, > 0.

    Returns:
      float32, shape (dims + 1,).
    """
    residuals = _residuals(data.rows @ weights, data.labels)
    norms = np.sqrt(_squared_norms(data, residuals))
    factors = clip_factors(norms, clipping_norm=clipping_norm)
    return (factors[data.units] * residuals).astype(np.float32) @ data.rows


def private_descent(
    data: LogisticData,
    weights: NDArray[np.float32],
    *,
    charged: PrivacyEvent,
    public_count: int,
    learning_rate: float,
    proximal: float,
    noise: np.random.Generator,
) -> NDArray[np.float32]:
    """Full-batch DP gradient descent on the logistic loss, `charged.steps` steps from `weights`.

    Guarantee: `charged.steps` adaptive Gaussian mechanisms, each with sensitivity `charged.clipping_norm` and noise multiplier
    `charged.noise_multiplier`; it rests on clipping each unit's whole gradient, never on the features' norm.
    Neighbouring cohorts: the rows of one unit zeroed out; the cohort's size is public.
    Edge cases: an empty cohort still takes noisy steps.

    Args:
      data: the site's prepared features.
      weights: float32, shape (dims + 1,); where the site starts.
      charged: the event that the ledger has reserved for these steps.
      public_count: denominator (images), declared public by the site.
      learning_rate: step size on the mean gradient, > 0.
      proximal: FedProx's mu, >= 0: pulls towards `weights`; it uses no patient's data.
      noise: generator for this noise alone.

    Returns:
      The new weights, float32, shape (dims + 1,).

    Source: DP gradient descent, arXiv:1607.00133 with sampling rate 1; FedProx, arXiv:1812.06127.
    """
    if charged.mechanism != "gradient" or not charged.full_batch:
        raise InvalidSetting(f"charged={charged} must be full-batch gradient steps; reserve that event first")
    _check_count(public_count)
    scale = charged.noise_multiplier * charged.clipping_norm
    current = weights.copy()
    for _ in range(charged.steps):
        total = clipped_logistic_sum(data, current, clipping_norm=charged.clipping_norm)
        if scale > 0:
            total = total + (scale * noise.standard_normal(len(total))).astype(np.float32)
        current = current - np.float32(learning_rate / public_count) * total
        if proximal > 0:
            current = current - np.float32(learning_rate * proximal) * (current - weights)
    return current


def _check_count(public_count: int) -> None:
    if public_count < 1:
        raise InvalidSetting(f"public_count={public_count} must be at least 1; check the site's policy")


def _residuals(logits: NDArray[np.float32], labels: NDArray[np.float32]) -> NDArray[np.float32]:
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
    # Rounding can leave a tiny negative number where a unit's images cancel; its gradient is then far below the clip.
    return np.maximum(totals, 0.0, out=totals)


def _pairs_within(units: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Ordered pairs (i, j), i != j, of rows that belong to one unit."""
    order = np.argsort(units, kind="stable")
    bounds = np.flatnonzero(np.diff(units[order])) + 1
    firsts, seconds = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for group in np.split(order, bounds):
        if len(group) > 1:
            grid = np.meshgrid(group, group, indexing="ij")
            off = ~np.eye(len(group), dtype=bool)
            firsts.append(grid[0][off])
            seconds.append(grid[1][off])
    return np.concatenate(firsts), np.concatenate(seconds)
