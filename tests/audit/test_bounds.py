"""From counts to bounds: closed forms, coverage, and what cannot be judged."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.stats import binom, norm

from mammo_fed.audit.bounds import (
    assumption_free_epsilon,
    balance,
    choose_threshold,
    clopper_pearson,
    clopper_pearson_upper,
    count_errors,
    mu_lower,
)
from mammo_fed.errors import InvalidSetting
from mammo_fed.privacy.accounting.composition import gaussian_epsilon

rates = st.floats(0.001, 0.999)


def test_no_error_in_n_runs_bounds_the_rate_by_the_closed_form():
    upper = clopper_pearson_upper(np.array([0]), 500, confidence=0.975)[0]
    assert upper == pytest.approx(1 - 0.025 ** (1 / 500), rel=1e-12)


def test_errors_in_all_runs_bound_nothing():
    assert clopper_pearson_upper(np.array([20]), 20, confidence=0.975)[0] == 1.0


@pytest.mark.parametrize(("errors", "trials"), [(1, 40), (117, 500), (499, 500)])
def test_the_bound_is_the_root_of_the_binomial_tail(errors, trials):
    root = brentq(lambda p: binom.cdf(errors, trials, p) - 0.0005, 1e-9, 1 - 1e-9, xtol=1e-14)
    assert clopper_pearson_upper(np.array([errors]), trials, confidence=0.9995)[0] == pytest.approx(root, rel=1e-9)


@given(rates, st.integers(1, 60), st.sampled_from([0.9, 0.975, 0.9995]))
def test_the_bound_covers_every_rate_as_often_as_it_says(rate, trials, confidence):
    counts = np.arange(trials + 1)
    covers = clopper_pearson_upper(counts, trials, confidence=confidence) >= rate
    assert binom.pmf(counts, trials, rate)[covers].sum() >= confidence - 1e-9


def test_the_two_sided_interval_holds_the_share_seen():
    low, high = clopper_pearson(3, 200, confidence=0.95)
    assert 0 < low < 3 / 200 < high < 1
    assert clopper_pearson(0, 200, confidence=0.95)[0] == 0.0


@given(st.floats(0.05, 6), st.floats(-2, 6))
def test_errors_of_any_threshold_on_two_gaussians_give_back_their_distance(mu, threshold):
    fpr, fnr = np.array([norm.sf(threshold)]), np.array([norm.cdf(threshold - mu)])
    assert mu_lower(fpr, fnr)[0] == pytest.approx(mu, rel=1e-6, abs=1e-6)


def test_guessing_gives_no_bound():
    half = np.array([0.5])
    assert mu_lower(half, half)[0] == 0.0
    assert assumption_free_epsilon(half, half, delta=1e-4)[0] == 0.0


@given(st.floats(0.1, 8))
def test_randomised_response_reaches_its_epsilon(epsilon):
    error = np.array([1 / (1 + math.exp(epsilon))])
    assert assumption_free_epsilon(error, error, delta=0.0)[0] == pytest.approx(epsilon, rel=1e-9)


@given(st.floats(0.05, 5), st.floats(-3, 8), st.sampled_from([1e-5, 1e-4, 1e-2]))
def test_the_assumption_free_bound_never_passes_the_epsilon_of_a_gaussian(mu, threshold, delta):
    fpr, fnr = np.array([norm.sf(threshold)]), np.array([norm.cdf(threshold - mu)])
    assert assumption_free_epsilon(fpr, fnr, delta=delta)[0] <= gaussian_epsilon(mu=mu, delta=delta) + 1e-9


def test_the_threshold_parts_two_sides_that_do_not_overlap():
    absent, present = np.linspace(-9, -1, 100), np.linspace(50, 90, 100)
    threshold = choose_threshold(absent, present, strength=balance, confidence=0.975)
    found = count_errors(absent, present, threshold=threshold)
    assert (found.false_positives, found.false_negatives) == (0, 0)


def test_infinite_evidence_is_told_from_finite():
    absent, present = np.linspace(-1, 1, 50), np.full(50, np.inf)
    threshold = choose_threshold(absent, present, strength=balance, confidence=0.975)
    assert count_errors(absent, present, threshold=threshold).false_negatives == 0
    assert count_errors(absent, present, threshold=threshold).false_positives == 0


def test_the_same_constant_on_both_sides_tells_nothing():
    same = np.zeros(50)
    threshold = choose_threshold(same, same, strength=balance, confidence=0.975)
    fpr, fnr = count_errors(same, same, threshold=threshold).upper(confidence=0.975)
    assert mu_lower(np.array([fpr]), np.array([fnr]))[0] == 0.0


def test_unequal_sides_and_bad_numbers_are_refused():
    with pytest.raises(InvalidSetting, match="as many as"):
        count_errors(np.zeros(3), np.zeros(4), threshold=0.0)
    with pytest.raises(InvalidSetting, match=r"trials=0 must be .*--trials"):
        clopper_pearson_upper(np.array([0]), 0, confidence=0.975)
    with pytest.raises(InvalidSetting, match="confidence=1"):
        clopper_pearson_upper(np.array([0]), 5, confidence=1.0)
