"""A site's replies: what they say is public by its policy or priced by its ledger, and the ledger stores them as bytes.

The bytes are safetensors, with everything but the arrays as strict JSON in the header.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from safetensors.numpy import load, save

from mammo_fed.client.policy import SiteFile
from mammo_fed.common.serialization import plain
from mammo_fed.data.cohort import Cohort, fingerprint
from mammo_fed.errors import InvalidSetting, LedgerError, PolicyRefused, PrivacyRefused, VersionMismatch, WeightsError
from mammo_fed.federation.protocol.reasons import Reason
from mammo_fed.federation.protocol.replies import Accepted, Refusal, Update
from mammo_fed.federation.protocol.task import Declaration, RoundTask
from mammo_fed.privacy.events import PrivacyEvent, events_from_json, events_to_json
from mammo_fed.privacy.ledger.ledger import Ledger

__all__ = ["accepted", "reason_for", "refusal", "reply_from_bytes", "reply_to_bytes", "update_without_parameters"]

HEADER_LENGTH: Final = 8
ARRAYS: Final = ("parameters", "masked")
REAL: Final = ("epsilon", "epsilon_account", "budget_left", "patient_epsilon_account")
# Names in replies that were stored under version 1 of the protocol, which had one kind of reply for all answers.
RENAMED: Final[Mapping[str, str]] = {"weight": "public_images", "patients": "public_patients"}
OF_ACCEPTED: Final = ("malignant_fraction", "fingerprint", "cap_epsilon", "cap_delta")


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
        parameters=np.zeros(0, np.float32),
        masked=np.zeros(0, np.uint64),
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


def reply_to_bytes(reply: Update | Refusal) -> bytes:
    """Bytes from which `reply_from_bytes` rebuilds the reply exactly."""
    if isinstance(reply, Refusal):
        values = {"site": reply.site, "public_images": reply.public_images, "public_patients": reply.public_patients}
        return save({}, metadata={"refusal": _text({**values, "reason": reply.reason})})
    fields = {name: value for name, value in vars(reply).items() if name not in (*ARRAYS, "events")}
    metadata = {"update": _text(fields), "events": events_to_json(reply.events)}
    return save({name: getattr(reply, name) for name in ARRAYS}, metadata=metadata)


def reply_from_bytes(stored: bytes) -> Update | Refusal:
    """Inverse of `reply_to_bytes`; reads what version 1 of the protocol stored, too."""
    length = int.from_bytes(stored[:HEADER_LENGTH], "little")
    about = json.loads(stored[HEADER_LENGTH : HEADER_LENGTH + length])["__metadata__"]
    if "reply" in about:
        return _of_version_1(stored, about)
    if "refusal" in about:
        return Refusal(**json.loads(about["refusal"]))
    return _update(json.loads(about["update"]), about["events"], **load(stored))


def _of_version_1(stored: bytes, about: Mapping[str, str]) -> Update | Refusal:
    fields = {RENAMED.get(name, name): value for name, value in json.loads(about["reply"]).items()}
    reason, arrays = fields.pop("reason"), load(stored)
    if reason:
        return Refusal(reason=reason, **{name: fields[name] for name in ("site", "public_images", "public_patients")})
    fields = {name: value for name, value in fields.items() if name not in OF_ACCEPTED}
    # Replies that were stored before updates could be masked have no such array, and earlier ones fewer figures.
    masked = arrays.get("masked", np.zeros(0, np.uint64))
    known = {"patient_epsilon_account": "inf", "ledger_head": ""} | fields
    return _update(known, about["events"], parameters=arrays["arrays"], masked=masked)


def _update(fields: Mapping[str, Any], events: str, **arrays: Any) -> Update:
    figures = {name: float(fields[name]) for name in REAL}
    return Update(**{**fields, **figures}, events=events_from_json(events), **arrays)


def _text(fields: Mapping[str, Any]) -> str:
    return json.dumps(plain(fields), sort_keys=True, allow_nan=False)
