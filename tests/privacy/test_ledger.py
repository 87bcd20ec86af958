"""The ledger's promises in one process: order, repetition, budgets, accounts and what it tells."""

import contextlib
import itertools
import math
import os
import sqlite3
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ledger_workers import DELTA, TASK, event, open_ledger

from mammo_fed.errors import InvalidSetting, LedgerError, PolicyRefused, PrivacyRefused
from mammo_fed.privacy.accounting.composition import gaussian_epsilon, gaussian_mu
from mammo_fed.privacy.accounting.pricing import epsilon
from mammo_fed.privacy.ledger.copying import copy_ledger
from mammo_fed.privacy.ledger.journal import Journal
from mammo_fed.privacy.ledger.ledger import Budget, Ledger
from mammo_fed.privacy.ledger.report import export_ledger, show_ledger, verify_ledger

OTHER_TASK = "decade" * 8
PATIENTS = ["p1", "p2", "p3"]


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "ledger"


@pytest.fixture
def ledger(folder):
    with open_ledger(folder) as opened:
        yield opened


def declare(ledger, run_id="run", *, steps=10, noise=20.0, patients=PATIENTS, account="default", sample_rate=1.0):
    schedule = [event(noise=noise, steps=steps, sample_rate=sample_rate)]
    ledger.declare(run_id=run_id, schedule=schedule, patients=patients, account=account)


def key(round_index=0, *, run_id="run", task_hash=TASK):
    return {"run_id": run_id, "round_index": round_index, "task_hash": task_hash}


def play(ledger, round_index=0, *, run_id="run", **kinds):
    """One whole round."""
    reservation = ledger.reserve(**key(round_index, run_id=run_id), events=[event(**kinds)])
    ledger.settle(reservation, f"reply {round_index}".encode())
    return reservation


def gdp_epsilon(*events):
    return epsilon(events, delta=DELTA, accountant="gdp")


def test_ledger_lies_in_a_folder_of_any_name(tmp_path):
    # A name of Latin-1, as on an old disk: Python knows its bytes as surrogates.
    folder = tmp_path / os.fsdecode(b"\xdcbungen? #1 %ff")
    with open_ledger(folder) as opened:
        declare(opened)
        play(opened)
    (tmp_path / "copy").mkdir()
    assert copy_ledger(folder, tmp_path / "copy") == verify_ledger(folder)


# The order of a round


def test_ledger_stores_one_reply_for_a_round_and_gives_it_again(ledger, folder):
    declare(ledger)
    assert ledger.stored_reply(**key()) is None
    reservation = ledger.reserve(**key(), events=[event()])
    assert ledger.stored_reply(**key()) is None
    ledger.settle(reservation, b"the reply")
    assert ledger.stored_reply(**key()) == b"the reply"
    with open_ledger(folder) as later:
        assert later.stored_reply(**key()) == b"the reply"


def test_ledger_writes_the_entries_of_a_round_in_order(ledger, folder):
    declare(ledger)
    play(ledger)
    assert [entry.kind for entry in ledger.entries()] == ["opened", "declared", "reserved", "settled"]


def test_ledger_refuses_a_round_of_a_run_that_was_not_declared(ledger):
    with pytest.raises(LedgerError, match="run_id=run must be declared"):
        ledger.reserve(**key(), events=[event()])


def test_ledger_gives_a_reservation_without_a_reply_again_at_no_cost(ledger, folder):
    declare(ledger)
    first = ledger.reserve(**key(), events=[event()])
    with open_ledger(folder) as after_a_crash:
        assert after_a_crash.reserve(**key(), events=[event()]) == first
        after_a_crash.settle(first, b"second attempt")
    assert ledger.events() == (event(),)
    assert ledger.stored_reply(**key()) == b"second attempt"


