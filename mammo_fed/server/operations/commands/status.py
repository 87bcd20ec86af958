"""flower-server status: what the server of a federation, its sites and its run are doing."""

from __future__ import annotations

import argparse

from rich.console import Console

from mammo_fed.common.command_line import print_json, say
from mammo_fed.server.operations.folder import FederationFolder
from mammo_fed.server.operations.watch.status import server_status, status_lines

__all__ = ["status_command"]


def status_command(options: argparse.Namespace, console: Console) -> int:
    """Say what the server is doing; the exit code, which is 0 where it runs or listens."""
    del console
    found = server_status(FederationFolder.open(options.folder))
    if options.json:
        print_json(found)
    else:
        say(Console(), *status_lines(found))
    # What a container's health check goes by.
    return 0 if found["server"] in ("running", "listening") else 1
