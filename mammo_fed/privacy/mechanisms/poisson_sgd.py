"""Poisson-sampled DP-SGD for any head, clipped once per protected unit: on Opacus in floating point, or on the grid."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mammo_fed.errors import InvalidSetting
from mammo_fed.privacy.events import PrivacyEvent
from mammo_fed.privacy.mechanisms.ghost_clipping import clipped_gradient_sum
from mammo_fed.privacy.noise.integer_grid import SecureDraws, grid_sum, noisy_release
from mammo_fed.privacy.noise.source import Draws

__all__ = ["LocalOptimizer", "OptimizerState", "PoissonData", "PublicBatches", "poisson_steps"]

LocalOptimizer = Literal["sgd", "adamw"]
Step: TypeAlias = Callable[[NDArray[np.int64]], None]
OptimizerState: TypeAlias = MutableMapping[str, Any]
"""The local optimizer's moments between rounds: made from noisy gradients alone, so they may be kept, at the site."""
# Numbers of unit gradients that are rounded and summed at a time.
BLOCK_NUMBERS: Final = 1 << 18


@dataclass(frozen=True, kw_only=True, eq=False)
class PoissonData:
    """What Poisson DP-SGD draws from.

    Attributes:
      features: float32, shape (images, dims), or (images, views, dims): each image that takes part in a step is then seen in
        one view, drawn anew.
      labels: int64, shape (images,), 1 = malignant.
      units: int64, shape (images,), dense index of the protected unit.
    """

    features: NDArray[np.float32]
    labels: NDArray[np.int64]
    units: NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False)
class PublicBatches:
    """Images with no patient behind them, whose gradient is added to every step after the noise, at no privacy cost.

    Attributes:
      features: float32, shape (images, dims).
      labels: int64, shape (images,).
      batch_size: images drawn for a step, >= 1.
      weight: of their mean gradient beside the private one, >= 0.
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
    charged: PrivacyEvent,
    public_count: int,
    learning_rate: float,
    weight_decay: float,
    optimizer: LocalOptimizer,
    proximal: float,
    noise: Draws,
    sampling: Draws,
    public: PublicBatches | None = None,
    state: OptimizerState | None = None,
) -> None:
    """Take `charged.steps` steps of Poisson DP-SGD on `head`, in place.

    Guarantee: `charged.steps` adaptive Poisson-subsampled Gaussian mechanisms over units, with sampling rate
    `charged.sample_rate`, sensitivity `charged.clipping_norm` and noise multiplier `charged.noise_multiplier`.
    Neighbouring cohorts: one unit's data zeroed out, the cohort's size public; a zeroed unit contributes nothing.
    Edge cases: an empty batch is a step of noise alone: skipping it would reveal that it was empty.

    On the grid one unit at a time goes through `head`, so that its contribution is a function of its own data, bit for bit; in
    floating point unit norms and the clipped sum come from one pass over all images drawn (see ghost_clipping), and
    noise and scale from Opacus' optimizer.

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
      sampling: draws for the Poisson sampling, and for views and public batches.
      public: public images that are trained on beside the private ones.
      state: the local optimizer's state, taken up and left behind; None starts afresh.

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
        inner = torch.optim.AdamW(head.parameters(), lr=learning_rate, weight_decay=weight_decay, fused=True)
    if state:
        # The moments alone: step size and weight decay are this round's.
        inner.load_state_dict({**inner.state_dict(), "state": state["optimizer"]})
    num_units = int(data.units.max()) + 1 if len(data.units) else 0
    batch = charged.sample_rate * public_count
    plan = _Plan(
        head=head,
        inner=inner,
        data=data,
        num_units=num_units,
        loss=loss,
        charged=charged,
        batch=batch,
        sampling=sampling,
        public=public,
    )
    step = _grid_step(plan, noise) if isinstance(noise, SecureDraws) else _opacus_step(plan, noise)
    for _ in range(charged.steps):
        step(_draw_units(num_units, charged.sample_rate, sampling))
        if proximal > 0:
            _pull_back(head, start, learning_rate * proximal)
    if state is not None:
        state["optimizer"] = inner.state_dict()["state"]


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
    sampling: Draws
    public: PublicBatches | None


