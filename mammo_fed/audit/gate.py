"""The sensitivity gate: with the noise off, a unit may move a release by at most its clipping norm.

The neighbouring cohort is that of a unit which contributes nothing: its images are gone, or show nothing. Both must give the
same release. `largest_move` begins behind the features, `largest_pixel_move` with what a patient's pictures show.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from mammo_fed.data.cohort import BENIGN, MALIGNANT, Cohort
from mammo_fed.privacy.events import Unit
from mammo_fed.privacy.mechanisms.full_batch import LogisticData
from mammo_fed.privacy.mechanisms.unit_descent import UnitGradient, UnitSum
from mammo_fed.privacy.names import NoiseMode
from mammo_fed.privacy.noise import Draws, FloatDraws, GridDraws, operating_system_words

__all__ = [
    "HOSTILE",
    "PIXEL_KINDS",
    "GateCase",
    "NoiselessGenerator",
    "PixelCase",
    "gradient_moves",
    "hostile_cases",
    "largest_move",
    "largest_pixel_move",
    "noiseless",
    "pixel_cases",
]

# Kinds of a unit that a mechanism may meet.
HOSTILE: Final = ("ordinary", "empty", "huge", "nan", "infinite", "many_images", "mislabelled", "both_labels")
MANY: Final = 12
# Kinds of a unit, by what its images show.
PIXEL_KINDS: Final = (
    *("ordinary", "black", "one_black", "negative_zero", "faint", "white"),
    *("nan", "one_nan", "infinite", "many_images", "mislabelled"),
)
OTHERS: Final = 5


class NoiselessGenerator(np.random.Generator):
    """A generator whose normal draws are zero, so that what is left of a release is the clipped sum; other draws are real."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__(np.random.PCG64(seed))

    def standard_normal(self, size=None, dtype=np.float64, **_):  # type: ignore[no-untyped-def,override]
        """Zeros of shape `size`."""
        return 0.0 if size is None else np.zeros(size, dtype)


def noiseless(mode: NoiseMode) -> Draws:
    """Draws of a kind that add nothing to a release; on the grid only together with a noise multiplier of 0."""
    return GridDraws(words=operating_system_words) if mode == "secure" else FloatDraws(generator=NoiselessGenerator())


@dataclass(frozen=True, kw_only=True, eq=False)
class GateCase:
    """A cohort in which one unit is on trial.

    Attributes:
      kind: of HOSTILE.
      features: float32, shape (images, dims).
      labels: int64, shape (images,).
      patients: int64, shape (images,), dense.
      images_of_trial: bool, shape (images,): the rows of the unit on trial.
    """

    kind: str
    features: NDArray[np.float32]
    labels: NDArray[np.int64]
    patients: NDArray[np.int64]
    images_of_trial: NDArray[np.bool_]

    def without(self) -> GateCase:
        """The neighbouring cohort: the unit's rows are gone, so that it contributes nothing; sizes stay public."""
        keep = ~self.images_of_trial
        return GateCase(
            kind=self.kind,
            features=self.features[keep],
            labels=self.labels[keep],
            patients=np.unique(self.patients[keep], return_inverse=True)[1].astype(np.int64),
            images_of_trial=np.zeros(int(keep.sum()), bool),
        )

    def in_place(self) -> GateCase:
        """The same neighbouring cohort as a site holds it: the unit's rows are zero and stay in their places."""
        features = np.where(self.images_of_trial[:, None], np.float32(0), self.features)
        labels = np.where(self.images_of_trial, 0, self.labels)
        return replace(self, features=features, labels=labels)


