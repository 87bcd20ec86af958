"""What the server sends and what a site answers, as the content of messages, and back; every field is checked when it is read.

The server sends the declaration of a run or the task of a round, a site its reply; each with at most one flat array of
parameters.

The version of the protocol is a record beside each message's payload, and read before anything else of a message: two programs
talk only if they have the same version. This record is the one part of a message that no later version may change; a message
without it is of version 1, which had none.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final, get_args

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from numpy.typing import NDArray

from mammo_fed.common.serialization import LINE, TEXT, bounded_json, line, text_of, whole
from mammo_fed.errors import DataError, InvalidSetting, VersionMismatch
from mammo_fed.federation.flwr_internals.messages import flat_array
from mammo_fed.federation.protocol.reasons import Reason
from mammo_fed.federation.protocol.replies import Accepted, PricedReply, Refusal, Reply, Update
from mammo_fed.federation.protocol.task import (
    DECLARATION_ROUND,
    Declaration,
    RoundTask,
    from_message,
    own_version,
    to_message,
)
from mammo_fed.privacy.events import PrivacyEvent, events_from_json, events_to_json
from mammo_fed.privacy.ledger.cap import check_time, raises_from_json, raises_to_json
from mammo_fed.privacy.ledger.withdrawals import check_date
from mammo_fed.privacy.names import MOST_COUNT

__all__ = [
    "ARRAYS",
    "CONFIG",
    "METRICS",
    "NAME",
    "PRIVACY",
    "PROTOCOL",
    "SECURE",
    "UNREADABLE",
    "WEIGHT",
    "check_version",
    "pack_declaration",
    "pack_parameters",
    "pack_reply",
    "read_declaration",
    "read_parameters",
    "read_reply",
    "read_task",
    "reason_of",
    "stamped",
    "task_config",
    "version_of",
]

FIRST_VERSION: Final = 1
PROTOCOL: Final = "protocol"
VERSION: Final = "version"

# Keys on the wire.
ARRAYS: Final = "arrays"
CONFIG: Final = "config"
PRIVACY: Final = "privacy"
METRICS: Final = "metrics"
SECURE: Final = "secure"
NAME: Final = "flat"
# Flower's own key for a site's weight in an average; it carries the public number of images.
WEIGHT: Final = "num-examples"

# What Flower's strategies add to a task.
OF_FLOWER: Final = ("server-round", "proximal-mu")

MASKED: Final = "masked"
SITE_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
# In place of a site's own word, where its reply cannot be read.
UNREADABLE: Final = "unreadable"
# Pricing a patient of whom several images are sampled takes memory that grows with the square of their number.
SAMPLED_IMAGES_PER_PATIENT: Final = 1000
LEDGER_HEAD: Final = re.compile(r"([0-9]{1,18}:[0-9a-f]{64})?")

Fields = Mapping[str, Any]

KIND: Final = "kind"
# Of a site's whole account: there only if its policy publishes them, and then all of them.
WITHHELD: Final = ("epsilon-account", "patient-epsilon-account", "budget-left")
SITE: Final = (KIND, "site", "patients")
PRICED: Final = (
    *SITE,
    "run-id",
    "events",
    "epsilon",
    *WITHHELD,
    "ledger-head",
    "withdrawn-at",
)
# All fields of each kind of reply; "malignant-fraction" and those of WITHHELD may be absent.
FIELDS: Final[Mapping[str, tuple[str, ...]]] = {
    "accepted": (*PRICED, "cap-epsilon", "cap-delta", "cap-since", "cap-raised", "fingerprint", "malignant-fraction"),
    "update": (*PRICED, "round", "task-hash"),
    "refusal": (*SITE, "reason"),
}
RECORDS: Final[Mapping[str, tuple[str, ...]]] = {
    "accepted": (PROTOCOL, METRICS, PRIVACY),
    "update": (PROTOCOL, METRICS, PRIVACY, ARRAYS, MASKED),
    "refusal": (PROTOCOL, METRICS, PRIVACY),
}


def stamped(content: RecordDict) -> RecordDict:
    """The same content, with this program's version beside it."""
    content[PROTOCOL] = ConfigRecord({VERSION: own_version()})
    return content


