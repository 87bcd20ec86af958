"""mammo-fed report: the results of finished runs."""

from __future__ import annotations

import argparse

from rich.console import Console

from mammo_fed.common.command_line import print_json, say
from mammo_fed.reporting.console import results_table
from mammo_fed.reporting.record.record import read_record

__all__ = ["report"]


def report(options: argparse.Namespace, console: Console) -> int:
    """Show each run's results, and write a page that compares several; the exit code."""
    records = [read_record(run) for run in options.runs]
    if options.json:
        print_json([record.as_dict() for record in records])
        return 0
    for run, record in zip(options.runs, records, strict=True):
        say(console, str(run))
        Console().print(results_table(record))
    if len(records) > 1:
        # Late, for one run needs no plot, and matplotlib takes most of the time that its table takes.
        from mammo_fed.reporting.pages.comparison_page import write_comparison_page

        say(console, f"comparison: {write_comparison_page(options.output, records).resolve()}")
    return 0
