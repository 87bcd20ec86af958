"""A site's ledger: opened only where it is the one that the site remembers, and one task of a run charged exactly once.

The order of `charged_once` is the guarantee. A task that was answered gets its stored reply, and nothing else happens. Any
other one is reserved, trained, settled with the bytes of its reply, and only then are these bytes returned. Both of a site's
kinds of training, rounds of a federation and generators, go through here: nothing else reserves or settles. What was trained
while a patient withdrew is dropped, and trained again under the same reservation.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from mammo_fed.client.policy import SiteFile
from mammo_fed.common.private_files import exclusive, write_private
from mammo_fed.errors import LedgerError, WithdrawnMeanwhile
from mammo_fed.privacy.events import PrivacyEvent
from mammo_fed.privacy.ledger.journal import storage_errors
from mammo_fed.privacy.ledger.lease import Lease
from mammo_fed.privacy.ledger.ledger import Budget, Ledger, Withdrawn
from mammo_fed.privacy.names import FilterKind

__all__ = [
    "Charge",
    "LeaseHolder",
    "LedgerMemory",
    "TrainingState",
    "charged_once",
    "costs_nothing_yet",
    "site_ledger",
    "withdrawn_at_site",
]

TrainingState: TypeAlias = MutableMapping[str, Any]
"""What training takes up from the task before and leaves for the next one, in this process's memory."""


@dataclass(frozen=True, kw_only=True)
class Charge:
    """What one task is charged.

    Attributes:
      run_id: of a run that was declared to the ledger.
      round_index: the task's round, >= 0.
      task_hash: hash of everything that was asked for; another task for the same round is refused.
      events: what training may do to patients, a part of the declared schedule.
    """

    run_id: str
    round_index: int
    task_hash: str
    events: tuple[PrivacyEvent, ...]


class LeaseHolder(Protocol):
    """Where a training that is resumed from its folder keeps the mark that the ledger gave it last."""

    def claim(self) -> Lease:
        """The step from the mark that is kept to a new one, which is kept too before this returns."""

    def granted(self) -> None:
        """The ledger has the new mark."""

    @property
    def token(self) -> str:
        """The latest mark that was granted."""


def charged_once(
    ledger: Ledger,
    charge: Charge,
    *,
    train: Callable[[TrainingState | None], bytes],
    failed: Callable[[], bytes] | None,
    state: TrainingState | None,
    admit: Callable[[], None] = lambda: None,
    holder: LeaseHolder | None = None,
) -> bytes:
    """The reply to a task: the stored one if there is one, else the one that `train` makes, paid for before and stored after.

    Guarantee: `train` runs after its events are reserved, durably; its reply is returned after it is stored, durably; for a
    task, the bytes of one reply ever leave this function. Nobody has a part in it who withdrew before it was stored, if `train`
    asks the ledger who did. Whatever raises, the ledger at `settle` included, nothing is returned and `state` is as it was: no
    gradient that was not paid for, and none whose reply nobody can have, reaches a later task.

    Args:
      ledger: in which the run was declared.
      charge: of the task.
      train: looks at patients; given a copy of `state` that it may change, it returns the bytes of its reply.
      failed: makes the reply that is stored where `train` fails, so that the round is over: whether it fails may depend on a
        patient, and is answered once. It is called before `train`, so that nothing of a patient is in it. None leaves the
        reservation open: the same task may be resumed later, by a training that continues exactly where it stopped.
      state: replaced by what `train` made of its copy once the reply is stored; None where nothing is kept.
      admit: called for a task without a reply, before anything is reserved; raises where the site does not train at all.
      holder: of the ledger's marks, where `failed` is None and what `train` resumes from lies on a disk that can be copied: of
        two copies one goes on.

    Returns:
      The reply as it was stored.

    Raises:
      PrivacyRefused: If the ledger refuses; nothing was trained, or what was trained is dropped.
      Exception: What `train` raised.
    """
    run_id, round_index, task_hash = charge.run_id, charge.round_index, charge.task_hash
    stored = ledger.stored_reply(run_id=run_id, round_index=round_index, task_hash=task_hash)
    if stored is not None:
        return stored
    admit()
    while True:
        claim: dict[str, Any] = {} if holder is None else {"lease": holder.claim()}
        reservation = ledger.reserve(run_id=run_id, round_index=round_index, task_hash=task_hash, events=charge.events, **claim)
        if holder is not None:
            holder.granted()
        failure, reply = None, b"" if failed is None else failed()
        # A deep copy: optimizers change their moments in place.
        attempt = copy.deepcopy(state)
        try:
            reply = train(attempt)
        except Exception as error:
            if failed is None:
                raise
            failure = error
        try:
            ledger.settle(reservation, reply, *(() if holder is None else (holder.token,)))
        except WithdrawnMeanwhile:
            continue
        break
    if failure is not None:
        raise failure
    if state is not None and attempt is not None:
        state.clear()
        state.update(attempt)
    return reply


