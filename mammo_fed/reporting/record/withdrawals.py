"""What a record says of patients who withdrew their consent: since when, in which rounds, and never who or how many."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["withdrawal_sentence"]


def withdrawal_sentence(*, site: str, at: str, rounds: Sequence[int]) -> str:
    """What holds at a site since a patient last withdrew, in one sentence; "" where nobody ever did.

    Args:
      site: its name.
      at: ISO date of the last withdrawal in its ledger.
      rounds: rounds of this run from which on a withdrawal was in force, where it came after the run had begun.

    >>> withdrawal_sentence(site="north", at="2026-03-01", rounds=[2])[:89]
    'north: patients who withdrew their consent, the last on 2026-03-01, take no part; in this'
    """
    if not at:
        return ""
    began = ""
    if rounds:
        which = ("round " if len(rounds) == 1 else "rounds ") + ", ".join(map(str, rounds))
        began = f"; in this run a withdrawal is in force from {which} on"
    return (
        f"{site}: patients who withdrew their consent, the last on {at}, take no part{began}. What was released before is not "
        "undone: it keeps its epsilon."
    )
