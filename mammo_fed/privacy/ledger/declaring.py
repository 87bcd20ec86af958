"""What a run that is declared must keep to: one unit, the account's filter, unit and delta, and the budget for all of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from mammo_fed.errors import InvalidSetting, LedgerError, PolicyRefused
from mammo_fed.privacy.accounting.filters import Steps, adaptive_epsilon, open_filter, schedule_epsilon
from mammo_fed.privacy.events import PrivacyEvent, Unit
from mammo_fed.privacy.ledger.rules import Account, Budget, Run, check_admitted, check_budget_kept, composed
from mammo_fed.privacy.names import FilterKind

__all__ = ["check_declaration", "check_same_run", "declaration_price", "join", "schedule_unit"]


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
      PolicyRefused: If the accounts are not charged in one filter, unit and delta, or not in these, or promised a smaller cap.
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
        check_budget_kept(other, budget=budget)
    if any(other.unit != unit for other in touched):
        raise PolicyRefused(f"unit={unit} must be the unit that the account is charged in; check privacy.unit")
    return composed(touched)


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
    check_admitted(account, declaration_price(account, run=run, schedule=schedule, delta=budget.delta), budget=budget)


def declaration_price(account: Account, *, run: Run | None, schedule: Steps, delta: float) -> float:
    """Epsilon that `check_declaration` holds against the budget."""
    if account.privacy_filter.kind != "declared":
        total = account.reserved + (run.remaining if run else schedule)
        return adaptive_epsilon(account.privacy_filter, total, delta=delta)
    total = account.declared + (Counter() if run else schedule)
    if account.reserved:
        return adaptive_epsilon(account.privacy_filter, total, delta=delta)
    return schedule_epsilon(total, delta=delta)


def check_same_run(run: Run, *, schedule: Sequence[PrivacyEvent], same_account: bool) -> None:
    """Raise LedgerError unless a run is declared again in the words of the first time."""
    if run.schedule != tuple(schedule):
        raise LedgerError(f"run_id={run.run_id} was declared with another schedule; a changed schedule needs a new run_id")
    if not same_account:
        raise LedgerError(f"run_id={run.run_id} was declared in account={run.account}; use that account")
