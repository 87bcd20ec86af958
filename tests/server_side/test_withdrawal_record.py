"""What a server and its record say of patients who withdrew at a site: since when, from which round, and nothing else."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from mammo_fed.client.charging import site_ledger
from mammo_fed.client.policy import read_site_file
from mammo_fed.errors import DataError
from mammo_fed.federation.protocol.replies import Accepted, Update
from mammo_fed.privacy.events import PrivacyEvent
from mammo_fed.reporting.console import results_table
from mammo_fed.reporting.record.record import read_record
from mammo_fed.reporting.record.sections import SitePrivacy
from mammo_fed.reporting.record.withdrawals import withdrawal_sentence
from mammo_fed.server.rounds.budget import BudgetView, SiteSpending

STEP = PrivacyEvent(
    mechanism="gradient",
    noise_multiplier=3.0,
    steps=1,
    sample_rate=1.0,
    unit="patient",
    clipping_norm=1.0,
    max_images_per_patient=16,
)
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


@pytest.fixture
def view() -> BudgetView:
    opened = BudgetView(delta=1e-4, accountant="pld")
    opened.enter(Accepted(**PRICED, withdrawn_at="2026-01-01"))
    return opened


def answered(view: BudgetView, round_index: int, since: str) -> None:
    update = Update(**PRICED, round_index=round_index, task_hash="", withdrawn_at=since)
    view.spend(update, round_index=round_index, events=[STEP])


def test_the_server_notes_from_which_round_on_a_withdrawal_is_in_force(view):
    for round_index, since in enumerate(["2026-01-01", "2026-02-01", "2026-02-01", "2026-03-01"], start=1):
        answered(view, round_index, since)
    site = view.sites["north"]
    assert (site.withdrawn_at, site.withdrawn_rounds) == ("2026-03-01", [2, 4])


@pytest.mark.parametrize("earlier", ["", "2025-12-31"])
def test_a_stored_reply_from_before_a_withdrawal_takes_nothing_back(view, earlier):
    answered(view, 1, "2026-02-01")
    answered(view, 2, earlier)
    site = view.sites["north"]
    assert (site.withdrawn_at, site.withdrawn_rounds) == ("2026-02-01", [1])


def test_a_checkpoint_keeps_withdrawals_and_one_from_before_is_read_without(view):
    answered(view, 1, "2026-02-01")
    values = json.loads(json.dumps(view.sites["north"].as_dict()))
    assert SiteSpending.from_dict(values).withdrawn_rounds == [1]
    older = {name: value for name, value in values.items() if not name.startswith("withdrawn")}
    assert SiteSpending.from_dict(older).withdrawn_at == ""


def test_a_withdrawal_is_said_in_one_sentence_without_a_number_of_patients():
    assert withdrawal_sentence(site="north", at="", rounds=[]) == ""
    said = withdrawal_sentence(site="north", at="2026-03-01", rounds=[])
    assert said.startswith("north: patients who withdrew their consent, the last on 2026-03-01, take no part. ")
    assert "in this run a withdrawal is in force from rounds 2, 4 on" in withdrawal_sentence(
        site="north", at="2026-03-01", rounds=[2, 4]
    )


@pytest.mark.parametrize("wrong", ["yesterday", "2026-3-1", "2026-03-01T00:00:00", "20260301", "2026-02-30"])
def test_a_record_refuses_a_withdrawal_at_what_is_no_date(wrong):
    known = {"site": "north", "epsilon": 1.0, "epsilon_account": 1.0, "epsilon_after_round": (1.0,), "patient_epsilon": 1.0}
    site = SitePrivacy(**known, mechanism="any", budget_left=1.0, rounds=1, refused=False)
    with pytest.raises(DataError, match="withdrawn_at"):
        replace(site, withdrawn_at=wrong)


def test_a_run_after_a_withdrawal_says_so_on_its_page_and_console_and_in_its_record(succeed, tmp_path):
    """Sites of a simulation whose ledgers carry over: two runs, and between them a patient of the second hospital leaves."""
    ledgers = f"privacy.ledger={tmp_path / 'ledgers'}"
    first = succeed(ledgers, "privacy.target_epsilon=2", "federation.rounds=1", "federation.site_budgets=[6,6,6,6]")
    assert first.record.privacy.withdrawals == ()
    described = read_site_file(first.folder / "sites" / "site-2.json")
    with site_ledger(described, usual="gdp") as ledger:
        ledger.withdraw([["site-2-0001"]])
        since = ledger.withdrawn([]).at
    second = succeed(ledgers, "privacy.target_epsilon=2", "federation.rounds=1", "federation.site_budgets=[6,6,6,6]")
    record = read_record(second.folder)
    assert [site.withdrawn_at for site in record.privacy.sites] == ["", since, "", ""]
    assert [site.withdrawn_rounds for site in record.privacy.sites] == [()] * 4
    (sentence,) = record.privacy.withdrawals
    assert sentence.startswith("site-2: patients who withdrew their consent")
    assert sentence in (second.folder / "report.html").read_text(encoding="utf-8")
    shown = Console(file=io.StringIO(), width=400)
    shown.print(results_table(record))
    assert sentence in shown.file.getvalue()
    assert any("withdrawal of consent" in said for said in record.privacy.not_covered)
    sizes = [[(site.patients, site.images) for site in one.data.sites] for one in (first.record, record)]
    assert sizes[0] == sizes[1]
    assert Path(described.ledger).is_dir()
