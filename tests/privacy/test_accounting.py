"""What every accountant must get right, and where each of them stands against an independent calculation."""

import math

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.stats import norm

from mammo_fed.errors import InvalidSetting
from mammo_fed.privacy.accounting.calibration import calibrate
from mammo_fed.privacy.accounting.composition import Release, gaussian_delta, gaussian_epsilon, gaussian_mu
from mammo_fed.privacy.accounting.pricing import ACCOUNTANTS, delta_at, epsilon, patient_epsilon, pld_delta, pld_epsilon
from mammo_fed.privacy.events import PrivacyEvent

EVERY = sorted(ACCOUNTANTS)
SAMPLING = [name for name in EVERY if name != "gdp"]
WITH_DELTA = [name for name in EVERY if name != "prv"]
# How far above the exact value of a full-batch run each may be: relative, absolute.
LOOSENESS = {"gdp": (2e-6, 1e-9), "pld": (2e-5, 1e-6), "prv": (1e-4, 0.0101), "rdp": (0.15, 0.02)}
# The paper's steps: batches of 128 out of 1,104 images, 9 in each of 300 epochs, delta 1e-4.
PAPER_RATE, PAPER_STEPS, PAPER_DELTA = 128 / 1104, 2700, 1e-4


def release(noise, steps=1, rate=1.0, unit="patient", images=1):
    return PrivacyEvent(
        mechanism="gradient",
        noise_multiplier=noise,
        steps=steps,
        sample_rate=rate,
        unit=unit,
        clipping_norm=1.0,
        max_images_per_patient=images,
    )


def exact_delta(mu: float, eps: float) -> float:
    """Theorem 8 of arXiv:1805.06530, term by term, in 60 digits."""
    with mpmath.workdps(60):
        mu, eps = mpmath.mpf(mu), mpmath.mpf(eps)
        return float(mpmath.ncdf(mu / 2 - eps / mu) - mpmath.exp(eps) * mpmath.ncdf(-mu / 2 - eps / mu))


def exact_epsilon(mu: float, delta: float) -> float:
    """Smallest epsilon >= 0 with exact_delta <= delta, by halving an interval."""
    if exact_delta(mu, 0.0) <= delta:
        return 0.0
    low, high = 0.0, mu * mu / 2 + mu * math.sqrt(-2 * math.log(delta))
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if exact_delta(mu, middle) > delta else (low, middle)
    return high


def total_mu(events) -> float:
    return math.sqrt(sum(each.steps / each.noise_multiplier**2 for each in events))


def one_step_delta(noise: float, rate: float, images: int, eps: float) -> float:
    """Larger direction of the hockey-stick divergence of sum_j Binomial(j) N(j, noise^2) and N(0, noise^2), in 40 digits."""
    with mpmath.workdps(40):
        rate, noise, growth = mpmath.mpf(rate), mpmath.mpf(noise), mpmath.exp(mpmath.mpf(eps))
        weights = [mpmath.binomial(images, j) * rate**j * (1 - rate) ** (images - j) for j in range(images + 1)]

        def present_above(x):
            return sum(weight * mpmath.ncdf((j - x) / noise) for j, weight in enumerate(weights))

        def crossing(level):
            """The point where the likelihood ratio, which rises in x from (1 - rate)^images, reaches `level`."""
            low, high = mpmath.mpf(-1000), mpmath.mpf(1000)
            for _ in range(140):
                x = (low + high) / 2
                ratio = sum(weight * mpmath.exp((2 * j * x - j * j) / (2 * noise**2)) for j, weight in enumerate(weights))
                low, high = (x, high) if ratio < level else (low, x)
            return high

        x = crossing(growth)
        removal = present_above(x) - growth * mpmath.ncdf(-x / noise)
        x = crossing(1 / growth)
        addition = mpmath.ncdf(x / noise) - growth * (1 - present_above(x)) if weights[0] < 1 / growth else 0
        return float(max(removal, addition))


# Closed form ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mu", [1e-3, 0.1, 1.0, 3.0, 30.0])
@pytest.mark.parametrize("delta", [1e-10, 1e-5, 1e-2, 0.6])
def test_accountant_closed_form_matches_sixty_digits_from_above(mu, delta):
    value = gaussian_epsilon(mu=mu, delta=delta)
    exact = exact_epsilon(mu, delta)
    assert exact * (1 - 1e-14) <= value <= exact * (1 + 1e-9) + 1e-12 * mu
    for eps in (0.0, value, 2 * value + 0.1):
        assert gaussian_delta(mu=mu, epsilon=eps) == pytest.approx(exact_delta(mu, eps), rel=1e-9)


