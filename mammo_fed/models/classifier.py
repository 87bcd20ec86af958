"""The trained model as one safe file: everything that is needed to score a new image."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from mammo_fed.common.private_files import write_atomically
from mammo_fed.common.serialization import build, canonical_json
from mammo_fed.errors import DataError
from mammo_fed.models.backbones import BackboneSpec
from mammo_fed.models.features import ExtractorSpec
from mammo_fed.models.heads import HeadSpec, malignancy_score
from mammo_fed.models.pooling import Window
from mammo_fed.models.whitening import Whitening, centre_and_normalise
from mammo_fed.settings import ModelSettings

__all__ = ["MODEL_NAME", "Classifier", "extractor_spec", "read_classifier"]

# In the folder of a run.
MODEL_NAME: Final = "model.safetensors"
FORMAT: Final = "mammo-fed classifier 1"
NETWORK_NAME: Final = "network.safetensors"


def extractor_spec(model: ModelSettings, *, seed: int) -> ExtractorSpec:
    """The feature extraction that model settings describe; `seed` matters for weights=none only."""
    return ExtractorSpec(
        backbones=tuple(
            BackboneSpec(name=name, weights=model.weights, weights_file=model.weights_file, tap=tap, seed=seed)
            for name, tap in zip(model.backbone, model.taps or [model.tap] * len(model.backbone), strict=True)
        ),
        pooling=model.pooling,
        input_size=model.input_size,
        flips=model.flips,
        window=Window(sigma=model.window, down=model.window_down),
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class Classifier:
    """Descriptors to malignancy.

    Attributes:
      model: how descriptors are made.
      weights_sha256: hash of the backbone weights it was trained on.
      seed: of backbones with random weights.
      whitening: public statistics.
      feature_mean: float32, shape (dims,): the aggregated private mean.
      parameters: float32: the head.
      network: file of a backbone that was pretrained for this run, or None; `write` puts a copy beside the model.
    """

    model: ModelSettings
    weights_sha256: str
    seed: int
    whitening: Whitening
    feature_mean: NDArray[np.float32]
    parameters: NDArray[np.float32]
    network: Path | None = None

    @property
    def head(self) -> HeadSpec:
        """Shape of the head."""
        model = self.model
        return HeadSpec(kind=model.head, dims=self.whitening.dims, hidden=model.hidden, bias_scale=model.bias_scale)

    def features(self, blocks: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        """Features of shape (images, dims) for descriptors, one array per network."""
        return self.whitening(blocks, normalize=self.model.norm == "unit")

    def score_features(self, features: NDArray[np.float32]) -> NDArray[np.float64]:
        """Probability of malignancy, shape (images,), for features of shape (images, dims)."""
        return malignancy_score(
            self.head, self.parameters, centre_and_normalise(features, self.feature_mean, normalize=self.model.norm == "unit")
        )

    def score(self, blocks: Sequence[NDArray[np.float32]]) -> NDArray[np.float64]:
        """Probability of malignancy, shape (images,), for descriptors, one array per network."""
        return self.score_features(self.features(blocks))

    def write(self, path: Path) -> Path:
        """Write the model as safetensors, atomically."""
        about = {"format": FORMAT, "weights_sha256": self.weights_sha256, "seed": str(self.seed)}
        model = self.model
        if self.network is not None:
            write_atomically(path.with_name(NETWORK_NAME), self.network.read_bytes())
            model = replace(model, weights="file", weights_file=NETWORK_NAME)
        about["model"] = canonical_json(model)
        arrays = {f"whitening.{name}": array for name, array in self.whitening.as_arrays().items()}
        arrays |= {"centre": self.feature_mean, "head": self.parameters}
        content = save({name: np.ascontiguousarray(array) for name, array in arrays.items()}, metadata=about)
        return write_atomically(path, content)


def read_classifier(path: Path) -> Classifier:
    """Read what `Classifier.write` wrote.

    Raises:
      DataError: If the file is absent or not such a model.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            about: dict[str, Any] = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path} is not a readable model; give the folder of a finished run") from error
    if about.get("format") != FORMAT or not {"centre", "head"} <= set(arrays):
        raise DataError(f"{path} has format {about.get('format')!r}, this version reads {FORMAT!r}")
    statistics = {name.removeprefix("whitening."): array for name, array in arrays.items() if name.startswith("whitening.")}
    model = build(ModelSettings, json.loads(about["model"]), path="model")
    if model.weights_file == NETWORK_NAME:
        model = replace(model, weights_file=str(path.with_name(NETWORK_NAME)))
    return Classifier(
        model=model,
        weights_sha256=about["weights_sha256"],
        seed=int(about["seed"]),
        whitening=Whitening.from_arrays(statistics),
        feature_mean=arrays["centre"],
        parameters=arrays["head"],
    )