def version_of(content: RecordDict) -> int:
    """The version in which a message is written.

    Raises:
      DataError: If the message gives something else than a version, or is of no version at all.
    """
    if PROTOCOL not in content:
        if not content.config_records:
            # Every message of the first version had such a record.
            raise DataError("a message has no protocol version and nothing that a version could be told from")
        return FIRST_VERSION
    record = content.config_records.get(PROTOCOL, ConfigRecord())
    version = record.get(VERSION)
    if not isinstance(version, int) or isinstance(version, bool) or version < FIRST_VERSION:
        raise DataError("a message gives a protocol version that no program has")
    return version


def check_version(content: RecordDict) -> None:
    """Require the version of this program, before any other part of a message is read.

    Raises:
      VersionMismatch: If the message is of another version.
      DataError: As `version_of`.
    """
    theirs = version_of(content)
    if theirs != own_version():
        raise VersionMismatch(theirs=theirs, ours=own_version())


def pack_parameters(parameters: NDArray[np.float32]) -> ArrayRecord:
    """One flat float32 array as a record."""
    return ArrayRecord({NAME: Array(np.ascontiguousarray(parameters, np.float32))})


def read_parameters(record: ArrayRecord) -> NDArray[np.float32]:
    """The flat array of a record, float32.

    Raises:
      DataError: If the record does not hold exactly one flat array of this type.
    """
    return flat_array(record, NAME, np.float32)


def pack_declaration(declaration: Declaration, payload: NDArray[np.float32]) -> RecordDict:
    """Content of the message that opens a run at a site."""
    config = ConfigRecord({"declaration": to_message(declaration)})
    return stamped(RecordDict({ARRAYS: pack_parameters(payload), CONFIG: config}))


def read_declaration(message: Message) -> tuple[Declaration, NDArray[np.float32]]:
    """Inverse of `pack_declaration`.

    Raises:
      VersionMismatch: If the message is of another version of the protocol; nothing else of it is read.
      InvalidSetting, DataError: If the message is no declaration; an unknown field is named.
    """
    check_version(message.content)
    config, parameters = _parts(message.content, ("declaration",))
    return from_message(Declaration, config["declaration"], path="declaration"), parameters


def task_config(task: RoundTask, feature_mean: NDArray[np.float32]) -> ConfigRecord:
    """The task of a round as the record that Flower's strategies pass to every site."""
    return ConfigRecord({"task": to_message(task), "centre": np.ascontiguousarray(feature_mean, "<f4").tobytes()})


def read_task(message: Message) -> tuple[RoundTask, NDArray[np.float32], NDArray[np.float32]]:
    """Task, feature mean and parameters of a round's message.

    Raises:
      VersionMismatch: If the message is of another version of the protocol; nothing else of it is read.
      InvalidSetting, DataError: If the message is no task; an unknown field is named.
    """
    check_version(message.content)
    config, parameters = _parts(message.content, ("task", "centre"), optional=OF_FLOWER, records=(SECURE,))
    feature_mean = config["centre"]
    if not isinstance(feature_mean, bytes) or len(feature_mean) % np.dtype(np.float32).itemsize:
        raise DataError("a task's feature mean must be bytes, four for each number")
    task = from_message(RoundTask, config["task"], path="task")
    return task, np.frombuffer(feature_mean, "<f4").astype(np.float32), parameters


def _parts(
    content: RecordDict, fields: tuple[str, ...], *, optional: tuple[str, ...] = (), records: tuple[str, ...] = ()
) -> tuple[ConfigRecord, NDArray[np.float32]]:
    """The two records of a message from the server, where it has exactly the known records and fields."""
    _check_names("record", content, required=(ARRAYS, CONFIG), optional=(PROTOCOL, *records))
    config, arrays = content[CONFIG], content[ARRAYS]
    if not isinstance(config, ConfigRecord) or not isinstance(arrays, ArrayRecord):
        raise InvalidSetting("a message has a record of another kind than its name says; it is refused")
    _check_names("field", config, required=fields, optional=optional)
    return config, read_parameters(arrays)