@pytest.mark.parametrize("eps", [-3.0, -0.1, 0.0, 0.5, math.inf, -math.inf])
def test_accountant_closed_form_covers_the_whole_curve(eps):
    expected = {math.inf: 0.0, -math.inf: 1.0}.get(eps)
    assert gaussian_delta(mu=1.3, epsilon=eps) == pytest.approx(exact_delta(1.3, eps) if expected is None else expected)
    assert gaussian_delta(mu=0.0, epsilon=eps) == max(0.0, -math.expm1(eps))
    assert gaussian_delta(mu=math.inf, epsilon=eps) == 1.0


@given(st.floats(1e-3, 50), st.floats(1e-9, 0.5))
@settings(max_examples=50, deadline=None)
def test_accountant_closed_form_inverts_to_the_safe_side(eps, delta):
    mu = gaussian_mu(epsilon=eps, delta=delta)
    assert exact_delta(mu, eps) <= delta * (1 + 1e-12)
    assert exact_delta(mu * (1 + 1e-9), eps) >= delta * (1 - 1e-9)


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize(("noise", "steps", "delta"), [(15.0, 100, 1e-5), (2.0, 1, 1e-4), (40.0, 12, 1e-4), (0.5, 3, 1e-6)])
def test_accountant_never_falls_below_the_exact_value_of_a_full_batch_run(name, noise, steps, delta):
    exact = exact_epsilon(math.sqrt(steps) / noise, delta)
    relative, absolute = LOOSENESS[name]
    assert exact <= epsilon([release(noise, steps)], delta=delta, accountant=name) <= exact * (1 + relative) + absolute


@pytest.mark.parametrize("name", WITH_DELTA)
def test_accountant_delta_never_falls_below_the_exact_value_of_a_full_batch_run(name):
    for eps in (0.0, 1.0, 4.0):
        exact = exact_delta(10 / 15, eps)
        assert (
            exact <= delta_at([release(15.0, 100)], epsilon=eps, accountant=name) <= exact * (1.0001 if name != "rdp" else 10)
        )


@given(st.lists(st.tuples(st.floats(0.5, 50), st.integers(1, 500)), min_size=1, max_size=4), st.floats(1e-8, 1e-2))
@settings(max_examples=15, deadline=None)
def test_accountant_bounds_hold_for_any_full_batch_sequence(pairs, delta):
    events = [release(noise, steps) for noise, steps in pairs]
    exact = exact_epsilon(total_mu(events), delta)
    for name in ("gdp", "pld", "rdp"):
        assert epsilon(events, delta=delta, accountant=name) >= exact


# Values by others ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rate", "steps", "delta", "noise", "values"),
    [
        (128 / 1100, 2700, 1e-4, 6.0, {"rdp": 4.27, "prv": 3.90, "pld": 3.89}),
        (1.0, 100, 1e-5, 15.0, {"rdp": 2.98, "prv": 2.76, "gdp": 2.7534, "pld": 2.753}),
        (0.1, 50, 1e-5, 1.0, {"rdp": 5.88, "prv": 5.16, "pld": 5.15}),
    ],
)
def test_accountant_values_are_those_measured_with_the_libraries_alone(rate, steps, delta, noise, values):
    for name, value in values.items():
        assert epsilon([release(noise, steps, rate)], delta=delta, accountant=name) == pytest.approx(value, abs=0.006)


@pytest.mark.parametrize(("noise", "rate", "steps"), [(1.0, 0.1, 50), (6.0, 0.116, 2700), (0.5, 0.02, 300), (9.0, 1.0, 40)])
def test_accountant_rdp_is_the_one_of_the_papers_rows(noise, rate, steps):
    from opacus.accountants import RDPAccountant

    opacus = RDPAccountant()
    opacus.history = [(noise, rate, steps)]
    assert epsilon([release(noise, steps, rate)], delta=1e-4, accountant="rdp") == pytest.approx(
        opacus.get_epsilon(1e-4), rel=3e-6
    )


@pytest.mark.parametrize("images", [1, 2, 5])
@pytest.mark.parametrize(("noise", "rate"), [(0.6, 0.01), (3.0, 0.5)])
@pytest.mark.parametrize("eps", [0.1, 1.0])
def test_accountant_pld_matches_one_sampled_step_from_above(images, noise, rate, eps):
    exact = one_step_delta(noise, rate, images, eps)
    one = Release(sample_rate=rate, noise_multiplier=noise, group=images, steps=1)
    # The mixture's grid is inverted to 1e-6 in x, which moves delta by the square of that.
    assert exact * (1 - 1e-11) <= pld_delta([one], epsilon=eps) <= exact * (1 + 1e-4) + 2e-15


