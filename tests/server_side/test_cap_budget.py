"""The server's view of sites that publish no account: what it knows, keeps on its disk and prints."""

from __future__ import annotations

import json
from dataclasses import replace

from mammo_fed.federation.protocol.replies import Accepted, Update
from mammo_fed.privacy.events import PrivacyEvent
from mammo_fed.privacy.ledger.cap import CapRaise
from mammo_fed.server.results.progress_lines import round_lines
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
RAISE = CapRaise(at="2026-02-01T09:30:00+00:00", from_epsilon=1.0, to_epsilon=6.0)
PRICED = {
    "site": "north",
    "run_id": "run1",
    "events": (STEP,),
    "epsilon": 0.0,
    "epsilon_account": None,
    "patient_epsilon_account": None,
    "budget_left": None,
    "ledger_head": "",
    "public_images": 200,
    "public_patients": 100,
}
ACCEPTED = Accepted(**PRICED, cap_epsilon=6.0, cap_delta=1e-4, cap_since=RAISE.at, cap_raised=(RAISE,))


def entered() -> BudgetView:
    view = BudgetView(delta=1e-4, accountant="pld")
    view.enter(ACCEPTED)
    return view


def test_cap_account_figures_that_are_not_published_are_made_up_by_nobody():
    view = entered()
    view.spend(Update(**{**PRICED, "epsilon": 1.0}, round_index=1, task_hash=""), round_index=1, events=[STEP])
    view.charge_unanswered("north", round_index=2, events=[STEP])
    site = view.sites["north"]
    assert (site.epsilon_account, site.budget_left, site.patient_epsilon_account) == (None, None, None)
    assert view.patient_epsilon_account("north") is None
    assert view.patient_epsilon("north") >= site.epsilon > 1.0
    (line,) = round_lines(2, 3, view)
    assert "left" not in line


def test_cap_and_its_raises_are_kept_on_the_servers_disk():
    view, restored = entered(), BudgetView(delta=1e-4, accountant="pld")
    restored.restore(json.loads(json.dumps(view.as_dict(), allow_nan=False)))
    assert restored.sites == view.sites
    assert restored.sites["north"].cap_raised == (RAISE,)


def test_cap_of_a_checkpoint_of_before_has_no_time_and_its_figures_stay():
    view = entered()
    view.enter(replace(ACCEPTED, epsilon_account=2.0, patient_epsilon_account=3.0, budget_left=4.0))
    values = view.as_dict()
    for name in ("cap_since", "cap_raised"):
        del values["north"][name]
    view.restore(values)
    site = view.sites["north"]
    assert (site.cap_since, site.cap_raised) == ("", ())
    assert (site.epsilon_account, site.patient_epsilon_account, site.budget_left) == (2.0, 3.0, 4.0)
