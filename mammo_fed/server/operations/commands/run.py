"""flower-server run: from settings to a server that runs them."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from pathlib import Path
from typing import Final

from rich.console import Console

from mammo_fed.common.command_line import print_json, say, warn
from mammo_fed.common.metrics_page import metrics_page
from mammo_fed.common.private_files import write_atomically
from mammo_fed.errors import InvalidSetting
from mammo_fed.reporting.record.record import read_record
from mammo_fed.server.operations.folder import FederationFolder
from mammo_fed.server.operations.watch.metrics import server_figures
from mammo_fed.settings.compose import Composed, compose_settings, read_composed

__all__ = ["compose_for", "run", "server_page", "warn_of_door"]

RUN_FOLDER: Final = "hydra.run.dir="
NUM_SITES: Final = "federation.num_sites="
SOON_DAYS: Final = 30


def run(options: argparse.Namespace, console: Console) -> int:
    """Start the server and a run, or go on with one; the exit code.

    Raises:
      InvalidSetting: If a setting is wrong, or the run's folder cannot be taken.
    """
    folder = FederationFolder.open(options.folder)
    composed, run_folder = _resumed(folder, options.overrides) if options.resume else _fresh(folder, options)
    if options.cfg:
        sys.stdout.write(composed.yaml)
        return 0
    warn_of_door(folder, console, insecure=options.insecure)
    # The page first: a port that is taken must not leave a run behind that --resume would begin.
    with folder.hold(), server_page(folder, None if options.prepare else options.metrics_port):
        if not options.resume:
            _make_run_folder(run_folder, composed)
        if options.prepare:
            say(console, f"{run_folder} is prepared; start it: flower-server run {folder.path} --resume")
            return 0
        return _serve(folder, composed, run_folder, options, console)


def server_page(folder: FederationFolder, port: int | None) -> AbstractContextManager[None]:
    """Serve the server's figures for Prometheus while the block runs; None serves nothing.

    Raises:
      InvalidSetting: If the port cannot be had, or is the one that sites come to.
    """
    if port == folder.about.port:
        raise InvalidSetting(f"--metrics-port={port} is the server's own port; choose another")
    return metrics_page(port, lambda: server_figures(folder))


def warn_of_door(folder: FederationFolder, console: Console, *, insecure: bool) -> None:
    """Say what nobody should miss before the server listens: no encryption, or a certificate that expires soon."""
    if insecure:
        warn(console, "--insecure: no encryption, no site keys: anybody can read, send and change everything; for trials only")
        return
    left = folder.certificate().days_left()
    if left < SOON_DAYS:
        warn(console, f"the server's certificate expires in {left:.0f} days; flower-server renew {folder.path}")


def compose_for(folder: FederationFolder, overrides: Sequence[str], *, insecure: bool) -> Composed:
    """Settings of a run for all registered sites unless the overrides say how many.

    Raises:
      InvalidSetting: If a setting is wrong, or no site is registered and no number is given.
    """
    overrides = list(overrides)
    if not insecure and not any(override.startswith(NUM_SITES) for override in overrides):
        registered = len(folder.registry.read())
        if registered == 0:
            raise InvalidSetting(
                f"federation.num_sites must be given as long as no site is registered in {folder.path}; register the sites "
                "(flower-server register), or give the number that will come"
            )
        overrides.append(f"{NUM_SITES}{registered}")
    return compose_settings(overrides)


def _serve(
    folder: FederationFolder, composed: Composed, run_folder: Path, options: argparse.Namespace, console: Console
) -> int:
    # Late, for it brings Flower, and neither --cfg nor --prepare nor a wrong setting should wait for it.
    from mammo_fed.server.operations.supervisor import serve

    # With --json standard output is for the record alone.
    aside = contextlib.redirect_stdout(sys.stderr) if options.json else contextlib.nullcontext()
    with aside:
        code = serve(folder, composed, run_folder=run_folder, resume=options.resume, insecure=options.insecure, console=console)
    if code == 0 and options.json:
        print_json(read_record(run_folder).as_dict())
    return code


def _fresh(folder: FederationFolder, options: argparse.Namespace) -> tuple[Composed, Path]:
    """A new run: its settings, and its folder."""
    composed = compose_for(folder, options.overrides, insecure=options.insecure)
    if any(override.startswith(RUN_FOLDER) for override in options.overrides):
        return composed, composed.folder.absolute()
    return composed, folder.runs / f"{datetime.now():%Y-%m-%d_%H-%M-%S}"


def _resumed(folder: FederationFolder, overrides: Sequence[str]) -> tuple[Composed, Path]:
    """A run that was begun: the settings that it was begun with, and its folder."""
    other = [override for override in overrides if not override.startswith(RUN_FOLDER)]
    if other:
        raise InvalidSetting(f"{other[0]} must not be given with --resume: a run resumes with the settings that it began with")
    run_folder = compose_settings(overrides).folder.absolute() if overrides else folder.unfinished_run()
    if (run_folder / "record.json").exists():
        raise InvalidSetting(f"{RUN_FOLDER}{run_folder} is a run that is done; leave --resume out to start another")
    return read_composed(run_folder), run_folder


def _make_run_folder(folder: Path, composed: Composed) -> None:
    # Before anything is written: a refused run must not touch the run that is there.
    if (folder / "config.yaml").exists() or (folder / "record.json").exists():
        raise InvalidSetting(f"{RUN_FOLDER}{folder} already holds a run; choose another folder, or go on with it: --resume")
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_atomically(folder / "config.yaml", composed.yaml)
    except OSError as error:
        raise InvalidSetting(f"{RUN_FOLDER}{folder} cannot be made ({error.strerror}); choose another folder") from error
