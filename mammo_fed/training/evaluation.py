"""Metrics of a scored evaluation set, with a confidence interval that respects patients."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mammo_fed.data.cohort import BENIGN, MALIGNANT
from mammo_fed.errors import DataError, InvalidSetting
from mammo_fed.privacy.patient_identity import count_patients, patient_index

__all__ = [
    "Metrics",
    "auroc",
    "auroc_interval",
    "auroc_of_counts",
    "average_precision_of_counts",
    "check_scored",
    "counts_by_score",
    "evaluate_scores",
    "patient_weights",
    "sensitivity_of_counts",
]

FALSE_POSITIVE_SHARE: Final = 0.1
INTERVAL_PERCENT: Final = (2.5, 97.5)
# Bootstrap weights are held for one chunk of replicates at a time: 32 MiB of float64, however large the evaluation set.
CHUNK_ELEMENTS: Final = 4 * 1024 * 1024


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """What a set of scores is worth; every value is in [0, 1] but the counts.

    Attributes:
      n_patients: number of distinct patients.
      n_images: number of scored images.
      auroc: probability that a malignant image scores above a benign one, ties counted half.
      auroc_ci: 95 % confidence interval of `auroc`, (low, high), patients resampled.
      auprc_benign: average precision with benign as the positive class, ranked by 1 - score.
      auprc_malignant: average precision with malignant as the positive class, ranked by score.
      brier: mean squared distance of the score to the label; lower is better.
      sensitivity_at_90_specificity: largest share of malignant images found by a threshold that calls at most 10 % of the
        benign images malignant.
    """

    n_patients: int
    n_images: int
    auroc: float
    auroc_ci: tuple[float, float]
    auprc_benign: float
    auprc_malignant: float
    brier: float
    sensitivity_at_90_specificity: float


def evaluate_scores(scores: ArrayLike, labels: ArrayLike, patients: ArrayLike, *, bootstrap: int = 1000, seed: int) -> Metrics:
    """Metrics of one evaluation set.

    Not differentially private: the result depends on every image of the set.

    Args:
      scores: float, shape (images,), in [0, 1]: the model's probability of malignant.
      labels: int, shape (images,): MALIGNANT = 1 or BENIGN = 0, both present.
      patients: shape (images,); equal values belong to one patient.
      bootstrap: number of bootstrap replicates behind the interval, >= 1.
      seed: of the bootstrap; the same seed and the same arrays give the same interval.

    Raises:
      DataError: If lengths differ, a score is not a number in [0, 1], a label is unknown, or a class is missing.
      InvalidSetting: If `bootstrap` is below 1.
    """
    # Slow to import, and not needed before a run's last round.
    from sklearn.metrics import average_precision_score, brier_score_loss

    score = np.asarray(scores, dtype=np.float64)
    label = np.asarray(labels)
    patient = np.asarray(patients)
    check_scored(score, label, patient)
    low_high = auroc_interval(score, label, patient, bootstrap=bootstrap, seed=seed)
    positives, negatives = counts_by_score(score, label, np.ones((1, len(score))))
    return Metrics(
        n_patients=count_patients(patient),
        n_images=len(score),
        auroc=float(auroc_of_counts(positives, negatives)[0]),
        auroc_ci=low_high,
        auprc_benign=float(average_precision_score(label == BENIGN, 1.0 - score)),
        auprc_malignant=float(average_precision_score(label == MALIGNANT, score)),
        brier=float(brier_score_loss(label == MALIGNANT, score)),
        sensitivity_at_90_specificity=float(sensitivity_of_counts(positives, negatives)[0]),
    )


def auroc(scores: NDArray[np.float64], labels: NDArray[Any]) -> float:
    """Probability that a malignant image scores above a benign one, ties counted half; both classes must be there."""
    positives, negatives = counts_by_score(scores, labels, np.ones((1, len(scores))))
    return float(auroc_of_counts(positives, negatives)[0])


def auroc_interval(
    scores: NDArray[np.float64], labels: NDArray[Any], patients: NDArray[Any], *, bootstrap: int, seed: int
) -> tuple[float, float]:
    """95 % percentile interval of the AUROC under the cluster bootstrap: whole patients are drawn with replacement.

    Args:
      scores: float64, shape (images,), finite.
      labels: int, shape (images,), 0 and 1, both present.
      patients: shape (images,); equal values belong to one patient.
      bootstrap: number of replicates, >= 1.
      seed: of the draws.

    Returns:
      (low, high): the 2.5th and the 97.5th percentile over the replicates.

    Raises:
      InvalidSetting: If `bootstrap` is below 1.

    Source: the replicates of `patient_weights`.
    """
    found = [
        auroc_of_counts(*counts_by_score(scores, labels, weights))
        for weights in patient_weights(labels, patients, bootstrap=bootstrap, seed=seed)
    ]
    low, high = np.percentile(np.concatenate(found), INTERVAL_PERCENT)
    return float(low), float(high)


def patient_weights(
    labels: NDArray[Any], patients: NDArray[Any], *, bootstrap: int, seed: int
) -> Iterator[NDArray[np.float64]]:
    """Bootstrap replicates of an evaluation set: how often each holds each image when whole patients are drawn.

    A replicate that lacks a class has no AUROC and is drawn again, so what is made of them is conditional on both classes
    being there. That ends: each class has a patient, so a replicate misses a given class with probability at most 1/e.

    Args:
      labels: int, shape (images,), 0 and 1, both present.
      patients: shape (images,); equal values belong to one patient.
      bootstrap: number of replicates, >= 1.
      seed: of the draws; the same seed, labels and patients give the same replicates.

    Yields:
      float64, shape (replicates, images), chunks that hold `bootstrap` rows together; a chunk may be empty.

    Raises:
      InvalidSetting: If `bootstrap` is below 1.

    Source: Field and Welsh, "Bootstrapping clustered data", JRSS B 69 (2007), section 2 (randomised cluster bootstrap).
    """
    if bootstrap < 1:
        raise InvalidSetting(f"bootstrap={bootstrap} must be at least 1; 1000 gives a stable 95 % interval")
    draws = np.random.default_rng(seed)
    index = patient_index(patients)
    count = int(index.max()) + 1
    malignant = (labels == MALIGNANT).astype(np.float64)
    chunk, found = max(1, CHUNK_ELEMENTS // len(labels)), 0
    while found < bootstrap:
        times_drawn = draws.multinomial(count, np.full(count, 1.0 / count), size=min(chunk, bootstrap - found))
        weights = times_drawn[:, index].astype(np.float64)
        positives = weights @ malignant
        usable = (positives > 0) & (positives < weights.sum(axis=1))
        found += int(usable.sum())
        yield weights[usable]


def check_scored(scores: NDArray[np.float64], labels: NDArray[Any], patients: NDArray[Any]) -> None:
    """Refuse arrays that no metric is defined on; all of shape (images,).

    Raises:
      DataError: If lengths differ, a score is not a number in [0, 1], a label is unknown, or a class is missing.
    """
    if scores.ndim != 1 or scores.shape != labels.shape or scores.shape != patients.shape:
        raise DataError(
            f"scores {scores.shape}, labels {labels.shape} and patients {patients.shape} must have one row per image each"
        )
    if not (np.isfinite(scores) & (scores >= 0) & (scores <= 1)).all():
        raise DataError("scores must be numbers in [0, 1]: give the probability of malignant, not a logit, and no NaN")
    if not np.isin(labels, (BENIGN, MALIGNANT)).all():
        raise DataError("labels must be 1 for malignant or 0 for benign")
    if len(np.unique(labels)) != 2:
        raise DataError("the evaluation set has one class only; it needs benign and malignant images for an AUROC")


def counts_by_score(
    scores: NDArray[np.float64], labels: NDArray[Any], weights: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Weight of malignant and of benign images at every distinct score, rising; each of shape (replicates, distinct scores).

    `weights` has shape (replicates, images): how often a replicate holds each image. The order is the same for all
    replicates, so one sort serves them all.
    """
    order = np.argsort(scores, kind="stable")
    starts = np.flatnonzero(np.diff(scores[order], prepend=-np.inf))
    malignant = (labels[order] == MALIGNANT).astype(np.float64)
    ranked = weights[:, order]
    total = np.add.reduceat(ranked, starts, axis=1)
    positives = np.add.reduceat(ranked * malignant, starts, axis=1)
    return positives, total - positives


