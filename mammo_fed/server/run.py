"""One federated run at the server, from the shared synthetic set to the record, whoever carries the messages."""

from __future__ import annotations

import logging
import math
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from flwr.serverapp import Grid
from numpy.typing import NDArray

from mammo_fed.common.private_files import kept_secret
from mammo_fed.data.cache import ArrayCache, default_cache_root
from mammo_fed.data.cohort import BENIGN, Cohort, fingerprint
from mammo_fed.data.run_cohorts import evaluation_cohorts
from mammo_fed.data.share import Share
from mammo_fed.errors import DataError
from mammo_fed.federation.protocol.payload import synthetic_sha256
from mammo_fed.federation.protocol.task import Declaration
from mammo_fed.federation.public_start import PublicStart, make_extractor, make_public_start
from mammo_fed.models.classifier import Classifier
from mammo_fed.models.features import Extractor, evaluation_flips
from mammo_fed.reporting.record.record import Evaluation, Record, Seconds
from mammo_fed.server.results.record_builder import Outcome, build_record
from mammo_fed.server.rounds.budget import BudgetView
from mammo_fed.server.rounds.rounds import Deployment, Rounds
from mammo_fed.server.rounds.synthetic_overlap import check_synthesis, overlap_of
from mammo_fed.settings import Settings
from mammo_fed.training.evaluation import Metrics, evaluate_scores
from mammo_fed.training.recipe import resolve

__all__ = ["Hooks", "run_federation", "share_of"]

logger = logging.getLogger(__name__)

# Part of the target that a round must have spent to be chosen, as in the paper's code.
NEAR = (0.75, 1.05)


@dataclass(frozen=True, kw_only=True)
class Hooks:
    """How a run tells its progress.

    Attributes:
      features: called with (name of the set, images done, images in all) while networks run.
      round: called with (round, rounds, budget view) after the declaration (-1) and every round.
    """

    features: Callable[[str, int, int], None] = lambda *_: None
    round: Callable[[int, int, BudgetView], None] = lambda *_: None


def share_of(settings: Settings) -> Share:
    """How the settings split the training patients over sites."""
    federation = settings.federation
    return Share(num_sites=federation.num_sites, how=federation.partition, alpha=federation.partition_alpha, seed=settings.seed)


def run_federation(
    grid: Grid,
    settings: Settings,
    folder: Path,
    *,
    mode: Literal["simulate", "deploy", "reproduce"],
    hooks: Hooks,
    deployment: Deployment | None = None,
) -> Record:
    """Run a federation over `grid` and write record.json, report.html and the model into `folder`.

    No result is written before the last round and the evaluation are done. Under a deployment every round is kept on the disk,
    and a run that was interrupted goes on after its last finished round.

    Raises:
      PrivacyRefused: If every site refuses.
      DataError: If the synthetic set or an evaluation set cannot be read.
      RunFailed: If sites do not come or none replies.
    """
    started, clock = datetime.now(UTC), time.perf_counter()
    resumed = deployment.checkpoints.read() if deployment else None
    if settings.engine.threads:
        torch.set_num_threads(settings.engine.threads)
    cache = ArrayCache(Path(settings.engine.cache).expanduser() if settings.engine.cache else default_cache_root())
    extractor = make_extractor(settings, cache=cache, progress=lambda done, total: hooks.features("pretraining", done, total))
    held_out = evaluation_cohorts(settings.data, share_of(settings), cache=cache)
    start = make_public_start(
        settings, extractor, cache=cache, progress=lambda done, total: hooks.features("synthetic", done, total)
    )
    share = share_of(settings)
    overlap = overlap_of(start, settings, share, here=mode != "deploy", cache=cache)
    check_synthesis(start, settings, overlap)
    blocks = {name: _blocks(extractor, name, cohort, hooks) for name, cohort in held_out.items()}
    after_features = time.perf_counter()

    run_id = Declaration.from_json(resumed.declaration).run_id if resumed else secrets.token_hex(8)
    declaration = declare_run(settings, extractor, start, run_id=run_id)
    rounds = Rounds(
        grid,
        settings,
        resolve(settings),
        declaration,
        start.payload.flatten(),
        on_round=hooks.round,
        deployment=deployment,
        resumed=resumed,
    )
    course = rounds.run(start.flat)
    after_training = time.perf_counter()

    classifier = Classifier(
        model=settings.model,
        weights_sha256=extractor.weights_sha256,
        seed=0,
        whitening=start.payload.whitening,
        centre=course.centre,
        flat=course.flat,
        network=start.network,
    )
    features = {name: classifier.features(part) for name, part in blocks.items()}
    chosen = None
    if settings.federation.release == "best_val" and course.models:
        chosen = _best_round(classifier, course.models, rounds.budget, settings, features, held_out)
        classifier = replace(classifier, flat=course.models[chosen - 1])
    scores = {name: classifier.score_features(part) for name, part in features.items()}
    evaluation = {
        name: evaluate_scores(scores[name], cohort.labels, cohort.patients, seed=settings.seed)
        for name, cohort in held_out.items()
    }
    finished = time.perf_counter()
    outcome = Outcome(
        settings=settings,
        declaration=declaration,
        start=start,
        budget=rounds.budget,
        traffic=rounds.traffic,
        weights_sha256=extractor.weights_sha256,
        evaluation={name: _published(metrics, settings) for name, metrics in evaluation.items()},
        overlap=overlap,
        evaluation_public=all(cohort.public for cohort in held_out.values()),
        chosen_round=chosen,
        site_level_epsilon=rounds.site_level_epsilon,
        started=started,
        seconds=Seconds(
            features=after_features - clock,
            training=after_training - after_features,
            evaluation=finished - after_training,
            total=finished - clock,
        ),
        mode=mode,
    )
    # The page's drawing libraries are slow to import: the first round does not wait for them.
    from mammo_fed.server.results.files import Scored, write_results

    record = build_record(outcome)
    scored = Scored(cohorts=held_out, features=features, scores=scores)
    write_results(folder, record, classifier, scored, (start.flat, *course.models), settings)
    if deployment:
        deployment.checkpoints.remove()
    return record