@contextmanager
def site_ledger(file: SiteFile, *, usual: FilterKind) -> Iterator[Ledger]:
    """The ledger that a site's file names, compared with what the site remembers of it before and after.

    Args:
      file: of the site.
      usual: the filter that an account opens with where the policy leaves the choice to the run.

    Raises:
      LedgerError: If the ledger is gone, an older copy, tampered with, or not writable.
    """
    policy, memory = file.policy, LedgerMemory(Path(file.folder) / "ledger-head")
    memory.check_exists(Path(file.ledger))
    with Ledger.open(
        Path(file.ledger),
        site=file.site,
        budget=Budget(max_epsilon=policy.max_epsilon, delta=policy.delta),
        filter=usual if policy.filter == "auto" else policy.filter,
        adopt=policy.filter == "auto",
    ) as ledger:
        memory.check_holds(ledger)
        try:
            yield ledger
        finally:
            memory.keep(ledger)


def costs_nothing_yet(file: SiteFile, *, run_id: str, round_index: int) -> bool:
    """Whether a site's ledger knows a run and has nothing reserved for one of its rounds.

    Raises:
      LedgerError: As of `site_ledger`.
    """
    ledger = Path(file.ledger)
    if not (ledger.is_dir() and any(ledger.iterdir())):
        return False
    with site_ledger(file, usual="declared") as opened:
        return opened.knows_round(run_id=run_id, round_index=round_index) is False


def withdrawn_at_site(file: SiteFile, patients: Iterable[str]) -> Withdrawn:
    """Which of `patients` have withdrawn by the site's ledger; makes none where there is none yet.

    Raises:
      LedgerError: As of `site_ledger`.
    """
    ledger = Path(file.ledger)
    if not (ledger.is_dir() and any(ledger.iterdir())):
        LedgerMemory(Path(file.folder) / "ledger-head").check_exists(ledger)
        return Withdrawn(seq=-1, at="", patients=frozenset())
    with site_ledger(file, usual="declared") as opened:
        return opened.withdrawn(patients)


class LedgerMemory:
    """The head that a ledger had when it was last used, in a file outside its folder: of a site, in the site's private folder.

    The file is written after the ledger: a crash between the two leaves an older head, which is still part of the ledger.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def check_exists(self, ledger: Path) -> None:
        """Raise LedgerError where the site remembers a ledger and there is none, before a new one is made in its place."""
        if self._path.exists() and not (ledger.is_dir() and any(ledger.iterdir())):
            raise LedgerError(
                "the site remembers runs, and its ledger is gone: nothing is released; put the ledger's folder back, or check "
                "ledger in the site's file"
            )

    def check_holds(self, ledger: Ledger) -> None:
        """Raise LedgerError where `ledger` does not hold the remembered head: it is an older copy, or another one."""
        if self._path.exists():
            with storage_errors():
                head = self._path.read_text(encoding="ascii", errors="replace").strip()
            ledger.check_remembered(head)

    def keep(self, ledger: Ledger) -> None:
        """Remember where `ledger` ends now, or keep what another process that went on remembers already.

        It is written while the ledger is held: a process that was slow cannot put back an older head, which a ledger from
        before the last entries, a withdrawal perhaps, would pass.
        """
        with ledger.holding() as head, storage_errors():
            if self._path.exists() and self._path.read_text(encoding="ascii", errors="replace").strip() == head:
                return
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_private(self._path, f"{head}\n")

    def advance(self, ledger: Ledger) -> None:
        """Remember where `ledger` ends now, unless another copy of it was remembered since.

        Of two copies of one ledger the first to come here goes on; before this returns, nothing that the new entries pay for
        may be shown.

        Raises:
          LedgerError: If `ledger` does not hold what is remembered.
        """
        with storage_errors():
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with exclusive(self._path.with_name(f".{self._path.name}.lock")):
                self.check_holds(ledger)
                self.keep(ledger)
