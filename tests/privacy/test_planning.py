"""Noise found for a target, and schedules declared whole."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mammo_fed.errors import InvalidSetting
from mammo_fed.privacy.accounting.composition import gaussian_epsilon, gaussian_mu
from mammo_fed.privacy.accounting.pricing import epsilon
from mammo_fed.privacy.events import PrivacyEvent
from mammo_fed.privacy.schedule import (
    Schedule,
    auto_rounds,
    calibrate,
    epsilon_curve,
    noise_for,
    plan_schedule,
    remaining_epsilon,
)

DELTA = 1e-4
STEP = PrivacyEvent(
    mechanism="gradient",
    noise_multiplier=1.0,
    steps=10,
    sample_rate=1.0,
    unit="patient",
    clipping_norm=1.0,
    max_images_per_patient=4,
)


def plan(**changes):
    settings_ = {
        "unit": "patient",
        "target_epsilon": 6.0,
        "delta": DELTA,
        "accountant": "pld",
        "rounds": 12,
        "local_steps": 1,
        "sample_rate": 1.0,
        "mean_fraction": 0.1,
        "clipping_norm": 0.5,
        "max_images_per_patient": 4,
    }
    return plan_schedule(**{**settings_, **changes})


def price(events, accountant="pld", delta=DELTA):
    return epsilon(events, delta=delta, accountant=accountant)


def mu_of(event):
    return math.sqrt(event.steps) / event.noise_multiplier


# Calibration ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", [0.5, 1.0, 6.0, 60.0])
@pytest.mark.parametrize(
    ("accountant", "rate"), [("gdp", 1.0), ("pld", 1.0), ("rdp", 1.0), ("prv", 1.0), ("pld", 0.1), ("rdp", 0.1)]
)
def test_calibrated_epsilon_lies_just_below_the_target(accountant, rate, target):
    def events(noise):
        return [replace(STEP, noise_multiplier=noise, sample_rate=rate)]

    noise = calibrate(events, target_epsilon=target, delta=DELTA, accountant=accountant)
    assert target * (1 - 1e-6) <= price(events(noise), accountant) <= target
    # The margin of the shown epsilon and the tolerance of the search together are 2e-6 at most.
    assert price(events(noise * (1 - 3e-6)), accountant) > target


@given(st.floats(0.05, 100), st.floats(1e-8, 1e-2), st.integers(1, 1000))
@settings(max_examples=30, deadline=None)
def test_calibration_in_the_full_batch_is_the_closed_form(target, delta, steps):
    noise = noise_for(replace(STEP, steps=steps), spent=(), target_epsilon=target, delta=delta, accountant="gdp")
    closed = math.sqrt(steps) / gaussian_mu(epsilon=target, delta=delta)
    assert closed <= noise <= closed * (1 + 1e-5)


def test_an_infinite_target_needs_no_noise():
    assert (
        calibrate(lambda noise: [replace(STEP, noise_multiplier=noise)], target_epsilon=math.inf, delta=DELTA, accountant="pld")
        == 0
    )


@pytest.mark.parametrize("target", [0.0, -1.0, math.nan])
def test_a_target_that_is_not_above_zero_is_named(target):
    expected = pytest.raises(InvalidSetting, match=r"target_epsilon=.* must be .* above 0; check privacy\.target_epsilon")
    with expected:
        calibrate(lambda noise: [replace(STEP, noise_multiplier=noise)], target_epsilon=target, delta=DELTA, accountant="gdp")
    with expected:
        plan(target_epsilon=target)
    with expected:
        auto_rounds(target)


def test_calibration_refuses_when_what_is_spent_leaves_no_room():
    with pytest.raises(InvalidSetting, match=r"noise_multiplier=.* to meet the target; check privacy\.target_epsilon"):
        noise_for(STEP, spent=[STEP], target_epsilon=1.0, delta=DELTA, accountant="gdp")


@pytest.mark.parametrize("accountant", ["gdp", "pld"])
def test_noise_for_further_steps_counts_what_is_spent(accountant):
    spent = [replace(STEP, noise_multiplier=8.0)]
    noise = noise_for(STEP, spent=spent, target_epsilon=6.0, delta=DELTA, accountant=accountant)
    together = price([*spent, replace(STEP, noise_multiplier=noise)], accountant)
    assert 6.0 * (1 - 1e-6) <= together <= 6.0
    assert noise > noise_for(STEP, spent=(), target_epsilon=6.0, delta=DELTA, accountant=accountant)


def test_remaining_epsilon_is_what_is_left_in_squares():
    spent = [replace(STEP, noise_multiplier=8.0)]
    left = math.sqrt(gaussian_mu(epsilon=6.0, delta=DELTA) ** 2 - mu_of(spent[0]) ** 2)
    remaining = remaining_epsilon(spent, target_epsilon=6.0, delta=DELTA, accountant="gdp")
    assert remaining == pytest.approx(gaussian_epsilon(mu=left, delta=DELTA), rel=1e-5)
    assert 6.0 - price(spent, "gdp") < remaining < 6.0


@pytest.mark.parametrize("accountant", ["gdp", "pld", "rdp"])
def test_remaining_epsilon_runs_from_the_target_to_zero(accountant):
    def left(spent, target=6.0):
        return remaining_epsilon(spent, target_epsilon=target, delta=DELTA, accountant=accountant)

    assert left([]) == 6.0
    assert left([STEP], math.inf) == math.inf
    assert left([STEP]) == 0.0
    assert left(plan(accountant=accountant).events()) == 0.0


# Schedules -----------------------------------------------------------------------------------------------------------------


def test_full_batch_plan_splits_mu_squared_as_asked():
    schedule = plan(accountant="gdp", mean_fraction=0.25, rounds=4, local_steps=3)
    mean, steps = schedule.events()
    total = mu_of(mean) ** 2 + mu_of(steps) ** 2
    assert steps.steps == 12
    assert mu_of(mean) ** 2 / total == pytest.approx(0.25, rel=1e-12)
    assert math.sqrt(total) == pytest.approx(gaussian_mu(epsilon=6.0, delta=DELTA), rel=1e-5)


@pytest.mark.parametrize("accountant", ["pld", "rdp"])
@pytest.mark.parametrize("target", [1.0, 6.0])
def test_sampled_plan_gives_the_mean_its_share_and_meets_the_target(accountant, target):
    schedule = plan(accountant=accountant, target_epsilon=target, rounds=10, local_steps=10, sample_rate=0.1)
    assert mu_of(schedule.mean_event) == pytest.approx(math.sqrt(0.1) * gaussian_mu(epsilon=target, delta=DELTA), rel=1e-9)
    assert schedule.mean_event.full_batch
    assert target * (1 - 1e-6) <= price(schedule.events(), accountant) <= target


def test_plan_carries_the_declared_unit_norms_and_bounds():
    schedule = plan(unit="image", mean_clipping_norm=2.0)
    for event, mechanism, norm in [(schedule.mean_event, "mean", 2.0), (schedule.step_event, "gradient", 0.5)]:
        assert (event.mechanism, event.unit, event.clipping_norm, event.max_images_per_patient) == (mechanism, "image", norm, 4)
    assert plan().mean_event.clipping_norm == 1.0
    assert plan(mean_clipping_norm=2.0).events()[0].noise_multiplier == plan().events()[0].noise_multiplier


def test_plan_without_a_mean_spends_everything_on_steps():
    schedule = plan(mean_fraction=0.0)
    assert schedule.mean_event is None
    assert [event.mechanism for event in schedule.events()] == ["gradient"]
    assert price(schedule.events()) == pytest.approx(6.0, rel=1e-6)


def test_plan_for_an_infinite_target_has_no_noise():
    schedule = plan(target_epsilon=math.inf)
    assert [event.noise_multiplier for event in schedule.events()] == [0.0, 0.0]
    assert price(schedule.events()) == math.inf


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mean_fraction": 1.0}, r"mean_fraction=1\.0 must be .*; check privacy\.mean_fraction"),
        ({"mean_fraction": -0.1}, r"mean_fraction=-0\.1 must be"),
        ({"mean_fraction": math.nan}, r"mean_fraction=nan must be"),
        ({"rounds": 0}, r"rounds=0 must be at least 1; check federation\.rounds"),
        ({"local_steps": 0}, r"steps=0 must be a whole number of at least 1; check federation\.local_steps"),
        ({"sample_rate": 1.5}, r"sample_rate=1\.5 must be"),
        ({"delta": 0.0}, r"delta=0\.0 must be .*; check privacy\.delta"),
        ({"delta": 2.0, "target_epsilon": math.inf}, r"delta=2\.0 must be"),
        ({"accountant": "gdp", "sample_rate": 0.1}, r"sample_rate=0\.1 must be 1 for accountant='gdp'"),
        ({"accountant": "rdp", "sample_rate": 0.1, "mean_fraction": 0.99}, r"check .*privacy\.mean_fraction"),
    ],
)
def test_plan_names_a_setting_out_of_range(changes, message):
    with pytest.raises(InvalidSetting, match=message):
        plan(**changes)


def test_schedule_refuses_two_units():
    with pytest.raises(InvalidSetting, match="unit='image' of the mean must be that of the steps"):
        Schedule(mean_event=replace(STEP, unit="image"), step_event=STEP, rounds=1)


def test_schedule_prefixes_start_with_the_mean_alone_and_end_with_everything():
    schedule = plan(rounds=3, local_steps=2)
    assert schedule.events_through(0) == (schedule.mean_event,)
    assert [event.steps for event in schedule.events_through(2)] == [1, 4]
    assert schedule.events_through(3) == schedule.events()
    assert replace(schedule, mean_event=None).events_through(0) == ()
    for outside in (-1, 4):
        with pytest.raises(InvalidSetting, match=r"round_index=.* must be in \[0, 3\]"):
            schedule.events_through(outside)


@pytest.mark.parametrize(("accountant", "rate"), [("gdp", 1.0), ("pld", 1.0), ("pld", 0.1), ("rdp", 0.1)])
def test_epsilon_curve_rises_from_the_mean_to_the_whole_price(accountant, rate):
    schedule = plan(accountant=accountant, sample_rate=rate, rounds=5)
    curve = epsilon_curve(schedule, delta=DELTA, accountant=accountant)
    assert len(curve) == 6
    assert curve[0] == price([schedule.mean_event], accountant) > 0
    assert curve[-1] == price(schedule.events(), accountant) <= 6.0
    assert all(before < after for before, after in pairwise(curve))


def test_epsilon_curve_starts_at_zero_without_a_mean():
    assert epsilon_curve(plan(mean_fraction=0.0), delta=DELTA, accountant="gdp")[0] == 0.0


# Rounds --------------------------------------------------------------------------------------------------------------------


@given(st.floats(1e-3, 1e6), st.floats(1.0, 10.0))
def test_auto_rounds_never_falls_and_stays_in_its_table(target, factor):
    assert 3 <= auto_rounds(target) <= auto_rounds(target * factor) <= 12


def test_auto_rounds_has_the_ends_of_its_table():
    assert [auto_rounds(target) for target in (0.1, 1.0, 6.0, 60.0, math.inf)] == [3, 3, 12, 12, 12]
