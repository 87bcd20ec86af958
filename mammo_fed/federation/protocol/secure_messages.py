"""What travels for a masked sum besides tasks and replies: one JSON text in one record, every field checked when it is read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, TypeAlias, TypeVar

from flwr.app import ConfigRecord, RecordDict

from mammo_fed.common.serialization import text_of
from mammo_fed.errors import DataError, InvalidSetting
from mammo_fed.federation.protocol.messages import SECURE, check_version, stamped
from mammo_fed.federation.protocol.reasons import Reason
from mammo_fed.federation.protocol.task import from_message, to_message
from mammo_fed.federation.secure_aggregation.double_masks import Member, Parcel, Roster

__all__ = [
    "SECURE_QUERY",
    "Answer",
    "Opened",
    "Question",
    "Stage",
    "pack_answer",
    "pack_parcels",
    "pack_question",
    "read_answer",
    "read_parcels",
    "read_question",
    "size_of",
]

# The message type of questions: Flower routes it to the handler of that name.
SECURE_QUERY: Final = "query.secure"
TEXT: Final = "json"
# Characters: of a key, a sealed parcel or a share.
LONGEST_PART: Final = 1 << 13

T = TypeVar("T")

Stage: TypeAlias = Literal["keys", "shares", "unmask"]
"""Of a masked sum: what the server asks before and after the task itself."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """What the server asks in a stage of a masked sum.

    Attributes:
      stage: "keys", "shares" or "unmask".
      run_id, round_index: of which sum.
      roster: for "shares", the sites that sent keys.
      survivors: for "unmask", the sites that sent a masked update.
    """

    stage: Stage
    run_id: str
    round_index: int
    roster: Roster | None
    survivors: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A share, in hex, that a site gives of another's seed or mask key."""

    site: str
    share: str


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a site answers; of the stages' parts only that of the question is there.

    Attributes:
      reason: None, or why the site refused.
      member: its keys.
      commitment, parcels: to its seed, and the shares that it deals, sealed for the others.
      opened: the shares that it gives.
    """

    reason: Reason | None = None
    member: Member | None = None
    commitment: str = ""
    parcels: tuple[Parcel, ...] = ()
    opened: tuple[Opened, ...] = ()


@dataclass(frozen=True, kw_only=True)
class _Parcels:
    parcels: tuple[Parcel, ...]


def pack_question(question: Question) -> RecordDict:
    """Content of the message that asks."""
    return _pack(question)


def read_question(content: RecordDict) -> Question:
    """Inverse of `pack_question`.

    Raises:
      VersionMismatch: If it is of another version of the protocol.
      InvalidSetting: If it is none.
    """
    return _read(Question, content)


def pack_answer(answer: Answer) -> RecordDict:
    """Content of a site's answer."""
    return _pack(answer)


def read_answer(content: RecordDict) -> Answer:
    """Inverse of `pack_answer`.

    Raises:
      VersionMismatch: If it is of another version of the protocol.
      DataError: If it is none.
    """
    try:
        answer = _read(Answer, content)
    except InvalidSetting as error:
        raise DataError(f"an answer of a masked sum cannot be read: {error}") from error
    member = () if answer.member is None else (answer.member.site, answer.member.channel_key, answer.member.mask_key)
    parcels = [text for parcel in answer.parcels for text in (parcel.site, parcel.sealed)]
    opened = [text for share in answer.opened for text in (share.site, share.share)]
    for text in (answer.commitment, *member, *parcels, *opened):
        text_of(text, "a part of an answer of a masked sum", most=LONGEST_PART)
    return answer


def pack_parcels(parcels: tuple[Parcel, ...]) -> ConfigRecord:
    """The others' parcels as the record that comes with a site's task, under the key SECURE."""
    return ConfigRecord({TEXT: to_message(_Parcels(parcels=parcels))})


def read_parcels(content: RecordDict) -> tuple[Parcel, ...]:
    """Inverse of `pack_parcels`, of a task that comes with them.

    Raises:
      InvalidSetting: If the record is not what was packed.
    """
    return _read(_Parcels, content).parcels


def size_of(content: RecordDict) -> int:
    """Bytes of the text that is added for a masked sum, of a message that was packed here or read."""
    return len(str(content.config_records[SECURE][TEXT])) if SECURE in content else 0


def _pack(value: Question | Answer) -> RecordDict:
    return stamped(RecordDict({SECURE: ConfigRecord({TEXT: to_message(value)})}))


def _read(cls: type[T], content: RecordDict) -> T:
    check_version(content)
    record = content.config_records.get(SECURE, ConfigRecord())
    return from_message(cls, record.get(TEXT), path=SECURE)
