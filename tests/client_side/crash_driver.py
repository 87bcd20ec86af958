"""Kills a training site at random moments. Usage: python crash_driver.py FOLDER KILLS SEED; prints one JSON line.

The child answers rounds for ever: declare a run, then its mean and two training rounds, each reply "sent" by appending its hash
to a file. It is forked from a process that has everything loaded, so that a kill costs milliseconds.
"""

import hashlib
import itertools
import json
import os
import random
import secrets
import signal
import sys
import time
from pathlib import Path

import numpy as np

from mammo_fed.client.policy import SiteFile, SitePolicy
from mammo_fed.client.rounds.site import Site
from mammo_fed.federation.protocol.payload import PublicPayload
from mammo_fed.federation.protocol.task import Declaration, RoundTask
from mammo_fed.models.classifier import extractor_spec
from mammo_fed.models.features import Extractor
from mammo_fed.models.whitening import fit_whitening
from mammo_fed.server.run import share_of
from mammo_fed.settings.compose import compose_settings

OVERRIDES = [
    "model=efficientnet_lite0",
    "model.weights=none",
    "model.input_size=32",
    "model.components=6",
    "model.flips=none",
    "data.images_train=96",
    "data.images_test=40",
    "data.image_size=32",
    "federation.num_sites=1",
]


def site_file(folder, settings):
    """A site with an unbounded budget: what is on trial is that it forgets nothing."""
    return SiteFile(
        site="site-1",
        data=settings.data,
        share=share_of(settings),
        index=0,
        policy=SitePolicy(
            max_epsilon=float("inf"),
            delta=1e-4,
            min_patients=1,
            max_images_per_patient=16,
            public_patients=50,
            public_images=96,
            public_class_balance=True,
            units=("patient",),
            scopes=("head",),
            provenance=("procedural",),
        ),
        folder=str(folder / "site"),
        ledger=str(folder / "ledger"),
        cache=str(folder / "cache"),
        threads=1,
    )


def declaration(settings, site, whitening, run_id):
    """A run of two rounds."""
    weights = Extractor(extractor_spec(settings.model, seed=0), cache=None).weights_sha256
    return Declaration(
        run_id=run_id,
        model=settings.model,
        weights_sha256=weights,
        whitening_sha256=whitening.sha256(),
        synthesis_provenance="procedural",
        dims=whitening.dims,
        unit="patient",
        target_epsilon=6.0,
        delta=1e-4,
        accountant="pld",
        mechanism="dp_gd",
        clipping_norm=0.5,
        mean_clipping_norm=2.0,
        mean_fraction=0.1,
        batch_size=128,
        rounds=2,
        local_steps=1,
        noise="secure",
        noise_seed=None,
    )


def answer(folder, settings, whitening, flat, *, runs=None):
    """Resume the run that was under way, then go on with fresh ones: for ever, or for so many runs."""
    site = Site(site_file(folder, settings))
    current = folder / "current"
    for _ in itertools.count() if runs is None else range(runs):
        run_id = current.read_text() if current.exists() else ""
        if not run_id:
            run_id = secrets.token_hex(8)
            fresh = folder / "current.new"
            fresh.write_text(run_id)
            fresh.replace(current)
        declared = declaration(settings, site, whitening, run_id)
        site.declare(declared, flat)
        weights = np.zeros(declared.dims + 1, np.float32)
        for index in range(3):
            task = RoundTask(
                run_id=run_id,
                round_index=index,
                kind="train" if index else "mean",
                learning_rate=10.0,
                weight_decay=0.0,
                optimizer="sgd",
                label_smoothing=0.0,
                proximal=0.0,
            )
            arrays = weights if index else np.zeros(declared.dims, np.float32)
            reply = site.round(task, np.zeros(declared.dims, np.float32), arrays)
            line = f"{run_id} {index} {hashlib.sha256(reply.parameters.tobytes()).hexdigest()}\n"
            with (folder / "sent").open("a") as sent:
                sent.write(line)
        current.write_text("")


def seconds_of_a_run(folder, settings, whitening, flat):
    """How long a child takes from its start to the end of a run, here and now: kills are spread over this time."""
    begun = time.monotonic()
    child = os.fork()
    if child == 0:
        try:
            answer(folder, settings, whitening, flat, runs=1)
            os._exit(0)
        finally:
            os._exit(70)
    _, status = os.waitpid(child, 0)
    if os.WEXITSTATUS(status):
        raise SystemExit("a run that nobody kills must end well")
    return time.monotonic() - begun


def main():
    """Fork, wait a random moment, kill; again and again."""
    folder, kills, seed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    settings = compose_settings(OVERRIDES).settings
    block = np.random.default_rng(0).standard_normal((60, 112 * 113 // 2)).astype(np.float32)
    whitening = fit_whitening((block,), dims=6, power=0.25)
    flat = PublicPayload.of(whitening).flatten()
    Site(site_file(folder, settings)).declare(declaration(settings, None, whitening, "0" * 16), flat)
    draws = random.Random(seed)  # noqa: S311 - when to kill is no secret
    spread, killed = seconds_of_a_run(folder, settings, whitening, flat), 0
    while killed < kills:
        child = os.fork()
        if child == 0:
            try:
                answer(folder, settings, whitening, flat)
            finally:
                os._exit(70)
        time.sleep(draws.uniform(0.0, spread))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status):
            sys.stdout.write(json.dumps({"killed": killed, "failed": os.WEXITSTATUS(status)}) + "\n")
            return
        killed += 1
    sys.stdout.write(json.dumps({"killed": killed, "failed": 0}) + "\n")


if __name__ == "__main__":
    main()
