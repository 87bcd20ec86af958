"""A site's durable ledger: every release is reserved before it happens, and nothing that was reserved is forgotten.

Guarantee: the patients of an account are covered by the account's cap, (max_epsilon, delta)-DP, over all rounds, runs,
restarts and crashes, provided that a reply leaves the site only after `settle` has returned and that what produced it did
no more than its reservation says. An epsilon below the cap is the cost of the schedule so far, not a guarantee, where
stopping or later parameters depended on earlier replies.
Neighbouring datasets: one unit contributes nothing, the cohort's size is a public constant, as the events say.

The order of a round is: `stored_reply` (send it again if there is one) -> `reserve` -> train -> `settle` -> send. A crash
after `reserve` costs nothing more: the same task is given the same reservation, trains again with fresh noise, and only
one of its replies can ever be settled. Nothing lowers a charge.

A patient who withdraws is charged nothing from then on and keeps what was charged. Who trains asks `withdrawn` after `reserve`:
what was trained before somebody withdrew is not settled any more.
"""

from __future__ import annotations

import copy
import hmac
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from mammo_fed.errors import InvalidSetting, LedgerError, PolicyRefused, PrivacyRefused, WithdrawnMeanwhile
from mammo_fed.privacy.accounting.filters import Steps, as_steps, patient_schedule_epsilon, schedule_epsilon
from mammo_fed.privacy.events import DEFAULT_ACCOUNT, PrivacyEvent, check_name
from mammo_fed.privacy.ledger import declaring, rules
from mammo_fed.privacy.ledger.cap import Cap, CapRaise, check_raise, promise, to_json
from mammo_fed.privacy.ledger.chain import Entry, check_reported, patient_digests, reply_seal
from mammo_fed.privacy.ledger.headroom import told_with_fit
from mammo_fed.privacy.ledger.journal import Journal
from mammo_fed.privacy.ledger.lease import GONE_ON, Lease, LeaseState, check_lease
from mammo_fed.privacy.ledger.report import LedgerEntry, published, verify_journal
from mammo_fed.privacy.ledger.rules import VERSION, Account, Budget, LedgerState, Reservation, Run, cap_in_force
from mammo_fed.privacy.ledger.withdrawals import Withdrawn, entry_details
from mammo_fed.privacy.names import AccountantName, FilterKind

__all__ = ["Budget", "Ledger", "Reservation", "Withdrawn"]


