"""Site-level privacy at the server: what it costs, what its noise is, and that no release is ever forgotten."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from flwr.app import ConfigRecord
from hypothesis import given, settings
from hypothesis import strategies as st

from mammo_fed.errors import InvalidSetting
from mammo_fed.federation.strategies.aggregator import Aggregator
from mammo_fed.federation.strategies.site_level_dp import noisy_average
from mammo_fed.privacy.accounting.pricing import epsilon
from mammo_fed.privacy.events import PrivacyEvent
from mammo_fed.privacy.noise import NoiseSource
from mammo_fed.settings import CentralSettings, FederationSettings
from mammo_fed.settings.compose import compose_settings

DELTA = 1e-4
SITES = 4
DIMS = 2000


@pytest.fixture(scope="module")
def usual() -> FederationSettings:
    return compose_settings(["federation.strategy=FedAvg"]).settings.federation


@pytest.fixture(scope="module")
def noisy(usual: FederationSettings) -> FederationSettings:
    return replace(usual, central=CentralSettings(noise_multiplier=2.0, clipping_norm=1.0, delta=DELTA))


def draws(seed: int | None):
    return NoiseSource(injected_seed=seed).on_grid(site="server", round_index=1, purpose="test")


def event(noise_multiplier: float, *, steps: int) -> PrivacyEvent:
    return PrivacyEvent(
        mechanism="gradient",
        noise_multiplier=noise_multiplier,
        steps=steps,
        sample_rate=1.0,
        unit="patient",
        clipping_norm=1.0,
        max_images_per_patient=1,
    )


@pytest.mark.parametrize(("noise", "rounds"), [(1.0, 1), (4.0, 3), (20.0, 50)])
def test_epsilon_is_flowers_and_that_of_our_own_accountants(usual, one_round, noise, rounds):
    central = CentralSettings(noise_multiplier=noise, clipping_norm=1.0, delta=DELTA)
    aggregator = Aggregator(replace(usual, central=central), noise_seed=1)
    for index in range(rounds):
        one_round(aggregator, np.zeros((SITES, 3)), index=index)
    found = aggregator.site_level_epsilon
    events = [event(noise, steps=rounds)]
    assert found == pytest.approx(epsilon(events, delta=DELTA, accountant="rdp"), rel=1e-3)
    exact = epsilon(events, delta=DELTA, accountant="gdp")
    assert exact * (1 - 1e-6) <= found < 1.35 * exact


def test_without_noise_nothing_is_priced_and_averages_are_as_ever(usual, one_round):
    aggregator = Aggregator(usual)
    updates = np.arange(8.0).reshape(4, 2)
    assert one_round(aggregator, updates).tolist() == updates.mean(axis=0).tolist()
    assert aggregator.site_level_epsilon is None
    assert "site-level account" not in aggregator.state()


@pytest.mark.parametrize("sites", [1, 3, 4])
def test_noise_has_the_declared_scale_whatever_number_of_sites_replies(noisy, one_round, sites):
    aggregator = Aggregator(noisy, noise_seed=7)
    got = one_round(aggregator, np.zeros((sites, DIMS)))
    scale = 2.0 * 1.0 / sites
    assert abs(got.mean()) < 5 * scale / math.sqrt(DIMS)
    assert got.std() == pytest.approx(scale, rel=5 / math.sqrt(2 * DIMS))


def test_noise_comes_from_the_operating_system_and_not_from_numpys_global_generator(noisy, one_round):
    rounds = []
    for _ in range(2):
        np.random.seed(3)  # noqa: NPY002 - it must not matter
        rounds.append(one_round(Aggregator(noisy), np.zeros((SITES, DIMS))))
    assert np.abs(rounds[0] - rounds[1]).max() > 0.1
    injected = [one_round(Aggregator(noisy, noise_seed=5), np.zeros((SITES, DIMS))) for _ in range(2)]
    np.testing.assert_array_equal(*injected)


@settings(max_examples=40, deadline=None)
@given(
    scale=st.floats(1e-3, 1e6),
    clipping_norm=st.sampled_from([0.1, 1.0, 20.0]),
    sites=st.integers(1, 5),
    seed=st.integers(0, 2**20),
)
def test_one_site_moves_the_average_by_no_more_than_its_share(scale, clipping_norm, sites, seed):
    updates = scale * np.random.default_rng(seed).standard_normal((sites, 30))
    without = updates.copy()
    without[0] = 0.0
    released = [
        noisy_average(each, clipping_norm=clipping_norm, noise_multiplier=1.0, draws=draws(seed)) for each in (updates, without)
    ]
    assert np.linalg.norm(released[0] - released[1]) <= clipping_norm / sites * (1 + 1e-9)


def test_sites_weigh_the_same_whatever_their_size_and_short_updates_are_not_touched(noisy, one_round):
    updates = np.diag([0.5, 0.25, 0.125, 8.0])
    found = [one_round(Aggregator(noisy, noise_seed=5), updates, weights=weights) for weights in ([1, 1, 1, 1], [9, 1, 700, 3])]
    np.testing.assert_array_equal(*found)
    noise = one_round(Aggregator(noisy, noise_seed=5), np.zeros((4, 4)))
    np.testing.assert_allclose(found[0] - noise, [0.125, 0.0625, 0.03125, 0.25], atol=1e-6)


def test_a_site_that_sends_the_model_back_unchanged_is_no_error(noisy, one_round):
    flat = np.full(5, 3.0, np.float32)
    got = one_round(Aggregator(noisy, noise_seed=5), np.zeros((4, 5)), flat=flat)
    assert np.isfinite(got).all()


def test_a_resumed_run_goes_on_with_everything_it_has_released(noisy, one_round):
    through = Aggregator(noisy, noise_seed=5)
    for index in range(4):
        one_round(through, np.zeros((SITES, 3)), index=index)
    first = Aggregator(noisy, noise_seed=5)
    for index in range(3):
        one_round(first, np.zeros((SITES, 3)), index=index)
    resumed = Aggregator(noisy, noise_seed=5)
    resumed.restore(first.state())
    assert resumed.site_level_epsilon == first.site_level_epsilon
    # A round that was not kept before the crash is released once more, and priced once more.
    one_round(resumed, np.zeros((SITES, 3)), index=3)
    assert resumed.site_level_epsilon == through.site_level_epsilon
    assert resumed.site_level_epsilon > first.site_level_epsilon


def test_a_round_that_is_asked_for_twice_is_priced_once(noisy, one_round, grid):
    aggregator = Aggregator(noisy, noise_seed=5)
    nodes = sorted(grid.get_node_ids())
    aggregator.configure(grid, nodes, round_index=1, parameters=np.zeros(3, np.float32), config=ConfigRecord({}))
    one_round(aggregator, np.zeros((SITES, 3)))
    once = Aggregator(noisy, noise_seed=5)
    one_round(once, np.zeros((SITES, 3)))
    assert aggregator.site_level_epsilon == once.site_level_epsilon


def test_an_account_is_not_taken_up_by_a_run_of_other_settings(noisy, usual, one_round):
    aggregator = Aggregator(noisy, noise_seed=5)
    one_round(aggregator, np.zeros((SITES, 3)))
    for other in (usual, replace(noisy, central=replace(noisy.central, delta=1e-5)), replace(noisy, num_sites=9)):
        with pytest.raises(InvalidSetting, match=r"federation\.central"):
            Aggregator(other).restore(aggregator.state())
    with pytest.raises(InvalidSetting, match="must be 0"):
        Aggregator(noisy).restore({})


@pytest.mark.parametrize("strategy", ["FedAdam", "FedYogi", "FedMedian", "FedTrimmedAvg", "Krum", "FedAgree"])
def test_strategies_that_do_not_average_plainly_are_refused(strategy):
    with pytest.raises(InvalidSetting, match="must be FedAvg or FedProx"):
        compose_settings(["federation.central.noise_multiplier=1", f"federation.strategy={strategy}"])


@pytest.mark.parametrize("strategy", ["FedAvg", "FedProx"])
def test_strategies_that_average_are_taken(strategy):
    federation = compose_settings(
        ["federation.central.noise_multiplier=1", f"federation.strategy={strategy}"]
    ).settings.federation
    assert Aggregator(federation).site_level_epsilon == 0.0
