"""Differentiable augmentation: what the discriminator sees is moved, dimmed and covered, real and generated images alike.

With few images a discriminator learns them by heart; one that never sees the same image twice cannot. The generator learns the
images as they are, because its own are changed in the same way before it sees them.

Source: arXiv:2006.10738.
"""

from __future__ import annotations

from typing import Final, Literal, TypeAlias

import torch
from torch import Tensor

__all__ = ["Augmentation", "augmented", "draws_for"]

Augmentation: TypeAlias = Literal["brightness", "contrast", "translation", "cutout"]
# Shares of the side: how far an image is moved, and how large the patch that is covered.
MOVED: Final = 0.125
COVERED: Final = 0.5
BRIGHTER: Final = 0.5


def augmented(images: Tensor, kinds: tuple[Augmentation, ...], draws: Tensor) -> Tensor:
    """Images with every one changed in its own way, none by another's content.

    Args:
      images: shape (batch, 1, side, side), in [-1, 1].
      kinds: what is done, in this order: brightness, contrast, translation, cutout.
      draws: uniform numbers in [0, 1), shape (batch, 6), one row an image.

    Returns:
      Images of the same shape; gradients pass through.
    """
    at = draws[:, :, None, None, None]
    if "brightness" in kinds:
        images = images + (at[:, 0] - 0.5) * BRIGHTER
    if "contrast" in kinds:
        mean = images.mean(dim=(1, 2, 3), keepdim=True)
        images = (images - mean) * (at[:, 1] + 0.5) + mean
    if "translation" in kinds:
        images = _moved(images, draws[:, 2:4])
    if "cutout" in kinds:
        images = _covered(images, draws[:, 4:6])
    return images


def draws_for(count: int, generator: torch.Generator) -> Tensor:
    """Uniform numbers for `count` images."""
    return torch.rand(count, 6, generator=generator)


def _moved(images: Tensor, draws: Tensor) -> Tensor:
    """Moved by up to an eighth of the side either way; what comes into view mirrors what was there."""
    side = images.shape[-1]
    most = round(side * MOVED)
    shifts = (draws * (2 * most + 1)).floor().long() - most
    padded = torch.nn.functional.pad(images, (most,) * 4, mode="reflect")
    places = torch.arange(side, device=images.device)[None] + most
    rows, columns = places + shifts[:, :1], places + shifts[:, 1:]
    batch = torch.arange(len(images), device=images.device)[:, None, None]
    return padded[batch, 0, rows[:, :, None], columns[:, None, :]][:, None]


def _covered(images: Tensor, draws: Tensor) -> Tensor:
    """A square of half the side covered by mid grey, its centre anywhere."""
    side = images.shape[-1]
    half = side * COVERED / 2
    places = torch.arange(side, dtype=images.dtype, device=images.device)
    within = ((places[None, None] - (draws * side)[:, :, None]).abs() < half).to(images.dtype)
    hidden = within[:, 0, :, None] * within[:, 1, None, :]
    return images * (1 - hidden[:, None])
