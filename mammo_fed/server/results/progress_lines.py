"""A run's course in lines for people."""

from __future__ import annotations

from typing import Final

from mammo_fed.reporting.formatting import budget_text, epsilon_text
from mammo_fed.server.rounds.budget import REVOKED, BudgetView, SiteSpending, outsized_text

__all__ = ["round_lines"]

# More sites than this get one figure for all in place of a list.
MANY: Final = 8


def round_lines(index: int, rounds: int, budget: BudgetView) -> list[str]:
    """What to say after the declaration (round -1), the private mean (0) or a round."""
    if index < 0:
        refused = [f"  {name} does not train: {site.reason_text}" for name, site in budget.sites.items() if site.reason]
        named = [f"  {outsized_text(name, budget)}" for name in budget.outsized]
        return [f"{len(budget.active)} of {len(budget.sites)} sites take part", *refused, *named]
    what = "private mean" if index == 0 else f"round {index}/{rounds}"
    if len(budget.sites) > MANY:
        largest = max(site.epsilon for site in budget.sites.values())
        amiss = sum(bool(_amiss(index, site)) for site in budget.sites.values())
        warning = f"; NO REPLY, MISMATCH or LEFT OUT at {amiss}" if amiss else ""
        return [f"{what:<13} epsilon: at most {_cost(largest)} at {len(budget.active)} sites{warning}"]
    parts = []
    for name, site in budget.sites.items():
        left = "" if site.budget_left is None else f" (left {_left(site.budget_left)})"
        note = _reason(site) if site.reason else f"{_cost(site.epsilon)}{left}"
        parts.append(f"{name} {note}{_amiss(index, site)}")
    return [f"{what:<13} epsilon: " + ", ".join(parts)]


def _reason(site: SiteSpending) -> str:
    return site.reason if site.reason == REVOKED else f"refused ({site.reason})"


def _amiss(index: int, site: SiteSpending) -> str:
    left_out = "".join(f" LEFT OUT ({reason})" for each, reason in site.rejected if each == index)
    if index in site.unanswered:
        return f"{left_out or ' NO REPLY'}, charged all the same"
    if index in site.missed:
        return " NOT THERE, not charged"
    against = " AGAINST THE OTHERS" if index in site.against and (index, "direction") not in site.rejected else ""
    return (" MISMATCH with the site's own figure" if index in site.mismatches else "") + against + left_out


def _cost(epsilon: float) -> str:
    return epsilon_text(epsilon, decimals=3)


def _left(epsilon: float) -> str:
    return budget_text(epsilon, decimals=3)