def hostile_cases(*, dims: int, unit: str, seed: int = 0) -> Iterator[GateCase]:
    """Cohorts of 20 ordinary patients with two images each, and one unit of each kind in turn.

    Args:
      dims: number of features.
      unit: "patient" or "image"; an image on trial is a patient of one image.
      seed: of the ordinary rows.
    """
    for kind in HOSTILE:
        rng = np.random.default_rng(seed)
        features = rng.standard_normal((40, dims))
        features /= np.linalg.norm(features, axis=1, keepdims=True)
        labels = rng.integers(0, 2, 40)
        images = 1 if unit == "image" else MANY if kind == "many_images" else 2
        trial = np.tile(rng.standard_normal(dims) / np.sqrt(dims), (images, 1))
        trial_labels = np.ones(images, np.int64)
        if kind == "empty":
            trial[:] = 0.0
        elif kind == "huge":
            trial *= 1e6
        elif kind == "nan":
            trial[0, 0] = np.nan
        elif kind == "infinite":
            trial[-1, -1] = np.inf
        elif kind == "mislabelled":
            trial_labels[:] = 0
        elif kind == "both_labels":
            # At zero weights the images' gradients cancel, and so may a norm that is computed from products.
            trial_labels[::2] = 0
        patients = np.arange(40) // 2
        yield GateCase(
            kind=kind,
            features=np.concatenate([features, trial]).astype(np.float32),
            labels=np.concatenate([labels, trial_labels]).astype(np.int64),
            patients=np.concatenate([patients, np.full(images, 20)]).astype(np.int64),
            images_of_trial=np.concatenate([np.zeros(40, bool), np.ones(images, bool)]),
        )


def largest_move(
    release: Callable[[NDArray[np.float32], NDArray[np.int64], NDArray[np.int64]], NDArray[np.floating]],
    *,
    dims: int,
    unit: str,
) -> dict[str, float]:
    """How far each kind of unit moves the summed release, in L2.

    Args:
      release: maps (features, labels, dense unit index) to the summed, clipped, noise-free release.
      dims: number of features.
      unit: "patient" or "image".

    Returns:
      By kind of unit, the larger distance to the cohort without the unit and to the one with zeros in its place; a mechanism
      passes if each is at most its clipping norm, and NaN never passes.
    """
    moves = {}
    for case in hostile_cases(dims=dims, unit=unit):
        sums = []
        for cohort in (case, case.without(), case.in_place()):
            units = cohort.patients if unit == "patient" else np.arange(len(cohort.patients), dtype=np.int64)
            sums.append(np.asarray(release(cohort.features, cohort.labels, units), np.float64))
        # np.max lets a NaN through, where max() may not.
        moves[case.kind] = float(np.max([np.linalg.norm(sums[0] - other) for other in sums[1:]]))
    return moves


def gradient_moves(gradient: UnitGradient, *, dims: int, unit: str, clipping_norm: float, seed: int = 0) -> dict[str, float]:
    """The gate on a mechanism from outside: how far each kind of unit moves the sum of clipped gradients, over the norm.

    A gradient that is a function of its arguments always passes, as we clip it; one that keeps state between units does not.

    Args:
      gradient: of one unit's loss.
      dims: number of features.
      unit: "patient" or "image".
      clipping_norm: of one unit, > 0.
      seed: of the head at which it is taken, once beside zero.

    Returns:
      By kind of unit, the larger quotient at both heads; each must be at most 1 (up to rounding).
    """
    tilted = np.random.default_rng(seed).standard_normal(dims + 1).astype(np.float32)
    found: dict[str, float] = {}
    for weights in (np.zeros_like(tilted), tilted):

        def total(
            features: NDArray[np.float32],
            labels: NDArray[np.int64],
            units: NDArray[np.int64],
            weights: NDArray[np.float32] = weights,
        ) -> NDArray[np.floating]:
            data = LogisticData.build(features, labels, units, bias_scale=1.0)
            return UnitSum(gradient=gradient, data=data, weights=weights).clipped(clipping_norm=clipping_norm)

        for kind, move in largest_move(total, dims=dims, unit=unit).items():
            found[kind] = float(np.max([found.get(kind, 0.0), move / clipping_norm]))
    return found


