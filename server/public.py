"""What the server makes of the shared synthetic set before any patient is touched: whitening, and a pretrained head."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mammo_fed.data.assemble import synthetic_cohort, synthetic_source
from mammo_fed.data.cache import ArrayCache
from mammo_fed.data.cohort import fingerprint, require_both_classes
from mammo_fed.models.features import Extractor, Progress
from mammo_fed.models.heads import HeadSpec
from mammo_fed.models.whitening import Whitening, fit_whitening
from mammo_fed.settings import Settings
from mammo_fed.training.pretrain import pretrain_head

__all__ = ["PublicStart", "make_public_start"]

FORMAT = 1
PROVENANCE: Mapping[str, Literal["procedural", "no_dp", "unknown"]] = {
    "phantom": "procedural",
    "gan": "no_dp",
    "folder": "unknown",
}


@dataclass(frozen=True, kw_only=True, eq=False)
class PublicStart:
    """Where every site starts from; no patient of the federation is in it.

    Attributes:
      whitening: public statistics.
      head: shape of the head.
      flat: float32, the pretrained (or fresh) head.
      source: "phantom", "gan" or "folder".
      provenance: "procedural", "no_dp" or "unknown".
      sha256: content hash of the synthetic set.
      images: number of synthetic images.
    """

    whitening: Whitening
    head: HeadSpec
    flat: NDArray[np.float32]
    source: str
    provenance: Literal["procedural", "no_dp", "unknown"]
    sha256: str
    images: int


def make_public_start(
    settings: Settings, extractor: Extractor, *, cache: ArrayCache, progress: Progress | None = None
) -> PublicStart:
    """Fit the whitening and pretrain the head on the shared synthetic set, deterministically.

    Raises:
      DataError: If the set is absent, unreadable or of one class only.
    """
    cohort = synthetic_cohort(settings.synthesis, settings.data, seed=settings.seed, cache=cache)
    require_both_classes(cohort)
    content = fingerprint(cohort, key=None)
    # One view of a synthetic image is enough: its statistics, not the image itself, are what is used.
    blocks = extractor.blocks(cohort.pixels, fingerprint=content, flips=False, progress=progress)
    model = settings.model
    key = {
        "set": extractor.key(content, flips=False),
        "dims": model.components,
        "power": model.whitening_power,
        "format": FORMAT,
    }

    def fit() -> dict[str, NDArray[Any]]:
        return fit_whitening(blocks, dims=model.components, power=model.whitening_power).as_arrays()

    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    whitening = Whitening.from_arrays(cache.get_or_make(name, fit))
    head = HeadSpec(kind=model.head, dims=whitening.dims, hidden=model.hidden, bias_scale=model.bias_scale)
    pretrained = "pretrain" in settings.synthesis.use
    features = whitening(blocks) if pretrained else np.zeros((0, whitening.dims), np.float32)
    labels = cohort.labels if pretrained else np.zeros(0, np.int64)
    source = synthetic_source(settings.synthesis, settings.data)
    return PublicStart(
        whitening=whitening,
        head=head,
        flat=pretrain_head(head, features, labels, seed=settings.seed, **({} if pretrained else {"steps": 0})),
        source=source,
        provenance=PROVENANCE[source],
        sha256=content,
        images=len(cohort),
    )
