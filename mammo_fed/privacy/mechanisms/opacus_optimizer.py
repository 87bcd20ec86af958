"""Opacus' optimizer behind gradients that were clipped and summed before it sees them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from opacus.optimizers import DPOptimizerFastGradientClipping
from torch import Tensor

__all__ = ["UnitOptimizer"]


class UnitOptimizer(DPOptimizerFastGradientClipping):  # type: ignore[misc]
    """Opacus' optimizer for gradients that are clipped and summed already, with noise from a numpy generator.

    Guarantee: every step is one Gaussian mechanism on the sum of unit gradients, each of norm at most `max_grad_norm`.
    Edge cases: an empty Poisson batch still adds noise.
    """

    def noisy(self, clipped: Sequence[Tensor], *, noise: np.random.Generator) -> list[Tensor]:
        """One step's clipped sum with its noise, a tensor for each parameter."""
        self._noise = noise
        self.zero_grad()
        for parameter, gradient in zip(self.params, clipped, strict=True):
            parameter.grad = gradient
        self.pre_step()
        return [parameter.grad for parameter in self.params]

    def accumulate(self) -> None:
        """Take the clipped sum as it is: each step has one, and nobody else holds it, so it need not be copied."""
        for parameter in self.params:
            parameter.summed_grad = parameter.grad

    def add_noise(self) -> None:
        """Add Gaussian noise of standard deviation noise_multiplier * max_grad_norm to the clipped sum."""
        scale = self.noise_multiplier * self.max_grad_norm
        for parameter in self.params:
            drawn = torch.from_numpy(self._noise.standard_normal(tuple(parameter.shape), dtype=np.float32))
            parameter.grad = drawn.mul_(scale).add_(parameter.summed_grad)