def test_ledger_pays_for_one_reply_only(ledger):
    declare(ledger)
    reservation = ledger.reserve(**key(), events=[event()])
    assert ledger.reserve(**key(), events=[event()]) == reservation
    ledger.settle(reservation, b"first")
    ledger.settle(reservation, b"first")
    with pytest.raises(LedgerError, match="another reply stored; send the stored one"):
        ledger.settle(reservation, b"second")
    with pytest.raises(LedgerError, match="round 0 has its reply"):
        ledger.reserve(**key(), events=[event()])
    assert ledger.stored_reply(**key()) == b"first"


@pytest.mark.parametrize("settled", [False, True])
def test_ledger_refuses_another_task_for_the_same_round(ledger, settled):
    declare(ledger)
    reservation = ledger.reserve(**key(), events=[event()])
    if settled:
        ledger.settle(reservation, b"reply")
    with pytest.raises(LedgerError, match="round 0 was reserved for another task"):
        ledger.stored_reply(**key(task_hash=OTHER_TASK))
    with pytest.raises(LedgerError, match="round 0 was reserved for another task"):
        ledger.reserve(**key(task_hash=OTHER_TASK), events=[event()])


def test_ledger_refuses_the_same_round_with_other_events(ledger):
    declare(ledger)
    ledger.reserve(**key(), events=[event()])
    with pytest.raises(LedgerError, match="reserved with other events"):
        ledger.reserve(**key(), events=[event(steps=2)])


def test_ledger_settles_only_its_own_reservations(ledger, tmp_path):
    declare(ledger)
    with open_ledger(tmp_path / "other") as other:
        declare(other, "another run")
        foreign = other.reserve(**key(run_id="another run"), events=[event()])
    ledger.reserve(**key(), events=[event()])
    with pytest.raises(LedgerError, match="not in this ledger"):
        ledger.settle(foreign, b"reply")


def test_ledger_stores_an_empty_and_a_large_reply(ledger):
    declare(ledger)
    for round_index, reply in enumerate([b"", bytes(range(256)) * 4096]):
        ledger.settle(ledger.reserve(**key(round_index), events=[event()]), reply)
        assert ledger.stored_reply(**key(round_index)) == reply


# What was declared


def test_ledger_takes_the_same_declaration_again_at_no_cost_and_in_one_entry_whoever_joined(ledger):
    declare(ledger)
    for patients in (reversed(PATIENTS * 2), [*PATIENTS, "somebody-new"]):
        before, left = int(ledger.head().split(":")[0]), ledger.budget_left()
        declare(ledger, patients=patients)
        assert int(ledger.head().split(":")[0]) == before + 1
        assert ledger.budget_left() == left


def test_ledger_refuses_another_schedule_or_account_for_a_declared_run(ledger):
    declare(ledger)
    with pytest.raises(LedgerError, match="declared with another schedule"):
        declare(ledger, steps=11)
    with pytest.raises(LedgerError, match="declared in account=default"):
        declare(ledger, account="second")


def test_ledger_reserves_what_was_declared_and_no_more(ledger):
    schedule = [event(steps=2), event(noise=30.0)]
    ledger.declare(run_id="run", schedule=schedule, patients=PATIENTS)
    play(ledger, 0, steps=2)
    for extra in (event(), event(noise=30.0, steps=2), event(noise=19.0)):
        with pytest.raises(PolicyRefused, match="must be declared and not yet reserved"):
            ledger.reserve(**key(1), events=[extra])
    play(ledger, 1, noise=30.0)
    assert ledger.events(run_id="run") == tuple(schedule)


# Budgets


def test_ledger_price_is_the_closed_form_of_all_that_is_reserved(ledger):
    declare(ledger, steps=50)
    for round_index in range(3):
        play(ledger, round_index, steps=4)
    assert ledger.epsilon(accountant="gdp") == gdp_epsilon(event(steps=12))
    assert ledger.epsilon(run_id="run", accountant="pld") == epsilon([event(steps=12)], delta=DELTA, accountant="pld")
    squares = gaussian_mu(epsilon=6.0, delta=DELTA) ** 2 - 12 / 20**2
    assert ledger.budget_left() == pytest.approx(gaussian_epsilon(mu=math.sqrt(squares), delta=DELTA), rel=1e-4)


