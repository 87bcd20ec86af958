"""The cap that an account promised: in the ledger with the first declaration, lowered for good, raised only with an entry."""

from __future__ import annotations

import json
import math
import sqlite3
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mammo_fed import charge, open_ledger
from mammo_fed.cli.main import main
from mammo_fed.errors import InvalidSetting, LedgerError, PolicyRefused, PrivacyRefused
from mammo_fed.privacy.accounting.calibration import calibrate
from mammo_fed.privacy.accounting.composition import gaussian_delta
from mammo_fed.privacy.accounting.filters import PrivacyFilter, as_steps
from mammo_fed.privacy.accounting.pricing import epsilon
from mammo_fed.privacy.events import PrivacyEvent
from mammo_fed.privacy.ledger.chain import START, LedgerKeys, extend
from mammo_fed.privacy.ledger.headroom import after_run
from mammo_fed.privacy.ledger.journal import HeadFile, read_secret
from mammo_fed.privacy.ledger.ledger import Budget, Ledger
from mammo_fed.privacy.ledger.report import export_ledger, read_accounts, show_ledger
from mammo_fed.privacy.ledger.rules import Account, headroom
from mammo_fed.privacy.schedule import plan_schedule

DELTA = 1e-5
COHORT = ("A", "B")


def event(*, noise: float = 20.0, steps: int = 1, rate: float = 1.0) -> PrivacyEvent:
    return PrivacyEvent(
        mechanism="gradient",
        noise_multiplier=noise,
        steps=steps,
        sample_rate=rate,
        unit="patient",
        clipping_norm=1.0,
        max_images_per_patient=4,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "ledger"


def opened(folder: Path, cap: float, *, delta: float = DELTA, kind: str = "gdp", adopt: bool = True) -> Ledger:
    """The ledger as a site with this policy opens it."""
    return Ledger.open(folder, site="s", budget=Budget(max_epsilon=cap, delta=delta), filter=kind, adopt=adopt)


def declare(ledger: Ledger, run_id: str, *, patients=COHORT, account: str = "default", **changed: float) -> None:
    ledger.declare(run_id=run_id, schedule=[event(**changed)], patients=patients, account=account)


def reserve(ledger: Ledger, run_id: str) -> None:
    ledger.reserve(run_id=run_id, round_index=0, task_hash="task", events=[event()])


def test_cap_is_in_the_entry_of_the_first_declaration(folder):
    with opened(folder, 1.0) as ledger:
        assert ledger.cap() is None
        declare(ledger, "first")
        cap = ledger.cap()
    (_, entry) = export_ledger(folder)
    assert (entry.kind, entry.details["cap"]) == ("declared", {"max_epsilon": 1.0, "delta": DELTA})
    assert (cap.max_epsilon, cap.delta, cap.since, cap.raised) == (1.0, DELTA, entry.at, ())


@pytest.mark.parametrize("cap", [1.0000001, 50.0, math.inf])
@pytest.mark.parametrize("account", ["default", "another-study"])
def test_cap_that_was_promised_is_not_passed_by_a_later_policy(folder, cap, account):
    """Neither in the name that promised it, nor in a new one for a patient who was there."""
    with opened(folder, 1.0) as ledger:
        declare(ledger, "first")
        since = ledger.cap().since
    with opened(folder, cap) as ledger:
        with pytest.raises(PolicyRefused, match=f"promised 1 since {since[:10]}.*site-client raise-cap SITE --max-epsilon"):
            declare(ledger, "second", patients=["B", "C"], account=account)
        with pytest.raises(PolicyRefused, match="promised 1 since"):
            declare(ledger, "first")
        with pytest.raises(PolicyRefused, match="promised 1 since"):
            reserve(ledger, "first")
    assert [entry.kind for entry in export_ledger(folder)] == ["opened", "declared"]


@pytest.mark.parametrize("kind", ["gdp", "rdp", "declared"])
def test_cap_holds_whatever_filter_the_policy_names_later(folder, kind):
    with opened(folder, 1.0) as ledger:
        declare(ledger, "first")
    with opened(folder, 50.0, kind=kind, adopt=False) as ledger, pytest.raises(PolicyRefused):
        declare(ledger, "second")


@pytest.mark.parametrize("delta", [1e-4, 1e-6])
def test_cap_is_read_at_the_delta_that_it_was_promised_at(folder, delta):
    with opened(folder, 1.0) as ledger:
        declare(ledger, "first")
    with opened(folder, 1.0, delta=delta) as ledger:
        for act in (lambda: declare(ledger, "second"), lambda: reserve(ledger, "first")):
            with pytest.raises(PolicyRefused, match=f"delta={delta:g} must be {DELTA:g}"):
                act()


def test_cap_that_a_later_declaration_quotes_smaller_holds_for_good(folder):
    with opened(folder, 6.0) as ledger:
        declare(ledger, "first")
        first = ledger.cap()
    with opened(folder, 2.0) as ledger:
        declare(ledger, "second")
        assert (ledger.cap().max_epsilon, ledger.cap().raised) == (2.0, ())
    with opened(folder, 6.0) as ledger:
        with pytest.raises(PolicyRefused, match="promised 2 since"):
            declare(ledger, "third")
        assert first.max_epsilon == 6.0


def test_cap_that_is_quoted_smaller_when_a_run_is_declared_again_must_hold_for_what_was_charged(folder):
    with opened(folder, 6.0) as ledger:
        declare(ledger, "first", noise=2.0)
        ledger.reserve(run_id="first", round_index=0, task_hash="task", events=[event(noise=2.0)])
    with opened(folder, 0.5) as ledger:
        with pytest.raises(PrivacyRefused, match=r"must be at most max_epsilon=0\.5"):
            declare(ledger, "first", noise=2.0)
        assert ledger.cap().max_epsilon == 6.0
    with opened(folder, 3.0) as ledger:
        declare(ledger, "first", noise=2.0)
        assert ledger.cap().max_epsilon == 3.0


def test_cap_of_patients_whose_accounts_merged_is_the_smallest_and_each_name_keeps_its_own_history(folder):
    with opened(folder, 6.0) as ledger:
        declare(ledger, "a", patients=["A"], account="a")
    with opened(folder, 3.0) as ledger:
        declare(ledger, "b", patients=["B"], account="b")
        alone = ledger.cap(account="b")
        declare(ledger, "both", patients=["A", "B"], account="b")
        assert ledger.cap(account="b") == alone
        assert ledger.cap(account="a").max_epsilon == 6.0
        assert ledger.cap_in_force(account="a") == ("b", alone)
    with opened(folder, 6.0) as ledger, pytest.raises(PolicyRefused, match="account b were promised 3"):
        declare(ledger, "again", patients=["A"], account="a")


def test_cap_is_raised_by_an_entry_that_stays_and_lets_later_runs_through(folder):
    with opened(folder, 1.0) as ledger:
        declare(ledger, "first")
        raised = ledger.raise_cap(max_epsilon=8.0)
        ledger.raise_cap(max_epsilon=math.inf, account="default")
        cap = ledger.cap()
    assert [(step.from_epsilon, step.to_epsilon) for step in cap.raised] == [(1.0, 8.0), (8.0, math.inf)]
    assert (cap.raised[0], cap.max_epsilon, cap.since) == (raised["default"], math.inf, cap.raised[1].at)
    with opened(folder, 8.0) as ledger:
        declare(ledger, "second", noise=2.0)
        assert ledger.cap().max_epsilon == 8.0
        assert ledger.cap().raised == cap.raised
    entries = [entry.details for entry in export_ledger(folder) if entry.kind == "cap_raised"]
    assert [(entry["account"], entry["from"], entry["to"]) for entry in entries] == [
        ("default", 1.0, 8.0),
        ("default", 8.0, None),
    ]
    (account,) = show_ledger(folder, delta=None).accounts
    assert account.caps["default"].raised == cap.raised


@pytest.mark.parametrize("cap", [1.0, 0.5, math.nan])
def test_cap_is_raised_only_to_what_is_above_it(folder, cap):
    with opened(folder, 1.0) as ledger:
        declare(ledger, "first")
        with pytest.raises(InvalidSetting, match="must be above 1, the cap that account default promises since"):
            ledger.raise_cap(max_epsilon=cap)
        with pytest.raises(InvalidSetting, match=r"--account=other must be one of the ledger's: default"):
            ledger.raise_cap(max_epsilon=9.0, account="other")
        assert ledger.cap().max_epsilon == 1.0


def test_cap_raised_under_one_name_leaves_the_promise_of_another_in_force(folder):
    with opened(folder, 3.0) as ledger:
        declare(ledger, "a", patients=["A"], account="a")
        declare(ledger, "b", patients=["A", "B"], account="b")
        ledger.raise_cap(max_epsilon=6.0, account="a")
        assert ledger.cap_in_force(account="a")[0] == "b"
    with opened(folder, 6.0) as ledger:
        with pytest.raises(PolicyRefused, match="account b were promised 3"):
            declare(ledger, "c", patients=["A"], account="a")
        assert list(ledger.raise_cap(max_epsilon=6.0)) == ["b"]
        declare(ledger, "c", patients=["A"], account="a")


def without_cap(folder: Path) -> None:
    """Make the ledger as versions before caps wrote it."""
    keys, head, before = LedgerKeys.derive(read_secret(folder / "site.key")), START, START
    with sqlite3.connect(folder / "journal.sqlite") as database:
        rows = database.execute("SELECT seq, kind, payload FROM entries ORDER BY seq").fetchall()
        for seq, kind, payload in rows:
            details = {name: value for name, value in json.loads(payload).items() if name != "cap"}
            entry = extend(keys, head, kind=kind, details=details)
            database.execute("UPDATE entries SET payload = ?, mac = ? WHERE seq = ?", (entry.payload, entry.mac, seq))
            before, head = head, entry.head
    file = HeadFile(folder / "head", keys)
    file.write(before)
    file.write(head)
    file.close()


def test_cap_is_noted_by_the_next_declaration_in_a_ledger_that_has_none(folder):
    with opened(folder, 1.0) as ledger:
        declare(ledger, "first")
    without_cap(folder)
    with opened(folder, 2.0) as ledger:
        assert ledger.cap() is None
        reserve(ledger, "first")
        declare(ledger, "first")
        assert (ledger.cap().max_epsilon, ledger.cap().raised) == (2.0, ())
    with opened(folder, 3.0) as ledger, pytest.raises(PolicyRefused, match="promised 2 since"):
        declare(ledger, "second")


def test_cap_raised_in_a_ledger_that_has_none_starts_from_the_policys(folder):
    with opened(folder, 1.0) as ledger:
        declare(ledger, "first")
    without_cap(folder)
    with opened(folder, 1.0) as ledger:
        with pytest.raises(InvalidSetting, match="must be above 1, the cap that account default promises by the site's policy"):
            ledger.raise_cap(max_epsilon=1.0)
        ledger.raise_cap(max_epsilon=4.0)
        assert [(step.from_epsilon, step.to_epsilon) for step in ledger.cap().raised] == [(1.0, 4.0)]


def test_cap_cannot_be_cut_out_of_a_ledger(folder):
    with opened(folder, 1.0) as ledger:
        declare(ledger, "first")
    with sqlite3.connect(folder / "journal.sqlite") as database:
        cut = "CAST(replace(CAST(payload AS TEXT), '\"max_epsilon\":1.0', '\"max_epsilon\":9.0') AS BLOB)"
        database.execute(f"UPDATE entries SET payload = {cut} WHERE kind = 'declared'")  # noqa: S608, no input
    with pytest.raises(LedgerError):
        show_ledger(folder, delta=None)


def test_cap_that_was_promised_limits_what_is_planned(folder):
    with opened(folder, 1.0) as ledger:
        declare(ledger, "first")
    (account,) = read_accounts(folder)
    larger = Budget(max_epsilon=50.0, delta=DELTA)
    with pytest.raises(PolicyRefused, match="promised 1 since"):
        after_run(account, as_steps([event()]), budget=larger)
    with opened(folder, 50.0) as ledger:
        assert ledger.budget_left() <= 1.0
    assert headroom(account, budget=larger) == headroom(account, budget=Budget(max_epsilon=1.0, delta=DELTA)) <= 1.0


def exact_gaussian_epsilon(mu: float, delta: float) -> float:
    """By bisection of the closed form: another way than the ledger's root finder."""
    low, high = 0.0, 1e3
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (low, middle) if gaussian_delta(mu=mu, epsilon=middle) <= delta else (middle, high)
    return low


def test_cap_of_a_full_account_takes_no_further_run_however_tiny(folder):
    noise = calibrate(lambda x: [event(noise=x)], target_epsilon=6.0, delta=DELTA, accountant="gdp")
    with opened(folder, 6.0) as ledger:
        declare(ledger, "whole", noise=noise)
        ledger.reserve(run_id="whole", round_index=0, task_hash="task", events=[event(noise=noise)])
        squares, runs = noise**-2, 0
        for number in range(400):
            tiny = 1500.0 * (1 + number % 7)
            try:
                declare(ledger, f"tiny-{number}", noise=tiny)
            except PrivacyRefused:
                continue
            ledger.reserve(run_id=f"tiny-{number}", round_index=0, task_hash="task", events=[event(noise=tiny)])
            squares, runs = squares + tiny**-2, runs + 1
    assert exact_gaussian_epsilon(math.sqrt(squares), DELTA) <= 6.0
    assert runs < 400


@settings(max_examples=25, deadline=None)
@given(
    cap=st.floats(0.3, 9.0),
    parts=st.lists(st.floats(1e-4, 1.2), min_size=1, max_size=5),
    kind=st.sampled_from(["gdp", "rdp", "declared"]),
)
def test_cap_is_never_passed_by_the_exact_price_of_what_was_admitted(tmp_path_factory, cap, parts, kind):
    folder, squares = tmp_path_factory.mktemp("cap") / "ledger", 0.0
    with opened(folder, cap, kind=kind) as ledger:
        for number, part in enumerate(parts):
            noise = (
                1.0
                if part > 1
                else calibrate(lambda x: [event(noise=x)], target_epsilon=cap * part, delta=DELTA, accountant="gdp")
            )
            try:
                declare(ledger, f"run-{number}", noise=noise)
                ledger.reserve(run_id=f"run-{number}", round_index=0, task_hash="task", events=[event(noise=noise)])
            except PrivacyRefused:
                continue
            squares += noise**-2
    assert squares == 0 or exact_gaussian_epsilon(math.sqrt(squares), DELTA) <= cap


@pytest.mark.parametrize(("accountant", "rate"), [("pld", 1.0), ("gdp", 1.0), ("rdp", 1.0), ("pld", 0.1), ("rdp", 0.1)])
@pytest.mark.parametrize("target", [0.5, 1.0, 6.0])
def test_cap_admits_the_run_that_was_calibrated_to_it(folder, accountant, rate, target):
    schedule = plan_schedule(
        unit="patient",
        target_epsilon=target,
        delta=DELTA,
        accountant=accountant,
        rounds=4,
        local_steps=3,
        sample_rate=rate,
        mean_fraction=0.1,
        clipping_norm=1.0,
        max_images_per_patient=4,
    )
    price = epsilon(schedule.events(), delta=DELTA, accountant=accountant)
    assert target * (1 - 1e-6) <= price <= target
    with opened(folder, target, kind="gdp" if rate == 1 else "declared") as ledger:
        ledger.declare(run_id="whole", schedule=schedule.events(), patients=COHORT)
        ledger.reserve(run_id="whole", round_index=0, task_hash="mean", events=[schedule.mean_event])
        for index in range(1, 5):
            ledger.reserve(run_id="whole", round_index=index, task_hash="task", events=[schedule.step_event])


@pytest.mark.parametrize("cap", [0.7, 1.0, 6.0, 123.456])
def test_cap_is_the_last_price_that_a_budget_admits(cap):
    budget = Budget(max_epsilon=cap, delta=DELTA)
    assert budget.admits(cap)
    assert not budget.admits(math.nextafter(cap, math.inf))


def test_cap_leaves_no_headroom_in_a_full_account():
    noise = calibrate(lambda x: [event(noise=x)], target_epsilon=6.0, delta=DELTA, accountant="gdp")
    account = Account(names=("a",), privacy_filter=PrivacyFilter(kind="gdp", order=None), unit="patient", delta=DELTA)
    account.reserved = account.declared = as_steps([event(noise=noise)])
    budget = Budget(max_epsilon=6.0, delta=DELTA)
    left = headroom(account, budget=budget)
    largest = calibrate(lambda x: [event(noise=x)], target_epsilon=left, delta=DELTA, accountant="gdp") if left else 1e9
    squares = noise**-2 + largest**-2
    assert exact_gaussian_epsilon(math.sqrt(squares), DELTA) <= 6.0


def test_cap_of_a_ledger_in_python_is_a_promise_too(tmp_path):
    with open_ledger(tmp_path / "mine", max_epsilon=1.0, delta=DELTA) as ledger:
        charge(ledger, [event()], patients=COHORT)
    with open_ledger(tmp_path / "mine", max_epsilon=8.0, delta=DELTA) as ledger:
        with pytest.raises(PolicyRefused, match="promised 1 since"):
            charge(ledger, [event()], patients=COHORT)
        ledger.raise_cap(max_epsilon=8.0)
        charge(ledger, [event()], patients=COHORT)
    with Ledger.open(tmp_path / "mine", site="notebook", budget=Budget(max_epsilon=8.0, delta=DELTA), filter="rdp") as ledger:
        assert ledger.cap().max_epsilon == 8.0


def test_cap_is_held_against_what_is_planned_on_the_command_line(folder, capsys):
    with opened(folder, 1.0, delta=1e-4) as ledger:
        declare(ledger, "first")
    plan = ["privacy", "plan", "--ledger", str(folder), "--target-epsilon", "2", "--delta", "1e-4", "--json"]
    assert main([*plan, "--budget", "50"]) == 0
    assert "promised 1 since" in json.loads(capsys.readouterr().out)["refused"]
