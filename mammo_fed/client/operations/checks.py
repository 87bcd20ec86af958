"""Is this site ready? Everything that a run will need, looked at one after the other, each with a remedy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mammo_fed.client.charging import LedgerMemory, withdrawn_at_site
from mammo_fed.client.folder import SiteFolder
from mammo_fed.client.operations.server_line import try_line
from mammo_fed.client.policy import SiteFile
from mammo_fed.data.cache import ArrayCache
from mammo_fed.data.cohort import Cohort
from mammo_fed.data.preflight import table_findings
from mammo_fed.data.run_cohorts import limit_images_per_patient, load_pool
from mammo_fed.errors import InvalidSetting, LedgerError, MammoFedError
from mammo_fed.federation.identity.certificates import read_authority
from mammo_fed.privacy.ledger.ledger import Budget, Ledger
from mammo_fed.privacy.ledger.report import verify_ledger
from mammo_fed.privacy.ledger.rules import check_promised
from mammo_fed.privacy.patient_identity import count_patients
from mammo_fed.reporting.formatting import budget_text
from mammo_fed.settings.checks import delta_warning

__all__ = ["Check", "check_site"]

TIMEOUT_SECONDS: Final = 10.0
# What two decimals show.
LEAST_SHOWN: Final = 0.01


@dataclass(frozen=True, kw_only=True)
class Check:
    """One thing that was looked at.

    Attributes:
      name: what.
      ok: whether it is as it must be.
      message: what was found, or what is wrong and its remedy; for the site's own people.
    """

    name: str
    ok: bool
    message: str


def check_site(folder: SiteFolder) -> tuple[Check, ...]:
    """Look at the key, the cohort, the ledger, the authority's certificate and the server; changes nothing."""
    looks: tuple[tuple[str, Callable[[SiteFolder], str]], ...] = (
        ("key", _key),
        ("cohort", _cohort),
        ("ledger", _ledger),
        ("authority", _authority),
        ("server", _server),
    )
    return tuple(_look(name, look, folder) for name, look in looks)


def _look(name: str, look: Callable[[SiteFolder], str], folder: SiteFolder) -> Check:
    try:
        return Check(name=name, ok=True, message=look(folder))
    except MammoFedError as error:
        return Check(name=name, ok=False, message=str(error))


def _key(folder: SiteFolder) -> str:
    public = folder.public_key()
    if not folder.public_key_file.is_file() or public.line not in folder.public_key_file.read_text(encoding="utf-8"):
        raise InvalidSetting(
            f"{folder.public_key_file} must be the public half of {folder.key}; write it again: "
            f"site-client public-key {folder.path} > {folder.public_key_file}"
        )
    rotating = "; a rotation is not over, see rotate-key --done" if folder.old_key.exists() else ""
    return f"{public.fingerprint}{rotating}"


def _cohort(folder: SiteFolder) -> str:
    file, policy = folder.file, folder.file.policy
    pool = load_pool(file.data, file.share, cache=ArrayCache(Path(file.cache)))
    if not 0 <= file.index < len(pool.rows):
        raise InvalidSetting(f"index={file.index} must be from 0 to {len(pool.rows) - 1}; check share in {folder.site_file}")
    rows = limit_images_per_patient(pool.cohort, pool.rows[file.index], most=policy.max_images_per_patient)
    patients = count_patients(pool.cohort.patients[rows])
    withdrawn = _withdrawn(file, pool.cohort.patients[rows].tolist())
    if patients - withdrawn < policy.min_patients:
        raise InvalidSetting(
            f"the cohort has {patients - withdrawn} patients who take part, and min_patients={policy.min_patients}: every "
            f"run is refused; check [policy] in {folder.site_file}"
        )
    left_out = f", of whom {withdrawn} have withdrawn" if withdrawn else ""
    said = delta_warning(delta=policy.delta, patients=policy.public_patients, name="delta")
    return (
        f"{patients} patients{left_out}, {len(rows)} images; declared public: {policy.public_patients} patients, "
        f"{policy.public_images} images{_noticed(folder, pool.cohort)}" + (f"; WARNING: {said}" if said else "")
    )


def _withdrawn(file: SiteFile, patients: list[str]) -> int:
    """How many of the cohort have withdrawn; 0 where the ledger cannot say, which the look at the ledger reports."""
    try:
        return len(withdrawn_at_site(file, patients).patients)
    except LedgerError:
        return 0


def _noticed(folder: SiteFolder, cohort: Cohort) -> str:
    """What a table's identifiers and pixels say of who its patients are; a cohort folder's own preflight says it of those."""
    if folder.file.data.source != "csv":
        return ""
    findings = [finding for finding in table_findings(cohort) if finding.level != "ok"]
    return "".join(f"; {finding.level}: {finding.message} ({finding.name})" for finding in findings)


def _ledger(folder: SiteFolder) -> str:
    ledger, memory = Path(folder.file.ledger), LedgerMemory(folder.private / "ledger-head")
    memory.check_exists(ledger)
    if not (ledger.is_dir() and any(ledger.iterdir())):
        return "none yet; the first run opens one"
    verify_ledger(ledger)
    policy = folder.file.policy
    budget = Budget(max_epsilon=policy.max_epsilon, delta=policy.delta)
    with Ledger.open(ledger, site=folder.file.site, budget=budget, filter="gdp", adopt=True) as opened:
        memory.check_holds(opened)
        left, promised = opened.budget_left(account=policy.account), opened.cap_in_force(account=policy.account)
    if promised is not None:
        check_promised(dict([promised]), max_epsilon=policy.max_epsilon, delta=policy.delta)
    since = f", promised since {promised[1].since}" if promised else ""
    fits = f"a further run of epsilon {budget_text(left)}" if left >= LEAST_SHOWN else "no further run"
    return f"verified; {fits} fits under {policy.max_epsilon:g} in account {policy.account}{since}"


def _authority(folder: SiteFolder) -> str:
    found = read_authority(folder.authority)
    return f"valid for {found.days_left():.0f} days"


def _server(folder: SiteFolder) -> str:
    return try_line(folder, seconds=TIMEOUT_SECONDS)
