"""The exact sampler and the grid: closed forms, a second implementation, properties, order and bad input."""

import decimal
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats

from mammo_fed.errors import InvalidSetting
from mammo_fed.models.heads import HeadSpec, build_head, flatten, head_loss, load_flat
from mammo_fed.privacy import noise as noise_module
from mammo_fed.privacy.accounting.composition import gaussian_delta
from mammo_fed.privacy.events import PrivacyEvent
from mammo_fed.privacy.mechanisms.full_batch import LogisticData, private_descent, private_mean, unit_gradients
from mammo_fed.privacy.mechanisms.poisson_sgd import PoissonData, poisson_steps
from mammo_fed.privacy.noise import (
    GRID_STEPS,
    LARGEST_SIGMA,
    MOST_UNITS,
    ROUNDING_VARIANCE,
    FloatDraws,
    GridDraws,
    discrete_gaussian,
    grid_sigma,
    grid_sum,
    noisy_release,
    operating_system_words,
    uniform_below_exp,
)
from mammo_fed.settings.compose import compose_settings

CLIP = 0.5
ALL_ONES = (1 << 64) - 1


def seeded(seed=0):
    return np.random.PCG64DXSM(seed).random_raw


def event(**changes):
    values = {
        "mechanism": "gradient",
        "noise_multiplier": 2.0,
        "steps": 3,
        "sample_rate": 1.0,
        "unit": "patient",
        "clipping_norm": CLIP,
        "max_images_per_patient": 16,
    }
    return PrivacyEvent(**values | changes)


def probabilities(sigma, bound):
    weights = np.exp(-0.5 * (np.arange(-bound, bound + 1) / sigma) ** 2)
    return weights / weights.sum()


def reference_sampler(sigma, rng):
    """Algorithms 1 to 3 of arXiv:2004.00010, word for word, in rational arithmetic."""

    def bernoulli_exp(gamma):
        while gamma > 1:
            if not bernoulli_exp(Fraction(1)):
                return False
            gamma -= 1
        k = 1
        while rng.integers(0, gamma.denominator * k) < gamma.numerator:
            k += 1
        return k % 2 == 1

    def laplace(t):
        while True:
            u = int(rng.integers(0, t))
            if not bernoulli_exp(Fraction(u, t)):
                continue
            v = 0
            while bernoulli_exp(Fraction(1)):
                v += 1
            negative, x = bool(rng.integers(0, 2)), u + t * v
            if not (negative and x == 0):
                return -x if negative else x

    t = sigma + 1
    while True:
        y = laplace(t)
        if bernoulli_exp((abs(y) - Fraction(sigma**2, t)) ** 2 / (2 * sigma**2)):
            return y


# The sampler


@pytest.mark.parametrize("sigma", [1, 2, 3, 4, 7, 8, 30])
def test_draws_have_the_exact_probabilities(sigma):
    draws, bound = discrete_gaussian(400_000, sigma=sigma, words=seeded(sigma)), int(4.5 * sigma) + 1
    inside = np.abs(draws) <= bound
    counts = np.bincount(draws[inside] + bound, minlength=2 * bound + 1)
    expected = probabilities(sigma, 12 * sigma)[12 * sigma - bound : 12 * sigma + bound + 1] * len(draws)
    enough = expected > 10
    statistic = ((counts - expected)[enough] ** 2 / expected[enough]).sum()
    assert stats.chi2.sf(statistic, enough.sum() - 1) > 1e-3
    assert inside.mean() > 0.9999


def test_draws_agree_with_the_published_algorithm():
    rng = np.random.default_rng(1)
    theirs = np.array([reference_sampler(5, rng) for _ in range(4000)])
    ours = discrete_gaussian(40_000, sigma=5, words=seeded(1))
    edges = np.arange(-9, 11) - 0.5
    table = np.array([np.histogram(np.clip(draws, -9, 9), edges)[0] for draws in (theirs, ours)])
    assert stats.chi2_contingency(table).pvalue > 1e-3


@pytest.mark.parametrize("sigma", [1000, 2**30, 5 * 2**30 + 1, 2**31 - 7, 2**55])
def test_draws_of_a_large_scale_are_normal_in_shape_and_uniform_in_their_last_bits(sigma):
    draws = discrete_gaussian(200_000, sigma=sigma, words=seeded(2))
    scaled = draws / sigma
    assert abs(scaled.mean()) < 4 / math.sqrt(len(draws))
    assert scaled.std() == pytest.approx(1, abs=4 / math.sqrt(2 * len(draws)))
    assert (scaled**4).mean() == pytest.approx(3, abs=4 * math.sqrt(96 / len(draws)))
    assert stats.kstest(scaled, "norm").pvalue > 1e-3
    assert stats.chisquare(np.bincount(draws & 15, minlength=16)).pvalue > 1e-3


