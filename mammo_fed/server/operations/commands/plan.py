"""flower-server plan: would the sites take this run? Asks them, and charges nothing."""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import shutil
import sys
from typing import Any, Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mammo_fed.common.command_line import print_json, say
from mammo_fed.common.private_files import write_private
from mammo_fed.errors import InvalidSetting, PrivacyRefused
from mammo_fed.reporting.formatting import budget_text, readable
from mammo_fed.server.operations.commands.run import compose_for, warn_of_door
from mammo_fed.server.operations.folder import FederationFolder
from mammo_fed.server.operations.run_folder import PLAN_NAME
from mammo_fed.server.operations.supervisor import INTERRUPTED, Server, stopping
from mammo_fed.settings.compose import Composed

__all__ = ["plan"]

FOLDER: Final = "plan"
MOST_WAIT_SECONDS: Final = 3600.0


def plan(options: argparse.Namespace, console: Console) -> int:
    """Ask every connected site whether it would take a run; the exit code.

    Raises:
      InvalidSetting: If a setting is wrong, or a run has the folder.
    """
    folder = FederationFolder.open(options.folder)
    if not (math.isfinite(options.wait) and 0 <= options.wait <= MOST_WAIT_SECONDS):
        raise InvalidSetting(f"--wait={options.wait:g} must be from 0 to {MOST_WAIT_SECONDS:g} seconds")
    composed = compose_for(folder, options.overrides, insecure=options.insecure)
    warn_of_door(folder, console, insecure=options.insecure)
    with folder.hold():
        return _asked(folder, composed, options, console)


def _asked(folder: FederationFolder, composed: Composed, options: argparse.Namespace, console: Console) -> int:
    run_folder = folder.state / FOLDER
    shutil.rmtree(run_folder, ignore_errors=True)
    run_folder.mkdir(mode=0o700)
    write_private(run_folder / PLAN_NAME, json.dumps({"wait": options.wait}).encode())
    # With --json standard output is for the answers alone.
    aside = contextlib.redirect_stdout(sys.stderr) if options.json else contextlib.nullcontext()
    with stopping() as stopped, aside:
        planner = _Planner(folder, run_folder=run_folder, insecure=options.insecure, console=console)
        planner.listen()
        planner.prepare(composed, resume=False)
        code = planner.run(stopped)
    if planner.answers is not None:
        if options.json:
            print_json({**planner.answers, "exit_code": code})
        else:
            Console().print(_table(planner.answers))
            say(Console(), _verdict(planner.answers, code))
    return code


class _Planner(Server):
    """The server for the time of the question."""

    answers: dict[str, Any] | None = None

    def note_state(self) -> None:
        """Nothing: the folder goes on to name its last run."""

    def _purpose(self) -> str:
        return "sites are asked whether they would take the run"

    def _finish(self, outcome: dict[str, Any]) -> int:
        self._show_events()
        if outcome["message"]:
            self._console.print(f"error: {outcome['message']}", style="red", highlight=False, markup=False, soft_wrap=True)
        else:
            self.answers = json.loads((self._run_folder / PLAN_NAME).read_text(encoding="utf-8"))
        return int(outcome["exit_code"])

    def _interrupted(self) -> int:
        super()._interrupted_run()
        self._say("stopped; nothing was charged")
        return INTERRUPTED


def _table(answers: dict[str, Any]) -> Table:
    table = Table(title=Text("Would the sites take the run?"), title_justify="left")
    for column in ("site", "connected", "answer", "reason", "what would fit"):
        table.add_column(column)
    for site in answers["sites"]:
        answer = {True: "yes", False: "no", None: "unknown"}[site["accepts"]]
        fits = "" if site["accepts"] is not False else _fits(site["fits"])
        words = (readable(site["site"]), "yes" if site["connected"] else "no", answer, readable(site["reason"]), fits)
        table.add_row(*map(Text, words))
    return table


def _fits(epsilon: float | None) -> str:
    """Of a site that refuses: what it would take, where its policy lets it say so."""
    return "not told" if epsilon is None else f"epsilon {budget_text(epsilon)}"


def _verdict(answers: dict[str, Any], code: int) -> str:
    would, needed = sum(site["accepts"] is True for site in answers["sites"]), answers["needed"]
    said = f"{would} of {len(answers['sites'])} sites would take the run, and it needs {needed}; nothing was charged"
    if code == 0:
        return said
    remedy = "ask for less" if code == PrivacyRefused.exit_code else "see to the sites that did not answer"
    return f"{said}. Too few: {remedy}, or lower federation.min_nodes"
