"""What a run leaves in its folder: scores, model, page and, last, the record."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mammo_fed.common.private_files import write_atomically
from mammo_fed.data.cohort import Cohort
from mammo_fed.models.classifier import MODEL_NAME, Classifier
from mammo_fed.reporting.pages.run_page import Curves, write_page
from mammo_fed.reporting.plots.score_plots import ScoredSet
from mammo_fed.reporting.record.record import Record
from mammo_fed.reporting.statement.facts import facts_of_record
from mammo_fed.reporting.statement.statement import STATEMENT_NAME, as_page, statement_of
from mammo_fed.settings import Settings
from mammo_fed.training.evaluation import auroc

__all__ = ["SCORES_NAME", "Scored", "write_results"]

SCORES_NAME: Final = "scores.npz"


@dataclass(frozen=True, kw_only=True, eq=False)
class Scored:
    """The evaluation sets by name: cohort, features of shape (images, dims), probability of malignant."""

    cohorts: Mapping[str, Cohort]
    features: Mapping[str, NDArray[np.float32]]
    scores: Mapping[str, NDArray[np.float64]]


def write_results(
    folder: Path,
    record: Record,
    classifier: Classifier,
    scored: Scored,
    models: Sequence[NDArray[np.float32]],
    settings: Settings,
) -> None:
    """Write a run's files, the record last: a folder with a record is complete.

    A reproduction keeps the record and the scores of its runs, and leaves out the model and the page.

    Args:
      folder: the run folder.
      record: of the run.
      classifier: the released model.
      scored: the evaluation sets.
      models: the head at the start and after each round, for the page's curve.
      settings: of the run.
    """
    if settings.data.publish_metrics and all(cohort.public for cohort in scored.cohorts.values()):
        _write_scores(folder, scored)
    if record.mode != "reproduce":
        classifier.write(folder / MODEL_NAME)
        curves = {
            name: ScoredSet(
                labels=cohort.labels,
                scores=scored.scores[name],
                public=cohort.public,
                round_auroc=_course(classifier, models, scored.features[name], cohort) if cohort.public else (),
            )
            for name, cohort in scored.cohorts.items()
        }
        write_page(folder, record, Curves(sets=curves), settings=_shown(settings))
        write_atomically(folder / STATEMENT_NAME, as_page([statement_of(facts) for facts in facts_of_record(record)]))
    record.write(folder)


def _write_scores(folder: Path, scored: Scored) -> None:
    """Every image's score with its label, patient and view, for statistics between runs; public cohorts only."""
    arrays: dict[str, NDArray[Any]] = {}
    for name, cohort in scored.cohorts.items():
        columns = {"label": cohort.labels, "patient": cohort.patients, "image": cohort.images, "view": cohort.views}
        arrays |= {f"{name}/{column}": np.asarray(values) for column, values in columns.items()}
        arrays[f"{name}/score"] = scored.scores[name]
    content = io.BytesIO()
    np.savez_compressed(content, allow_pickle=False, **arrays)
    write_atomically(folder / SCORES_NAME, content.getvalue())


def _shown(settings: Settings) -> str:
    """The settings as the report shows them: without paths of this machine."""
    data, synthesis, model = settings.data, settings.synthesis, settings.model
    hidden = replace(
        settings,
        data=replace(data, root=data.root and "(a path)"),
        synthesis=replace(synthesis, root=synthesis.root and "(a path)"),
        model=replace(model, weights_file=model.weights_file and "(a path)"),
        engine=replace(settings.engine, cache=None),
        privacy=replace(settings.privacy, ledger="run" if settings.privacy.ledger == "run" else "(a path)"),
    )
    return json.dumps(json.loads(hidden.to_json()), indent=2)


def _course(
    classifier: Classifier, models: Sequence[NDArray[np.float32]], features: NDArray[np.float32], cohort: Cohort
) -> tuple[float, ...]:
    """AUROC of a public set from the start, and after each round: for the report's curve, never for a choice."""
    scores = (replace(classifier, parameters=parameters).score_features(features) for parameters in models)
    return tuple(auroc(score, cohort.labels) for score in scores)