def test_draws_are_the_same_when_every_comparison_is_made_in_exact_arithmetic(monkeypatch):
    in_float = {sigma: discrete_gaussian(3000, sigma=sigma, words=seeded(3)) for sigma in (3, 5 * 2**30 + 1)}
    monkeypatch.setattr(noise_module, "ABSOLUTE_SLACK", 2.0**65)
    for sigma, draws in in_float.items():
        np.testing.assert_array_equal(discrete_gaussian(3000, sigma=sigma, words=seeded(3)), draws)


@given(st.integers(0, ALL_ONES), st.integers(0, 10**30), st.integers(1, 10**30))
def test_property_exact_comparison_agrees_with_floating_point_wherever_that_is_sure(leading, numerator, denominator):
    position, threshold = leading / 2**64, math.exp(-numerator / denominator)
    if abs(position - threshold) > 1e-12:
        assert uniform_below_exp(leading, numerator, denominator, seeded()) == (position < threshold)


@pytest.mark.parametrize(("numerator", "denominator"), [(1, 1), (1, 2), (7, 3), (10**20 + 1, 10**20), (40, 1)])
def test_a_comparison_that_64_bits_leave_open_is_settled_by_further_words(numerator, denominator):
    exponent = Fraction(numerator, denominator)
    series = sum((-exponent) ** n / math.factorial(n) for n in range(260))
    leading, rest = divmod(math.floor(series * 2**128), 2**64)
    for further, below in ((rest - 5, True), (rest + 5, False), (0, True), (ALL_ONES, False)):
        asked = []

        def words(count, further=further, asked=asked):
            asked.append(count)
            return np.full(count, further, np.uint64)

        assert uniform_below_exp(leading, numerator, denominator, words) is below
        assert asked == [1]


@pytest.mark.parametrize("sigma", [0, -1, LARGEST_SIGMA + 1])
def test_a_scale_out_of_range_is_refused(sigma):
    with pytest.raises(InvalidSetting, match=r"sigma=.* must be in \[1, 2\^55\] grid steps; check privacy.target_epsilon"):
        discrete_gaussian(1, sigma=sigma, words=operating_system_words)


def test_no_draws_ask_for_no_words():
    assert discrete_gaussian(0, sigma=5, words=operating_system_words).shape == (0,)


# What the discreteness costs


@pytest.mark.parametrize("steps", [4, 8, 20])
@pytest.mark.parametrize("multiplier", [0.5, 1.0, 3.0])
def test_discrete_noise_on_a_coarse_grid_costs_no_more_than_was_paid_for(steps, multiplier):
    paid = math.ceil(steps * multiplier)
    sigma = grid_sigma(paid / GRID_STEPS)
    bound = 14 * sigma
    here = probabilities(sigma, bound)
    moved = np.concatenate([np.zeros(steps), here[:-steps]])
    for epsilon in (0.0, 0.1, 0.5, 1.0, 2.0, 4.0):
        delta = np.maximum(moved - math.exp(epsilon) * here, 0.0).sum()
        assert delta <= gaussian_delta(mu=steps / paid, epsilon=epsilon) * (1 + 1e-9)


def test_randomised_rounding_has_a_normaliser_that_hardly_depends_on_where_it_starts():
    with decimal.localcontext(decimal.Context(prec=180)):
        normalisers = [
            sum((-((z - start) ** 2) / (2 * ROUNDING_VARIANCE)).exp() for z in map(decimal.Decimal, range(-140, 141)))
            for start in map(decimal.Decimal, ("0", "0.125", "0.25", "0.5", "0.75"))
        ]
        spread = (max(normalisers) - min(normalisers)) / min(normalisers)
        # Poisson summation: the extremes lie at 0 and 1/2, 4 exp(-2 pi^2 variance) apart.
        assert float(spread.log10()) == pytest.approx(math.log10(4) - 2 * math.pi**2 * ROUNDING_VARIANCE / math.log(10))
        assert 0 < spread < decimal.Decimal("1e-136")


@given(st.floats(1e-9, 1e6))
def test_property_the_grid_scale_leaves_room_for_the_rounding_and_not_more(multiplier):
    paid = Fraction(multiplier) * GRID_STEPS
    assert grid_sigma(multiplier) ** 2 - ROUNDING_VARIANCE >= paid**2
    assert grid_sigma(multiplier) <= paid + 6


# The grid

contributions = hnp.arrays(
    np.float64,
    st.tuples(st.integers(1, 6), st.integers(1, 8)),
    elements=st.floats(-1e300, 1e300) | st.floats(-1.0, 1.0) | st.sampled_from([np.nan, np.inf, -np.inf, 0.0, 5e-324, 3e38]),
)


