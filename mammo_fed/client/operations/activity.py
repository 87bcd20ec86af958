"""What a site's executor answered, what it cost and what is left, as lines for the site's own people.

The executor appends to a file in the site's private folder; `site-client run` prints it, `status` shows the last of it. The
figures are the ledger's own: they stay at the site.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from mammo_fed.client.charging import site_ledger
from mammo_fed.client.rounds.app import Answered
from mammo_fed.client.rounds.replies import reason_for
from mammo_fed.common.json_lines import append_line
from mammo_fed.errors import MammoFedError
from mammo_fed.federation.protocol.task import Declaration
from mammo_fed.privacy.events import full_batch

__all__ = ["ActivityLog"]

logger = logging.getLogger(__name__)

MOST_BYTES: Final = 1 << 20


class ActivityLog:
    """Notes what was answered, after the answer has been handed over: figures take a moment that no server waits for.

    Args:
      path: of the file; put aside once when it has grown to 1 MiB.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._pending: list[tuple[Answered, float]] = []
        self._last: dict[str, Any] = {}

    def note(self, answered: Answered) -> None:
        """Remember a message; `write` puts it into the file."""
        self._pending.append((answered, time.time()))

    def write(self) -> None:
        """Append what was remembered; a disk or a ledger that fails loses lines and stops nothing.

        A declaration that is asked again, as it is while a site takes long to accept it, and answered as before is no news.
        """
        pending, self._pending = self._pending, []
        for answered, moment in pending:
            try:
                values = _values(answered)
                if values == self._last and answered.asked == "declaration":
                    continue
                append_line(self._path, {"time": moment, **values}, most_bytes=MOST_BYTES)
                self._last = values
            except (OSError, MammoFedError, ValueError) as error:
                logger.warning("what was answered cannot be noted (%s)", type(error).__name__)


def _values(answered: Answered) -> dict[str, Any]:
    values: dict[str, Any] = {"asked": answered.asked, "run": answered.run_id, "round": answered.round_index}
    if answered.error is not None:
        values |= {"reason": reason_for(answered.error), "text": " ".join(str(answered.error).split())[:2000]}
    if answered.run_id and answered.asked in ("declaration", "round"):
        values |= _figures(answered)
    return values


def _figures(answered: Answered) -> Mapping[str, Any]:
    """What the run has cost so far, may cost in all, and what the site's filter still allows beside what it counts."""
    site = answered.site
    try:
        declaration = site.declaration_of(answered.run_id)
    except MammoFedError:
        # It was refused before it was kept: nothing was charged.
        return {}
    return {"rounds": declaration.rounds, "most": finite(declaration.target_epsilon), **_of_ledger(site.file, declaration)}


def _of_ledger(file: Any, declaration: Declaration) -> Mapping[str, Any]:
    policy = file.policy
    with site_ledger(file, usual="gdp" if full_batch(declaration.mechanism) else "declared") as ledger:
        spent = ledger.epsilon(run_id=declaration.run_id, accountant=declaration.accountant, delta=declaration.delta)
        return {
            "epsilon": finite(spent),
            "left": finite(ledger.budget_left(account=policy.account)),
            "cap": finite(policy.max_epsilon),
        }


def finite(epsilon: float) -> float | None:
    """A figure as strict JSON knows it: null where there is no bound."""
    return None if math.isinf(epsilon) else epsilon
