"""Progress of a run on the console, and its log in a file."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from mammo_fed.reporting.wording import budget_text, epsilon_text
from server.budget import BudgetView, SiteSpending
from server.run import Hooks

__all__ = ["RunProgress", "log_to_file"]

logger = logging.getLogger("mammo_fed.run")
# More sites than this get one figure for all in place of a list.
MANY = 8
TOPS = ("mammo_fed", "server", "client", "simulations")


class RunProgress:
    """Bars while networks run, and one line a round with every site's cumulative epsilon."""

    def __init__(self, console: Console, *, quiet: bool) -> None:
        self._console, self._quiet = console, quiet
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._bars = Progress(*columns, console=console, transient=True, disable=quiet or not console.is_terminal)
        self._tasks: dict[str, TaskID] = {}
        self._quarters: dict[str, int] = {}

    @property
    def hooks(self) -> Hooks:
        """What a run calls."""
        return Hooks(features=self._features, round=self._round)

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bars.stop()

    def _features(self, name: str, done: int, total: int) -> None:
        if name not in self._tasks:
            self._tasks[name] = self._bars.add_task(f"features, {name}", total=total)
        self._bars.update(self._tasks[name], completed=done)
        quarter = 4 * done // total
        # A log or a pipe shows no bars: a line at every quarter says that work goes on.
        if not self._console.is_terminal and quarter > self._quarters.get(name, 0) and done < total:
            self._say(f"features of {done} of {total} images ({name})")
        self._quarters[name] = quarter
        if done == total:
            self._say(f"features of {total} images ({name})")

    def _round(self, index: int, rounds: int, budget: BudgetView) -> None:
        if index < 0:
            taking = len(budget.active)
            self._say(f"{taking} of {len(budget.sites)} sites take part")
            for name, site in budget.sites.items():
                if site.reason:
                    self._say(f"  {name} does not train: {site.reason}")
            return
        what = "private mean" if index == 0 else f"round {index}/{rounds}"
        parts = []
        if len(budget.sites) > MANY:
            largest = max(site.epsilon for site in budget.sites.values())
            amiss = sum(bool(_amiss(index, site)) for site in budget.sites.values())
            warning = f"; NO REPLY or MISMATCH at {amiss}" if amiss else ""
            self._say(f"{what:<13} epsilon: at most {_cost(largest)} at {len(budget.active)} sites{warning}")
            return
        for name, site in budget.sites.items():
            note = f"refused ({site.reason})" if site.reason else f"{_cost(site.epsilon)} (left {_left(site.budget_left)})"
            parts.append(f"{name} {note}{_amiss(index, site)}")
        self._say(f"{what:<13} epsilon: " + ", ".join(parts))

    def _say(self, line: str) -> None:
        logger.info("%s", line)
        if not self._quiet:
            self._bars.console.print(line, markup=False, highlight=False, soft_wrap=True)


def _amiss(index: int, site: SiteSpending) -> str:
    if index in site.unanswered:
        return " NO REPLY, charged all the same"
    return " MISMATCH with the site's own figure" if index in site.mismatches else ""


def _cost(epsilon: float) -> str:
    return epsilon_text(epsilon, decimals=3)


def _left(epsilon: float) -> str:
    return budget_text(epsilon, decimals=3)


@contextmanager
def log_to_file(path: Path) -> Iterator[None]:
    """Send what the packages log to `path` for the time of a run."""
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    loggers = [logging.getLogger(name) for name in TOPS]
    for one in loggers:
        one.addHandler(handler)
        one.setLevel(logging.INFO)
        one.propagate = False
    try:
        yield
    finally:
        for one in loggers:
            one.removeHandler(handler)
            one.propagate = True
        handler.close()