@pytest.mark.parametrize(("noise", "rate", "steps"), [(1.0, 0.1, 50), (0.8, 0.02, 400), (4.2, PAPER_RATE, PAPER_STEPS)])
def test_accountant_prv_and_rdp_bracket_pld_from_above(noise, rate, steps):
    prices = {name: epsilon([release(noise, steps, rate)], delta=1e-5, accountant=name) for name in SAMPLING}
    assert prices["pld"] <= prices["prv"] <= prices["pld"] + 0.025
    assert prices["pld"] <= prices["rdp"] <= 1.25 * prices["pld"]


def test_accountant_pld_and_prv_agree_on_steps_of_many_kinds():
    rng = np.random.default_rng(7)
    events = [release(noise, 10, rate) for noise, rate in zip(rng.uniform(1, 3, 4), rng.uniform(0.05, 0.2, 4), strict=True)]
    events.append(release(2.5))
    pld, prv = (epsilon(events, delta=1e-5, accountant=name) for name in ("pld", "prv"))
    assert pld <= prv <= pld + 0.025


@pytest.mark.parametrize("steps", [1_000, 10_000, 100_000])
def test_accountant_pld_stays_above_the_exact_value_after_many_small_steps(steps):
    one = Release(sample_rate=1.0, noise_multiplier=math.sqrt(steps), group=1, steps=steps)
    for delta in (1e-5, 1e-8, 1e-10, 1e-12):
        assert pld_epsilon([one], delta=delta) >= exact_epsilon(1.0, delta)
    assert pld_epsilon([one], delta=1e-5) <= exact_epsilon(1.0, 1e-5) * (1 + 1e-4)


# Conformance ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EVERY)
def test_accountant_charges_nothing_for_nothing(name):
    assert epsilon([], delta=1e-5, accountant=name) == 0.0
    assert patient_epsilon([], delta=1e-5, accountant=name) == 0.0


@pytest.mark.parametrize("name", EVERY)
def test_accountant_says_infinity_without_noise(name):
    events = [release(10.0, 5), release(0.0)]
    assert epsilon(events, delta=1e-5, accountant=name) == math.inf
    assert patient_epsilon(events, delta=1e-5, accountant=name) == math.inf


@pytest.mark.parametrize("name", WITH_DELTA)
def test_accountant_delta_runs_from_one_without_noise_to_zero_at_infinity(name):
    assert delta_at([], epsilon=0.0, accountant=name) == 0.0
    assert delta_at([release(0.0)], epsilon=5.0, accountant=name) == 1.0
    assert delta_at([release(2.0)], epsilon=math.inf, accountant=name) == 0.0


@pytest.mark.parametrize(("name", "rate"), [*((name, 1.0) for name in EVERY), *((name, 0.1) for name in SAMPLING)])
def test_accountant_price_rises_with_steps_and_falls_with_noise_and_delta(name, rate):
    def price(noise=3.0, steps=40, delta=1e-5):
        return epsilon([release(noise, steps, rate)], delta=delta, accountant=name)

    assert price(steps=20) < price(steps=40) < price(steps=41)
    assert price(noise=3.03) < price(noise=3.0) < price(noise=2.0)
    assert price(delta=1e-4) < price(delta=1e-5) < price(delta=1e-6)


@pytest.mark.parametrize("name", SAMPLING)
def test_accountant_price_rises_with_the_sampling_rate(name):
    prices = [epsilon([release(2.0, 50, rate)], delta=1e-5, accountant=name) for rate in (0.05, 0.1, 0.101, 0.5, 1.0)]
    assert prices == sorted(prices)
    assert prices[-1] > prices[0]


@pytest.mark.parametrize("name", EVERY)
def test_accountant_price_depends_neither_on_order_nor_on_how_steps_are_cut(name):
    rates = (1.0, 1.0) if name == "gdp" else (1.0, 0.1)
    whole = [release(2.0, 6, rates[1]), release(5.0, 10, rates[0]), release(3.0)]
    cut = [release(3.0), *[release(5.0, 5, rates[0]), *[release(2.0, 1, rates[1])] * 3] * 2]
    assert epsilon(cut, delta=1e-5, accountant=name) == pytest.approx(epsilon(whole, delta=1e-5, accountant=name), rel=1e-9)


