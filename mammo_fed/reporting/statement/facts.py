"""The facts of a statement, from a record or from a site's ledger: nothing in it is written by hand."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from mammo_fed.common.serialization import dumps
from mammo_fed.errors import InvalidSetting
from mammo_fed.privacy.events import PrivacyEvent, Unit
from mammo_fed.privacy.ledger.cap import CapRaise
from mammo_fed.privacy.ledger.report import AccountSummary, LedgerEntry, LedgerSummary
from mammo_fed.reporting.record.record import Record
from mammo_fed.reporting.record.sections import SitePrivacy

__all__ = ["Facts", "Promise", "facts_of_ledger", "facts_of_record"]

# "bounded": a figure is promised. Otherwise nothing is, and why.
Promise = Literal["bounded", "nothing released", "injected", "no noise", "floating point", "no bound"]
ON_GRID: Final = "on a grid"


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a statement says of one site's patients.

    Attributes:
      source: a run's "record", or a site's "ledger".
      site, run_id: names; the run is "" for a ledger.
      promise: whether a figure is promised.
      all_runs: whether the promise is about all runs of the site's account, by its cap; else about this run alone.
      unit: whose data the promise is about; where it is the image, `patient_epsilon` is a patient's figure, if there is one.
      epsilon, delta: promised; infinite where nothing is.
      patient_epsilon: of a patient with as many images as were allowed; infinite where no bound is promised.
      spent: epsilon of what was released, this run's or (for a ledger) the account's.
      max_images: largest number of images of a patient.
      mechanism, model, rounds: what was done; empty or 0 where it is not known.
      started, finished: ISO 8601; of the run, or of the ledger's first and last entry.
      aggregation, min_survivors, colluders, other_site, all_colluding: the threat model of shared noise, and this run's epsilon
        against those who know more.
      cap, cap_since, raises: the site's cap, since when it holds, and raises as (time, from, to).
      withdrawn_at: date of the last withdrawal; "" for none.
      not_covered: sentences of the record.
      software, record_sha256, config_sha256, ledger_head: by which it can be checked.
    """

    source: Literal["record", "ledger"]
    site: str
    run_id: str
    promise: Promise
    all_runs: bool
    unit: Unit
    epsilon: float
    delta: float
    patient_epsilon: float
    spent: float
    max_images: int
    mechanism: str
    model: str
    rounds: int
    started: str
    finished: str
    aggregation: str
    min_survivors: int
    colluders: int
    other_site: float
    all_colluding: float
    cap: float
    cap_since: str
    raises: tuple[tuple[str, float, float], ...]
    withdrawn_at: str
    not_covered: tuple[str, ...]
    software: str
    record_sha256: str
    config_sha256: str
    ledger_head: str


def facts_of_record(record: Record, *, site: str | None = None, sha256: str | None = None) -> tuple[Facts, ...]:
    """Facts for each site of a record, or for the one that is named.

    Args:
      record: of a finished run.
      site: its name.
      sha256: of record.json as it lies on the disk; None takes that of the file as this version writes it.

    Raises:
      InvalidSetting: If the record has no such site.
    """
    names = [each.site for each in record.privacy.sites]
    if site is not None and site not in names:
        raise InvalidSetting(f"--patient-site={site} must be a site of the run: {', '.join(names)}")
    digest = sha256 or hashlib.sha256(dumps(record.as_dict()).encode()).hexdigest()
    return tuple(_of_site(record, each, digest) for each in record.privacy.sites if site in (None, each.site))


def facts_of_ledger(summary: LedgerSummary, entries: Sequence[LedgerEntry]) -> tuple[Facts, ...]:
    """Facts for each account of a verified ledger; caps and raises as its entries note them."""
    return tuple(_of_account(summary, account, entries) for account in summary.accounts)


