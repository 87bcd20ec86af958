"""What a ledger's entries add up to (accounts, their patients, runs and rounds), and what a site's budget lets be added.

No files, no clock: `LedgerState` applies entries in order, and the rules are the checks between a request and the next entry.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from mammo_fed.errors import InvalidSetting, LedgerError, PolicyRefused, PrivacyRefused
from mammo_fed.privacy.accounting.filters import (
    PrivacyFilter,
    Steps,
    adaptive_epsilon,
    as_steps,
    remaining_epsilon,
    schedule_epsilon,
)
from mammo_fed.privacy.events import PrivacyEvent, Unit
from mammo_fed.privacy.ledger.cap import Cap, Caps, after_raise
from mammo_fed.privacy.ledger.chain import Entry
from mammo_fed.privacy.ledger.lease import LeaseState
from mammo_fed.privacy.ledger.withdrawals import Withdrawals

__all__ = [
    "VERSION",
    "Account",
    "Budget",
    "LedgerState",
    "Reservation",
    "Round",
    "Run",
    "after_promise",
    "budget_in_force",
    "cap_in_force",
    "charged_epsilon",
    "check_admitted",
    "check_budget_kept",
    "check_promised",
    "check_reservation",
    "check_resumed",
    "check_same_task",
    "composed",
    "headroom",
]

VERSION: Final = 1


@dataclass(frozen=True, kw_only=True)
class Reservation:
    """Budget set aside for at most one released reply of one round.

    Attributes:
      seq: position of the ledger entry that reserves it.
      run_id: the run. round_index: its round, from 0. task_hash: hash of the task's content.
      events: what the task may do to the patients; charged whether or not a reply is ever released.
      withdrawn: position of the ledger's last withdrawal when this was given; training under it must heed all up to there.
    """

    seq: int
    run_id: str
    round_index: int
    task_hash: str
    events: tuple[PrivacyEvent, ...]
    withdrawn: int = field(default=-1, compare=False)


@dataclass(kw_only=True)
class Round:
    """One round's reservation, the marks of who resumed it, and the entry and seal of its reply once that is stored."""

    reservation: Reservation
    settled: int | None = None
    reply_seal: str = ""
    lease: LeaseState = field(default_factory=LeaseState)


@dataclass(kw_only=True)
class Run:
    """A declared schedule and how much of it is reserved; `account` is the name that it was declared under."""

    run_id: str
    account: str
    schedule: tuple[PrivacyEvent, ...]
    declared: Steps
    reserved: Steps = field(default_factory=Counter)
    rounds: dict[int, Round] = field(default_factory=dict)

    @property
    def remaining(self) -> Steps:
        """Declared steps not yet reserved."""
        return self.declared - self.reserved


@dataclass(kw_only=True)
class Account:
    """All that a set of patients is charged. Accounts whose cohorts overlapped are one for good, under all their names.

    Attributes:
      names: every name it goes by, the oldest first.
      privacy_filter: how its budget is enforced.
      unit: whose privacy all its events speak of.
      patients: keyed digests of everybody ever enrolled.
      delta: at which its budget is read, fixed when it opens; None in ledgers that did not note it.
      declared: steps of all schedules. reserved: steps of all reservations.
      adaptive: whether steps joined it, by a schedule or by a merger, after something was reserved.
      caps: what was promised under each of its names; empty in ledgers that did not note it.
    """

    names: tuple[str, ...]
    privacy_filter: PrivacyFilter
    unit: Unit
    delta: float | None = None
    patients: set[str] = field(default_factory=set)
    declared: Steps = field(default_factory=Counter)
    reserved: Steps = field(default_factory=Counter)
    adaptive: bool = False
    caps: dict[str, Cap] = field(default_factory=dict)

    @property
    def counted(self) -> Steps:
        """What its filter counts before anything is added."""
        return self.declared if self.privacy_filter.kind == "declared" else self.reserved


