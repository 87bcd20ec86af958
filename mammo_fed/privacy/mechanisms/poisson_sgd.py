"""Poisson-sampled DP-SGD for any head, clipped once per protected unit: on Opacus in floating point, or on the grid."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mammo_fed.errors import InvalidSetting
from mammo_fed.privacy.events import PrivacyEvent
from mammo_fed.privacy.mechanisms.ghost_clipping import clipped_gradient_sum
from mammo_fed.privacy.names import LocalOptimizer
from mammo_fed.privacy.noise import Draws, grid_sum

if TYPE_CHECKING:
    from mammo_fed.privacy.mechanisms.opacus_optimizer import UnitOptimizer

__all__ = ["OptimizerState", "PoissonData", "PublicBatches", "poisson_steps"]

OptimizerState: TypeAlias = MutableMapping[str, Any]
"""The local optimizer's moments between rounds: made from noisy gradients alone, so they may be kept, at the site."""
# Numbers of unit gradients that are rounded and summed at a time.
BLOCK_NUMBERS: Final = 1 << 18


@dataclass(frozen=True, kw_only=True, eq=False)
class PoissonData:
    """What Poisson DP-SGD draws from.

    Attributes:
      features: float32, shape (images, dims), or (images, views, dims): each image that takes part in a step is then seen in
        one view, drawn for that step.
      labels: int64, shape (images,), 1 = malignant.
      units: int64, shape (images,), dense index of the protected unit.
    """

    features: NDArray[np.float32]
    labels: NDArray[np.int64]
    units: NDArray[np.int64]

    @property
    def num_units(self) -> int:
        """Number of units."""
        return len(self.by_unit[1]) - 1

    @cached_property
    def by_unit(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Rows in the order of their units, and where each unit's begin there, with the end; sorted once."""
        count = int(self.units.max()) + 1 if len(self.units) else 0
        order = np.argsort(self.units, kind="stable")
        return order, np.searchsorted(self.units[order], np.arange(count + 1))


@dataclass(frozen=True, kw_only=True, eq=False)
class PublicBatches:
    """Images with no patient behind them, whose gradient is added to every step after the noise, at no privacy cost.

    Attributes:
      features: float32, shape (images, dims).
      labels: int64, shape (images,).
      batch_size: images drawn for a step, >= 1.
      weight: of their mean gradient relative to the private one, >= 0.
    """

    features: NDArray[np.float32]
    labels: NDArray[np.int64]
    batch_size: int
    weight: float


def poisson_steps(
    head: nn.Module,
    data: PoissonData,
    *,
    loss: Callable[[Tensor, Tensor], Tensor],
    event: PrivacyEvent,
    public_images: int,
    learning_rate: float,
    weight_decay: float,
    optimizer: LocalOptimizer,
    proximal: float,
    noise: Draws,
    sampling: Draws,
    public: PublicBatches | None = None,
    state: OptimizerState | None = None,
) -> None:
    """Take `event.steps` steps of Poisson DP-SGD on `head`, in place.

    Guarantee: `event.steps` adaptive Poisson-subsampled Gaussian mechanisms over units, with sampling rate
    `event.sample_rate`, sensitivity `event.clipping_norm` and noise multiplier `event.noise_multiplier`.
    Neighbouring cohorts: one unit contributes nothing; the cohort's size is public.
    Edge cases: an empty batch is a step of noise alone: skipping it would reveal that it was empty.

    On the grid one unit at a time goes through `head`, so that its contribution is a function of its own data, bit for bit; in
    floating point unit norms and the clipped sum come from one pass over all images drawn (see ghost_clipping), and
    the noise is Opacus' optimizer's.

    Args:
      head: module from features (images, dims) to logits; only Linear layers and activations.
      data: the site's features.
      loss: per-image loss of (logits, labels), shape (images,).
      event: the one that the ledger has reserved for these steps.
      public_images: images at the site, declared public; the denominator is sample_rate * public_images.
      learning_rate: local step size, > 0.
      weight_decay: of the local optimizer, >= 0.
      optimizer: "sgd" or "adamw".
      proximal: FedProx's mu, >= 0; uses no patient's data.
      noise: draws for the noise alone; their kind decides between the grid and floating point.
      sampling: draws for the Poisson sampling, and for views and public batches.
      public: public images that are trained on next to the private ones.
      state: the local optimizer's state, taken up and left behind; None starts afresh.

    Raises:
      InvalidSetting: If the event is not about gradients, or `public_images` < 1.

    Source: Abadi et al., arXiv:1607.00133, Alg. 1; per-user sampling and clipping, arXiv:2407.07737 (ULS).
    """
    if event.mechanism != "gradient" or public_images < 1:
        raise InvalidSetting(f"event={event} must be gradient steps and public_images={public_images} at least 1")
    start = [parameter.detach().clone() for parameter in head.parameters()]
    inner: torch.optim.Optimizer
    if optimizer == "sgd":
        inner = torch.optim.SGD(head.parameters(), lr=learning_rate, weight_decay=weight_decay)
    else:
        inner = torch.optim.AdamW(head.parameters(), lr=learning_rate, weight_decay=weight_decay, fused=True)
    if state:
        # The moments alone: step size and weight decay are this round's.
        inner.load_state_dict({**inner.state_dict(), "state": state["optimizer"]})
    gradients = _HeadGradients(head, inner, data, loss=loss, event=event, sampling=sampling)
    batch = event.sample_rate * public_images
    for _ in range(event.steps):
        drawn = sampling.poisson_sample(gradients.num_units, sample_rate=event.sample_rate)
        released = noise.release(_DrawnSum(gradients=gradients, drawn=drawn), event=event)
        _set_gradients(head, torch.from_numpy(released / batch))
        if public is not None and public.weight > 0:
            _add_public(head, public, loss=loss, sampling=sampling)
        inner.step()
        if proximal > 0:
            _pull_back(head, start, learning_rate * proximal)
    if state is not None:
        state["optimizer"] = inner.state_dict()["state"]


class _HeadGradients:
    """Gradients of a head over a site's images, with what all steps need once; rows are kept in the order of their units."""

    def __init__(
        self,
        head: nn.Module,
        inner: torch.optim.Optimizer,
        data: PoissonData,
        *,
        loss: Callable[[Tensor, Tensor], Tensor],
        event: PrivacyEvent,
        sampling: Draws,
    ) -> None:
        self.head, self.parameters = head, list(head.parameters())
        self.num_units = data.num_units
        self.dims = sum(parameter.numel() for parameter in self.parameters)
        self._inner, self._data, self._loss, self._event, self._sampling = inner, data, loss, event, sampling
        self._order, self._starts = data.by_unit

    @cached_property
    def optimizer(self) -> UnitOptimizer:
        """Opacus' optimizer; it is slow to import, and full-batch descent and the grid, which are the defaults, do without."""
        from mammo_fed.privacy.mechanisms.opacus_optimizer import UnitOptimizer

        return UnitOptimizer(
            self._inner,
            noise_multiplier=self._event.noise_multiplier,
            max_grad_norm=self._event.clipping_norm,
            expected_batch_size=None,
            loss_reduction="sum",
        )

    def of_unit(self, unit: int) -> NDArray[np.float64]:
        """Gradient of one unit's summed loss, float64, shape (dims,)."""
        rows = self._order[self._starts[unit] : self._starts[unit + 1]]
        # Copied, because torch aligns its own memory: BLAS may round differently at another alignment.
        features = np.array(self._views(rows))
        losses = self._loss(self.head(torch.tensor(features)), torch.tensor(self._data.labels[rows]))
        loss = (losses * _present(features)).sum()
        gradients = torch.autograd.grad(loss, self.parameters)
        return torch.cat([gradient.flatten() for gradient in gradients]).double().numpy()

    def clipped(self, drawn: NDArray[np.int64], *, clipping_norm: float) -> list[Tensor]:
        """The sum of the drawn units' clipped gradients in one pass, a tensor for each parameter."""
        # A step reads the rows of who was drawn and no more.
        sizes = self._starts[drawn + 1] - self._starts[drawn]
        within = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        rows = self._order[np.repeat(self._starts[drawn], sizes) + within]
        features = self._views(rows)
        labels, present = torch.from_numpy(self._data.labels[rows]), _present(features)
        return clipped_gradient_sum(
            self.head,
            torch.from_numpy(features),
            lambda logits: self._loss(logits, labels) * present,
            units=torch.from_numpy(np.repeat(np.arange(len(drawn)), sizes)),
            num_units=len(drawn),
            clipping_norm=clipping_norm,
        )

    def _views(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Features of some images, shape (images, dims), each in a view drawn at random where there are several."""
        features = self._data.features
        if features.ndim == 2:
            return features[rows]
        return features[rows, self._sampling.integers(features.shape[1], size=len(rows))]


@dataclass(frozen=True, kw_only=True, eq=False)
class _DrawnSum:
    """The sum of the clipped gradients of the units drawn for one step."""

    gradients: _HeadGradients
    drawn: NDArray[np.int64]

    def on_grid(self, *, clipping_norm: float) -> NDArray[np.int64]:
        total = np.zeros(self.gradients.dims, np.int64)
        units_per_block = max(1, BLOCK_NUMBERS // len(total))
        for first in range(0, len(self.drawn), units_per_block):
            block = self.drawn[first : first + units_per_block]
            total += grid_sum(np.stack([self.gradients.of_unit(unit) for unit in block]), clipping_norm=clipping_norm)
        return total

    def in_floating_point(self, *, event: PrivacyEvent, noise: np.random.Generator) -> NDArray[np.floating[Any]]:
        clipped = self.gradients.clipped(self.drawn, clipping_norm=event.clipping_norm)
        noisy: NDArray[np.float32] = torch.cat(
            [gradient.flatten() for gradient in self.gradients.optimizer.noisy(clipped, noise=noise)]
        ).numpy()
        return noisy


def _set_gradients(head: nn.Module, flat: Tensor) -> None:
    parameters = list(head.parameters())
    for parameter, part in zip(parameters, torch.split(flat, [one.numel() for one in parameters]), strict=True):
        parameter.grad = part.view_as(parameter).to(parameter.dtype)


def _add_public(head: nn.Module, public: PublicBatches, *, loss: Callable[[Tensor, Tensor], Tensor], sampling: Draws) -> None:
    """Add the mean gradient of a batch of public images to the private gradient, which has its noise already."""
    rows = sampling.integers(len(public.labels), size=public.batch_size)
    losses = loss(head(torch.from_numpy(public.features[rows])), torch.from_numpy(public.labels[rows]))
    parameters = list(head.parameters())
    for parameter, gradient in zip(parameters, torch.autograd.grad(losses.mean(), parameters), strict=True):
        parameter.grad = gradient * public.weight if parameter.grad is None else parameter.grad + gradient * public.weight


def _present(features: NDArray[np.float32]) -> Tensor:
    """1 for an image, 0 for one whose features are all zero: it gives nothing, not even to a bias."""
    return torch.from_numpy(np.any(features != 0, axis=1).astype(np.float32))


def _pull_back(head: nn.Module, start: list[Tensor], step: float) -> None:
    with torch.no_grad():
        for parameter, origin in zip(head.parameters(), start, strict=True):
            # Implicit, so that the pull never overshoots however large the step is.
            parameter.copy_((parameter + step * origin) / (1 + step))
