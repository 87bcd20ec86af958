"""What is left of a budget is what the account's own filter still allows, and a refusal says what would fit."""

from __future__ import annotations

import math

import pytest
from ledger_workers import DELTA, TASK, event, open_ledger

from mammo_fed.errors import PrivacyRefused
from mammo_fed.privacy.accounting.calibration import calibrate
from mammo_fed.privacy.accounting.pricing import epsilon

ROUNDS = 6


def run_of(target: float, *, sample_rate: float = 1.0, accountant: str = "pld") -> list:
    """The schedule of a run that a planner aims at `target`."""
    noise = calibrate(
        lambda noise: [event(noise=noise, steps=ROUNDS, sample_rate=sample_rate)],
        target_epsilon=target,
        delta=DELTA,
        accountant=accountant,
    )
    return [event(noise=noise, steps=ROUNDS, sample_rate=sample_rate)]


def trained(ledger, run_id: str, schedule) -> None:
    ledger.declare(run_id=run_id, schedule=schedule, patients=["A", "B"])
    reservation = ledger.reserve(run_id=run_id, round_index=0, task_hash=TASK, events=schedule)
    ledger.settle(reservation, b"reply")


def test_ledger_budget_left_after_3_of_6_lets_one_run_of_477_fit(tmp_path):
    with open_ledger(tmp_path / "ledger") as ledger:
        assert ledger.budget_left() == 6.0
        trained(ledger, "first", run_of(3.0))
        left = ledger.budget_left()
        # By the closed form: mu adds up in squares.
        assert left == pytest.approx(4.77, abs=0.01)
        with pytest.raises(PrivacyRefused):
            ledger.check_declarable(schedule=run_of(left + 0.01))
        trained(ledger, "second", run_of(math.floor(100 * left) / 100))
        assert ledger.budget_left() < 0.5


@pytest.mark.parametrize("kind", ["gdp", "rdp", "declared"])
def test_ledger_budget_left_is_the_largest_run_that_any_filter_admits(tmp_path, kind):
    with open_ledger(tmp_path / "ledger", kind=kind) as ledger:
        trained(ledger, "first", run_of(2.0))
        left = ledger.budget_left()
        assert 4.0 < left < 6.0
        with pytest.raises(PrivacyRefused):
            ledger.check_declarable(schedule=run_of(left * 1.01))
        ledger.declare(run_id="second", schedule=run_of(left * 0.999), patients=["A"])


def test_ledger_budget_left_is_unbounded_without_a_cap_and_nothing_in_a_full_account(tmp_path):
    with open_ledger(tmp_path / "endless", max_epsilon=math.inf) as ledger:
        trained(ledger, "first", run_of(3.0))
        assert ledger.budget_left() == math.inf
    with open_ledger(tmp_path / "full", max_epsilon=3.0) as ledger:
        trained(ledger, "first", run_of(3.0))
        assert ledger.budget_left() < 0.1


@pytest.mark.parametrize(("kind", "sample_rate"), [("gdp", 1.0), ("rdp", 0.1), ("declared", 0.1)])
def test_ledger_refusal_for_its_budget_says_which_run_of_the_same_shape_fits(tmp_path, kind, sample_rate):
    with open_ledger(tmp_path / "ledger", kind=kind) as ledger:
        trained(ledger, "first", run_of(3.0, sample_rate=sample_rate))
        with pytest.raises(PrivacyRefused, match=r"fits with privacy\.target_epsilon=[0-9.]+ or less") as refused:
            ledger.declare(run_id="second", schedule=run_of(5.5, sample_rate=sample_rate), patients=["A", "B"])
        fits = refused.value.fits
        assert fits is not None
        assert 0 < fits < 5.5
        ledger.declare(run_id="third", schedule=run_of(fits, sample_rate=sample_rate), patients=["A", "B"])


def test_ledger_refusal_says_that_no_further_run_fits(tmp_path):
    with open_ledger(tmp_path / "ledger", max_epsilon=3.0) as ledger:
        trained(ledger, "first", run_of(3.0))
        with pytest.raises(PrivacyRefused) as refused:
            ledger.declare(run_id="second", schedule=run_of(3.0), patients=["A", "B"])
        assert refused.value.fits is not None
        assert refused.value.fits < 0.1


def test_ledger_question_writes_nothing_and_answers_as_a_declaration_does(tmp_path):
    folder = tmp_path / "ledger"
    with open_ledger(folder) as ledger:
        trained(ledger, "first", run_of(3.0))

    def content():
        return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}

    before = content()
    for target in (1.0, 4.7, 4.9, 6.0):
        schedule = run_of(target)
        with open_ledger(folder) as ledger:
            try:
                ledger.check_declarable(schedule=schedule)
                taken = True
            except PrivacyRefused:
                taken = False
        assert taken == (target < 4.77)
    assert content() == before
    assert epsilon(run_of(4.7), delta=DELTA, accountant="pld") <= 4.7
