"""Many runs of one site's whole mechanism, with and without a canary, and what they say about its claim."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from concurrent.futures import as_completed
from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np
from numpy.typing import NDArray

from mammo_fed.audit.adversaries import Question, evidence
from mammo_fed.audit.bounds import Errors, assumption_free_epsilon, balance, choose_threshold, count_errors, mu_lower
from mammo_fed.audit.canaries import Canary, CanaryKind, place_canary
from mammo_fed.audit.subject import Mechanism, Subject, one_thread
from mammo_fed.common.isolation import spawned_pool
from mammo_fed.errors import InvalidSetting
from mammo_fed.privacy.noise import NoiseSource
from mammo_fed.training.local import SiteFeatures

__all__ = ["CanaryResult", "Progress", "answer", "audit_canary", "run_trial"]

# Called with what is being done, how much of it is done, and how much there is.
Progress = Callable[[str, int, int], None]

# Each error rate is bounded with this confidence, so that a bound from two rates holds with 95 %, or with 99.9 %.
CONFIDENCE: Final = 0.975
CONFIDENCE_TO_REJECT: Final = 0.9995
FEWEST_TRIALS: Final = 20
# Pairs of runs that a process does at a time.
CHUNK: Final = 50


@dataclass(frozen=True, kw_only=True)
class CanaryResult:
    """What the runs with one canary show.

    Attributes:
      canary: its kind.
      description: what it is and who looks for it.
      held_out, trials: runs on each side that chose the thresholds, and that were then tested by them.
      false_positives, false_negatives: errors in the `trials` runs of each side, at the threshold for the claim's curve.
      mu_lower: mu is above this with 95 % confidence if the mechanism is Gaussian; None where the claim is not.
      epsilon_lower: epsilon at the claim's delta is above this with 95 % confidence, for mechanisms of the claim's kind.
      epsilon_assumption_free: the same for any mechanism, at a threshold of its own.
      rejected: whether the claim's trade-off curve is refuted with 99.9 % confidence.
    """

    canary: CanaryKind
    description: str
    held_out: int
    trials: int
    false_positives: int
    false_negatives: int
    mu_lower: float | None
    epsilon_lower: float
    epsilon_assumption_free: float
    rejected: bool


def run_trial(mechanism: Mechanism, subject: Subject, data: SiteFeatures, canary: Canary, *, source: NoiseSource) -> float:
    """One run of the site on `data`, every message of it seen: the evidence that the canary is there."""
    play = canary.play()
    question, total = next(play), 0.0
    while True:
        reply = answer(mechanism, subject, data, question, source)
        total += evidence(question, reply)
        try:
            question = play.send(reply)
        except StopIteration:
            return math.inf if math.isnan(total) else total


def audit_canary(
    subject: Subject,
    kind: CanaryKind,
    *,
    trials: int,
    seed: int,
    mechanism: Mechanism | None = None,
    jobs: int = 1,
    progress: Progress = lambda *_: None,
) -> CanaryResult:
    """Repeat the site's mechanism with and without a canary, and hold the errors of telling them apart against the claim.

    Half as many further runs choose the thresholds; the runs that are tested have no part in that.

    Args:
      subject: the site, its schedule and its claim.
      kind: of the canary.
      trials: runs on each side that are tested, at least 20; 500 and more say something.
      seed: of the canary's seat; the noise is the operating system's.
      mechanism: the code under audit; the sites' own unless a test says otherwise.
      jobs: processes, >= 1.
      progress: told of finished pairs of runs.

    Raises:
      InvalidSetting: If `trials` is too small or there is no seat for the canary.
    """
    if trials < FEWEST_TRIALS:
        raise InvalidSetting(f"trials={trials} must be at least {FEWEST_TRIALS}; check --trials (500 or more is usual)")
    if jobs < 1:
        raise InvalidSetting(f"jobs={jobs} must be at least 1; check --jobs")
    code, held_out = mechanism or Mechanism(), max(FEWEST_TRIALS, trials // 2)
    found = np.empty((2, held_out + trials))
    done = 0
    for first, evidences in _all_runs(code, subject, kind, seed, held_out + trials, jobs=jobs):
        found[:, first : first + evidences.shape[1]] = evidences
        done += evidences.shape[1]
        progress(f"canary: {kind}", done, held_out + trials)
    return _judge(subject, place_canary(subject, kind, seed=seed), found[:, :held_out], found[:, held_out:])


def _all_runs(
    mechanism: Mechanism, subject: Subject, kind: CanaryKind, seed: int, total: int, *, jobs: int
) -> Iterator[tuple[int, NDArray[np.float64]]]:
    """(first run, evidence of shape (2, runs)) of every chunk of runs, as they finish."""
    chunks = [(first, min(CHUNK, total - first)) for first in range(0, total, CHUNK)]
    work = partial(_some_runs, mechanism, subject, kind, seed)
    if jobs == 1:
        yield from ((first, work(first, count)) for first, count in chunks)
        return
    with spawned_pool(jobs) as pool:
        pending = {pool.submit(work, first, count): first for first, count in chunks}
        yield from ((pending[each], each.result()) for each in as_completed(pending))


def _some_runs(
    mechanism: Mechanism, subject: Subject, kind: CanaryKind, seed: int, first: int, count: int
) -> NDArray[np.float64]:
    canary = place_canary(subject, kind, seed=seed)
    with one_thread():
        return np.array(
            [
                [
                    run_trial(mechanism, subject, data, canary, source=mechanism.sources(2 * run + side))
                    for run in range(first, first + count)
                ]
                for side, data in enumerate((canary.absent, canary.present))
            ]
        )


def answer(
    mechanism: Mechanism, subject: Subject, data: SiteFeatures, question: Question, source: NoiseSource
) -> NDArray[np.float32]:
    """The site's reply to one question, float32, as mammo_fed.client.rounds makes it on `data`."""
    where = {"site": subject.site, "round_index": question.round_index}
    noise = source.draws(subject.noise, **where, purpose="noise")  # type: ignore[arg-type]
    if question.steps is None:
        return mechanism.mean(data, event=subject.schedule.mean_event, noise=noise)
    return mechanism.train(
        data,
        question.parameters,
        head=subject.head,
        feature_mean=question.feature_mean,
        steps=question.steps,
        event=subject.schedule.step_event,
        closed_form=subject.closed_form,
        noise=noise,
        sampling=source.draws(subject.noise, **where, purpose="sampling"),  # type: ignore[arg-type]
    )


