"""What a site says of itself in its replies: public by its policy, or priced by its ledger."""

from __future__ import annotations

import secrets
from typing import Any

from mammo_fed.client.policy import SiteFile
from mammo_fed.data.cohort import Cohort, fingerprint
from mammo_fed.errors import InvalidSetting, LedgerError, PolicyRefused, PrivacyRefused, VersionMismatch, WeightsError
from mammo_fed.federation.protocol.reasons import Reason
from mammo_fed.federation.protocol.replies import Accepted, Refusal, Update
from mammo_fed.federation.protocol.task import Declaration, RoundTask
from mammo_fed.privacy.events import PrivacyEvent
from mammo_fed.privacy.ledger.ledger import Ledger

__all__ = ["accepted", "reason_for", "refusal", "update_without_parameters"]


def accepted(
    file: SiteFile, cohort: Cohort, ledger: Ledger, declaration: Declaration, *, events: tuple[PrivacyEvent, ...]
) -> Accepted:
    """The answer to a declaration that `ledger` has priced: `events` are the whole schedule."""
    policy = file.policy
    return Accepted(
        **_priced(file, ledger, declaration, events, patient_run=None),
        cap_epsilon=policy.max_epsilon,
        cap_delta=policy.delta,
        fingerprint=fingerprint(cohort, key=None) if cohort.public else secrets.token_hex(32),
        malignant_fraction=float(cohort.labels.mean()) if policy.public_class_balance else None,
    )


def update_without_parameters(
    file: SiteFile, ledger: Ledger, declaration: Declaration, task: RoundTask, *, event: PrivacyEvent, content: str
) -> Update:
    """The answer to a round that `ledger` has reserved, but for what training gives; `content` is the task's hash."""
    return Update(
        **_priced(file, ledger, declaration, (event,), patient_run=declaration.run_id),
        round_index=task.round_index,
        task_hash=content,
    )


def refusal(file: SiteFile, reason: Reason) -> Refusal:
    """A reply that says no, with nothing in it that depends on a patient."""
    policy = file.policy
    return Refusal(site=file.site, public_images=policy.public_images, public_patients=policy.public_patients, reason=reason)


def reason_for(error: Exception) -> Reason:
    """The word that crosses the network for an error; its text stays at the site."""
    kinds: tuple[tuple[type[Exception], Reason], ...] = (
        (VersionMismatch, "version"),
        (PolicyRefused, "policy"),
        (LedgerError, "ledger"),
        (PrivacyRefused, "budget"),
        (WeightsError, "weights"),
        (InvalidSetting, "task"),
    )
    return next((word for kind, word in kinds if isinstance(error, kind)), "internal")


def _priced(
    file: SiteFile,
    ledger: Ledger,
    declaration: Declaration,
    events: tuple[PrivacyEvent, ...],
    *,
    patient_run: str | None,
) -> dict[str, Any]:
    """The fields of a priced reply; in a patient's figure `patient_run` counts whole."""
    policy, accountant, delta = file.policy, declaration.accountant, declaration.delta
    return {
        "site": file.site,
        "public_images": policy.public_images,
        "public_patients": policy.public_patients,
        "run_id": declaration.run_id,
        "events": events,
        "epsilon": ledger.epsilon(run_id=declaration.run_id, accountant=accountant, delta=delta),
        "epsilon_account": ledger.epsilon(account=policy.account, accountant=accountant, delta=delta),
        "patient_epsilon_account": ledger.patient_epsilon(run_id=patient_run, account=policy.account, delta=delta),
        "budget_left": ledger.budget_left(account=policy.account),
        "ledger_head": ledger.head(),
    }
