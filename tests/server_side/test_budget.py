"""The server's view of what sites spend, and how a run's progress shows it."""

from __future__ import annotations

import io
import math
from typing import Any

import pytest
from rich.console import Console

from mammo_fed.cli.progress import RunProgress
from mammo_fed.federation.protocol.replies import Accepted, Update
from mammo_fed.privacy.accounting.composition import gaussian_epsilon, gaussian_mu
from mammo_fed.privacy.accounting.pricing import epsilon
from mammo_fed.privacy.events import PrivacyEvent
from mammo_fed.server.rounds.budget import BudgetView

STEP = PrivacyEvent(
    mechanism="gradient",
    noise_multiplier=3.0,
    steps=1,
    sample_rate=1.0,
    unit="patient",
    clipping_norm=1.0,
    max_images_per_patient=16,
)


def figures(*, spent: float, left: float) -> dict[str, Any]:
    return {
        "run_id": "run1",
        "events": (STEP.repeated(3),),
        "epsilon": spent,
        "epsilon_account": spent,
        "patient_epsilon_account": 0.0,
        "budget_left": left,
        "ledger_head": "",
        "public_images": 200,
        "public_patients": 100,
    }


def accepted(site: str = "north", *, left: float = 6.0, cap: float = 6.0) -> Accepted:
    return Accepted(site=site, **figures(spent=0.0, left=left), cap_epsilon=cap, cap_delta=1e-4)


def update(*, spent: float, left: float = 6.0) -> Update:
    return Update(site="north", **figures(spent=spent, left=left), round_index=1, task_hash="")


def price(steps: int) -> float:
    return epsilon([STEP.repeated(steps)], delta=1e-4, accountant="pld")


@pytest.fixture
def view() -> BudgetView:
    opened = BudgetView(delta=1e-4, accountant="pld")
    opened.enter(accepted())
    return opened


def line(view: BudgetView, index: int) -> str:
    """What the console says after a round."""
    shown = io.StringIO()
    RunProgress(Console(file=shown, width=200), quiet=False).hooks.round(index, 3, view)
    return shown.getvalue()


def test_budget_of_a_round_without_a_reply_is_charged_and_shrinks_what_is_left(view):
    view.charge_unanswered("north", round_index=1, events=[STEP])
    site = view.sites["north"]
    assert (site.epsilon, site.epsilon_account, site.rounds) == (price(1), price(1), 0)
    # What fits beside it under the cap: losses add up in squares.
    squares = gaussian_mu(epsilon=6.0, delta=1e-4) ** 2 - gaussian_mu(epsilon=price(1), delta=1e-4) ** 2
    assert site.budget_left == pytest.approx(gaussian_epsilon(mu=math.sqrt(squares), delta=1e-4))
    assert "NO REPLY, charged all the same" in line(view, 1)


@pytest.mark.parametrize(("steps", "mismatch"), [(1, False), (2, False), (3, True), (0, True)])
def test_budget_after_a_lost_round_believes_a_figure_with_or_without_it_and_no_other(view, steps, mismatch):
    view.charge_unanswered("north", round_index=1, events=[STEP])
    view.spend(update(spent=price(steps) if steps else 0.0), round_index=2, events=[STEP])
    site = view.sites["north"]
    assert (site.mismatches == [2]) is mismatch
    assert site.epsilon == max(price(2), price(steps) if steps else 0.0)
    assert ("MISMATCH" in line(view, 2)) is mismatch


def test_budget_of_a_site_without_noise_is_no_mismatch():
    silent = BudgetView(delta=1e-4, accountant="pld")
    silent.enter(accepted(cap=math.inf, left=math.inf))
    quiet = PrivacyEvent.from_dict({**STEP.as_dict(), "noise_multiplier": 0.0})
    silent.spend(update(spent=math.inf, left=math.inf), round_index=1, events=[quiet])
    assert silent.sites["north"].mismatches == []
    assert math.isinf(silent.sites["north"].epsilon)


def test_budget_never_falls_where_a_site_reports_less_than_before(view):
    for index, spent in enumerate((5.0, 0.1), start=1):
        view.spend(update(spent=spent), round_index=index, events=[STEP])
    assert view.sites["north"].epsilon_after_round == [5.0, 5.0]
    assert view.sites["north"].mismatches == [1, 2]


def test_progress_rounds_epsilon_up_and_what_is_left_down(view):
    view.spend(update(spent=price(1), left=4.12399), round_index=1, events=[STEP])
    shown = math.ceil(price(1) * 1000) / 1000
    assert f"north {shown:g} (left 4.123)" in line(view, 1)


def test_progress_of_many_sites_counts_those_with_a_warning():
    many = BudgetView(delta=1e-4, accountant="pld")
    for number in range(10):
        many.enter(accepted(f"site-{number}"))
    many.charge_unanswered("site-3", round_index=1, events=[STEP])
    assert "NO REPLY, MISMATCH or LEFT OUT at 1" in line(many, 1)