def test_ledger_without_charges_costs_nothing(ledger):
    assert ledger.events() == ()
    assert ledger.epsilon(accountant="pld") == 0.0
    assert ledger.epsilon(run_id="unknown", accountant="pld") == 0.0
    assert ledger.budget_left() == 6.0


def test_ledger_admits_a_schedule_at_the_budget_and_refuses_one_step_more(ledger):
    most = math.floor(gaussian_mu(epsilon=6.0, delta=DELTA) ** 2 * 20.0**2)
    with pytest.raises(PrivacyRefused, match=r"epsilon=6\.0.* must be at most max_epsilon=6 .*0\.0000 is charged so far"):
        declare(ledger, "too long", steps=most + 1)
    declare(ledger, steps=most)
    play(ledger, steps=most)
    assert gdp_epsilon(event(steps=most)) <= 6.0 * (1 + 1e-6) < gdp_epsilon(event(steps=most + 1))


def test_ledger_carries_the_budget_from_run_to_run_and_over_restarts(folder):
    runs = next(count for count in itertools.count() if gdp_epsilon(event(steps=40 * (count + 1))) > 3.0)
    for number in range(runs):
        with open_ledger(folder, max_epsilon=3.0) as ledger:
            declare(ledger, f"run {number}", steps=40)
            play(ledger, run_id=f"run {number}", steps=40)
            assert ledger.epsilon(accountant="gdp") == gdp_epsilon(event(steps=40 * (number + 1)))
    with open_ledger(folder, max_epsilon=3.0) as ledger, pytest.raises(PrivacyRefused) as refusal:
        declare(ledger, "one too many", steps=40)
    assert refusal.value.exit_code == 3


def test_ledger_stops_a_run_whose_budget_another_run_has_used(ledger):
    most = math.floor(gaussian_mu(epsilon=6.0, delta=DELTA) ** 2 * 20.0**2)
    declare(ledger, "first", steps=most)
    declare(ledger, "second", steps=most)
    play(ledger, run_id="first", steps=most - 5)
    play(ledger, run_id="second", steps=5)
    for run_id in ("first", "second"):
        with pytest.raises(PrivacyRefused, match="is charged so far"):
            ledger.reserve(**key(1, run_id=run_id), events=[event()])


def test_ledger_follows_a_policy_that_was_tightened(folder):
    with open_ledger(folder) as ledger:
        declare(ledger, steps=400)
        play(ledger, steps=100)
    with open_ledger(folder, max_epsilon=gdp_epsilon(event(steps=150))) as ledger:
        play(ledger, 1, steps=50)
        with pytest.raises(PrivacyRefused):
            ledger.reserve(**key(2), events=[event()])


def test_ledger_follows_a_tightened_policy_for_a_declared_schedule_too(folder):
    with open_ledger(folder, kind="declared") as ledger:
        declare(ledger, steps=100)
        play(ledger)
    tighter = gdp_epsilon(event(steps=99))
    with open_ledger(folder, kind="declared", max_epsilon=tighter) as ledger, pytest.raises(PrivacyRefused):
        ledger.reserve(**key(1), events=[event()])


def test_ledger_without_a_cap_charges_and_never_refuses(folder):
    with open_ledger(folder, max_epsilon=math.inf) as ledger:
        declare(ledger, noise=0.0)
        play(ledger, noise=0.0)
        assert ledger.epsilon(accountant="gdp") == math.inf
        assert ledger.budget_left() == math.inf


def test_ledger_with_a_cap_refuses_a_release_without_noise(ledger):
    with pytest.raises(PrivacyRefused, match="epsilon=inf"):
        declare(ledger, noise=0.0)


