"""Trainable heads on cached features, as one flat float32 vector each."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mammo_fed.errors import InvalidSetting

__all__ = ["HeadKind", "HeadSpec", "build_head", "flatten", "head_loss", "load_flat", "malignancy_score"]

HeadKind = Literal["linear", "mlp"]


@dataclass(frozen=True, kw_only=True)
class HeadSpec:
    """Shape of a head; the flat vector that travels has `num_parameters` entries.

    Attributes:
      kind: "linear" (one logit, weights then bias) or "mlp" (the paper's dims -> hidden -> 2 with LeakyReLU 0.2).
      dims: number of input features.
      hidden: width of the hidden layer of "mlp".
      bias_scale: constant that the bias is multiplied by, >= 0; small values keep a noisy bias from dominating.
    """

    kind: HeadKind
    dims: int
    hidden: int = 384
    bias_scale: float = 0.2

    def __post_init__(self) -> None:
        if self.kind not in ("linear", "mlp"):
            raise InvalidSetting(f"model.head={self.kind!r} must be linear or mlp")
        if self.dims < 1 or self.hidden < 1:
            raise InvalidSetting(
                f"dims={self.dims} and hidden={self.hidden} must be at least 1; check model.components, model.hidden"
            )
        if not self.bias_scale >= 0:
            raise InvalidSetting(f"bias_scale={self.bias_scale} must be at least 0; check model.bias_scale")

    @cached_property
    def num_parameters(self) -> int:
        """Length of the flat vector."""
        if self.kind == "linear":
            return self.dims + 1
        return self.dims * self.hidden + self.hidden + self.hidden * 2 + 2


class LinearHead(nn.Module):
    """One logit: features times weights plus a scaled bias."""

    def __init__(self, spec: HeadSpec) -> None:
        super().__init__()
        self.layer = nn.Linear(spec.dims + 1, 1, bias=False)
        self.bias_scale = spec.bias_scale

    def forward(self, features: Tensor) -> Tensor:
        """Logits of shape (images, 1) for features of shape (images, dims)."""
        constant = features.new_full((len(features), 1), self.bias_scale)
        logits: Tensor = self.layer(torch.cat([features, constant], dim=1))
        return logits


def build_head(spec: HeadSpec, *, seed: int) -> nn.Module:
    """A fresh head: zeros for the linear one, PyTorch's initialisation under `seed` for the other."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if spec.kind == "mlp":
            return nn.Sequential(nn.Linear(spec.dims, spec.hidden), nn.LeakyReLU(0.2), nn.Linear(spec.hidden, 2))
        head = LinearHead(spec)
        nn.init.zeros_(head.layer.weight)
        return head


def flatten(head: nn.Module) -> NDArray[np.float32]:
    """All parameters as one float32 vector, in the module's order."""
    return torch.cat([parameter.detach().flatten() for parameter in head.parameters()]).numpy().astype(np.float32)


def load_flat(head: nn.Module, parameters: NDArray[np.float32]) -> None:
    """Write a flat vector into a head's parameters.

    Raises:
      InvalidSetting: If the vector has another length than the head has parameters.
    """
    needed = sum(parameter.numel() for parameter in head.parameters())
    if parameters.shape != (needed,):
        raise InvalidSetting(
            f"a head vector of shape {parameters.shape} must be ({needed},); server and site differ in model.head"
        )
    start = 0
    with torch.no_grad():
        for parameter in head.parameters():
            part = parameters[start : start + parameter.numel()]
            parameter.copy_(torch.from_numpy(np.array(part, np.float32)).view_as(parameter))
            start += parameter.numel()


def head_loss(logits: Tensor, labels: Tensor, *, label_smoothing: float) -> Tensor:
    """Cross-entropy per image, shape (images,), for one logit or two.

    Args:
      logits: shape (images, 1) or (images, 2).
      labels: int64, shape (images,), 1 = malignant.
      label_smoothing: in [0, 1), as in torch.nn.functional.cross_entropy with two classes.
    """
    if logits.shape[1] == 1:
        targets = labels.to(logits.dtype) * (1 - label_smoothing) + label_smoothing / 2
        return nn.functional.binary_cross_entropy_with_logits(logits[:, 0], targets, reduction="none")
    return nn.functional.cross_entropy(logits, labels, label_smoothing=label_smoothing, reduction="none")


def malignancy_score(spec: HeadSpec, parameters: NDArray[np.float32], features: NDArray[np.float32]) -> NDArray[np.float64]:
    """Probability of malignancy in [0, 1], shape (images,), for features of shape (images, dims)."""
    head = build_head(spec, seed=0)
    load_flat(head, parameters)
    with torch.inference_mode():
        logits = head(torch.from_numpy(np.array(features, np.float32))).double()
        score = torch.sigmoid(logits[:, 0]) if logits.shape[1] == 1 else torch.softmax(logits, dim=1)[:, 1]
    return score.numpy()
