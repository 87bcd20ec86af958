"""Runs of a simulated federation on the console: progress, results, and a comparison after a sweep."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from mammo_fed.cli.progress import RunProgress
from mammo_fed.common.command_line import print_json, say
from mammo_fed.common.interruption import advise
from mammo_fed.common.logs import LOG_NAME, log_to_file
from mammo_fed.reporting.console import one_line, results_table, sweep_table
from mammo_fed.reporting.pages.comparison_page import write_comparison_page
from mammo_fed.reporting.record.record import Record, read_record
from mammo_fed.settings.compose import Composed, compose_settings, read_composed
from mammo_fed.simulations.launch import simulate
from mammo_fed.simulations.run_folder import (
    CONFIGURATION_NAME,
    check_fresh,
    is_done,
    make_run_folder,
    make_sweep_folder,
    read_sweep,
    remove_leftovers,
)

__all__ = ["resume", "run_one", "run_sweep"]


def run_one(job: Composed, console: Console, *, json_only: bool) -> None:
    """Run one federation in its folder, and show what came out.

    Args:
      job: settings and folder.
      console: shows how it goes on.
      json_only: print the record as JSON and nothing for people.

    Raises:
      InvalidSetting: If the folder holds a run, or cannot be made.
    """
    make_run_folder(job.folder, configuration=job.yaml)
    _show(_run(job, job.folder, console, quiet=json_only), job.folder, console, json_only=json_only)


def run_sweep(runs: Sequence[Sequence[str]], jobs: Sequence[Composed], console: Console, *, json_only: bool) -> None:
    """Run federations one after another below the sweep's folder, and compare them on one page.

    Args:
      runs: the overrides of each.
      jobs: what was composed from them.
      console: shows how it goes on.
      json_only: print the records as JSON and no table.

    Raises:
      InvalidSetting: As `run_one`.
    """
    base = jobs[0].sweep_folder
    for number in range(len(jobs)):
        check_fresh(base / str(number))
    make_sweep_folder(base, runs)
    _sweep(base, runs, jobs, console, json_only=json_only)


def resume(folder: Path, console: Console, *, json_only: bool) -> None:
    """Go on with the run or the sweep in `folder`, as it was begun; one that is done is shown.

    Raises:
      InvalidSetting: If there is none, or its settings are not those that it was begun with, or of another version.
    """
    runs = read_sweep(folder)
    if runs is None:
        job = read_composed(folder)
        if is_done(folder):
            remove_leftovers(folder)
            say(console, f"{folder} is done: there is nothing to go on with")
            _show(read_record(folder), folder, console, json_only=json_only)
        else:
            _show(_run(job, folder, console, quiet=json_only), folder, console, json_only=json_only)
        return
    if all(is_done(folder / str(number)) for number in range(len(runs))):
        say(console, f"{folder} is done: there is nothing to go on with")
    _sweep(folder, runs, [_begun(folder / str(number), run) for number, run in enumerate(runs)], console, json_only=json_only)


def _begun(folder: Path, overrides: Sequence[str]) -> Composed:
    """What a sweep's run was begun with, or is to be."""
    return read_composed(folder) if (folder / CONFIGURATION_NAME).exists() else compose_settings(overrides)


def _sweep(base: Path, runs: Sequence[Sequence[str]], jobs: Sequence[Composed], console: Console, *, json_only: bool) -> None:
    """Run what is not done; what is done counts as it is."""
    records = []
    for number, job in enumerate(jobs):
        folder = base / str(number)
        say(console, f"[{number + 1}/{len(jobs)}] {' '.join(runs[number])}")
        if not is_done(folder):
            if not (folder / CONFIGURATION_NAME).exists():
                make_run_folder(folder, configuration=job.yaml)
            _run(job, folder, console, quiet=True, remedy=base)
        else:
            remove_leftovers(folder)
        records.append(read_record(folder))
        say(console, one_line(records[-1]))
    page = write_comparison_page(base / "comparison.html", records)
    if json_only:
        print_json([record.as_dict() for record in records])
    else:
        Console().print(sweep_table(runs, records))
        say(console, f"comparison: {page.resolve()}")


def _run(job: Composed, folder: Path, console: Console, *, quiet: bool, remedy: Path | None = None) -> Record:
    """Run what lies in `folder`, from its beginning or from where it broke off."""
    advise(f"interrupted; finished rounds are kept: mammo-fed simulate --resume {remedy or folder}")
    with log_to_file(folder / LOG_NAME), RunProgress(console, quiet=quiet) as progress:
        return simulate(job.settings, folder, hooks=progress.hooks, resume=True)


def _show(record: Record, folder: Path, console: Console, *, json_only: bool) -> None:
    if json_only:
        print_json(record.as_dict())
        return
    Console().print(results_table(record))
    say(console, f"results:   {folder.resolve()}", f"report:    {(folder / 'report.html').resolve()}")
