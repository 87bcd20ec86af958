"""flower-server: the coordinator's side of a federation."""

from __future__ import annotations

import argparse
import contextlib
import logging
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Final

from rich.console import Console

from mammo_fed.common.command_line import CommandLine, describe, print_json, say, warn
from mammo_fed.errors import InvalidSetting
from mammo_fed.federation.identity.keys import read_public_key
from mammo_fed.reporting.record.record import read_record, write_atomically
from mammo_fed.server.operations.authority import AUTHORITY_DAYS, SERVER_DAYS
from mammo_fed.server.operations.folder import FederationFolder, init_folder
from mammo_fed.settings.compose import Composed, compose_settings, read_composed

__all__ = ["main"]

RUN_FOLDER: Final = "hydra.run.dir="
NUM_SITES: Final = "federation.num_sites="
SOON_DAYS: Final = 30
OVERRIDES: Final = """
settings are given as key=value; `--cfg job` prints them all. The most used:
  data=phantom|mammo_dp|csv  data.root=PATH    what the server evaluates on; patients are the sites'
  federation.num_sites=4     (the registered sites)   federation.min_nodes=auto
  privacy.target_epsilon=6   privacy.unit=patient|image   privacy=dp_gd|dp_sgd
  federation.secure.use=none|masks|shared_noise
  seed=0                     hydra.run.dir=FOLDER (FOLDER/runs/TIME)
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code (0 done, 1 failure, 2 bad input, 3 refused for privacy, 130 interrupted)."""
    return _command_line().run(arguments)


def _command_line() -> CommandLine:
    line = CommandLine(
        "flower-server",
        "The coordinator's side of a federation.",
        interrupted="interrupted; --resume goes on from the last round",
    )
    init = line.add("init", "make a federation's folder: its authority, the server's certificate, what sites get", _init)
    register = line.add("register", "let a site come: give its public key", _register)
    revoke = line.add("revoke", "let a site come no more, and its key never again", _revoke)
    renew = line.add("renew", "a new server certificate from the same authority", _renew)
    run = line.add("run", "start the server and one run of the federation", _run)
    status = line.add("status", "what the server and its run are doing", _status)
    sites = line.add("sites", "registered sites and the fingerprints of their keys", _sites)
    for command in (init, register, revoke, renew, run, status, sites):
        command.add_argument("folder", type=Path, metavar="FOLDER", help="the federation's folder")
    init.add_argument("--name", required=True, help="of the federation")
    init.add_argument("--port", type=int, default=8443, help="where the server listens (8443)")
    init.add_argument("--bind", default="0.0.0.0", metavar="ADDRESS", help="address that it listens on (all)")  # noqa: S104 - hospitals come from outside
    init.add_argument("--ca-days", type=int, default=AUTHORITY_DAYS, metavar="N", help=f"of the authority ({AUTHORITY_DAYS})")
    for command in (init, renew):
        words = "name or address by which sites reach the server; may be repeated, the first is what they are told"
        command.add_argument("--host", action="append", default=[], required=command is init, help=words)
        command.add_argument("--days", type=int, default=SERVER_DAYS, metavar="N", help=f"of its certificate ({SERVER_DAYS})")
    renew.add_argument("--new-key", action="store_true", help="make a new private key too")
    register.add_argument("key", type=Path, metavar="FILE.pub", help="the site's keys/NAME.pub")
    register.add_argument("--name", help="of the site (the file's name)")
    register.add_argument("--replace", action="store_true", help="the site has rotated its key: the old one is revoked")
    revoke.add_argument("name", metavar="NAME", help="of the site")
    run.epilog = OVERRIDES
    run.add_argument("overrides", nargs="*", metavar="key=value", help="settings to change")
    run.add_argument("--cfg", choices=["job"], help="print the configuration and stop")
    starts = run.add_mutually_exclusive_group()
    starts.add_argument(
        "--resume", action="store_true", help="go on with the newest unfinished run, or the one of hydra.run.dir"
    )
    starts.add_argument("--prepare", action="store_true", help="write the settings of a run and stop: --resume starts it")
    run.add_argument("--insecure", action="store_true", help="no TLS, no site keys: for trials on public cohorts only")
    return line


def _init(options: argparse.Namespace, console: Console) -> int:
    folder = init_folder(
        options.folder,
        name=options.name,
        hosts=options.host,
        port=options.port,
        bind=options.bind,
        days=options.days,
        authority_days=options.ca_days,
    )
    if options.json:
        print_json({"folder": str(folder.path), "federation": folder.about.name, "address": folder.about.address})
        return 0
    say(
        console,
        f"{folder.path} is ready; sites reach it as {folder.about.address}.",
        "Next:",
        f"  1. give every hospital a copy of {folder.path / 'for-sites'}: ca.crt, an example site.toml, and README.txt",
        f"  2. flower-server register {folder.path} NAME.pub      for the key that each of them sends",
        f"  3. flower-server run {folder.path} data=...",
        f"{folder.authority_key} signs servers of this federation and is needed by renew only: it may be kept elsewhere.",
    )
    return 0


