"""Who may go on with a task that takes long: whoever holds the mark that the ledger was given last.

A task that is resumed from state on a disk can be resumed from a copy of that state too, and two continuations would be two
releases for one charge. So each resumption, and each state that it may be resumed from, leaves a mark that nobody can guess.
Only who shows the latest mark is given the next: of two copies one is first, and the other one stops.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from mammo_fed.errors import LedgerError

__all__ = ["GONE_ON", "Lease", "LeaseState", "check_lease"]

GONE_ON: Final = (
    "this task went on in another copy of its folder: the ledger's latest mark is not the one that is kept here; nothing is "
    "released; go on in the folder that was resumed last, and delete this copy"
)


@dataclass(frozen=True, kw_only=True)
class Lease:
    """One step from mark to mark.

    Attributes:
      expected: the latest mark as it is known here, "" for none; where the ledger has another one, nothing is granted.
      token: the next mark, made for this step and not to be guessed.
      state_sha256: of the state that the task may be resumed from after this step; "" where it makes none.
      step: how far that state is.
    """

    expected: str
    token: str
    state_sha256: str = ""
    step: int = 0

    def details(self) -> dict[str, Any]:
        """What an entry of the ledger keeps of it."""
        made = {"state": self.state_sha256, "step": self.step} if self.state_sha256 else {}
        return {"lease": self.token, **made}


@dataclass(kw_only=True)
class LeaseState:
    """All marks of one round, the oldest first, and the state that the last of them vouches for.

    Attributes:
      tokens: every mark.
      state_sha256, step: of the newest state that may be resumed from; "" and 0 where there is none.
    """

    tokens: list[str] = field(default_factory=list)
    state_sha256: str = ""
    step: int = 0

    @property
    def latest(self) -> str:
        """The latest mark, "" where there is none."""
        return self.tokens[-1] if self.tokens else ""

    def apply(self, details: Mapping[str, Any]) -> None:
        """Take the mark of an entry that has one into account."""
        self.tokens.append(details["lease"])
        if "state" in details:
            self.state_sha256, self.step = details["state"], details["step"]


def check_lease(state: LeaseState, lease: Lease | None) -> None:
    """Raise LedgerError unless `lease` goes on from the latest mark; a round that has marks is never resumed without one."""
    if (state.latest or lease is not None) and (lease is None or lease.expected != state.latest):
        raise LedgerError(GONE_ON)
