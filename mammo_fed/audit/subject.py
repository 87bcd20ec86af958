"""What is audited: one site's data, what it runs, and what it says that this costs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from mammo_fed.audit.claims import Claim
from mammo_fed.audit.gate import Silence, largest_move
from mammo_fed.models.heads import HeadSpec
from mammo_fed.privacy.noise import NoiseSource
from mammo_fed.privacy.planning import Schedule
from mammo_fed.training.local import LocalSteps, SiteFeatures, release_mean, train_head

__all__ = ["Mechanism", "Subject", "sensitivity"]

Floats32 = NDArray[np.float32]


def _fresh(_: int) -> NoiseSource:
    return NoiseSource(injected_seed=None)


@dataclass(frozen=True, kw_only=True)
class Mechanism:
    """The code under audit. Its defaults are what sites run; only tests put something faulty in their place.

    Attributes:
      mean: as mammo_fed.training.local.release_mean.
      train: as mammo_fed.training.local.train_head.
      sources: where the noise of trial number i comes from; the operating system, as at a site.
    """

    mean: Callable[..., Floats32] = release_mean
    train: Callable[..., Floats32] = train_head
    sources: Callable[[int], NoiseSource] = _fresh


@dataclass(frozen=True, kw_only=True, eq=False)
class Subject:
    """One site and its part in one run.

    Attributes:
      site: its name.
      data: its training images as the run saw them.
      blank: float32, shape (dims,): the feature of an image that is black everywhere.
      schedule: every release of the site in the run; this is what the trials repeat.
      claim: what the run says of it; this is what the trials try to refute.
      head: shape of the trained head.
      closed_form: full-batch descent on the linear head; otherwise Poisson DP-SGD.
      steps: hyper-parameters that the run's server sent.
      start: float32, shape (head.num_parameters,): the head before the first round, public.
    """

    site: str
    data: SiteFeatures
    blank: Floats32
    schedule: Schedule
    claim: Claim
    head: HeadSpec
    closed_form: bool
    steps: LocalSteps
    start: Floats32


def sensitivity(subject: Subject, mechanism: Mechanism) -> dict[str, float]:
    """The sensitivity gate on this site's releases: how far one hostile unit moves each, over its clipping norm.

    Args:
      subject: the site.
      mechanism: the code under audit.

    Returns:
      The largest quotient by release ("mean", "gradient"); at most 1 where the claim's sensitivity holds, NaN where a value
      that is not finite gets through.
    """
    event, dims = subject.schedule.step_event, subject.head.dims
    once = replace(event, steps=1, sample_rate=1.0)
    plain = LocalSteps(learning_rate=1.0, weight_decay=0.0, optimizer="sgd", label_smoothing=0.0, proximal=0.0)
    draws = np.random.default_rng(0)
    tilted = draws.standard_normal(subject.head.num_parameters).astype(np.float32)

    def site(features: Floats32, labels: NDArray[np.int64], units: NDArray[np.int64]) -> SiteFeatures:
        return SiteFeatures(features=features, labels=labels, units=units, public_count=1)

    def gradient(start: Floats32) -> Callable[..., NDArray[np.floating]]:
        return lambda *rows: (
            start
            - mechanism.train(
                site(*rows),
                start,
                head=subject.head,
                centre=np.zeros(dims, np.float32),
                steps=plain,
                charged=once,
                closed_form=subject.closed_form,
                noise=Silence(),
                sampling=Silence(),
            )
        )

    releases = {"gradient": (gradient(np.zeros_like(tilted)), gradient(tilted))}
    norms = {"gradient": event.clipping_norm}
    if (mean_event := subject.schedule.mean_event) is not None:
        releases["mean"] = (lambda *rows: mechanism.mean(site(*rows), charged=mean_event, noise=Silence()),)  # type: ignore[assignment]
        norms["mean"] = mean_event.clipping_norm
    moves = {
        name: [move for release in each for move in largest_move(release, dims=dims, unit=event.unit).values()]
        for name, each in releases.items()
    }
    return {name: float(np.max(found)) / norms[name] for name, found in moves.items()}
