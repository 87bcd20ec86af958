"""FedAgree: who is left out, who is not, and how much one site can do."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mammo_fed.federation.strategies.aggregator import Aggregator
from mammo_fed.federation.strategies.fed_agree import balanced
from mammo_fed.federation.strategies.influence import Course, Reputation, bounded_weights, direction_scores, outsized
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


def test_agreement_of_noise_is_about_standard_normal_and_seldom_held_against_a_site():
    rng = np.random.default_rng(0)
    scores = np.array([direction_scores(rng.standard_normal((4, DIMS))) for _ in range(2000)])
    assert scores.max() == pytest.approx(3.5, abs=1.0)
    assert (scores > 1.0).mean() == pytest.approx(0.159, abs=0.02)
    assert (scores < -1.0).mean() < 0.159


def test_gradients_that_cancel_point_against_nobody():
    rng = np.random.default_rng(15)
    updates = rng.standard_normal((4, DIMS))
    updates -= updates.mean(axis=0)
    assert direction_scores(updates).tolist() == [0.0] * 4
    reputation = Reputation()
    assert all(reputation.exclude(NAMES, updates) == frozenset() for _ in range(50))


def test_two_of_five_that_collude_are_the_ones_that_point_against_the_others():
    rng, reputation = np.random.default_rng(16), Reputation()
    names = [f"site-{number}" for number in range(1, 6)]
    updates = sites(rng, signal=1.0, count=5)
    updates[3:] *= -1
    assert reputation.exclude(names, updates) == {"site-4", "site-5"}


@settings(deadline=None)
@given(seed=st.integers(0, 2**20), factor=st.floats(1e-3, 1e3))
def test_agreement_does_not_depend_on_length(seed, factor):
    updates = np.random.default_rng(seed).standard_normal((4, 20))
    scaled = updates * np.array([[factor], [1.0], [1.0], [1.0]])
    np.testing.assert_allclose(direction_scores(scaled), direction_scores(updates), atol=1e-9)


def test_an_update_of_zero_neither_agrees_nor_disagrees():
    updates = np.ones((3, 4))
    updates[1] = 0.0
    assert direction_scores(updates)[1] == 0.0


@settings(deadline=None)
@given(seed=st.integers(0, 2**20), factor=st.floats(0.0, 1e6), claim=st.floats(1.0, 1e6), count=st.integers(3, 6))
def test_no_contribution_is_longer_than_the_median_whatever_a_site_sends_and_declares(seed, factor, claim, count):
    updates = np.random.default_rng(seed).standard_normal((count, 20))
    updates[0] *= factor
    images = np.full(count, 100.0)
    images[0] = claim
    contributions = np.linalg.norm(updates, axis=1) * balanced(updates, images)
    longest_of_others = (np.linalg.norm(updates[1:], axis=1) * images[1:]).max()
    assert contributions[0] <= longest_of_others * (1 + 1e-9)
    assert (balanced(updates, images) <= images).all()


def test_sites_of_unequal_size_keep_their_weights_where_noise_makes_contributions_equal():
    rng = np.random.default_rng(8)
    images = np.array([600.0, 130.0, 130.0, 140.0])
    updates = rng.standard_normal((4, 10_000)) / images[:, None]
    np.testing.assert_allclose(balanced(updates, images), images, rtol=0.03)


@pytest.mark.parametrize(
    ("images", "share", "times", "weights"),
    [
        ([100, 100, 100, 1_000_000], 0.5, np.inf, [100, 100, 100, 300]),
        ([100, 100, 100, 1_000_000], 0.5, 2.0, [100, 100, 100, 200]),
        ([100, 1_000_000, 1_000_000, 100, 100], 0.3, np.inf, [100, 225, 225, 100, 100]),
        ([60, 20, 10, 10], 0.6, 4.0, [60, 20, 10, 10]),
        ([90, 10], 0.75, np.inf, [30, 10]),
        ([90, 10], 0.4, np.inf, [10, 10]),
        ([7], 0.5, np.inf, [7]),
        ([7], 1.0, 4.0, [7]),
    ],
)
def test_weight_of_a_site_is_bounded_and_others_keep_theirs(images, share, times, weights):
    np.testing.assert_allclose(bounded_weights(images, max_share=share, times_median=times), weights)


@settings(deadline=None)
@given(images=st.lists(st.integers(1, 10**9), min_size=1, max_size=9), share=st.floats(0.01, 1.0))
def test_weight_is_never_above_the_share_nor_above_the_images(images, share):
    weights = bounded_weights(images, max_share=share)
    assert (weights > 0).all()
    assert (weights <= np.array(images) * (1 + 1e-9)).all()
    assert weights.max() <= max(share, 1 / len(images)) * weights.sum() * (1 + 1e-9)


def test_weight_above_four_times_the_median_is_named():
    assert outsized({"a": 100, "b": 120, "c": 90, "d": 450}) == ("d",)
    assert outsized({"a": 100, "b": 100, "c": 100, "d": 400}) == ()
    assert outsized({"a": 1, "b": 1_000_000}) == ()


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


@settings(max_examples=50, deadline=None)
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
    # Contributions are 1, 2, 3 and 4 long: none counts for more than their median.
    np.testing.assert_allclose(got, np.average(updates[:3], axis=0, weights=[1, 2, 2.5]), atol=1e-6)


def test_honest_sites_stay_in_where_there_is_no_signal_at_all():
    rng, rounds, left_out = np.random.default_rng(9), 13, 0
    for _ in range(200):
        reputation = Reputation()
        left_out += sum(len(reputation.exclude(NAMES, sites(rng, signal=0.0))) for _ in range(rounds)) > 0
    # 4 sites in 13 rounds: about one run in a hundred, where the sum of scores below -3 left out somebody in most.
    assert left_out <= 10


def test_an_update_that_is_the_same_every_round_goes_no_farther_than_noise():
    rng, course = np.random.default_rng(10), Course()
    moved = np.zeros((4, DIMS))
    for _ in range(12):
        updates = sites(rng, signal=0.0)
        updates[3] = np.eye(DIMS)[0]
        moved += course.weights(NAMES, updates, np.ones(4))[:, None] * updates
    lengths = np.linalg.norm(moved, axis=1)
    assert lengths[3] < 1.6 * np.median(lengths[:3])
    assert np.linalg.norm(moved[:3], axis=1).min() > 0.8 * math.sqrt(12)


def test_course_of_honest_sites_with_a_signal_is_theirs():
    rng, course = np.random.default_rng(11), Course()
    for _ in range(20):
        assert course.weights(NAMES, sites(rng, signal=0.5), np.ones(4)).tolist() == [1.0] * 4


def test_course_is_kept_over_a_restart(robust, one_round):
    rng, whole, parts = np.random.default_rng(12), Aggregator(robust), Aggregator(robust)
    for index in range(1, 9):
        updates = sites(rng, signal=0.0).astype(np.float32)
        updates[3] = np.eye(DIMS, dtype=np.float32)[0]
        expected, got = (one_round(each, updates, index=index) for each in (whole, parts))
        np.testing.assert_array_equal(got, expected)
        state, parts = parts.state(), Aggregator(robust)
        parts.restore(state)
    assert whole.shares["site-4"] < 0.2


def test_reputation_of_an_earlier_release_is_taken_up(robust):
    reputation = Reputation()
    reputation.restore({"site-1": -4.0})
    assert reputation.as_dict() == {"site-1": [-4.0, 1]}


def test_a_site_that_points_against_the_others_is_named_where_nobody_is_left_out(robust, one_round):
    rng, plain = np.random.default_rng(13), Aggregator(replace(robust, strategy="FedAvg"))
    updates = sites(rng, signal=3.0)
    updates[3] *= -1
    one_round(plain, updates)
    assert (plain.against, plain.left_out) == (("site-4",), ())


@pytest.mark.parametrize("strategy", ["FedAvg", "FedAgree", "FedAdam"])
def test_a_false_weight_silences_nobody(robust, one_round, strategy):
    rng = np.random.default_rng(14)
    aggregator = Aggregator(replace(robust, strategy=strategy))
    updates = sites(rng, signal=1.0)
    updates[3] /= 1e4
    one_round(aggregator, updates, weights=[150, 150, 150, 1_000_000])
    assert aggregator.shares["site-4"] <= 0.6 + 1e-6
    assert aggregator.shares["site-1"] > 0.13


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
