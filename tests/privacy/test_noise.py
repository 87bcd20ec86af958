"""Noise never repeats: over rounds, sites, resumes, restarts and forks; injected noise repeats where it must."""

import json
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import noise_workers
import numpy as np
import pytest
from noise_workers import MODES, ROUNDS, site_noise

from mammo_fed.privacy.noise import NoiseSource


def of_a_fork(work):
    """What `work` returns in a forked child of this very process."""
    receiving, sending = os.pipe()
    child = os.fork()
    if child == 0:
        # Whatever happens, the child must never return into the test session.
        try:
            os.write(sending, json.dumps(work()).encode())
        finally:
            os._exit(0)
    os.close(sending)
    with os.fdopen(receiving, "rb") as pipe:
        result = json.loads(pipe.read())
    os.waitpid(child, 0)
    return result


@pytest.fixture(scope="module")
def restarted():
    """What a fresh process drew: {source: {mode: noises}}, for two sources of the operating system and an injected one."""
    script = Path(noise_workers.__file__)
    done = subprocess.run([sys.executable, script, "none", "none", "7"], capture_output=True, text=True, check=True)
    sources = ("first", "second", "injected")
    return {
        source: dict(zip(MODES, drawn, strict=True)) for source, drawn in zip(sources, json.loads(done.stdout), strict=True)
    }


@pytest.fixture(scope="module")
def spawned():
    """What a spawned process drew, from a source made here: {mode: noises}."""
    source = NoiseSource(injected_seed=None)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return dict(zip(MODES, pool.starmap(site_noise, [(source, mode, ROUNDS) for mode in MODES]), strict=True))


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("mode", MODES)
def test_noise_never_repeats_over_rounds_sites_resumes_forks_and_processes(mode, restarted, spawned):
    source = NoiseSource(injected_seed=None)
    collected = []
    for site in ("site-1", "site-2"):
        collected += site_noise(source, mode, ROUNDS, site=site)
    # The same rounds again, as after a crash before the reply was stored, by the same source and by a new one.
    collected += site_noise(source, mode, ROUNDS)
    collected += site_noise(NoiseSource(injected_seed=None), mode, ROUNDS)
    # Forks that share the source, and a parent that goes on.
    for _ in range(3):
        collected += of_a_fork(lambda: site_noise(source, mode, ROUNDS))
    collected += site_noise(source, mode, ROUNDS)
    collected += spawned[mode] + restarted["first"][mode] + restarted["second"][mode]
    assert len(collected) == len(ROUNDS) * (2 + 1 + 1 + 3 + 1 + 1 + 2)
    # Nor do single numbers: a part of the noise that comes back is as bad.
    numbers = np.concatenate([np.frombuffer(bytes.fromhex(noise), np.float32) for noise in collected])
    assert len(set(collected)) == len(collected)
    assert len(np.unique(numbers)) > 0.99 * len(numbers)
    assert np.isfinite(numbers).all()


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_secure_draws_made_before_a_fork_do_not_repeat_after_it():
    draws = NoiseSource(injected_seed=None).draws("secure", site="site-1", round_index=1, purpose="noise")

    def work():
        return [draws.gaussian(8, sigma=2**40).tolist() for _ in range(3)] + [draws.words(4).tolist()]

    children = [of_a_fork(work) for _ in range(3)]
    everything = [number for part in (*children, work(), work()) for row in part for number in row]
    assert len(everything) == 5 * 28
    assert len(set(everything)) == len(everything)


@pytest.mark.parametrize("mode", MODES)
def test_noise_of_the_operating_system_does_not_follow_numpy_s_or_python_s_seed(mode):
    import random

    collected = []
    for _ in range(2):
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002 - the global generator is what must not matter
        collected += site_noise(NoiseSource(injected_seed=None), mode, ROUNDS)
    assert len(set(collected)) == 2 * len(ROUNDS)


@pytest.mark.parametrize("mode", MODES)
def test_injected_noise_repeats_in_another_process_and_differs_between_sites_rounds_and_seeds(mode, restarted):
    here = site_noise(NoiseSource(injected_seed=7), mode, ROUNDS)
    assert restarted["injected"][mode] == here
    others = [
        *site_noise(NoiseSource(injected_seed=8), mode, ROUNDS),
        *site_noise(NoiseSource(injected_seed=7), mode, ROUNDS, site="site-2"),
        *site_noise(NoiseSource(injected_seed=7), mode, range(5, 10)),
    ]
    assert len({*here, *others}) == 4 * len(ROUNDS)


@pytest.mark.parametrize("mode", MODES)
def test_noise_and_sampling_never_share_their_draws(mode):
    for seed in (None, 7):
        source = NoiseSource(injected_seed=seed)
        noise, sampling = (source.draws(mode, site="a", round_index=1, purpose=purpose) for purpose in ("noise", "sampling"))
        if mode == "secure":
            first, second = noise.words(50), sampling.words(50)
        else:
            first, second = noise.generator.random(50), sampling.generator.random(50)
        assert not set(first.tolist()) & set(second.tolist())
