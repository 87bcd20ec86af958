"""From the runs of a reproduction to its table, its record and its page."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import numpy as np

from mammo_fed.common.private_files import write_atomically
from mammo_fed.errors import DataError
from mammo_fed.reporting.dropped import dropped_sites, dropped_text
from mammo_fed.reporting.pages.table_page import Comparison, Stratified, TablePage, write_table_page
from mammo_fed.reporting.plots.score_plots import ScoredSet
from mammo_fed.reporting.record.record import RECORD_NAME, Record, read_record
from mammo_fed.reporting.table import Published, TableRow, write_table
from mammo_fed.server.results.files import SCORES_NAME
from mammo_fed.simulations.reproduction.experiments import Experiment
from mammo_fed.simulations.reproduction.jobs import Job, Plan
from mammo_fed.training.statistics import (
    METRICS,
    Interval,
    Scores,
    Summary,
    paired_difference,
    subgroups,
    summarise,
    summarise_folds,
)

__all__ = ["RowResult", "collect", "write_results"]

EVALUATED: Final = ("val", "test", "external")
# Pairs of rows that a reader would compare, where both are there.
COMPARED: Final = (
    ("dbr156", "dbr1"),
    ("dbr156", "dbr5"),
    ("dbr2", "dbr1"),
    ("image-phantom-1-1", "dbr0"),
    ("image-phantom-1-6", "dbr156"),
    ("patient-phantom-1-6", "dbr156"),
    ("image-gan-1-6", "image-phantom-1-6"),
    ("patient-phantom-4-6", "patient-phantom-1-6"),
)
# Rows whose curves are drawn, where they are there; otherwise the first few.
DRAWN: Final = ("dbr0", "dbr156", "image-phantom-1-1", "patient-phantom-1-6", "patient-phantom-4-6")
BOOTSTRAP_SEED: Final = 0
NOTES: Final = (
    "Hyper-parameters were chosen without differential privacy on CBIS-DDSM's train and val patients, which are public; the "
    "epsilon of a row does not cover that choice.",
    "The epsilon of a row is that of one of its runs alone. All runs of a table together cost a patient far more: 45 runs at "
    "epsilon 6 and delta 1e-4, for instance, compose to about 83.",
    "The paper's numbers are its own, on its test sets with a Swin-T at 224 pixels. Rows of the paper choose their epoch by "
    "validation AUPRC (benign), as its code does: their figures on val are biased upward, and epsilon does not cover it.",
    "The epsilon of a patient, in rows whose unit is the image, is for one with as many images as a site lets a patient have "
    "(16 by default; CBIS-DDSM's have at most 14); figures above 1,000 are upper bounds that say no more than that.",
)
CROSS_VALIDATION: Final = (
    "Cross-validation is patient-grouped on train + val, the mean over 5 folds of the value within each, at one site."
)
PAPERS_EPOCHS: Final = "300"


@dataclass(frozen=True, kw_only=True, eq=False)
class RowResult:
    """One row with all its runs.

    Attributes:
      row: for the table.
      records: of its runs but cross-validation.
      scores: by set.
    """

    row: TableRow
    records: tuple[Record, ...]
    scores: Mapping[str, Scores]


def collect(plan: Plan, jobs: Sequence[Job]) -> list[RowResult]:
    """Read what finished jobs left, row by row.

    Raises:
      DataError: If a job has not been run.
    """
    of_row: defaultdict[str, list[Job]] = defaultdict(list)
    for job in jobs:
        of_row[job.key].append(job)
    return [_row(experiment, of_row[experiment.key]) for experiment in plan.rows]


def write_results(folder: Path, results: Sequence[RowResult], *, settings: Mapping[str, object]) -> Path:
    """Write table.md, table.csv, table.html and record.json into `folder`; returns the page.

    Args:
      folder: of the reproduction.
      results: from `collect`.
      settings: what was asked for, for the record.
    """
    rows = tuple(result.row for result in results)
    there = {name for result in results for name in result.scores}
    missing = [name for name in EVALUATED if name not in there]
    words = {"val": "CBIS-DDSM val", "test": "CBIS-DDSM test", "external": "BCDR (external test)"}
    absent = ""
    if missing:
        absent = f"Not at hand, so not filled: {', '.join(words[name] for name in missing)}; a full clone of the data has them."
    notes = (
        _made(settings),
        *NOTES,
        *([CROSS_VALIDATION] if any("cv" in row.summaries for row in rows) else []),
        _backbone_note(results),
    )
    write_table(folder, rows, absent=absent, notes=notes)
    by_key = {result.row.key: result for result in results}
    comparisons = _comparisons(by_key, there)
    page = TablePage(
        title="Reproduction of arXiv:2407.12669, and past it",
        rows=rows,
        absent=absent,
        notes=notes,
        curves=_curves(by_key, [name for name in EVALUATED if name in there]),
        comparisons=comparisons,
        strata=_strata(by_key, there),
    )
    path = write_table_page(folder, page)
    write_atomically(folder / RECORD_NAME, json.dumps(_record(results, comparisons, settings), indent=2) + "\n")
    return path


def _row(experiment: Experiment, jobs: Sequence[Job]) -> RowResult:
    plain = [job for job in jobs if job.fold is None]
    records = _records(jobs, folds=False)
    arrays = [_load(job.folder) for job in plain]
    scores = {name: _scores(arrays, name) for name in EVALUATED if all(f"{name}/score" in run for run in arrays)}
    summaries = {name: summarise(found, seed=BOOTSTRAP_SEED) for name, found in scores.items()}
    folds = _folds([job for job in jobs if job.fold is not None])
    if folds:
        summaries["cv"] = summarise_folds(folds, seed=BOOTSTRAP_SEED)
    epsilon = max((site.epsilon for record in records for site in record.privacy.sites), default=0.0)
    private = bool(records) and 0 < epsilon < math.inf
    asked = any(record.privacy.sites for record in records)
    patient = max((site.patient_epsilon for record in records for site in record.privacy.sites), default=0.0)
    row = TableRow(
        key=experiment.key,
        title=experiment.title,
        group=experiment.title,
        epsilon=epsilon if asked else 0.0,
        unit=records[0].privacy.unit if private else None,
        sites=max(1, records[0].federation.sites),
        patient_epsilon=patient if private else None,
        paper={name: Published(auroc=auroc, auprc_benign=auprc) for name, (auroc, auprc) in experiment.published.items()},
        summaries=summaries,
        note="; ".join(filter(None, (_note(records[0]), dropped_text([*records, *_records(jobs, folds=True)])))),
    )
    return RowResult(row=row, records=records, scores=scores)


def _records(jobs: Sequence[Job], *, folds: bool) -> tuple[Record, ...]:
    """Those of the runs on folds of cross-validation, or of all others."""
    return tuple(read_record(job.folder) for job in jobs if (job.fold is not None) == folds)


def _note(record: Record) -> str:
    """What of a row's model is not plain from its title."""
    scope = record.model.scope
    return "" if scope == "head" else scope


