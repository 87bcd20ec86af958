"""Noise in shares: its size, its price for every adversary, its sensitivity, and that a sum of shares is one Gaussian."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mammo_fed.audit.gate import HOSTILE, largest_move
from mammo_fed.errors import InvalidSetting
from mammo_fed.models.heads import HeadSpec
from mammo_fed.privacy.accounting.composition import gaussian_epsilon, gaussian_mu
from mammo_fed.privacy.accounting.pricing import epsilon
from mammo_fed.privacy.events import PrivacyEvent, events_from_json, events_to_json
from mammo_fed.privacy.ledger.declaring import schedule_unit
from mammo_fed.privacy.noise import GRID_STEPS, ROUNDING_VARIANCE, GridDraws, grid_sigma, operating_system_words
from mammo_fed.privacy.schedule import plan_schedule
from mammo_fed.privacy.shared_noise import (
    adversary_epsilons,
    exposed,
    largest_share,
    noisy_share,
    release_of_sum,
    share_sigma,
    with_shares,
)
from mammo_fed.training.local import SiteFeatures, gradient_share, mean_share

DIMS = 6
DELTA = 1e-4
OS = GridDraws(words=operating_system_words)


def event(*, noise=1.0, shares=1, mechanism="gradient", unit="patient"):
    return PrivacyEvent(
        mechanism=mechanism,
        noise_multiplier=noise,
        steps=1,
        sample_rate=1.0,
        unit=unit,
        clipping_norm=0.5,
        max_images_per_patient=16,
        noise_shares=shares,
    )


def seeded(seed):
    return GridDraws(words=np.random.PCG64DXSM(seed).random_raw)


@pytest.fixture(scope="module")
def sized_for_four():
    """A full-batch schedule at epsilon 6 whose noise four sites share."""
    schedule = plan_schedule(
        unit="patient",
        target_epsilon=6.0,
        delta=DELTA,
        accountant="pld",
        rounds=12,
        local_steps=1,
        sample_rate=1.0,
        mean_fraction=0.15,
        clipping_norm=0.45,
        max_images_per_patient=16,
    )
    return schedule.shared_by(4)


@pytest.mark.parametrize(
    ("honest", "expected"),
    [(4, 6.0), (3, 7.16), (2, 9.24), (1, 14.48)],
    ids=["declared", "another site", "one dropped and one colluding", "all colluding"],
)
@pytest.mark.parametrize("accountant", ["pld", "gdp"])
def test_noise_sized_for_four_at_epsilon_6_costs_what_the_known_shares_leave(sized_for_four, honest, expected, accountant):
    seen = exposed(sized_for_four.events(), honest=honest)
    assert epsilon(seen, delta=DELTA, accountant=accountant) == pytest.approx(expected, abs=0.006)
    closed = gaussian_epsilon(mu=gaussian_mu(epsilon=6.0, delta=DELTA) * math.sqrt(4 / honest), delta=DELTA)
    assert epsilon(seen, delta=DELTA, accountant="gdp") == pytest.approx(closed, rel=1e-4)


def test_the_figures_of_a_record_are_those_of_its_adversaries(sized_for_four):
    figures = adversary_epsilons(sized_for_four.events(), min_survivors=4, delta=DELTA, accountant="pld")
    assert figures.declared == epsilon(sized_for_four.events(), delta=DELTA, accountant="pld")
    assert figures.declared < figures.other_site < figures.all_colluding
    assert figures.other_site == pytest.approx(7.16, abs=0.006)
    assert figures.all_colluding == pytest.approx(14.48, abs=0.006)


def test_where_each_site_adds_all_of_the_noise_every_adversary_sees_the_same():
    figures = adversary_epsilons([event(noise=3.0)], min_survivors=3, delta=DELTA, accountant="gdp")
    assert figures.declared == figures.other_site == figures.all_colluding


def test_shares_change_no_price_of_the_declared_adversary():
    alone, shared = event(noise=2.0), event(noise=2.0, shares=3)
    for accountant in ("pld", "gdp", "rdp"):
        assert epsilon([alone], delta=DELTA, accountant=accountant) == epsilon([shared], delta=DELTA, accountant=accountant)
    assert schedule_unit((shared,)) == "patient"


@given(st.floats(1e-3, 1e4), st.integers(1, 200))
def test_any_number_of_shares_is_at_least_the_noise_that_their_price_needs(noise, shares):
    sigma = share_sigma(noise_multiplier=noise, shares=shares)
    paid = math.ceil(noise * GRID_STEPS)
    for known in {1, shares // 2 or 1, shares}:
        # In whole numbers: known * sigma^2 >= paid^2 * known / shares + 16.
        assert shares * known * sigma**2 >= paid**2 * known + ROUNDING_VARIANCE * shares
    # And hardly above it.
    assert sigma <= 64 + noise * GRID_STEPS / math.sqrt(shares) * (1 + 1e-6) + 6


def test_one_share_of_one_is_the_whole_noise():
    assert abs(share_sigma(noise_multiplier=3.0, shares=1) - grid_sigma(3.0)) <= 1


def test_the_sum_of_shares_has_the_declared_scale_and_the_shape_of_a_gaussian():
    charged, count = event(noise=2.0, shares=4), 20_000
    zeros = np.zeros(count, np.int64)
    total = sum(noisy_share(zeros, event=charged, draws=seeded(seed)) for seed in range(4)) / GRID_STEPS
    assert np.std(total) == pytest.approx(2.0, rel=0.03)
    assert abs(np.mean(total)) < 5 * 2.0 / math.sqrt(count)
    assert np.mean((total / np.std(total)) ** 4) == pytest.approx(3.0, abs=0.25)
    one = noisy_share(zeros, event=charged, draws=seeded(9)) / GRID_STEPS
    assert np.std(one) == pytest.approx(1.0, rel=0.03)


def test_two_small_discrete_gaussians_convolve_to_one():
    """The argument of the module's docstring, at a scale where everything can be summed up exactly."""
    scale, reach = 8.0, np.arange(-200, 201)
    one = np.exp(-(reach**2) / (2 * scale**2))
    one /= one.sum()
    both = np.convolve(one, one)
    wide = np.arange(-400, 401)
    single = np.exp(-(wide**2) / (4 * scale**2))
    single /= single.sum()
    inner = np.abs(wide) < 60
    np.testing.assert_allclose(both[inner], single[inner], rtol=1e-12)