def _of_site(record: Record, site: SitePrivacy, digest: str) -> Facts:
    privacy = record.privacy
    all_runs = privacy.ledger == "site"
    promise = _promise(record, site)
    bounded = promise == "bounded"
    epsilon = max(site.cap_epsilon, site.epsilon) if all_runs else site.epsilon
    patient = epsilon if privacy.unit == "patient" else math.inf if all_runs else site.patient_epsilon
    model = record.model
    return Facts(
        source="record",
        site=site.site,
        run_id=record.run_id,
        promise=promise,
        all_runs=all_runs,
        unit=privacy.unit,
        epsilon=epsilon if bounded else math.inf,
        delta=site.cap_delta if all_runs and 0 < site.cap_delta < 1 else privacy.delta,
        patient_epsilon=patient if bounded else math.inf,
        spent=site.epsilon,
        max_images=max((event.max_images_per_patient for event in site.events), default=0),
        mechanism=site.mechanism,
        model=f"{model.backbone}, {model.scope}",
        rounds=len(site.epsilon_after_round),
        started=record.started,
        finished=record.finished,
        aggregation=privacy.aggregation,
        min_survivors=privacy.min_survivors,
        colluders=privacy.colluders,
        other_site=site.epsilon_other_site,
        all_colluding=site.epsilon_all_colluding,
        cap=site.cap_epsilon,
        cap_since=site.cap_since,
        raises=_raises(site.cap_raised),
        withdrawn_at=site.withdrawn_at,
        not_covered=privacy.not_covered,
        software=record.versions.get("mammo-fed", ""),
        record_sha256=digest,
        config_sha256=record.config_hash,
        ledger_head=site.ledger_head,
    )


def _promise(record: Record, site: SitePrivacy) -> Promise:
    privacy = record.privacy
    if site.epsilon == 0:
        return "nothing released"
    if privacy.noise == "injected":
        return "injected"
    if privacy.noise == "none" or math.isinf(site.epsilon):
        return "no noise"
    if ON_GRID not in site.mechanism and privacy.aggregation != "shared_noise":
        return "floating point"
    return "no bound" if privacy.ledger == "site" and math.isinf(site.cap_epsilon) else "bounded"


def _raises(found: Sequence[CapRaise]) -> tuple[tuple[str, float, float], ...]:
    return tuple((each.at, each.from_epsilon, each.to_epsilon) for each in found)


def _of_account(summary: LedgerSummary, account: AccountSummary, entries: Sequence[LedgerEntry]) -> Facts:
    runs = {run.run_id for run in account.runs}
    # Under several names the smallest cap holds.
    held = min(account.caps.values(), key=lambda each: each.max_epsilon, default=None)
    cap = math.inf if held is None else held.max_epsilon
    delta = account.opened_delta or summary.delta
    events = [
        PrivacyEvent.from_dict(event)
        for entry in entries
        if entry.kind == "reserved" and entry.details["run"] in runs
        for event in entry.details["events"]
    ]
    promise: Promise = "bounded"
    if not events:
        promise = "nothing released"
    elif math.isinf(account.epsilon):
        promise = "no noise"
    elif math.isinf(cap):
        promise = "no bound"
    bounded = promise == "bounded"
    return Facts(
        source="ledger",
        site=summary.site,
        run_id=", ".join(account.names),
        promise=promise,
        all_runs=True,
        unit=account.unit,
        epsilon=max(cap, account.epsilon) if bounded else math.inf,
        delta=delta,
        patient_epsilon=max(cap, account.epsilon) if bounded and account.unit == "patient" else math.inf,
        spent=account.epsilon,
        max_images=max((event.max_images_per_patient for event in events), default=0),
        mechanism="",
        model="",
        rounds=sum(run.reserved_rounds for run in account.runs),
        started=entries[0].at,
        finished=entries[-1].at,
        aggregation="shared_noise" if any(event.noise_shares > 1 for event in events) else "plain",
        min_survivors=1,
        colluders=0,
        other_site=math.inf,
        all_colluding=math.inf,
        cap=cap,
        cap_since="" if held is None else held.since,
        raises=_raises(() if held is None else held.raised),
        withdrawn_at=max((entry.at for entry in entries if entry.kind == "withdrawn"), default="")[:10],
        not_covered=(),
        software="",
        record_sha256="",
        config_sha256="",
        ledger_head=summary.head,
    )
