"""What is audited: one site's data, what it runs, and what it says that this costs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mammo_fed.audit.claims import Claim
from mammo_fed.audit.gate import largest_move, noiseless
from mammo_fed.models.heads import HeadSpec
from mammo_fed.privacy.names import NoiseMode
from mammo_fed.privacy.noise import NoiseSource
from mammo_fed.privacy.schedule import Schedule
from mammo_fed.training.local import LocalSteps, SiteFeatures, release_mean, train_head

__all__ = ["Mechanism", "Subject", "one_thread", "sensitivity"]

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
      blank: float32, shape (dims,): the feature of an image that is black but for one faint pixel.
      schedule: every release of the site in the run; this is what the trials repeat.
      claim: what the run says of it; this is what the trials try to refute.
      head: shape of the trained head.
      closed_form: full-batch descent on the linear head; otherwise Poisson DP-SGD.
      steps: hyper-parameters that the run's server sent.
      start: float32, shape (head.num_parameters,): the head before the first round, public.
      noise: how the site draws: "secure" (on a public grid) or "float".
      split_patients: patients of whom some images were filed under another unit than the others; 0 where each is one unit.
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
    noise: NoiseMode
    split_patients: int = 0


@contextmanager
def one_thread() -> Iterator[None]:
    """Keep torch to one thread: on a single site's head, threads mostly wait for one another."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def sensitivity(subject: Subject, mechanism: Mechanism) -> dict[str, float]:
    """The sensitivity gate on this site's releases: how far one hostile unit moves each, over its clipping norm.

    Args:
      subject: the site.
      mechanism: the code under audit.

    Returns:
      The largest quotient by release ("mean", "gradient"); at most 1 where the claim's sensitivity holds, NaN where a value
      that is not finite gets through.
    """
    event, mean_event = subject.schedule.step_event, subject.schedule.mean_event
    tilted = np.random.default_rng(0).standard_normal(subject.head.num_parameters).astype(np.float32)
    releases = {"gradient": [_gradient(subject, mechanism, start) for start in (np.zeros_like(tilted), tilted)]}
    norms = {"gradient": event.clipping_norm}
    if mean_event is not None:
        noise_free = replace(mean_event, noise_multiplier=0.0)
        releases["mean"] = [lambda *rows: mechanism.mean(_site(*rows), event=noise_free, noise=noiseless(subject.noise))]
        norms["mean"] = mean_event.clipping_norm
    with one_thread():
        moves = {
            name: [m for each in found for m in largest_move(each, dims=subject.head.dims, unit=event.unit).values()]
            for name, found in releases.items()
        }
    return {name: float(np.max(found)) / norms[name] for name, found in moves.items()}


def _gradient(subject: Subject, mechanism: Mechanism, start: Floats32) -> Callable[..., NDArray[np.floating]]:
    """The clipped sum of gradients at the head `start`, as a function of (features, labels, units)."""
    once = replace(subject.schedule.step_event, steps=1, sample_rate=1.0, noise_multiplier=0.0)
    plain = LocalSteps(learning_rate=1.0, weight_decay=0.0, optimizer="sgd", label_smoothing=0.0, proximal=0.0)

    def release(*rows: NDArray[Any]) -> NDArray[np.floating]:
        reply = mechanism.train(
            _site(*rows),
            start,
            head=subject.head,
            feature_mean=np.zeros(subject.head.dims, np.float32),
            steps=plain,
            event=once,
            closed_form=subject.closed_form,
            noise=noiseless(subject.noise),
            sampling=noiseless(subject.noise),
        )
        return start - reply

    return release


def _site(features: NDArray[Any], labels: NDArray[Any], units: NDArray[Any]) -> SiteFeatures:
    return SiteFeatures(features=features, labels=labels, units=units, public_images=1)