@pytest.mark.parametrize(("max_epsilon", "delta"), [(-1.0, 1e-4), (math.nan, 1e-4), (1.0, 0.0), (1.0, 1.0), (1.0, math.nan)])
def test_ledger_budget_out_of_range_is_named_with_its_remedy(max_epsilon, delta):
    with pytest.raises(InvalidSetting, match=r"(max_epsilon|delta)=.* must be .*; check the site's policy"):
        Budget(max_epsilon=max_epsilon, delta=delta)


def test_ledger_refuses_bad_arguments(ledger):
    declare(ledger)
    for bad in ({"run_id": ""}, {"account": "a\n"}, {"patients": []}, {"patients": [" "]}, {"schedule": []}):
        arguments = {"run_id": "r", "account": "a", "patients": PATIENTS, "schedule": [event()], **bad}
        with pytest.raises(InvalidSetting):
            ledger.declare(**arguments)
    with pytest.raises(InvalidSetting, match="schedule has 2 events with units"):
        ledger.declare(run_id="r", schedule=[event(), event(unit="image")], patients=PATIENTS)
    for bad in ({"round_index": -1}, {"events": []}, {"task_hash": ""}):
        with pytest.raises(InvalidSetting):
            ledger.reserve(**{**key(), "events": [event()], **bad})


# The filter of an account


def test_ledger_with_a_gdp_filter_refuses_sampled_steps(ledger):
    with pytest.raises(PolicyRefused, match="filter=gdp takes full-batch steps only"):
        declare(ledger, sample_rate=0.1)


def test_ledger_with_an_rdp_filter_takes_sampled_steps_up_to_its_cap(folder):
    with open_ledger(folder, kind="rdp", max_epsilon=2.0) as ledger:
        declare(ledger, steps=1500, noise=1.5, sample_rate=0.01)
        for round_index in range(3):
            play(ledger, round_index, steps=500, noise=1.5, sample_rate=0.01)
        assert 0 < ledger.epsilon(accountant="pld") < 2.0
        assert 0 < ledger.budget_left() < 2.0
        with pytest.raises(PrivacyRefused):
            declare(ledger, "run 2", steps=500_000, noise=1.5, sample_rate=0.01)


def test_ledger_prices_a_declared_schedule_by_pld(folder):
    """The whole schedule fits by PLD, though not in the currency for adaptive choices."""
    schedule = [event(noise=1.0, steps=50, sample_rate=0.1)]
    cap = epsilon(schedule, delta=DELTA, accountant="pld")
    with open_ledger(folder, kind="rdp", max_epsilon=cap) as ledger, pytest.raises(PrivacyRefused):
        ledger.declare(run_id="run", schedule=schedule, patients=PATIENTS)
    with open_ledger(folder.with_name("declared"), kind="declared", max_epsilon=cap) as ledger:
        ledger.declare(run_id="run", schedule=schedule, patients=PATIENTS)
        for round_index in range(5):
            play(ledger, round_index, noise=1.0, steps=10, sample_rate=0.1)
        assert ledger.epsilon(accountant="pld") == cap
        assert ledger.budget_left() == 0.0


def test_ledger_prices_all_schedules_declared_before_the_first_output_together(folder):
    cap = epsilon([event(steps=200)], delta=DELTA, accountant="pld")
    with open_ledger(folder, kind="declared", max_epsilon=cap) as ledger:
        declare(ledger, "run 1", steps=120)
        declare(ledger, "run 2", steps=80)
        with pytest.raises(PrivacyRefused):
            declare(ledger, "run 3", steps=1)


def test_ledger_takes_a_schedule_after_an_output_only_in_the_currency_for_adaptive_choices(folder):
    cap = epsilon([event(steps=200)], delta=DELTA, accountant="pld")
    with open_ledger(folder, kind="declared", max_epsilon=cap) as ledger:
        declare(ledger, "run 1", steps=100)
        play(ledger, run_id="run 1")
        with pytest.raises(PrivacyRefused):
            declare(ledger, "run 2", steps=100)
        declare(ledger, "run 3", steps=50)
        play(ledger, run_id="run 3", steps=50)


