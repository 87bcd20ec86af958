"""Runs between real processes survive what may happen to them (see `chaos.py`), and nobody's privacy is counted wrong."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from chaos import Ordeal
from real_federation import SMALL_RUN, can_cut_lines, real_federation
from safetensors.numpy import load_file

NUM_SITES = 3
RUN = (
    *SMALL_RUN,
    "federation.rounds=4",
    "privacy.noise_seed=5",
    "federation.round_min_wait=150",
    "federation.round_timeout=200",
    "federation.resend_after=6",
)
# `make chaos` runs thirty, with cuts up to 90 s; continuous integration three quick ones, of most kinds.
LONG = bool(os.environ.get("MAMMO_FED_CHAOS"))
SEEDS = tuple(range(1, 1 + int(os.environ["MAMMO_FED_CHAOS"]))) if LONG else (20, 21, 35)


@pytest.fixture
def site_disks(tmp_path, disk) -> Iterator[dict[str, Path]]:
    """The folder of the first site as a small file system of its own, where this process may make one."""
    folder = tmp_path / "fed" / "site-1"
    folder.mkdir(parents=True)
    if disk is None:
        yield {}
        return
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={32 << 20}", "tmpfs", str(folder)], check=True)
    yield {"site-1": folder}
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture(scope="module")
def undisturbed(succeed) -> dict[str, np.ndarray]:
    """The model of the same run in one process."""
    finished = succeed(*RUN, f"federation.num_sites={NUM_SITES}")
    return finished.model


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("seed", SEEDS)
def test_chaos_ends_in_a_finished_run_with_every_round_charged_once(seed, tmp_path, disk, site_disks, cache, undisturbed):
    root = tmp_path / "fed"
    begun = time.monotonic()
    with real_federation(root, num_sites=NUM_SITES, cache=cache, lines=can_cut_lines(), server_root=disk) as federation:
        ordeal = Ordeal(
            federation=federation,
            seed=seed,
            overrides=RUN,
            longest_cut=90.0 if LONG else 12.0,
            disk=disk,
            site_disks=site_disks,
            # A site that is lost is waited for in two rounds.
            lasting=LONG,
            limit=1200.0,
        )
        ordeal.run()
        ordeal.check()
        model = load_file(federation.run_folder / "model.safetensors")
        same = all(np.allclose(model[name], undisturbed[name], rtol=0, atol=1e-6) for name in ("head", "centre"))
        told = "every site replied in every round" if ordeal.undisturbed else "some rounds went on without a site"
        print(f"chaos {seed}: {time.monotonic() - begun:.0f} s, {told}, same model: {same}; {'; '.join(ordeal.story)}")  # noqa: T201
        if ordeal.undisturbed:
            assert same, ordeal.story