class Ledger:
    """One process's and thread's hold on a site's ledger; any number may hold the same folder. Use it in a `with` statement.

    >>> import tempfile
    >>> from pathlib import Path
    >>> event = PrivacyEvent(mechanism="mean", noise_multiplier=5.0, steps=1, sample_rate=1.0, unit="patient",
    ...                      clipping_norm=1.0, max_images_per_patient=4)
    >>> budget = Budget(max_epsilon=2.0, delta=1e-5)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with Ledger.open(Path(folder) / "ledger", site="site-1", budget=budget, filter="gdp") as ledger:
    ...         ledger.declare(run_id="run", schedule=[event], patients=["A", "B"])
    ...         reservation = ledger.reserve(run_id="run", round_index=0, task_hash="task", events=[event])
    ...         ledger.settle(reservation, b"the reply, which may leave the site now")
    ...         round(ledger.epsilon(accountant="gdp"), 3)
    0.726
    """

    def __init__(self, journal: Journal, *, budget: Budget, filter_kind: FilterKind, adopt: bool) -> None:
        """Use `Ledger.open`."""
        self._journal, self._budget, self._filter, self._adopt = journal, budget, filter_kind, adopt
        self._state, self._unread = LedgerState(), list[Entry]()

    @classmethod
    def open(cls, path: Path, *, site: str, budget: Budget, filter: FilterKind, adopt: bool = False) -> Self:
        """The ledger in the folder `path`, verified; where there is none yet, a new one with a key of its own.

        Args:
          path: a folder for the ledger alone, on a local disk: the journal, the site's key and the head lie in it.
          site: whose ledger it is.
          budget: what every account in it may cost, from the site's policy.
          filter: how accounts opened from now on enforce it; see `mammo_fed.privacy.accounting.filters`.
          adopt: whether an account that is open already keeps the filter it opened with; otherwise that must be `filter`.

        Raises:
          LedgerError: If the ledger was tampered with, is another site's, or its disk cannot be written.
        """
        check_name(site, setting="site")
        journal = Journal.open(path, kind="opened", details={"at": _now(), "site": site, "version": VERSION})
        ledger = cls(journal, budget=budget, filter_kind=filter, adopt=adopt)
        try:
            with ledger._exclusive() as state:
                if state.site != site:
                    raise LedgerError(f"site={site} must be the ledger's own site; check ledger in the site's file")
        except BaseException:
            journal.close()
            raise
        return ledger

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the folder; closing twice is harmless."""
        self._journal.close()

    def declare(
        self, *, run_id: str, schedule: Sequence[PrivacyEvent], patients: Iterable[str], account: str = DEFAULT_ACCOUNT
    ) -> None:
        """Announce all that a run will do to a cohort, before its first round; refuse it if the budget does not allow it.

        On top of the whole schedule, filters gdp and rdp count what the account has reserved, filter declared all that was
        ever declared. Everybody ever enrolled in `account` is charged together. Where a patient is known to another account
        too, the two become one for good. Declaring a run again only enrols patients who joined its cohort. Who has withdrawn is
        not enrolled, and does not bring accounts together.

        Args:
          run_id: the run.
          schedule: every event of the run, all of one unit.
          patients: stable identifiers of the cohort's patients; repeats are allowed, only keyed digests are stored.
          account: the site's name for the budget to charge.

        Raises:
          PrivacyRefused: If the account's charges and the schedule are above the budget.
          PolicyRefused: If the account is charged by another filter, in another unit or at another delta, or its patients were
            promised a smaller cap.
          LedgerError: If the run was declared with another schedule or account, or the ledger is damaged or not writable.
          InvalidSetting: If an argument is out of its range.
        """
        check_name(run_id, setting="run_id")
        check_name(account, setting="account")
        schedule = tuple(schedule)
        unit = declaring.schedule_unit(schedule)
        cohort = self._digests(patients)
        with self._exclusive() as state:
            cohort -= state.withdrawals.digests
            run = state.runs.get(run_id)
            if run is not None:
                declaring.check_same_run(
                    run, schedule=schedule, same_account=state.account(account) is state.account_of(run_id)
                )
            touched = state.touched(account, cohort)
            joined = declaring.join(
                touched, account=account, kind=self._filter, adopt=self._adopt, unit=unit, budget=self._budget
            )
            known = joined.caps.get(account)
            lowers = known is None or self._budget.max_epsilon < known.max_epsilon
            # Patients who join the cohort of a declared run bring charges only where another account knows them. A cap that is
            # told of from now on must hold for what was charged before.
            if run is None or len(touched) > 1 or lowers:
                self._check_declaration(joined, run, as_steps(schedule))
            details: dict[str, Any] = {
                "run": run_id,
                "merged": [name for other in touched if other is not state.account(account) for name in other.names],
                "patients": sorted(cohort - joined.patients),
                "account": account,
                "cap": promise(max_epsilon=self._budget.max_epsilon, delta=self._budget.delta),
            }
            if run is None:
                details |= {"filter": asdict(joined.privacy_filter), "delta": joined.delta}
                self._append("declared", {**details, "schedule": [event.as_dict() for event in schedule]})
            else:
                # Always: the ledger's head is reported to the server, and must not say whether somebody was new.
                self._append("enrolled", details)

    def stored_reply(self, *, run_id: str, round_index: int, task_hash: str) -> bytes | None:
        """The reply that this task was given before, None if it has none yet.

        Raises:
          LedgerError: If the round belongs to another task, or its reply is missing or changed.
        """
        with self._exclusive() as state:
            run = state.runs.get(run_id)
            paid = run.rounds.get(round_index) if run else None
            if paid is None:
                return None
            rules.check_same_task(paid.reservation, task_hash=task_hash)
            if paid.settled is None:
                return None
            return self._journal.reply(paid.settled, seal=paid.reply_seal)

    def reserve(
        self,
        *,
        run_id: str,
        round_index: int,
        task_hash: str,
        events: Sequence[PrivacyEvent],
        lease: Lease | None = None,
    ) -> Reservation:
        """Charge a round before any patient is touched; durable on return. A reservation without a reply is given again.

        Args:
          run_id: a declared run.
          round_index: its round, >= 0.
          task_hash: hash of the task's content.
          events: what the task may do: part of the declared schedule, not yet reserved.
          lease: the step from mark to mark of a task that can be resumed from copies; None for one that starts from nothing.

        Raises:
          PrivacyRefused: If the account would pass its budget; others may have charged it since the run was declared.
          PolicyRefused: If the events were not declared or are reserved already, or the patients were promised a smaller cap.
          LedgerError: If the run was not declared, the round has its reply or another task, somebody else went on with it, or
            the ledger is damaged or full.
        """
        events = tuple(events)
        if round_index < 0 or not events:
            raise InvalidSetting(f"round_index={round_index} must be at least 0, with at least one event; got {len(events)}")
        check_name(task_hash, setting="task_hash")
        with self._exclusive() as state:
            run = state.runs.get(run_id)
            if run is None:
                raise LedgerError(f"run_id={run_id} must be declared before a round is reserved; declare its schedule first")
            if round_index in run.rounds:
                paid = run.rounds[round_index]
                rules.check_resumed(paid, task_hash=task_hash, events=events)
                check_lease(paid.lease, lease)
                # This entry costs no budget: it proves that the disk can be written before anything is trained again.
                self._append("resumed", {"reservation": paid.reservation.seq, **_marked(lease)})
                return replace(paid.reservation, withdrawn=state.withdrawals.seq)
            if lease is not None:
                check_lease(LeaseState(), lease)
            rules.check_reservation(state.account_of(run_id), run=run, asked=as_steps(events), budget=self._budget)
            details = {"run": run_id, "round": round_index, "task": task_hash, "events": [event.as_dict() for event in events]}
            details |= _marked(lease)
            entry = self._append("reserved", details)
            return replace(state.rounds[entry.seq].reservation, withdrawn=state.withdrawals.seq)

    def knows_round(self, *, run_id: str, round_index: int) -> bool | None:
        """Whether a round of a declared run is reserved; None where the run was never declared."""
        with self._exclusive() as state:
            run = state.runs.get(run_id)
            return None if run is None else round_index in run.rounds

    def lease(self, *, run_id: str, round_index: int) -> LeaseState:
        """The marks of a round, none where it is not reserved; see `mammo_fed.privacy.ledger.lease`."""
        with self._exclusive() as state:
            run = state.runs.get(run_id)
            paid = run.rounds.get(round_index) if run else None
            return LeaseState() if paid is None else copy.deepcopy(paid.lease)

    def checkpoint(self, *, run_id: str, round_index: int, lease: Lease) -> None:
        """Note a state from which a reserved round may be resumed; durable on return, only then may anything of it be shown.

        Raises:
          LedgerError: If the round is not reserved or has its reply, somebody else went on with it, or the disk is full.
        """
        with self._exclusive() as state:
            run = state.runs.get(run_id)
            paid = run.rounds.get(round_index) if run else None
            if paid is None or paid.settled is not None:
                raise LedgerError(f"round {round_index} must be reserved and without a reply; reserve it before it is resumed")
            check_lease(paid.lease, lease)
            self._append("checkpoint", {"reservation": paid.reservation.seq, **_marked(lease)})

    def settle(self, reservation: Reservation, reply: bytes, lease: str = "") -> None:
        """Store the one reply that `reservation` pays for; durable on return, only then may it be sent. Twice is harmless.

        Args:
          reservation: of the round.
          reply: its bytes.
          lease: the round's latest mark, "" where it has none.

        Raises:
          WithdrawnMeanwhile: If a patient withdrew since the reservation was given; reserve again, and train without them.
          LedgerError: If the reservation is not in this ledger or has another reply (send that), somebody else went on with the
            round, or the disk is full.
        """
        seal = reply_seal(self._journal.keys, reply)
        with self._exclusive() as state:
            paid = state.rounds.get(reservation.seq)
            if paid is None or paid.reservation != reservation:
                raise LedgerError("the reservation is not in this ledger; reserve the round again")
            if paid.settled is None:
                if state.withdrawals.seq > reservation.withdrawn:
                    raise WithdrawnMeanwhile("a patient withdrew since the round was reserved; reserve it again")
                if (paid.lease.tokens or [""])[-1] != lease:
                    raise LedgerError(GONE_ON)
                self._append("settled", {"reservation": reservation.seq, "reply": seal, "bytes": len(reply)}, reply=reply)
            elif not hmac.compare_digest(paid.reply_seal, seal):
                raise LedgerError("the round has another reply stored; send the stored one")

    def raise_cap(self, *, max_epsilon: float, account: str | None = None) -> dict[str, CapRaise]:
        """Raise what was promised to the patients of an account, or of all whose cap is smaller; one entry for each name.

        What was declared or answered before stays as it was told. Names of accounts that merged are raised each for itself: the
        smallest of their caps decides.

        Args:
          max_epsilon: the new cap, above the one in force; infinite where there is to be none.
          account: the only name to raise.

        Returns:
          The raises by account.

        Raises:
          InvalidSetting: If there is no such account, or no cap is below `max_epsilon`.
          LedgerError: If the ledger is damaged or not writable.
        """
        with self._exclusive() as state:
            caps = {name: each.caps.get(name) for each in state.accounts for name in each.names}
            if (account is not None and account not in caps) or not caps:
                raise InvalidSetting(f"--account={account} must be one of the ledger's: {', '.join(caps) or 'it has none yet'}")
            raises = {}
            below = [name for name, cap in caps.items() if max_epsilon > self._promised(cap)]
            for name in [account] if account is not None else below or list(caps):
                before = check_raise(caps[name], account=name, promised=self._budget.max_epsilon, max_epsilon=max_epsilon)
                known = state.account(name)
                delta = self._budget.delta if known is None or known.delta is None else known.delta
                details = {"account": name, "from": before, "to": to_json(max_epsilon), "delta": delta}
                entry = self._append("cap_raised", details)
                raises[name] = CapRaise(at=entry.details()["at"], from_epsilon=before, to_epsilon=max_epsilon)
            return raises

    def cap(self, *, account: str = DEFAULT_ACCOUNT) -> Cap | None:
        """What was promised under the name `account`; None where it is unknown or no cap was noted yet."""
        with self._exclusive() as state:
            known = state.account(account)
            return known.caps.get(account) if known else None

    def cap_in_force(self, *, account: str = DEFAULT_ACCOUNT) -> tuple[str, Cap] | None:
        """The smallest cap of the account and all that merged into it, and under which name it was promised."""
        with self._exclusive() as state:
            known = state.account(account)
            return cap_in_force(known.caps) if known else None

    def withdraw(self, people: Iterable[Collection[str]], *, dry_run: bool = False) -> int:
        """Take patients out of everything that is reserved or declared from now on, for good; durable on return.

        What they were charged stays charged. Naming somebody again changes nothing and adds no entry.

        Args:
          people: every identity of each patient: a hospital's identifier, a pseudonym; at least one each.
          dry_run: count only.

        Returns:
          How many of them had not withdrawn before.

        Raises:
          InvalidSetting: If an identifier is blank, or somebody has none.
          LedgerError: If the ledger is damaged or not writable.
        """
        digests = [self._digests(identities) for identities in people]
        with self._exclusive() as state:
            details = entry_details(state.withdrawals, digests)
            if details is None:
                return 0
            if not dry_run:
                self._append("withdrawn", details)
            return int(details["patients"])

    def withdrawn(self, patients: Iterable[str]) -> Withdrawn:
        """Which of `patients` have withdrawn, by any spelling that the ledger takes as theirs, and when somebody last did."""
        with self._exclusive() as state:
            withdrawals = state.withdrawals
        found = frozenset[str]()
        if withdrawals.digests:
            found = frozenset(one for one in set(patients) if self._digests([one]) <= withdrawals.digests)
        return Withdrawn(seq=withdrawals.seq, at=withdrawals.at, patients=found)

    def knows(self, people: Iterable[Collection[str]]) -> tuple[bool, ...]:
        """Whether each of some patients was ever enrolled or has withdrawn, by any of their identities."""
        digests = [self._digests(identities) for identities in people]
        with self._exclusive() as state:
            known = state.withdrawals.digests.union(*(account.patients for account in state.accounts))
        return tuple(not known.isdisjoint(one) for one in digests)

    def events(self, *, run_id: str | None = None, account: str = DEFAULT_ACCOUNT) -> tuple[PrivacyEvent, ...]:
        """All reserved events in order, of the run if one is given, else of the account with all that merged into it."""
        with self._exclusive() as state:
            return state.events(run_id=run_id, account=account)

    def epsilon(
        self,
        *,
        run_id: str | None = None,
        account: str = DEFAULT_ACCOUNT,
        accountant: AccountantName,
        delta: float | None = None,
    ) -> float:
        """Schedule cost of what `events` gives, by `accountant`, at `delta` or else the budget's; 0 for none."""
        steps = as_steps(self.events(run_id=run_id, account=account))
        return schedule_epsilon(steps, delta=delta or self._budget.delta, accountant=accountant)

    def patient_epsilon(
        self, *, run_id: str | None = None, account: str = DEFAULT_ACCOUNT, delta: float | None = None
    ) -> float:
        """Schedule cost, by PLD, of what the account is charged for a patient with the largest allowed number of images.

        Where that price takes a while (sampled images) and a run is given, the run counts whole: one price for all rounds.
        """
        with self._exclusive() as state:
            known = state.account(account)
            steps = Counter(known.reserved) if known else Counter[PrivacyEvent]()
            if run_id is not None and any(event.unit == "image" and not event.full_batch for event in steps):
                steps += state.runs[run_id].remaining
        return patient_schedule_epsilon(steps, delta=delta or self._budget.delta)

    def budget_left(self, *, account: str = DEFAULT_ACCOUNT) -> float:
        """What a further full-batch run may cost by the account's own filter; infinite without a cap, 0 where nothing fits.

        Epsilons do not add up: after 3 of 6 it is about 4.8. See `mammo_fed.privacy.ledger.rules.headroom`.
        """
        with self._exclusive() as state:
            known = state.account(account)
            if known is None:
                known = declaring.join(
                    (), account=account, kind=self._filter, adopt=self._adopt, unit="patient", budget=self._budget
                )
            return rules.headroom(known, budget=self._budget)

    def head(self) -> str:
        """Where the ledger ends, "position:seal"; worth reporting, as only a reported head exposes an older copy put back."""
        with self._exclusive():
            return str(self._journal.head)

    @contextmanager
    def holding(self) -> Iterator[str]:
        """Keep every other process off the ledger while the block runs; gives its head. The block must not use the ledger."""
        with self._exclusive():
            yield str(self._journal.head)

    def check_remembered(self, head: str) -> None:
        """LedgerError unless `head`, remembered outside the ledger's folder, is part of it: an older ledger has lost it."""
        with self._exclusive():
            try:
                check_reported(head, self._journal.entries())
            except InvalidSetting as error:
                raise LedgerError("what the site remembers of its ledger cannot be read; restore the site's folder") from error

    def verify(self, *, reported: str | None = None) -> None:
        """Verify all entries and replies, and that a head reported before is still in the ledger; LedgerError if not."""
        with self._exclusive():
            verify_journal(self._journal, reported=reported)

    def entries(self) -> Iterator[LedgerEntry]:
        """All entries, verified; patients are counted, not listed."""
        with self._exclusive():
            entries = self._journal.entries()
        return map(published, entries)

    def check_declarable(self, *, schedule: Sequence[PrivacyEvent], account: str = DEFAULT_ACCOUNT) -> None:
        """Raise what `declare` would raise for a new run with this schedule; charges nothing, and adds no entry.

        It looks at the account that goes by the name, and not at patients: whom a cohort shares with another account shows in
        a declaration only.

        Raises:
          PrivacyRefused, PolicyRefused, LedgerError, InvalidSetting: As `declare`.
        """
        check_name(account, setting="account")
        unit = declaring.schedule_unit(schedule)
        with self._exclusive() as state:
            known = state.account(account)
            touched = () if known is None else (known,)
            joined = declaring.join(
                touched, account=account, kind=self._filter, adopt=self._adopt, unit=unit, budget=self._budget
            )
            self._check_declaration(joined, None, as_steps(schedule))

    def _check_declaration(self, account: Account, run: Run | None, schedule: Steps) -> None:
        try:
            declaring.check_declaration(account, run=run, schedule=schedule, budget=self._budget)
        except PolicyRefused:
            raise
        except PrivacyRefused as error:
            if run is not None:
                raise
            raise told_with_fit(error, account, schedule, budget=self._budget) from error

    def _promised(self, cap: Cap | None) -> float:
        return self._budget.max_epsilon if cap is None else cap.max_epsilon

    def _digests(self, identities: Iterable[str]) -> frozenset[str]:
        return patient_digests(self._journal.keys, identities)

    def _append(self, kind: str, details: dict[str, Any], *, reply: bytes | None = None) -> Entry:
        entry = self._journal.append(kind, {**details, "at": _now()}, reply=reply)
        self._state.apply(entry)
        return entry

    @contextmanager
    def _exclusive(self) -> Iterator[LedgerState]:
        """Keep other processes and threads out; with all that others added taken into account."""
        with self._journal.exclusive() as fresh:
            self._unread.extend(fresh)
            while self._unread:
                self._state.apply(self._unread[0])
                del self._unread[0]
            yield self._state


def _marked(lease: Lease | None) -> dict[str, Any]:
    return {} if lease is None else lease.details()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
