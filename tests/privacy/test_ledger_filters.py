"""The filters that enforce a ledger's budget: closed forms, a second implementation, properties and a counterexample."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ledger_workers import DELTA, TASK, event, open_ledger
from opacus.accountants.analysis.rdp import compute_rdp
from scipy.stats import norm

from mammo_fed.errors import InvalidSetting, PolicyRefused, PrivacyRefused
from mammo_fed.privacy.accounting.composition import gaussian_delta, gaussian_epsilon
from mammo_fed.privacy.accounting.filters import (
    PrivacyFilter,
    adaptive_epsilon,
    as_steps,
    open_filter,
    rdp_to_epsilon,
    schedule_epsilon,
)
from mammo_fed.privacy.accounting.pricing import epsilon

GDP = PrivacyFilter(kind="gdp", order=None)
RDP_5 = PrivacyFilter(kind="rdp", order=5)


def test_ledger_gdp_filter_adds_squares():
    price = adaptive_epsilon(GDP, as_steps([event(noise=3.0, steps=4), event(noise=5.0)]), delta=DELTA)
    assert price == pytest.approx(gaussian_epsilon(mu=math.sqrt(4 / 9 + 1 / 25), delta=DELTA), rel=1e-12)


def test_ledger_rdp_filter_of_full_batch_steps_is_a_closed_form():
    divergence = 5.0 * 8 / (2 * 3.0**2)
    price = adaptive_epsilon(RDP_5, as_steps([event(noise=3.0, steps=8)]), delta=DELTA)
    assert price == pytest.approx(divergence + math.log(4 / 5) - math.log(DELTA * 5) / 4, rel=1e-12)
    assert price == rdp_to_epsilon(divergence, order=5, delta=DELTA)


@pytest.mark.parametrize("order", [2, 3, 5, 12, 60])
@pytest.mark.parametrize(("noise", "sample_rate"), [(1.0, 0.01), (2.0, 0.1), (6.0, 0.116)])
def test_ledger_rdp_filter_agrees_with_opacus(order, noise, sample_rate):
    divergence = float(compute_rdp(q=sample_rate, noise_multiplier=noise, steps=300, orders=float(order)))
    steps = as_steps([event(noise=noise, sample_rate=sample_rate, steps=300)])
    price = adaptive_epsilon(PrivacyFilter(kind="rdp", order=order), steps, delta=DELTA)
    assert price == pytest.approx(rdp_to_epsilon(divergence, order=order, delta=DELTA), rel=1e-6)


def test_ledger_rdp_filter_keeps_the_digits_of_a_very_small_divergence():
    """To first order the divergence of a rarely sampled step is order / 2 * q^2 * (exp(1 / sigma^2) - 1)."""
    steps = as_steps([event(noise=2.0, sample_rate=1e-7, steps=10**12)])
    price = adaptive_epsilon(RDP_5, steps, delta=DELTA)
    divergence = 5 / 2 * 1e-14 * math.expm1(0.25) * 10**12
    assert price - rdp_to_epsilon(0.0, order=5, delta=DELTA) == pytest.approx(divergence, rel=1e-5)


@pytest.mark.parametrize("max_epsilon", [0.5, 1.0, 6.0, 20.0])
def test_ledger_rdp_order_lets_the_largest_gaussian_release_through(max_epsilon):
    def largest_square(order):
        return (max_epsilon - rdp_to_epsilon(0.0, order=order, delta=DELTA)) * 2 / order

    chosen = open_filter("rdp", max_epsilon=max_epsilon, delta=DELTA).order
    others = range(max(2, chosen - 40), chosen + 40)
    assert all(largest_square(chosen) >= largest_square(order) for order in others)


def test_ledger_filter_choice_depends_on_the_budget_alone():
    assert open_filter("gdp", max_epsilon=6.0, delta=DELTA) == GDP
    assert open_filter("rdp", max_epsilon=6.0, delta=DELTA).order == open_filter("declared", max_epsilon=6.0, delta=DELTA).order
    assert open_filter("rdp", max_epsilon=math.inf, delta=DELTA).order >= 2


@pytest.mark.parametrize(("kind", "order"), [("gdp", 3), ("rdp", None), ("rdp", 1), ("declared", 1), ("pld", 2)])
def test_ledger_filter_that_makes_no_sense_is_refused(kind, order):
    with pytest.raises(InvalidSetting, match=r"(filter|order)=.* must be"):
        PrivacyFilter(kind=kind, order=order)


def test_ledger_filter_edge_cases():
    nothing, silent = as_steps([]), as_steps([event(noise=0.0)])
    for each in (GDP, RDP_5):
        assert adaptive_epsilon(each, nothing, delta=DELTA) == 0.0
        assert adaptive_epsilon(each, silent, delta=DELTA) == math.inf
    assert schedule_epsilon(nothing, delta=DELTA) == 0.0
    with pytest.raises(PolicyRefused, match="full-batch steps only"):
        adaptive_epsilon(GDP, as_steps([event(sample_rate=0.5)]), delta=DELTA)


def test_ledger_counts_steps_whatever_their_grouping():
    apart = [event(steps=2), event(noise=7.0), event(steps=3)]
    together = [event(noise=7.0), event(steps=5)]
    assert as_steps(apart) == as_steps(together)


@settings(max_examples=20, deadline=None)
@given(st.floats(0.8, 8.0), st.sampled_from([1.0, 0.3, 0.05]), st.integers(1, 60), st.integers(2, 40))
def test_ledger_rdp_filter_never_charges_less_than_the_schedule_costs(noise, sample_rate, count, order):
    steps = as_steps([event(noise=noise, sample_rate=sample_rate, steps=count)])
    price = adaptive_epsilon(PrivacyFilter(kind="rdp", order=order), steps, delta=DELTA)
    cost = schedule_epsilon(steps, delta=DELTA)
    assert price >= cost * (1 - 1e-4) - 1e-4


@pytest.mark.parametrize("sample_rate", [1.0, 0.2])
@pytest.mark.parametrize(("noise", "divergence"), [(1e300, 0.0), (1e-300, math.inf)])
def test_ledger_filter_prices_noise_beyond_the_range_of_floats(sample_rate, noise, divergence):
    steps = as_steps([event(noise=noise, sample_rate=sample_rate)])
    assert adaptive_epsilon(RDP_5, steps, delta=DELTA) == rdp_to_epsilon(divergence, order=5, delta=DELTA)
    if sample_rate == 1.0:
        assert adaptive_epsilon(GDP, steps, delta=DELTA) == divergence


# The counterexample: PLD prices both branches under the cap, and choosing between them by an outcome passes it.

FIRST = event(noise=1.0)
BRANCHES = (event(noise=1 / 1.063), event(noise=0.25, sample_rate=0.001))
CAP, CAP_DELTA = 6.0, 1.02e-4


def sampled_delta(level, *, noise=0.25, sample_rate=0.001):
    """Delta at epsilon `level` of one sampled Gaussian step, the patient present against absent."""
    ratio = (math.exp(level) - 1 + sample_rate) / sample_rate
    if ratio <= 0:
        return -math.expm1(level)
    edge = noise**2 * math.log(ratio) + 0.5
    present = (1 - sample_rate) * norm.sf(edge / noise) + sample_rate * norm.sf((edge - 1) / noise)
    return present - math.exp(level) * norm.sf(edge / noise)


def delta_after_first(choose):
    """Delta at CAP of N(1) against N(0), followed by a release whose delta at the level that is left is `choose(level)`."""
    outcomes, width = np.linspace(-8, 10, 6001, retstep=True)
    left = CAP - (outcomes - 0.5)
    return float(np.sum(norm.pdf(outcomes - 1) * np.array([choose(level) for level in left])) * width)


def gaussian_branch(level):
    return gaussian_delta(mu=1.063, epsilon=level)


def test_ledger_counterexample_each_branch_is_private_and_the_choice_is_not():
    assert delta_after_first(gaussian_branch) < CAP_DELTA
    assert delta_after_first(sampled_delta) < CAP_DELTA
    assert delta_after_first(lambda level: max(gaussian_branch(level), sampled_delta(level))) > 1.7 * CAP_DELTA
    for branch in BRANCHES:
        assert epsilon([FIRST, branch], delta=CAP_DELTA, accountant="pld") <= CAP


@pytest.mark.parametrize("kind", ["gdp", "rdp", "declared"])
def test_ledger_never_leaves_both_branches_of_the_counterexample_open(tmp_path, kind):
    with open_ledger(tmp_path / "ledger", kind=kind, max_epsilon=CAP, delta=CAP_DELTA) as ledger:
        ledger.declare(run_id="first", schedule=[FIRST], patients=["p1"])
        reservation = ledger.reserve(run_id="first", round_index=0, task_hash=TASK, events=[FIRST])
        ledger.settle(reservation, b"the outcome that decides")
        open_branches = []
        for number, branch in enumerate(BRANCHES):
            try:
                ledger.declare(run_id=f"branch {number}", schedule=[branch], patients=["p1"])
            except PrivacyRefused:
                continue
            open_branches.append(branch)
    assert open_branches == ([BRANCHES[0]] if kind == "gdp" else [])


def test_ledger_takes_either_branch_of_the_counterexample_when_declared_beforehand(tmp_path):
    for number, branch in enumerate(BRANCHES):
        with open_ledger(tmp_path / str(number), kind="declared", max_epsilon=CAP, delta=CAP_DELTA) as ledger:
            ledger.declare(run_id="run", schedule=[FIRST, branch], patients=["p1"])
            for round_index, part in enumerate([FIRST, branch]):
                ledger.reserve(run_id="run", round_index=round_index, task_hash=TASK, events=[part])
            assert ledger.events() == (FIRST, branch)
