"""Numbers and names as a report shows them: digits that never flatter, and text that a terminal cannot be steered by."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from typing import Final

__all__ = [
    "HEADLINE_ORDER",
    "NO_BREAK",
    "SET_TITLES",
    "account_text",
    "budget_text",
    "delta_text",
    "duration_text",
    "epsilon_text",
    "headline_set",
    "metric_text",
    "moment_text",
    "participation_text",
    "readable",
    "set_title",
]

NOT_PUBLISHED: Final = "not published"
NO_BREAK: Final = "\N{NO-BREAK SPACE}"
SET_TITLES: Final = {"val": "Validation", "test": "Test", "external": "External test", "sites": "Sites, pooled"}
# Which set a headline speaks of: the first of these that the run has. Validation comes last, choices may have been made on it.
HEADLINE_ORDER: Final = ("test", "sites", "external", "val")


def epsilon_text(epsilon: float, *, decimals: int = 2) -> str:
    """Epsilon with at most so many decimals, rounded up so that a shown epsilon is never below the true one.

    >>> [epsilon_text(value) for value in (6.0, 5.991, 14.5, math.inf)]
    ['6', '6', '14.5', '∞']
    >>> epsilon_text(5.9912, decimals=3)
    '5.992'
    """
    if math.isinf(epsilon):
        return "∞"
    # The allowance is far below any accountant's own error; it keeps 6.000000000001 from reading 6.01.
    parts = 10**decimals
    return f"{math.ceil(epsilon * parts - 1e-6) / parts:.{decimals}f}".rstrip("0").rstrip(".")


def account_text(epsilon: float | None) -> str:
    """A cost of a site's whole account, or that the site does not publish it.

    >>> [account_text(value) for value in (5.991, None)]
    ['6', 'not published']
    """
    return NOT_PUBLISHED if epsilon is None else epsilon_text(epsilon)


def delta_text(delta: float) -> str:
    """Delta in powers of ten where that is exact, else in full.

    >>> [delta_text(value) for value in (1e-4, 2.5e-5)]
    ['1e-04', '2.5e-05']
    """
    short = f"{delta:.0e}"
    return short if float(short) == delta else f"{delta!r}"


def budget_text(epsilon: float | None, *, decimals: int = 2) -> str:
    """What is left of a budget, rounded down to so many decimals; None is not published.

    >>> [budget_text(value) for value in (1.999, 4.0, math.inf, None)]
    ['1.99', '4', 'no bound', 'not published']
    """
    if epsilon is None:
        return NOT_PUBLISHED
    if math.isinf(epsilon):
        return "no bound"
    parts = 10**decimals
    return f"{math.floor(epsilon * parts + 1e-6) / parts:.{decimals}f}".rstrip("0").rstrip(".")


def metric_text(value: float | None, interval: tuple[float, float] | None = None) -> str:
    """A metric in three decimals with its interval, or "withheld" where the record holds none.

    >>> [metric_text(0.8571, (0.8, 0.9)), metric_text(None)]
    ['0.857 [0.800, 0.900]', 'withheld']
    """
    if value is None:
        return "withheld"
    return f"{value:.3f}" + (f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else "")


def duration_text(seconds: float) -> str:
    """A length of time in its two largest units; what is over or not yet there is 0 s.

    >>> [duration_text(value) for value in (0.4, 59.6, 125, 7322, 180_000)]
    ['0 s', '1 min 0 s', '2 min 5 s', '2 h 2 min', '2 d 2 h']
    """
    if not math.isfinite(seconds):
        return "unknown"
    whole = max(0, round(seconds))
    parts = [(whole // 86400, "d"), (whole // 3600 % 24, "h"), (whole // 60 % 60, "min"), (whole % 60, "s")]
    first = next((index for index, (count, _) in enumerate(parts) if count), len(parts) - 1)
    return " ".join(f"{count} {unit}" for count, unit in parts[first : first + 2])


def moment_text(unix: float) -> str:
    """A moment in this machine's own time zone, with its date where that is not today.

    Args:
      unix: seconds since 1970, UTC.

    >>> moment_text(0.0)[:4] in ("1970", "1969")
    True
    >>> moment_text(math.inf)
    'unknown'
    """
    try:
        moment = time.localtime(unix)
    except (OSError, OverflowError, ValueError):
        # No clock shows it: it comes from a damaged file.
        return "unknown"
    today = moment[:3] == time.localtime()[:3]
    return time.strftime("%H:%M:%S" if today else "%Y-%m-%d %H:%M:%S", moment)


def set_title(name: str) -> str:
    """What people call an evaluation set; an unknown set keeps its name."""
    return SET_TITLES.get(name, readable(name))


def headline_set(names: Iterable[str]) -> str | None:
    """The set whose result heads a report, or None where there is no set.

    >>> headline_set(["val", "test"])
    'test'
    """
    present = list(names)
    return next((name for name in HEADLINE_ORDER if name in present), present[0] if present else None)


def participation_text(*, rounds: int, refused: bool, charged: bool = False) -> str:
    """Whether a site took part, in words; of one that never answered, whether it was `charged` all the same."""
    if not refused and not rounds:
        return "no usable answer" if charged else "not asked"
    if not refused:
        return "took part"
    return f"refused after round {rounds}" if rounds else "refused"


def readable(text: str) -> str:
    """`text` with every character that does not print (terminal escapes, direction overrides) replaced by a question mark."""
    return "".join(character if character.isprintable() or character == NO_BREAK else "?" for character in text)
