"""Patients who withdrew their consent, as a ledger's entries say it: keyed digests, and since when. No files, no clock."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date
from typing import Any, Final

from mammo_fed.errors import DataError

__all__ = ["Withdrawals", "Withdrawn", "check_date", "entry_details"]

# An ISO 8601 time begins with its date.
DATE_CHARACTERS: Final = 10


@dataclass(frozen=True, kw_only=True)
class Withdrawals:
    """Everybody who withdrew, after all entries applied so far.

    Attributes:
      seq: position of the last entry of that kind, -1 where there is none.
      at: ISO date of it, in UTC; "" where there is none.
      digests: keyed digests of all identities that were named.
      entries: time and number of patients of every entry.
    """

    seq: int = -1
    at: str = ""
    digests: frozenset[str] = frozenset()
    entries: tuple[tuple[str, int], ...] = ()

    def after(self, seq: int, details: Mapping[str, Any]) -> Withdrawals:
        """With one more entry."""
        return Withdrawals(
            seq=seq,
            at=details["at"][:DATE_CHARACTERS],
            digests=self.digests.union(details["digests"]),
            entries=(*self.entries, (details["at"], details["patients"])),
        )


@dataclass(frozen=True, kw_only=True)
class Withdrawn:
    """Which of some patients take no part any more.

    Attributes:
      seq: position of the ledger's last withdrawal, whoever it names; -1 where there is none.
      at: ISO date of it, "" where there is none.
      patients: identifiers among those asked about, spelled as they were asked.
    """

    seq: int
    at: str
    patients: frozenset[str]


def entry_details(known: Withdrawals, people: Iterable[frozenset[str]]) -> dict[str, Any] | None:
    """What an entry says that adds `people` to `known`; None where each of them has withdrawn already.

    Args:
      known: the withdrawals so far.
      people: the digests of each one's identities.
    """
    new = [digests for digests in people if not digests <= known.digests]
    if not new:
        return None
    return {"patients": len(set(new)), "digests": sorted(frozenset().union(*new) - known.digests)}


def check_date(name: str, value: Any) -> None:
    """Raise DataError unless `value` is a date as a ledger gives it, or "" where nobody withdrew.

    >>> check_date("withdrawn_at", "2026-03-01")
    """
    try:
        known = value == "" or date.fromisoformat(value).isoformat() == value
    except (TypeError, ValueError):
        known = False
    if not known:
        raise DataError(f"{name}={value!r:.80} must be a date such as 2026-03-01, or empty")
