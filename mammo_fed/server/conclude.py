"""The last stage of a run: choose and evaluate the model that is released, and write what the run leaves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from mammo_fed.data.cohort import BENIGN, Cohort
from mammo_fed.errors import DataError
from mammo_fed.federation.protocol.task import Declaration
from mammo_fed.models.classifier import Classifier
from mammo_fed.reporting.record.record import Evaluation, Record, Seconds
from mammo_fed.server.prepare import Prepared, Stopwatch
from mammo_fed.server.results.record_builder import Outcome, build_record
from mammo_fed.server.rounds.budget import BudgetView
from mammo_fed.server.rounds.rounds import Course
from mammo_fed.settings import Settings
from mammo_fed.training.evaluation import Metrics, evaluate_scores

__all__ = ["Mode", "Released", "conclude"]

Mode: TypeAlias = Literal["simulate", "deploy", "reproduce"]
# Part of the target that a round must have spent to be chosen, as in the paper's code.
NEAR: Final = (0.75, 1.05)


@dataclass(frozen=True, kw_only=True, eq=False)
class Released:
    """The model of a run, and what it says of the evaluation sets.

    Attributes:
      classifier: the released model.
      chosen_round: the round whose head it is, from 1; None where heads were averaged.
      features: of every evaluation set, float32, shape (images, dims).
      scores: probability of malignant, float64, shape (images,).
    """

    classifier: Classifier
    chosen_round: int | None
    features: Mapping[str, NDArray[np.float32]]
    scores: Mapping[str, NDArray[np.float64]]


def conclude(
    prepared: Prepared,
    declaration: Declaration,
    course: Course,
    *,
    settings: Settings,
    mode: Mode,
    watch: Stopwatch,
    folder: Path,
) -> Record:
    """Evaluate the model and write the run's files into `folder`, the record last.

    Raises:
      DataError: If `federation.release=best_val` and the source has no validation patients.
    """
    released = _release(prepared, course, settings)
    evaluation = {
        name: evaluate_scores(released.scores[name], cohort.labels, cohort.patients, seed=settings.seed)
        for name, cohort in prepared.held_out.items()
    }
    watch.lap()
    features_seconds, training_seconds, evaluation_seconds = watch.laps
    record = build_record(
        Outcome(
            settings=settings,
            declaration=declaration,
            start=prepared.start,
            budget=course.budget,
            traffic=course.traffic,
            weights_sha256=prepared.extractor.weights_sha256,
            evaluation={
                name: _published(metrics, publish=settings.data.publish_metrics) for name, metrics in evaluation.items()
            },
            overlap=prepared.overlap,
            evaluation_public=all(cohort.public for cohort in prepared.held_out.values()),
            chosen_round=released.chosen_round,
            site_level_epsilon=course.site_level_epsilon,
            started=watch.started,
            seconds=Seconds(
                features=features_seconds,
                training=training_seconds,
                evaluation=evaluation_seconds,
                total=sum(watch.laps),
            ),
            mode=mode,
        )
    )
    # The page's drawing libraries are slow to import: the first round does not wait for them.
    from mammo_fed.server.results.files import Scored, write_results

    scored = Scored(cohorts=prepared.held_out, features=released.features, scores=released.scores)
    write_results(folder, record, released.classifier, scored, (prepared.start.parameters, *course.models), settings)
    return record


def _release(prepared: Prepared, course: Course, settings: Settings) -> Released:
    classifier = Classifier(
        model=settings.model,
        weights_sha256=prepared.extractor.weights_sha256,
        seed=0,
        whitening=prepared.start.payload.whitening,
        feature_mean=course.feature_mean,
        parameters=course.parameters,
        network=prepared.start.network,
    )
    features = {name: classifier.features(part) for name, part in prepared.blocks.items()}
    chosen = None
    if settings.federation.release == "best_val" and course.models:
        if "val" not in prepared.held_out:
            raise DataError(
                "federation.release=best_val needs validation patients, and the source has none; use release=average"
            )
        near = _rounds_near(settings.privacy.target_epsilon, course.budget, rounds=len(course.models))
        chosen = _best_round(classifier, course.models, near, features["val"], prepared.held_out["val"])
        classifier = replace(classifier, parameters=course.models[chosen - 1])
    return Released(
        classifier=classifier,
        chosen_round=chosen,
        features=features,
        scores={name: classifier.score_features(part) for name, part in features.items()},
    )


def _rounds_near(target: float, budget: BudgetView, *, rounds: int) -> Sequence[int]:
    """The rounds (from 1) that have spent about the target (the paper's window); the last one where none has."""
    spent = [max(site.epsilon_after_round[-rounds:][i] for site in budget.active_spending) for i in range(rounds)]
    near = [i + 1 for i, epsilon in enumerate(spent) if math.isinf(target) or NEAR[0] * target < epsilon < NEAR[1] * target]
    return near or [rounds]


def _best_round(
    classifier: Classifier,
    models: Sequence[NDArray[np.float32]],
    rounds: Sequence[int],
    features: NDArray[np.float32],
    cohort: Cohort,
) -> int:
    """The one of `rounds` with the highest validation AUPRC (benign)."""
    # Late, as the page's drawing libraries.
    from sklearn.metrics import average_precision_score

    labels = cohort.labels == BENIGN
    values = {
        index: average_precision_score(labels, 1.0 - replace(classifier, parameters=models[index - 1]).score_features(features))
        for index in rounds
    }
    return max(values, key=lambda index: values[index])


def _published(metrics: Metrics, *, publish: bool) -> Evaluation:
    if publish:
        return Evaluation.from_metrics(metrics)
    return Evaluation.withheld(n_patients=metrics.n_patients, n_images=metrics.n_images)