def _judge(subject: Subject, canary: Canary, held_out: NDArray[np.float64], test: NDArray[np.float64]) -> CanaryResult:
    """Thresholds from `held_out`, errors from `test`; both float64 of shape (2, runs), without and with the canary."""
    claim = subject.claim

    def errors(strength: Callable[[NDArray[np.float64], NDArray[np.float64]], NDArray[np.float64]]) -> Errors:
        threshold = choose_threshold(held_out[0], held_out[1], strength=strength, confidence=CONFIDENCE)
        return count_errors(test[0], test[1], threshold=threshold)

    for_claim = errors(balance)
    free = errors(lambda fpr, fnr: assumption_free_epsilon(fpr, fnr, delta=claim.delta))
    fpr, fnr = for_claim.upper(confidence=CONFIDENCE)
    corner = (np.array([rate]) for rate in free.upper(confidence=CONFIDENCE))
    return CanaryResult(
        canary=canary.kind,
        description=canary.description,
        held_out=held_out.shape[1],
        trials=test.shape[1],
        false_positives=for_claim.false_positives,
        false_negatives=for_claim.false_negatives,
        mu_lower=float(mu_lower(np.array([fpr]), np.array([fnr]))[0]) if claim.full_batch else None,
        epsilon_lower=claim.epsilon_lower(fpr, fnr),
        epsilon_assumption_free=float(assumption_free_epsilon(*corner, delta=claim.delta)[0]),
        rejected=claim.refuted_by(*for_claim.upper(confidence=CONFIDENCE_TO_REJECT)),
    )
