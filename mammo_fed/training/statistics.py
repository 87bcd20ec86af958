"""Statistics of scored sets by patient: sampling error and the spread of seeds apart, rows compared in pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from mammo_fed.data.cohort import BENIGN, MALIGNANT
from mammo_fed.errors import DataError, InvalidSetting
from mammo_fed.privacy.patient_identity import count_patients
from mammo_fed.training.evaluation import INTERVAL_PERCENT
from mammo_fed.training.scored import METRICS, PAIRED_METRICS, Scores, metric_values, replicates

__all__ = [
    "METRICS",
    "PAIRED_METRICS",
    "Difference",
    "Interval",
    "Scores",
    "Subgroup",
    "Summary",
    "paired_difference",
    "subgroups",
    "summarise",
    "summarise_folds",
]

SMALLEST_CLASS: Final = 10


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A value and its 95 % interval; `low` and `high` are of the patients' sampling alone."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What one row is worth on one set: each metric is the mean over the seeds.

    Attributes:
      n_patients: number of distinct patients.
      n_images: number of scored images.
      n_seeds: number of seeds.
      auroc: probability that a malignant image scores above a benign one, ties counted half.
      auprc_benign: average precision with benign as the positive class.
      auprc_malignant: average precision with malignant as the positive class.
      sensitivity_at_90_specificity: largest share of malignant images found with at most 10 % of the benign ones.
      brier: mean squared distance of the score to the label; lower is better.
      calibration_error: expected calibration error in ten groups of equal size; lower is better, never quite 0.
      calibration_slope: of the logistic recalibration, 1 is perfect; None where a seed's scores part the classes.
      calibration_intercept: of the same regression, 0 is perfect; None as the slope.
      seed_std: standard deviation over the seeds (n - 1) by metric, apart from the intervals; None for one seed.
    """

    n_patients: int
    n_images: int
    n_seeds: int
    auroc: Interval
    auprc_benign: Interval
    auprc_malignant: Interval
    sensitivity_at_90_specificity: Interval
    brier: Interval
    calibration_error: Interval
    calibration_slope: Interval | None
    calibration_intercept: Interval | None
    seed_std: Mapping[str, float] | None

    def metric(self, name: str) -> Interval | None:
        """The metric of METRICS that is called `name`; None where it is not defined."""
        found: Interval | None = getattr(self, name)
        return found


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Metric of one row less that of another on the same images, with the 95 % interval of the paired bootstrap.

    Attributes:
      metric: which, of PAIRED_METRICS.
      value: the difference of the means over seeds.
      low: 2.5th percentile of the replicates' differences.
      high: 97.5th percentile.
      p_value: two-sided bootstrap p-value, in (0, 1]; see `paired_difference`.
    """

    metric: str
    value: float
    low: float
    high: float
    p_value: float


@dataclass(frozen=True, kw_only=True)
class Subgroup:
    """The images of one value of a stratum.

    Attributes:
      stratum: such as "view".
      value: such as "MLO"; "" where unknown.
      n_images: number of images.
      benign_patients: patients with a benign image among them.
      malignant_patients: patients with a malignant image among them.
      summary: None where either of these is below 10: too small for metrics.
    """

    stratum: str
    value: str
    n_images: int
    benign_patients: int
    malignant_patients: int
    summary: Summary | None


def summarise(scores: Scores, *, bootstrap: int = 1000, seed: int) -> Summary:
    """Every metric of a scored set, the mean over its seeds, with a 95 % interval that respects patients.

    The bootstrap draws whole patients, the same draw for all seeds, and averages a replicate over the seeds: its interval
    says how the value would move with other patients and the same trained models. How it moves with other seeds is
    `seed_std`. Not differentially private: the result depends on every image of the set.

    Replicates without a finite recalibration are left out of the intervals of slope and intercept. The calibration error's
    interval is moved by its replicates' mean excess over the value: resampling makes every group noisier and the error larger.

    Args:
      scores: what to summarise.
      bootstrap: number of replicates, >= 1, the same for every metric.
      seed: of the bootstrap; the same seed and the same patients give the same draws.

    Raises:
      InvalidSetting: If `bootstrap` is below 1.
    """
    points = metric_values(scores, np.ones((1, len(scores.labels))), METRICS)[:, :, 0]
    drawn = replicates(scores, METRICS, bootstrap=bootstrap, seed=seed)
    return _summary(points, drawn, n_patients=count_patients(scores.patients), n_images=len(scores.labels))


def _summary(points: NDArray[np.float64], drawn: NDArray[np.float64], *, n_patients: int, n_images: int) -> Summary:
    """From values (metrics, seeds) and replicates (metrics, replicates)."""
    means = points.mean(axis=1)
    error = METRICS.index("calibration_error")
    drawn[error] = np.maximum(drawn[error] - drawn[error].mean() + means[error], 0.0)
    found = {name: _interval(*pair) for name, *pair in zip(METRICS, means, drawn, strict=True)}
    spread = points.std(axis=1, ddof=1) if points.shape[1] > 1 else None
    return Summary(
        n_patients=n_patients,
        n_images=n_images,
        n_seeds=points.shape[1],
        seed_std=None
        if spread is None
        else {name: float(std) for name, std in zip(METRICS, spread, strict=True) if np.isfinite(std)},
        **found,  # type: ignore[arg-type]
    )


def summarise_folds(folds: Sequence[Scores], *, bootstrap: int = 1000, seed: int) -> Summary:
    """Cross-validation: every metric is the mean over the folds of its value within the fold, then over seeds.

    Scores of different folds come from different models, so they are never ranked together. The bootstrap draws the patients
    of each fold alone; a replicate is the mean over the folds.

    Args:
      folds: the held-out part of each fold, every one with the same seeds in the same order.
      bootstrap: number of replicates, >= 1.
      seed: of the bootstrap.

    Raises:
      DataError: If there is no fold, or their numbers of seeds differ.
    """
    if not folds or len({len(fold.scores) for fold in folds}) != 1:
        raise DataError("cross-validation needs folds that were all run with the same seeds")
    points = np.mean([metric_values(fold, np.ones((1, len(fold.labels))), METRICS)[:, :, 0] for fold in folds], axis=0)
    drawn = np.mean(
        [replicates(fold, METRICS, bootstrap=bootstrap, seed=seed + number) for number, fold in enumerate(folds)], axis=0
    )
    return _summary(
        points,
        drawn,
        n_patients=sum(count_patients(fold.patients) for fold in folds),
        n_images=sum(len(fold.labels) for fold in folds),
    )


def paired_difference(a: Scores, b: Scores, *, metric: str = "auroc", bootstrap: int = 1000, seed: int) -> Difference:
    """`metric` of `a` less that of `b`: each replicate draws patients once and scores both on them.

    The p-value is 2 * min(1 + replicates at or below 0, 1 + replicates at or above 0) / (1 + replicates), at most 1: twice
    the smaller tail that the replicates' differences have beyond 0, so that it is below 0.05 where the percentile interval
    leaves 0 out. It cannot be below 2 / (1 + replicates). Not corrected for the number of comparisons.

    Args:
      a: scored by one row.
      b: the same images in the same order, scored by another; it may have another number of seeds.
      metric: one of PAIRED_METRICS.
      bootstrap: number of replicates, >= 1.
      seed: of the bootstrap.

    Raises:
      DataError: If the two do not score the same images in the same order.
      InvalidSetting: If `metric` is not one of PAIRED_METRICS or `bootstrap` is below 1.

    Source: Efron and Tibshirani, "An Introduction to the Bootstrap" (1993), section 15.4; the added one of Davison and
      Hinkley, "Bootstrap Methods and their Application" (1997), section 4.2.
    """
    if metric not in PAIRED_METRICS:
        raise InvalidSetting(f"metric={metric!r} must be one of {', '.join(PAIRED_METRICS)}; compare rows by one of these")
    both_named = len(a.images) and len(b.images)
    if not (
        np.array_equal(a.labels, b.labels)
        and np.array_equal(a.patients, b.patients)
        and (not both_named or np.array_equal(a.images, b.images))
    ):
        raise DataError("the two rows must score the same images in the same order; compare them on one evaluation set")
    once = np.ones((1, len(a.labels)))
    value = float((metric_values(a, once, (metric,)).mean(axis=1) - metric_values(b, once, (metric,)).mean(axis=1))[0, 0])
    drawn = [replicates(one, (metric,), bootstrap=bootstrap, seed=seed)[0] for one in (a, b)]
    gaps = drawn[0] - drawn[1]
    tail = 1 + min(int((gaps <= 0).sum()), int((gaps >= 0).sum()))
    low, high = np.percentile(gaps, INTERVAL_PERCENT)
    return Difference(
        metric=metric, value=value, low=float(low), high=float(high), p_value=min(1.0, 2.0 * tail / (1 + len(gaps)))
    )


def subgroups(scores: Scores, *, bootstrap: int = 1000, seed: int) -> tuple[Subgroup, ...]:
    """A summary for each value of each stratum, in the order of the strata and of their values.

    A value is summarised where at least 10 of its patients have a benign image in it and at least 10 a malignant one (a
    patient with both counts for both); the others are listed with their counts and no summary.

    Raises:
      InvalidSetting: If `bootstrap` is below 1.
    """
    found = []
    for stratum, values in scores.strata.items():
        for value in np.unique(values):
            inside = values == value
            benign, malignant = (
                count_patients(scores.patients[inside & (scores.labels == label)]) for label in (BENIGN, MALIGNANT)
            )
            summary = None
            if min(benign, malignant) >= SMALLEST_CLASS:
                part = Scores(labels=scores.labels[inside], patients=scores.patients[inside], scores=scores.scores[:, inside])
                summary = summarise(part, bootstrap=bootstrap, seed=seed)
            found.append(
                Subgroup(
                    stratum=stratum,
                    value=str(value),
                    n_images=int(inside.sum()),
                    benign_patients=benign,
                    malignant_patients=malignant,
                    summary=summary,
                )
            )
    return tuple(found)


def _interval(value: float, drawn: NDArray[np.float64]) -> Interval | None:
    """The value with the percentiles of its replicates; None where it, or every replicate, is not a number."""
    usable = drawn[np.isfinite(drawn)]
    if not np.isfinite(value) or not len(usable):
        return None
    low, high = np.percentile(usable, INTERVAL_PERCENT)
    return Interval(value=float(value), low=float(low), high=float(high))
