"""Fixed descriptors of patches from frozen backbones: tap, pooling, views averaged; extracted once and cached."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mammo_fed.data.cache import ArrayCache
from mammo_fed.errors import InvalidSetting
from mammo_fed.models.backbones import Backbone, BackboneSpec, load_backbone, weights_file
from mammo_fed.models.pooling import NO_WINDOW, Pooling, Window, pool_views, turned

__all__ = ["Extractor", "ExtractorSpec", "Flips", "Pooling", "Progress", "denormals_flushed", "evaluation_flips", "resize"]

Flips = Literal["none", "average", "dihedral", "random"]
Progress = Callable[[int, int], None]

# Bumped whenever the same settings would give other numbers, so that no old cache is read.
FORMAT: Final = 2
# How a cache key names them.
CACHED_AS: Final[Mapping[str, object]] = {"none": False, "average": True, "dihedral": "dihedral", "random": "random"}
# Views of a patch.
VIEWS: Final[Mapping[str, int]] = {"none": 1, "average": 4, "dihedral": 8, "random": 4}
# Patches in one pass: small enough that activations stay in the processor's cache; three times faster than 128 on two cores.
PASS: Final = 16


def evaluation_flips(flips: Flips) -> Flips:
    """How a patch is seen when it is scored: as it is, where training draws a flip."""
    return "none" if flips == "random" else flips


@dataclass(frozen=True, kw_only=True)
class ExtractorSpec:
    """Everything that decides what a descriptor is, and nothing else.

    Attributes:
      backbones: one or more networks; their descriptors stand side by side.
      pooling, window: see mammo_fed.models.pooling.
      input_size: side in pixels to which a patch is resized (area down, bicubic up) before the network.
      flips: "none", "average" (of the descriptors of a patch's four flips), "dihedral" (of its eight flips and quarter
        turns) or "random" (all four flips are kept, and training draws one). No privacy cost: they belong to one image.
    """

    backbones: tuple[BackboneSpec, ...]
    pooling: Pooling
    input_size: int
    flips: Flips
    window: Window = NO_WINDOW

    def __post_init__(self) -> None:
        if not self.backbones:
            raise InvalidSetting("model.backbone=[] must name at least one network")
        if not 16 <= self.input_size <= 1024:
            raise InvalidSetting(f"model.input_size={self.input_size} must be from 16 to 1024 pixels")
        if self.pooling in ("covariance", "sqrt_covariance") and any(backbone.tap is None for backbone in self.backbones):
            raise InvalidSetting("a covariance of channels needs a feature map: set model.tap, or use model.pooling=mean")


class Extractor:
    """Computes and caches descriptors; loads the networks only when something is not cached yet.

    Descriptors are private where the patches are: the cache belongs to the site.
    """

    def __init__(self, spec: ExtractorSpec, *, cache: ArrayCache) -> None:
        self.spec = spec
        self._cache = cache
        self._backbones: tuple[Backbone, ...] | None = None
        self._weights = ""

    @property
    def backbones(self) -> tuple[Backbone, ...]:
        """The loaded networks."""
        if self._backbones is None:
            size = self.spec.input_size
            self._backbones = tuple(load_backbone(spec, image_size=size) for spec in self.spec.backbones)
        return self._backbones

    @property
    def cache_root(self) -> Path:
        """Folder of the cache."""
        return self._cache.root

    @property
    def weights_sha256(self) -> str:
        """One hash for all networks' weights; a file that was hashed before is recognised, and its network not built."""
        if not self._weights:
            hashes = [self._hash(place) for place in range(len(self.spec.backbones))]
            self._weights = hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()
        return self._weights

    def _hash(self, place: int) -> str:
        """Hash of one network's weights, kept in the cache under everything that it depends on."""
        spec = self.spec.backbones[place]
        file = weights_file(spec)
        if file is None or not file.is_file() or self._backbones is not None:
            return self.backbones[place].weights_sha256
        described = {"network": spec.name, "size": self.spec.input_size, "timm": version("timm"), "format": FORMAT}
        with file.open("rb") as opened:
            described["file"] = hashlib.file_digest(opened, "sha256").hexdigest()
        key = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()

        def compute() -> Mapping[str, NDArray[Any]]:
            return {"sha256": np.frombuffer(bytes.fromhex(self.backbones[place].weights_sha256), np.uint8)}

        return self._cache.get_or_make(key, compute, verify=True)["sha256"].tobytes().hex()

    def key(self, fingerprint: str, *, flips: Flips) -> str:
        """Cache key of a cohort: (weights hash, preprocessing, cohort fingerprint), 64 hex digits."""
        described = {**asdict(self.spec), "flips": CACHED_AS[flips], "weights": self.weights_sha256, "format": FORMAT}
        described["cohort"] = fingerprint
        return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()

    def cached(self, fingerprint: str, *, flips: Flips | None = None) -> bool:
        """Whether the descriptors of a cohort are on disk already."""
        return self.key(fingerprint, flips=self.spec.flips if flips is None else flips) in self._cache

    def blocks(
        self, pixels: NDArray[np.float32], *, fingerprint: str, flips: Flips | None = None, progress: Progress | None = None
    ) -> tuple[NDArray[np.float32], ...]:
        """Descriptors of a cohort, one array per network, read-only and memory-mapped from the cache.

        Args:
          pixels: float32 in [0, 1], shape (images, height, width).
          fingerprint: of the cohort that `pixels` belong to (hex).
          flips: overrides the specification, for public sets whose descriptors need no averaging.
          progress: called with (images done, images in all) while the networks run; never called for a cached cohort.

        Returns:
          float32 arrays, each of shape (images, dims of that network's pooling), or (images, 4, dims) with flips="random": as
          it is, mirrored, upside down, both.
        """
        views: Flips = self.spec.flips if flips is None else flips

        def compute() -> Mapping[str, NDArray[Any]]:
            return {f"block{i}": block for i, block in enumerate(self.compute(pixels, flips=views, progress=progress))}

        arrays = self._cache.get_or_make(self.key(fingerprint, flips=views), compute)
        return tuple(arrays[f"block{i}"] for i in range(len(self.spec.backbones)))

    def store(self, blocks: Sequence[NDArray[np.float32]], *, fingerprint: str, flips: Flips) -> None:
        """Put descriptors that were made as part of a larger cohort into the cache, for a cohort of their own."""
        made = {f"block{i}": np.ascontiguousarray(block) for i, block in enumerate(blocks)}
        self._cache.get_or_make(self.key(fingerprint, flips=flips), lambda: made)

    def compute(
        self, pixels: NDArray[np.float32], *, flips: Flips, progress: Progress | None = None
    ) -> tuple[NDArray[np.float32], ...]:
        """Descriptors without the cache; arguments and result as in `blocks`."""
        batch = max(1, PASS // VIEWS[flips])
        starts = range(0, len(pixels), batch)
        backbones = self.backbones

        def one(start: int) -> tuple[NDArray[np.float32], ...]:
            patches = resize(torch.from_numpy(np.array(pixels[start : start + batch])), self.spec.input_size)
            views = torch.cat(turned(patches)[: VIEWS[flips]])
            maps = _maps(backbones, views)
            return tuple(
                pool_views(
                    part.view(-1, len(patches), *part.shape[1:]),
                    self.spec.pooling,
                    self.spec.window,
                    average=flips != "random",
                ).numpy()
                for part in maps
            )

        # One batch a thread: threads that share a batch wait for each other, and for whatever else the machine does.
        rows = []
        with ThreadPoolExecutor(torch.get_num_threads(), initializer=_alone) as pool:
            try:
                for start, made in zip(starts, pool.map(one, starts), strict=True):
                    rows.append(made)
                    if progress is not None:
                        progress(min(start + batch, len(pixels)), len(pixels))
            except BaseException:
                # Leaving the block waits for what was handed in: an interrupt must not wait for thousands of images.
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return tuple(np.concatenate(blocks) for blocks in zip(*rows, strict=True))


@contextmanager
def denormals_flushed() -> Iterator[None]:
    """Numbers below the normal ones become 0 in this thread while the block runs.

    The processor takes a slow way of its own with them: a network or a whitening can be made so that they turn up for one
    patient's image only, and the time would tell whether it is there.
    """
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


def _alone() -> None:
    """One thread an image, without the slow way."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)


def _maps(backbones: Sequence[Backbone], views: Tensor) -> list[Tensor]:
    """The map of each backbone; those that differ in their tap alone share one pass."""
    of_network: dict[BackboneSpec, list[int]] = {}
    for place, backbone in enumerate(backbones):
        of_network.setdefault(replace(backbone.spec, tap=None), []).append(place)
    found: dict[int, Tensor] = {}
    for places in of_network.values():
        taps = [backbones[place].spec.tap for place in places]
        shared = all(tap is None or tap >= 0 for tap in taps)
        if shared:
            found |= dict(zip(places, backbones[places[0]].maps(views, taps), strict=True))
        else:
            found |= {place: backbones[place](views) for place in places}
    return [found[place] for place in range(len(backbones))]


def resize(patches: Tensor, size: int) -> Tensor:
    """Patches of shape (batch, height, width) at `size` pixels: area down, bicubic up, clamped to [0, 1]."""
    if patches.shape[-1] == size and patches.shape[-2] == size:
        return patches
    if size < patches.shape[-1]:
        return torch.nn.functional.interpolate(patches[:, None], size=(size, size), mode="area")[:, 0]
    wide = torch.nn.functional.interpolate(patches[:, None], size=(size, size), mode="bicubic", align_corners=False)
    return wide[:, 0].clamp(0.0, 1.0)
