"""One site, one round: the private mean, or private steps on the head. No Flower, no ledger, no disk."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mammo_fed.models.heads import HeadSpec, build_head, flatten, head_loss, load_flat
from mammo_fed.models.whitening import centre_and_normalise
from mammo_fed.privacy.events import PrivacyEvent
from mammo_fed.privacy.mechanisms.full_batch import (
    LogisticData,
    descend,
    gradient_grid_sum,
    mean_grid_sum,
    private_descent,
    private_mean,
)
from mammo_fed.privacy.mechanisms.poisson_sgd import OptimizerState, PoissonData, PublicBatches, poisson_steps
from mammo_fed.privacy.mechanisms.unit_descent import UnitGradient, UnitSum
from mammo_fed.privacy.names import LocalOptimizer
from mammo_fed.privacy.noise import Draws, GridDraws
from mammo_fed.privacy.shared_noise import noisy_share

__all__ = ["KeepLast", "LocalSteps", "SiteFeatures", "gradient_share", "mean_share", "release_mean", "train_head"]


Value = TypeVar("Value")


class KeepLast(Generic[Value]):
    """Keeps one value with its key: memory stays bounded whatever keys are asked for.

    A copy, or the object in another process, starts empty: what can be made again is not carried along. Threads that ask at
    once may each make the value; each gets the right one.

    >>> kept = KeepLast[str]()
    >>> kept.get("a", lambda: "made"), kept.get("a", lambda: "made again"), kept.get("b", lambda: "other")
    ('made', 'made', 'other')
    """

    def __init__(self) -> None:
        self._last: tuple[Hashable, Value] | None = None

    def get(self, key: Hashable, make: Callable[[], Value]) -> Value:
        """The value kept for `key`, else what `make` makes; what was kept for another key is dropped first."""
        last = self._last
        if last is not None and last[0] == key:
            return last[1]
        self._last = last = None
        value = make()
        self._last = (key, value)
        return value

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), ())


@dataclass(frozen=True, kw_only=True, eq=False)
class SiteFeatures:
    """A site's training images as the mechanisms see them; the arrays are never changed in place.

    What a mechanism needs of them behind a feature mean does not change while mean and settings do not: it is made once and
    kept, until another is asked for. It is kept by the mean's exact bytes, so that a server that sends another mean in each
    round costs time, never a wrong update, and never more memory than one copy.

    Attributes:
      features: float32, shape (images, dims), rows of norm 1 unless the model has norm="none" (or 0 where an image was not
        finite); or (images, views, dims), where steps draw a view.
      labels: int64, shape (images,), 1 = malignant.
      units: int64, shape (images,), dense index of the protected unit.
      public_images: number of images, declared public by the site's policy; the only denominator.
    """

    features: NDArray[np.float32]
    labels: NDArray[np.int64]
    units: NDArray[np.int64]
    public_images: int
    _logistic: KeepLast[LogisticData] = field(init=False, repr=False, default_factory=KeepLast)
    _poisson: KeepLast[PoissonData] = field(init=False, repr=False, default_factory=KeepLast)

    def logistic(self, feature_mean: NDArray[np.float32], *, normalize: bool, bias_scale: float) -> LogisticData:
        """The features behind `feature_mean`, sorted by unit, for the closed form; see `train_head`."""

        def make() -> LogisticData:
            features = centre_and_normalise(self.features, feature_mean, normalize=normalize)
            return LogisticData.build(features, self.labels, self.units, bias_scale=bias_scale)

        return self._logistic.get((*_exactly(feature_mean), normalize, bias_scale), make)

    def poisson(self, feature_mean: NDArray[np.float32], *, normalize: bool) -> PoissonData:
        """The features behind `feature_mean`, for sampled steps; see `train_head`."""

        def make() -> PoissonData:
            features = centre_and_normalise(self.features, feature_mean, normalize=normalize)
            return PoissonData(features=features, labels=self.labels, units=self.units)

        return self._poisson.get((*_exactly(feature_mean), normalize), make)


@dataclass(frozen=True, kw_only=True)
class LocalSteps:
    """Hyper-parameters of local steps; none of them touches what is promised."""

    learning_rate: float
    weight_decay: float
    optimizer: LocalOptimizer
    label_smoothing: float
    proximal: float


def release_mean(site: SiteFeatures, *, event: PrivacyEvent, noise: Draws) -> NDArray[np.float32]:
    """The site's private mean feature, float32, shape (dims,); see mammo_fed.privacy.mechanisms.full_batch.private_mean."""
    return private_mean(site.features, site.units, event=event, public_images=site.public_images, noise=noise)


