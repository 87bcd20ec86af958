"""What a site's budget admits: the checks between a request and the ledger's next entry. Pure; no files."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from mammo_fed.errors import InvalidSetting, LedgerError, PolicyRefused, PrivacyRefused
from mammo_fed.privacy.accounting.filters import Steps, adaptive_epsilon, open_filter, schedule_epsilon
from mammo_fed.privacy.events import PrivacyEvent, Unit
from mammo_fed.privacy.ledger.state import Account, Reservation, Round, Run, composed
from mammo_fed.privacy.names import FilterKind

__all__ = [
    "Budget",
    "charged_epsilon",
    "check_declaration",
    "check_delta_kept",
    "check_reservation",
    "check_resumed",
    "check_same_run",
    "check_same_task",
    "declaration_price",
    "join",
    "schedule_unit",
]

TOLERANCE: Final = 1e-6


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
        """Whether `epsilon` is within the budget, up to a relative 1e-6 for rounding."""
        return epsilon <= self.max_epsilon * (1 + TOLERANCE)


def schedule_unit(schedule: Sequence[PrivacyEvent]) -> Unit:
    """The unit that all of `schedule` protects.

    Raises:
      InvalidSetting: If the schedule is empty or mixes units.
    """
    units = {event.unit for event in schedule}
    if len(units) != 1:
        raise InvalidSetting(
            f"schedule has {len(schedule)} events with units {sorted(units)}, must have one unit; check privacy.unit"
        )
    return schedule[0].unit


def join(touched: Sequence[Account], *, account: str, kind: FilterKind, adopt: bool, unit: Unit, budget: Budget) -> Account:
    """The account that a cohort would charge: all accounts it touches composed, or a new one.

    Args:
      touched: accounts that know the account's name or one of the cohort's patients.
      account: name under which the cohort is charged.
      kind: filter of an account that opens.
      adopt: whether an account that is open keeps its own filter; otherwise that must be `kind`.
      unit: whose privacy is charged.
      budget: the site's.

    Raises:
      PolicyRefused: If the accounts are not charged in one filter, unit and delta, or not in these.
    """
    if not touched:
        opened = open_filter(kind, max_epsilon=budget.max_epsilon, delta=budget.delta)
        return Account(names=(account,), privacy_filter=opened, unit=unit, delta=budget.delta)
    known = touched[0].privacy_filter
    if (known.kind != kind and not adopt) or any(other.privacy_filter != known for other in touched):
        # Changing the currency after an output would be a choice that no filter covers.
        raise PolicyRefused(
            f"filter={kind} must be the filter that the account opened with ({known.kind}), the same for all its patients; "
            "check filter in the site's policy"
        )
    for other in touched:
        check_delta_kept(other, budget=budget)
    if any(other.unit != unit for other in touched):
        raise PolicyRefused(f"unit={unit} must be the unit that the account is charged in; check privacy.unit")
    return composed(touched)


def check_delta_kept(account: Account, *, budget: Budget) -> None:
    """Raise PolicyRefused where the budget is read at another delta than the account opened with."""
    if account.delta not in (None, budget.delta):
        # The same cap at a larger delta admits more: the first delta is what the patients were told.
        raise PolicyRefused(
            f"delta={budget.delta:g} must be {account.delta:g}, the delta that the account opened with; "
            "check delta in the site's policy (privacy.delta in a simulation)"
        )


def check_declaration(account: Account, *, run: Run | None, schedule: Steps, budget: Budget) -> None:
    """Check that a run's `schedule`, on top of all that `account` is charged with, stays within `budget`.

    Args:
      account: what the cohort would charge.
      run: the run, where it was declared before and its cohort has grown into other accounts; None for a new one.
      schedule: all steps of the run.
      budget: the site's.

    Raises:
      PrivacyRefused: If it does not.
    """
    _check(account, declaration_price(account, run=run, schedule=schedule, delta=budget.delta), budget=budget)


def declaration_price(account: Account, *, run: Run | None, schedule: Steps, delta: float) -> float:
    """Epsilon that `check_declaration` holds against the budget."""
    if account.privacy_filter.kind != "declared":
        total = account.reserved + (run.remaining if run else schedule)
        return adaptive_epsilon(account.privacy_filter, total, delta=delta)
    total = account.declared + (Counter() if run else schedule)
    if account.reserved:
        return adaptive_epsilon(account.privacy_filter, total, delta=delta)
    return schedule_epsilon(total, delta=delta)


def check_reservation(account: Account, *, run: Run, asked: Steps, budget: Budget) -> None:
    """Check that a reservation is part of what its run declared, and that the account stays within `budget` with it.

    Raises:
      PolicyRefused: If the steps were not declared or are reserved already, or the policy's delta has changed.
      PrivacyRefused: If the budget does not allow them.
    """
    check_delta_kept(account, budget=budget)
    if asked - run.remaining:
        raise PolicyRefused("the events of the round must be declared and not yet reserved; check the task's schedule")
    if account.privacy_filter.kind == "declared":
        # All that was declared is charged already; this holds unless the site has tightened its budget since.
        price = charged_epsilon(account, delta=budget.delta)
    else:
        price = adaptive_epsilon(account.privacy_filter, account.reserved + asked, delta=budget.delta)
    _check(account, price, budget=budget)


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


def check_same_run(run: Run, *, schedule: Sequence[PrivacyEvent], same_account: bool) -> None:
    """Raise LedgerError unless a run is declared again in the words of the first time."""
    if run.schedule != tuple(schedule):
        raise LedgerError(f"run_id={run.run_id} was declared with another schedule; a changed schedule needs a new run_id")
    if not same_account:
        raise LedgerError(f"run_id={run.run_id} was declared in account={run.account}; use that account")


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


def _check(account: Account, price: float, *, budget: Budget) -> None:
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
