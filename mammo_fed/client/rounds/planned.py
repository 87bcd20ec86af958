"""Whether this site would take a run: asked before it is declared, charged nothing, and written nowhere in the ledger.

The answer depends on the policy, on declared numbers, and on what the account of the policy's name has been charged: a
declaration tells as much. It looks at no patient. How often it is given is limited, and `allow_plans = false` gives none.
"""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path
from typing import Final

from mammo_fed.client.charging import LedgerMemory, site_ledger
from mammo_fed.client.policy import SiteFile, check_declaration
from mammo_fed.client.rounds.replies import reason_for
from mammo_fed.common.private_files import exclusive, write_private
from mammo_fed.errors import PolicyRefused, PrivacyRefused, VersionMismatch
from mammo_fed.federation.protocol.plan_messages import PlanAnswer
from mammo_fed.federation.protocol.site_schedule import plan_for_site
from mammo_fed.federation.protocol.task import Declaration
from mammo_fed.privacy.accounting.filters import as_steps, open_filter
from mammo_fed.privacy.events import PrivacyEvent, full_batch
from mammo_fed.privacy.ledger.headroom import after_run, told_with_fit
from mammo_fed.privacy.ledger.rules import Account, Budget
from mammo_fed.privacy.names import FilterKind

__all__ = ["MOST_A_DAY", "check_planned", "plan_refused"]

logger = logging.getLogger(__name__)

MOST_A_DAY: Final = 24
DAY_SECONDS: Final = 86_400.0
ASKED_NAME: Final = "plans.json"


def check_planned(file: SiteFile, declaration: Declaration, *, public: bool) -> None:
    """Raise what the declaration of this run would raise by the site's policy and ledger; nothing is written in the ledger.

    Args:
      file: of the site.
      declaration: of the run that is planned.
      public: whether the site's cohort is declared public.

    Raises:
      PolicyRefused: If the policy forbids the run, or plans, or was asked too often today.
      PrivacyRefused: If the budget would be passed; `fits` says what would not.
      LedgerError: If the ledger is not the one that the site remembers.
    """
    policy = file.policy
    if not policy.allow_plans:
        raise PolicyRefused("allow_plans is false: this site answers declarations only")
    _count(Path(file.folder) / ASKED_NAME)
    check_declaration(declaration, policy, public=public)
    schedule = plan_for_site(
        declaration, public_images=policy.public_images, max_images_per_patient=policy.max_images_per_patient
    ).events()
    usual: FilterKind = "gdp" if full_batch(declaration.mechanism) else "declared"
    if not (Path(file.ledger).is_dir() and any(Path(file.ledger).iterdir())):
        _check_first(file, schedule, usual)
        return
    with site_ledger(file, usual=usual) as ledger:
        ledger.check_declarable(schedule=schedule, account=policy.account)


def plan_refused(file: SiteFile, error: Exception) -> PlanAnswer:
    """The answer of a site that would not take the run: one word, and what would fit only where the account is published."""
    fits = error.fits if isinstance(error, PrivacyRefused) and file.policy.public_account else None
    # Of another version nothing was read, and nothing but the name is said.
    return PlanAnswer(site=file.site, reason=reason_for(error), fits=None if isinstance(error, VersionMismatch) else fits)


def _check_first(file: SiteFile, schedule: tuple[PrivacyEvent, ...], usual: FilterKind) -> None:
    """A site without a ledger makes none for a question."""
    policy = file.policy
    LedgerMemory(Path(file.folder) / "ledger-head").check_exists(Path(file.ledger))
    budget = Budget(max_epsilon=policy.max_epsilon, delta=policy.delta)
    kind = usual if policy.filter == "auto" else policy.filter
    opened = open_filter(kind, max_epsilon=budget.max_epsilon, delta=budget.delta)
    account = Account(names=(policy.account,), privacy_filter=opened, unit=schedule[0].unit, delta=budget.delta)
    steps = as_steps(schedule)
    try:
        after_run(account, steps, budget=budget)
    except PolicyRefused:
        raise
    except PrivacyRefused as error:
        raise told_with_fit(error, account, steps, budget=budget) from error


def _count(path: Path) -> None:
    """Note one more question, durably; PolicyRefused where there were enough in the last day."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with exclusive(path.with_name(f".{path.name}.lock")):
        now = time.time()
        asked = [moment for moment in _asked(path) if now - DAY_SECONDS < moment <= now]
        if len(asked) >= MOST_A_DAY:
            raise PolicyRefused(f"plans are answered {MOST_A_DAY} times in 24 hours, and were asked so often already")
        write_private(path, json.dumps([*asked, now]).encode())


def _asked(path: Path) -> list[float]:
    try:
        found = json.loads(path.read_text(encoding="ascii"))
        return [float(moment) for moment in found]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError):
        logger.warning("%s cannot be read; it is begun anew", path.name)
        return []
