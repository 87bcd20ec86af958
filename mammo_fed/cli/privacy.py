"""mammo-fed privacy: what a run would cost, and what a site's ledger says."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from mammo_fed.cli.plan import plan_command, rounded_up
from mammo_fed.cli.plan_options import add_plan_options, existing_ledger
from mammo_fed.common.serialization import plain
from mammo_fed.privacy.ledger.report import LedgerEntry, export_ledger, show_ledger, verify_ledger

__all__ = ["add_privacy_commands"]

Command = Callable[[argparse.Namespace, Console], int]


def add_privacy_commands(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add `privacy plan | show | verify | export` to the command line."""
    text = "plan what a run costs, and look into a site's ledger"
    privacy = commands.add_parser("privacy", help=text, description=text)
    kinds = privacy.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def add(name: str, words: str, command: Command) -> argparse.ArgumentParser:
        added: argparse.ArgumentParser = kinds.add_parser(name, help=words, description=words, parents=[common])
        added.set_defaults(command=command)
        return added

    plan = add(
        "plan", "noise for a target epsilon, or epsilon for a noise; cost by images per patient; what is left", plan_command
    )
    add_plan_options(plan)
    show = add("show", "accounts, runs and epsilon of a site's ledger", _show)
    verify = add("verify", "check every entry and stored reply of a ledger", _verify)
    export = add("export", "all entries as JSON lines, patients counted and never listed", _export)
    for command in (show, verify, export):
        command.add_argument("ledger", type=Path, metavar="LEDGER", help="folder, such as RUN/sites/site-1/ledger")
    show.add_argument("--delta", type=float, default=1e-4)
    show.add_argument("--accountant", choices=["pld", "rdp", "gdp", "prv"], default="pld")
    verify.add_argument("--reported", help="a head that the site reported before: detects a ledger put back from a copy")


def _show(options: argparse.Namespace, console: Console) -> int:
    summary = show_ledger(existing_ledger(options.ledger, option="LEDGER"), delta=options.delta, accountant=options.accountant)
    if options.json:
        sys.stdout.write(json.dumps(plain(summary), indent=2) + "\n")
        return 0
    out = Console()
    for account in summary.accounts:
        table = Table(title=f"{summary.site}: account {', '.join(account.names)}", title_justify="left")
        for column in ("run", "rounds settled / reserved", "steps reserved / declared", "epsilon"):
            table.add_column(column)
        for run in account.runs:
            rounds, steps = f"{run.settled_rounds} / {run.reserved_rounds}", f"{run.reserved_steps} / {run.declared_steps}"
            table.add_row(run.run_id, rounds, steps, rounded_up(run.epsilon))
        out.print(table)
        out.print(
            f"{account.patients} patients, unit {account.unit}; schedule cost {rounded_up(account.epsilon)} "
            f"at delta {summary.delta:g} ({summary.accountant}); "
            f"charged against the budget {rounded_up(account.charged)} ({account.filter})",
            highlight=False,
        )
        if account.unit == "image":
            out.print(
                f"the budget is for an image; a patient with the largest allowed number of images has paid "
                f"{rounded_up(account.patient_epsilon)} (pld)",
                highlight=False,
            )
    console.print(f"verified, {summary.entries} entries, head {summary.head}", highlight=False, soft_wrap=True)
    return 0


def _verify(options: argparse.Namespace, console: Console) -> int:
    head = verify_ledger(existing_ledger(options.ledger, option="LEDGER"), reported=options.reported)
    if options.json:
        sys.stdout.write(json.dumps({"verified": True, "head": head}) + "\n")
    else:
        console.print(f"verified; head {head}", highlight=False, soft_wrap=True)
    return 0


def _export(options: argparse.Namespace, console: Console) -> int:
    del console
    for entry in export_ledger(existing_ledger(options.ledger, option="LEDGER")):
        sys.stdout.write(_line(entry) + "\n")
    return 0


def _line(entry: LedgerEntry) -> str:
    return json.dumps(plain(asdict(entry)), sort_keys=True)
