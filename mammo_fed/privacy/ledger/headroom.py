"""What a further run may cost, by an account's own filter: for people who plan one. Pure; no files."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from typing import Final

from mammo_fed.errors import PrivacyRefused
from mammo_fed.privacy.accounting.filters import Steps, adaptive_epsilon, schedule_epsilon
from mammo_fed.privacy.ledger.declaring import check_declaration
from mammo_fed.privacy.ledger.rules import Account, Budget, budget_in_force, check_budget_kept, composed

__all__ = ["after_run", "fitting_epsilon", "told_with_fit"]

# Of a refused run: the noise that would fit is found to one part in 10 000.
MOST_NOISE: Final = 1e6
FIT_PRECISION: Final = 1e-4


def after_run(account: Account, schedule: Steps, *, budget: Budget) -> Account:
    """The account once a run with this schedule has been declared and has done all of it.

    Raises:
      PrivacyRefused: If the account's filter does not admit the run under `budget`, or its patients were promised less.
    """
    check_budget_kept(account, budget=budget)
    check_declaration(account, run=None, schedule=schedule, budget=budget)
    after = composed([account])
    after.adaptive = account.adaptive or bool(account.reserved)
    after.declared, after.reserved = account.declared + schedule, account.reserved + schedule
    return after


def fitting_epsilon(account: Account, schedule: Steps, *, budget: Budget) -> float:
    """Epsilon of the run of this shape that the account's filter would admit: the same steps, each with so much more noise.

    Args:
      account: what the run would charge.
      schedule: all steps of a run that was refused; with noise.
      budget: the site's.

    Returns:
      At most the cap; 0.0 where no noise makes it fit.
    """
    budget = budget_in_force(account, budget)
    if account.privacy_filter.kind == "declared" and not account.counted:
        # A schedule that is the first is priced as the planner prices it.
        return budget.max_epsilon

    def noisier(factor: float) -> Steps:
        return Counter(
            {replace(event, noise_multiplier=event.noise_multiplier * factor): count for event, count in schedule.items()}
        )

    def admitted(factor: float) -> bool:
        return budget.admits(_price(account, noisier(factor), budget=budget))

    low, high = 1.0, 2.0
    while not admitted(high):
        low, high = high, 2 * high
        if high > MOST_NOISE:
            return 0.0
    while high / low > 1 + FIT_PRECISION:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if admitted(middle) else (middle, high)
    return min(budget.max_epsilon, schedule_epsilon(noisier(high), delta=budget.delta))


def told_with_fit(error: PrivacyRefused, account: Account, schedule: Steps, *, budget: Budget) -> PrivacyRefused:
    """The refusal of a run for its budget, with what would fit in its words and in its `fits`; for the site's own people."""
    fits = math.floor(100 * fitting_epsilon(account, schedule, budget=budget)) / 100
    remedy = f"a run of this shape fits with privacy.target_epsilon={fits:g} or less" if fits > 0 else "no further run fits"
    told = PrivacyRefused(f"{error}; {remedy}")
    told.fits = fits
    return told


def _price(account: Account, added: Steps, *, budget: Budget) -> float:
    return adaptive_epsilon(account.privacy_filter, account.counted + added, delta=budget.delta)
