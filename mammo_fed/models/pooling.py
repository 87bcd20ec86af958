"""From feature maps to descriptors: means, covariances of channels and their matrix square roots, under a window."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Literal

import torch
from torch import Tensor

from mammo_fed.errors import InvalidSetting

__all__ = ["NO_WINDOW", "Pooling", "Window", "pool_views", "turned"]

Pooling = Literal["mean", "mean_std", "covariance", "sqrt_covariance"]

# A narrower window could miss every position of a coarse map: all its weights would be rounded to zero.
NARROWEST: Final = 0.1


@dataclass(frozen=True, kw_only=True)
class Window:
    """How much each position of a map counts: a Gaussian around where the lesion is expected; public, the same for all patches.

    Attributes:
      sigma: standard deviation in halves of the map's side, at least 0.1; infinite counts all positions alike.
      down: how far below the middle the lesion sits, in halves of the side, in [-1, 1].
    """

    sigma: float
    down: float

    def __post_init__(self) -> None:
        if not self.sigma >= NARROWEST or not -1 <= self.down <= 1:
            raise InvalidSetting(
                f"model.window={self.sigma} must be at least {NARROWEST} and model.window_down={self.down} in [-1, 1]"
            )

    def weights(self, side: int) -> Tensor:
        """Weights that sum to 1, float32, shape (side, side)."""
        if math.isinf(self.sigma):
            return torch.full((side, side), 1 / side**2)
        place = (torch.arange(side) + 0.5) / side * 2 - 1
        squared = (place - self.down)[:, None] ** 2 + place[None, :] ** 2
        raised = torch.exp(-squared / (2 * self.sigma**2))
        weights: Tensor = raised / raised.sum()
        return weights


NO_WINDOW: Final = Window(sigma=math.inf, down=0.0)


def pool_views(maps: Tensor, pooling: Pooling, window: Window, *, average: bool) -> Tensor:
    """Descriptors of patches from the maps of their views.

    Args:
      maps: float32, shape (views, images, channels, positions): the first 1, 4 or 8 views of
        `turned`. The window is turned with them.
      pooling: "mean" over positions; "mean_std"; "covariance" of the channels (upper triangle); or its matrix square root,
        which evens out the few strongest directions.
      window: weights of the positions.
      average: over the views (before the square root); otherwise each view has its descriptor.

    Returns:
      float32, shape (images, dims), or (images, views, dims) without `average`. An image that is not finite has a descriptor
      that is not finite, and changes nobody else's.

    Source: covariance pooling with matrix square root, arXiv:1703.08050 (second-order pooling).
    """
    views, images, channels, positions = maps.shape
    weights = _turned(window, round(math.sqrt(positions)) if positions > 1 else 1, views)[:, None, None, :]
    mean = (maps * weights).sum(3)
    if pooling in ("mean", "mean_std"):
        parts = [mean]
        if pooling == "mean_std":
            parts.append(((maps - mean[..., None]).square() * weights).sum(3).sqrt())
        described = torch.cat(parts, dim=2)
        return described.mean(0) if average else described.transpose(0, 1).contiguous()
    centred = maps - mean[..., None]
    covariance = (centred * weights) @ centred.transpose(2, 3)
    kept = covariance.mean(0, keepdim=True) if average else covariance
    if pooling == "sqrt_covariance":
        kept = _square_root(kept)
    upper = torch.triu_indices(channels, channels)
    described = kept[:, :, upper[0], upper[1]].transpose(0, 1).contiguous()
    return described.view(images, -1) if average else described


def turned(squares: Tensor) -> list[Tensor]:
    """The eight views of squares (..., side, side): as is, mirrored, upside down, both; and the same of their transposes."""
    views = []
    for square in (squares, squares.transpose(-1, -2)):
        views += [square, square.flip(-1), square.flip(-2), square.flip(-1, -2)]
    return views


def _turned(window: Window, side: int, views: int) -> Tensor:
    """The window for each view, shape (views, positions)."""
    return torch.stack(turned(window.weights(side))[:views]).flatten(1)


def _square_root(matrices: Tensor) -> Tensor:
    """Square roots of positive semi-definite matrices (..., n, n); one that is not finite gives NaN, and is not decomposed."""
    finite = torch.isfinite(matrices).all(-1).all(-1)[..., None, None]
    values, vectors = torch.linalg.eigh(torch.where(finite, matrices, 0.0).double())
    roots = (vectors * values.clamp(min=0).sqrt()[..., None, :]) @ vectors.transpose(-1, -2)
    return torch.where(finite, roots, math.nan).to(matrices.dtype)
