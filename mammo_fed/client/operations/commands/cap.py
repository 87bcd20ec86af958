"""site-client raise-cap: the one way to a larger cap than patients were promised, and it leaves an entry."""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console

from mammo_fed.client.backup.outside import remember_outside
from mammo_fed.client.charging import LedgerMemory, site_ledger
from mammo_fed.client.folder import SiteFolder
from mammo_fed.client.site_file_edit import set_max_epsilon
from mammo_fed.common.command_line import print_json, say
from mammo_fed.errors import InvalidSetting
from mammo_fed.privacy.ledger.cap import Cap, CapRaise

__all__ = ["raise_cap"]


def raise_cap(options: argparse.Namespace, console: Console) -> int:
    """Raise the cap in the site's ledger, then in its file; the exit code."""
    folder = SiteFolder.open(options.folder)
    _check(folder, options.max_epsilon)
    policy = folder.file.policy
    # The ledger's own lock is enough: a site that runs meanwhile meets the entry at its next declaration or round.
    with site_ledger(folder.file, usual="gdp") as ledger:
        raises = ledger.raise_cap(max_epsilon=options.max_epsilon, account=options.account)
        in_force = ledger.cap_in_force(account=policy.account)
    remember_outside(folder.file)
    allowed = in_force is None or in_force[1].max_epsilon >= options.max_epsilon
    written = allowed and policy.max_epsilon < options.max_epsilon
    if written:
        set_max_epsilon(folder.site_file, options.max_epsilon)
    now = options.max_epsilon if written else policy.max_epsilon
    if options.json:
        print_json({"site": folder.file.site, "raised": raises, "max_epsilon": now, "in_force": in_force and in_force[1]})
        return 0
    say(console, *_words(folder, raises, in_force, now=now))
    return 0


def _check(folder: SiteFolder, max_epsilon: float) -> None:
    if not max_epsilon > 0 or (math.isinf(max_epsilon) and not folder.file.data.public):
        raise InvalidSetting(
            f"--max-epsilon={max_epsilon} must be a number above 0; inf is for cohorts that are declared public (data.public)"
        )
    ledger = Path(folder.file.ledger)
    LedgerMemory(folder.private / "ledger-head").check_exists(ledger)
    if not (ledger.is_dir() and any(ledger.iterdir())):
        raise InvalidSetting(
            f"--max-epsilon={max_epsilon:g} raises nothing: the ledger has no run yet, and nobody was promised a cap; set "
            f"max_epsilon in {folder.site_file}"
        )


def _words(
    folder: SiteFolder, raises: Mapping[str, CapRaise], in_force: tuple[str, Cap] | None, *, now: float
) -> tuple[str, ...]:
    """What it means, for who decided it and for who has to tell the patients."""
    lines = [
        f"account {name}: its patients were promised at most epsilon {step.from_epsilon:g} over all runs; from {step.at} on it "
        f"is {step.to_epsilon:g}"
        for name, step in raises.items()
    ]
    lines += [
        "The entry stays in the ledger, and every later record says when and from what the cap was raised. What older records",
        "say of all runs held until now and holds no longer: who told patients the old cap has to tell them the new one.",
    ]
    account = folder.file.policy.account
    if in_force is not None and in_force[1].max_epsilon < now:
        name, cap = in_force
        lines.append(
            f"account {account} shares patients with account {name}, promised {cap.max_epsilon:g} since {cap.since}: runs are "
            f"refused until max_epsilon in {folder.site_file} is no more than that, or it is raised too"
        )
    lines.append(
        f"max_epsilon is {now:g} in {folder.site_file}. A site-client that runs has read the file before and keeps its cap "
        "until it is started again; a run that it accepts under a smaller cap promises that one again."
    )
    return tuple(lines)
