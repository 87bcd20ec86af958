"""Descriptors for judging images: ours, offline; or those of the literature, from packages of their own."""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from mammo_fed.data.cache import ArrayCache
from mammo_fed.errors import InvalidSetting, WeightsError
from mammo_fed.models.backbones import BackboneSpec
from mammo_fed.models.features import Extractor, ExtractorSpec
from mammo_fed.synthesis.quality import Descriptor

__all__ = ["DESCRIPTORS", "descriptor"]

NETWORK: Final = "tf_efficientnet_lite0"
TAP: Final = 4
INPUT_SIZE: Final = 128
INCEPTION_FEATURES: Final = 2048
AT_A_TIME: Final = 64


def descriptor(name: str, *, cache: ArrayCache) -> Descriptor:
    """A descriptor by name.

    Args:
      name: of DESCRIPTORS: "efficientnet" (middle layer of an ImageNet network that is installed with mammo-fed), "inception"
        (torchmetrics, fetches its weights), "radiomics" (frd-score).
      cache: for the network's hash.

    Raises:
      InvalidSetting: If there is none of that name, or its package is not installed.
      WeightsError: If its weights are not at hand.
    """
    if name not in DESCRIPTORS:
        raise InvalidSetting(f"--descriptor={name} must be one of {', '.join(DESCRIPTORS)}")
    return DESCRIPTORS[name](cache)


def _efficientnet(cache: ArrayCache) -> Descriptor:
    backbone = BackboneSpec(name=NETWORK, weights="wheel", weights_file=None, tap=TAP, seed=0)
    spec = ExtractorSpec(backbones=(backbone,), pooling="mean_std", input_size=INPUT_SIZE, flips="none")
    extractor = Extractor(spec, cache=cache)
    return lambda pixels: extractor.compute(pixels, flips="none")[0]


def _inception(_: ArrayCache) -> Descriptor:
    try:
        from torchmetrics.image.fid import NoTrainInceptionV3
    except ImportError as error:
        raise InvalidSetting('--descriptor=inception needs torchmetrics: pip install "mammo-fed[quality]"') from error
    try:
        network: Any = NoTrainInceptionV3(name="inception-v3-compat", features_list=[str(INCEPTION_FEATURES)])
    except (ImportError, OSError, RuntimeError) as error:
        raise WeightsError(
            f"--descriptor=inception could not get Inception's weights ({error}); it needs torch-fidelity and fetches them once"
        ) from error

    def describe(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        found = []
        with torch.inference_mode():
            for start in range(0, len(pixels), AT_A_TIME):
                grey = torch.from_numpy(np.round(pixels[start : start + AT_A_TIME] * 255).astype(np.uint8))
                found.append(network(grey[:, None].expand(-1, 3, -1, -1))[0].flatten(1).numpy())
        return np.concatenate(found)

    return describe


def _radiomics(_: ArrayCache) -> Descriptor:
    try:
        from frd_score import frd
    except ImportError as error:
        raise InvalidSetting('--descriptor=radiomics needs frd-score: pip install "mammo-fed[quality]"') from error
    from PIL import Image

    def describe(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
            files = []
            for number, image in enumerate(pixels):
                path = Path(folder) / f"{number:06d}.png"
                Image.fromarray(np.round(image * 255).astype(np.uint8)).save(path)
                files.append(path)
            found = frd.compute_features(files)
        return np.asarray(found, np.float32)

    return describe


DESCRIPTORS: Final[Mapping[str, Callable[[ArrayCache], Descriptor]]] = {
    "efficientnet": _efficientnet,
    "inception": _inception,
    "radiomics": _radiomics,
}