@settings(deadline=None)
@given(contributions, st.floats(1e-3, 1e3) | st.sampled_from([1e-100, 1e100]))
def test_property_rounding_never_raises_a_norm_and_never_flips_a_sign(rows, clipping_norm):
    for row in rows:
        steps = [int(value) for value in grid_sum(row[None], clipping_norm=clipping_norm)]
        norm_squared = sum(value * value for value in steps)
        assert norm_squared <= GRID_STEPS**2
        if not np.isfinite(row).all():
            assert norm_squared == 0
            continue
        # In exact arithmetic: no coordinate is longer than the contribution's own.
        grid = Fraction(clipping_norm) / GRID_STEPS
        for value, original in zip(steps, row, strict=True):
            assert abs(value * grid) <= abs(Fraction(original)) * (1 + Fraction(1, 10**15))
            assert value * original >= 0


@settings(deadline=None)
@given(contributions, st.randoms(use_true_random=False))
def test_property_a_sum_is_the_same_in_any_order_and_in_any_parts(rows, random):
    whole = grid_sum(rows, clipping_norm=CLIP)
    order = list(range(len(rows)))
    random.shuffle(order)
    np.testing.assert_array_equal(grid_sum(rows[order], clipping_norm=CLIP), whole)
    parts = [grid_sum(rows[index : index + 1], clipping_norm=CLIP) for index in order]
    np.testing.assert_array_equal(np.sum(parts, axis=0), whole)