@pytest.mark.parametrize("name", EVERY)
def test_accountant_composition_costs_more_than_each_part_and_no_more_than_their_sum(name):
    first, second = [release(4.0, 30)], [release(2.0, 5, 1.0 if name == "gdp" else 0.2)]
    together = epsilon(first + second, delta=2e-5, accountant=name)
    assert together > max(epsilon(part, delta=2e-5, accountant=name) for part in (first, second))
    assert together <= sum(epsilon(part, delta=1e-5, accountant=name) for part in (first, second))


@pytest.mark.parametrize("name", EVERY)
def test_accountant_adds_full_batch_steps_in_squares(name):
    merged = epsilon([release(5.0)], delta=1e-5, accountant=name)
    split = epsilon([release(5.0 / 0.6), release(5.0 / 0.8)], delta=1e-5, accountant=name)
    assert split == pytest.approx(merged, rel=1e-9)


@given(st.floats(0.8, 5), st.floats(0.001, 0.5), st.integers(1, 200), st.sampled_from([1e-6, 1e-4]))
@settings(max_examples=8, deadline=None)
def test_accountant_delta_and_epsilon_undo_each_other(noise, rate, steps, delta):
    events = [release(noise, steps, rate), release(4.0)]
    for name in ("pld", "rdp"):
        eps = epsilon(events, delta=delta, accountant=name)
        assert delta_at(events, epsilon=eps, accountant=name) <= delta * (1 + 1e-4)
        assert epsilon(events, delta=delta, accountant="rdp") >= eps * (1 - 1e-5)


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("noise", [1e-9, 1e-3, 1e9, 1e300])
def test_accountant_answers_safely_at_extreme_noise(name, noise):
    eps = epsilon([release(noise, 3)], delta=1e-5, accountant=name)
    assert eps >= exact_epsilon(math.sqrt(3) / noise, 1e-5) if noise < 1 else 0 <= eps < 0.02


def test_accountant_pld_answers_beyond_any_grid_with_a_valid_bound():
    events = [release(0.02)]
    assert epsilon(events, delta=1e-5, accountant="pld") >= exact_epsilon(50.0, 1e-5)
    assert exact_delta(50.0, 2600.0) <= delta_at(events, epsilon=2600.0, accountant="pld") < 1.0
    group = [release(0.1, 1, 0.5, unit="image", images=5)]
    assert patient_epsilon(group, delta=1e-5, accountant="pld") >= epsilon(
        [release(0.02, 1, 0.5)], delta=1e-5, accountant="pld"
    )


# Refusals ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("delta", [0.0, 1.0, -1e-5, math.nan])
def test_accountant_names_a_delta_out_of_range(name, delta):
    with pytest.raises(InvalidSetting, match=r"delta=.* must be .*; check privacy\.delta"):
        epsilon([], delta=delta, accountant=name)


def test_accountant_gdp_refuses_sampled_steps():
    with pytest.raises(InvalidSetting, match=r"sample_rate=0\.1 must be 1 for accountant='gdp'; check privacy\.accountant"):
        epsilon([release(1.0, 50, 0.1)], delta=1e-5, accountant="gdp")


def test_accountant_that_does_not_exist_is_refused():
    with pytest.raises(InvalidSetting, match=r"accountant='moments' must be one of .*; check privacy\.accountant"):
        epsilon([], delta=1e-5, accountant="moments")


def test_accountant_refuses_to_add_up_patients_and_images():
    with pytest.raises(InvalidSetting, match="unit="):
        epsilon([release(2.0), release(2.0, unit="image")], delta=1e-5, accountant="gdp")


def test_accountant_prv_refuses_what_opacus_does_not_offer():
    with pytest.raises(InvalidSetting, match="accountant='prv' must be 'pld', 'rdp' or 'gdp' to ask for a delta"):
        delta_at([release(2.0)], epsilon=1.0, accountant="prv")
    with pytest.raises(InvalidSetting, match="Opacus cannot discretise them"):
        epsilon([release(1000.0, 10**9, 0.01)], delta=1e-5, accountant="prv")


def test_accountant_names_a_negative_epsilon():
    with pytest.raises(InvalidSetting, match=r"epsilon=-1\.0 must be a number, at least 0"):
        delta_at([release(2.0)], epsilon=-1.0, accountant="pld")


# A patient's price ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EVERY)
def test_accountant_charges_patient_level_events_to_the_patient_as_they_are(name):
    events = [release(3.0, 20, images=9)]
    assert patient_epsilon(events, delta=1e-5, accountant=name) == epsilon(events, delta=1e-5, accountant=name)


