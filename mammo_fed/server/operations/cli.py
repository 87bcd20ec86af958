"""flower-server: the coordinator's side of a federation."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from mammo_fed.common.command_line import Command, CommandLine
from mammo_fed.federation.flwr_internals.door.limits import CONNECTIONS_PER_ADDRESS
from mammo_fed.server.operations.authority import AUTHORITY_DAYS, SERVER_DAYS

__all__ = ["COMMANDS", "main"]

OVERRIDES: Final = """
settings are given as key=value; `--cfg job` prints them all. The most used:
  data=phantom|mammo_dp|csv|cohort  data.root=PATH    what the server evaluates on; patients are the sites'
  federation.num_sites=4     (the registered sites)   federation.min_nodes=auto
  privacy.target_epsilon=6   privacy.unit=patient|image   privacy=dp_gd|dp_sgd
  federation.secure.use=none|masks|shared_noise         federation.strategy=auto|FedAvg|FedAgree|...
  seed=0                     hydra.run.dir=RUN (FOLDER/runs/TIME)

Exit codes: 0 done, 1 failed (--resume continues it), 2 bad input, 3 refused for privacy, 130 stopped.
"""

LISTEN: Final = """
Sites can connect, and `site-client check` passes, while nothing is asked of them. `flower-server run` and `plan` may be started
meanwhile: the listener makes room, and listens again when they have ended.
"""

STATUS: Final = """
Exit codes: 0 where the server runs or listens, 1 where it does not.
"""

PLAN: Final = """
Every connected site says whether its policy and its ledger would take the run. Nothing is charged, and no ledger gets an entry.
Exit codes: 0 enough sites would take it, 3 sites refuse and too few are left, 1 too few answered.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code (0 done, 1 failure, 2 bad input, 3 refused for privacy, 130 interrupted)."""
    return _command_line().run(arguments)


def _command_line() -> CommandLine:
    return CommandLine(
        "flower-server",
        "The coordinator's side of a federation.",
        interrupted="interrupted; flower-server run FOLDER --resume resumes a run after its last finished round",
        commands=COMMANDS,
    )


def _add_folder(command: argparse.ArgumentParser) -> None:
    command.add_argument("folder", type=Path, metavar="FOLDER", help="the federation's folder")


def _add_status_options(status: argparse.ArgumentParser) -> None:
    _add_folder(status)
    status.epilog = STATUS


def _add_init_options(init: argparse.ArgumentParser) -> None:
    _add_folder(init)
    init.add_argument("--name", required=True, help="of the federation")
    init.add_argument("--port", type=int, default=8443, help="where the server listens (8443)")
    words = "address that it listens on (all of IPv4; :: is all)"
    init.add_argument("--bind", default="0.0.0.0", metavar="ADDRESS", help=words)  # noqa: S104 - hospitals come from outside
    init.add_argument(
        "--max-connections-per-address",
        type=int,
        default=CONNECTIONS_PER_ADDRESS,
        metavar="N",
        help=f"at a time ({CONNECTIONS_PER_ADDRESS}); sites behind one proxy share an address and use up to 8 each",
    )
    init.add_argument("--ca-days", type=int, default=AUTHORITY_DAYS, metavar="N", help=f"of the authority ({AUTHORITY_DAYS})")
    _add_certificate_options(init, needs_host=True)


def _add_renew_options(renew: argparse.ArgumentParser) -> None:
    _add_folder(renew)
    _add_certificate_options(renew, needs_host=False)
    renew.add_argument("--new-key", action="store_true", help="make a new private key too")


def _add_certificate_options(command: argparse.ArgumentParser, *, needs_host: bool) -> None:
    words = "name or address by which sites reach the server; may be repeated, the first is the one that they get"
    command.add_argument("--host", action="append", default=[], required=needs_host, help=words)
    command.add_argument("--days", type=int, default=SERVER_DAYS, metavar="N", help=f"of its certificate ({SERVER_DAYS})")


def _add_register_options(register: argparse.ArgumentParser) -> None:
    _add_folder(register)
    register.add_argument("key", type=Path, metavar="FILE.pub", help="the site's keys/NAME.pub")
    register.add_argument("--name", help="of the site (the file's name)")
    register.add_argument("--max-images", type=int, metavar="N", help="largest number of images that it may declare (any)")
    register.add_argument("--replace", action="store_true", help="the site has rotated its key: the old one is revoked")


def _add_revoke_options(revoke: argparse.ArgumentParser) -> None:
    _add_folder(revoke)
    revoke.add_argument("name", metavar="NAME", help="of the site")


def _add_run_options(run: argparse.ArgumentParser) -> None:
    _add_folder(run)
    run.epilog = OVERRIDES
    run.add_argument("overrides", nargs="*", metavar="key=value", help="settings to change")
    run.add_argument("--cfg", choices=["job"], help="print the configuration and stop")
    starts = run.add_mutually_exclusive_group()
    starts.add_argument("--resume", action="store_true", help="resume the newest unfinished run, or the one of hydra.run.dir")
    starts.add_argument("--prepare", action="store_true", help="write the settings of a run and stop: --resume starts it")
    _add_door_options(run)


def _add_door_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--insecure", action="store_true", help="no TLS, no site keys: for trials on public cohorts only")
    command.add_argument(
        "--metrics-port", type=int, metavar="PORT", help="figures for Prometheus on http://127.0.0.1:PORT/metrics (none)"
    )


def _add_listen_options(listen: argparse.ArgumentParser) -> None:
    _add_folder(listen)
    listen.epilog = LISTEN
    _add_door_options(listen)


def _add_plan_options(plan: argparse.ArgumentParser) -> None:
    _add_folder(plan)
    plan.epilog = PLAN
    plan.add_argument("overrides", nargs="*", metavar="key=value", help="settings of the run that is planned")
    plan.add_argument("--wait", type=float, default=60.0, metavar="SECONDS", help="for sites that are not connected yet (60)")
    plan.add_argument("--insecure", action="store_true", help="no TLS, no site keys: for trials on public cohorts only")


COMMANDS: Final = (
    Command(
        "init",
        "make a federation's folder: its authority, the server's certificate, what sites get",
        _add_init_options,
        "mammo_fed.server.operations.commands.federation:init",
    ),
    Command(
        "register",
        "let a site take part: its public key",
        _add_register_options,
        "mammo_fed.server.operations.commands.federation:register",
    ),
    Command(
        "revoke",
        "shut a site out, and its key for good",
        _add_revoke_options,
        "mammo_fed.server.operations.commands.federation:revoke",
    ),
    Command(
        "renew",
        "a new server certificate from the same authority",
        _add_renew_options,
        "mammo_fed.server.operations.commands.federation:renew",
    ),
    Command(
        "run",
        "start the server and one run of the federation",
        _add_run_options,
        "mammo_fed.server.operations.commands.run:run",
    ),
    Command(
        "listen",
        "let sites connect while there is no run",
        _add_listen_options,
        "mammo_fed.server.operations.commands.listen:listen",
    ),
    Command(
        "plan",
        "ask every connected site whether it would take a run; charges nothing",
        _add_plan_options,
        "mammo_fed.server.operations.commands.plan:plan",
    ),
    Command(
        "status",
        "what the server, its sites and its run are doing",
        _add_status_options,
        "mammo_fed.server.operations.commands.status:status_command",
    ),
    Command(
        "sites",
        "registered sites and the fingerprints of their keys",
        _add_folder,
        "mammo_fed.server.operations.commands.federation:sites",
    ),
)


if __name__ == "__main__":
    logging.captureWarnings(True)
    sys.exit(main())
