"""Poisson-sampled DP-SGD for any head, clipped once per protected unit: on Opacus in floating point, or on the grid."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from opacus import GradSampleModule
from opacus.optimizers import DPOptimizer
from torch import Tensor, nn

from mammo_fed.errors import InvalidSetting
from mammo_fed.privacy.clipping import clip_factors
from mammo_fed.privacy.events import PrivacyEvent
from mammo_fed.privacy.grid import SecureDraws, grid_sum, noisy_release
from mammo_fed.privacy.noise import Draws

__all__ = ["LocalOptimizer", "PoissonData", "UnitOptimizer", "poisson_steps"]

LocalOptimizer = Literal["sgd", "adamw"]
Step: TypeAlias = Callable[[NDArray[np.int64]], None]
# Numbers of unit gradients that are rounded and summed at a time.
BLOCK_NUMBERS: Final = 1 << 18


@dataclass(frozen=True, kw_only=True, eq=False)
class PoissonData:
    """What Poisson DP-SGD draws from.

    Attributes:
      features: float32, shape (images, dims).
      labels: int64, shape (images,), 1 = malignant.
      units: int64, shape (images,), dense index of the protected unit.
    """

    features: NDArray[np.float32]
    labels: NDArray[np.int64]
    units: NDArray[np.int64]


class UnitOptimizer(DPOptimizer):  # type: ignore[misc]
    """Opacus' optimizer with a unit's images summed before the clip, and noise from a numpy generator.

    Guarantee: every step is one Gaussian mechanism on the sum of unit gradients, each of norm at most `max_grad_norm`.
    Edge cases: an empty Poisson batch still adds noise; a unit whose gradient is not finite counts as zero.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, *, noise: np.random.Generator, **settings: Any) -> None:
        super().__init__(optimizer, **settings)
        self._noise = noise

    def sum_within_units(self, units: Tensor, num_units: int) -> None:
        """Replace per-image gradients by per-unit sums, clipped; `units` is the dense unit index of each image, int64."""
        summed = [
            parameter.new_zeros((num_units, *parameter.shape)).index_add_(0, units, self._get_flat_grad_sample(parameter))
            for parameter in self.params
        ]
        norms = torch.stack([gradient.flatten(1).double().norm(dim=1) for gradient in summed]).norm(dim=0)
        # Opacus would let one NaN spread over the whole sum: a unit that is not finite is put to zero, at the same cost.
        finite = torch.isfinite(norms)
        factors = torch.from_numpy(clip_factors(norms.numpy(), clipping_norm=self.max_grad_norm)).float()
        for parameter, gradient in zip(self.params, summed, strict=True):
            shape = (-1, *[1] * (gradient.dim() - 1))
            parameter.grad_sample = torch.where(finite.view(shape), gradient, 0.0) * factors.view(shape)

    def add_noise(self) -> None:
        """Add Gaussian noise of standard deviation noise_multiplier * max_grad_norm to the clipped sum."""
        for parameter in self.params:
            drawn = torch.from_numpy(self._noise.standard_normal(tuple(parameter.shape)))
            scaled = (drawn * (self.noise_multiplier * self.max_grad_norm)).to(parameter.dtype)
            parameter.grad = (parameter.summed_grad + scaled).view_as(parameter)


def poisson_steps(
    head: nn.Module,
    data: PoissonData,
    *,
    loss: Callable[[Tensor, Tensor], Tensor],
    charged: PrivacyEvent,
    public_count: int,
    learning_rate: float,
    weight_decay: float,
    optimizer: LocalOptimizer,
    proximal: float,
    noise: Draws,
    sampling: Draws,
) -> None:
    """Take `charged.steps` steps of Poisson DP-SGD on `head`, in place.

    Guarantee: `charged.steps` adaptive Poisson-subsampled Gaussian mechanisms over units, with sampling rate
    `charged.sample_rate`, sensitivity `charged.clipping_norm` and noise multiplier `charged.noise_multiplier`.
    Neighbouring cohorts: one unit's data zeroed out, the cohort's size public; a zeroed unit contributes nothing.
    Edge cases: an empty batch is a step of noise alone: skipping it would reveal that it was empty.

    On the grid one unit at a time goes through `head`, so that its contribution is a function of its own data, bit for bit; in
    floating point Opacus makes the gradients of all images drawn at once.

    Args:
      head: module from features (images, dims) to logits; only Linear layers and activations.
      data: the site's features.
      loss: per-image loss of (logits, labels), shape (images,).
      charged: the event that the ledger has reserved for these steps.
      public_count: images at the site, declared public; the denominator is sample_rate * public_count.
      learning_rate: local step size, > 0.
      weight_decay: of the local optimizer, >= 0.
      optimizer: "sgd" or "adamw".
      proximal: FedProx's mu, >= 0; uses no patient's data.
      noise: draws for the noise alone; their kind decides between the grid and floating point.
      sampling: draws for the Poisson sampling alone.

    Raises:
      InvalidSetting: If the event is not about gradients, or `public_count` < 1.

    Source: Abadi et al., arXiv:1607.00133, Alg. 1; per-user sampling and clipping, arXiv:2407.07737 (ULS).
    """
    if charged.mechanism != "gradient" or public_count < 1:
        raise InvalidSetting(f"charged={charged} must be gradient steps and public_count={public_count} at least 1")
    start = [parameter.detach().clone() for parameter in head.parameters()]
    inner: torch.optim.Optimizer
    if optimizer == "sgd":
        inner = torch.optim.SGD(head.parameters(), lr=learning_rate, weight_decay=weight_decay)
    else:
        inner = torch.optim.AdamW(head.parameters(), lr=learning_rate, weight_decay=weight_decay)
    num_units = int(data.units.max()) + 1 if len(data.units) else 0
    batch = charged.sample_rate * public_count
    plan = _Plan(head=head, inner=inner, data=data, num_units=num_units, loss=loss, charged=charged, batch=batch)
    with _grid_step(plan, noise) if isinstance(noise, SecureDraws) else _opacus_step(plan, noise) as step:
        for _ in range(charged.steps):
            step(_draw_units(num_units, charged.sample_rate, sampling))
            if proximal > 0:
                _pull_back(head, start, learning_rate * proximal)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Plan:
    """What both kinds of step need; `batch` is the expected batch, the denominator."""

    head: nn.Module
    inner: torch.optim.Optimizer
    data: PoissonData
    num_units: int
    loss: Callable[[Tensor, Tensor], Tensor]
    charged: PrivacyEvent
    batch: float