def auroc_of_counts(positives: NDArray[np.float64], negatives: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mann-Whitney AUROC of every row of counts by rising score, shape (replicates,)."""
    below = np.cumsum(negatives, axis=1) - negatives
    won = (positives * (below + negatives / 2)).sum(axis=1)
    share: NDArray[np.float64] = won / (positives.sum(axis=1) * negatives.sum(axis=1))
    return share


def average_precision_of_counts(positives: NDArray[np.float64], negatives: NDArray[np.float64]) -> NDArray[np.float64]:
    """Average precision of every row of counts by rising score, the highest score ranked first, shape (replicates,).

    For the other class, ranked from the lowest score, swap the two and reverse the columns.
    """
    from_top = positives[:, ::-1]
    true_positives = np.cumsum(from_top, axis=1)
    # Above the first image that a replicate holds nothing is retrieved: 0 / 0, with no weight in the sum.
    retrieved = np.maximum(true_positives + np.cumsum(negatives[:, ::-1], axis=1), 1.0)
    precision: NDArray[np.float64] = (from_top * true_positives / retrieved).sum(axis=1) / true_positives[:, -1]
    return precision


def sensitivity_of_counts(positives: NDArray[np.float64], negatives: NDArray[np.float64]) -> NDArray[np.float64]:
    """Largest sensitivity, shape (replicates,), of a threshold whose false positives are at most 10 % of the benign images."""
    # Counts from the top; the threshold that calls nothing malignant finds none, the 0 in place of what is not allowed.
    true_positives = np.cumsum(positives[:, ::-1], axis=1)
    false_positives = np.cumsum(negatives[:, ::-1], axis=1)
    # Rounding keeps 10 % of 70 at 7: the product is 7.000000000000001 or 6.999999999999999 depending on the platform.
    allowed = np.floor(np.round(FALSE_POSITIVE_SHARE * false_positives[:, -1:], 6))
    share: NDArray[np.float64] = np.where(false_positives <= allowed, true_positives, 0.0).max(axis=1) / true_positives[:, -1]
    return share
