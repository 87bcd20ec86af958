"""The server as the adversary: what it sends in every round, what it expects back, and what a reply tells it.

It knows every patient of the site but one, all settings and all code; it sees every message of the site. It does not know the
noise, nor who is drawn into a Poisson sample.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp
from scipy.stats import binom

from mammo_fed.audit.gate import noiseless
from mammo_fed.audit.subject import Subject
from mammo_fed.models.heads import HeadSpec
from mammo_fed.models.whitening import centre_and_normalise
from mammo_fed.privacy.mechanisms.full_batch import LogisticData, private_descent, private_mean
from mammo_fed.training.local import LocalSteps, SiteFeatures, train_head

__all__ = ["Forecast", "Play", "Question", "Saturating", "evidence", "honest"]

Floats32 = NDArray[np.float32]

# Distance of the canary from the feature mean that the server sends: small, so that everybody else hardly feels the direction.
OFFSET: Final = 0.01
# Logit at which the canary sits, on the wrong side: its residual is 1 to nine digits.
SATURATION: Final = 20.0
# Weights of the second layer under the same attack: large, so that the first layer carries the canary's gradient.
SECOND_LAYER: Final = 10.0
# Standard deviation of one step's noise on each weight: several local steps then hardly move the weights.
DRIFT: Final = 0.01


@dataclass(frozen=True, kw_only=True, eq=False)
class Question:
    """One message to the site, and what the adversary expects of the reply.

    Attributes:
      round_index: 0 asks for the mean, 1 and above for training.
      feature_mean: float32, shape (dims,): sent with a training round.
      parameters: float32: the head that is sent; empty for the mean.
      steps: hyper-parameters that are sent; None for the mean.
      absent: float64: the mean reply without the canary, over noise and sampling.
      shift: float64, same shape: how much the canary adds when it takes part in every step.
      scale: standard deviation of the noise on each entry of the reply.
      repetitions: steps that the reply sums up.
      sample_rate: of each of them.
    """

    round_index: int
    feature_mean: Floats32
    parameters: Floats32
    steps: LocalSteps | None
    absent: NDArray[np.float64]
    shift: NDArray[np.float64]
    scale: float
    repetitions: int
    sample_rate: float


# One trial: questions out, replies in.
Play = Generator[Question, Floats32, None]


def evidence(question: Question, reply: Floats32) -> float:
    """Logarithm of the likelihood ratio of a reply, with the canary over without.

    Exact for one full-batch step. With sampling it is marginalised over how many steps the canary was drawn into, and treats
    what the others' sampling adds along the canary's direction as absent.
    Edge cases: a reply that is not finite gives away everything: the evidence is infinite.
    """
    if not np.isfinite(reply).all():
        return math.inf
    squared = float(question.shift @ question.shift)
    if squared == 0.0:
        return 0.0
    # In units of one participation of the canary in one step; `shift` holds repetitions * sample_rate of them.
    unit = question.repetitions * question.sample_rate
    seen = unit * float((reply.astype(np.float64) - question.absent) @ question.shift) / squared
    noise = unit * question.scale / math.sqrt(squared)
    times, log_prior = _participations(question.repetitions, question.sample_rate)
    return float(logsumexp(log_prior + (seen * times - times**2 / 2) / noise**2))


@lru_cache(maxsize=64)
def _participations(repetitions: int, sample_rate: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    if sample_rate == 1.0:
        return np.array([float(repetitions)]), np.zeros(1)
    times = np.arange(repetitions + 1.0)
    return times, binom.logpmf(times, repetitions, sample_rate)


class Forecast:
    """What the adversary expects of a site, given a feature mean: the site's code without noise, with and without the canary.

    A linear head is forecast by plain steps on the logistic loss: weight decay, label smoothing and an adaptive optimizer are
    left out, which makes the adversary weaker and no bound wrong.
    """

    def __init__(self, subject: Subject, absent: SiteFeatures, present: SiteFeatures, *, feature_mean: Floats32) -> None:
        self._subject, self._worlds, self._centre = subject, (absent, present), feature_mean
        linear = subject.head.kind == "linear"
        self._prepared = [self._prepare(world) for world in self._worlds] if linear else []

    def mean(self) -> Question:
        """The question for the mean, whatever the feature mean."""
        event = self._subject.schedule.mean_event
        if event is None:
            raise ValueError("the schedule has no mean")
        absent, present = (
            private_mean(world.features, world.units, event=event, public_images=world.public_images, noise=noiseless("float"))
            for world in self._worlds
        )
        return Question(
            round_index=0,
            feature_mean=self._centre,
            parameters=np.zeros(0, np.float32),
            steps=None,
            absent=absent.astype(np.float64),
            shift=present.astype(np.float64) - absent,
            scale=event.noise_multiplier * event.clipping_norm / self._worlds[0].public_images,
            repetitions=1,
            sample_rate=1.0,
        )

    def training(self, round_index: int, parameters: Floats32, steps: LocalSteps) -> Question:
        """The question of one round: several local steps are expected to go as far as the first, times their number."""
        event = self._subject.schedule.step_event
        absent, present = (self._one_step(number, parameters, steps) for number in range(2))
        base = parameters.astype(np.float64)
        reach = steps.learning_rate * math.sqrt(event.steps)
        noise = event.noise_multiplier * event.clipping_norm / (event.sample_rate * self._worlds[0].public_images)
        return Question(
            round_index=round_index,
            feature_mean=self._centre,
            parameters=parameters,
            steps=steps,
            absent=base + event.steps * (absent - base),
            shift=event.steps * (present.astype(np.float64) - absent),
            # An adaptive optimizer divides by the size of the gradient; then only the weighting of rounds is approximate.
            scale=reach * (noise if steps.optimizer == "sgd" else 1.0),
            repetitions=event.steps,
            sample_rate=event.sample_rate,
        )

    def _prepare(self, world: SiteFeatures) -> LogisticData:
        features = centre_and_normalise(world.features, self._centre)
        return LogisticData.build(features, world.labels, world.units, bias_scale=self._subject.head.bias_scale)

    def _one_step(self, number: int, parameters: Floats32, steps: LocalSteps) -> Floats32:
        """Expected reply after one step: the mean over Poisson samples is the full batch over the public count."""
        world, once = self._worlds[number], replace(self._subject.schedule.step_event, steps=1, sample_rate=1.0)
        if self._prepared:
            return private_descent(
                self._prepared[number],
                parameters,
                event=once,
                public_images=world.public_images,
                learning_rate=steps.learning_rate,
                proximal=0.0,
                noise=noiseless("float"),
            )
        return train_head(
            world,
            parameters,
            head=self._subject.head,
            feature_mean=self._centre,
            steps=steps,
            event=once,
            closed_form=False,
            noise=noiseless("float"),
            sampling=noiseless("float"),
        )


def honest(subject: Subject, absent: SiteFeatures, present: SiteFeatures) -> Play:
    """A server that follows the protocol, with this site as the only one, and reads along.

    The site's own mean centres its features, and each of its replies is the next round's head.
    """
    feature_mean = np.zeros(subject.head.dims, np.float32)
    if subject.schedule.mean_event is not None:
        feature_mean = yield Forecast(subject, absent, present, feature_mean=feature_mean).mean()
        feature_mean = feature_mean if np.isfinite(feature_mean).all() else np.zeros_like(feature_mean)
    forecast = Forecast(subject, absent, present, feature_mean=feature_mean)
    parameters = subject.start
    for index in range(1, subject.schedule.rounds + 1):
        parameters = yield forecast.training(index, parameters, subject.steps)


class Saturating:
    """A server that sends whatever shows the canary best; nothing in the protocol keeps it from that.

    The feature mean that it sends puts the canary's row on the direction `aside`, or opposite to it in every other round; the
    head puts the canary far on the wrong side, so that it reaches its clip in each step. Opposite rounds cost no power where
    noise is fresh, and cancel noise that repeats. The learning rate is small, so that local steps do not interfere.

    Args:
      subject: the site.
      absent, present: its data without and with the canary.
      canary: float32, shape (dims,): the canary's feature, of norm 1.
      aside: float32, shape (dims,): a direction of norm 1, orthogonal to the canary.
    """

    def __init__(
        self, subject: Subject, absent: SiteFeatures, present: SiteFeatures, *, canary: Floats32, aside: Floats32
    ) -> None:
        event = subject.schedule.step_event
        rate = DRIFT * event.sample_rate * absent.public_images / (event.noise_multiplier * event.clipping_norm)
        steps = LocalSteps(learning_rate=rate, weight_decay=0.0, optimizer="sgd", label_smoothing=0.0, proximal=0.0)
        self._questions: list[Question] = []
        sides = {
            sign: Forecast(subject, absent, present, feature_mean=canary - np.float32(sign * OFFSET) * aside)
            for sign in (1, -1)
        }
        if subject.schedule.mean_event is not None:
            self._questions.append(sides[1].mean())
        rounds = {sign: side.training(1, _wrong_head(subject.head, sign * aside), steps) for sign, side in sides.items()}
        for index in range(1, subject.schedule.rounds + 1):
            self._questions.append(replace(rounds[1 if index % 2 else -1], round_index=index))

    def __call__(self) -> Play:
        """A fresh trial."""
        # Not `yield from`: a list has nowhere to send replies to.
        for question in self._questions:  # noqa: UP028
            yield question


def _wrong_head(spec: HeadSpec, row: Floats32) -> Floats32:
    """A head that calls a malignant patient with feature `row` benign, as firmly as can be."""
    if spec.kind == "linear":
        return np.concatenate([-SATURATION * row, [0.0]]).astype(np.float32)
    first = np.zeros(spec.dims * spec.hidden + spec.hidden)
    second = np.concatenate([np.full(spec.hidden, SECOND_LAYER), np.full(spec.hidden, -SECOND_LAYER)])
    return np.concatenate([first, second, [SATURATION, -SATURATION]]).astype(np.float32)
