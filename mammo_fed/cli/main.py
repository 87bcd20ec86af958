"""mammo-fed: simulate federations, reproduce the paper, plan and check privacy, look at results."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from mammo_fed.cli.audit import add_audit_command
from mammo_fed.cli.data import add_data_commands
from mammo_fed.cli.gan import add_gan_commands
from mammo_fed.cli.privacy import add_privacy_commands
from mammo_fed.cli.reproduce import add_reproduce_command
from mammo_fed.common.command_line import CommandLine
from mammo_fed.errors import InvalidSetting
from mammo_fed.reporting.console import one_line, results_table, sweep_table
from mammo_fed.reporting.pages.comparison_page import write_comparison_page
from mammo_fed.reporting.record.record import Record, read_record, write_atomically
from mammo_fed.settings.compose import Composed, compose_settings, expand_sweep

__all__ = ["main"]

OVERRIDES = """
settings are given as key=value; `--cfg job` prints them all. The most used:
  data=phantom|mammo_dp|csv|cohort  data.root=PATH   where the patients come from
  federation.num_sites=4     federation.partition=uniform|size|label
  privacy.target_epsilon=6   privacy.unit=patient|image   privacy=dp_gd|dp_sgd
  synthesis.source=phantom|gan|folder          synthesis.use=[whiten,pretrain]
  model=efficientnet_pair|efficientnet_lite0|swin_tiny
  engine=in_process|ray      seed=0            hydra.run.dir=FOLDER
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code (0 done, 1 failure, 2 bad input, 3 refused for privacy, 130 interrupted)."""
    return _command_line().run(arguments)


def _command_line() -> CommandLine:
    line = CommandLine(
        "mammo-fed",
        "Train a breast-mass malignancy classifier across hospitals, with a privacy guarantee for each patient.",
        interrupted="interrupted; no result was written",
    )
    add = line.add
    demo = add("demo", "run four hospitals on embedded data: results and a report in minutes, no download", _demo)
    simulation = add("simulate", "run a federation of simulated hospitals, everything configurable", _simulate)
    for run in (demo, simulation):
        run.epilog = OVERRIDES
        run.add_argument("overrides", nargs="*", metavar="key=value", help="settings to change")
        run.add_argument("--cfg", choices=["job"], help="print the configuration and stop")
    simulation.add_argument("-m", "--multirun", action="store_true", help="run every combination of comma-separated values")
    simulation.epilog = OVERRIDES + "\nsweeps: -m privacy.target_epsilon=1,6,12 seed=0,1 writes below hydra.sweep.dir\n"
    add_reproduce_command(line.commands, line.common)
    add_privacy_commands(line.commands, line.common)
    add_audit_command(line.commands, line.common)
    add_data_commands(line.commands, line.common)
    add_gan_commands(line.commands, line.common)
    report = add("report", "show one run's results, or compare several on one page", _report)
    report.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folders")
    report.add_argument("--output", type=Path, default=Path("comparison.html"), help="page for several runs")
    predict = add("predict", "score images with a run's model; not a medical device", _predict)
    predict.add_argument("run", type=Path, metavar="RUN", help="run folder")
    predict.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="grey PNG patches, one mass each")
    return line


def _demo(options: argparse.Namespace, console: Console) -> int:
    if not options.cfg and not options.json:
        console.print(
            "Four unlike hospitals, procedural masses, one shared model; no patient's data is involved.", soft_wrap=True
        )
    # A head pretrained on phantom images knows phantom masses already: without it the demo shows what the hospitals teach.
    return _run_one(options, compose_settings(["synthesis.use=[whiten]", *options.overrides]), console)


def _simulate(options: argparse.Namespace, console: Console) -> int:
    if not options.multirun:
        return _run_one(options, compose_settings(options.overrides), console)
    sweep = expand_sweep(options.overrides)
    jobs = [compose_settings(overrides) for overrides in sweep]
    if options.cfg:
        sys.stdout.write("---\n".join(job.yaml for job in jobs))
        return 0
    base = jobs[0].sweep_folder
    records = []
    for number, job in enumerate(jobs):
        console.print(f"[{number + 1}/{len(jobs)}] {' '.join(sweep[number])}", markup=False, soft_wrap=True)
        records.append(_run(job, base / str(number), console, quiet=True))
        console.print(one_line(records[-1]), markup=False, highlight=False, soft_wrap=True)
    page = write_comparison_page(base / "comparison.html", records)
    if options.json:
        sys.stdout.write(json.dumps([record.as_dict() for record in records], indent=2) + "\n")
    else:
        Console().print(sweep_table(sweep, records))
        console.print(f"comparison: {page.resolve()}", markup=False, soft_wrap=True)
    return 0


def _run_one(options: argparse.Namespace, composed: Composed, console: Console) -> int:
    if options.cfg:
        sys.stdout.write(composed.yaml)
        return 0
    record = _run(composed, composed.folder, console, quiet=options.json)
    if options.json:
        sys.stdout.write(json.dumps(record.as_dict(), indent=2) + "\n")
    return 0


def _run(composed: Composed, folder: Path, console: Console, *, quiet: bool) -> Record:
    # Imported late: torch and Flower take seconds, and --help should not.
    from mammo_fed.cli.progress import RunProgress
    from mammo_fed.common.logs import log_to_file
    from mammo_fed.simulations.launch import simulate

    _make_run_folder(folder)
    write_atomically(folder / "config.yaml", composed.yaml)
    with log_to_file(folder / "run.log"), RunProgress(console, quiet=quiet) as progress:
        record = simulate(composed.settings, folder, hooks=progress.hooks)
    if not quiet:
        Console().print(results_table(record))
        console.print(f"results:   {folder.resolve()}", markup=False, highlight=False, soft_wrap=True)
        console.print(f"report:    {(folder / 'report.html').resolve()}", markup=False, highlight=False, soft_wrap=True)
    return record


def _make_run_folder(folder: Path) -> None:
    # Before anything is written: a refused run must not touch the configuration and log of the run that is there.
    if (folder / "sites").exists() or (folder / "record.json").exists():
        raise InvalidSetting(f"hydra.run.dir={folder} already holds a run and its ledgers; choose another folder, or remove it")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidSetting(f"hydra.run.dir={folder} cannot be made ({error.strerror}); choose another folder") from error


def _report(options: argparse.Namespace, console: Console) -> int:
    records = [read_record(run) for run in options.runs]
    if options.json:
        sys.stdout.write(json.dumps([record.as_dict() for record in records], indent=2) + "\n")
        return 0
    for run, record in zip(options.runs, records, strict=True):
        console.print(str(run), markup=False)
        Console().print(results_table(record))
    if len(records) > 1:
        page = write_comparison_page(options.output, records)
        console.print(f"comparison: {page.resolve()}", markup=False, soft_wrap=True)
    return 0


def _predict(options: argparse.Namespace, console: Console) -> int:
    from mammo_fed.models.predict import predict

    scores = predict(options.run, options.images)
    if options.json:
        sys.stdout.write(json.dumps({str(path): score for path, score in scores.items()}, indent=2) + "\n")
        return 0
    for path, score in scores.items():
        sys.stdout.write(f"{score:.4f}  {path}\n")
    console.print("probability of malignancy; research only, not a medical device", style="dim")
    return 0


if __name__ == "__main__":
    logging.captureWarnings(True)
    sys.exit(main())
