"""A site's reply to a round as bytes for its ledger: safetensors, with the rest as strict JSON in the header."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from safetensors.numpy import load, save

from mammo_fed.common.serialization import plain
from mammo_fed.federation.protocol.replies import Refusal, Update
from mammo_fed.privacy.events import events_from_json, events_to_json

__all__ = ["reply_from_bytes", "reply_to_bytes"]

HEADER_LENGTH: Final = 8
ARRAYS: Final = ("parameters", "masked")
REAL: Final = ("epsilon", "epsilon_account", "budget_left", "patient_epsilon_account")
# Names in replies that were stored under version 1 of the protocol, which had one kind of reply for all answers.
RENAMED: Final[Mapping[str, str]] = {"weight": "public_images", "patients": "public_patients"}
OF_ACCEPTED: Final = ("malignant_fraction", "fingerprint", "cap_epsilon", "cap_delta")


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
