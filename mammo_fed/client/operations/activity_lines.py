"""What the executor noted, as lines for a console and as figures; without the libraries that train."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

from mammo_fed.reporting.formatting import budget_text, epsilon_text, moment_text, readable

__all__ = ["ACTIVITY_NAME", "activity_line"]

ACTIVITY_NAME: Final = "rounds.jsonl"
WHAT: Final = {"declaration": "the run", "sum": "a masked sum", "plan": "a planned run"}


def activity_line(found: Mapping[str, Any]) -> str:
    """One line for one answer.

    >>> activity_line({"time": 0, "asked": "round", "run": "a1", "round": 3, "rounds": 12, "epsilon": 1.32, "most": 3.0,
    ...                "left": 4.77, "cap": 6.0}).split(": ", 1)[1]
    'run a1: round 3 of 12 answered; cost so far 1.32 of 3; left of 6: a further run of 4.77'
    """
    parts = [_what(found)]
    if reason := found.get("reason"):
        parts[0] += f" REFUSED ({reason}): {found.get('text', '')}"
    elif found.get("asked") == "plan":
        parts[0] += " would be taken; nothing is charged"
    else:
        parts[0] += " accepted" if found.get("asked") == "declaration" else " answered"
    if "epsilon" in found:
        parts.append(f"cost so far {_epsilon(found['epsilon'])} of {_epsilon(found.get('most'))}")
    if "left" in found:
        parts.append(_left(found))
    run = f"run {found['run']}: " if found.get("run") else ""
    return readable(f"{moment_text(float(found.get('time', 0)))}: {run}{'; '.join(parts)}")


def _what(found: Mapping[str, Any]) -> str:
    if found.get("asked") != "round":
        return WHAT.get(str(found.get("asked")), "a message")
    of = f" of {found['rounds']}" if "rounds" in found else ""
    return "the private mean" if found.get("round") == 0 else f"round {found.get('round')}{of}"


def _left(found: Mapping[str, Any]) -> str:
    if found["left"] is None:
        return "no cap"
    left = float(found["left"])
    what = f"a further run of {budget_text(left)}" if left >= 0.01 else "nothing"
    return f"left of {_epsilon(found.get('cap'))}: {what}"


def _epsilon(value: float | None) -> str:
    return epsilon_text(math.inf if value is None else float(value))
