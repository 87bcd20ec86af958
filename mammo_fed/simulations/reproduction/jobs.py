"""The reproduction: every row and seed as a run of its own through the same two apps, resumable, then one table."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from mammo_fed.client.rounds.site import open_site
from mammo_fed.common.isolation import spawned_pool
from mammo_fed.data.cache import ArrayCache, default_cache_root
from mammo_fed.data.cohort import Cohort, fingerprint
from mammo_fed.data.run_cohorts import evaluation_cohorts, load_pool, whole_cohort
from mammo_fed.errors import InvalidSetting
from mammo_fed.federation.public_start import make_extractor, make_public_start
from mammo_fed.models.features import Extractor, Flips, evaluation_flips
from mammo_fed.reporting.record.record import RECORD_NAME
from mammo_fed.server.results.files import SCORES_NAME
from mammo_fed.server.run import Hooks, share_of
from mammo_fed.settings import Settings
from mammo_fed.simulations.launch import simulate
from mammo_fed.simulations.reproduction.experiments import Experiment

__all__ = ["Job", "Plan", "jobs_of", "overrides_of", "run_jobs"]

logger = logging.getLogger(__name__)

HASH_DIGITS = 12


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to reproduce.

    Attributes:
      rows: of the table.
      seeds: of each row.
      cv_seeds: of each cross-validated row, on every fold; empty leaves cross-validation out.
      epochs: of the paper's rows: passes over the data.
      every: epochs in a communication round, after each of which the model is scored on val; divides `epochs`.
      overrides: settings for all rows.
      paper_overrides: settings for the paper's rows, before `overrides`.
    """

    rows: tuple[Experiment, ...]
    seeds: tuple[int, ...]
    cv_seeds: tuple[int, ...]
    epochs: int
    every: int = 1
    overrides: tuple[str, ...] = ()
    paper_overrides: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run of one row.

    Attributes:
      key: of the row.
      seed: of the run.
      fold: of cross-validation, or None.
      settings: of the run.
      folder: where its record and scores go.
    """

    key: str
    seed: int
    fold: int | None
    settings: Settings
    folder: Path

    @property
    def done(self) -> bool:
        """Whether record and scores are there, with every set that the source has now."""
        if not ((self.folder / RECORD_NAME).is_file() and (self.folder / SCORES_NAME).is_file()):
            return False
        with np.load(self.folder / SCORES_NAME, allow_pickle=False) as scores:
            held = {name.partition("/")[0] for name in scores.files}
        return set(evaluation_cohorts(self.settings.data, share_of(self.settings), cache=_cache(self.settings))) <= held


def jobs_of(plan: Plan, folder: Path) -> list[Job]:
    """All runs of a plan, in the order of the table.

    Raises:
      InvalidSetting: If an override is wrong.
    """
    jobs = []
    for row in plan.rows:
        base = row.settings(_extra(plan, row))
        base = replace(base, engine=replace(base.engine, threads=1, workers=1))
        runs: list[tuple[int, int | None]] = [(seed, None) for seed in plan.seeds]
        if row.cross_validated:
            runs += [(seed, fold) for seed in plan.cv_seeds for fold in range(base.data.folds)]
        for seed, fold in runs:
            settings = replace(base, seed=seed, data=replace(base.data, fold=fold))
            name = f"seed-{seed}" + ("" if fold is None else f"-fold-{fold}") + f"-{settings.sha256()[:HASH_DIGITS]}"
            jobs.append(Job(key=row.key, seed=seed, fold=fold, settings=settings, folder=folder / "rows" / row.key / name))
    return jobs


def overrides_of(plan: Plan, rows: Sequence[Experiment]) -> tuple[str, ...]:
    """The settings of the only row of `rows`, as overrides for another command; the seed is not among them.

    Raises:
      InvalidSetting: If there are several rows, or an override is wrong.
    """
    if len(rows) != 1:
        raise InvalidSetting(f"--print-overrides needs one row, not {len(rows)}; give experiment=ROW")
    extra = _extra(plan, rows[0])
    rows[0].settings(extra)
    return (*rows[0].overrides, *extra)


def run_jobs(
    jobs: Sequence[Job],
    *,
    processes: int,
    prepared: Callable[[str, int, int], None] = lambda *_: None,
    finished: Callable[[Job, int, int], None] = lambda *_: None,
) -> None:
    """Run the jobs that are not done yet, several at a time; what is done stays done, whatever happens to the rest.

    Args:
      jobs: from `jobs_of`.
      processes: runs at a time, each on one thread.
      prepared: called with (name of the set, images done, images in all) while networks run.
      finished: called with (job, jobs done, jobs in all) after each job, and once for all that were done before.

    Raises:
      MammoFedError: As `mammo_fed.simulations.launch.simulate`.
    """
    open_jobs = [job for job in jobs if not job.done]
    done = len(jobs) - len(open_jobs)
    if done:
        finished(jobs[0], done, len(jobs))
    if not open_jobs:
        return
    _prepare(open_jobs, Hooks(features=prepared))
    os.environ["OMP_NUM_THREADS"] = "1"
    with spawned_pool(processes, _one_thread) as pool:
        pending: dict[Future[None], Job] = {pool.submit(_run, job): job for job in open_jobs}
        while pending:
            ready, _ = wait(pending, return_when=FIRST_COMPLETED)
            for future in ready:
                job = pending.pop(future)
                future.result()
                done += 1
                finished(job, done, len(jobs))


def _run(job: Job) -> None:
    """One run in a folder of its own; what the table needs is moved to the job's folder, whole or not at all."""
    work, result = job.folder.with_suffix(".work"), job.folder.with_suffix(".result")
    # What a run spent of ledgers that outlive it is not to be spent again.
    carried = job.settings.privacy.ledger != "run"
    for leftover in (*([] if carried else [work]), result, job.folder):
        shutil.rmtree(leftover, ignore_errors=True)
    simulate(job.settings, work, hooks=Hooks(), mode="reproduce", resume=carried)
    result.mkdir(parents=True)
    for name in (RECORD_NAME, SCORES_NAME):
        shutil.move(work / name, result / name)
    result.rename(job.folder)
    shutil.rmtree(work)
    # A site holds its pixels and features: thousands of runs in one process must not keep them.
    open_site.cache_clear()


