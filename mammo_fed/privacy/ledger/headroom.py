"""What a further run may cost, by an account's own filter: for people who plan one. Pure; no files."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from typing import Final

from mammo_fed.privacy.accounting.composition import gaussian_epsilon
from mammo_fed.privacy.accounting.filters import Steps
from mammo_fed.privacy.events import PrivacyEvent
from mammo_fed.privacy.ledger.declaring import check_declaration, declaration_price
from mammo_fed.privacy.ledger.rules import Account, Budget, cap_in_force, check_budget_kept, composed

__all__ = ["after_run", "headroom"]

LOG_NOISE: Final = (math.log(1e-6), math.log(1e6))
HALVINGS: Final = 50


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
    """Epsilon of the largest single full-batch release that the account's filter still admits as a run of its own.

    It is more than the difference of the epsilons, because privacy losses add up in squares; 0.0 if nothing fits, infinite
    without a cap. A cap that the account has promised holds where it is smaller than the budget's.
    """
    promised = cap_in_force(account.caps)
    if promised is not None:
        budget = replace(budget, max_epsilon=min(budget.max_epsilon, promised[1].max_epsilon))
    if math.isinf(budget.max_epsilon):
        return math.inf

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
        price = declaration_price(account, run=None, schedule=Counter({release: 1}), delta=budget.delta)
        return budget.admits(price)

    low, high = LOG_NOISE
    if not admitted(high):
        return 0.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if admitted(middle) else (middle, high)
    # The larger noise of the two is the one that was admitted.
    return gaussian_epsilon(mu=math.exp(-high), delta=budget.delta)
