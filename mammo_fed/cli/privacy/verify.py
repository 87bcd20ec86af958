"""mammo-fed privacy verify: a ledger's entries, and the figures of a record or a ledger, each priced a second time."""

from __future__ import annotations

import argparse
import json
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mammo_fed.cli.privacy.settings_figures import settings_figures
from mammo_fed.common.command_line import print_json, say
from mammo_fed.common.isolation import isolated_environment, python_command
from mammo_fed.errors import DataError, InvalidSetting, PrivacyRefused, RunFailed
from mammo_fed.privacy.ledger.report import LedgerEntry, LedgerSummary, export_ledger, show_ledger, verify_ledger
from mammo_fed.reporting.formatting import readable
from mammo_fed.reporting.record.record import RECORD_NAME

__all__ = ["record_path", "recompute", "verify"]

RECOMPUTER: Final = "mammo_fed.privacy.verification"
# More than any real run takes: a record may have been made up to take for ever.
MOST_SECONDS: Final = 600
DISAGREES: Final = 3
WIDE: Final = 140
AGREEMENT: Final = {True: "agrees", False: "DISAGREES", None: "cannot be recomputed"}


def verify(options: argparse.Namespace, console: Console) -> int:
    """Check a record or a ledger; the exit code is 3 where a figure disagrees with its events."""
    path = record_path(options.target)
    if path is None and not options.target.is_dir():
        raise InvalidSetting(
            f"TARGET={options.target} must be a run's folder, its {RECORD_NAME}, or a ledger's folder, such as "
            "RUN/sites/site-1/ledger; check the path"
        )
    head = None
    if path is not None:
        if options.reported is not None:
            raise InvalidSetting(f"--reported={options.reported} has no effect here: it goes with a ledger, not with a run")
        figures = recompute(path) + settings_figures(path)
    else:
        head = verify_ledger(options.target, reported=options.reported)
        figures = recompute(_claims(show_ledger(options.target, delta=None), export_ledger(options.target)))
    disagree = [figure for figure in figures if figure["agrees"] is False]
    if options.json:
        print_json({"verified": not disagree, **({"head": head} if head is not None else {}), "figures": figures})
    else:
        _show(figures)
        if head is not None:
            console.print(f"verified; head {head}", highlight=False, soft_wrap=True)
        say(console, _verdict(figures))
    return DISAGREES if disagree else 0


def record_path(target: Path) -> Path | None:
    """The record that a folder or a file is; None for a folder without one."""
    if target.is_dir():
        path = target / RECORD_NAME
        return path if path.exists() else None
    return target if target.exists() else None


def recompute(given: Path | Mapping[str, Any]) -> list[dict[str, Any]]:
    """Figures recomputed by a process that imports no accountant of ours.

    Args:
      given: a record, or claims as mammo_fed.privacy.verification.__main__ takes them.

    Raises:
      DataError: If it is no record, or holds no events.
      PrivacyRefused: If its figures are out of the range that can be computed, or take for ever.
      RunFailed: If the process ends without an answer.
    """
    command = python_command(RECOMPUTER, str(given.absolute()) if isinstance(given, Path) else "-")
    text = None if isinstance(given, Path) else json.dumps(given)
    # One thread: what is computed is small, and threads of numerical libraries take address space.
    environment = {**isolated_environment(), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    try:
        done = subprocess.run(
            command, input=text, capture_output=True, text=True, env=environment, timeout=MOST_SECONDS, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise PrivacyRefused(f"figures took more than {MOST_SECONDS} s to recompute; nothing is verified") from error
    try:
        answer = json.loads(done.stdout)
    except ValueError as error:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise RunFailed(f"the process that recomputes figures gave no answer: {last}") from error
    if "error" in answer:
        raise (PrivacyRefused if done.returncode == DISAGREES else DataError)(answer["error"])
    figures: list[dict[str, Any]] = answer["figures"]
    return figures


def _claims(summary: LedgerSummary, entries: Sequence[LedgerEntry]) -> dict[str, Any]:
    """Every epsilon that `privacy show` gives, with the reserved events that it is the price of."""
    reserved: dict[str, list[Any]] = {}
    for entry in entries:
        if entry.kind == "reserved":
            reserved.setdefault(entry.details["run"], []).extend(entry.details["events"])
    claims = []
    for account in summary.accounts:
        whole = [event for run in account.runs for event in reserved.get(run.run_id, [])]
        name = f"account {', '.join(account.names)}"
        claims.append(_claim(f"{name}: epsilon", account.epsilon, whole, summary))
        claims.append(_claim(f"{name}: epsilon of a patient", account.patient_epsilon, whole, summary, protected="patient"))
        claims.extend(
            _claim(f"run {run.run_id}: epsilon", run.epsilon, reserved.get(run.run_id, []), summary) for run in account.runs
        )
    return {"claims": claims}


def _claim(
    name: str, recorded: float, events: Sequence[Any], summary: LedgerSummary, *, protected: str = "unit"
) -> dict[str, Any]:
    return {
        "name": name,
        "recorded": None if recorded == float("inf") else recorded,
        "events": events,
        "delta": summary.delta,
        "accountant": summary.accountant if protected == "unit" else "pld",
        "protected": protected,
    }


def _show(figures: Sequence[Mapping[str, Any]]) -> None:
    table = Table(title="Figures recomputed from the events, by dp-accounting", title_justify="left", box=None)
    for column in ("figure", "recorded", "recomputed", ""):
        table.add_column(column, overflow="fold")
    for figure in figures:
        # How it was computed is for whoever asks for JSON; why something is not as it should be is for everybody.
        why = f" ({figure['note']})" if figure["agrees"] is not True and figure["note"] else ""
        cells = (figure["name"], figure["recorded"], figure["recomputed"], f"{AGREEMENT[figure['agrees']]}{why}")
        table.add_row(*(Text(readable(str(cell))) for cell in cells))
    out = Console()
    # A log has no width of its own, and a figure is read best in one line.
    (out if out.is_terminal else Console(width=max(out.width, WIDE))).print(table)


def _verdict(figures: Sequence[Mapping[str, Any]]) -> str:
    counts = {word: sum(figure["agrees"] is value for figure in figures) for value, word in AGREEMENT.items()}
    text = f"{counts['agrees']} figures agree, {counts['DISAGREES']} disagree"
    return text + (f", {counts['cannot be recomputed']} cannot be recomputed" if counts["cannot be recomputed"] else "")
