"""Descriptors for judging images: ours, offline; or those of the literature, from packages of their own."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from mammo_fed.data.cache import ArrayCache
from mammo_fed.errors import InvalidSetting, WeightsError
from mammo_fed.models.backbones import BackboneSpec
from mammo_fed.models.features import Extractor, ExtractorSpec
from mammo_fed.synthesis.quality.evaluation import Descriptor

__all__ = ["DESCRIPTORS", "descriptor", "radiomics_distance"]

NETWORK: Final = "tf_efficientnet_lite0"
TAP: Final = 4
INPUT_SIZE: Final = 128
INCEPTION_FEATURES: Final = 2048
AT_A_TIME: Final = 64


def descriptor(name: str, *, cache: ArrayCache) -> Descriptor:
    """A descriptor by name.

    Args:
      name: of DESCRIPTORS: "efficientnet" (middle layer of an ImageNet network that is installed with mammo-fed), or
        "inception" (torchmetrics, fetches its weights).
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


DESCRIPTORS: Final[Mapping[str, Callable[[ArrayCache], Descriptor]]] = {
    "efficientnet": _efficientnet,
    "inception": _inception,
}


def radiomics_distance(real: NDArray[np.float32], generated: NDArray[np.float32]) -> float:
    """Frechet radiomics distance as frd-score computes it, with its own defaults; lower is better.

    Args:
      real, generated: float32 in [0, 1], shape (images, side, side); they are written as PNG files for it, and removed.

    Raises:
      InvalidSetting: If frd-score or pyradiomics is not installed.

    Source: arXiv:2412.01496.
    """
    try:
        import radiomics  # noqa: F401 - asked for here, as frd-score would fail in one of its processes
        from frd_score import frd
    except ImportError as error:
        raise InvalidSetting(
            '--frd needs frd-score (pip install "mammo-fed[quality]") and pyradiomics, whose release on PyPI does not build on '
            "Python 3.10 and later: install it from its repository, AIM-Harvard/pyradiomics"
        ) from error
    with tempfile.TemporaryDirectory() as root:
        folders = []
        for name, pixels in (("real", real), ("generated", generated)):
            folder = Path(root) / name
            folder.mkdir(mode=0o700)
            for number, image in enumerate(pixels):
                Image.fromarray(np.round(image * 255).astype(np.uint8)).save(folder / f"{number:06d}.png")
            folders.append(str(folder))
        return float(frd.compute_frd(folders, num_workers=os.cpu_count() or 1))
