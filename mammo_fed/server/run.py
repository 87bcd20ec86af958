"""One federated run at the server, from the shared synthetic set to the record, whoever carries the messages."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from flwr.serverapp import Grid

from mammo_fed.federation.protocol.payload import synthetic_sha256
from mammo_fed.federation.protocol.task import Declaration, RoundTask
from mammo_fed.federation.public_start import PublicStart
from mammo_fed.models.features import Extractor
from mammo_fed.reporting.record.record import Record
from mammo_fed.server.conclude import Mode, conclude
from mammo_fed.server.prepare import FeatureProgress, Stopwatch, prepare
from mammo_fed.server.rounds.budget import BudgetView
from mammo_fed.server.rounds.rounds import Deployment, Rounds
from mammo_fed.server.rounds.run_state import CheckpointFolder, DeclaredRun
from mammo_fed.settings import Settings
from mammo_fed.settings.data import Partition
from mammo_fed.training.recipe import resolve

__all__ = ["Hooks", "declare_run", "run_federation", "share_of"]


@dataclass(frozen=True, kw_only=True)
class Hooks:
    """Callbacks for a run's progress.

    Attributes:
      features: called with (name of the set, images done, images in all) while networks run.
      declared: called with the budget view before the first round: see `mammo_fed.server.rounds.rounds.Rounds`.
      round: called with (round, rounds, budget view) after the declaration (DECLARATION_ROUND) and every round.
    """

    features: FeatureProgress = lambda *_: None
    declared: Callable[[BudgetView], None] = lambda _: None
    round: Callable[[int, int, BudgetView], None] = lambda *_: None


def share_of(settings: Settings) -> Partition:
    """How the settings split the training patients over sites."""
    federation = settings.federation
    return Partition(
        num_sites=federation.num_sites, how=federation.partition, alpha=federation.partition_alpha, seed=settings.seed
    )


def run_federation(
    grid: Grid,
    settings: Settings,
    folder: Path,
    *,
    mode: Mode,
    hooks: Hooks,
    deployment: Deployment | None = None,
    checkpoints: CheckpointFolder | None = None,
) -> Record:
    """Run a federation over `grid` and write record.json, report.html and the model into `folder`.

    No result is written before the last round and the evaluation are done. Every round is kept on the disk where there is a
    place for it, and a run that was interrupted resumes there after its last finished round.

    Args:
      grid: carries the messages.
      settings: of the run.
      folder: the run folder.
      mode: for the record.
      hooks: told of progress.
      deployment: of a run between real machines, with its checkpoints; None in a simulation.
      checkpoints: of a simulation that can be resumed.

    Raises:
      PrivacyRefused: If every site refuses.
      DataError: If the synthetic set or an evaluation set cannot be read.
      RunFailed: If sites do not come or none replies.
    """
    watch = Stopwatch()
    checkpoints = deployment.checkpoints if deployment else checkpoints
    resumed = checkpoints.read() if checkpoints else None
    prepared = prepare(settings, share_of(settings), patients_here=mode != "deploy", progress=hooks.features)
    watch.lap()
    run_id = Declaration.from_json(resumed.declaration).run_id if resumed else secrets.token_hex(8)
    declared = declare(prepared.extractor, prepared.start, settings, run_id=run_id)
    course = Rounds(
        grid,
        declared,
        on_round=hooks.round,
        on_declared=hooks.declared,
        deployment=deployment,
        checkpoints=checkpoints,
        resumed=resumed,
    ).run()
    watch.lap()
    record = conclude(prepared, declared.declaration, course, settings=settings, mode=mode, watch=watch, folder=folder)
    if checkpoints:
        checkpoints.remove()
    return record


def declare(extractor: Extractor, start: PublicStart, settings: Settings, *, run_id: str) -> DeclaredRun:
    """What is asked of the sites, in the declaration and in every round."""
    privacy, federation = settings.privacy, settings.federation
    return DeclaredRun(
        declaration=declare_run(settings, extractor, start, run_id=run_id),
        payload=start.payload.flatten(),
        start=start.parameters,
        first_task=RoundTask(
            run_id=run_id,
            round_index=0,
            kind="mean",
            learning_rate=resolve(settings).learning_rate,
            weight_decay=privacy.weight_decay,
            optimizer=privacy.optimizer,
            label_smoothing=privacy.label_smoothing,
            proximal=federation.proximal_mu if federation.resolved_strategy == "FedProx" else 0.0,
        ),
        federation=federation,
        seed=settings.seed,
    )


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
