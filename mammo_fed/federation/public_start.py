"""What the server makes of the shared synthetic set before any patient is touched: whitening, a pretrained head or network."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mammo_fed.data.cache import ArrayCache
from mammo_fed.data.cohort import Cohort, fingerprint, require_both_classes
from mammo_fed.data.run_cohorts import synthetic_cohort, synthetic_provenance, synthetic_source
from mammo_fed.data.sources.synthetic_set import SetProvenance
from mammo_fed.federation.protocol.payload import PublicPayload
from mammo_fed.federation.protocol.task import SynthesisProvenance
from mammo_fed.models.classifier import extractor_spec
from mammo_fed.models.features import Extractor, Progress
from mammo_fed.models.heads import HeadSpec
from mammo_fed.models.networks import flatten_network, network_spec, read_head, write_network
from mammo_fed.models.whitening import Whitening, fit_whitening
from mammo_fed.settings import Settings
from mammo_fed.training.network import NetworkPretraining, pretrain_network
from mammo_fed.training.pretrain import pretrain_head
from mammo_fed.training.recipe import resolve

__all__ = ["PublicStart", "make_extractor", "make_public_start"]

FORMAT = 1
PROVENANCE: Mapping[str, SynthesisProvenance] = {
    "phantom": "procedural",
    "gan": "no_dp",
    "folder": "unknown",
}


@dataclass(frozen=True, kw_only=True, eq=False)
class PublicStart:
    """Where every site starts from; no patient of the federation is in it.

    Attributes:
      payload: what travels to the sites: public statistics, the synthetic set for augmentation, a pretrained network.
      head: shape of the head.
      parameters: float32, the pretrained (or fresh) head.
      source: "phantom", "gan" or "folder".
      provenance: "procedural", "dp", "no_dp" or "unknown".
      origin: where the set comes from, where it says so itself.
      sha256: content hash of the synthetic set.
      images: number of synthetic images.
      network: file of the pretrained network, or None.
    """

    payload: PublicPayload
    head: HeadSpec
    parameters: NDArray[np.float32]
    source: str
    provenance: SynthesisProvenance
    origin: SetProvenance | None
    sha256: str
    images: int
    network: Path | None


def make_extractor(settings: Settings, *, cache: ArrayCache, progress: Progress | None = None) -> Extractor:
    """The feature extraction of a run, on a network that was pretrained on the synthetic set if the settings ask for it.

    The pretrained network is kept beside the cached features, so that it is made once for the same settings and seed.

    Raises:
      DataError: If the synthetic set is absent, unreadable or of one class only.
      WeightsError: If the backbone's weights are missing.
    """
    extractor = Extractor(extractor_spec(settings.model, seed=0), cache=cache)
    if not _pretrains_network(settings):
        return extractor
    cohort = synthetic_cohort(settings.synthesis, settings.data, seed=settings.seed, cache=cache)
    path = _network_path(settings, extractor, cohort)
    spec, (backbone,) = extractor.spec, extractor.spec.backbones
    if not path.exists():
        require_both_classes(cohort)
        (pooled,) = extractor.compute(cohort.pixels[:1], flips="none")
        network, head = pretrain_network(
            backbone,
            _head(settings, dims=pooled.shape[1]),
            cohort.pixels,
            cohort.labels,
            plan=_pretraining(settings),
            progress=progress or (lambda *_: None),
        )
        write_network(path, network, head)
    return Extractor(replace(spec, backbones=(network_spec(backbone, path),)), cache=cache)


def _pretraining(settings: Settings) -> NetworkPretraining:
    synthesis = settings.synthesis
    return NetworkPretraining(
        epochs=synthesis.epochs,
        batch_size=synthesis.batch_size,
        learning_rate=synthesis.learning_rate,
        weight_decay=synthesis.weight_decay,
        label_smoothing=synthesis.label_smoothing,
        image_size=settings.model.input_size,
        seed=settings.seed,
    )


def _network_path(settings: Settings, extractor: Extractor, cohort: Cohort) -> Path:
    """Where the pretrained network of these settings, this start and this synthetic set is kept."""
    described = {
        "plan": asdict(_pretraining(settings)),
        "head": (settings.model.head, settings.model.hidden, settings.model.bias_scale),
        "start": extractor.weights_sha256,
        "tap": settings.model.tap,
        "set": fingerprint(cohort, key=None),
        "format": FORMAT,
    }
    name = _digest(described)
    return extractor.cache_root / "networks" / f"{name}.safetensors"


def make_public_start(
    settings: Settings, extractor: Extractor, *, cache: ArrayCache, progress: Progress | None = None
) -> PublicStart:
    """Fit the whitening and pretrain the head on the shared synthetic set, deterministically.

    Args:
      settings: of the run.
      extractor: from `make_extractor`.
      cache: keeps what is slow to make.
      progress: called with (images done, images in all) while networks run.

    Raises:
      DataError: If the set is absent, unreadable or of one class only.
    """
    cohort = synthetic_cohort(settings.synthesis, settings.data, seed=settings.seed, cache=cache)
    require_both_classes(cohort)
    content, model = fingerprint(cohort, key=None), settings.model
    # One view of a synthetic image is enough: its statistics, not the image itself, are what is used.
    dims = resolve(settings).components
    used = dims > 0 or "augment" in settings.synthesis.use or _pretrains_head(settings)
    pixels = cohort.pixels if used else cohort.pixels[:2]
    name = content if used else hashlib.sha256(f"two of {content}".encode()).hexdigest()
    blocks = extractor.blocks(pixels, fingerprint=name, flips="none", progress=progress if used else None)
    key = {
        "set": extractor.key(name, flips="none"),
        "dims": dims,
        "power": model.whitening_power,
        "weights": model.block_weights,
        "format": FORMAT,
    }

    def fit() -> dict[str, NDArray[Any]]:
        return fit_whitening(blocks, dims=dims, power=model.whitening_power, weights=model.block_weights).as_arrays()

    whitening = Whitening.from_arrays(cache.get_or_make(_digest(key), fit))
    head = _head(settings, dims=whitening.dims)
    features = whitening(blocks, normalize=model.norm == "unit")
    network_path = None
    if _pretrains_network(settings):
        network_path = _network_path(settings, Extractor(extractor_spec(model, seed=0), cache=cache), cohort)
    augmented = "augment" in settings.synthesis.use
    source = synthetic_source(settings.synthesis, settings.data)
    origin = synthetic_provenance(settings.synthesis)
    return PublicStart(
        payload=PublicPayload(
            whitening=whitening,
            features=features if augmented else features[:0],
            labels=cohort.labels if augmented else cohort.labels[:0],
            network=np.zeros(0, np.float32) if network_path is None else flatten_network(network_path),
        ),
        network=network_path,
        head=head,
        parameters=_start(settings, head, features, cohort.labels, network_path, cache=cache, whitening=key),
        source=source,
        provenance=PROVENANCE[source] if origin is None else origin.kind,
        origin=origin,
        sha256=content,
        images=len(cohort),
    )


def _pretrains_network(settings: Settings) -> bool:
    """Whether backbone and head are pretrained together."""
    return "pretrain" in settings.synthesis.use and settings.synthesis.pretrain_scope == "network"


def _pretrains_head(settings: Settings) -> bool:
    """Whether the head alone is pretrained, on the features of the synthetic set."""
    return "pretrain" in settings.synthesis.use and settings.synthesis.pretrain_scope == "head"


def _head(settings: Settings, *, dims: int) -> HeadSpec:
    model = settings.model
    return HeadSpec(kind=model.head, dims=dims, hidden=model.hidden, bias_scale=model.bias_scale)


def _start(
    settings: Settings,
    head: HeadSpec,
    features: NDArray[np.float32],
    labels: NDArray[np.int64],
    network: Path | None,
    *,
    cache: ArrayCache,
    whitening: Mapping[str, object],
) -> NDArray[np.float32]:
    """The head that training starts from: pretrained with the network, alone (kept in the cache), or fresh."""
    if network is not None and settings.synthesis.keep_head:
        return read_head(network)
    if _pretrains_head(settings):
        key = {"features": whitening, "norm": settings.model.norm, "head": asdict(head), "seed": settings.seed}
        kept = cache.get_or_make(
            _digest({**key, "format": FORMAT}), lambda: {"head": pretrain_head(head, features, labels, seed=settings.seed)}
        )
        return np.array(kept["head"])
    return pretrain_head(head, features[:0], labels[:0], seed=settings.seed, steps=0)


def _digest(described: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()