def _one_thread() -> None:
    torch.set_num_threads(1)


def _prepare(jobs: Sequence[Job], hooks: Hooks) -> None:
    """Pretrained networks and features, made once before runs share the processors out."""
    seen: set[object] = set()
    folded = {job.settings.model for job in jobs if job.fold is not None}
    for job in jobs:
        settings = job.settings
        network = settings.seed if settings.synthesis.pretrain_scope == "network" else None
        drawn = settings.seed if settings.synthesis.source == "phantom" else None
        key = (settings.model, settings.data, settings.synthesis, network, drawn, settings.federation.num_sites)
        if key in seen:
            continue
        seen.add(key)
        cache = _cache(settings)
        extractor = make_extractor(
            settings, cache=cache, progress=lambda done, total: hooks.features("pretraining", done, total)
        )
        for name, cohort in _cohorts(settings, cache):
            flips = extractor.spec.flips if name == "training" else evaluation_flips(extractor.spec.flips)
            _features(extractor, cohort, name, settings, flips, hooks, whole=settings.model in folded)
        make_public_start(
            settings, extractor, cache=cache, progress=lambda done, total: hooks.features("synthetic", done, total)
        )


def _cohorts(settings: Settings, cache: ArrayCache) -> Iterator[tuple[str, Cohort]]:
    yield "training", load_pool(settings.data, share_of(settings), cache=cache).cohort
    yield from evaluation_cohorts(settings.data, share_of(settings), cache=cache).items()


def _features(
    extractor: Extractor, cohort: Cohort, name: str, settings: Settings, flips: Flips, hooks: Hooks, *, whole: bool
) -> None:
    """Fill the cache for a cohort; with `whole`, train, val and folds are rows of one pass over both."""
    if not cohort.public:
        raise InvalidSetting(
            "mammo-fed reproduce runs on published cohorts only: it cross-validates and compares rows without privacy"
        )

    def tell(done: int, total: int) -> None:
        hooks.features(name, done, total)

    own = fingerprint(cohort, key=None)
    if not whole or name not in ("training", "val") or settings.data.train == "synthetic" or extractor.cached(own, flips=flips):
        extractor.blocks(cohort.pixels, fingerprint=own, flips=flips, progress=tell)
        return
    everybody = whole_cohort(settings.data)
    content = fingerprint(everybody, key=None)
    blocks = extractor.blocks(everybody.pixels, fingerprint=content, flips=flips, progress=tell)
    place = {image: row for row, image in enumerate(everybody.images.tolist())}
    rows = np.array([place[image] for image in cohort.images.tolist()])
    extractor.store([block[rows] for block in blocks], fingerprint=own, flips=flips)


def _extra(plan: Plan, row: Experiment) -> tuple[str, ...]:
    of_paper = (*plan.paper_overrides, *_epochs(plan, row)) if row.paper else ()
    return (*of_paper, *plan.overrides)


def _epochs(plan: Plan, row: Experiment) -> tuple[str, ...]:
    """Rounds of whole epochs; a row that trains on nobody has none."""
    if plan.epochs % plan.every:
        raise InvalidSetting(f"every={plan.every} must divide epochs={plan.epochs}")
    if row.steps_per_epoch == 0:
        return ()
    return (f"federation.rounds={plan.epochs // plan.every}", f"federation.local_steps={plan.every * row.steps_per_epoch}")


def _cache(settings: Settings) -> ArrayCache:
    return ArrayCache(Path(settings.engine.cache).expanduser() if settings.engine.cache else default_cache_root())
