"""What a ledger shows as charged is what decides; it keeps filter and delta, and knows a patient however one is spelled."""

import shutil
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ledger_workers import DELTA, TASK, event, open_ledger

from mammo_fed.errors import InvalidSetting, LedgerError, PolicyRefused, PrivacyRefused
from mammo_fed.privacy.accounting.filters import adaptive_epsilon, as_steps, open_filter
from mammo_fed.privacy.accounting.pricing import epsilon, patient_epsilon
from mammo_fed.privacy.ledger.chain import LedgerKeys, patient_digests
from mammo_fed.privacy.ledger.ledger import Budget, Ledger
from mammo_fed.privacy.ledger.report import export_ledger, show_ledger, verify_ledger
from mammo_fed.privacy.patient_identity import normal_identifier

PATIENTS = ["p1", "p2", "p3"]
KEYS = LedgerKeys.derive(bytes(32))


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "ledger"


def declare(ledger, run_id="run", **kinds):
    ledger.declare(run_id=run_id, schedule=[event(**kinds)], patients=PATIENTS)


def key(*, run_id="run"):
    return {"run_id": run_id, "round_index": 0, "task_hash": TASK}


def play(ledger, *, run_id="run", **kinds):
    """One whole round."""
    reservation = ledger.reserve(**key(run_id=run_id), events=[event(**kinds)])
    ledger.settle(reservation, b"reply")


# What is shown as charged, by the filter that decides


def test_ledger_charges_in_the_currency_that_decides_once_a_schedule_has_joined_after_an_output(folder):
    with open_ledger(folder, kind="declared", max_epsilon=12.0) as ledger:
        declare(ledger, "run 1", noise=1.5, steps=20, sample_rate=0.1)
        whole = epsilon([event(noise=1.5, steps=20, sample_rate=0.1)], delta=DELTA, accountant="pld")
        charged = [show_ledger(folder, delta=DELTA).accounts[0].charged]
        play(ledger, run_id="run 1", noise=1.5, steps=20, sample_rate=0.1)
        charged.append(show_ledger(folder, delta=DELTA).accounts[0].charged)
        assert charged == [pytest.approx(whole)] * 2
        before = ledger.budget_left()
        declare(ledger, "run 2", noise=1.5, steps=20, sample_rate=0.1)
        assert 0 < ledger.budget_left() < before < 12.0
    order = open_filter("declared", max_epsilon=12.0, delta=DELTA)
    total = as_steps([event(noise=1.5, steps=40, sample_rate=0.1)])
    (account,) = show_ledger(folder, delta=DELTA).accounts
    assert account.charged == pytest.approx(adaptive_epsilon(order, total, delta=DELTA))
    assert account.charged > epsilon([event(noise=1.5, steps=40, sample_rate=0.1)], delta=DELTA, accountant="pld")


def test_ledger_shows_after_many_schedules_the_figure_that_its_filter_decides_by(folder):
    with open_ledger(folder, kind="declared", max_epsilon=6.0) as ledger:
        declare(ledger, "run 1", noise=2.0, steps=20, sample_rate=0.1)
        play(ledger, run_id="run 1", noise=2.0, steps=20, sample_rate=0.1)
        for number in range(200):
            try:
                declare(ledger, f"more {number}", noise=2.0, steps=10, sample_rate=0.1)
            except PrivacyRefused:
                break
        (account,) = show_ledger(folder, delta=DELTA).accounts
        steps = as_steps([event(noise=2.0, steps=20 + 10 * number, sample_rate=0.1)])
        decided = adaptive_epsilon(open_filter("declared", max_epsilon=6.0, delta=DELTA), steps, delta=DELTA)
    assert number > 0
    assert account.charged == pytest.approx(decided)


def test_ledger_charges_merged_accounts_in_the_currency_for_adaptive_choices(folder):
    with open_ledger(folder, kind="declared", max_epsilon=12.0) as ledger:
        for name, patients in (("a", ["p1"]), ("b", ["p2"])):
            ledger.declare(run_id=name, schedule=[event(noise=3.0)], patients=patients, account=name)
            ledger.reserve(run_id=name, round_index=0, task_hash=TASK, events=[event(noise=3.0)])
        ledger.declare(run_id="c", schedule=[event(noise=3.0)], patients=["p1", "p2"], account="a")
    (account,) = show_ledger(folder, delta=DELTA).accounts
    order = open_filter("declared", max_epsilon=12.0, delta=DELTA)
    assert account.charged == pytest.approx(adaptive_epsilon(order, as_steps([event(noise=3.0, steps=3)]), delta=DELTA))


# Delta, filters that are kept, and what a patient paid


