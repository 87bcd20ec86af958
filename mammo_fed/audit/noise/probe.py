"""Many runs of one site's mechanism on a cohort of the auditor's own, whose sum without noise is known: what is left is noise.

The cohort lies on one direction of the features, and the server sends zeros. All other entries of every reply are noise and
nothing else, whoever is drawn into a Poisson sample; along that direction the reply tells how many units were drawn. Two sites
answer each run, so that noise which they share is seen.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import as_completed
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.stats import chi2

from mammo_fed.audit.adversaries import Forecast, Question
from mammo_fed.audit.subject import Mechanism, Subject, one_thread
from mammo_fed.audit.trials import Progress, answer
from mammo_fed.common.isolation import spawned_pool
from mammo_fed.privacy.noise import GRID_STEPS
from mammo_fed.training.local import LocalSteps, SiteFeatures

__all__ = ["SITES", "Message", "collect", "messages_by_run"]

Floats = NDArray[np.float64]
Floats32 = NDArray[np.float32]

# Sites that answer in each run: the subject, and one that is like it but for its name.
SITES: Final = 2
CHUNK: Final = 50
MALIGNANT: Final = 1
MOST_IMAGES: Final = 4
MOST_UNITS: Final = 512
# Standard deviation of a reply's noise on each weight, roughly: so small that every step of a round starts from zero.
DRIFT: Final = 1e-12
# Numbers that are kept of all replies together; of larger heads a part of the weights is looked at.
MOST_NUMBERS: Final = 1 << 23
MOST_ENTRIES: Final = 2048
# Noise counts as larger than declared where sound noise would be so large less than once in a billion audits.
LARGER: Final = 1e-9
# Below this part of the largest entry, what a forecast says of an entry is rounding.
ROUNDING: Final = 1e-5


@dataclass(frozen=True, kw_only=True, eq=False)
class Message:
    """What the sites sent in one round of every run.

    Attributes:
      round_index: 0 is the mean.
      noise: float32, shape (runs, SITES, entries): entries of the replies that hold nothing but noise.
      signal: float32, shape (runs, SITES, entries): the others, less what is expected without noise.
      scale: standard deviation of the noise that is declared for both.
      drawn: float64, shape (runs, SITES): how many times a unit was drawn, plus noise; empty where nothing is sampled.
      drawn_noise: standard deviation of the noise on `drawn`.
      draws: how many times a unit may be drawn: units times steps.
      sample_rate: with which probability, each time.
      grid_steps: steps of the public grid in one standard deviation of the noise; 0 where replies do not lie on a grid.
    """

    round_index: int
    noise: Floats32
    signal: Floats32
    scale: float
    drawn: Floats
    drawn_noise: float
    draws: int
    sample_rate: float
    grid_steps: float

    @property
    def name(self) -> str:
        """The round in words."""
        return "the mean" if self.round_index == 0 else f"round {self.round_index}"

    @cached_property
    def standard(self) -> Floats32:
        """The noise in standard deviations, same shape: the declared one, or its own where that is clearly larger.

        Noise that is larger than declared protects more: its shape is tested, its size is no fault.
        """
        rows = self.noise / np.float32(self.scale)
        mean_square = float(np.square(rows, dtype=np.float64).mean())
        larger = chi2.sf(mean_square * rows.size, rows.size) < LARGER
        return rows / np.float32(math.sqrt(mean_square)) if larger else rows


@dataclass(frozen=True, kw_only=True, eq=False)
class _Asked:
    """One round's question, and where its reply holds what.

    Attributes:
      question: what is sent.
      quiet, loud: indices of the entries that hold noise alone, and of the others.
      multiplier: of the noise.
    """

    question: Question
    quiet: NDArray[np.int64]
    loud: NDArray[np.int64]
    multiplier: float

    def room(self, runs: int) -> Floats32:
        """An array for what is kept of the replies of so many runs."""
        return np.empty((runs, SITES, len(self.quiet) + len(self.loud)), np.float32)


def collect(
    mechanism: Mechanism, subject: Subject, *, runs: int, jobs: int = 1, progress: Progress = lambda *_: None
) -> tuple[Message, ...]:
    """Every message of `runs` runs on the probe's cohort; it releases nothing and charges nothing.

    Args:
      mechanism: the code under audit.
      subject: the site whose schedule is repeated.
      runs: >= 1.
      jobs: processes, >= 1.
      progress: told of finished runs.
    """
    asked, done = _questions(subject, runs), 0
    replies = [each.room(runs) for each in asked]
    for first, part in _all_runs(mechanism, subject, runs, jobs=jobs):
        for whole, some in zip(replies, part, strict=True):
            whole[first : first + len(some)] = some
        done += len(part[0])
        progress("noise", done, runs)
    units = len(np.unique(_cohort(subject).units))
    return tuple(_message(subject, each, reply, units=units) for each, reply in zip(asked, replies, strict=True))


def _cohort(subject: Subject) -> SiteFeatures:
    """As many units as the site has, all of them on the first direction of the features."""
    event = subject.schedule.step_event
    units = min(len(np.unique(subject.data.units)), MOST_UNITS)
    images = 1 if event.unit == "image" else min(MOST_IMAGES, event.max_images_per_patient)
    features = np.zeros((units * images, subject.head.dims), np.float32)
    features[:, 0] = 1.0
    return SiteFeatures(
        features=features,
        labels=np.full(units * images, MALIGNANT, np.int64),
        units=np.repeat(np.arange(units), images),
        public_images=subject.data.public_images,
    )


def _questions(subject: Subject, runs: int) -> list[_Asked]:
    """The mean and all rounds, each from zeros, by a server that wants every reply to be exact."""
    event, mean_event = subject.schedule.step_event, subject.schedule.mean_event
    cohort = _cohort(subject)
    nobody = replace(cohort, features=np.zeros_like(cohort.features))
    forecast = Forecast(subject, nobody, cohort, feature_mean=np.zeros(subject.head.dims, np.float32))
    # A power of two times the denominator: a full-batch step then scales the sum without rounding it.
    size = 2.0 ** math.floor(math.log2(DRIFT / (event.noise_multiplier * event.clipping_norm)))
    rate = size * event.sample_rate * cohort.public_images
    steps = LocalSteps(learning_rate=rate, weight_decay=0.0, optimizer="sgd", label_smoothing=0.0, proximal=0.0)
    first = forecast.training(1, np.zeros(subject.head.num_parameters, np.float32), steps)
    questions = [] if mean_event is None else [(forecast.mean(), mean_event.noise_multiplier)]
    questions += [
        (replace(first, round_index=index), event.noise_multiplier) for index in range(1, subject.schedule.rounds + 1)
    ]
    most = max(64, min(MOST_ENTRIES, MOST_NUMBERS // (runs * SITES * len(questions))))
    return [_split(question, multiplier, most) for question, multiplier in questions]


def _split(question: Question, multiplier: float, most: int) -> _Asked:
    known = np.abs(question.absent) + np.abs(question.shift)
    loud = np.flatnonzero(known > ROUNDING * known.max()) if known.max() > 0 else np.zeros(0, np.int64)
    quiet = np.setdiff1d(np.arange(len(known)), loud)
    if len(quiet) > most:
        # The first entries, so that neighbours are seen, and some from everywhere.
        quiet = quiet[np.unique(np.concatenate([np.arange(most // 2), np.linspace(0, len(quiet) - 1, most // 2).astype(int)]))]
    return _Asked(question=question, quiet=quiet, loud=loud, multiplier=multiplier)


def _all_runs(mechanism: Mechanism, subject: Subject, runs: int, *, jobs: int) -> Iterator[tuple[int, list[Floats32]]]:
    chunks = [(first, min(CHUNK, runs - first)) for first in range(0, runs, CHUNK)]
    work = partial(_some_runs, mechanism, subject, runs)
    if jobs == 1 or len(chunks) == 1:
        yield from ((first, work(first, count)) for first, count in chunks)
        return
    with spawned_pool(jobs) as pool:
        pending = {pool.submit(work, first, count): first for first, count in chunks}
        yield from ((pending[each], each.result()) for each in as_completed(pending))


def _some_runs(mechanism: Mechanism, subject: Subject, runs: int, first: int, count: int) -> list[Floats32]:
    """Of each message the entries that are looked at, float32, shape (count, SITES, entries)."""
    asked, cohort = _questions(subject, runs), _cohort(subject)
    sites = [subject, replace(subject, site=f"{subject.site}-twin")]
    found = [each.room(count) for each in asked]
    with one_thread():
        for run in range(count):
            source = mechanism.sources(first + run)
            for each, part in zip(asked, found, strict=True):
                keep = np.concatenate([each.quiet, each.loud])
                for number, site in enumerate(sites):
                    part[run, number] = answer(mechanism, site, cohort, each.question, source)[keep]
    return found


def _message(subject: Subject, asked: _Asked, replies: Floats32, *, units: int) -> Message:
    question, count = asked.question, len(asked.quiet)
    shift, absent = question.shift[asked.loud], question.absent[asked.loud]
    squared = float(shift @ shift)
    sampled = question.sample_rate < 1 and squared > 0
    draws = units * question.repetitions
    # One unit in one step adds this part of the shift, which holds everybody's expected share of all steps.
    times = question.sample_rate * draws
    drawn = times * ((replies[..., count:] - absent) @ shift) / squared if sampled else np.zeros((0, 0))
    on_grid = subject.noise == "secure" and question.repetitions == 1
    return Message(
        round_index=question.round_index,
        noise=replies[..., :count],
        signal=(replies[..., count:] - absent - shift).astype(np.float32),
        scale=question.scale,
        drawn=drawn,
        drawn_noise=times * question.scale / math.sqrt(squared) if sampled else 0.0,
        draws=draws,
        sample_rate=question.sample_rate,
        grid_steps=asked.multiplier * GRID_STEPS if on_grid else 0.0,
    )


def messages_by_run(messages: Sequence[Message]) -> Floats32:
    """The noise of all messages as one array, float32, shape (messages, runs, SITES, entries), in standard deviations."""
    entries = min(message.noise.shape[-1] for message in messages)
    return np.stack([message.standard[..., :entries] for message in messages])
