"""A site's reply as bytes for its ledger: safetensors, with the rest as strict JSON in the header."""

from __future__ import annotations

import json
from typing import Final

import numpy as np
from safetensors.numpy import load, save

from mammo_fed.common.serialization import plain
from mammo_fed.federation.protocol.messages import Reply
from mammo_fed.privacy.events import events_from_json, events_to_json

__all__ = ["reply_from_bytes", "reply_to_bytes"]

HEADER_LENGTH: Final = 8
REAL: Final = ("epsilon", "epsilon_account", "budget_left", "patient_epsilon_account", "cap_epsilon", "cap_delta")


def reply_to_bytes(reply: Reply) -> bytes:
    """Bytes from which `reply_from_bytes` rebuilds the reply exactly."""
    fields = {name: getattr(reply, name) for name in Reply.__dataclass_fields__ if name not in ("arrays", "masked", "events")}
    text = json.dumps(plain(fields), sort_keys=True, allow_nan=False)
    return save(
        {"arrays": reply.arrays, "masked": reply.masked}, metadata={"reply": text, "events": events_to_json(reply.events)}
    )


def reply_from_bytes(stored: bytes) -> Reply:
    """Inverse of `reply_to_bytes`."""
    length = int.from_bytes(stored[:HEADER_LENGTH], "little")
    about = json.loads(stored[HEADER_LENGTH : HEADER_LENGTH + length])["__metadata__"]
    fields = json.loads(about["reply"])
    fields |= {name: float(fields[name]) for name in REAL if name in fields}
    arrays = load(stored)
    # Replies that were stored before updates could be masked have no such array.
    masked = arrays.get("masked", np.zeros(0, np.uint64))
    return Reply(**fields, events=events_from_json(about["events"]), arrays=arrays["arrays"], masked=masked)
