"""What a planned run costs, and how it is shown."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table

__all__ = ["Plan", "plan_table", "rounded_down", "rounded_up"]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a planned run costs.

    Attributes:
      unit, delta, accountant, rounds, local_steps, sample_rate: of the run.
      noise_multiplier, mean_noise_multiplier: standard deviation over the clipping norm; the second None without a mean.
      given: whether the noise of the steps was given rather than found.
      epsilon: of the whole run, for the unit.
      coarse: whether that is a loose upper bound.
      epsilon_after_round: cumulative, round 0 (the mean) first, at each of `rounds_shown`.
      epsilon_of_patient_with_images: by number of images of the patient, by `accountant_of_patient`; a loose upper
        bound for those in `coarse_for_patient_with_images`.
      refused: why a site with this budget would refuse the run; None if it would not, or without a budget.
      left: epsilon of the largest single full-batch release that the account's filter admits after the run, or without it where
        it is refused; None without a budget.
    """

    unit: str
    delta: float
    accountant: str
    rounds: int
    local_steps: int
    sample_rate: float
    noise_multiplier: float
    mean_noise_multiplier: float | None
    given: bool
    epsilon: float
    coarse: bool
    rounds_shown: list[int]
    epsilon_after_round: list[float]
    accountant_of_patient: str
    coarse_for_patient_with_images: list[int]
    epsilon_of_patient_with_images: dict[str, float]
    refused: str | None
    left: float | None


def plan_table(plan: Plan) -> Table:
    """A plan for people: costs rounded up, what is left rounded down."""
    table = Table(title="Privacy plan", title_justify="left", show_header=False, box=None)
    noise = f"{plan.noise_multiplier:.10g} (as given)" if plan.given else rounded_up(plan.noise_multiplier)
    mean = plan.mean_noise_multiplier
    rows = [
        ("unit, relation", f"{plan.unit}; it contributes nothing, cohort size public"),
        ("delta, accountant", f"{plan.delta:g}, {plan.accountant}"),
        ("rounds x local steps", f"{plan.rounds} x {plan.local_steps}, sampling rate {plan.sample_rate:.4g}"),
        ("noise multiplier", f"{noise} (each gradient step)"),
        (
            "",
            "no private mean"
            if mean is None
            else f"{mean:.10g} (private mean)"
            if plan.given
            else f"{rounded_up(mean)} (private mean)",
        ),
        ("epsilon", f"{'at most ' if plan.coarse else ''}{rounded_up(plan.epsilon)} for one {plan.unit}"),
        (
            f"epsilon after rounds {_few([str(index) for index in plan.rounds_shown])}",
            _few([rounded_up(e) for e in plan.epsilon_after_round]),
        ),
    ]
    if plan.coarse:
        rows.append(("", "a loose upper bound: privacy losses beyond what a grid holds; the true epsilon may be far lower"))
    if plan.unit == "image":
        coarse = {str(images) for images in plan.coarse_for_patient_with_images}
        costs = ", ".join(
            f"{images}: {'at most ' if images in coarse else ''}{rounded_up(cost)}"
            for images, cost in plan.epsilon_of_patient_with_images.items()
        )
        rows.append((f"a patient with k images (by {plan.accountant_of_patient})", costs))
    if plan.refused:
        rows.append(("REFUSED", f"a site with this budget would refuse this run: {plan.refused}"))
    if plan.left is not None:
        what = "as it stands, without this run" if plan.refused else "after this run"
        rows.append(("left of the budget", f"{what}: one full-batch run of epsilon {rounded_down(plan.left)}"))
    for row in rows:
        table.add_row(*row)
    return table


def _few(values: Sequence[str]) -> str:
    return ", ".join(values) if len(values) <= 16 else ", ".join([*values[:7], "...", *values[-7:]])


def rounded_up(value: float) -> str:
    """Four decimals, rounded up: a shown cost is never below the true one."""
    return "infinite" if math.isinf(value) else f"{math.ceil(value * 1e4 - 1e-9) / 1e4:.4f}"


def rounded_down(value: float) -> str:
    """Four decimals, rounded down: what is left is never shown above what there is."""
    return "infinite" if math.isinf(value) else f"{math.floor(value * 1e4) / 1e4:.4f}"