def composed(accounts: Sequence[Account]) -> Account:
    """One account with the patients and the steps of all; the first decides filter, unit and delta."""
    reserved: Steps = sum((account.reserved for account in accounts), Counter())
    return Account(
        names=tuple(name for account in accounts for name in account.names),
        privacy_filter=accounts[0].privacy_filter,
        unit=accounts[0].unit,
        delta=accounts[0].delta,
        patients=set().union(*(account.patients for account in accounts)),
        declared=sum((account.declared for account in accounts), Counter()),
        reserved=reserved,
        adaptive=any(account.adaptive for account in accounts) or (len(accounts) > 1 and bool(reserved)),
        caps={name: cap for account in accounts for name, cap in account.caps.items()},
    )


class LedgerState:
    """Accounts and runs after all entries applied so far, in order."""

    def __init__(self) -> None:
        self.site = ""
        self.runs: dict[str, Run] = {}
        self.rounds: dict[int, Round] = {}
        self.withdrawals = Withdrawals()
        self._accounts: dict[str, Account] = {}

    @property
    def accounts(self) -> list[Account]:
        """Every account once, the oldest first."""
        return list({id(account): account for account in self._accounts.values()}.values())

    def account(self, name: str) -> Account | None:
        """The account that goes by `name`, None if none was opened."""
        return self._accounts.get(name)

    def account_of(self, run_id: str) -> Account:
        """The account that a declared run charges."""
        return self._accounts[self.runs[run_id].account]

    def touched(self, name: str, patients: Iterable[str]) -> list[Account]:
        """Accounts that a cohort under `name` would charge: the one of that name and all that know one of its patients."""
        cohort = set(patients)
        return [account for account in self.accounts if name in account.names or not cohort.isdisjoint(account.patients)]

    def events(self, *, run_id: str | None, account: str) -> tuple[PrivacyEvent, ...]:
        """Reserved events in order: those of the run if one is given, else all that the account was charged with."""
        events: list[PrivacyEvent] = []
        for paid in self.rounds.values():
            reservation = paid.reservation
            own = (
                self.account_of(reservation.run_id) is self.account(account) if run_id is None else reservation.run_id == run_id
            )
            events.extend(reservation.events if own else ())
        return tuple(events)

    def apply(self, entry: Entry) -> None:
        """Take one more entry into account.

        Raises:
          LedgerError: If this version does not know such entries.
        """
        details = entry.details()
        if entry.kind == "opened" and details["version"] == VERSION:
            self.site = details["site"]
        elif entry.kind == "declared":
            self._declare(details)
        elif entry.kind == "enrolled":
            account = self._enrol(self.runs[details["run"]].account, details)
            account.caps = after_promise(account.caps, details.get("account", ""), details.get("cap"), at=details["at"])
        elif entry.kind == "cap_raised":
            account = self._accounts[details["account"]]
            account.caps = after_raise(account.caps, details, delta=details["delta"])
        elif entry.kind == "reserved":
            self._reserve(entry.seq, details)
        elif entry.kind == "settled":
            settled = self.rounds[details["reservation"]]
            settled.settled, settled.reply_seal = entry.seq, details["reply"]
        elif entry.kind == "withdrawn":
            self.withdrawals = self.withdrawals.after(entry.seq, details)
        elif entry.kind in ("resumed", "checkpoint"):
            self._mark(details["reservation"], details)
        else:
            raise LedgerError(f"ledger entry {entry.seq} was written by a newer mammo-fed; install that version")

    def _declare(self, details: Mapping[str, Any]) -> None:
        name, schedule = details["account"], tuple(PrivacyEvent.from_dict(event) for event in details["schedule"])
        if name not in self._accounts:
            opened = PrivacyFilter(**details["filter"])
            self._accounts[name] = Account(
                names=(name,), privacy_filter=opened, unit=schedule[0].unit, delta=details.get("delta")
            )
        run = Run(run_id=details["run"], account=name, schedule=schedule, declared=as_steps(schedule))
        self.runs[run.run_id] = run
        account = self._enrol(name, details)
        account.caps = after_promise(account.caps, name, details.get("cap"), at=details["at"])
        account.adaptive |= bool(account.reserved)
        account.declared += run.declared

    def _enrol(self, name: str, details: Mapping[str, Any]) -> Account:
        names = [name, *details["merged"]]
        account = composed([account for account in self.accounts if not set(names).isdisjoint(account.names)])
        account.patients.update(details["patients"])
        self._accounts.update(dict.fromkeys(account.names, account))
        return account

    def _reserve(self, seq: int, details: Mapping[str, Any]) -> None:
        events = tuple(PrivacyEvent.from_dict(event) for event in details["events"])
        reservation = Reservation(
            seq=seq, run_id=details["run"], round_index=details["round"], task_hash=details["task"], events=events
        )
        reserved, run = as_steps(events), self.runs[reservation.run_id]
        run.rounds[reservation.round_index] = self.rounds[seq] = Round(reservation=reservation)
        self._mark(seq, details)
        run.reserved += reserved
        self.account_of(run.run_id).reserved += reserved

    def _mark(self, seq: int, details: Mapping[str, Any]) -> None:
        if "lease" in details:
            self.rounds[seq].lease.apply(details)


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What one account may cost its patients in all; from the site's own policy file, no server can loosen it.

    Attributes:
      max_epsilon: largest epsilon, >= 0; infinity sets no cap.
      delta: the delta that epsilon is read at, in (0, 1).

    >>> budget = Budget(max_epsilon=6.0, delta=1e-5)
    >>> budget.admits(6.0), budget.admits(6.1)
    (True, False)
    """

    max_epsilon: float
    delta: float

    def __post_init__(self) -> None:
        if not self.max_epsilon >= 0:
            raise InvalidSetting(f"max_epsilon={self.max_epsilon} must be at least 0; check the site's policy")
        if not 0 < self.delta < 1:
            raise InvalidSetting(f"delta={self.delta} must be above 0 and below 1; check the site's policy")

    def admits(self, epsilon: float) -> bool:
        """Whether a price is within the budget, to the last bit: every price is rounded up, and calibration aims below it."""
        return epsilon <= self.max_epsilon


def cap_in_force(caps: Caps) -> tuple[str, Cap] | None:
    """The smallest of `caps` and whose it is, None where none was noted: what holds for patients of all these accounts."""
    return min(caps.items(), key=lambda item: item[1].max_epsilon, default=None)


def budget_in_force(account: Account, budget: Budget) -> Budget:
    """`budget`, or less where the account has promised less."""
    promised = cap_in_force(account.caps)
    if promised is None:
        return budget
    return replace(budget, max_epsilon=min(budget.max_epsilon, promised[1].max_epsilon))


def headroom(account: Account, *, budget: Budget) -> float:
    """Epsilon of the largest full-batch run that the account's filter still admits on top of all that it counts.

    It is more than the difference of the epsilons, because privacy losses add up in squares; 0.0 if nothing fits, infinite
    without a cap. A cap that the account has promised holds where it is smaller than the budget's. Filter declared charges all
    that was declared; once anything was, the figure is what remains after its first release, which is the smaller. A sampled
    run may cost the filter more than its own epsilon says: what fits of one is for `headroom.fitting_epsilon`.
    """
    most = budget_in_force(account, budget).max_epsilon
    return remaining_epsilon(account.privacy_filter, account.counted, unit=account.unit, max_epsilon=most, delta=budget.delta)


def check_promised(caps: Caps, *, max_epsilon: float, delta: float) -> None:
    """Check that a policy's cap is none above what the patients of merged accounts were promised.

    Raises:
      PolicyRefused: If it is, or if it is read at another delta: the same cap at a larger delta admits more.
    """
    found = cap_in_force(caps)
    if found is not None and max_epsilon > found[1].max_epsilon:
        name, cap = found
        raise PolicyRefused(
            f"max_epsilon={max_epsilon:g} must be at most {cap.max_epsilon:g}: the patients of account {name} were promised "
            f"{cap.max_epsilon:g} since {cap.since}; give that in the site's policy, or raise it with `site-client raise-cap "
            f"SITE --max-epsilon {max_epsilon:g}`, which every later record will say"
        )
    for name, cap in caps.items():
        if cap.delta != delta:
            raise PolicyRefused(
                f"delta={delta:g} must be {cap.delta:g}, at which account {name} has promised its cap since {cap.since}; "
                "check delta in the site's policy (privacy.delta in a simulation)"
            )


def after_promise(caps: Caps, account: str, promised: Mapping[str, Any] | None, *, at: str) -> dict[str, Cap]:
    """`caps` once a declaration of `account` was accepted at time `at`; None promised is one of before caps were noted."""
    if promised is None:
        return dict(caps)
    stored, known = promised["max_epsilon"], caps.get(account)
    max_epsilon = math.inf if stored is None else float(stored)
    new = Cap(max_epsilon=max_epsilon, delta=promised["delta"], since=at)
    return {**caps, account: new if known is None else known.lowered(max_epsilon, at=at)}


def check_budget_kept(account: Account, *, budget: Budget) -> None:
    """Raise PolicyRefused where the budget is above what was promised, or at another delta than the account opened with."""
    if account.delta not in (None, budget.delta):
        # The same cap at a larger delta admits more: the first delta is what the patients were told.
        raise PolicyRefused(
            f"delta={budget.delta:g} must be {account.delta:g}, the delta that the account opened with; "
            "check delta in the site's policy (privacy.delta in a simulation)"
        )
    check_promised(account.caps, max_epsilon=budget.max_epsilon, delta=budget.delta)


def check_reservation(account: Account, *, run: Run, asked: Steps, budget: Budget) -> None:
    """Check that a reservation is part of what its run declared, and that the account stays within `budget` with it.

    Raises:
      PolicyRefused: If the steps were not declared or are reserved already, or the policy has another delta or a cap above the
        one that was promised.
      PrivacyRefused: If the budget does not allow them.
    """
    check_budget_kept(account, budget=budget)
    if asked - run.remaining:
        raise PolicyRefused("the events of the round must be declared and not yet reserved; check the task's schedule")
    if account.privacy_filter.kind == "declared":
        # All that was declared is charged already; this holds unless the site has tightened its budget since.
        price = charged_epsilon(account, delta=budget.delta)
    else:
        price = adaptive_epsilon(account.privacy_filter, account.reserved + asked, delta=budget.delta)
    check_admitted(account, price, budget=budget)


def charged_epsilon(account: Account, *, delta: float) -> float:
    """Epsilon that the account's filter has charged so far: the guarantee's cap is the budget, not this (running) value.

    Filter declared charges everything declared: by PLD while all of it was declared before the first reservation, and in the
    currency for adaptive choices from then on, as that is what admitted the later schedules.
    """
    if account.privacy_filter.kind == "declared":
        if account.adaptive:
            return adaptive_epsilon(account.privacy_filter, account.declared, delta=delta)
        return schedule_epsilon(account.declared, delta=delta)
    return adaptive_epsilon(account.privacy_filter, account.reserved, delta=delta)


def check_same_task(reservation: Reservation, *, task_hash: str) -> None:
    """Raise LedgerError unless the task is the one that the round was reserved for."""
    if reservation.task_hash != task_hash:
        raise LedgerError(f"round {reservation.round_index} was reserved for another task; a round has one task")


def check_resumed(paid: Round, *, task_hash: str, events: Sequence[PrivacyEvent]) -> None:
    """Raise LedgerError unless the same task, with the same events, may train again for a reply that it does not have."""
    check_same_task(paid.reservation, task_hash=task_hash)
    if paid.reservation.events != tuple(events):
        raise LedgerError(f"round {paid.reservation.round_index} is reserved with other events; send the task with those")
    if paid.settled is not None:
        raise LedgerError(f"round {paid.reservation.round_index} has its reply; send the stored one")


def check_admitted(account: Account, price: float, *, budget: Budget) -> None:
    """Raise PrivacyRefused where a price of all that the account would be charged is not within `budget`."""
    if budget.admits(price):
        return
    spent = charged_epsilon(account, delta=budget.delta)
    raise PrivacyRefused(
        f"epsilon={_up(price)} with this schedule must be at most max_epsilon={budget.max_epsilon:g} (delta={budget.delta:g}); "
        f"{_up(spent)} is charged so far; ask for fewer steps or more noise, or change the site's policy"
    )


def _up(epsilon: float) -> str:
    """`epsilon` with four decimals, never rounded down."""
    return f"{math.ceil(epsilon * 1e4) / 1e4:.4f}" if math.isfinite(epsilon) else str(epsilon)
