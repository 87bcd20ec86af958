"""What a ledger's entries add up to: accounts, their patients, runs and rounds. No files, no clock, no prices."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from mammo_fed.errors import LedgerError
from mammo_fed.privacy.accounting.filters import PrivacyFilter, Steps, as_steps
from mammo_fed.privacy.events import PrivacyEvent, Unit
from mammo_fed.privacy.ledger.chain import Entry

__all__ = ["VERSION", "Account", "LedgerState", "Reservation", "Round", "Run", "composed"]

VERSION: Final = 1


@dataclass(frozen=True, kw_only=True)
class Reservation:
    """Budget set aside for at most one released reply of one round.

    Attributes:
      seq: position of the ledger entry that reserves it.
      run_id: the run. round_index: its round, from 0. task_hash: hash of the task's content.
      events: what the task may do to the patients; charged whether or not a reply is ever released.
    """

    seq: int
    run_id: str
    round_index: int
    task_hash: str
    events: tuple[PrivacyEvent, ...]


@dataclass(kw_only=True)
class Round:
    """One round's reservation, and the entry and seal of its reply once that is stored."""

    reservation: Reservation
    settled: int | None = None
    reply_seal: str = ""


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
    """

    names: tuple[str, ...]
    privacy_filter: PrivacyFilter
    unit: Unit
    delta: float | None = None
    patients: set[str] = field(default_factory=set)
    declared: Steps = field(default_factory=Counter)
    reserved: Steps = field(default_factory=Counter)
    adaptive: bool = False


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
    )


class LedgerState:
    """Accounts and runs after all entries applied so far, in order."""

    def __init__(self) -> None:
        self.site = ""
        self.runs: dict[str, Run] = {}
        self.rounds: dict[int, Round] = {}
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
            self._enrol(self.runs[details["run"]].account, details)
        elif entry.kind == "reserved":
            self._reserve(entry.seq, details)
        elif entry.kind == "settled":
            settled = self.rounds[details["reservation"]]
            settled.settled, settled.reply_seal = entry.seq, details["reply"]
        elif entry.kind != "resumed":
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
        run.reserved += reserved
        self.account_of(run.run_id).reserved += reserved