def _check_names(what: str, names: Iterable[str], *, required: tuple[str, ...], optional: tuple[str, ...]) -> None:
    found = set(names)
    if unknown := sorted(found - {*required, *optional}):
        raise InvalidSetting(f"{unknown[0]!r:.80} is not a {what} of protocol version {own_version()}; the message is refused")
    if absent := sorted(set(required) - found):
        raise InvalidSetting(f"a message lacks the {what} {absent[0]!r}; it is refused")


def pack_reply(reply: Reply) -> RecordDict:
    """Content of a site's reply; infinite figures travel as such, absent ones are left out."""
    fields: dict[str, str | int | float] = {"site": reply.site, "patients": reply.public_patients}
    content = RecordDict({METRICS: MetricRecord({WEIGHT: reply.public_images})})
    if isinstance(reply, Refusal):
        fields |= {KIND: "refusal", "reason": reply.reason}
    elif isinstance(reply, Update):
        fields |= {KIND: "update", **_priced(reply), "round": reply.round_index, "task-hash": reply.task_hash}
        content[ARRAYS] = pack_parameters(reply.parameters)
        if len(reply.masked):
            content[MASKED] = ArrayRecord({NAME: Array(np.ascontiguousarray(reply.masked, "<u8"))})
    else:
        fields |= {KIND: "accepted", **_priced(reply), "fingerprint": reply.fingerprint}
        fields |= {"cap-epsilon": reply.cap_epsilon, "cap-delta": reply.cap_delta}
        fields |= {"cap-since": reply.cap_since, "cap-raised": raises_to_json(reply.cap_raised)}
        if reply.malignant_fraction is not None:
            fields["malignant-fraction"] = reply.malignant_fraction
    content[PRIVACY] = ConfigRecord(dict(fields))
    return stamped(content)


def reason_of(content: RecordDict) -> str:
    """Why a reply is no update, without reading all of it: the site's own word, "version" or UNREADABLE; else empty."""
    try:
        check_version(content)
    except VersionMismatch:
        return "version"
    except DataError:
        return UNREADABLE
    privacy = content.config_records.get(PRIVACY)
    if privacy is None:
        return UNREADABLE
    return "" if privacy.get("reason", "") == "" else str(privacy["reason"])[:LINE]


def read_reply(content: RecordDict) -> Reply:
    """Inverse of `pack_reply`.

    Raises:
      VersionMismatch: If it is of another version of the protocol; nothing else of it is read.
      DataError: If a field is missing, unknown or of the wrong type, or an array or a text in it cannot be read.
      InvalidSetting: If its events are none that can be priced.
    """
    check_version(content)
    try:
        return _read(content)
    except (DataError, InvalidSetting):
        raise
    except Exception as error:
        # Bytes of a hostile site reach numpy and json, which raise more kinds than a list of them would hold.
        raise DataError(f"a reply cannot be read ({type(error).__name__})") from error


def _read(content: RecordDict) -> Reply:
    try:
        fields: Fields = content.config_records[PRIVACY]
        kind = line(fields[KIND], "a reply's kind")
        if kind not in FIELDS:
            raise DataError("a reply is of a kind that no site sends")
        _check_known("record", content, RECORDS[kind])
        _check_known("field", fields, FIELDS[kind])
        base = _read_site(content, fields)
        if kind == "refusal":
            return Refusal(**base, reason=_reason(fields["reason"]), protocol_version=version_of(content))
        base |= _read_priced(fields)
        return _read_update(base, content, fields) if kind == "update" else _read_accepted(base, fields)
    except KeyError as error:
        raise DataError(f"a reply lacks {error}") from error


def _priced(reply: PricedReply) -> dict[str, str | int | float]:
    account = (reply.epsilon_account, reply.patient_epsilon_account, reply.budget_left)
    return {
        "run-id": reply.run_id,
        "events": events_to_json(reply.events),
        "epsilon": reply.epsilon,
        **{name: value for name, value in zip(WITHHELD, account, strict=True) if value is not None},
        "ledger-head": reply.ledger_head,
        "withdrawn-at": reply.withdrawn_at,
    }