@contextmanager
def _opacus_step(plan: _Plan, noise: np.random.Generator) -> Iterator[Step]:
    """A step in floating point, for the units it is given."""
    wrapped = GradSampleModule(plan.head, loss_reduction="sum")
    private = UnitOptimizer(
        plan.inner,
        noise=noise,
        noise_multiplier=plan.charged.noise_multiplier,
        max_grad_norm=plan.charged.clipping_norm,
        expected_batch_size=plan.batch,
        loss_reduction="mean",
    )

    def step(drawn: NDArray[np.int64]) -> None:
        private.zero_grad()
        _unit_gradients(wrapped, private, plan.data, plan.loss, drawn)
        private.step()

    try:
        yield step
    finally:
        wrapped.to_standard_module()


@contextmanager
def _grid_step(plan: _Plan, noise: SecureDraws) -> Iterator[Step]:
    """A step on the grid, for the units it is given."""
    parameters = list(plan.head.parameters())
    order = np.argsort(plan.data.units, kind="stable")
    bounds = np.searchsorted(plan.data.units[order], np.arange(plan.num_units + 1))
    dims = sum(parameter.numel() for parameter in parameters)
    units_per_block = max(1, BLOCK_NUMBERS // dims)

    def step(drawn: NDArray[np.int64]) -> None:
        total = np.zeros(dims, np.int64)
        for first in range(0, len(drawn), units_per_block):
            block = drawn[first : first + units_per_block]
            gradients = np.stack([_unit_gradient(plan, parameters, order[bounds[unit] : bounds[unit + 1]]) for unit in block])
            total += grid_sum(gradients, clipping_norm=plan.charged.clipping_norm)
        released = torch.from_numpy(noisy_release(total, charged=plan.charged, draws=noise) / plan.batch)
        parts = torch.split(released, [parameter.numel() for parameter in parameters])
        for parameter, part in zip(parameters, parts, strict=True):
            parameter.grad = part.view_as(parameter).to(parameter.dtype)
        plan.inner.step()

    yield step


def _unit_gradient(plan: _Plan, parameters: list[nn.Parameter], rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """Gradient of one unit's summed loss, float64, shape (parameters,)."""
    # Copied, because torch aligns its own memory: BLAS may round differently at another alignment.
    logits = plan.head(torch.tensor(plan.data.features[rows]))
    loss = (plan.loss(logits, torch.tensor(plan.data.labels[rows])) * _present(plan.data.features[rows])).sum()
    gradients = torch.autograd.grad(loss, parameters)
    return torch.cat([gradient.flatten() for gradient in gradients]).double().numpy()


def _draw_units(num_units: int, sample_rate: float, sampling: Draws) -> NDArray[np.int64]:
    """Poisson sampling: indices of the units that take part, ascending."""
    if isinstance(sampling, SecureDraws):
        return np.flatnonzero(sampling.taken(num_units, sample_rate=sample_rate))
    return np.flatnonzero(sampling.random(num_units) < sample_rate) if sample_rate < 1 else np.arange(num_units)


def _unit_gradients(
    wrapped: Any,
    private: UnitOptimizer,
    data: PoissonData,
    loss: Callable[[Tensor, Tensor], Tensor],
    drawn: NDArray[np.int64],
) -> None:
    """Leave the clipped gradients of the units drawn in `grad_sample` of each parameter."""
    rows = np.flatnonzero(np.isin(data.units, drawn))
    if len(rows) == 0:
        for parameter in private.params:
            parameter.grad_sample = parameter.new_zeros((0, *parameter.shape))
        return
    # A gradient that nobody needs: without it torch warns at every backward hook.
    logits = wrapped(torch.from_numpy(data.features[rows]).requires_grad_())
    losses = loss(logits, torch.from_numpy(data.labels[rows])) * _present(data.features[rows])
    losses.sum().backward()  # type: ignore[no-untyped-call]
    private.sum_within_units(torch.from_numpy(np.searchsorted(drawn, data.units[rows])), len(drawn))


def _present(features: NDArray[np.float32]) -> Tensor:
    """1 for an image, 0 for one whose features are all zero: a zeroed image gives nothing, not even to a bias."""
    return torch.from_numpy(np.any(features != 0, axis=1).astype(np.float32))


def _pull_back(head: nn.Module, start: list[Tensor], step: float) -> None:
    with torch.no_grad():
        for parameter, origin in zip(head.parameters(), start, strict=True):
            # Implicit, so that the pull never overshoots however large the step is.
            parameter.copy_((parameter + step * origin) / (1 + step))
