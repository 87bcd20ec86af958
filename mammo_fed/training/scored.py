"""A scored evaluation set and its metrics, for the set itself and for bootstrap replicates of its patients."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mammo_fed.data.cohort import MALIGNANT
from mammo_fed.errors import DataError
from mammo_fed.training.evaluation import (
    auroc_of_counts,
    average_precision_of_counts,
    check_scored,
    counts_by_score,
    patient_weights,
    sensitivity_of_counts,
)
from mammo_fed.training.recalibration import calibration_error, recalibration

__all__ = ["METRICS", "PAIRED_METRICS", "Scores", "metric_values", "replicates"]

# Of two values of these, one is better; calibration has a best value in the middle, and its error is biased by the set's size.
PAIRED_METRICS: Final = ("auroc", "auprc_benign", "auprc_malignant", "sensitivity_at_90_specificity", "brier")
METRICS: Final = (*PAIRED_METRICS, "calibration_error", "calibration_slope", "calibration_intercept")


@dataclass(frozen=True, kw_only=True, eq=False)
class Scores:
    """One evaluation set as scored by one row of a table, with each of its seeds.

    Attributes:
      labels: int64, shape (images,): MALIGNANT = 1 or BENIGN = 0, both present.
      patients: str or int, shape (images,); equal values belong to one patient.
      scores: float64, shape (seeds, images), in [0, 1]: probability of malignant.
      strata: by name of a stratum ("view", "density") its value for each image, str, shape (images,); "" where unknown.
      images: identifier of each image, str or int, shape (images,); empty where there is none. Two sets that both have
        identifiers are compared by them too.

    Raises:
      DataError: If a shape, a label or a score breaks its rule, or a class is missing.
    """

    labels: NDArray[np.int64]
    patients: NDArray[Any]
    scores: NDArray[np.float64]
    strata: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    images: NDArray[Any] = field(default_factory=lambda: np.empty(0, dtype=np.str_))

    def __post_init__(self) -> None:
        if self.scores.ndim != 2 or not len(self.scores):
            raise DataError(f"scores {self.scores.shape} must have one row per seed and one column per image")
        for scores in self.scores:
            check_scored(scores, self.labels, self.patients)
        columns = {f"stratum {name}": values for name, values in self.strata.items()}
        for name, values in {**columns, **({"images": self.images} if len(self.images) else {})}.items():
            if values.shape != self.labels.shape:
                raise DataError(f"{name} {values.shape} must have one value per image {self.labels.shape}")


def metric_values(scores: Scores, weights: NDArray[np.float64], metrics: Sequence[str]) -> NDArray[np.float64]:
    """Metrics of a set that holds each image `weights` times.

    Args:
      scores: the set.
      weights: float64 whole numbers, shape (replicates, images); both classes in every row.
      metrics: names from METRICS.

    Returns:
      float64, shape (metrics, seeds, replicates); NaN where a recalibration has no finite fit.
    """
    rows = [_of_seed(one, scores.labels, weights, metrics) for one in scores.scores]
    return np.stack([[row[name] for row in rows] for name in metrics])


def replicates(scores: Scores, metrics: Sequence[str], *, bootstrap: int, seed: int) -> NDArray[np.float64]:
    """Mean over the seeds of each metric in each bootstrap replicate of the patients, shape (metrics, replicates).

    Sets with the same labels and patients get the same draws from the same seed.

    Raises:
      InvalidSetting: If `bootstrap` is below 1.
    """
    chunks = patient_weights(scores.labels, scores.patients, bootstrap=bootstrap, seed=seed)
    return np.concatenate([metric_values(scores, weights, metrics).mean(axis=1) for weights in chunks], axis=1)


def _of_seed(
    scores: NDArray[np.float64], labels: NDArray[np.int64], weights: NDArray[np.float64], metrics: Sequence[str]
) -> dict[str, NDArray[np.float64]]:
    """Metrics of one seed by name, shape (replicates,) each."""
    found: dict[str, NDArray[np.float64]] = {}
    if set(metrics) - {"brier", "calibration_error", "calibration_slope", "calibration_intercept"}:
        positives, negatives = counts_by_score(scores, labels, weights)
        ranked: dict[str, Callable[[], NDArray[np.float64]]] = {
            "auroc": lambda: auroc_of_counts(positives, negatives),
            "auprc_benign": lambda: average_precision_of_counts(negatives[:, ::-1], positives[:, ::-1]),
            "auprc_malignant": lambda: average_precision_of_counts(positives, negatives),
            "sensitivity_at_90_specificity": lambda: sensitivity_of_counts(positives, negatives),
        }
        found |= {name: metric() for name, metric in ranked.items() if name in metrics}
    if "brier" in metrics:
        found["brier"] = weights @ (scores - (labels == MALIGNANT)) ** 2 / weights.sum(axis=1)
    if "calibration_error" in metrics:
        found["calibration_error"] = calibration_error(scores, labels, weights)
    if {"calibration_slope", "calibration_intercept"} & set(metrics):
        found["calibration_slope"], found["calibration_intercept"] = recalibration(scores, labels, weights)
    return found
