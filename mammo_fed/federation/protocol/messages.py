"""What travels: one flat float32 array per message, a task, and the privacy events that a reply has spent."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Final, Literal, get_args

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from numpy.typing import NDArray

from mammo_fed.errors import DataError
from mammo_fed.federation.protocol.task import Declaration, RoundTask
from mammo_fed.privacy.events import PrivacyEvent, events_from_json, events_to_json

__all__ = [
    "ARRAYS",
    "CONFIG",
    "METRICS",
    "PRIVACY",
    "WEIGHT",
    "Reason",
    "Reply",
    "flat_array",
    "pack_array",
    "pack_declaration",
    "pack_reply",
    "read_declaration",
    "read_reply",
    "read_task",
    "reason_of",
    "task_config",
]

ARRAYS: Final = "arrays"
CONFIG: Final = "config"
PRIVACY: Final = "privacy"
MASKED: Final = "masked"
METRICS: Final = "metrics"
# Flower's own key for a site's weight in an average; here it carries the public number of images.
WEIGHT: Final = "num-examples"
NAME: Final = "flat"

SITE_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
LEDGER_HEAD: Final = re.compile(r"([0-9]{1,18}:[0-9a-f]{64})?")

# The only words about a failure that cross the network: none of them depends on a patient's data.
Reason = Literal["", "budget", "policy", "ledger", "task", "weights", "internal"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Reply:
    """What a site sends back.

    Attributes:
      site: its name.
      run_id, round_index, task_hash: which task it answers; round_index -1 answers the declaration.
      events: what this reply has spent; for a declaration, the whole schedule that the site has priced.
      epsilon: the site's own cumulative figure for this run.
      epsilon_account: for everything its ledger knows of these patients.
      budget_left: of the site's own maximum; infinite where there is none.
      reason: empty, or why the site refused.
      weight: public number of images.
      patients: public number of patients.
      arrays: float32, flat; empty where the site refused or answers a declaration.
      malignant_fraction: of the site's labels where its policy declares it public, else None.
      fingerprint: content hash of a public cohort, or a random identifier.
      patient_epsilon_account: as `epsilon_account`, for a patient with the largest allowed number of images, by PLD.
      cap_epsilon, cap_delta: the most that the site's policy lets all runs on these patients cost; infinite where unbounded.
      ledger_head: where the site's ledger stood, position and seal: proof against a ledger put back from an older copy.
      masked: uint64, flat; the update under its masks where only sums are opened, `arrays` being empty then.
    """

    site: str
    run_id: str
    round_index: int
    task_hash: str
    events: tuple[PrivacyEvent, ...]
    epsilon: float
    epsilon_account: float
    budget_left: float
    reason: Reason
    weight: int
    patients: int
    arrays: NDArray[np.float32]
    malignant_fraction: float | None = None
    fingerprint: str = ""
    patient_epsilon_account: float = 0.0
    cap_epsilon: float = math.inf
    cap_delta: float = 0.0
    ledger_head: str = ""
    masked: NDArray[np.uint64] = field(default_factory=lambda: np.zeros(0, np.uint64))


def pack_array(flat: NDArray[np.float32]) -> ArrayRecord:
    """One flat float32 array as a record."""
    return ArrayRecord({NAME: Array(np.ascontiguousarray(flat, np.float32))})


def flat_array(record: ArrayRecord) -> NDArray[np.float32]:
    """The flat array of a record, float32.

    Raises:
      DataError: If the record does not hold exactly one flat numeric array.
    """
    if list(record) != [NAME]:
        raise DataError(f"a message must carry one array named {NAME!r}")
    array = record[NAME].numpy()
    if array.ndim != 1 or not np.issubdtype(array.dtype, np.floating):
        raise DataError(f"a message's array must be flat and real, not {array.dtype} of shape {array.shape}")
    return array.astype(np.float32, copy=False)


def pack_declaration(declaration: Declaration, payload: NDArray[np.float32]) -> RecordDict:
    """Content of the message that opens a run at a site."""
    return RecordDict({ARRAYS: pack_array(payload), CONFIG: ConfigRecord({"declaration": declaration.to_json()})})


def read_declaration(message: Message) -> tuple[Declaration, NDArray[np.float32]]:
    """Inverse of `pack_declaration`."""
    config = message.content.config_records[CONFIG]
    return Declaration.from_json(str(config["declaration"])), flat_array(message.content.array_records[ARRAYS])


def task_config(task: RoundTask, centre: NDArray[np.float32]) -> ConfigRecord:
    """The task of a round as the record that Flower's strategies pass to every site."""
    return ConfigRecord({"task": task.to_json(), "centre": np.ascontiguousarray(centre, "<f4").tobytes()})