def test_a_share_without_noise_is_the_sum_itself():
    total = np.arange(5)
    np.testing.assert_array_equal(noisy_share(total, event=event(noise=0.0, shares=4), draws=OS), total)


@pytest.mark.parametrize("unit", ["patient", "image"])
@pytest.mark.parametrize("kind", ["mean", "gradient"])
def test_one_unit_moves_the_sum_of_all_sites_by_at_most_one_clipping_norm(unit, kind):
    charged, head = event(noise=0.0, shares=3, mechanism=kind, unit=unit), HeadSpec(kind="linear", dims=DIMS)
    start = np.random.default_rng(3).standard_normal(head.num_parameters).astype(np.float32)
    other = SiteFeatures(
        features=np.random.default_rng(4).standard_normal((30, DIMS)).astype(np.float32),
        labels=np.arange(30) % 2,
        units=np.arange(30),
        public_images=30,
    )

    def part(site):
        if kind == "mean":
            return mean_share(site, event=charged, noise=OS)
        feature_mean = np.zeros(DIMS, np.float32)
        return gradient_share(site, start, head=head, feature_mean=feature_mean, event=charged, noise=OS)

    def release(features, labels, units):
        mine = part(SiteFeatures(features=features, labels=labels, units=units, public_images=1))
        return mine + part(other)

    moves = largest_move(release, dims=DIMS, unit=unit)
    assert set(moves) == set(HOSTILE)
    # In whole grid steps, exactly: no slack for rounding.
    assert max(moves.values()) <= GRID_STEPS
    assert max(moves.values()) > 0.9 * GRID_STEPS


def test_a_sum_leaves_the_grid_in_the_units_of_the_contributions():
    np.testing.assert_array_equal(release_of_sum(np.array([GRID_STEPS, -GRID_STEPS // 2]), clipping_norm=0.5), [0.5, -0.25])


def test_the_public_bound_of_a_share_holds():
    charged = event(noise=1.5, shares=3)
    drawn = noisy_share(np.full(20_000, 7 * GRID_STEPS), event=charged, draws=OS)
    assert np.abs(drawn).max() <= largest_share(images=7, event=charged)


def test_old_events_are_read_and_unshared_ones_are_written_as_before():
    plain, shared = event(), event(shares=4)
    assert "noise_shares" not in events_to_json([plain])
    assert events_from_json(events_to_json([plain, shared])) == (plain, shared)
    assert plain == with_shares(shared, shares=1)


@pytest.mark.parametrize("bad", [lambda: replace(event(), noise_shares=0), lambda: replace(event(shares=2), sample_rate=0.5)])
def test_shares_of_nobody_or_of_sampled_steps_cannot_exist(bad):
    with pytest.raises(InvalidSetting, match=r"noise_shares=\d must be at least 1"):
        bad()


@pytest.mark.parametrize(("noise", "shares"), [(0.0, 3), (1.0, 0), (math.nan, 3)])
def test_a_scale_needs_noise_and_shares(noise, shares):
    with pytest.raises(InvalidSetting, match="shares="):
        share_sigma(noise_multiplier=noise, shares=shares)


def test_nobody_is_exposed_to_less_than_its_own_share():
    with pytest.raises(InvalidSetting, match="honest=0 must be at least 1"):
        exposed([event()], honest=0)
