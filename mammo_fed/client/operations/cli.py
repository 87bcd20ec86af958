"""site-client: one hospital's side of a federation."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from mammo_fed.common.command_line import Command, CommandLine

__all__ = ["COMMANDS", "main"]

INIT: Final = """
data=csv data.root=TABLE.csv is a hospital's own table (patient, image, label, optional view and split).
For trials: data=phantom or data=mammo_dp with --share 2/4 takes the second of four shares, as a simulation would.

site-client init SITE --name hospital-a --server fed.example.org:8443 --ca ca.crt --max-epsilon 6 data=csv data.root=table.csv
"""

WITHDRAW: Final = """
FILE holds the hospital's identifiers, or the cohort's pseudonyms. It is for good: there is no command that takes it back.
What was charged stays charged, and models that were trained before are not undone.
"""

BACKUP: Final = """
In FILE: site.toml, the authority, the ledger with its key, and the site's private key. The site may run meanwhile.
"""

RESTORE: Final = """
A ledger older than what the folder, this user's state (MAMMO_FED_STATE, else ~/.local/state/mammo-fed) or --reported
remembers is refused: charges would be forgotten. Give MAMMO_FED_STATE as the service that runs the site has it.
In a site's own folder all that is there is kept, and what is missing or behind comes from FILE.
Exit codes: 0 restored, 1 no room, 2 FILE is no backup or is damaged, or belongs to another site, 3 refused.
"""

CHECK: Final = """
Exit codes: 0 the site is ready, 2 one of the lines says FAILED. Between runs the server answers where the coordinator runs
`flower-server listen`.
"""

STATUS: Final = """
Exit codes: 0 the site's processes run, 1 they do not.
"""

RUN: Final = """
Each answer to the server is one line here, with what it cost and what is left. Ctrl-C or SIGTERM lets a round that has begun
end; a second one does not.
"""

RAISE_CAP: Final = """
The first run notes max_epsilon in the ledger: from then on it is what patients were promised, and a larger max_epsilon in
site.toml is refused. This command writes a raise into the ledger, then into site.toml; it works while the site runs. Every
later record says since when the cap holds and lists each raise. A smaller max_epsilon needs no command, and holds for good.