def test_the_largest_sums_and_the_largest_noise_fit_64_bits():
    saturated = grid_sum(np.full((100_000, 1), 1e30), clipping_norm=CLIP)[0]
    assert saturated == 100_000 * (saturated // 100_000)
    assert 0.999 * GRID_STEPS < saturated / 100_000 <= GRID_STEPS
    largest_draw = 128 * LARGEST_SIGMA
    assert MOST_UNITS * GRID_STEPS + largest_draw < 2**63
    draws = discrete_gaussian(100_000, sigma=LARGEST_SIGMA, words=seeded(4))
    assert np.abs(draws.astype(float)).max() < 7 * LARGEST_SIGMA
    # A unit's squares are summed in 64 bits too: even without the margin of the clip there is room.
    assert 2 * GRID_STEPS**2 < 2**63


@pytest.mark.parametrize("clipping_norm", [0.0, -1.0, 1e-101, 1e101, np.nan, np.inf])
def test_a_clipping_norm_that_leaves_no_grid_is_refused(clipping_norm):
    with pytest.raises(InvalidSetting, match=r"clipping_norm=.* must be in \[1e-100, 1e\+100\]"):
        grid_sum(np.zeros((1, 2)), clipping_norm=clipping_norm)


def test_noise_beyond_the_grid_is_refused():
    with pytest.raises(InvalidSetting, match="sigma="):
        noisy_release(np.zeros(2, np.int64), event=event(noise_multiplier=1e8), words=seeded())


# Releases


def cohort(images=60, dims=5, seed=0):
    rng = np.random.default_rng(seed)
    features = rng.standard_normal((images, dims)).astype(np.float32)
    units = np.unique(rng.integers(0, 25, images), return_inverse=True)[1]
    return features, rng.integers(0, 2, images), units


START = np.array([0.3, -1.0, 2.0, 0.1, -0.4, 0.7], np.float32)


def mean_release(features, labels, units, *, noise, **changes):
    charged = event(mechanism="mean", **{"steps": 1} | changes)
    return private_mean(features, units, event=charged, public_images=60, noise=noise)


def descent_release(features, labels, units, *, noise, **changes):
    data = LogisticData.build(features, labels, units, bias_scale=0.2)
    return private_descent(data, START, event=event(**changes), public_images=60, learning_rate=3.0, proximal=0.1, noise=noise)


def poisson_release(features, labels, units, *, noise, kind="linear", **changes):
    spec = HeadSpec(kind=kind, dims=5, hidden=4)
    head = build_head(spec, seed=1)
    if kind == "linear":
        load_flat(head, START)
    poisson_steps(
        head,
        PoissonData(features=features, labels=labels, units=units),
        loss=lambda logits, truth: head_loss(logits, truth, label_smoothing=0.0),
        event=event(**changes),
        public_images=60,
        learning_rate=3.0,
        weight_decay=0.0,
        optimizer="sgd",
        proximal=0.1,
        noise=noise,
        sampling=GridDraws(words=seeded(9)),
    )
    return flatten(head)


def mlp_release(features, labels, units, *, noise, **changes):
    return poisson_release(features, labels, units, noise=noise, kind="mlp", **changes)


RELEASES = [mean_release, descent_release, poisson_release, mlp_release]


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("seed", range(4))
def test_a_release_is_the_same_bit_for_bit_whatever_the_order_of_the_units(release, seed):
    features, labels, units = cohort(seed=seed)
    renamed = np.random.default_rng(seed + 100).permutation(units.max() + 1)[units]
    # Rows move with their unit; images of one unit keep their order among themselves.
    order = np.argsort(renamed, kind="stable")
    first = release(features, labels, units, noise=GridDraws(words=seeded(seed)))
    again = release(features[order], labels[order], renamed[order], noise=GridDraws(words=seeded(seed)))
    np.testing.assert_array_equal(first, again)
    other = release(features, labels, units, noise=GridDraws(words=seeded(seed + 1)))
    assert (first != other).any()


@pytest.mark.parametrize("dims", [3, 5, 64, 401, 3000])
def test_a_unit_s_gradient_depends_on_nothing_but_its_own_rows(dims):
    features, labels, units = cohort(images=203, dims=dims)
    weights = np.random.default_rng(5).standard_normal(dims + 1).astype(np.float32)

    def gradients(keep):
        kept_units = np.unique(units[keep], return_inverse=True)[1]
        data = LogisticData.build(features[keep], labels[keep], kept_units, bias_scale=0.2)
        return np.concatenate(list(unit_gradients(data, weights)))

    everyone = gradients(np.ones(len(units), bool))
    assert everyone.shape == (units.max() + 1, dims + 1)
    for unit in range(units.max() + 1):
        np.testing.assert_array_equal(gradients(units == unit)[0], everyone[unit])
        np.testing.assert_array_equal(gradients(units != unit), np.delete(everyone, unit, axis=0))


@pytest.mark.parametrize("clipping_norm", [0.05, 0.5, 50.0])
def test_without_noise_the_grid_moves_the_gradient_sum_by_less_than_a_step_per_unit(clipping_norm):
    features, labels, units = cohort()
    data = LogisticData.build(features, labels, units, bias_scale=0.2)
    total = sum(grid_sum(block, clipping_norm=clipping_norm) for block in unit_gradients(data, START))
    rows = np.concatenate([features, np.full((60, 1), np.float32(0.2))], axis=1).astype(np.float64)
    per_image = (1 / (1 + np.exp(-rows @ START.astype(np.float64))) - labels)[:, None] * rows
    per_unit = np.array([per_image[units == unit].sum(axis=0) for unit in range(units.max() + 1)])
    norms = np.linalg.norm(per_unit, axis=1, keepdims=True)
    exact = (per_unit * np.minimum(1, clipping_norm * (1 - 1e-6) / norms)).sum(axis=0)
    grid = clipping_norm / GRID_STEPS
    assert np.abs(total * grid - exact).max() <= len(per_unit) * grid


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("clipping_norm", [0.05, 50.0])
def test_without_noise_secure_and_float_releases_agree(release, clipping_norm):
    changes = {"noise_multiplier": 0.0, "clipping_norm": clipping_norm}
    secure = release(*cohort(), noise=GridDraws(words=seeded()), **changes)
    in_float = release(*cohort(), noise=FloatDraws(generator=np.random.default_rng(0)), **changes)
    np.testing.assert_allclose(secure, in_float, rtol=1e-4, atol=2e-5)


def test_poisson_draws_keep_to_the_rate_and_never_round_it_up():
    draws = GridDraws(words=seeded())
    rate = 0.1
    assert len(draws.poisson_sample(200_000, sample_rate=rate)) / 200_000 == pytest.approx(
        rate, abs=4 * math.sqrt(rate * (1 - rate) / 200_000)
    )
    assert draws.poisson_sample(5, sample_rate=1.0).tolist() == [0, 1, 2, 3, 4]
    for rate in (0.1, 1 / 3, 2.0**-70, math.nextafter(1, 0)):
        threshold = math.floor(Fraction(rate) * 2**64)
        at_the_edge = GridDraws(words=lambda count, word=threshold: np.full(count, word, np.uint64))
        assert len(at_the_edge.poisson_sample(1, sample_rate=rate)) == 0
        if threshold:
            below = GridDraws(words=lambda count, word=threshold - 1: np.full(count, word, np.uint64))
            assert len(below.poisson_sample(1, sample_rate=rate)) == 1


def test_the_setting_is_secure_by_default_and_knows_no_third_kind():
    assert compose_settings([]).settings.privacy.noise == "secure"
    assert compose_settings(["privacy=dp_sgd", "privacy.noise=float"]).settings.privacy.noise == "float"
    with pytest.raises(InvalidSetting, match=r"privacy\.noise='none' must be one of secure, float"):
        compose_settings(["privacy.noise=none"])


@pytest.mark.parametrize("chosen", [[], ["privacy=dp_gd"], ["privacy=dp_sgd"], ["privacy=dp_sgd", "model.head=mlp"]])
def test_relation_of_prices_to_floating_point_is_exact_by_default_for_every_mechanism(chosen):
    assert compose_settings(chosen).settings.privacy.noise == "secure"