def declare_run(settings: Settings, extractor: Extractor, start: PublicStart, *, run_id: str) -> Declaration:
    """All that this run will ask of a site."""
    privacy, recipe = settings.privacy, resolve(settings)
    return Declaration(
        run_id=run_id,
        model=settings.model,
        weights_sha256=extractor.weights_sha256,
        whitening_sha256=start.payload.whitening.sha256(),
        synthesis_provenance=start.provenance,
        dims=start.payload.whitening.dims,
        unit=privacy.unit,
        target_epsilon=privacy.target_epsilon,
        delta=privacy.delta,
        accountant=privacy.accountant,
        mechanism=privacy.mechanism,
        clipping_norm=recipe.clipping_norm,
        mean_clipping_norm=recipe.mean_clipping_norm,
        mean_fraction=privacy.mean_fraction,
        batch_size=privacy.batch_size,
        rounds=recipe.rounds,
        local_steps=recipe.local_steps,
        noise=privacy.noise,
        noise_seed=privacy.noise_seed,
        keep_optimizer=settings.federation.keep_optimizer,
        synthetic_images=len(start.payload.labels),
        synthetic_sha256=synthetic_sha256(start.payload.features, start.payload.labels),
        augment_weight=settings.synthesis.augment_weight if len(start.payload.labels) else 0.0,
        sampler=settings.synthesis.sampler,
        network_size=len(start.payload.network),
        aggregation="plain" if settings.federation.secure.use == "none" else settings.federation.secure.use,
        min_survivors=settings.federation.min_survivors,
        colluders=settings.federation.secure.colluders if settings.federation.secure.use != "none" else 0,
    )


def _best_round(
    classifier: Classifier,
    models: Sequence[NDArray[np.float32]],
    budget: BudgetView,
    settings: Settings,
    features: Mapping[str, NDArray[np.float32]],
    held_out: Mapping[str, Cohort],
) -> int:
    """The round (from 1) with the highest validation AUPRC (benign), among those near the target (the paper's window).

    Raises:
      DataError: If the source has no validation patients.
    """
    from sklearn.metrics import average_precision_score

    if "val" not in held_out:
        raise DataError("federation.release=best_val needs validation patients, and the source has none; use release=average")
    target = settings.privacy.target_epsilon
    spent = [max(site.epsilon_after_round[-len(models) :][i] for site in budget.active_spending) for i in range(len(models))]
    near = [i for i, epsilon in enumerate(spent) if math.isinf(target) or NEAR[0] * target < epsilon < NEAR[1] * target]
    labels = held_out["val"].labels == BENIGN
    values = {
        i: average_precision_score(labels, 1.0 - replace(classifier, flat=models[i]).score_features(features["val"]))
        for i in near or [len(models) - 1]
    }
    return max(values, key=lambda i: values[i]) + 1


def _published(metrics: Metrics, settings: Settings) -> Evaluation:
    if settings.data.publish_metrics:
        return Evaluation.from_metrics(metrics)
    return Evaluation.withheld(n_patients=metrics.n_patients, n_images=metrics.n_images)


def _blocks(extractor: Extractor, name: str, cohort: Cohort, hooks: Hooks) -> tuple[NDArray[np.float32], ...]:
    key = None if cohort.public else kept_secret(extractor.cache_root / "fingerprint.key")
    return extractor.blocks(
        cohort.pixels,
        fingerprint=fingerprint(cohort, key=key),
        flips=evaluation_flips(extractor.spec.flips),
        progress=lambda done, total: hooks.features(name, done, total),
    )
