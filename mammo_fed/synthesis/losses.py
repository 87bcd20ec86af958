"""What generator and discriminator aim at, split into what depends on real images and what does not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeAlias

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, mse_loss

__all__ = ["GanLoss", "generator_loss", "gradient_penalty", "discriminator_loss"]

GanLoss: TypeAlias = Literal["bce", "lsgan", "wgan_gp"]


def discriminator_loss(logits: Tensor, *, real: bool, loss: GanLoss, smoothing: float) -> Tensor:
    """The discriminator's loss of each image, shape (batch,), for images that it should call real, or not.

    Smoothing is one-sided: real images aim at 1 - smoothing, others at 0 (arXiv:1606.03498).
    Source: BCE arXiv:1406.2661, least squares arXiv:1611.04076, Wasserstein arXiv:1704.00028.
    """
    if loss == "wgan_gp":
        return -logits if real else logits
    target = torch.full_like(logits, 1 - smoothing if real else 0.0)
    if loss == "lsgan":
        return mse_loss(logits, target, reduction="none")
    return binary_cross_entropy_with_logits(logits, target, reduction="none")


def generator_loss(logits: Tensor, *, loss: GanLoss) -> Tensor:
    """Mean loss of generated images that should be called real; no real image is in it."""
    if loss == "wgan_gp":
        return -logits.mean()
    target = torch.ones_like(logits)
    return mse_loss(logits, target) if loss == "lsgan" else binary_cross_entropy_with_logits(logits, target)


def gradient_penalty(
    discriminator: Callable[[Tensor, Tensor], Tensor], real: Tensor, fake: Tensor, labels: Tensor, mix: Tensor
) -> Tensor:
    """(norm of the gradient at a mixture of each real image with its generated partner, less 1) squared, shape (batch,).

    It depends on real images, and is clipped with the rest of their unit's loss.
    Source: arXiv:1704.00028, Eq. 3.
    """
    share = mix[:, None, None, None]
    between = (share * real + (1 - share) * fake).requires_grad_()
    (gradients,) = torch.autograd.grad(discriminator(between, labels).sum(), between, create_graph=True)
    penalty: Tensor = (gradients.flatten(1).norm(dim=1) - 1).square()
    return penalty
