"""What a record says of the caps that sites' ledgers enforce: since when they hold, every raise, and what is not published."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mammo_fed.privacy.ledger.cap import CapRaise
from mammo_fed.privacy.names import LedgerScope
from mammo_fed.reporting.formatting import epsilon_text

__all__ = ["CapHistory", "account_sentences", "cap_words", "raise_words"]


@dataclass(frozen=True, kw_only=True)
class CapHistory:
    """Since when a site's cap holds ("" where that is not known), and every raise of it."""

    site: str
    since: str
    raised: tuple[CapRaise, ...] = ()


def cap_words(caps: Sequence[CapHistory]) -> str:
    """Since when caps hold and who raised them, for the inside of a sentence; empty where nothing is known.

    >>> step = CapRaise(at="2026-02-01T09:30:00+00:00", from_epsilon=1.0, to_epsilon=50.0)
    >>> first = CapHistory(site="b", since="2026-01-05T08:00:00+00:00")
    >>> cap_words([CapHistory(site="a", since=step.at, raised=(step,)), first])
    'since 2026-01-05 to 2026-02-01, by site; raised at a on 2026-02-01 from 1 to 50'
    >>> cap_words([CapHistory(site="a", since="")])
    ''
    """
    days = sorted({_day(cap.since) for cap in caps if cap.since})
    if not days:
        return ""
    since = f"since {days[0]}" if len(days) == 1 else f"since {days[0]} to {days[-1]}, by site"
    unknown = "" if all(cap.since for cap in caps) else "; elsewhere since when is not noted"
    return "; ".join([since + unknown, *(f"raised at {cap.site} {raise_words(step)}" for cap in caps for step in cap.raised)])


def raise_words(step: CapRaise) -> str:
    """One raise: when, from what, to what."""
    return f"on {_day(step.at)} from {epsilon_text(step.from_epsilon)} to {epsilon_text(step.to_epsilon)}"


def account_sentences(*, ledger: LedgerScope, published: bool) -> tuple[str, ...]:
    """What epsilon does not cover of ledgers that carry over: what a site's answers say of its other runs."""
    if ledger == "run":
        return ()
    figures = (
        "The sites' policies publish what all runs in their ledgers cost and what is left of their budgets: figures that "
        "depend on who is in the cohorts of other runs too, which epsilon does not cover."
        if published
        else "What all runs in a site's ledger cost, and what is left of its budget, depends on who is in the cohorts of other "
        "runs too, and is not published."
    )
    return (
        f"{figures} Whether a site refuses a run or a round for its budget or its accounts depends on that as well, and so may "
        "the time that it takes to answer: both are seen, and epsilon does not cover them. How many entries a ledger has "
        "(ledger_head), its cap, since when that holds and when it was raised are public by declaration of the site.",
    )


def _day(moment: str) -> str:
    return moment.partition("T")[0]