def _opacus_step(plan: _Plan, noise: np.random.Generator) -> Step:
    """A step in floating point, for the units it is given."""
    # Opacus is slow to import, and full-batch descent and the grid, which are the defaults, do without.
    from mammo_fed.privacy.mechanisms.opacus_optimizer import UnitOptimizer

    private = UnitOptimizer(
        plan.inner,
        noise=noise,
        noise_multiplier=plan.charged.noise_multiplier,
        max_grad_norm=plan.charged.clipping_norm,
        expected_batch_size=plan.batch,
        loss_reduction="mean",
    )
    # Rows by unit, so that a step reads what was drawn and no more.
    order = np.argsort(plan.data.units, kind="stable")
    counts = np.bincount(plan.data.units, minlength=plan.num_units)
    ends = np.cumsum(counts)

    def step(drawn: NDArray[np.int64]) -> None:
        private.zero_grad()
        sizes = counts[drawn]
        within = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        rows = order[np.repeat(ends[drawn] - sizes, sizes) + within]
        features = _views(plan, rows)
        labels, present = torch.from_numpy(plan.data.labels[rows]), _present(features)
        gradients = clipped_gradient_sum(
            plan.head,
            torch.from_numpy(features),
            lambda logits: plan.loss(logits, labels) * present,
            units=torch.from_numpy(np.repeat(np.arange(len(drawn)), sizes)),
            num_units=len(drawn),
            clipping_norm=plan.charged.clipping_norm,
        )
        for parameter, gradient in zip(private.params, gradients, strict=True):
            parameter.grad = gradient
        private.pre_step()
        _add_public(plan)
        plan.inner.step()

    return step


def _grid_step(plan: _Plan, noise: SecureDraws) -> Step:
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
        _add_public(plan)
        plan.inner.step()

    return step


def _unit_gradient(plan: _Plan, parameters: list[nn.Parameter], rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """Gradient of one unit's summed loss, float64, shape (parameters,)."""
    # Copied, because torch aligns its own memory: BLAS may round differently at another alignment.
    features = np.array(_views(plan, rows))
    losses = plan.loss(plan.head(torch.tensor(features)), torch.tensor(plan.data.labels[rows]))
    loss = (losses * _present(features)).sum()
    gradients = torch.autograd.grad(loss, parameters)
    return torch.cat([gradient.flatten() for gradient in gradients]).double().numpy()


def _draw_units(num_units: int, sample_rate: float, sampling: Draws) -> NDArray[np.int64]:
    """Poisson sampling: indices of the units that take part, ascending."""
    if isinstance(sampling, SecureDraws):
        return np.flatnonzero(sampling.taken(num_units, sample_rate=sample_rate))
    return np.flatnonzero(sampling.random(num_units) < sample_rate) if sample_rate < 1 else np.arange(num_units)


def _views(plan: _Plan, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """Features of some images, shape (images, dims), each in a view drawn at random where there are several."""
    features = plan.data.features
    if features.ndim == 2:
        return features[rows]
    views = features.shape[1]
    if isinstance(plan.sampling, SecureDraws):
        chosen = (plan.sampling.words(len(rows)) % np.uint64(views)).astype(np.int64)
    else:
        chosen = plan.sampling.integers(views, size=len(rows))
    return features[rows, chosen]


def _add_public(plan: _Plan) -> None:
    """Add the mean gradient of a batch of public images to the private gradient, which has its noise already."""
    public = plan.public
    if public is None or public.weight == 0:
        return
    rows = _public_rows(len(public.labels), public.batch_size, plan.sampling)
    losses = plan.loss(plan.head(torch.from_numpy(public.features[rows])), torch.from_numpy(public.labels[rows]))
    parameters = list(plan.head.parameters())
    for parameter, gradient in zip(parameters, torch.autograd.grad(losses.mean(), parameters), strict=True):
        parameter.grad = gradient * public.weight if parameter.grad is None else parameter.grad + gradient * public.weight


def _public_rows(count: int, size: int, sampling: Draws) -> NDArray[np.int64]:
    """Rows of a public batch, with replacement."""
    if isinstance(sampling, SecureDraws):
        return (sampling.words(size) % np.uint64(count)).astype(np.int64)
    return sampling.integers(count, size=size)


def _present(features: NDArray[np.float32]) -> Tensor:
    """1 for an image, 0 for one whose features are all zero: a zeroed image gives nothing, not even to a bias."""
    return torch.from_numpy(np.any(features != 0, axis=1).astype(np.float32))


def _pull_back(head: nn.Module, start: list[Tensor], step: float) -> None:
    with torch.no_grad():
        for parameter, origin in zip(head.parameters(), start, strict=True):
            # Implicit, so that the pull never overshoots however large the step is.
            parameter.copy_((parameter + step * origin) / (1 + step))
