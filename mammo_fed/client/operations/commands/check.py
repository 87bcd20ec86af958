"""site-client check: is the site ready to take part?"""

from __future__ import annotations

import argparse

from rich.console import Console

from mammo_fed.client.folder import SiteFolder
from mammo_fed.client.operations.checks import check_site
from mammo_fed.common.command_line import print_json, say

__all__ = ["check"]


def check(options: argparse.Namespace, console: Console) -> int:
    """Say what stands in the way of taking part; the exit code, which is 2 where something does."""
    del console
    found = check_site(SiteFolder.open(options.folder))
    ready = all(one.ok for one in found)
    if options.json:
        print_json({"ready": ready, "checks": found})
    else:
        say(Console(), *(f"{'ok    ' if one.ok else 'FAILED'} {one.name + ':':<10} {one.message}" for one in found))
    return 0 if ready else 2
