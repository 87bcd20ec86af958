"""site-client public-key and rotate-key: by what the coordinator knows the site."""

from __future__ import annotations

import argparse
import sys

from rich.console import Console

from mammo_fed.client.folder import SiteFolder
from mammo_fed.common.command_line import print_json, say

__all__ = ["about", "public_key", "rotate_key"]


def public_key(options: argparse.Namespace, console: Console) -> int:
    """Print the public key; the exit code."""
    del console
    folder = SiteFolder.open(options.folder)
    key = folder.public_key()
    if options.json:
        print_json(about(folder))
    elif options.fingerprint:
        sys.stdout.write(f"{key.fingerprint}\n")
    else:
        sys.stdout.write(key.file_content(folder.file.site).decode())
    return 0


def rotate_key(options: argparse.Namespace, console: Console) -> int:
    """Make a new key pair, or end or undo what an earlier call began; the exit code."""
    folder = SiteFolder.open(options.folder)
    if options.done or options.undo:
        key = folder.end_rotation() if options.done else folder.undo_rotation()
    else:
        key = folder.rotate_key()
    if options.json:
        print_json(about(folder))
        return 0
    if options.done or options.undo:
        say(console, f"the key in use is {key.fingerprint}; no other is kept")
        return 0
    say(
        console,
        f"the new key is {key.fingerprint}",
        f"  1. send {folder.public_key_file} to the coordinator, who gives it to flower-server register --replace",
        "  2. a site-client that runs keeps the old key until then, and then takes the new one",
        f"  3. afterwards: site-client rotate-key {folder.path} --done   (or --undo to go back before)",
    )
    return 0


def about(folder: SiteFolder) -> dict[str, str]:
    """What the coordinator may know of a site."""
    key = folder.public_key()
    return {
        "site": folder.file.site,
        "folder": str(folder.path),
        "public_key_file": str(folder.public_key_file),
        "public_key": key.line,
        "fingerprint": key.fingerprint,
    }
