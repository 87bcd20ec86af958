"""Score new images with a finished run's model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mammo_fed.data.cache import ArrayCache, default_cache_root
from mammo_fed.data.patches import read_patches
from mammo_fed.errors import WeightsError
from mammo_fed.models.classifier import extractor_spec, read_classifier
from mammo_fed.models.features import Extractor, evaluation_flips

__all__ = ["predict"]


def predict(run: Path, images: Sequence[Path]) -> dict[Path, float]:
    """Probability of malignancy for each image, in [0, 1].

    Args:
      run: folder of a finished run.
      images: square grey PNG patches of one size, one mass each.

    Raises:
      DataError: If the run has no model or an image cannot be read.
      WeightsError: If the backbone weights here are not the ones that the model was trained on.
    """
    classifier = read_classifier(run / "model.safetensors")
    pixels = read_patches(list(images), image_size=None)
    extractor = Extractor(extractor_spec(classifier.model, seed=classifier.seed), cache=ArrayCache(default_cache_root()))
    if extractor.weights_sha256 != classifier.weights_sha256:
        raise WeightsError(f"the backbone weights here are not those of {run}; install the versions named in its record.json")
    scores = classifier.score(extractor.compute(pixels, flips=evaluation_flips(classifier.model.flips)))
    return dict(zip(images, scores.tolist(), strict=True))