site-client raise-cap SITE --max-epsilon 8
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code (0 done, 1 failure, 2 bad input, 3 refused for privacy, 130 interrupted)."""
    return _command_line().run(arguments)


def _command_line() -> CommandLine:
    return CommandLine("site-client", "One hospital's side of a federation.", interrupted="interrupted", commands=COMMANDS)


def _add_folder(command: argparse.ArgumentParser) -> None:
    command.add_argument("folder", type=Path, metavar="FOLDER", help="the site's folder")


def _add_init_options(init: argparse.ArgumentParser) -> None:
    _add_folder(init)
    init.epilog = INIT
    init.add_argument("overrides", nargs="*", metavar="data.key=value", help="where the site's patients come from")
    init.add_argument("--name", required=True, help="of the site, known to all in the federation")
    init.add_argument("--server", required=True, metavar="HOST:PORT", help="of the coordinator")
    init.add_argument("--ca", required=True, type=Path, metavar="CA.CRT", help="the federation's authority, from for-sites/")
    init.add_argument("--proxy", default="", metavar="URL", help="HTTP proxy on the way there: http://HOST:PORT (none)")
    init.add_argument("--max-epsilon", type=float, default=6.0, metavar="E", help="of all runs ever together (6)")
    init.add_argument("--delta", type=float, default=1e-4, metavar="D", help="at which it is meant (1e-4)")
    init.add_argument("--max-images-per-patient", type=int, default=16, metavar="N", help="further images are left out (16)")
    init.add_argument("--min-patients", type=int, metavar="N", help="take no part with fewer (10)")
    init.add_argument("--public-patients", type=int, metavar="N", help="declared public (the cohort's)")
    init.add_argument("--public-images", type=int, metavar="N", help="declared public (the cohort's)")
    init.add_argument("--share", default="1/1", metavar="I/N", help="this site's part of a common cohort, for trials")
    init.add_argument("--partition", choices=["uniform", "size", "label"], default="uniform", help="how the shares are cut")
    init.add_argument("--partition-alpha", type=float, default=1.0, metavar="X", help="skew of the shares")
    init.add_argument("--seed", type=int, default=0, help="of the shares and of the phantom")
    init.add_argument("--cache", type=Path, metavar="FOLDER", help="of features (inside the site's folder)")
    init.add_argument("--threads", type=int, default=0, metavar="N", help="CPU threads (all)")


def _add_check_options(check: argparse.ArgumentParser) -> None:
    _add_folder(check)
    check.epilog = CHECK


def _add_status_options(status: argparse.ArgumentParser) -> None:
    _add_folder(status)
    status.epilog = STATUS


def _add_run_options(run: argparse.ArgumentParser) -> None:
    _add_folder(run)
    run.epilog = RUN
    run.add_argument("--insecure", action="store_true", help="no TLS, no keys: for trials on public cohorts only")
    run.add_argument(
        "--metrics-port", type=int, metavar="PORT", help="figures for Prometheus on http://127.0.0.1:PORT/metrics (none)"
    )


def _add_public_key_options(public: argparse.ArgumentParser) -> None:
    _add_folder(public)
    public.add_argument("--fingerprint", action="store_true", help="its fingerprint, for the telephone")


def _add_rotate_key_options(rotate: argparse.ArgumentParser) -> None:
    _add_folder(rotate)
    ends = rotate.add_mutually_exclusive_group()
    ends.add_argument("--done", action="store_true", help="the coordinator has registered the new key: throw the old one away")
    ends.add_argument("--undo", action="store_true", help="go back to the old key")


def _add_withdraw_options(withdraw: argparse.ArgumentParser) -> None:
    _add_folder(withdraw)
    withdraw.epilog = WITHDRAW
    withdraw.add_argument("--patients", required=True, type=Path, metavar="FILE", help="one identifier a line, UTF-8")
    withdraw.add_argument("--salt", type=Path, metavar="FILE", help="key of the cohort's pseudonyms (COHORT.salt)")
    withdraw.add_argument("--dry-run", action="store_true", help="say whom the file names, write nothing")


def _add_raise_cap_options(cap: argparse.ArgumentParser) -> None:
    _add_folder(cap)
    cap.add_argument(
        "--max-epsilon", type=float, required=True, metavar="E", help="of all runs ever together, above what was promised"
    )
    cap.add_argument("--account", metavar="NAME", help="of the ledger (all whose cap is smaller)")
    cap.epilog = RAISE_CAP


def _add_backup_options(backup: argparse.ArgumentParser) -> None:
    _add_folder(backup)
    backup.add_argument("file", type=Path, metavar="FILE", help="new, outside of the folder; holds secrets")
    backup.add_argument("--without-key", action="store_true", help="leave the site's private key out; a new one is made then")
    backup.epilog = BACKUP


def _add_restore_options(restore: argparse.ArgumentParser) -> None:
    restore.add_argument("file", type=Path, metavar="FILE", help="of site-client backup")
    restore.add_argument("folder", type=Path, metavar="FOLDER", help="new, empty, or the site's own")
    restore.add_argument("--reported", metavar="HEAD", help="where the ledger ended by the record of the site's last run")
    restore.add_argument("--latest", action="store_true", help="you vouch that nothing was charged since the backup")
    restore.epilog = RESTORE


COMMANDS: Final = (
    Command(
        "init",
        "make this site's folder: key pair, policy, ledger; reads the cohort once",
        _add_init_options,
        "mammo_fed.client.operations.commands.init:init",
    ),
    Command(
        "run",
        "take part in the federation's runs until stopped",
        _add_run_options,
        "mammo_fed.client.operations.commands.run:run",
    ),
    Command(
        "status",
        "what the site is doing, and whether the server answers",
        _add_status_options,
        "mammo_fed.client.operations.commands.run:status",
    ),
    Command(
        "check",
        "look at key, cohort, ledger, certificates and the way to the server",
        _add_check_options,
        "mammo_fed.client.operations.commands.check:check",
    ),
    Command(
        "public-key",
        "print the public key for the coordinator",
        _add_public_key_options,
        "mammo_fed.client.operations.commands.keys:public_key",
    ),
    Command(
        "rotate-key",
        "make a new key pair; the old one is kept until --done",
        _add_rotate_key_options,
        "mammo_fed.client.operations.commands.keys:rotate_key",
    ),
    Command(
        "withdraw",
        "patients withdrew their consent: leave them out of all later rounds and runs",
        _add_withdraw_options,
        "mammo_fed.client.operations.commands.withdraw:withdraw",
    ),
    Command(
        "raise-cap",
        "allow all runs together to cost more than patients were promised; every later record says so",
        _add_raise_cap_options,
        "mammo_fed.client.operations.commands.cap:raise_cap",
    ),
    Command(
        "backup",
        "put the site into one file: its settings, keys and ledger; works while it runs",
        _add_backup_options,
        "mammo_fed.client.operations.commands.backup:backup",
    ),
    Command(
        "restore",
        "bring a site back from such a file; refused where charges would be forgotten",
        _add_restore_options,
        "mammo_fed.client.operations.commands.backup:restore",
    ),
)


if __name__ == "__main__":
    logging.captureWarnings(True)
    sys.exit(main())