def test_ledger_charges_a_declared_schedule_whole_even_if_most_of_it_never_runs(folder):
    cap = epsilon([event(steps=200)], delta=DELTA, accountant="pld")
    with open_ledger(folder, kind="declared", max_epsilon=cap) as ledger:
        declare(ledger, "run 1", steps=200)
        play(ledger, run_id="run 1")
        with pytest.raises(PrivacyRefused):
            declare(ledger, "run 2", steps=1)


def test_ledger_keeps_the_filter_that_an_account_opened_with(folder):
    with open_ledger(folder, kind="gdp") as ledger:
        declare(ledger)
    with open_ledger(folder, kind="rdp") as ledger:
        with pytest.raises(PolicyRefused, match="must be the filter that the account opened with"):
            declare(ledger, "run 2")
        play(ledger)


def test_ledger_keeps_an_account_to_one_unit(ledger):
    declare(ledger)
    with pytest.raises(PolicyRefused, match=r"unit=image must be the unit that the account is charged in"):
        ledger.declare(run_id="run 2", schedule=[event(unit="image")], patients=["p9"])


# Accounts


def test_ledger_charges_disjoint_cohorts_of_one_account_together(ledger):
    declare(ledger, "run 1", patients=["p1"])
    declare(ledger, "run 2", patients=["p2"])
    play(ledger, run_id="run 1")
    play(ledger, run_id="run 2")
    assert ledger.events() == (event(), event())


def test_ledger_keeps_accounts_of_disjoint_cohorts_apart(ledger):
    declare(ledger, "run 1", patients=["p1"], account="mammography")
    declare(ledger, "run 2", patients=["p2"], account="ultrasound")
    play(ledger, run_id="run 1")
    assert ledger.events(account="mammography") == (event(),)
    assert ledger.events(account="ultrasound") == ()


def test_ledger_merges_accounts_whose_cohorts_overlap_for_good(ledger, folder):
    declare(ledger, "run 1", patients=["p1", "p2"], account="mammography")
    play(ledger, run_id="run 1", steps=3)
    declare(ledger, "run 2", patients=["p3"], account="ultrasound")
    play(ledger, run_id="run 2", steps=2)
    declare(ledger, "run 3", patients=["p3", " P2 "], account="ultrasound")
    play(ledger, run_id="run 3")
    everything = (event(steps=3), event(steps=2), event())
    with open_ledger(folder) as later:
        for account in ("mammography", "ultrasound"):
            assert later.events(account=account) == everything
        assert later.epsilon(account="mammography", accountant="gdp") == gdp_epsilon(event(steps=6))
        assert later.events(run_id="run 2") == (event(steps=2),)
        declare(later, "run 4", patients=["p9"], account="mammography")
        play(later, run_id="run 4")
        assert later.events(account="ultrasound") == (*everything, event())
    (account,) = show_ledger(folder, delta=DELTA).accounts
    assert set(account.names) == {"mammography", "ultrasound"}
    assert account.patients == 4


def test_ledger_merges_every_account_that_a_cohort_touches(ledger):
    for name in ("a", "b", "c"):
        declare(ledger, f"run {name}", patients=[f"patient {name}"], account=name)
        play(ledger, run_id=f"run {name}")
    declare(ledger, "run", patients=["patient a", "patient b", "patient c"], account="new")
    for name in ("a", "b", "c", "new"):
        assert len(ledger.events(account=name)) == 3


def test_ledger_names_a_merger_once_and_where_it_happened(ledger):
    declare(ledger, "run 1", patients=["p1"], account="a")
    declare(ledger, "run 2", patients=["p1", "p2"], account="b")
    declare(ledger, "run 3", patients=["p1", "p2", "p3"], account="b")
    told = [entry.details for entry in ledger.entries() if entry.kind == "declared"]
    assert [details["merged"] for details in told] == [[], ["a"], []]
    assert [details["patients"] for details in told] == [1, 1, 1]