def _register(options: argparse.Namespace, console: Console) -> int:
    folder, key = FederationFolder.open(options.folder), read_public_key(options.key)
    name = options.name or options.key.stem
    changed = folder.registry.register(name, key, replace=options.replace)
    if options.json:
        print_json({"site": name, "fingerprint": key.fingerprint, "changed": changed})
        return 0
    said = "is registered" if changed else "was registered already, with this key"
    say(console, f"{name} {said}: {key.fingerprint}; compare it with the site by another way than the file came")
    return 0


def _revoke(options: argparse.Namespace, console: Console) -> int:
    key = FederationFolder.open(options.folder).registry.revoke(options.name)
    if options.json:
        print_json({"site": options.name, "fingerprint": key.fingerprint})
    else:
        say(console, f"{options.name} is revoked, and so is its key {key.fingerprint} for ever; a new key can be registered")
    return 0


def _renew(options: argparse.Namespace, console: Console) -> int:
    folder = FederationFolder.open(options.folder).renew(hosts=options.host, days=options.days, new_key=options.new_key)
    certificate = folder.certificate()
    if options.json:
        print_json({"hosts": certificate.hosts, "valid_until": certificate.valid_until.isoformat()})
    else:
        names = ", ".join(certificate.hosts)
        say(console, f"the server's certificate is valid until {certificate.valid_until:%Y-%m-%d} for {names}")
        say(console, "a server that runs shows it after its next start; sites keep their ca.crt")
    return 0


def _sites(options: argparse.Namespace, console: Console) -> int:
    found = FederationFolder.open(options.folder).registry.read()
    if options.json:
        print_json([{"site": site.name, "fingerprint": site.key.fingerprint} for site in found])
        return 0
    say(Console(), *(f"{site.name:<24} {site.key.fingerprint}" for site in found))
    if not found:
        say(console, "no site is registered; flower-server register FOLDER NAME.pub")
    return 0


def _status(options: argparse.Namespace, console: Console) -> int:
    del console
    from mammo_fed.server.operations.supervisor import status

    found = status(FederationFolder.open(options.folder))
    if options.json:
        print_json(found)
    else:
        say(Console(), *describe(found))
    return 0


def _run(options: argparse.Namespace, console: Console) -> int:
    folder = FederationFolder.open(options.folder)
    composed, run_folder = _resumed(folder, options.overrides) if options.resume else _fresh(folder, options)
    if options.cfg:
        sys.stdout.write(composed.yaml)
        return 0
    if options.insecure:
        warn(console, "--insecure: no encryption, no site keys: anybody can read, send and change everything; for trials only")
    else:
        left = folder.certificate().days_left()
        if left < SOON_DAYS:
            warn(console, f"the server's certificate expires in {left:.0f} days; flower-server renew {folder.path}")
    with folder.hold():
        if not options.resume:
            _make_run_folder(run_folder, composed)
        if options.prepare:
            say(console, f"{run_folder} is prepared; start it: flower-server run {folder.path} --resume")
            return 0
        return _serve(folder, composed, run_folder, options, console)


def _serve(
    folder: FederationFolder, composed: Composed, run_folder: Path, options: argparse.Namespace, console: Console
) -> int:
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
    overrides = list(options.overrides)
    if not options.insecure and not any(override.startswith(NUM_SITES) for override in overrides):
        registered = len(folder.registry.read())
        if registered == 0:
            raise InvalidSetting(
                f"federation.num_sites must be given as long as no site is registered in {folder.path}; register the sites "
                "(flower-server register), or give the number that will come"
            )
        overrides.append(f"{NUM_SITES}{registered}")
    composed = compose_settings(overrides)
    if any(override.startswith(RUN_FOLDER) for override in overrides):
        return composed, composed.folder.absolute()
    return composed, folder.runs / f"{datetime.now():%Y-%m-%d_%H-%M-%S}"


def _resumed(folder: FederationFolder, overrides: Sequence[str]) -> tuple[Composed, Path]:
    """A run that was begun: the settings that it was begun with, and its folder."""
    other = [override for override in overrides if not override.startswith(RUN_FOLDER)]
    if other:
        raise InvalidSetting(f"{other[0]} must not be given with --resume: a run goes on with the settings that it began with")
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


if __name__ == "__main__":
    logging.captureWarnings(True)
    sys.exit(main())