def mean_share(site: SiteFeatures, *, event: PrivacyEvent, noise: GridDraws) -> NDArray[np.int64]:
    """The site's part in a private mean over several sites: its clipped sum on the grid with its share of the noise.

    Guarantee: none for this value alone: see mammo_fed.privacy.shared_noise. Int64, shape (dims,).
    """
    return noisy_share(mean_grid_sum(site.features, site.units, event=event), event=event, draws=noise)


def gradient_share(
    site: SiteFeatures,
    parameters: NDArray[np.float32],
    *,
    head: HeadSpec,
    feature_mean: NDArray[np.float32],
    event: PrivacyEvent,
    noise: GridDraws,
    normalize: bool = True,
) -> NDArray[np.int64]:
    """The site's part in one full-batch gradient over several sites, at the linear head `parameters`; see `mean_share`.

    Args as of `train_head`. Int64, shape (head.num_parameters,).
    """
    data = site.logistic(feature_mean, normalize=normalize, bias_scale=head.bias_scale)
    return noisy_share(gradient_grid_sum(data, parameters, event=event), event=event, draws=noise)


def train_head(
    site: SiteFeatures,
    parameters: NDArray[np.float32],
    *,
    head: HeadSpec,
    feature_mean: NDArray[np.float32],
    steps: LocalSteps,
    event: PrivacyEvent,
    closed_form: bool,
    noise: Draws,
    sampling: Draws,
    normalize: bool = True,
    public: PublicBatches | None = None,
    state: OptimizerState | None = None,
    gradient: UnitGradient | None = None,
) -> NDArray[np.float32]:
    """Private steps from the head `parameters`.

    Guarantee: that of the mechanism for `event`: mammo_fed.privacy.mechanisms.full_batch.private_descent in closed form, else
    mammo_fed.privacy.mechanisms.poisson_sgd.poisson_steps; with a gradient from outside that of
    mammo_fed.privacy.mechanisms.unit_descent.UnitSum in each step.

    Args:
      site: the site's features.
      parameters: float32, shape (head.num_parameters,); where the site starts.
      head: shape of the head.
      feature_mean: float32, shape (dims,); the aggregated private mean, subtracted before renormalising.
      steps: hyper-parameters of the local steps.
      event: the one that the ledger has reserved.
      closed_form: full-batch descent on the linear head; otherwise Poisson DP-SGD on any head.
      noise, sampling: draws for the noise (on the grid or in floating point) and for the Poisson sampling.
      normalize: features are brought to norm 1 behind the feature mean.
      public: synthetic images that are trained on beside the site's own.
      state: the local optimizer's state, taken up and left behind; None starts afresh.
      gradient: of a unit's loss, from another distribution, for the full-batch steps; None takes ours.

    Returns:
      The new flat vector, float32, same shape.
    """
    if closed_form:
        data = site.logistic(feature_mean, normalize=normalize, bias_scale=head.bias_scale)
        if gradient is None:
            return private_descent(
                data,
                parameters,
                event=event,
                public_images=site.public_images,
                learning_rate=steps.learning_rate,
                proximal=steps.proximal,
                noise=noise,
            )
        return descend(
            lambda current: UnitSum(gradient=gradient, data=data, weights=current),
            parameters,
            event=event,
            public_images=site.public_images,
            learning_rate=steps.learning_rate,
            proximal=steps.proximal,
            noise=noise,
        )
    module = build_head(head, seed=0)
    load_flat(module, parameters)
    poisson_steps(
        module,
        site.poisson(feature_mean, normalize=normalize),
        loss=_loss(steps.label_smoothing),
        event=event,
        public_images=site.public_images,
        learning_rate=steps.learning_rate,
        weight_decay=steps.weight_decay,
        optimizer=steps.optimizer,
        proximal=steps.proximal,
        noise=noise,
        sampling=sampling,
        public=public,
        state=state,
    )
    return flatten(module)


def _exactly(array: NDArray[np.float32]) -> tuple[str, tuple[int, ...], bytes]:
    """An array's type, shape and bytes: equal for equal bits alone."""
    return array.dtype.str, array.shape, array.tobytes()


def _loss(label_smoothing: float) -> Callable[[Tensor, Tensor], Tensor]:
    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        return head_loss(logits, labels, label_smoothing=label_smoothing)

    return loss
