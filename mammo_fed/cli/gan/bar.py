"""Progress of a generator's training or sampling."""

from __future__ import annotations

from typing import Final, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mammo_fed.common.command_line import say

__all__ = ["Bar"]

LINE_EVERY: Final = 100


class Bar:
    """A bar on a terminal, a line every so often elsewhere."""

    def __init__(self, console: Console, what: str, *, quiet: bool) -> None:
        self._console, self._quiet = console, quiet
        columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._bar = Progress(*columns, console=console, transient=True, disable=quiet or not console.is_terminal)

    def __enter__(self) -> Self:
        self._bar.start()
        self._task = self._bar.add_task("", total=None)
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def update(self, done: int, total: int, line: str) -> None:
        """Note that `done` of `total` are done."""
        self._bar.update(self._task, completed=done, total=total)
        if line and not self._quiet and (done % LINE_EVERY == 0 or done == total):
            say(self._bar.console, line)
