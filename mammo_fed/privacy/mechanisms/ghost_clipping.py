"""Clipped sums of unit gradients for heads of Linear layers, without ever forming a unit's gradient ("ghost clipping")."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn

from mammo_fed.errors import InvalidSetting
from mammo_fed.privacy.noise import clip_factors

__all__ = ["clipped_gradient_sum"]

# Part of the lengths of a unit's addends that its norm is raised by: far above what float32 sums of them can lose.
ROUNDING: Final = 1e-6
# Norms of what enters a layer, and of an image's gradient, beyond which float32 cannot hold the scaled addends well enough.
LARGEST_INPUT: Final = 1e18
LARGEST_GRADIENT: Final = 1e30


@dataclass(frozen=True, kw_only=True, eq=False)
class _Layer:
    """A Linear layer with what went in and the gradient of the summed loss with respect to what came out; a row an image."""

    layer: nn.Linear
    inputs: Tensor
    deltas: Tensor


def clipped_gradient_sum(
    head: nn.Module,
    features: Tensor,
    loss: Callable[[Tensor], Tensor],
    *,
    units: Tensor,
    num_units: int,
    clipping_norm: float,
) -> list[Tensor]:
    """Sum over units of each unit's gradient, clipped as a whole.

    A unit's gradient of a Linear layer is sum_i outer(delta_i, input_i) over its images, so its squared norm is
    sum_ij (delta_i . delta_j) (input_i . input_j), and the clipped sum is one product of matrices.

    Guarantee: no unit contributes more than `clipping_norm` in norm over all parameters together, biases included. Norms are in
    float64 and are raised by 1e-6 of the lengths of a unit's addends, so that rounding in the float32 sum stays within the clip
    also where a unit's images cancel.
    Neighbouring cohorts: one unit contributes nothing: its images are removed, or multiplied by zero in `loss`.
    Edge cases: a unit with an image whose gradient is not finite, or so large that float32 could not scale it down to the clip,
    contributes nothing; no images give zeros.

    Args:
      head: only its Linear layers have parameters; every layer is used once in a pass.
      features: float32, shape (images, dims).
      loss: from the head's output to the loss of each image, shape (images,).
      units: int64, shape (images,), index of each image's unit, below num_units.
      num_units: number of units.
      clipping_norm: largest norm, > 0.

    Returns:
      A gradient for each parameter of `head`, in its order.

    Raises:
      InvalidSetting: If another layer than a Linear one has parameters.

    Source: arXiv:1510.01799 (norms of outer products); arXiv:2110.05679, section 4 (ghost clipping); units of several images
    here by the Gram matrices of their images.
    """
    if len(features) == 0:
        return [torch.zeros_like(parameter) for parameter in head.parameters()]
    layers = _backward(head, features, loss)
    squared = torch.zeros(num_units, dtype=torch.float64)
    lengths = torch.zeros(len(features), dtype=torch.float64)
    order = torch.argsort(units, stable=True)
    alone = len(torch.unique(units)) == len(units)
    for part in layers:
        inputs, deltas = part.inputs.double(), part.deltas.double()
        bias = 0.0 if part.layer.bias is None else 1.0
        entering = inputs.square().sum(1)
        own = (entering + bias) * deltas.square().sum(1)
        own = torch.where((entering > LARGEST_INPUT**2) | (own > LARGEST_GRADIENT**2), math.inf, own)
        lengths += own.sqrt()
        if alone:
            squared.index_add_(0, units, own)
            continue
        for rows in _blocks(units, order):
            together = (inputs[rows] @ inputs[rows].T + bias) * (deltas[rows] @ deltas[rows].T)
            same = units[rows][:, None] == units[rows][None, :]
            squared.index_add_(0, units[rows], torch.where(same, together, 0.0).sum(1))
    raised = squared.clamp(min=0.0).sqrt() + ROUNDING * torch.zeros_like(squared).index_add_(0, units, lengths)
    raised = torch.where(torch.isfinite(squared), raised, squared)
    factors = torch.from_numpy(clip_factors(raised.numpy(), clipping_norm=clipping_norm)).float()[units]
    usable = torch.isfinite(raised)[units][:, None]
    gradients: list[Tensor] = []
    for part in layers:
        deltas = torch.where(usable, part.deltas, 0.0) * factors[:, None]
        gradients.append(deltas.T @ torch.where(usable, part.inputs, 0.0))
        if part.layer.bias is not None:
            gradients.append(deltas.sum(0))
    return gradients


def _backward(head: nn.Module, features: Tensor, loss: Callable[[Tensor], Tensor]) -> list[_Layer]:
    """One pass forward and one back, keeping what each Linear layer saw; gradients of the parameters are not made."""
    linear = [module for module in head.modules() if isinstance(module, nn.Linear)]
    owned = [parameter for layer in linear for parameter in layer.parameters()]
    if [id(parameter) for parameter in owned] != [id(parameter) for parameter in head.parameters()]:
        raise InvalidSetting("a privately trained head must be made of Linear layers and activations; check model.head")
    seen: list[tuple[Tensor, Tensor]] = []

    def keep(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        seen.append((inputs[0].detach(), output))

    with ExitStack() as hooks:
        for layer in linear:
            hooks.callback(layer.register_forward_hook(keep).remove)
        losses = loss(head(features))
    deltas = torch.autograd.grad(losses.sum(), [output for _, output in seen])
    return [
        _Layer(layer=layer, inputs=inputs, deltas=delta) for layer, (inputs, _), delta in zip(linear, seen, deltas, strict=True)
    ]


def _blocks(units: Tensor, order: Tensor, size: int = 512) -> Sequence[Tensor]:
    """Rows in the order of their units, in blocks of about `size` that never part a unit."""
    ranked = units[order]
    firsts = torch.nonzero(torch.diff(ranked, prepend=ranked.new_full((1,), -1))).flatten().tolist()
    firsts.append(len(order))
    cuts = [0]
    for first, following in itertools.pairwise(firsts):
        if following - cuts[-1] > size and first > cuts[-1]:
            cuts.append(first)
    cuts.append(len(order))
    return [order[start:end] for start, end in itertools.pairwise(cuts)]