def test_ledger_prices_a_cohort_with_all_that_its_patients_paid_elsewhere(ledger):
    most = math.floor(gaussian_mu(epsilon=6.0, delta=DELTA) ** 2 * 20.0**2)
    declare(ledger, "run 1", steps=most - 9, patients=["p1"], account="a")
    play(ledger, run_id="run 1", steps=most - 9)
    declare(ledger, "run 2", steps=10, patients=["p2"], account="b")
    with pytest.raises(PrivacyRefused):
        declare(ledger, "run 3", steps=10, patients=["p1", "p2"], account="b")
    # Refused cohorts are not touched, so the accounts stay apart.
    play(ledger, run_id="run 2", steps=10)
    declare(ledger, "run 4", steps=9, patients=["p1"], account="a")
    play(ledger, run_id="run 4", steps=9)


def test_ledger_enrols_patients_who_join_the_cohort_of_a_declared_run(ledger):
    declare(ledger, "other", patients=["p9"], account="second")
    play(ledger, run_id="other", steps=7)
    declare(ledger, patients=["p1"])
    declare(ledger, patients=["p1", "p2"])
    play(ledger)
    assert ledger.events(account="second") == (event(steps=7),)
    declare(ledger, patients=["p1", "p2", "p9"])
    assert ledger.events() == ledger.events(account="second") == (event(steps=7), event())
    assert [entry.kind for entry in ledger.entries()].count("enrolled") == 2


def test_ledger_does_not_enrol_a_patient_whose_other_charges_leave_no_room(ledger):
    most = math.floor(gaussian_mu(epsilon=6.0, delta=DELTA) ** 2 * 20.0**2)
    declare(ledger, "other", steps=most, patients=["p9"], account="second")
    play(ledger, run_id="other", steps=most)
    declare(ledger, patients=["p1"])
    with pytest.raises(PrivacyRefused):
        declare(ledger, patients=["p1", "p9"])
    play(ledger)
    assert ledger.events() == (event(),)


def test_ledger_lets_patients_join_a_declared_schedule_at_its_cap(folder):
    schedule = [event(steps=200)]
    with open_ledger(folder, kind="declared", max_epsilon=epsilon(schedule, delta=DELTA, accountant="pld")) as ledger:
        ledger.declare(run_id="run", schedule=schedule, patients=["p1"])
        play(ledger)
        ledger.declare(run_id="run", schedule=schedule, patients=["p1", "p2"])
        play(ledger, 1)
        assert ledger.events() == (event(), event())


def test_ledger_does_not_merge_accounts_of_different_filters(folder):
    with open_ledger(folder, kind="gdp") as ledger:
        declare(ledger, "run 1", patients=["p1"], account="a")
    with open_ledger(folder, kind="rdp") as ledger:
        declare(ledger, "run 2", patients=["p2"], account="b")
        with pytest.raises(PolicyRefused, match="must be the filter"):
            declare(ledger, "run 3", patients=["p1"], account="b")


# What it tells


def test_ledger_files_and_words_hold_no_patient(ledger, folder):
    names = ["ANNA-1971", "BERTA-1968"]
    declare(ledger, patients=names)
    refusals = []
    for attempt in (
        lambda: declare(ledger, "long", steps=10**7, patients=names),
        lambda: declare(ledger, steps=3, patients=names),
        lambda: ledger.reserve(**key(), events=[event(steps=11)]),
    ):
        with pytest.raises(PrivacyRefused) as refusal:
            attempt()
        refusals.append(str(refusal.value))
    exported = repr(export_ledger(folder)) + repr(show_ledger(folder, delta=DELTA))
    on_disk = b"".join(path.read_bytes() for path in folder.iterdir())
    for name in names:
        assert name not in exported + "".join(refusals)
        assert name.encode() not in on_disk
    assert str(folder) not in "".join(refusals)