def _load(folder: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(folder / SCORES_NAME, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError) as error:
        raise DataError(f"{folder} holds no finished run; run the reproduction again to complete it") from error


def _scores(runs: Sequence[Mapping[str, np.ndarray]], name: str) -> Scores:
    """The scores of several runs on the same images."""
    first = runs[0]
    if any((run[f"{name}/image"] != first[f"{name}/image"]).any() for run in runs):
        raise DataError(f"runs of one row scored different images of {name}; the data changed between them: use a new folder")
    views = first[f"{name}/view"]
    return Scores(
        labels=first[f"{name}/label"].astype(np.int64),
        patients=first[f"{name}/patient"],
        scores=np.stack([run[f"{name}/score"] for run in runs]),
        strata={"view": views} if (views != "").any() else {},
        images=first[f"{name}/image"],
    )


def _folds(jobs: Sequence[Job]) -> list[Scores]:
    """The held-out part of each fold, with all its seeds."""
    by_fold: defaultdict[int, list[Job]] = defaultdict(list)
    for job in jobs:
        by_fold[job.fold or 0].append(job)
    return [_scores([_load(job.folder) for job in by_fold[fold]], "val") for fold in sorted(by_fold)]


def _made(settings: Mapping[str, object]) -> str:
    """How the rows were made, and whether that is the paper's length."""
    asked = ", ".join(f"{name}={settings[name]}" for name in ("epochs", "every", "seeds", "cv_seeds", "backbone"))
    changed = f"; for all rows {settings['overrides']}" if settings["overrides"] else ""
    short = (
        ""
        if settings["epochs"] == PAPERS_EPOCHS
        else f" The paper trains {PAPERS_EPOCHS} epochs: its rows here are not comparable."
    )
    return f"Made with {asked}{changed}.{short}"


def _backbone_note(results: Sequence[RowResult]) -> str:
    names = sorted({record.model.backbone for result in results for record in result.records})
    return f"Backbones: {', '.join(names)}, ImageNet weights, frozen but where a row says otherwise."


def _curves(by_key: Mapping[str, RowResult], sets: Sequence[str]) -> dict[str, dict[str, ScoredSet]]:
    """The first seed's curves of a few rows."""
    keys = [key for key in DRAWN if key in by_key] or list(by_key)[:4]
    return {
        name: {
            key: ScoredSet(labels=scores.labels, scores=scores.scores[0], public=True)
            for key in keys
            if (scores := by_key[key].scores.get(name)) is not None
        }
        for name in sets
    }


def _comparisons(by_key: Mapping[str, RowResult], there: set[str]) -> tuple[Comparison, ...]:
    return tuple(
        Comparison(
            first=first,
            second=second,
            set_name=name,
            difference=paired_difference(by_key[first].scores[name], by_key[second].scores[name], seed=BOOTSTRAP_SEED),
        )
        for first, second in COMPARED
        if first in by_key and second in by_key
        for name in EVALUATED
        if name in there
    )


def _strata(by_key: Mapping[str, RowResult], there: set[str]) -> tuple[Stratified, ...]:
    """Subgroups of the drawn rows, where the cohort has any."""
    found = [
        Stratified(key=key, set_name=name, groups=subgroups(by_key[key].scores[name], seed=BOOTSTRAP_SEED))
        for key in DRAWN
        if key in by_key
        for name in EVALUATED
        if name in there and by_key[key].scores[name].strata
    ]
    return tuple(one for one in found if one.groups)


def _record(
    results: Sequence[RowResult], comparisons: Sequence[Comparison], settings: Mapping[str, object]
) -> dict[str, object]:
    """The whole reproduction as JSON: what was asked, and every row's figures and guarantees."""
    return {
        "schema_version": 1,
        "mode": "reproduce",
        "settings": dict(settings),
        "hyper_parameters": NOTES[0],
        "composition": NOTES[1],
        "comparisons": [
            {"first": one.first, "second": one.second, "set": one.set_name, **asdict(one.difference)} for one in comparisons
        ],
        "rows": [
            {
                "key": result.row.key,
                "title": result.row.title,
                "unit": result.row.unit,
                "epsilon": _number(result.row.epsilon),
                "patient_epsilon": _number(result.row.patient_epsilon),
                "sites": result.row.sites,
                "note": result.row.note,
                "paper": {
                    name: {"auroc": one.auroc, "auprc_benign": one.auprc_benign} for name, one in result.row.paper.items()
                },
                "evaluation": {name: _figures(summary) for name, summary in result.row.summaries.items()},
                "runs": [
                    {
                        "run_id": record.run_id,
                        "seed": record.seeds.get("seed"),
                        "config_hash": record.config_hash,
                        "rounds": record.privacy.rounds,
                        "local_steps": record.privacy.local_steps,
                        "backbone": record.model.backbone,
                        "scope": record.model.scope,
                        "guarantee": record.privacy.guarantee,
                        "not_covered": list(record.privacy.not_covered),
                        "dropped_sites": dropped_sites(record),
                        "seconds": record.seconds.total,
                    }
                    for record in result.records
                ],
            }
            for result in results
        ],
    }


def _figures(summary: Summary) -> dict[str, object]:
    figures: dict[str, object] = {
        "n_patients": summary.n_patients,
        "n_images": summary.n_images,
        "n_seeds": summary.n_seeds,
    }
    for name in METRICS:
        interval: Interval | None = summary.metric(name)
        figures[name] = None if interval is None else {"value": interval.value, "low": interval.low, "high": interval.high}
    figures["seed_std"] = dict(summary.seed_std) if summary.seed_std else None
    return figures


def _number(value: float | None) -> float | str | None:
    return "inf" if value is not None and math.isinf(value) else value
