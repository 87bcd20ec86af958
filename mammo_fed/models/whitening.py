"""Public statistics that turn descriptors into unit-norm features: standardise, principal components, normalise."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mammo_fed.errors import DataError, InvalidSetting

__all__ = ["Whitening", "centre_and_normalise", "contributing_rows", "finite_rows", "fit_whitening", "unit_rows"]

FLOOR: Final = 1e-6
TINY: Final = 1e-12


@dataclass(frozen=True, kw_only=True, eq=False)
class Whitening:
    """An affine map from descriptors to features, fitted on public images only.

    Attributes:
      mean: float32, shape (descriptor dims,): mean of the public descriptors.
      scale: float32, shape (descriptor dims,): divisor of each descriptor dimension, > 0.
      components: float32, shape (descriptor dims, dims): principal directions, each scaled by eigenvalue^(-power / 2).
    """

    mean: NDArray[np.float32]
    scale: NDArray[np.float32]
    components: NDArray[np.float32]

    @property
    def dims(self) -> int:
        """Number of features."""
        return int(self.components.shape[1])

    def __call__(self, blocks: Sequence[NDArray[np.float32]], *, normalize: bool = True) -> NDArray[np.float32]:
        """Features.

        Args:
          blocks: descriptors, one float32 array (images, block dims) per network, or (images, views, block dims).
          normalize: bring every row to norm 1.

        Returns:
          float32, shape (images, dims) or (images, views, dims). A row that is not finite becomes zero: it may belong to a
          patient, and failing on it would reveal that.
        """
        if blocks[0].ndim == 3:
            flat = self([block.reshape(-1, block.shape[2]) for block in blocks], normalize=normalize)
            return flat.reshape(*blocks[0].shape[:2], self.dims)
        width = sum(block.shape[1] for block in blocks)
        if width != len(self.mean):
            raise DataError(
                f"descriptors have {width} dimensions, the whitening {len(self.mean)}: other model settings made it"
            )
        rows = [
            ((np.concatenate([block[start : start + 256] for block in blocks], axis=1) - self.mean) / self.scale)
            @ self.components
            for start in range(0, len(blocks[0]), 256)
        ]
        return unit_rows(np.concatenate(rows)) if normalize else finite_rows(np.concatenate(rows))

    def as_arrays(self) -> dict[str, NDArray[Any]]:
        """The arrays by name, for a file or a message."""
        return {"mean": self.mean, "scale": self.scale, "components": self.components}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Whitening:
        """Inverse of `as_arrays`.

        Raises:
          DataError: If an array is missing or the shapes do not fit together.
        """
        try:
            mean, scale, components = (np.asarray(arrays[name], np.float32) for name in ("mean", "scale", "components"))
        except KeyError as error:
            raise DataError(f"whitening statistics lack the array {error}") from error
        if mean.ndim != 1 or mean.shape != scale.shape or components.ndim != 2 or len(components) != len(mean):
            raise DataError("whitening statistics have shapes that do not fit together")
        return cls(mean=mean, scale=scale, components=components)

    def sha256(self) -> str:
        """Hash over the arrays' shapes and bytes, 64 hex digits."""
        digest = hashlib.sha256()
        for name, array in sorted(self.as_arrays().items()):
            digest.update(f"{name}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array, np.float32).tobytes())
        return digest.hexdigest()


def fit_whitening(
    blocks: Sequence[NDArray[np.float32]], *, dims: int, power: float, weights: Sequence[float] = ()
) -> Whitening:
    """Fit standardisation and principal components on PUBLIC descriptors.

    Every block is standardised and divided by the root of its width, so that all networks weigh the same. Signs of the
    components are fixed (largest entry positive).

    Guarantee: none is needed, because no patient's data enters; never call it on a site's cohort.

    Args:
      blocks: descriptors of the shared synthetic set, one float32 array (images, block dims) per network.
      dims: number of components; at most images - 1 are kept; 0 leaves descriptors as they are.
      weights: how much each block counts; empty counts all alike.
      power: how far variances are evened out: 0 keeps them, 1 whitens fully; in [0, 1].

    Raises:
      InvalidSetting: If `dims` or `power` is out of its range.
      DataError: If there are fewer than two images or a descriptor is not finite.
    """
    if dims < 0:
        raise InvalidSetting(f"dims={dims} must be at least 0; check model.components")
    if dims == 0:
        width = sum(block.shape[1] for block in blocks)
        return Whitening(
            mean=np.zeros(width, np.float32), scale=np.ones(width, np.float32), components=np.eye(width, dtype=np.float32)
        )
    if not 0 <= power <= 1:
        raise InvalidSetting(f"power={power} must be in [0, 1]; check model.whitening_power")
    count = len(blocks[0])
    if count < 2 or not all(np.isfinite(block).all() for block in blocks):
        raise DataError("whitening needs at least two public images with finite descriptors; check synthesis.source")
    mean = np.concatenate([block.mean(0, dtype=np.float64) for block in blocks])
    counts = weights or [1.0] * len(blocks)
    scale = np.concatenate(
        [
            (block.std(0, dtype=np.float64) + FLOOR) * np.sqrt(block.shape[1]) / weight
            for block, weight in zip(blocks, counts, strict=True)
        ]
    )
    rows = (np.concatenate(list(blocks), axis=1) - mean.astype(np.float32)) / scale.astype(np.float32)
    # The Gram matrix is (images x images): far smaller than the covariance of ten thousand descriptor dimensions.
    values, vectors = np.linalg.eigh((rows @ rows.T).astype(np.float64) / count)
    kept = min(dims, count - 1, int((values > values[-1] * 1e-9).sum()))
    values, vectors = values[::-1][:kept], vectors[:, ::-1][:, :kept]
    directions = rows.T.astype(np.float32) @ (vectors / np.sqrt(values * count)).astype(np.float32)
    signs = np.sign(directions[np.abs(directions).argmax(0), np.arange(kept)])
    components = directions * (signs * values ** (-power / 2)).astype(np.float32)
    return Whitening(mean=mean.astype(np.float32), scale=scale.astype(np.float32), components=components.astype(np.float32))


def finite_rows(rows: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    """Rows as they are, float32; a row that is not finite becomes zero."""
    kept: NDArray[np.float32] = np.where(np.isfinite(rows).all(axis=1, keepdims=True), rows, 0.0).astype(np.float32)
    return kept


def contributing_rows(features: NDArray[np.float32], present: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Features as they enter releases: zeros, which every mechanism counts as nothing, for images that show nothing.

    A network gives a black image a descriptor like any other, which would be a contribution of its own.

    Args:
      features: float32, shape (images, dims) or (images, views, dims).
      present: bool, shape (images,); see mammo_fed.data.cohort.Cohort.present.
    """
    if present.all():
        return features
    return np.where(present.reshape(-1, *[1] * (features.ndim - 1)), features, np.float32(0))


def unit_rows(rows: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    """Rows divided by their norm, float32; a zero row stays zero, a row that is not finite becomes zero."""
    clean = np.where(np.isfinite(rows).all(axis=1, keepdims=True), rows, 0.0)
    norms = np.linalg.norm(clean.astype(np.float64), axis=1, keepdims=True)
    unit: NDArray[np.float32] = (clean / np.maximum(norms, TINY)).astype(np.float32)
    return unit


def centre_and_normalise(
    features: NDArray[np.float32], feature_mean: NDArray[np.float32], *, normalize: bool = True
) -> NDArray[np.float32]:
    """Subtract the aggregated (private) mean and renormalise; a zero feature vector stays zero.

    Args:
      features: float32, shape (images, dims) or (images, views, dims), rows of norm 1 or 0 if `normalize`.
      feature_mean: float32, shape (dims,); where it is zero, the features are returned as they are.
      normalize: bring every row to norm 1 again.
    """
    if not feature_mean.any():
        return features
    if features.ndim == 3:
        flat = centre_and_normalise(features.reshape(-1, features.shape[2]), feature_mean, normalize=normalize)
        return flat.reshape(features.shape)
    present = np.any(features != 0, axis=1, keepdims=True)
    moved = np.where(present, features - feature_mean, np.float32(0))
    return unit_rows(moved) if normalize else finite_rows(moved)
