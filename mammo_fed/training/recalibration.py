"""How far probabilities are from what happens: expected calibration error and logistic recalibration, for many replicates."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit

from mammo_fed.data.cohort import MALIGNANT

__all__ = ["calibration_error", "recalibration"]

BINS: Final = 10
# A score of exactly 0 or 1 has no logit; this close to the ends it has one of 13.8.
SCORE_FLOOR: Final = 1e-6
NEWTON_STEPS: Final = 50
# The steps shrink quadratically: after one of 1e-6 the fit is right to rounding.
TOLERANCE: Final = 1e-6


def calibration_error(scores: NDArray[np.float64], labels: NDArray[Any], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Expected calibration error: mean distance of the share of malignant images to the mean score, over ten groups.

    The groups hold equally many images of the whole set, equal scores stay together, and every replicate keeps them. Also for
    a perfectly calibrated model the value is above 0, because each group has few images.

    Args:
      scores: float64, shape (images,), in [0, 1].
      labels: int, shape (images,), 0 and 1.
      weights: float64, shape (replicates, images): how often a replicate holds each image.

    Returns:
      float64, shape (replicates,), in [0, 1].

    Source: Naeini, Cooper and Hauskrecht, "Obtaining well calibrated probabilities using Bayesian binning", AAAI 2015.
    """
    edges = np.quantile(scores, np.linspace(0.0, 1.0, BINS + 1)[1:-1])
    group = np.searchsorted(edges, scores)[:, None] == np.arange(BINS)
    excess = (scores - (labels == MALIGNANT))[:, None] * group
    error: NDArray[np.float64] = np.abs(weights @ excess).sum(axis=1) / weights.sum(axis=1)
    return error


def recalibration(
    scores: NDArray[np.float64], labels: NDArray[Any], weights: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Slope and intercept of the logistic regression of the label on the logit of the score, without a penalty.

    Slope 1 and intercept 0 are perfect; a slope below 1 is overconfidence, an intercept above 0 too few malignant foretold.

    Edge cases: where some threshold parts the classes (or all scores are equal) no finite fit exists: both are NaN.

    Args:
      scores: float64, shape (images,), in [0, 1]; moved into [1e-6, 1 - 1e-6] for the logit.
      labels: int, shape (images,), 0 and 1.
      weights: float64, shape (replicates, images): how often a replicate holds each image; both classes in every row.

    Returns:
      (slope, intercept): float64, shape (replicates,) each; NaN where there is no finite fit.

    Source: Cox, "Two further applications of a model for binary regression", Biometrika 45 (1958).
    """
    logits = logit(np.clip(scores, SCORE_FLOOR, 1.0 - SCORE_FLOOR))
    malignant = labels == MALIGNANT
    slope, intercept = np.full((2, len(weights)), np.nan)
    rows = np.flatnonzero(_overlap(logits, malignant, weights))
    if len(rows):
        feature_mean, scale = logits.mean(), logits.std()
        found = _newton((logits - feature_mean) / scale, malignant.astype(np.float64), weights[rows])
        slope[rows] = found[:, 1] / scale
        intercept[rows] = found[:, 0] - found[:, 1] * feature_mean / scale
    return slope, intercept


def _overlap(logits: NDArray[np.float64], malignant: NDArray[np.bool_], weights: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Whether no threshold parts the classes, by replicate: the condition for a finite maximum of the likelihood."""
    held = weights > 0
    lowest = [np.where(held[:, own], logits[own], np.inf).min(axis=1, initial=np.inf) for own in (malignant, ~malignant)]
    highest = [np.where(held[:, own], logits[own], -np.inf).max(axis=1, initial=-np.inf) for own in (malignant, ~malignant)]
    parted: NDArray[np.bool_] = (highest[1] <= lowest[0]) | (highest[0] <= lowest[1])
    return ~parted


def _newton(x: NDArray[np.float64], y: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Intercept and slope, shape (replicates, 2), by Newton's method from 0; NaN where it does not come to rest."""
    powers = np.stack([np.ones_like(x), x, x * x], axis=1)
    fit = np.zeros((len(weights), 2))
    moving = np.arange(len(weights))
    for _ in range(NEWTON_STEPS):
        held = weights[moving]
        share = expit(fit[moving, :1] + fit[moving, 1:] * x)
        gradient = (held * (y - share)) @ powers[:, :2]
        zeroth, first, second = (held * share * (1.0 - share) @ powers).T
        # Rounding can leave nothing of a determinant that is above 0; such a row runs away and ends as NaN.
        determinant = np.maximum(zeroth * second - first * first, np.finfo(np.float64).tiny)
        step = np.stack([second * gradient[:, 0] - first * gradient[:, 1], zeroth * gradient[:, 1] - first * gradient[:, 0]])
        # Far from the maximum a whole step can overshoot for ever; none moves a coefficient by more than 4.
        step = (step / determinant).T
        step *= np.minimum(1.0, 4.0 / np.maximum(np.abs(step).max(axis=1, keepdims=True), TOLERANCE))
        fit[moving] += step
        moving = moving[np.abs(step).max(axis=1) > TOLERANCE]
        if not len(moving):
            break
    fit[moving] = np.nan
    return fit
