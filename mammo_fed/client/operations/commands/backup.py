"""site-client backup and restore: a site in one file, and out of it."""

from __future__ import annotations

import argparse

from rich.console import Console

from mammo_fed.client.backup.restoring import Restored, restore_site
from mammo_fed.client.backup.saving import save_site
from mammo_fed.client.folder import SiteFolder
from mammo_fed.common.command_line import print_json, say, warn

__all__ = ["backup", "restore"]


def backup(options: argparse.Namespace, console: Console) -> int:
    """Write the site's backup, and say what is in it; the exit code."""
    saved = save_site(SiteFolder.open(options.folder), options.file, with_key=not options.without_key)
    key = "this site's private key and its" if saved.holds_key else "its"
    warn(console, f"{saved.file} holds {key} ledger with that one's key: keep it as closed to others as the site's folder")
    if options.json:
        print_json(saved)
        return 0
    end = f"the ledger ends at {saved.ledger_head}" if saved.ledger_head else "the site has no ledger yet"
    say(Console(), f"{saved.file}  sha256 {saved.sha256}", f"{end}; a backup from before the next round is an old one")
    return 0


def restore(options: argparse.Namespace, console: Console) -> int:
    """Restore a site, and say what that means; the exit code."""
    done = restore_site(options.file, options.folder, reported=options.reported, latest=options.latest)
    if options.json:
        print_json(done)
    else:
        say(Console(), *_told(done))
    if done.new_key:
        warn(console, f"the backup held no key: {done.site} has a new one, which the coordinator registers with --replace")
    return 0


def _told(done: Restored) -> tuple[str, ...]:
    parts = ", ".join(done.parts) or "nothing, all of it was there"
    end = f"its ledger ends at {done.ledger_head}" if done.ledger_head else "it has no ledger yet"
    return (
        f"{done.site} is in {done.folder}; from the backup of {done.made}: {parts}",
        f"{end}; check it: site-client check {done.folder}",
    )
