"""Recompute the figures of a record, or claims on standard input, and print them as JSON.

    python -P -m mammo_fed.privacy.verification RUN/record.json
    python -P -m mammo_fed.privacy.verification -        # {"claims": [{"name", "recorded", "events", ...}, ...]}

Exit code: 0 where all figures agree, 3 where one does not, 2 where there is nothing to recompute.
"""

from __future__ import annotations

import json
import logging
import resource
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from mammo_fed.errors import DataError, MammoFedError
from mammo_fed.privacy.events import PrivacyEvent
from mammo_fed.privacy.verification.figures import Sheet, read_strict
from mammo_fed.privacy.verification.prices import price_of
from mammo_fed.privacy.verification.record_figures import check_record

__all__ = ["main"]

MOST_MEMORY: Final = 8 * 1024**3


def main(arguments: Sequence[str]) -> int:
    """Recompute what the arguments name; the exit code."""
    logging.disable(logging.WARNING)
    # A record that was made up must not take the machine's memory; what exceeds this ends as a figure out of range.
    resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, MOST_MEMORY))
    try:
        sheet = _claims(json.load(sys.stdin)) if arguments == ["-"] else check_record(read_strict(Path(arguments[0])))
    except (ArithmeticError, MemoryError, RecursionError) as error:
        _say({"error": f"a figure is out of the range that can be computed ({type(error).__name__})"})
        return 3
    except MammoFedError as error:
        _say({"error": str(error)})
        return error.exit_code
    figures = sheet.as_dicts()
    _say({"figures": figures})
    return 3 if any(figure["agrees"] is False for figure in figures) else 0


def _claims(given: Mapping[str, Any]) -> Sheet:
    """Epsilons with the events that they are the price of."""
    sheet = Sheet()
    for claim in given["claims"]:
        events = tuple(PrivacyEvent.from_dict(event) for event in claim["events"])
        recorded = float("inf") if claim["recorded"] is None else float(claim["recorded"])
        if not events and recorded:
            raise DataError(f"{claim['name']}: a figure without events")
        sheet.priced(
            claim["name"],
            recorded,
            lambda claim=claim, events=events: price_of(  # type: ignore[misc]
                events, delta=claim["delta"], accountant=claim["accountant"], protected=claim["protected"]
            ),
        )
    return sheet


def _say(values: Mapping[str, Any]) -> None:
    sys.stdout.write(json.dumps(values, allow_nan=False) + "\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
