"""Which sites had no part in some of a run's rounds, and why: a table that gives one number for a run names them beside it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from mammo_fed.reporting.formatting import participation_text, readable
from mammo_fed.reporting.record.record import Record
from mammo_fed.reporting.record.sections import SitePrivacy

__all__ = ["dropped_sites", "dropped_text"]

# A line in a table names so many sites; the record has them all.
MOST_NAMES: Final = 8


def dropped_sites(record: Record) -> dict[str, str]:
    """The sites that refused, gave no readable reply to a round, or whose reply was left out, each with what happened."""
    return {site.site: "; ".join(found) for site in record.privacy.sites if (found := [*_dropped(site)])}


def dropped_text(records: Sequence[Record]) -> str:
    """`dropped_sites` of one or several runs on one line for people; empty where every site was there in every round.

    With several runs a site stands there once, with what happened in the first run that did without it.
    """
    found: dict[str, str] = {}
    for record in records:
        found = {**dropped_sites(record), **found}
    if not found:
        return ""
    return f"WITHOUT {_words(found)}"


def _words(found: Mapping[str, str]) -> str:
    named = [f"{readable(site)} ({why})" for site, why in [*found.items()][:MOST_NAMES]]
    more = len(found) - len(named)
    return ", ".join(named) + (f" and {more} more sites" if more else "")


def _dropped(site: SitePrivacy) -> Iterator[str]:
    if site.refused:
        yield participation_text(rounds=site.rounds, refused=True)
    if site.unanswered:
        yield f"no reply, charged: {_rounds(site.unanswered)}"
    for reason in dict.fromkeys(rejected.reason for rejected in site.rejected):
        yield f"left out, {reason}: {_rounds([rejected.round for rejected in site.rejected if rejected.reason == reason])}"


def _rounds(rounds: Sequence[int]) -> str:
    """Rounds in words, what follows without a gap as a range; -1 is the declaration.

    >>> _rounds([3])
    'round 3'
    >>> _rounds([-1, 0, 1, 2, 5])
    'the declaration, rounds 0-2, 5'
    """
    spans: list[list[int]] = []
    for each in sorted({one for one in rounds if one >= 0}):
        if spans and each == spans[-1][1] + 1:
            spans[-1][1] = each
        else:
            spans.append([each, each])
    parts = ["the declaration"] if any(one < 0 for one in rounds) else []
    if spans:
        words = ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in spans)
        parts.append(f"round{'' if spans[0][0] == spans[-1][1] else 's'} {words}")
    return ", ".join(parts)
