"""From counted errors of a distinguisher to bounds on privacy: Clopper-Pearson, then an epsilon or a mu."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri
from scipy.stats import beta

from mammo_fed.errors import InvalidSetting

__all__ = [
    "Errors",
    "assumption_free_epsilon",
    "balance",
    "choose_threshold",
    "clopper_pearson",
    "clopper_pearson_upper",
    "count_errors",
    "mu_lower",
]

Floats = NDArray[np.float64]

# Thresholds that are tried. An odd number: the median separates two sides that do not overlap.
CANDIDATES: Final = 401


@dataclass(frozen=True, kw_only=True)
class Errors:
    """Errors of one threshold on runs that had no part in choosing it.

    Attributes:
      false_positives: runs without the canary that were called runs with it.
      false_negatives: runs with the canary that were called runs without it.
      trials: runs on each side.
    """

    false_positives: int
    false_negatives: int
    trials: int

    def upper(self, *, confidence: float) -> tuple[float, float]:
        """Upper bounds on (false positive rate, false negative rate), each one holding with `confidence`."""
        counts = np.array([self.false_positives, self.false_negatives])
        fpr, fnr = clopper_pearson_upper(counts, self.trials, confidence=confidence)
        return float(fpr), float(fnr)


def clopper_pearson_upper(errors: NDArray[Any], trials: int, *, confidence: float) -> Floats:
    """One-sided upper bounds on the probabilities behind counts of errors in `trials` independent runs.

    Guarantee: each bound is at least the true probability with probability `confidence` or more, for every true value.

    Args:
      errors: int, any shape, each in [0, trials].
      trials: at least 1.
      confidence: in (0, 1).

    Returns:
      float64 in (0, 1], same shape.

    Raises:
      InvalidSetting: If `trials` or `confidence` is out of its range.

    Source: Clopper and Pearson, Biometrika 26 (1934).
    """
    if trials < 1:
        raise InvalidSetting(f"trials={trials} must be at least 1; check --trials")
    if not 0 < confidence < 1:
        raise InvalidSetting(f"confidence={confidence} must be in (0, 1)")
    upper: Floats = np.where(errors >= trials, 1.0, beta.ppf(confidence, errors + 1, np.maximum(trials - errors, 1)))
    return upper


def clopper_pearson(successes: int, trials: int, *, confidence: float) -> tuple[float, float]:
    """Two-sided interval on a probability: each end misses with probability at most (1 - confidence) / 2."""
    one_sided = (1 + confidence) / 2
    ends = clopper_pearson_upper(np.array([trials - successes, successes]), trials, confidence=one_sided)
    return 1 - float(ends[0]), float(ends[1])


def mu_lower(fpr: Floats, fnr: Floats) -> Floats:
    """Largest mu for which mu-GDP would forbid error rates this small (0 if none): -Phi^-1(fpr) - Phi^-1(fnr).

    Guarantee: if `fpr` and `fnr` bound the error rates of ANY distinguisher from above, the mechanism is not mu'-GDP for any
    mu' below the result.

    Source: arXiv:1905.02383, Def 2.6.
    """
    mu: Floats = np.maximum(0.0, -ndtri(fpr) - ndtri(fnr))
    return mu


def assumption_free_epsilon(fpr: Floats, fnr: Floats, *, delta: float) -> Floats:
    """Largest epsilon for which (epsilon, delta)-DP would forbid error rates this small (0 if none).

    Guarantee: as `mu_lower`, and it assumes nothing about the shape of the mechanism's trade-off curve.

    Source: arXiv:1311.0776 (hypothesis-testing form of differential privacy), Thm 2.1.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        first = np.log(np.maximum(1 - delta - fpr, 0.0) / fnr)
        second = np.log(np.maximum(1 - delta - fnr, 0.0) / fpr)
    epsilon: Floats = np.maximum(0.0, np.maximum(first, second))
    return epsilon


def balance(fpr: Floats, fnr: Floats) -> Floats:
    """Worth of error rates by the larger of the two: where they are equal, errors say most about a Gaussian's mu.

    The choice is steady, where a search for the largest bound itself is led astray by chance at extreme thresholds.
    """
    worth: Floats = -np.maximum(fpr, fnr)
    return worth


def choose_threshold(
    absent: Floats, present: Floats, *, strength: Callable[[Floats, Floats], Floats], confidence: float
) -> float:
    """The threshold whose error bounds on these (held-out) runs are worth most.

    Args:
      absent: evidence of runs without the canary, shape (runs,).
      present: evidence of runs with it, same shape; larger means present.
      strength: worth of (false positive rate, false negative rate), both of shape (candidates,).
      confidence: of each one-sided bound.

    Returns:
      One of the quantiles of all runs together; runs at or above it are called runs with the canary.
    """
    pooled = np.concatenate([absent, present])
    finite = pooled[np.isfinite(pooled)]
    inner = np.quantile(finite, np.linspace(0, 1, CANDIDATES)) if len(finite) else np.zeros(1)
    # One more above them all: everything that is left there is infinite.
    candidates = np.append(inner, np.nextafter(inner[-1], np.inf))
    false_positives = len(absent) - np.searchsorted(np.sort(absent), candidates, side="left")
    false_negatives = np.searchsorted(np.sort(present), candidates, side="left")
    fpr = clopper_pearson_upper(false_positives, len(absent), confidence=confidence)
    fnr = clopper_pearson_upper(false_negatives, len(present), confidence=confidence)
    return float(candidates[int(np.argmax(strength(fpr, fnr)))])


def count_errors(absent: Floats, present: Floats, *, threshold: float) -> Errors:
    """Errors of `threshold` on test runs, as many without the canary as with it."""
    if len(absent) != len(present):
        raise InvalidSetting(f"test runs without the canary ({len(absent)}) must be as many as with it ({len(present)})")
    return Errors(
        false_positives=int((absent >= threshold).sum()), false_negatives=int((present < threshold).sum()), trials=len(absent)
    )
