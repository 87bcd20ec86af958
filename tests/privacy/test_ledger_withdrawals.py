"""Patients who withdraw: charged nothing from then on, in no round that begins or ends later, for good and provably."""

import json
import os
import shutil
import signal
import sqlite3
import time
from contextlib import closing

import numpy as np
import pytest
from ledger_workers import TASK, Nursery, event, open_ledger

from mammo_fed.errors import InvalidSetting, LedgerError, WithdrawnMeanwhile
from mammo_fed.privacy.ledger.report import export_ledger, show_ledger, verify_ledger

KEY = {"run_id": "run", "round_index": 0, "task_hash": TASK}


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "ledger"


@pytest.fixture
def ledger(folder):
    with open_ledger(folder) as opened:
        yield opened


@pytest.fixture(scope="module")
def nursery():
    with Nursery() as warm:
        yield warm


def declare(ledger, run_id="run", *, patients=("p1", "p2"), account="default"):
    ledger.declare(run_id=run_id, schedule=[event(steps=10)], patients=patients, account=account)


def enrolled(folder):
    """Patients of each account, by its names."""
    return {account.names: account.patients for account in show_ledger(folder, delta=None).accounts}


def test_a_patient_who_withdrew_is_not_enrolled_by_a_later_run(ledger, folder):
    assert ledger.withdraw([["p1"]]) == 1
    declare(ledger)
    assert enrolled(folder) == {("default",): 1}


def test_a_cohort_of_withdrawn_patients_alone_enrols_nobody(ledger, folder):
    ledger.withdraw([["p1"], ["p2"]])
    declare(ledger)
    assert enrolled(folder) == {("default",): 0}


def test_what_a_patient_who_withdraws_was_charged_stays_charged(ledger, folder):
    declare(ledger)
    ledger.settle(ledger.reserve(**KEY, events=[event(steps=5)]), b"reply")
    before = ledger.epsilon(accountant="gdp"), ledger.budget_left(), enrolled(folder)
    ledger.withdraw([["p1"]])
    declare(ledger)
    assert (ledger.epsilon(accountant="gdp"), ledger.budget_left(), enrolled(folder)) == before


def test_a_patient_who_withdrew_brings_no_accounts_together(ledger, folder):
    declare(ledger, patients=["p1", "p2"], account="breast")
    ledger.withdraw([["p1"]])
    declare(ledger, "run2", patients=["p1", "p3"], account="chest")
    assert enrolled(folder) == {("breast",): 2, ("chest",): 1}


@pytest.mark.parametrize(
    "written",
    [
        "DOE JANE",
        "doe  jane",
        " Doe\tJane ",
        "DOE\u00a0JANE",
        "D\u00adOE JANE",
        "\ufeffdoe jane",
        "doe\u200b jane",
        "\uff24\uff2f\uff25 \uff2a\uff21\uff2e\uff25",
    ],
)
def test_a_patient_withdraws_under_every_spelling_that_is_one_patient_to_the_ledger(ledger, written):
    ledger.withdraw([[written]])
    assert ledger.withdrawn(["Doe Jane", "Doe John"]).patients == {"Doe Jane"}
    assert ledger.withdrawn([written]).patients == {written}


def test_a_patient_withdraws_under_all_identifiers_that_were_given(ledger):
    assert ledger.withdraw([["Doe Jane", "5f2c"]]) == 1
    assert ledger.withdrawn(["5F2C", "doe jane", "other"]).patients == {"5F2C", "doe jane"}


def test_a_withdrawal_that_is_repeated_adds_no_entry_and_leaves_the_date(ledger):
    ledger.withdraw([["p1"], ["p2"]])
    head, since = ledger.head(), ledger.withdrawn([])
    assert ledger.withdraw([["P1 "], ["p2"]]) == 0
    assert (ledger.head(), ledger.withdrawn([])) == (head, since)
    assert ledger.withdraw([["p2"], ["p3"], ["P3"]]) == 1


@pytest.mark.parametrize("people", [[["p1"], ["\u200b "]], [["p1"], []], [[""]]])
def test_a_withdrawal_of_nobody_is_refused_whole(ledger, people):
    with pytest.raises(InvalidSetting, match="patient"):
        ledger.withdraw(people)
    assert ledger.withdrawn(["p1"]).seq == -1


def test_the_ledger_says_when_a_patient_last_withdrew_and_never_who(ledger, folder):
    assert ledger.withdrawn(["p1"]).at == ""
    ledger.withdraw([["Erika Mustermann", "5f2c"], ["p2"]])
    entry = export_ledger(folder)[-1]
    assert (entry.kind, dict(entry.details)) == ("withdrawn", {"patients": 2})
    assert ledger.withdrawn([]).at == entry.at[:10]
    (shown,) = show_ledger(folder, delta=None).withdrawals
    assert (shown.at, shown.patients) == (entry.at, 2)


def test_a_withdrawal_holds_in_every_process_and_after_a_restart(ledger, folder):
    with open_ledger(folder) as other:
        ledger.withdraw([["p1"]])
        assert other.withdrawn(["p1", "p2"]).patients == {"p1"}
    with open_ledger(folder) as later:
        assert later.withdrawn(["p1", "p2"]).patients == {"p1"}
    verify_ledger(folder)


def test_known_patients_are_those_ever_enrolled_or_withdrawn(ledger):
    declare(ledger, patients=["p1"])
    ledger.withdraw([["p2"]])
    assert ledger.knows([["P1"], ["p2"], ["p3"], ["p3", "p1"]]) == (True, True, False, True)
    assert ledger.knows([]) == ()


# A round that is under way


