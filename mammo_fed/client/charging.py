"""One task of a run, charged exactly once: the only place where something is trained under a reservation of the ledger.

The order is the guarantee. A task that was answered gets its stored reply, and nothing else happens. Any other one is reserved,
trained, settled with the bytes of its reply, and only then are these bytes returned. Both of a site's kinds of training, rounds
of a federation and generators, go through here.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from mammo_fed.privacy.events import PrivacyEvent
from mammo_fed.privacy.ledger.ledger import Ledger

__all__ = ["Charge", "TrainingState", "charged_once"]

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


def charged_once(
    ledger: Ledger,
    charge: Charge,
    *,
    train: Callable[[TrainingState | None], bytes],
    failed: Callable[[], bytes] | None,
    state: TrainingState | None,
) -> bytes:
    """The reply to a task: the stored one if there is one, else the one that `train` makes, paid for before and stored after.

    Guarantee: `train` runs after its events are reserved, durably; its reply is returned after it is stored, durably; for a
    task, the bytes of one reply ever leave this function. Whatever raises, the ledger at `settle` included, nothing is returned
    and `state` is as it was: no gradient that was not paid for, and none whose reply nobody can have, reaches a later task.

    Args:
      ledger: in which the run was declared.
      charge: of the task.
      train: looks at patients; given a copy of `state` that it may change, it returns the bytes of its reply.
      failed: makes the reply that is stored where `train` fails, so that the round is over: whether it fails may depend on a
        patient, and is answered once. It is called before `train`, so that nothing of a patient is in it. None leaves the
        reservation open: the same task may be resumed later, by a training that continues exactly where it stopped.
      state: replaced by what `train` made of its copy once the reply is stored; None where nothing is kept.

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
    reservation = ledger.reserve(run_id=run_id, round_index=round_index, task_hash=task_hash, events=charge.events)
    failure, reply = None, b"" if failed is None else failed()
    # A deep copy: optimizers change their moments in place.
    attempt = copy.deepcopy(state)
    try:
        reply = train(attempt)
    except Exception as error:
        if failed is None:
            raise
        failure = error
    ledger.settle(reservation, reply)
    if failure is not None:
        raise failure
    if state is not None and attempt is not None:
        state.clear()
        state.update(attempt)
    return reply
