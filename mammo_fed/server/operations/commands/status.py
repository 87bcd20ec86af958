"""flower-server status: what the server of a federation and its run are doing."""

from __future__ import annotations

import argparse
import contextlib
import json
from pathlib import Path
from typing import Any

from rich.console import Console

from mammo_fed.common.command_line import describe, print_json, say
from mammo_fed.errors import MammoFedError
from mammo_fed.server.operations.folder import STATE_NAME, FederationFolder
from mammo_fed.server.operations.run_folder import OUTCOME_NAME, PROGRESS_NAME

__all__ = ["status", "status_command"]


def status_command(options: argparse.Namespace, console: Console) -> int:
    """Say what the server is doing; the exit code."""
    del console
    found = status(FederationFolder.open(options.folder))
    if options.json:
        print_json(found)
    else:
        say(Console(), *describe(found))
    return 0


def status(folder: FederationFolder) -> dict[str, Any]:
    """What the server of a folder is doing: plain values for people and programs."""
    try:
        about: dict[str, Any] = json.loads((folder.state / STATE_NAME).read_text(encoding="utf-8"))
    except OSError:
        return {"server": "never started"}
    try:
        with folder.hold():
            running = False
    except MammoFedError:
        running = True
    run = Path(about["run"])
    found: dict[str, Any] = {"server": "running" if running else "stopped", "address": about["address"], "run": str(run)}
    if (run / "record.json").exists():
        return {**found, "phase": "finished"}
    with contextlib.suppress(OSError, ValueError):
        found |= json.loads((run / PROGRESS_NAME).read_text(encoding="utf-8"))
    with contextlib.suppress(OSError, ValueError):
        found["outcome"] = json.loads((run / OUTCOME_NAME).read_text(encoding="utf-8"))
    return found