def test_what_was_trained_before_a_patient_withdrew_is_not_settled(ledger, folder):
    declare(ledger)
    reservation = ledger.reserve(**KEY, events=[event()])
    with open_ledger(folder) as other:
        other.withdraw([["p1"]])
    with pytest.raises(WithdrawnMeanwhile) as refused:
        ledger.settle(reservation, b"trained with p1")
    assert refused.value.exit_code == 3
    assert ledger.stored_reply(**KEY) is None
    again = ledger.reserve(**KEY, events=[event()])
    assert again == reservation
    ledger.settle(again, b"trained without p1")
    assert ledger.stored_reply(**KEY) == b"trained without p1"
    assert ledger.events() == (event(),)


def test_a_withdrawal_of_anybody_stops_the_round_under_way_whether_or_not_in_its_cohort(ledger):
    declare(ledger)
    reservation = ledger.reserve(**KEY, events=[event()])
    ledger.withdraw([["nobody of this cohort"]])
    with pytest.raises(WithdrawnMeanwhile):
        ledger.settle(reservation, b"reply")


def test_a_round_that_was_answered_before_a_patient_withdrew_keeps_its_reply(ledger):
    declare(ledger)
    reservation = ledger.reserve(**KEY, events=[event()])
    ledger.settle(reservation, b"reply")
    ledger.withdraw([["p1"]])
    assert ledger.stored_reply(**KEY) == b"reply"
    ledger.settle(reservation, b"reply")


# Faults and attacks


def test_a_withdrawal_that_is_edited_or_cut_off_stops_the_site(ledger, folder, tmp_path):
    declare(ledger)
    ledger.withdraw([["p1"]])
    verify_ledger(folder)
    edits = (
        "DELETE FROM entries",
        "UPDATE entries SET kind = 'resumed'",
        "UPDATE entries SET payload = CAST(replace(payload, 'patients', 'patience') AS BLOB)",
    )
    for number, edit in enumerate(edits):
        copy = shutil.copytree(folder, tmp_path / str(number))
        with closing(sqlite3.connect(copy / "journal.sqlite", isolation_level=None)) as database:
            assert database.execute(f"{edit} WHERE kind = 'withdrawn'").rowcount == 1
        with pytest.raises(LedgerError, match="restore it from a backup"):
            verify_ledger(copy)


def test_the_digests_of_who_withdrew_say_nothing_without_the_ledgers_key(ledger, folder, tmp_path):
    for place in (folder, tmp_path / "other"):
        with open_ledger(place) as one:
            one.withdraw([["p1"]])
    payloads = []
    for place in (folder, tmp_path / "other"):
        with closing(sqlite3.connect(place / "journal.sqlite")) as database:
            (payload,) = database.execute("SELECT payload FROM entries WHERE kind = 'withdrawn'").fetchone()
            payloads.append(json.loads(payload)["digests"])
    assert payloads[0] != payloads[1]
    assert b"p1" not in b"".join(path.read_bytes() for path in folder.iterdir())


def test_a_ledger_put_back_from_before_a_withdrawal_is_refused_by_the_head_that_is_remembered(ledger, folder, tmp_path):
    declare(ledger)
    older = shutil.copytree(folder, tmp_path / "older")
    ledger.withdraw([["p1"]])
    remembered = ledger.head()
    with open_ledger(older) as put_back, pytest.raises(LedgerError, match="does not hold the entry"):
        put_back.check_remembered(remembered)


def confirmed(said):
    return said.read_text().count("\n") if said.exists() else 0


def test_a_site_killed_while_patients_withdraw_forgets_no_withdrawal_that_was_confirmed(nursery, tmp_path, folder):
    moments, said = np.random.default_rng(3), tmp_path / "said"
    for number in range(8):
        before, deadline = confirmed(said), time.monotonic() + 60
        worker = nursery.start("withdraw", str(folder), 100_000, number, str(said))
        while confirmed(said) < before + 2 and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(moments.uniform(0, 0.02))
        os.kill(worker, signal.SIGKILL)
        assert nursery.wait(worker) == -signal.SIGKILL
        verify_ledger(folder)
        with open_ledger(folder) as ledger:
            withdrawn = ledger.withdrawn([f"p{each}" for each in range(confirmed(said) + 2)]).patients
        assert {f"p{each}" for each in range(confirmed(said))} <= withdrawn
        assert before + 2 <= len(withdrawn) <= confirmed(said) + 1


def test_a_withdrawal_on_a_full_disk_fails_loudly_and_can_be_repeated(ledger, monkeypatch):
    declare(ledger)
    with monkeypatch.context() as patched:
        patched.setattr("os.pwrite", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(LedgerError, match="disk is full"):
            ledger.withdraw([["p1"]])
    ledger.withdraw([["p1"]])
    assert ledger.withdrawn(["p1"]).patients == {"p1"}
    ledger.verify()


@pytest.mark.parametrize("people", [["P-1"], ["P-1", "P-2"], [[17]], [[b"P-1"]]])
def test_a_withdrawal_of_a_bare_text_is_refused_and_not_taken_for_its_letters(ledger, people):
    with pytest.raises(InvalidSetting, match="patients must be"):
        ledger.withdraw(people)
    assert ledger.withdrawn(["P-1", "P", "1"]).patients == frozenset()


@pytest.mark.parametrize("patients", ["P-1", [17], [None]])
def test_identity_of_patients_who_are_declared_is_a_list_of_texts(ledger, patients):
    with pytest.raises(InvalidSetting, match="patients must be"):
        ledger.declare(run_id="bare", schedule=[event()], patients=patients)