def test_ledger_refuses_another_delta_than_its_account_opened_with(folder):
    with open_ledger(folder) as ledger:
        declare(ledger)
    with open_ledger(folder, delta=1e-3) as ledger:
        with pytest.raises(PolicyRefused, match=r"delta=0\.001 must be 0\.0001, the delta that the account opened with"):
            declare(ledger, "run 2")
        with pytest.raises(PolicyRefused, match=r"delta=0\.001 must be 0\.0001"):
            ledger.reserve(**key(), events=[event()])
    assert show_ledger(folder, delta=DELTA).accounts[0].opened_delta == DELTA


def test_ledger_that_adopts_keeps_the_filter_of_an_open_account(folder):
    budget = Budget(max_epsilon=6.0, delta=DELTA)
    with Ledger.open(folder, site="north", budget=budget, filter="rdp", adopt=True) as ledger:
        declare(ledger, sample_rate=0.1)
    with Ledger.open(folder, site="north", budget=budget, filter="gdp", adopt=True) as ledger:
        declare(ledger, "full batch")
    assert show_ledger(folder, delta=DELTA).accounts[0].filter == "rdp"


@pytest.mark.parametrize("sample_rate", [1.0, 0.2])
def test_ledger_prices_a_patient_of_all_runs_by_the_images_that_each_run_allowed(folder, sample_rate):
    few = replace(event(unit="image", sample_rate=sample_rate), max_images_per_patient=1)
    many = replace(event(unit="image", sample_rate=sample_rate), max_images_per_patient=4)
    with open_ledger(folder, kind="declared") as ledger:
        for name, one in (("few", few), ("many", many)):
            ledger.declare(run_id=name, schedule=[one.repeated(2)], patients=PATIENTS)
            ledger.reserve(run_id=name, round_index=0, task_hash=TASK, events=[one])
        assert ledger.patient_epsilon() == patient_epsilon([few, many], delta=DELTA, accountant="pld")
        assert ledger.patient_epsilon(run_id="many") == patient_epsilon(
            [few, many if sample_rate == 1 else many.repeated(2)], delta=DELTA, accountant="pld"
        )
    assert show_ledger(folder, delta=DELTA).accounts[0].patient_epsilon == patient_epsilon(
        [few, many], delta=DELTA, accountant="pld"
    )


@pytest.mark.parametrize(
    "spelling",
    [
        "p_00001",
        " P_00001\t",
        "\uff30_00001",
        "\ufeffP_00001",
        "P_00001\u200b",
        "P_00001\x00",
        "P_0\u00ad0001",
        "P_\u034f00001",
    ],
    ids=ascii,
)
def test_ledger_recognises_a_patient_however_the_identifier_is_typed(spelling):
    assert patient_digests(KEYS, [spelling]) == patient_digests(KEYS, ["P_00001"])


@pytest.mark.parametrize(
    ("one", "other"), [("A  1", "a 1"), ("\u0345x", "\u03b9x"), ("\u00c91", "E\u03011"), ("\u1e9b\u0323", "\u1e69")], ids=ascii
)
def test_ledger_takes_equivalent_spellings_as_one(one, other):
    assert patient_digests(KEYS, [one]) == patient_digests(KEYS, [other])


@given(st.text())
def test_ledger_identifiers_are_normal_after_one_pass(text):
    once = normal_identifier(text)
    assert normal_identifier(once) == once


def test_ledger_tells_patients_apart_that_only_look_alike_to_it():
    assert len({*patient_digests(KEYS, ["P-1", "P_1", "P1", "P 1", "P.1"])}) == 5
    with pytest.raises(InvalidSetting, match="identifier is blank"):
        patient_digests(KEYS, ["\u200b\t"])


def test_ledger_remembers_a_head_that_an_older_copy_has_lost(folder, tmp_path):
    with open_ledger(folder) as ledger:
        declare(ledger)
        ledger.check_remembered(ledger.head())
        shutil.copytree(folder, tmp_path / "copy")
        play(ledger)
        head = ledger.head()
    with open_ledger(tmp_path / "copy") as older, pytest.raises(LedgerError, match="does not hold the entry"):
        older.check_remembered(head)
    with open_ledger(folder) as ledger, pytest.raises(LedgerError, match="cannot be read"):
        ledger.check_remembered("3:zz")


@pytest.mark.parametrize("command", [verify_ledger, export_ledger, lambda folder: show_ledger(folder, delta=DELTA)])
def test_ledger_commands_say_that_a_folder_is_no_ledger(tmp_path, command):
    (tmp_path / "notes.txt").write_text("nothing of a ledger")
    with pytest.raises(LedgerError, match=r"must be a ledger's folder, and holds none of journal\.sqlite, site\.key, head"):
        command(tmp_path)
