"""mammo-fed privacy show and export: what a site's ledger says."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict

from rich.console import Console
from rich.table import Table

from mammo_fed.cli.privacy.options import existing_ledger
from mammo_fed.cli.privacy.plan_table import rounded_up
from mammo_fed.common.command_line import print_json
from mammo_fed.common.serialization import plain
from mammo_fed.privacy.ledger.report import LedgerEntry, export_ledger, show_ledger

__all__ = ["export", "show"]


def show(options: argparse.Namespace, console: Console) -> int:
    """Show the accounts of a ledger; the exit code."""
    summary = show_ledger(existing_ledger(options.ledger, option="LEDGER"), delta=options.delta, accountant=options.accountant)
    if options.json:
        print_json(summary)
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
        for name, cap in account.caps.items():
            raises = "".join(f"; raised at {step.at} from {step.from_epsilon:g} to {step.to_epsilon:g}" for step in cap.raised)
            out.print(
                f"promised as {name}: all runs at most {cap.max_epsilon:g} at delta {cap.delta:g}, since {cap.since}{raises}",
                highlight=False,
            )
        if account.unit == "image":
            out.print(
                f"the budget is for an image; a patient with the largest allowed number of images has paid "
                f"{rounded_up(account.patient_epsilon)} (pld)",
                highlight=False,
            )
    for withdrawal in summary.withdrawals:
        noun = "patient" if withdrawal.patients == 1 else "patients"
        out.print(f"{withdrawal.at}: {withdrawal.patients} {noun} withdrew; what was charged before stays", highlight=False)
    console.print(f"verified, {summary.entries} entries, head {summary.head}", highlight=False, soft_wrap=True)
    return 0


def export(options: argparse.Namespace, console: Console) -> int:
    """Print every entry of a ledger as a line of JSON; the exit code."""
    del console
    for entry in export_ledger(existing_ledger(options.ledger, option="LEDGER")):
        sys.stdout.write(_line(entry) + "\n")
    return 0


def _line(entry: LedgerEntry) -> str:
    return json.dumps(plain(asdict(entry)), sort_keys=True)