@pytest.mark.parametrize("name", EVERY)
def test_accountant_charges_k_full_batch_images_as_k_times_the_sensitivity(name):
    of_images = patient_epsilon([release(12.0, 20, unit="image", images=4)], delta=1e-5, accountant=name)
    assert of_images == pytest.approx(epsilon([release(3.0, 20)], delta=1e-5, accountant=name), rel=1e-9)


@pytest.mark.parametrize("name", SAMPLING)
def test_accountant_charges_a_single_sampled_image_as_an_image(name):
    events = [release(2.0, 50, 0.1, unit="image")]
    assert patient_epsilon(events, delta=1e-5, accountant=name) == epsilon(events, delta=1e-5, accountant=name)


@pytest.mark.parametrize("name", ["rdp", "prv"])
def test_accountant_other_than_pld_refuses_several_sampled_images(name):
    with pytest.raises(InvalidSetting, match="must be 'pld' to price a patient with several sampled images"):
        patient_epsilon([release(2.0, 50, 0.1, unit="image", images=2)], delta=1e-5, accountant=name)


@pytest.mark.parametrize(
    ("calibrated_by", "of_two", "of_four"),
    [("pld", pytest.approx(14.5, abs=0.1), 38.0), ("rdp", pytest.approx(13.1, abs=0.1), 34.1)],
)
def test_accountant_patient_price_of_the_papers_epsilon_six(calibrated_by, of_two, of_four):
    def steps(noise, images=1):
        return [release(noise, PAPER_STEPS, PAPER_RATE, unit="image", images=images)]

    noise = calibrate(steps, target_epsilon=6.0, delta=PAPER_DELTA, accountant=calibrated_by)
    assert patient_epsilon(steps(noise, 2), delta=PAPER_DELTA, accountant="pld") == of_two
    assert patient_epsilon(steps(noise, 4), delta=PAPER_DELTA, accountant="pld") == pytest.approx(of_four, abs=0.1)


# What a price is not -------------------------------------------------------------------------------------------------------


def test_accountant_pld_is_no_filter_when_the_next_release_is_chosen_by_the_last_outcome():
    """After N(1, 1) against N(0, 1): one more full-batch release, or one rare and loud step, whichever then hurts more."""
    eps, rate, noise, mu = 6.0, 0.001, 0.25, 1.063
    full = Release(sample_rate=1.0, noise_multiplier=1 / math.hypot(1.0, mu), group=1, steps=1)
    rare = Release(sample_rate=rate, noise_multiplier=noise, group=1, steps=1)
    first = Release(sample_rate=1.0, noise_multiplier=1.0, group=1, steps=1)
    branches = (pld_delta([full], epsilon=eps), pld_delta([first, rare], epsilon=eps))

    def after_full(left):
        return gaussian_delta(mu=mu, epsilon=left)

    def after_rare(left):
        if left <= math.log1p(-rate):
            return -math.expm1(left)
        edge = noise**2 * math.log((math.exp(left) - (1 - rate)) / rate) + 0.5
        kept = (1 - math.exp(left) - rate) * norm.sf(edge / noise)
        return kept + rate * norm.sf((edge - 1) / noise)

    def delta_of(second):
        # The first outcome x has privacy loss x - 1/2, which leaves that much less for the second release.
        return quad(lambda x: norm.pdf(x, 1) * second(eps - (x - 0.5)), -12, 14, points=list(range(8)), limit=2000)[0]

    assert delta_of(after_full) == pytest.approx(branches[0], rel=1e-4)
    assert delta_of(after_rare) == pytest.approx(branches[1], rel=1e-4)
    adaptive = delta_of(lambda left: max(after_full(left), after_rare(left)))
    assert adaptive > 1.7 * max(branches)
    assert adaptive == pytest.approx(1.8e-4, rel=0.02)


@pytest.mark.parametrize(
    "field", ["mechanism", "unit", "noise_multiplier", "sample_rate", "clipping_norm", "steps", "noise_shares"]
)
def test_accountant_refuses_an_event_in_a_line_whose_length_its_sender_does_not_decide(field):
    event = PrivacyEvent(
        mechanism="gradient",
        noise_multiplier=2.0,
        steps=1,
        sample_rate=1.0,
        unit="patient",
        clipping_norm=1.0,
        max_images_per_patient=4,
    )
    with pytest.raises(InvalidSetting) as refused:
        PrivacyEvent.from_dict({**event.as_dict(), field: "x\u202e" * 50_000})
    assert len(str(refused.value)) < 500
    assert str(refused.value).isprintable()
