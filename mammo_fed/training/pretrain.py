"""Pretraining the head on the shared synthetic set: once, at the server, before any patient is touched."""

from __future__ import annotations

from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from mammo_fed.models.heads import HeadSpec, build_head, flatten, head_loss

__all__ = ["pretrain_head"]

STEPS: Final = 200
LEARNING_RATE: Final = 0.02
# Strong enough that a head fitted to a generator's artefacts stays small beside what patients teach it.
WEIGHT_DECAY: Final = 0.01


def pretrain_head(
    spec: HeadSpec, features: NDArray[np.float32], labels: NDArray[np.int64], *, seed: int, steps: int = STEPS
) -> NDArray[np.float32]:
    """Fit a fresh head to synthetic images, full batch, deterministic in `seed`.

    Guarantee: no patient's data enters; what the generator of the images saw is the provenance's matter.

    Args:
      spec: shape of the head.
      features: float32, shape (images, dims), of the synthetic set.
      labels: int64, shape (images,), 1 = malignant.
      seed: initialisation.
      steps: number of full-batch Adam steps; 0 returns the initialisation.

    Returns:
      The flat head, float32, shape (spec.num_parameters,).
    """
    head = build_head(spec, seed=seed)
    if steps == 0:
        return flatten(head)
    optimizer = torch.optim.Adam(head.parameters(), lr=LEARNING_RATE)
    inputs, targets = torch.from_numpy(np.array(features)), torch.from_numpy(np.array(labels))
    for _ in range(steps):
        optimizer.zero_grad()
        penalty = sum(parameter.square().sum() for parameter in head.parameters())
        loss = head_loss(head(inputs), targets, label_smoothing=0.0).mean() + 0.5 * WEIGHT_DECAY * penalty
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return flatten(head)
