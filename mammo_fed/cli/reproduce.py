"""mammo-fed reproduce: the paper's table beside ours, and the rows past it."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mammo_fed.common.interruption import advise
from mammo_fed.common.logs import log_to_file
from mammo_fed.errors import InvalidSetting
from mammo_fed.simulations.reproduction.experiments import backbones, select
from mammo_fed.simulations.reproduction.jobs import Job, Plan, jobs_of, overrides_of, run_jobs
from mammo_fed.simulations.reproduction.results import collect, write_results

__all__ = ["reproduce"]

logger = logging.getLogger(__name__)

DEFAULTS = {
    "experiment": "all",
    "seeds": "42,43,44",
    "cv_seeds": "0,1,2,3,4",
    "epochs": "300",
    "every": "3",
    "backbone": "lite0",
    "jobs": "",
    "hydra.run.dir": "runs/reproduce",
}


def reproduce(options: argparse.Namespace, console: Console) -> int:
    """Run rows of the table, or list them; the exit code."""
    own, overrides = dict(DEFAULTS), []
    for override in options.overrides:
        key, _, value = override.partition("=")
        if key in own:
            own[key] = value
        else:
            overrides.append(override)
    rows = select(own["experiment"])
    if options.list:
        for row in rows:
            sys.stdout.write(f"{row.key:<24}{row.title}  ({', '.join(row.groups)})\n")
        return 0
    if own["backbone"] not in backbones():
        raise InvalidSetting(f"backbone={own['backbone']} must be one of {', '.join(backbones())}")
    plan = Plan(
        rows=rows,
        seeds=_numbers("seeds", own["seeds"]),
        cv_seeds=_numbers("cv_seeds", own["cv_seeds"], empty=True),
        epochs=_number("epochs", own["epochs"]),
        every=_number("every", own["every"]),
        overrides=tuple(overrides),
        paper_overrides=backbones()[own["backbone"]],
    )
    if options.print_overrides:
        sys.stdout.writelines(f"{override}\n" for override in overrides_of(plan, rows))
        return 0
    jobs = _number("jobs", own["jobs"] or str(len(os.sched_getaffinity(0))))
    return _run(plan, Path(own["hydra.run.dir"]), jobs, own, options, console)


def _run(plan: Plan, folder: Path, processes: int, own: dict[str, str], options: argparse.Namespace, console: Console) -> int:
    jobs = jobs_of(plan, folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidSetting(f"hydra.run.dir={folder} cannot be made ({error.strerror}); choose another folder") from error
    advise("interrupted; finished runs are kept, and the same command goes on from there")
    with log_to_file(folder / "reproduce.log"), _Bars(console, quiet=options.json) as bars:
        run_jobs(jobs, processes=processes, prepared=bars.prepared, finished=bars.finished)
    page = write_results(folder, collect(plan, jobs), settings={**own, "overrides": " ".join(plan.overrides)})
    if options.json:
        sys.stdout.write((folder / "record.json").read_text(encoding="utf-8"))
        return 0
    sys.stdout.write((folder / "table.md").read_text(encoding="utf-8"))
    console.print(f"table:  {(folder / 'table.csv').resolve()}", markup=False, highlight=False, soft_wrap=True)
    console.print(f"page:   {page.resolve()}", markup=False, highlight=False, soft_wrap=True)
    return 0


class _Bars:
    """One bar for the networks, one for the runs; a line now and then where there is no terminal."""

    def __init__(self, console: Console, *, quiet: bool) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._quiet, self._console = quiet, console
        self._bars = Progress(*columns, console=console, transient=True, disable=quiet or not console.is_terminal)
        self._network = self._bars.add_task("networks", total=1, visible=False)
        self._runs = self._bars.add_task("runs", total=1, visible=False)
        self._said = 0

    def __enter__(self) -> _Bars:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def prepared(self, name: str, done: int, total: int) -> None:
        """Networks have run over `done` of `total` images of a set."""
        self._bars.update(self._network, description=f"networks, {name}", completed=done, total=total, visible=done < total)
        if done == total:
            self._say(f"networks: {name}, {total} images")

    def finished(self, job: Job, done: int, total: int) -> None:
        """`done` of `total` runs are done, the last of them `job`."""
        self._bars.update(self._runs, completed=done, total=total, visible=True)
        logger.info("%d of %d runs are done, the last %s", done, total, job.folder.name)
        if done == total or 20 * done // total > self._said:
            self._said = 20 * done // total
            self._say(f"{done} of {total} runs ({job.key})")

    def _say(self, line: str) -> None:
        if not self._quiet:
            self._bars.console.print(line, markup=False, highlight=False, soft_wrap=True)


def _number(key: str, text: str) -> int:
    numbers = _numbers(key, text)
    if len(numbers) != 1:
        raise InvalidSetting(f"{key}={text} must be one whole number, such as {key}={DEFAULTS[key] or 2}")
    return numbers[0]


def _numbers(key: str, text: str, *, empty: bool = False) -> tuple[int, ...]:
    parts = [part.strip() for part in text.strip("[]").split(",") if part.strip()]
    whole: Callable[[str], bool] = str.isdecimal
    if not all(map(whole, parts)) or not (parts or empty) or (key in ("epochs", "every", "jobs") and [*map(int, parts)] < [1]):
        raise InvalidSetting(
            f"{key}={text} must be whole numbers (epochs, every and jobs at least 1), such as {key}={DEFAULTS[key] or 2}"
        )
    if len(set(map(int, parts))) != len(parts):
        raise InvalidSetting(f"{key}={text} must not repeat a number")
    return tuple(map(int, parts))
