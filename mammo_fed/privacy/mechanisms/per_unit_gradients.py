"""Noisy sums of clipped gradients for any network: one unit at a time goes through it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mammo_fed.errors import InvalidSetting
from mammo_fed.privacy.events import PrivacyEvent
from mammo_fed.privacy.noise import Draws, clip_factors, grid_sum

__all__ = ["noisy_unit_gradients"]


def noisy_unit_gradients(
    parameters: Sequence[nn.Parameter],
    unit_loss: Callable[[int], Tensor | None],
    *,
    num_units: int,
    event: PrivacyEvent,
    batch: float,
    noise: Draws,
    sampling: Draws,
) -> list[Tensor]:
    """One step's private gradient: a Poisson sample of units, each clipped as a whole, summed, with noise, over `batch`.

    Guarantee: one step of `event`, a Poisson-subsampled Gaussian mechanism over units of sensitivity `event.clipping_norm`,
    for any network and any loss, provided that `unit_loss` depends on no unit's data but its own. A unit goes through the
    network alone, so that layers that mix a batch, and rounding that depends on it, cannot carry anything over.
    Neighbouring cohorts: one unit contributes nothing, the number of units is public; `unit_loss` gives None for such a unit.
    Edge cases: an empty sample is noise alone; a unit whose gradient is not finite contributes nothing.

    Args:
      parameters: what the gradient is of.
      unit_loss: from the index of a unit to the loss of its data, or None where it contributes nothing.
      num_units: of the cohort.
      event: the one that the ledger has reserved.
      batch: public number that the sum is divided by, > 0.
      noise: draws for the noise of this step alone; their kind decides between the grid and floating point.
      sampling: draws for the Poisson sampling of this step alone.

    Returns:
      A tensor for each parameter.

    Raises:
      InvalidSetting: If the event is not about gradients, or `batch` is not above 0.

    Source: arXiv:1607.00133, Alg. 1; per-user clipping, arXiv:2407.07737 (ULS).
    """
    if event.mechanism != "gradient" or not batch > 0:
        raise InvalidSetting(f"event={event} must be gradient steps and batch={batch} above 0")
    units = sampling.poisson_sample(num_units, sample_rate=event.sample_rate)
    total = noise.release(_NetworkSum(parameters=parameters, unit_loss=unit_loss, units=units), event=event)
    parts = torch.split(torch.from_numpy(total / batch), [parameter.numel() for parameter in parameters])
    return [part.view_as(its).to(its.dtype).to(its.device) for part, its in zip(parts, parameters, strict=True)]


@dataclass(frozen=True, kw_only=True, eq=False)
class _NetworkSum:
    """The sum of the clipped gradients of some units, who go through the network one after the other."""

    parameters: Sequence[nn.Parameter]
    unit_loss: Callable[[int], Tensor | None]
    units: NDArray[np.int64]

    def on_grid(self, *, clipping_norm: float) -> NDArray[np.int64]:
        total = np.zeros(self._dims(), np.int64)
        for gradient in self._gradients():
            total += grid_sum(gradient[None], clipping_norm=clipping_norm)
        return total

    def in_floating_point(self, *, event: PrivacyEvent, noise: np.random.Generator) -> NDArray[np.floating[Any]]:
        total = np.zeros(self._dims())
        for gradient in self._gradients():
            total += _clipped(gradient, event.clipping_norm)
        return total + noise.standard_normal(len(total)) * event.noise_multiplier * event.clipping_norm

    def _dims(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters)

    def _gradients(self) -> Iterator[NDArray[np.float64]]:
        """Each unit's whole gradient, float64, shape (dims,)."""
        for unit in self.units:
            loss = self.unit_loss(int(unit))
            if loss is None:
                continue
            found = torch.autograd.grad(loss, list(self.parameters), allow_unused=True)
            flat = [
                (torch.zeros_like(its) if one is None else one).flatten()
                for its, one in zip(self.parameters, found, strict=True)
            ]
            yield torch.cat(flat).detach().double().cpu().numpy()


def _clipped(gradient: NDArray[np.float64], clipping_norm: float) -> NDArray[np.float64]:
    with np.errstate(over="ignore", invalid="ignore"):
        norm = np.linalg.norm(gradient)
    if not np.isfinite(norm):
        return np.zeros_like(gradient)
    (factor,) = clip_factors(np.array([norm]), clipping_norm=clipping_norm)
    clipped: NDArray[np.float64] = gradient * factor
    return clipped