@dataclass(frozen=True, kw_only=True, eq=False)
class PixelCase:
    """A cohort in which one unit is on trial; it has the last rows.

    Attributes:
      kind: of PIXEL_KINDS.
      cohort: all images.
      images_of_trial: number of images of the unit on trial.
    """

    kind: str
    cohort: Cohort
    images_of_trial: int

    def absent(self) -> Cohort:
        """The neighbouring cohort: the unit's images are gone."""
        return self.cohort.select(np.arange(len(self.cohort) - self.images_of_trial))

    def black(self) -> Cohort:
        """The same neighbour: the unit's images are there and show nothing, and their labels say nothing either."""
        pixels, labels = self.cohort.pixels.copy(), self.cohort.labels.copy()
        pixels[-self.images_of_trial :] = 0.0
        labels[-self.images_of_trial :] = BENIGN
        return replace(self.cohort, pixels=pixels, labels=labels)


def pixel_cases(*, unit: Unit, side: int = 64, seed: int = 0) -> Iterator[PixelCase]:
    """Cohorts of five ordinary patients with two images each, and one unit of each kind in turn.

    Args:
      unit: "patient" (two images on trial) or "image" (a patient of one image on trial).
      side: of an image in pixels.
      seed: of the pixels.
    """
    for kind in PIXEL_KINDS:
        images = 1 if unit == "image" else MANY if kind == "many_images" else 2
        pixels = _pictures(2 * OTHERS + images, side=side, seed=seed)
        labels = np.arange(len(pixels)) % 2
        labels[-images:] = MALIGNANT
        trial = pixels[-images:]
        if kind == "black":
            trial[:] = 0.0
        elif kind == "one_black":
            trial[0] = 0.0
        elif kind == "negative_zero":
            trial[:] = -0.0
        elif kind == "faint":
            trial[:] = 0.0
            trial[:, side // 2, side // 2] = 1 / 255
        elif kind == "nan":
            trial[:] = np.nan
        elif kind == "one_nan":
            trial[0, side // 2, side // 2] = np.nan
        elif kind == "infinite":
            trial[-1, side // 2, side // 2] = np.inf
        elif kind == "white":
            trial[:] = 1.0
        elif kind == "mislabelled":
            labels[-images:] = BENIGN
        patients = np.array([f"P{min(row // 2, OTHERS)}" for row in range(len(pixels))])
        cohort = Cohort(
            name="gate",
            pixels=pixels,
            labels=labels.astype(np.int64),
            patients=patients,
            images=np.array([f"I{row:02}" for row in range(len(pixels))]),
            views=np.full(len(pixels), ""),
            splits=np.full(len(pixels), "train"),
            public=True,
        )
        yield PixelCase(kind=kind, cohort=cohort, images_of_trial=images)


def largest_pixel_move(release: Callable[[Cohort], NDArray[np.floating]], *, unit: Unit) -> dict[str, float]:
    """How far each kind of unit moves a release, in L2, from the pixels on.

    Args:
      release: maps a cohort to the summed, clipped release, noise-free or with one and the same noise every time.
      unit: "patient" or "image".

    Returns:
      By kind of unit, the larger distance to the cohort without the unit and to the one in which it shows nothing. A mechanism
      passes if each is at most its clipping norm, and "black" moves nothing; NaN never passes.
    """
    moves = {}
    for case in pixel_cases(unit=unit):
        sums = [np.asarray(release(cohort), np.float64) for cohort in (case.cohort, case.absent(), case.black())]
        # np.max lets a NaN through, where max() may not.
        moves[case.kind] = float(np.max([np.linalg.norm(sums[0] - other) for other in sums[1:]]))
    return moves


def _pictures(count: int, *, side: int, seed: int) -> NDArray[np.float32]:
    """Patches with a spot each, of random place, width and brightness, on a noisy ground, float32 in [0, 1]."""
    rng = np.random.default_rng(seed)
    down, across = np.mgrid[:side, :side] / side
    place, width, bright = rng.uniform(0.3, 0.7, (count, 2)), rng.uniform(0.05, 0.3, count), rng.uniform(0.2, 0.6, count)
    squares = (down - place[:, 0, None, None]) ** 2 + (across - place[:, 1, None, None]) ** 2
    spots = bright[:, None, None] * np.exp(-squares / width[:, None, None] ** 2)
    pictures: NDArray[np.float32] = np.clip(spots + rng.uniform(0.1, 0.3, (count, side, side)), 0.0, 1.0).astype(np.float32)
    return pictures