def _read_site(content: RecordDict, fields: Fields) -> dict[str, Any]:
    metrics = content.metric_records[METRICS]
    # Flower's strategies compare the metrics of all sites, and give up a round where one site has others.
    _check_known("metric", metrics, (WEIGHT,))
    site = line(fields["site"], "a reply's site")
    if not SITE_NAME.fullmatch(site):
        raise DataError("a reply has a site name that no site sends")
    return {
        "site": site,
        "public_images": whole(metrics[WEIGHT], "a reply's number of images", least=1, most=MOST_COUNT),
        "public_patients": whole(fields["patients"], "a reply's number of patients", least=1, most=MOST_COUNT),
    }


def _read_priced(fields: Fields) -> dict[str, Any]:
    head = line(fields["ledger-head"], "a reply's ledger head")
    if not LEDGER_HEAD.fullmatch(head):
        raise DataError("a reply has a ledger head that no site sends")
    if fields["withdrawn-at"] != "":
        check_date("a reply has a field withdrawn-at", fields["withdrawn-at"])
    published = any(name in fields for name in WITHHELD)
    account = {name.replace("-", "_"): _real(fields[name]) if published else None for name in WITHHELD}
    return {
        "run_id": line(fields["run-id"], "a reply's run"),
        "events": _events(fields["events"]),
        "epsilon": _real(fields["epsilon"]),
        **account,
        "ledger_head": head,
        "withdrawn_at": line(fields["withdrawn-at"], "a reply's field withdrawn-at"),
    }


def _events(value: object) -> tuple[PrivacyEvent, ...]:
    text = _json_text(value, "a reply's events")
    events = events_from_json(text)
    for event in events:
        whole(event.steps, "an event's steps", least=1, most=MOST_COUNT)
        sampled = event.unit == "image" and not event.full_batch
        most = SAMPLED_IMAGES_PER_PATIENT if sampled else MOST_COUNT
        whole(event.max_images_per_patient, "an event's images per patient", least=1, most=most)
    return events


def _json_text(value: object, what: str) -> str:
    """A JSON text about one site, which may be parsed without further bounds."""
    text = text_of(value, what)
    bounded_json(text, most=TEXT)
    return text


def _read_accepted(base: dict[str, Any], fields: Fields) -> Accepted:
    fraction, since = fields.get("malignant-fraction"), line(fields["cap-since"], "a reply's field cap-since")
    if since:
        check_time("cap-since", since)
    return Accepted(
        **base,
        cap_epsilon=_real(fields["cap-epsilon"]),
        cap_delta=_fraction(fields["cap-delta"]),
        cap_since=since,
        cap_raised=raises_from_json(_json_text(fields["cap-raised"], "a reply's raises of its cap")),
        fingerprint=line(fields["fingerprint"], "a reply's fingerprint"),
        malignant_fraction=None if fraction is None else _fraction(fraction),
    )


def _read_update(base: dict[str, Any], content: RecordDict, fields: Fields) -> Update:
    return Update(
        **base,
        round_index=whole(fields["round"], "a reply's round", least=DECLARATION_ROUND, most=MOST_COUNT),
        task_hash=line(fields["task-hash"], "a reply's task"),
        parameters=read_parameters(content.array_records[ARRAYS]),
        masked=_masked_array(content),
    )


def _check_known(what: str, names: Iterable[str], known: tuple[str, ...]) -> None:
    if unknown := sorted(set(names) - set(known)):
        raise DataError(f"a reply has an unknown {what} {unknown[0]!r:.80}")


def _reason(value: object) -> Any:
    if value not in get_args(Reason):
        raise DataError("a reply has a reason that no site sends")
    return value


def _masked_array(content: RecordDict) -> NDArray[np.uint64]:
    if MASKED not in content:
        return np.zeros(0, np.uint64)
    array = flat_array(content.array_records[MASKED], NAME, np.uint64)
    if not len(array):
        raise DataError("a masked update must not be empty")
    return array


def _real(value: object) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise DataError("a reply has a field that must be a number")
    if not value >= 0:
        raise DataError("a reply has a negative figure, or one that is no number")
    return float(value)


def _fraction(value: object) -> float:
    if not _real(value) <= 1:
        raise DataError("a reply has a fraction above 1")
    return _real(value)
