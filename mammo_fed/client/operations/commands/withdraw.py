"""site-client withdraw: patients who withdrew their consent take no part from now on."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Final

from rich.console import Console

from mammo_fed.client.backup.outside import remember_outside
from mammo_fed.client.folder import SiteFolder
from mammo_fed.client.operations.withdrawal import Withdrawal, read_patients, site_salt, withdraw_patients
from mammo_fed.client.policy import SiteFile
from mammo_fed.common.command_line import print_json, say, warn

__all__ = ["withdraw"]

# Lines that are named one by one; further ones are counted.
MOST_LINES: Final = 20


def withdraw(options: argparse.Namespace, console: Console) -> int:
    """Note who withdrew in the site's ledger, and say what that changes and what it does not; the exit code."""
    folder = SiteFolder.open(options.folder)
    patients = read_patients(options.patients)
    pseudonyms = site_salt(folder.file, options.salt)
    done = withdraw_patients(folder.file, patients, pseudonyms=pseudonyms, dry_run=options.dry_run)
    remember_outside(folder.file)
    _warn_of_unknown(console, folder.file, done)
    if options.json:
        print_json(done)
    else:
        say(Console(), *_told(folder.file, done))
    return 0


def _warn_of_unknown(console: Console, file: SiteFile, done: Withdrawal) -> None:
    if done.cohort_fault:
        warn(console, f"the cohort cannot be read, so nobody was looked for in it: {done.cohort_fault}")
    for line in done.unknown_lines[:MOST_LINES]:
        warn(console, f"line {line}: neither the cohort nor the ledger knows this patient; check the spelling")
    if (more := len(done.unknown_lines) - MOST_LINES) > 0:
        warn(console, f"and {more} further lines; --json names all of them")
    if done.unknown_lines and file.data.source == "cohort" and not done.salt:
        warn(
            console,
            "the cohort holds pseudonyms, and the salt that makes them was not found: the hospital's identifiers match nobody; "
            "give --salt FILE, or the pseudonyms themselves",
        )


def _told(file: SiteFile, done: Withdrawal) -> tuple[str, ...]:
    """What happened, what it changes and what stays, for the site's people."""
    where = "" if done.in_cohort is None else f"{done.in_cohort} in the cohort, "
    counted = f"{_patients(done.named)} in the file: {where}{done.in_ledger} known to the ledger, {done.new} new to withdraw."
    if done.dry_run:
        return (counted, "Nothing was written (--dry-run).")
    data = f"data.root = {file.data.root}" if file.data.root else f"data.source = {file.data.source}"
    return (
        counted,
        f"Noted in {file.site}'s ledger, for good; the last withdrawal is of {done.at}.",
        "From now on no round and no training of a generator at this site uses them, in runs that go on and in later ones; a "
        "site-client that runs need not be started again. Records of runs say since which date, and never who or how many.",
        "What was charged for them stays charged. No model or synthetic set that was made with them is undone. What epsilon "
        "bounds about it: whatever was released while they took part is at most exp(epsilon) times as likely as if they had "
        "never taken part, apart from delta.",
        "Still on this machine, and for you to remove if it has to go:",
        f"  images and table of the cohort ({data})",
        f"  descriptors of their images: rm -r {Path(file.cache)}   (made again without them when they are needed)",
        "  checkpoints of generators that were trained here",
    )


def _patients(count: int) -> str:
    return "1 patient" if count == 1 else f"{count} patients"
