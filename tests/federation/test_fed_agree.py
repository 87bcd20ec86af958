"""FedAgree: who is left out, who is not, and how much one site can do."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mammo_fed.federation.strategies.aggregator import Aggregator
from mammo_fed.federation.strategies.fed_agree import Reputation, direction_scores, shortened
from mammo_fed.settings.compose import compose_settings

DIMS = 400
NAMES = tuple(f"site-{number}" for number in range(1, 5))


@pytest.fixture(scope="module")
def robust():
    return compose_settings(["federation=robust"]).settings.federation


def sites(rng: np.random.Generator, *, signal: float, noise: float = 1.0, count: int = 4) -> np.ndarray:
    """Updates of honest sites: one direction in common, and noise of the given norm."""
    common = np.zeros(DIMS)
    common[0] = signal
    return common + noise * rng.standard_normal((count, DIMS)) / np.sqrt(DIMS)


def test_robust_choice_is_agreement_with_norm_bounds(robust):
    assert (robust.strategy, robust.max_update_norm) == ("FedAgree", "auto")


def test_agreement_of_noise_is_about_standard_normal():
    rng = np.random.default_rng(0)
    pairs = np.array([direction_scores(rng.standard_normal((2, DIMS)))[0] for _ in range(2000)])
    assert abs(pairs.mean()) < 5 / np.sqrt(2000)
    assert pairs.std() == pytest.approx(1.0, rel=0.1)


@given(seed=st.integers(0, 2**20), factor=st.floats(1e-3, 1e3))
def test_agreement_does_not_depend_on_length(seed, factor):
    updates = np.random.default_rng(seed).standard_normal((4, 20))
    scaled = updates * np.array([[factor], [1.0], [1.0], [1.0]])
    np.testing.assert_allclose(direction_scores(scaled), direction_scores(updates), atol=1e-9)


def test_an_update_of_zero_neither_agrees_nor_disagrees():
    updates = np.ones((3, 4))
    updates[1] = 0.0
    assert direction_scores(updates)[1] == 0.0


@given(seed=st.integers(0, 2**20), factor=st.floats(0.0, 1e6), count=st.integers(3, 6))
def test_no_single_update_is_longer_than_the_longest_of_the_others(seed, factor, count):
    updates = np.random.default_rng(seed).standard_normal((count, 20))
    updates[0] *= factor
    norms = np.linalg.norm(shortened(updates), axis=1)
    assert norms[0] <= np.linalg.norm(updates[1:], axis=1).max() * (1 + 1e-9)
    assert (norms <= np.linalg.norm(updates, axis=1) * (1 + 1e-9)).all()


def test_a_site_that_turns_its_updates_round_is_left_out_from_the_first_round_on():
    rng, reputation = np.random.default_rng(1), Reputation()
    for index in range(8):
        updates = sites(rng, signal=1.0 if index < 2 else 0.0)
        updates[3] *= -1
        assert reputation.exclude(NAMES, updates) == {"site-4"}


def test_honest_sites_stay_in_while_there_is_a_signal():
    rng, reputation = np.random.default_rng(2), Reputation()
    assert all(reputation.exclude(NAMES, sites(rng, signal=0.5)) == frozenset() for _ in range(50))


def test_a_site_gains_nothing_by_being_honest_at_first():
    rng, reputation = np.random.default_rng(3), Reputation()
    for _ in range(20):
        assert reputation.exclude(NAMES, sites(rng, signal=1.0)) == frozenset()
    turned = sites(rng, signal=1.0)
    turned[3] *= -1
    assert reputation.exclude(NAMES, turned) == {"site-4"}


def test_a_site_comes_back_when_the_others_agree_with_it_again():
    rng, reputation = np.random.default_rng(4), Reputation()
    turned = sites(rng, signal=1.0)
    turned[3] *= -1
    reputation.exclude(NAMES, turned)
    excluded = [reputation.exclude(NAMES, sites(rng, signal=1.0)) for _ in range(4)]
    assert excluded[-1] == frozenset()


@settings(max_examples=50)
@given(seed=st.integers(0, 2**20), count=st.integers(1, 7), hostile=st.integers(0, 7))
def test_fewer_than_half_are_ever_left_out_and_of_two_nobody_is(seed, count, hostile):
    rng, reputation = np.random.default_rng(seed), Reputation()
    names = [f"site-{number}" for number in range(count)]
    for _ in range(3):
        updates = sites(rng, signal=1.0, count=count)
        updates[: min(hostile, count)] *= -1
        low = reputation.exclude(names, updates)
        assert 2 * len(low) < count or not low
        assert not low or count >= 3


def test_the_average_is_that_of_the_sites_in_good_reputation(robust, one_round):
    rng, aggregator = np.random.default_rng(5), Aggregator(robust)
    updates = sites(rng, signal=3.0).astype(np.float32)
    updates /= np.linalg.norm(updates, axis=1, keepdims=True)
    updates[3] *= -1
    got = one_round(aggregator, updates, weights=[1, 2, 3, 4])
    assert aggregator.left_out == ("site-4",)
    np.testing.assert_allclose(got, np.average(updates[:3], axis=0, weights=[1, 2, 3]), atol=1e-6)


def test_reputation_is_kept_over_the_mean_and_the_rounds_and_over_a_restart(robust, one_round):
    rng, aggregator = np.random.default_rng(6), Aggregator(robust)
    updates = sites(rng, signal=3.0)
    updates[3] *= -1
    one_round(aggregator, updates, index=0)
    quiet = sites(rng, signal=0.0)
    for each in (aggregator, Aggregator(robust)):
        each.restore(aggregator.state())
        one_round(each, quiet, index=1)
        assert each.left_out == ("site-4",)
    fresh = Aggregator(robust)
    one_round(fresh, quiet, index=1)
    assert fresh.left_out == ()


def test_honest_sites_lose_nothing_by_it(robust, one_round):
    rng = np.random.default_rng(7)
    updates = sites(rng, signal=0.3).astype(np.float32)
    updates /= np.linalg.norm(updates, axis=1, keepdims=True)
    plain = one_round(Aggregator(replace(robust, strategy="FedAvg")), updates)
    np.testing.assert_allclose(one_round(Aggregator(robust), updates), plain, atol=1e-6)
