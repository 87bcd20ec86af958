"""site-client run and status: the site's processes."""

from __future__ import annotations

import argparse
from typing import Final

from rich.console import Console

from mammo_fed.client.folder import SiteFolder
from mammo_fed.client.operations import supervisor
from mammo_fed.client.operations.figures import site_figures, status_lines
from mammo_fed.common.command_line import print_json, say, warn
from mammo_fed.common.metrics_page import metrics_page
from mammo_fed.errors import InvalidSetting

__all__ = ["run", "status"]

# Where the executor of a site that does well may be: it is started when the server answers.
WELL: Final = ("running", "waiting")


def run(options: argparse.Namespace, console: Console) -> int:
    """Take part in runs until stopped; the exit code.

    Raises:
      InvalidSetting: If --insecure is given for a cohort that is not public.
    """
    folder = SiteFolder.open(options.folder)
    if options.insecure:
        if not folder.file.data.public:
            raise InvalidSetting(
                "--insecure must not be given for a cohort that is not public (data.public=false): anybody on the way could "
                "read and change messages; leave it out"
            )
        warn(console, "--insecure: no encryption, no proof of who the server is; for trials with public data only")
    with folder.hold(), metrics_page(options.metrics_port, lambda: site_figures(folder)):
        return supervisor.serve(folder, insecure=options.insecure, console=console)


def status(options: argparse.Namespace, console: Console) -> int:
    """Say what the site is doing; the exit code, which is 0 where its processes run."""
    del console
    found = supervisor.status(SiteFolder.open(options.folder))
    if options.json:
        print_json(found)
    else:
        say(Console(), *status_lines(found))
    # What a container's health check goes by; the server may be away between runs.
    well = all(found.get(process) == "running" for process in ("site_client", "supernode")) and found.get("executor") in WELL
    return 0 if well else 1
