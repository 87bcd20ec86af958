"""What a ledger tells people: its accounts and runs, whether it verifies, and its entries without any patient's digest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from mammo_fed.errors import LedgerError
from mammo_fed.privacy.accounting.filters import patient_schedule_epsilon, schedule_epsilon
from mammo_fed.privacy.events import Unit
from mammo_fed.privacy.ledger.cap import Cap
from mammo_fed.privacy.ledger.chain import REMEDY, Entry, check_reported
from mammo_fed.privacy.ledger.journal import PARTS, Journal
from mammo_fed.privacy.ledger.rules import Account, LedgerState, charged_epsilon
from mammo_fed.privacy.names import AccountantName, FilterKind

__all__ = [
    "AccountSummary",
    "LedgerEntry",
    "LedgerSummary",
    "RunSummary",
    "WithdrawalSummary",
    "existing_journal",
    "export_ledger",
    "published",
    "read_accounts",
    "show_ledger",
    "verify_journal",
    "verify_ledger",
]


# Of ledgers that did not note theirs.
USUAL_DELTA: Final = 1e-4


@dataclass(frozen=True, kw_only=True)
class LedgerEntry:
    """One entry, without patients' digests: `details["patients"]` is how many were new.

    Attributes:
      seq: position, 0 for the first.
      kind: opened, declared, enrolled, reserved, resumed, checkpoint, settled, withdrawn or cap_raised.
      at: when, ISO 8601 in UTC.
      details: the rest, plain values.
      mac: seal, 64 hex digits.
    """

    seq: int
    kind: str
    at: str
    details: Mapping[str, Any]
    mac: str


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """One run: steps declared and reserved, rounds reserved and settled, and epsilon of what is reserved."""

    run_id: str
    account: str
    declared_steps: int
    reserved_steps: int
    reserved_rounds: int
    settled_rounds: int
    epsilon: float


@dataclass(frozen=True, kw_only=True)
class AccountSummary:
    """One account.

    Attributes:
      names: its names; more than one where overlapping cohorts merged accounts.
      filter, order: how its budget is enforced, and the Renyi order if there is one.
      unit: whose privacy epsilon speaks of.
      patients: everybody ever enrolled.
      epsilon: schedule cost of all that is reserved, by the accountant asked for.
      patient_epsilon: the same for a patient with the largest allowed number of images, by PLD.
      charged: epsilon in the filter's own currency, to be compared with the budget.
      opened_delta: at which the account's budget is read; None in a ledger that did not note it.
      caps: what was promised under each of its names; the smallest holds. Empty in a ledger that did not note it.
      runs: its runs, the oldest first.
    """

    names: tuple[str, ...]
    filter: FilterKind
    order: int | None
    unit: Unit
    patients: int
    epsilon: float
    patient_epsilon: float
    charged: float
    opened_delta: float | None
    caps: Mapping[str, Cap]
    runs: tuple[RunSummary, ...]


@dataclass(frozen=True, kw_only=True)
class WithdrawalSummary:
    """Patients who withdrew at one time, ISO 8601 in UTC; naming a patient again in the same way is not counted."""

    at: str
    patients: int


@dataclass(frozen=True, kw_only=True)
class LedgerSummary:
    """A verified ledger: whose it is, how long, where it ends, its accounts at `delta`, and who withdrew, the oldest first."""

    site: str
    entries: int
    head: str
    delta: float
    accountant: AccountantName
    accounts: tuple[AccountSummary, ...]
    withdrawals: tuple[WithdrawalSummary, ...] = ()


def show_ledger(folder: Path, *, delta: float | None, accountant: AccountantName = "pld") -> LedgerSummary:
    """Verify the ledger in `folder` and sum it up.

    Args:
      folder: the ledger's folder.
      delta: at which costs are shown, in (0, 1); None is that of the ledger's budgets, the smallest where there are several.
      accountant: what prices them.

    Raises:
      LedgerError: If there is no ledger or it does not verify.
      InvalidSetting: If `accountant` cannot price an event in it.
    """
    with existing_journal(folder) as journal:
        state = verify_journal(journal, reported=None)
        head = journal.head
    if delta is None:
        delta = min((account.delta for account in state.accounts if account.delta is not None), default=USUAL_DELTA)
    accounts = tuple(_summarize(state, account, delta=delta, accountant=accountant) for account in state.accounts)
    return LedgerSummary(
        site=state.site,
        entries=head.seq + 1,
        head=str(head),
        delta=delta,
        accountant=accountant,
        accounts=accounts,
        withdrawals=tuple(WithdrawalSummary(at=at, patients=patients) for at, patients in state.withdrawals.entries),
    )


def verify_ledger(folder: Path, *, reported: str | None = None) -> str:
    """Verify every entry and every stored reply of the ledger in `folder`.

    Args:
      folder: the ledger's folder.
      reported: a head that the site reported before; a ledger put back from an older copy no longer holds it.

    Returns:
      The head, "position:seal".

    Raises:
      LedgerError: If there is no ledger, or anything in it was edited, removed, reordered, copied in or cut off.
    """
    with existing_journal(folder) as journal:
        verify_journal(journal, reported=reported)
        return str(journal.head)


def read_accounts(folder: Path) -> tuple[Account, ...]:
    """The accounts of the verified ledger in `folder`, the oldest first.

    Raises:
      LedgerError: If there is no ledger or it does not verify.
    """
    with existing_journal(folder) as journal:
        return tuple(verify_journal(journal, reported=None).accounts)


def export_ledger(folder: Path) -> tuple[LedgerEntry, ...]:
    """All entries of the ledger in `folder`, verified, without patients' digests and replies.

    Raises:
      LedgerError: If there is no ledger or it does not verify.
    """
    with existing_journal(folder) as journal:
        return tuple(published(entry) for entry in journal.entries())


def published(entry: Entry) -> LedgerEntry:
    """An entry with patients counted instead of listed."""
    details = entry.details()
    # A patient who withdrew may have several digests: that entry counts patients itself.
    if details.pop("digests", None) is None and "patients" in details:
        details["patients"] = len(details["patients"])
    return LedgerEntry(seq=entry.seq, kind=entry.kind, at=details.pop("at"), details=details, mac=entry.mac.hex())


def verify_journal(journal: Journal, *, reported: str | None) -> LedgerState:
    """Verify entries and replies from the first, and give what they add up to. Needs the journal's `exclusive`.

    Raises:
      LedgerError: If anything is not as the site wrote it.
    """
    state, entries = LedgerState(), journal.entries()
    for entry in entries:
        state.apply(entry)
    settled = {paid.settled: paid.reply_seal for paid in state.rounds.values() if paid.settled is not None}
    if settled.keys() != journal.reply_entries():
        raise LedgerError(f"the ledger's replies are not those it settled; {REMEDY}")
    for seq, seal in settled.items():
        journal.reply(seq, seal=seal)
    if reported is not None:
        check_reported(reported, entries)
    return state


@contextmanager
def existing_journal(folder: Path) -> Iterator[Journal]:
    """The journal in `folder`, held alone; never creates one.

    Raises:
      LedgerError: If the folder holds nothing of a ledger, or only parts of one.
    """
    if not any((folder / part).exists() for part in PARTS):
        raise LedgerError(f"LEDGER={folder} must be a ledger's folder, and holds none of {', '.join(PARTS)}; check the path")
    journal = Journal(folder)
    try:
        with journal.exclusive():
            yield journal
    finally:
        journal.close()


def _summarize(state: LedgerState, account: Account, *, delta: float, accountant: AccountantName) -> AccountSummary:
    runs = []
    for run in state.runs.values():
        if state.account_of(run.run_id) is account:
            runs.append(
                RunSummary(
                    run_id=run.run_id,
                    account=run.account,
                    declared_steps=run.declared.total(),
                    reserved_steps=run.reserved.total(),
                    reserved_rounds=len(run.rounds),
                    settled_rounds=sum(paid.settled is not None for paid in run.rounds.values()),
                    epsilon=schedule_epsilon(run.reserved, delta=delta, accountant=accountant),
                )
            )
    return AccountSummary(
        names=account.names,
        filter=account.privacy_filter.kind,
        order=account.privacy_filter.order,
        unit=account.unit,
        patients=len(account.patients),
        epsilon=schedule_epsilon(account.reserved, delta=delta, accountant=accountant),
        patient_epsilon=patient_schedule_epsilon(account.reserved, delta=delta),
        charged=charged_epsilon(account, delta=delta),
        opened_delta=account.delta,
        caps=account.caps,
        runs=tuple(runs),
    )