def test_ledger_recognises_patients_by_a_key_of_its_own(folder, tmp_path):
    stored = []
    for place in (folder, tmp_path / "second"):
        with open_ledger(place) as ledger:
            declare(ledger, patients=["p1"])
        with contextlib.closing(sqlite3.connect(place / "journal.sqlite")) as database:
            stored.append(database.execute("SELECT payload FROM entries WHERE seq = 1").fetchone()[0])
    assert stored[0] != stored[1]


def test_ledger_export_counts_patients_and_keeps_the_rest(ledger, folder):
    declare(ledger)
    play(ledger)
    exported = export_ledger(folder)
    assert tuple(ledger.entries()) == exported
    assert exported[1].details["patients"] == 3
    assert exported[2].details["events"] == [event().as_dict()]
    assert exported[3].details["bytes"] == len(b"reply 0")
    assert f"3:{exported[3].mac}" == ledger.head() == verify_ledger(folder)


def test_ledger_summary_says_what_was_declared_reserved_and_settled(ledger, folder):
    declare(ledger, steps=10)
    play(ledger, 0)
    ledger.reserve(**key(1), events=[event(steps=2)])
    summary = show_ledger(folder, delta=DELTA, accountant="gdp")
    assert (summary.site, summary.entries, summary.head) == ("north", 5, ledger.head())
    (account,) = summary.accounts
    assert (account.names, account.filter, account.unit, account.patients) == (("default",), "gdp", "patient", 3)
    assert account.epsilon == gdp_epsilon(event(steps=3))
    (run,) = account.runs
    assert (run.declared_steps, run.reserved_steps, run.reserved_rounds, run.settled_rounds) == (10, 3, 2, 1)


def test_ledger_written_by_a_newer_version_is_refused(folder):
    open_ledger(folder).close()
    journal = Journal(folder)
    with journal.exclusive():
        journal.append("forgiven", {"at": "later"})
    journal.close()
    with pytest.raises(LedgerError, match="entry 1 was written by a newer mammo-fed"):
        open_ledger(folder)


def test_ledger_that_is_closed_says_so(folder):
    with open_ledger(folder) as ledger:
        ledger.close()
        with pytest.raises(LedgerError, match="open it again"):
            ledger.head()


def test_ledger_verify_accepts_its_own_reported_heads_only(ledger):
    declare(ledger)
    reported = ledger.head()
    play(ledger)
    ledger.verify(reported=reported)
    ledger.verify()
    with pytest.raises(InvalidSetting, match=r"reported head=.* must read"):
        ledger.verify(reported="yesterday")
    with pytest.raises(LedgerError, match="does not hold the entry 1"):
        ledger.verify(reported=f"1:{'0' * 64}")


# A property: whatever is asked in whatever order, over restarts

steps_asked = st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(1, 60))


@settings(max_examples=15, deadline=None)
@given(st.lists(steps_asked, max_size=20), st.booleans())
def test_ledger_never_passes_its_budget_and_remembers_all_it_granted(requests, restart):
    with tempfile.TemporaryDirectory() as home:
        folder = Path(home) / "ledger"
        granted = 0
        ledger = open_ledger(folder, max_epsilon=2.0)
        for number, round_index, steps in requests:
            run_id = f"run {number}"
            with contextlib.suppress(PrivacyRefused):
                declare(ledger, run_id, steps=80, patients=[f"p{number}"])
                play(ledger, round_index, run_id=run_id, steps=steps)
                granted += steps
            if restart:
                ledger.close()
                ledger = open_ledger(folder, max_epsilon=2.0)
        with ledger:
            assert sum(paid.steps for paid in ledger.events()) == granted
            assert ledger.epsilon(accountant="gdp") <= 2.0 * (1 + 2e-6)
            ledger.verify()


def test_ledger_open_checks_the_name_of_the_site(folder):
    with pytest.raises(InvalidSetting, match="site must be 1 to 200 printable characters"):
        Ledger.open(folder, site="", budget=Budget(max_epsilon=1.0, delta=DELTA), filter="gdp")
    assert not folder.exists()
