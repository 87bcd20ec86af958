"""Metrics of a scored evaluation set, with a confidence interval that respects patients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import average_precision_score, brier_score_loss

from mammo_fed.data.cohort import BENIGN, MALIGNANT
from mammo_fed.errors import DataError, InvalidSetting

__all__ = ["Metrics", "auroc", "auroc_interval", "evaluate_scores"]

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
    score = np.asarray(scores, dtype=np.float64)
    label = np.asarray(labels)
    patient = np.asarray(patients)
    _check(score, label, patient)
    low_high = auroc_interval(score, label, patient, bootstrap=bootstrap, seed=seed)
    positives, negatives = _counts_by_score(score, label, np.ones((1, len(score))))
    return Metrics(
        n_patients=len(np.unique(patient)),
        n_images=len(score),
        auroc=float(_auroc(positives, negatives)[0]),
        auroc_ci=low_high,
        auprc_benign=float(average_precision_score(label == BENIGN, 1.0 - score)),
        auprc_malignant=float(average_precision_score(label == MALIGNANT, score)),
        brier=float(brier_score_loss(label == MALIGNANT, score)),
        sensitivity_at_90_specificity=_sensitivity(positives[0], negatives[0]),
    )


def auroc(scores: NDArray[np.float64], labels: NDArray[Any]) -> float:
    """Probability that a malignant image scores above a benign one, ties counted half; both classes must be there."""
    positives, negatives = _counts_by_score(scores, labels, np.ones((1, len(scores))))
    return float(_auroc(positives, negatives)[0])


def auroc_interval(
    scores: NDArray[np.float64], labels: NDArray[Any], patients: NDArray[Any], *, bootstrap: int, seed: int
) -> tuple[float, float]:
    """95 % percentile interval of the AUROC under the cluster bootstrap: whole patients are drawn with replacement.

    A replicate that lacks a class has no AUROC and is drawn again, so the interval is conditional on both classes being
    there. That ends: each class has a patient, so a replicate misses a given class with probability at most 1/e.

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

    Source: Field and Welsh, "Bootstrapping clustered data", JRSS B 69 (2007), section 2 (randomised cluster bootstrap).
    """
    if bootstrap < 1:
        raise InvalidSetting(f"bootstrap={bootstrap} must be at least 1; 1000 gives a stable 95 % interval")
    draws = np.random.default_rng(seed)
    index = np.unique(patients, return_inverse=True)[1]
    count = int(index.max()) + 1
    chunk = max(1, CHUNK_ELEMENTS // len(scores))
    found = np.empty(0)
    while len(found) < bootstrap:
        times_drawn = draws.multinomial(count, np.full(count, 1.0 / count), size=min(chunk, bootstrap - len(found)))
        positives, negatives = _counts_by_score(scores, labels, times_drawn[:, index].astype(np.float64))
        usable = (positives.sum(axis=1) > 0) & (negatives.sum(axis=1) > 0)
        found = np.concatenate([found, _auroc(positives[usable], negatives[usable])])
    low, high = np.percentile(found, INTERVAL_PERCENT)
    return float(low), float(high)


def _check(scores: NDArray[np.float64], labels: NDArray[Any], patients: NDArray[Any]) -> None:
    """Raise DataError for arrays that no metric is defined on."""
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


def _counts_by_score(
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


def _auroc(positives: NDArray[np.float64], negatives: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mann-Whitney AUROC of every row of counts by rising score, shape (replicates,)."""
    below = np.cumsum(negatives, axis=1) - negatives
    won = (positives * (below + negatives / 2)).sum(axis=1)
    share: NDArray[np.float64] = won / (positives.sum(axis=1) * negatives.sum(axis=1))
    return share


def _sensitivity(positives: NDArray[np.float64], negatives: NDArray[np.float64]) -> float:
    """Largest sensitivity of a threshold whose false positives are at most 10 % of the benign images."""
    # Counts from the top, starting with the threshold that calls nothing malignant.
    true_positives = np.concatenate([[0.0], np.cumsum(positives[::-1])])
    false_positives = np.concatenate([[0.0], np.cumsum(negatives[::-1])])
    # Rounding keeps 10 % of 70 at 7: the product is 7.000000000000001 or 6.999999999999999 depending on the platform.
    allowed = np.floor(np.round(FALSE_POSITIVE_SHARE * negatives.sum(), 6))
    return float(true_positives[false_positives <= allowed].max() / positives.sum())
