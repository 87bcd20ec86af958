"""Runs of a simulated federation on the console: progress, results, and a comparison after a sweep."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from mammo_fed.cli.progress import RunProgress
from mammo_fed.common.command_line import print_json, say
from mammo_fed.common.logs import log_to_file
from mammo_fed.reporting.console import one_line, results_table, sweep_table
from mammo_fed.reporting.pages.comparison_page import write_comparison_page
from mammo_fed.reporting.record.record import Record
from mammo_fed.settings.compose import Composed
from mammo_fed.simulations.launch import simulate
from mammo_fed.simulations.run_folder import make_run_folder

__all__ = ["run_one", "run_sweep"]


def run_one(job: Composed, console: Console, *, json_only: bool) -> None:
    """Run one federation in its folder, and show what came out.

    Args:
      job: settings and folder.
      console: shows how it goes on.
      json_only: print the record as JSON and nothing for people.

    Raises:
      InvalidSetting: If the folder holds a run, or cannot be made.
    """
    record = _run(job, job.folder, console, quiet=json_only)
    if json_only:
        print_json(record.as_dict())


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
    records = []
    for number, job in enumerate(jobs):
        say(console, f"[{number + 1}/{len(jobs)}] {' '.join(runs[number])}")
        records.append(_run(job, base / str(number), console, quiet=True))
        say(console, one_line(records[-1]))
    page = write_comparison_page(base / "comparison.html", records)
    if json_only:
        print_json([record.as_dict() for record in records])
    else:
        Console().print(sweep_table(runs, records))
        say(console, f"comparison: {page.resolve()}")


def _run(job: Composed, folder: Path, console: Console, *, quiet: bool) -> Record:
    make_run_folder(folder, configuration=job.yaml)
    with log_to_file(folder / "run.log"), RunProgress(console, quiet=quiet) as progress:
        record = simulate(job.settings, folder, hooks=progress.hooks)
    if not quiet:
        Console().print(results_table(record))
        say(console, f"results:   {folder.resolve()}", f"report:    {(folder / 'report.html').resolve()}")
    return record
