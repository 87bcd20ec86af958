"""What a ledger's entries add up to: accounts, their patients, runs and rounds. No files, no clock, no prices."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from mammo_fed.errors import LedgerError
from mammo_fed.privacy.events import PrivacyEvent
from mammo_fed.privacy.filters import PrivacyFilter
from mammo_fed.privacy.ledger_chain import Entry

__all__ = ["Account", "LedgerState", "Reservation", "Round", "Run", "Steps", "as_events", "as_steps"]

Steps = Counter[PrivacyEvent]
"""Number of steps for every event of one step: sequences that cost the same, whatever their order."""


@dataclass(frozen=True, kw_only=True)
class Reservation:
    """Budget set aside for one released reply of one round.

    Attributes:
      seq: position of the ledger entry that reserves it.
      run_id, round_index, task_hash: whose task it pays for.
      events: what the task may do.
    """

    seq: int
    run_id: str
    round_index: int
    task_hash: str
    events: tuple[PrivacyEvent, ...]


@dataclass(kw_only=True)
class Round:
    """One round's reservation, and the entry and seal of the reply once stored."""

    reservation: Reservation
    settled: int | None = None
    reply_seal: str = ""


@dataclass(kw_only=True)
class Run:
    """A declared schedule and how much of it is reserved."""

    run_id: str
    account: str
    schedule: tuple[PrivacyEvent, ...]
    rounds: dict[int, Round] = field(default_factory=dict)
    reserved: Steps = field(default_factory=Counter)


@dataclass(kw_only=True)
class Account:
    """All that a set of patients is charged with. Accounts whose cohorts overlapped are one for good, under all their names.

    Attributes:
      names: every name it goes by, the oldest first.
      privacy_filter: how its budget is enforced, fixed when it opened.
      unit, max_images: whose privacy its events speak of; the same for all.
      patients: keyed digests of everybody ever enrolled.
      declared, reserved: steps of all schedules, and of all reservations.
    """

    names: list[str]
    privacy_filter: PrivacyFilter
    patients: set[str] = field(default_factory=set)
    declared: Steps = field(default_factory=Counter)
    reserved: Steps = field(default_factory=Counter)


class LedgerState:
    """Accounts and runs after the entries applied so far."""
