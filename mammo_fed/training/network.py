"""Pretraining a whole network on the shared synthetic set: once, at the server, before any patient is touched."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mammo_fed.models.backbones import BackboneSpec, load_backbone, trainable_copy
from mammo_fed.models.features import resize
from mammo_fed.models.heads import HeadSpec, build_head, flatten, head_loss

__all__ = ["NetworkPretraining", "pretrain_network"]


@dataclass(frozen=True, kw_only=True)
class NetworkPretraining:
    """How a network is pretrained: AdamW on random batches of randomly flipped synthetic images.

    Attributes:
      epochs: passes over the set, >= 1.
      batch_size, learning_rate, weight_decay, label_smoothing: of AdamW and the cross-entropy.
      image_size: side in pixels that patches are resized to.
      seed: order, flips and the head's initialisation.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    label_smoothing: float
    image_size: int
    seed: int


def pretrain_network(
    spec: BackboneSpec,
    head: HeadSpec,
    pixels: NDArray[np.float32],
    labels: NDArray[np.int64],
    *,
    plan: NetworkPretraining,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> tuple[nn.Module, NDArray[np.float32]]:
    """Train backbone and head together on images with no patient of the federation behind them.

    Guarantee: no patient's data enters; what the generator of the images saw is the provenance's matter.

    Args:
      spec: where the backbone starts; what it gives at its tap, averaged over positions, feeds the head.
      head: shape of the head; dims must be the backbone's.
      pixels: float32 in [0, 1], shape (images, height, width).
      labels: int64, shape (images,), 1 = malignant.
      plan: hyper-parameters.
      progress: called with (images done, images in all, over all epochs).

    Returns:
      The network in evaluation mode, and the flat head.

    Source: arXiv:2407.12669, the pretraining of its code: AdamW, cross-entropy with label smoothing, random flips. Its
    stochastic depth is kept for training, where it belongs. Batch normalisation keeps the statistics that it came with
    (Swin has none): re-estimated on synthetic images, they cost .05 of AUROC on patients.
    """
    start = load_backbone(spec, image_size=plan.image_size)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network: Any = trainable_copy(start, image_size=plan.image_size)
    network = network.to(device, memory_format=torch.channels_last)
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            # Statistics of synthetic images would not fit patients; scale and shift are trained.
            layer.eval()
    module = build_head(head, seed=plan.seed).to(device)
    parameters = [*network.parameters(), *module.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=plan.learning_rate, weight_decay=plan.weight_decay)
    draws = np.random.default_rng(plan.seed)
    mean, std = start.mean.view(1, 3, 1, 1).to(device), start.std.view(1, 3, 1, 1).to(device)
    done, total = 0, plan.epochs * len(labels)
    with torch.random.fork_rng(devices=[]):
        # Stochastic depth draws from torch's own generator.
        torch.manual_seed(plan.seed)
        for _ in range(plan.epochs):
            for rows in _batches(draws.permutation(len(labels)), plan.batch_size):
                images = _flipped(resize(torch.from_numpy(pixels[rows]), plan.image_size), draws).to(device)
                batch = ((images[:, None].expand(-1, 3, -1, -1) - mean) / std).contiguous(memory_format=torch.channels_last)
                optimizer.zero_grad()
                pooled = _pooled(network, batch, spec.tap)
                truth = torch.from_numpy(labels[rows]).to(device)
                head_loss(module(pooled), truth, label_smoothing=plan.label_smoothing).mean().backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                done += len(rows)
                progress(done, total)
    return network.cpu().eval().requires_grad_(False), flatten(module.cpu())


def _pooled(network: Any, batch: Tensor, tap: int | None) -> Tensor:
    """What the head sees: the network's own pooled output, or the mean of the feature map at the tap."""
    if tap is None:
        own: Tensor = network.forward_head(network.forward_features(batch), pre_logits=True)
        return own.flatten(1)
    (maps,) = network.forward_intermediates(batch, indices=[tap], stop_early=True, intermediates_only=True, output_fmt="NCHW")
    mean: Tensor = maps.flatten(2).mean(2)
    return mean


def _batches(order: NDArray[np.int64], size: int) -> list[NDArray[np.int64]]:
    """Rows in batches; a last batch of one joins the one before it, since normalisation over one image is none."""
    cuts = list(range(size, len(order), size))
    if cuts and len(order) - cuts[-1] < 2:
        cuts.pop()
    return np.split(order, cuts)


def _flipped(images: Tensor, draws: np.random.Generator) -> Tensor:
    """Each image mirrored with probability one half, and turned upside down with probability one half."""
    for axis in (-1, -2):
        chosen = torch.from_numpy(draws.random(len(images)) < 0.5)[:, None, None]
        images = torch.where(chosen, images.flip(axis), images)
    return images
