"""What a further run may cost, by an account's own filter: for people who plan one. Pure; no files."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from typing import Final

from mammo_fed.errors import PrivacyRefused
from mammo_fed.privacy.accounting.composition import gaussian_epsilon
from mammo_fed.privacy.accounting.filters import Steps, adaptive_epsilon, schedule_epsilon
from mammo_fed.privacy.events import PrivacyEvent
from mammo_fed.privacy.ledger.declaring import check_declaration
from mammo_fed.privacy.ledger.rules import Account, Budget, cap_in_force, check_budget_kept, composed

__all__ = ["after_run", "fitting_epsilon", "headroom", "told_with_fit"]

LOG_NOISE: Final = (math.log(1e-6), math.log(1e6))
HALVINGS: Final = 50
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


def headroom(account: Account, *, budget: Budget) -> float:
    """Epsilon of the largest full-batch run that the account's filter still admits on top of all that it counts.

    It is more than the difference of the epsilons, because privacy losses add up in squares; 0.0 if nothing fits, infinite
    without a cap. A cap that the account has promised holds where it is smaller than the budget's. Filter declared charges all
    that was declared; once anything was, the figure is what remains after its first release, which is the smaller. A sampled
    run may cost the filter more than its own epsilon says: what fits of one is for `fitting_epsilon`.
    """
    budget = _in_force(account, budget)
    # An rdp filter admits less than its cap from the start, for it converts at one order.
    untouched = account.privacy_filter.kind != "rdp" and not _counted(account)
    if untouched or math.isinf(budget.max_epsilon):
        return budget.max_epsilon

    def admitted(log_noise: float) -> bool:
        release = PrivacyEvent(
            mechanism="gradient",
            noise_multiplier=math.exp(log_noise),
            steps=1,
            sample_rate=1.0,
            unit=account.unit,
            clipping_norm=1.0,
            max_images_per_patient=1,
        )
        return budget.admits(_price(account, Counter({release: 1}), budget=budget))

    low, high = LOG_NOISE
    if not admitted(high):
        return 0.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if admitted(middle) else (middle, high)
    # The larger noise of the two is the one that was admitted.
    return min(budget.max_epsilon, gaussian_epsilon(mu=math.exp(-high), delta=budget.delta))


def fitting_epsilon(account: Account, schedule: Steps, *, budget: Budget) -> float:
    """Epsilon of the run of this shape that the account's filter would admit: the same steps, each with so much more noise.

    Args:
      account: what the run would charge.
      schedule: all steps of a run that was refused; with noise.
      budget: the site's.

    Returns:
      At most the cap; 0.0 where no noise makes it fit.
    """
    budget = _in_force(account, budget)
    if account.privacy_filter.kind == "declared" and not _counted(account):
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


def _in_force(account: Account, budget: Budget) -> Budget:
    promised = cap_in_force(account.caps)
    if promised is None:
        return budget
    return replace(budget, max_epsilon=min(budget.max_epsilon, promised[1].max_epsilon))


def _counted(account: Account) -> Steps:
    """What the account's filter counts before anything is added."""
    return account.declared if account.privacy_filter.kind == "declared" else account.reserved


def _price(account: Account, added: Steps, *, budget: Budget) -> float:
    return adaptive_epsilon(account.privacy_filter, _counted(account) + added, delta=budget.delta)
