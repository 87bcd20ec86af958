"""A federation of real processes over TLS is the simulation, carried by others: same model, same record, also after a stop."""

from __future__ import annotations

import json
import os
import signal

import numpy as np
import pytest
from real_federation import SMALL_RUN, real_federation
from safetensors.numpy import load_file

from mammo_fed.reporting.record.record import read_record

NUM_SITES = 4
INJECTED = ("privacy.noise_seed=5", "federation.rounds=3", f"federation.num_sites={NUM_SITES}")
ROOT = os.environ.get("MAMMO_DP_ROOT")
REAL_RUN = (
    "data=mammo_dp",
    "data.image_size=64",
    "model=efficientnet_lite0",
    "model.input_size=64",
    "model.flips=none",
    "model.components=40",
    "synthesis.source=phantom",
    "synthesis.count=64",
)
# What a deployment says otherwise: who it is, when it was, and that the sites' own ledgers carry over.
OTHERWISE = ("run_id", "mode", "config_hash", "started", "finished", "seconds", "versions")
OF_A_LEDGER = ("budget_left", "cap_epsilon", "cap_since", "ledger_head")


def same_record(mine, theirs) -> None:
    """Two records agree to float tolerance, but for what a deployment says otherwise."""
    # What ledgers that carry over tell is said in a deployment alone.
    assert set(theirs.privacy.not_covered) < set(mine.privacy.not_covered)
    mine, theirs = mine.as_dict(), theirs.as_dict()
    for values in (mine, theirs):
        for name in OTHERWISE:
            values.pop(name)
        values["federation"].pop("seconds_per_round")
        values["privacy"].pop("ledger")
        values["privacy"].pop("not_covered")
        for site in values["privacy"]["sites"]:
            for name in OF_A_LEDGER:
                site.pop(name)
    assert_close(mine, theirs, "record")


def assert_close(mine, theirs, path: str) -> None:
    if isinstance(mine, dict):
        assert mine.keys() == theirs.keys(), path
        for key in mine:
            assert_close(mine[key], theirs[key], f"{path}.{key}")
    elif isinstance(mine, list):
        assert len(mine) == len(theirs), path
        for index, pair in enumerate(zip(mine, theirs, strict=True)):
            assert_close(*pair, f"{path}[{index}]")
    elif isinstance(mine, float) and isinstance(theirs, float):
        assert mine == pytest.approx(theirs, rel=1e-6, abs=1e-9, nan_ok=True), path
    else:
        assert mine == theirs, path


def same_model(folder, finished) -> None:
    model = load_file(folder / "model.safetensors")
    for name in ("head", "centre"):
        np.testing.assert_allclose(model[name], finished.model[name], rtol=0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_deploy_of_four_sites_stopped_and_resumed_equals_the_simulation(tmp_path, cache, succeed, cli):
    simulated = succeed(*SMALL_RUN, *INJECTED)
    with real_federation(tmp_path, num_sites=NUM_SITES, cache=cache) as federation:
        for name in federation.sites:
            federation.start_client(name)
        federation.start_server(*SMALL_RUN, *INJECTED)
        federation.wait_for("round 1/3", seconds=180)
        federation.server.send_signal(signal.SIGINT)
        assert federation.wait(60) == 130
        assert not (federation.run_folder / "record.json").exists()
        assert not federation.processes("flwr_internals.guard")
        assert not federation.processes("flwr-serverapp")

        federation.start_server(resume=True)
        assert federation.wait(180) == 0, federation.tail()
        same_model(federation.run_folder, simulated)
        same_record(federation.record, simulated.record)
        code, out, err = cli("privacy", "verify", federation.run_folder)
        assert code == 0, (out, err)
        assert not (federation.run_folder / "checkpoint").exists()
        for name, client in federation.clients.items():
            client.send_signal(signal.SIGTERM)
            assert client.wait(60) == 0, federation.said(f"{name}.out")
        assert not federation.processes("mammo_fed.client.operations.executor")


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(ROOT is None, reason="MAMMO_DP_ROOT names no clone of RichardObi/mammo_dp")
def test_deploy_on_real_patches_equals_the_simulation(tmp_path, cache, succeed):
    settings = [setting for setting in REAL_RUN if setting.startswith("data")]
    overrides = (*REAL_RUN, *INJECTED)
    simulated = succeed(*overrides)
    with real_federation(tmp_path, num_sites=NUM_SITES, cache=cache, data=settings) as federation:
        for name in federation.sites:
            federation.start_client(name)
        federation.start_server(*overrides)
        assert federation.wait(600) == 0, federation.tail()
        same_model(federation.run_folder, simulated)
        same_record(read_record(federation.run_folder), simulated.record)
        outcome = json.loads((federation.run_folder / "outcome.json").read_text())
        assert outcome == {"exit_code": 0, "message": ""}
