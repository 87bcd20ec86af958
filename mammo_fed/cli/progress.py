"""Progress of a run on the console."""

from __future__ import annotations

import logging
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from mammo_fed.server.results.progress_lines import round_lines
from mammo_fed.server.rounds.budget import BudgetView
from mammo_fed.server.run import Hooks

__all__ = ["RunProgress"]

logger = logging.getLogger("mammo_fed.run")


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
        for line in round_lines(index, rounds, budget):
            self._say(line)

    def _say(self, line: str) -> None:
        logger.info("%s", line)
        if not self._quiet:
            self._bars.console.print(line, markup=False, highlight=False, soft_wrap=True)
