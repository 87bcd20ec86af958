"""Score new images with a finished run's model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mammo_fed.data.cache import ArrayCache, default_cache_root
from mammo_fed.data.patches import read_patches
from mammo_fed.errors import DataError, WeightsError
from mammo_fed.models.classifier import Classifier, extractor_spec, read_classifier
from mammo_fed.models.features import Extractor, evaluation_flips

__all__ = ["Model", "load_model", "predict"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Model:
    """A run's released model with the networks that it reads images with; from `load_model`. Not a medical device.

    Attributes:
      classifier: whitening, feature mean and head.
      extractor: the frozen networks.

    >>> from mammo_fed import Model
    >>> [name for name in dir(Model) if not name.startswith("_")]
    ['score']
    """

    classifier: Classifier
    extractor: Extractor

    def score(self, images: NDArray[np.floating] | Sequence[Path | str]) -> NDArray[np.float64]:
        """Probability of malignancy for each image, float64, shape (images,).

        Args:
          images: floats in [0, 1] of shape (images, side, side), or paths of square grey PNG patches of one size; a mass each.

        Raises:
          DataError: If an image cannot be read, or the array is of another shape or range.
        """
        pixels = (
            _checked(images) if isinstance(images, np.ndarray) else read_patches([Path(p) for p in images], image_size=None)
        )
        flips = evaluation_flips(self.classifier.model.flips)
        return self.classifier.score(self.extractor.compute(pixels, flips=flips))


def load_model(run: Path | str) -> Model:
    """The model of the finished run in the folder `run`.

    Raises:
      DataError: If the run has no model.
      WeightsError: If the backbone weights here are not the ones that the model was trained on.

    >>> import tempfile, numpy
    >>> from mammo_fed import compose_settings, simulate
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     record = simulate(compose_settings([
    ...         "model=efficientnet_lite0", "model.weights=none", "model.input_size=32", "model.components=8",
    ...         "model.flips=none", "data.image_size=32", "data.images_train=24", "data.images_test=20",
    ...         "data.images_external=8", "synthesis.count=16", "synthesis.use=[whiten]",
    ...         "federation.num_sites=2", "federation.rounds=1", f"engine.cache={folder}/cache",
    ...     ]), f"{folder}/run")
    ...     scores = load_model(f"{folder}/run").score(numpy.full((3, 32, 32), 0.5))
    >>> scores.shape, bool((scores > 0).all() and (scores < 1).all())
    ((3,), True)
    """
    run = Path(run)
    classifier = read_classifier(run / "model.safetensors")
    extractor = Extractor(extractor_spec(classifier.model, seed=classifier.seed), cache=ArrayCache(default_cache_root()))
    if extractor.weights_sha256 != classifier.weights_sha256:
        raise WeightsError(f"the backbone weights here are not those of {run}; install the versions named in its record.json")
    return Model(classifier=classifier, extractor=extractor)


def predict(run: Path, images: Sequence[Path]) -> dict[Path, float]:
    """Probability of malignancy for each image file, in [0, 1]; see `Model.score`.

    Args:
      run: folder of a finished run.
      images: square grey PNG patches of one size, one mass each.

    Raises:
      DataError: If the run has no model or an image cannot be read.
      WeightsError: If the backbone weights here are not the ones that the model was trained on.
    """
    return dict(zip(images, load_model(run).score(images).tolist(), strict=True))


def _checked(images: NDArray[np.floating]) -> NDArray[np.float32]:
    if images.ndim != 3 or images.shape[1] != images.shape[2] or len(images) == 0:
        raise DataError(f"images of shape {images.shape} must have shape (images, side, side), at least one")
    if not np.issubdtype(images.dtype, np.floating):
        raise DataError(f"images of type {images.dtype} must be floats in [0, 1]; divide whole numbers by their largest value")
    if not (np.isfinite(images).all() and images.min() >= 0 and images.max() <= 1):
        raise DataError("images must be finite numbers in [0, 1]; scale them")
    return images.astype(np.float32)
