"""The public things that every site starts from, as the one flat array of the message that declares a run."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mammo_fed.errors import DataError
from mammo_fed.federation.protocol.task import Declaration
from mammo_fed.models.whitening import Whitening

__all__ = ["PublicPayload", "synthetic_sha256"]


@dataclass(frozen=True, kw_only=True, eq=False)
class PublicPayload:
    """No patient of the federation is in it.

    Attributes:
      whitening: public statistics.
      features: float32, shape (synthetic images, dims): the synthetic set for augmentation; no rows without it.
      labels: int64, shape (synthetic images,).
      network: float32, flat: every tensor of a backbone that was pretrained on the synthetic set, by name; empty where the
        sites use the weights they have.
    """

    whitening: Whitening
    features: NDArray[np.float32]
    labels: NDArray[np.int64]
    network: NDArray[np.float32]

    @classmethod
    def of(cls, whitening: Whitening) -> PublicPayload:
        """Public statistics alone."""
        return cls(
            whitening=whitening,
            features=np.zeros((0, whitening.dims), np.float32),
            labels=np.zeros(0, np.int64),
            network=np.zeros(0, np.float32),
        )

    def flatten(self) -> NDArray[np.float32]:
        """Mean, scale, components; features, labels; network: float32, one after the other."""
        whitening = self.whitening
        parts = (whitening.mean, whitening.scale, whitening.components, self.features, self.labels, self.network)
        return np.concatenate([np.ravel(part) for part in parts]).astype(np.float32, copy=False)

    @classmethod
    def read(cls, payload: NDArray[np.float32], declaration: Declaration) -> PublicPayload:
        """Inverse of `flatten`, checked against what the declaration says of it (the network when it is loaded).

        Raises:
          DataError: If the length or a hash is not the declared one.
        """
        dims, images = declaration.dims, declaration.synthetic_images
        statistics = len(payload) - images * (dims + 1) - declaration.network_size
        if dims < 1 or statistics <= 0 or statistics % (dims + 2):
            raise DataError("the public statistics do not have the declared shape")
        width = statistics // (dims + 2)
        whitening = Whitening(
            mean=payload[:width],
            scale=payload[width : 2 * width],
            components=payload[2 * width : statistics].reshape(width, dims),
        )
        if whitening.sha256() != declaration.whitening_sha256:
            raise DataError("the public statistics do not have the declared hash; they were changed on the way")
        ends = np.cumsum([statistics, images * dims, images])
        features = payload[ends[0] : ends[1]].reshape(images, dims)
        sent = payload[ends[1] : ends[2]]
        with np.errstate(invalid="ignore"):
            labels = sent.astype(np.int64)
        # The hash is of whole numbers: what is none, or a zero below zero, is not what was declared either.
        changed = labels.astype(np.float32).tobytes() != sent.tobytes()
        if changed or (images and synthetic_sha256(features, labels) != declaration.synthetic_sha256):
            raise DataError("the synthetic set does not have the declared hash; it was changed on the way")
        return cls(whitening=whitening, features=features, labels=labels, network=payload[ends[2] :])


def synthetic_sha256(features: NDArray[np.float32], labels: NDArray[np.int64]) -> str:
    """Hash of a synthetic set as it travels, 64 hex digits; empty for an empty set."""
    if not len(labels):
        return ""
    digest = hashlib.sha256(f"{features.shape}".encode())
    digest.update(np.ascontiguousarray(features, "<f4").tobytes())
    digest.update(np.ascontiguousarray(labels, "<i8").tobytes())
    return digest.hexdigest()