def read_task(message: Message) -> tuple[RoundTask, NDArray[np.float32], NDArray[np.float32]]:
    """Task, centre and flat array of a round's message."""
    config = message.content.config_records[CONFIG]
    centre = config["centre"]
    if not isinstance(centre, bytes):
        raise DataError("a task's centre must be bytes")
    task = RoundTask.from_json(str(config["task"]))
    return task, np.frombuffer(centre, "<f4").astype(np.float32), flat_array(message.content.array_records[ARRAYS])


def pack_reply(reply: Reply) -> RecordDict:
    """Content of a site's reply; infinite figures travel as such, absent ones are left out."""
    privacy: dict[str, str | int | float] = {
        "site": reply.site,
        "run-id": reply.run_id,
        "round": reply.round_index,
        "task-hash": reply.task_hash,
        "events": events_to_json(reply.events),
        "epsilon": reply.epsilon,
        "epsilon-account": reply.epsilon_account,
        "budget-left": reply.budget_left,
        "patient-epsilon-account": reply.patient_epsilon_account,
        "cap-epsilon": reply.cap_epsilon,
        "cap-delta": reply.cap_delta,
        "reason": reply.reason,
        "patients": reply.patients,
        "fingerprint": reply.fingerprint,
        "ledger-head": reply.ledger_head,
    }
    if reply.malignant_fraction is not None:
        privacy["malignant-fraction"] = reply.malignant_fraction
    content = RecordDict(
        {ARRAYS: pack_array(reply.arrays), METRICS: MetricRecord({WEIGHT: reply.weight}), PRIVACY: ConfigRecord(dict(privacy))}
    )
    if len(reply.masked):
        content[MASKED] = ArrayRecord({NAME: Array(np.ascontiguousarray(reply.masked, "<u8"))})
    return content


def reason_of(content: RecordDict) -> str:
    """Why a site refused, without reading the rest of its reply; empty if it did not, or the reply cannot be read."""
    privacy = content.config_records.get(PRIVACY)
    return "" if privacy is None else str(privacy.get("reason", ""))


def read_reply(content: RecordDict) -> Reply:
    """Inverse of `pack_reply`.

    Raises:
      DataError: If a field is missing or of the wrong type.
    """
    try:
        privacy = content.config_records[PRIVACY]
        weight = content.metric_records[METRICS][WEIGHT]
        reason = str(privacy["reason"])
        fraction = privacy.get("malignant-fraction")
        if not isinstance(weight, int) or weight < 1 or reason not in get_args(Reason):
            raise DataError("a reply has a weight or a reason that no site sends")
        if not SITE_NAME.fullmatch(str(privacy["site"])) or not LEDGER_HEAD.fullmatch(str(privacy["ledger-head"])):
            raise DataError("a reply has a site name or a ledger head that no site sends")
        return Reply(
            site=str(privacy["site"]),
            run_id=str(privacy["run-id"]),
            round_index=_whole(privacy["round"]),
            task_hash=str(privacy["task-hash"]),
            events=events_from_json(str(privacy["events"])),
            epsilon=_real(privacy["epsilon"]),
            epsilon_account=_real(privacy["epsilon-account"]),
            budget_left=_real(privacy["budget-left"]),
            patient_epsilon_account=_real(privacy["patient-epsilon-account"]),
            cap_epsilon=_real(privacy["cap-epsilon"]),
            cap_delta=_share(privacy["cap-delta"]),
            reason=reason,  # type: ignore[arg-type]
            weight=weight,
            patients=_positive(privacy["patients"]),
            arrays=flat_array(content.array_records[ARRAYS]),
            malignant_fraction=None if fraction is None else _share(fraction),
            fingerprint=str(privacy["fingerprint"]),
            ledger_head=str(privacy["ledger-head"]),
            masked=_masked_array(content),
        )
    except KeyError as error:
        raise DataError(f"a reply lacks {error}") from error


def _masked_array(content: RecordDict) -> NDArray[np.uint64]:
    record = content.array_records.get(MASKED)
    if record is None:
        return np.zeros(0, np.uint64)
    if list(record) != [NAME]:
        raise DataError(f"a masked update must be one array named {NAME!r}")
    array = record[NAME].numpy()
    if array.ndim != 1 or array.dtype != np.uint64:
        raise DataError(f"a masked update must be flat and uint64, not {array.dtype} of shape {array.shape}")
    return array


def _whole(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise DataError("a reply has a field that must be a whole number")
    return value


def _real(value: object) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise DataError("a reply has a field that must be a number")
    if not value >= 0:
        raise DataError("a reply has a negative figure, or one that is no number")
    return float(value)


def _positive(value: object) -> int:
    if _whole(value) < 1:
        raise DataError("a reply has a count below 1")
    return _whole(value)


def _share(value: object) -> float:
    if not _real(value) <= 1:
        raise DataError("a reply has a share above 1")
    return _real(value)
