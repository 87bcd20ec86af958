"""Full-batch DP gradient descent on a gradient that another distribution brings, one protected unit at a time.

The extension computes a unit's gradient and nothing else. It is given one unit's rows, so that no contribution can depend on
another unit's data unless its code keeps state; clipping, grid, noise, denominator and step are ours, and so is the price.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from mammo_fed.errors import InvalidSetting
from mammo_fed.extensions.kinds import MECHANISMS
from mammo_fed.privacy.events import PrivacyEvent
from mammo_fed.privacy.mechanisms.full_batch import LogisticData
from mammo_fed.privacy.noise import clip_factors, grid_sum

__all__ = ["UnitGradient", "UnitSum", "unit_gradient"]

logger = logging.getLogger(__name__)

BLOCK_NUMBERS: Final = 1 << 16


class UnitGradient(Protocol):
    """What a mechanism from outside computes."""

    def __call__(
        self, rows: NDArray[np.float32], labels: NDArray[np.float32], weights: NDArray[np.float32]
    ) -> NDArray[np.floating[Any]]:
        """The gradient of one unit's loss: a function of these arguments alone.

        Args:
          rows: shape (images of the unit, dims + 1): features behind the feature mean, then the bias column.
          labels: shape (images of the unit,), 1 = malignant.
          weights: shape (dims + 1,): the linear head.

        Returns:
          Shape (dims + 1,); we clip it.
        """


@dataclass(frozen=True, kw_only=True, eq=False)
class UnitSum:
    """The sum of every unit's clipped gradient, for `mammo_fed.privacy.noise.Draws.release`.

    Guarantee: one unit moves the sum by at most the clipping norm (on the grid exactly), for any `gradient` that is
    a function of its arguments.
    Edge cases: a unit whose rows are all zero, whose gradient is not finite or of another shape, or at which `gradient` raises,
    contributes zero: a failure may be the patient's doing, and must not show.
    """

    gradient: UnitGradient
    data: LogisticData
    weights: NDArray[np.float32]

    def on_grid(self, *, clipping_norm: float) -> NDArray[np.int64]:
        """See mammo_fed.privacy.noise.ClippedSum."""
        total = np.zeros(len(self.weights), np.int64)
        for block in self._blocks():
            total += grid_sum(block, clipping_norm=clipping_norm)
        return total

    def in_floating_point(self, *, event: PrivacyEvent, noise: np.random.Generator) -> NDArray[np.floating[Any]]:
        """See mammo_fed.privacy.noise.ClippedSum."""
        total = self.clipped(clipping_norm=event.clipping_norm)
        noisy: NDArray[np.float64] = total + event.noise_multiplier * event.clipping_norm * noise.standard_normal(len(total))
        return noisy

    def clipped(self, *, clipping_norm: float) -> NDArray[np.float64]:
        """The sum in floating point, without noise, shape (dims + 1,)."""
        total = np.zeros(len(self.weights))
        for block in self._blocks():
            total += clip_factors(np.linalg.norm(block, axis=1), clipping_norm=clipping_norm) @ block
        return total

    def _blocks(self) -> Iterator[NDArray[np.float64]]:
        bounds = np.searchsorted(self.data.units, np.arange(self.data.num_units + 1))
        most = max(1, BLOCK_NUMBERS // max(1, len(self.weights)))
        for first in range(0, self.data.num_units, most):
            units = range(first, min(first + most, self.data.num_units))
            yield np.stack([self._of_unit(bounds[unit], bounds[unit + 1]) for unit in units])

    def _of_unit(self, start: int, end: int) -> NDArray[np.float64]:
        nothing = np.zeros(len(self.weights))
        rows = self.data.rows[start:end].copy()
        # Rows of zeros are images that are not there: that is the neighbouring cohort whose distance is priced.
        present = rows.any(axis=1)
        if not present.any():
            return nothing
        try:
            with np.errstate(all="ignore"):
                # A copy: a gradient may give the same array for every unit, with other numbers in it.
                found = np.array(
                    self.gradient(rows[present], self.data.labels[start:end][present].copy(), self.weights.copy()), np.float64
                )
        except Exception:
            logger.warning("a mechanism from outside failed at a unit, which contributes nothing", exc_info=True)
            return nothing
        return found if found.shape == nothing.shape and np.isfinite(found).all() else nothing


def unit_gradient(mechanism: str, *, dims: int) -> UnitGradient | None:
    """The gradient that the distribution behind a mechanism from outside brings, tried on a made-up unit; None for ours.

    Args:
      mechanism: its name.
      dims: number of features.

    Raises:
      InvalidSetting: If it is not installed, cannot be imported, or gives something else than a finite vector of `dims` + 1.
    """
    if mechanism in MECHANISMS.built_in:
        return None
    gradient: UnitGradient = MECHANISMS.load(mechanism)
    rows, weights = np.full((2, dims + 1), 0.1, np.float32), np.zeros(dims + 1, np.float32)
    try:
        found = np.asarray(gradient(rows, np.array([0, 1], np.float32), weights), np.float64)
    except Exception as error:
        raise InvalidSetting(
            f"privacy.mechanism={mechanism} fails at a made-up unit ({type(error).__name__}: {error})"
        ) from error
    if found.shape != (dims + 1,) or not np.isfinite(found).all():
        raise InvalidSetting(
            f"privacy.mechanism={mechanism} must give a finite array of shape ({dims + 1},), not {found.shape}"
        )
    return gradient
