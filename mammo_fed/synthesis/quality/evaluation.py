"""What a synthetic set is worth: how near it is to real masses, whether its classes mean something, and what it gives away."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from mammo_fed.data.cohort import Cohort
from mammo_fed.errors import DataError
from mammo_fed.models.features import resize
from mammo_fed.synthesis.quality.fidelity import Neighbourhood, frechet_distance, neighbourhood
from mammo_fed.synthesis.quality.memorisation import Memorisation, memorisation, thumbnails
from mammo_fed.synthesis.quality.spectrum import Artefacts, artefacts
from mammo_fed.training.evaluation import auroc, auroc_interval

__all__ = ["Descriptor", "Quality", "Reference", "at_side", "evaluate_set", "noise_images", "reference"]

Descriptor: TypeAlias = Callable[[NDArray[np.float32]], NDArray[np.float32]]
"""From pixels in [0, 1], shape (images, side, side), to descriptors, shape (images, dims)."""
# Strength of the logistic regression on standardised descriptors: chosen for real training images against real held-out ones.
STRENGTH: Final = 0.003
MOST_STEPS: Final = 2000
REPLICATES: Final = 1000


@dataclass(frozen=True, kw_only=True, eq=False)
class Reference:
    """Real masses that sets are compared with.

    Attributes:
      train: pixels that generators were trained on, float32, shape (images, side, side).
      train_features: their descriptors.
      held_out, held_out_features: of other patients.
      held_out_labels, held_out_patients: int64 and str, shape (held-out images,).
      score: from descriptors to the malignancy score of a classifier trained on the training images.
      side: at which everything is compared, in pixels.
      describe: what made the descriptors.
    """

    train: NDArray[np.float32]
    train_features: NDArray[np.float32]
    held_out: NDArray[np.float32]
    held_out_features: NDArray[np.float32]
    held_out_labels: NDArray[np.int64]
    held_out_patients: NDArray[np.str_]
    score: Callable[[NDArray[np.float32]], NDArray[np.float64]]
    side: int
    describe: Descriptor


@dataclass(frozen=True, kw_only=True, eq=False)
class Quality:
    """Attributes:
    frechet: Frechet distance to the training images; lower is better.
    neighbourhood: precision, recall, density, coverage against the training images.
    consistency: AUROC of a classifier trained on real images for the set's own labels: do the classes differ as real ones do?
    tstr: AUROC on held-out patients of a classifier trained on the set (train on synthetic, test on real).
    tstr_ci: its 95 % interval, held-out patients resampled.
    artefacts: of the images' spectrum.
    memorisation: of training images.
    """

    frechet: float
    neighbourhood: Neighbourhood
    consistency: float
    tstr: float
    tstr_ci: tuple[float, float]
    artefacts: Artefacts
    memorisation: Memorisation


def reference(train: Cohort, held_out: Cohort, *, side: int, describe: Descriptor) -> Reference:
    """Real masses at the size of what will be evaluated.

    Raises:
      DataError: If a class is missing.
    """
    seen, unseen = at_side(train.pixels, side), at_side(held_out.pixels, side)
    features = describe(seen)
    return Reference(
        train=seen,
        train_features=features,
        held_out=unseen,
        held_out_features=describe(unseen),
        held_out_labels=held_out.labels,
        held_out_patients=held_out.patients,
        score=_classifier(features, train.labels),
        side=side,
        describe=describe,
    )


def evaluate_set(pixels: NDArray[np.float32], labels: NDArray[np.int64], real: Reference, *, seed: int = 0) -> Quality:
    """Evaluate a set of images; not differentially private: every figure depends on the real images.

    Args:
      pixels: float32 in [0, 1], shape (images, side, side); brought to the reference's side.
      labels: int64, shape (images,), both classes.
      real: what they are compared with.
      seed: of the interval's replicates.

    Raises:
      DataError: If a class is missing or the images are too small.
    """
    images = at_side(pixels, real.side)
    features = real.describe(images)
    scores = _classifier(features, labels)(real.held_out_features)
    return Quality(
        frechet=frechet_distance(real.train_features, features),
        neighbourhood=neighbourhood(real.train_features, features),
        consistency=auroc(real.score(features), labels),
        tstr=auroc(scores, real.held_out_labels),
        tstr_ci=auroc_interval(scores, real.held_out_labels, real.held_out_patients, bootstrap=REPLICATES, seed=seed),
        artefacts=artefacts(images),
        memorisation=memorisation(
            thumbnails(images),
            thumbnails(real.train),
            thumbnails(real.held_out),
            mirrored=thumbnails(real.train[:, :, ::-1]),
        ),
    )


def noise_images(count: int, *, side: int, seed: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """What any generator must beat: grey noise whose labels mean nothing."""
    drawn = np.random.default_rng(seed).normal(0.5, 0.2, (count, side, side))
    return np.clip(drawn, 0, 1).astype(np.float32), np.arange(count, dtype=np.int64) % 2


def at_side(pixels: NDArray[np.float32], side: int) -> NDArray[np.float32]:
    """Images at `side` pixels.

    Raises:
      DataError: If they are smaller: enlarging would invent what is evaluated.
    """
    if pixels.shape[-1] < side:
        raise DataError(f"images of {pixels.shape[-1]} pixels cannot be evaluated at {side}; choose a smaller side")
    return resize(torch.from_numpy(np.array(pixels)), side).numpy()


def _classifier(
    features: NDArray[np.float32], labels: NDArray[np.int64]
) -> Callable[[NDArray[np.float32]], NDArray[np.float64]]:
    """Logistic regression on descriptors standardised by its own training set."""
    if len(np.unique(labels)) != 2:
        raise DataError("a classifier needs malignant and benign images; the set has one class only")
    mean, scale = features.mean(axis=0), features.std(axis=0) + 1e-6
    fitted = LogisticRegression(C=STRENGTH, max_iter=MOST_STEPS).fit((features - mean) / scale, labels)

    def score(others: NDArray[np.float32]) -> NDArray[np.float64]:
        found: NDArray[np.float64] = fitted.decision_function((others - mean) / scale).astype(np.float64)
        return found

    return score
