"""mammo-fed demo and simulate: from settings to runs of a simulated federation."""

from __future__ import annotations

import argparse
import sys

from rich.console import Console

from mammo_fed.errors import InvalidSetting
from mammo_fed.settings.compose import compose_settings, expand_sweep, read_composed

__all__ = ["demo", "simulate"]


def demo(options: argparse.Namespace, console: Console) -> int:
    """Run four hospitals on embedded data; the exit code."""
    if not options.cfg and not options.json:
        console.print(
            "Four unlike hospitals, procedural masses, one shared model; no patient's data is involved.", soft_wrap=True
        )
    # A head pretrained on phantom images knows phantom masses already: without it the demo shows what the hospitals teach.
    return _simulate([["synthesis.use=[whiten]", *options.overrides]], options, console, sweep=False)


def simulate(options: argparse.Namespace, console: Console) -> int:
    """Run one federation, or every combination of a sweep, or go on with what was interrupted; the exit code.

    Raises:
      InvalidSetting: If a setting is wrong, or is given with --resume.
    """
    if options.resume is not None:
        return _resume(options, console)
    runs = expand_sweep(options.overrides) if options.multirun else [options.overrides]
    return _simulate(runs, options, console, sweep=options.multirun)


def _resume(options: argparse.Namespace, console: Console) -> int:
    if options.overrides:
        raise InvalidSetting(
            f"{options.overrides[0]} must not be given with --resume: a run resumes with the settings that it began with"
        )
    if options.cfg:
        sys.stdout.write(read_composed(options.resume).yaml)
        return 0
    from mammo_fed.cli.run import resume

    resume(options.resume, console, json_only=options.json)
    return 0


def _simulate(runs: list[list[str]], options: argparse.Namespace, console: Console, *, sweep: bool) -> int:
    jobs = [compose_settings(overrides) for overrides in runs]
    if options.cfg:
        sys.stdout.write("---\n".join(job.yaml for job in jobs))
        return 0
    # Late, for torch and Flower take seconds, and neither --cfg nor a wrong setting should wait for them.
    from mammo_fed.cli.run import run_one, run_sweep

    if sweep:
        run_sweep(runs, jobs, console, json_only=options.json)
    else:
        run_one(jobs[0], console, json_only=options.json)
    return 0
