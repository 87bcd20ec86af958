"""The question whether a site would take a run, and its answer: each one JSON text in one record, every field checked."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Final

from flwr.app import ConfigRecord, RecordDict

from mammo_fed.errors import DataError, InvalidSetting
from mammo_fed.federation.protocol.messages import PROTOCOL, check_version, stamped
from mammo_fed.federation.protocol.reasons import Reason
from mammo_fed.federation.protocol.task import Declaration, from_message, to_message

__all__ = ["PLAN_QUERY", "PlanAnswer", "pack_plan", "pack_plan_answer", "read_plan", "read_plan_answer"]

# The message type of the question: Flower routes it to the handler of that name.
PLAN_QUERY: Final = "query.plan"
PLAN: Final = "plan"
TEXT: Final = "json"
MOST_CHARACTERS: Final = 100_000
SITE_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


@dataclass(frozen=True, kw_only=True)
class PlanAnswer:
    """Whether a site would take a run that is not declared: by its policy, and by what its account has been charged.

    Attributes:
      site: its name.
      reason: None where it would, else why not.
      fits: epsilon that a run of this shape may have, where the site publishes what is left of its budget; else None.

    Raises:
      DataError: If it is none that a site sends.
    """

    site: str
    reason: Reason | None = None
    fits: float | None = None

    def __post_init__(self) -> None:
        if not SITE_NAME.fullmatch(self.site):
            raise DataError("an answer has a site name that no site sends")
        if self.fits is not None and not (math.isfinite(self.fits) and self.fits >= 0):
            raise DataError("an answer says that something fits which is no epsilon")


def pack_plan(declaration: Declaration) -> RecordDict:
    """Content of the question. The public array of a real declaration does not travel: nothing is computed with it."""
    return stamped(RecordDict({PLAN: ConfigRecord({TEXT: to_message(declaration)})}))


def read_plan(content: RecordDict) -> Declaration:
    """Inverse of `pack_plan`.

    Raises:
      VersionMismatch: If the message is of another version of the protocol; nothing else of it is read.
      InvalidSetting, DataError: If it is no such question; an unknown field is named.
    """
    return from_message(Declaration, _text(content), path="declaration")


def pack_plan_answer(answer: PlanAnswer) -> RecordDict:
    """Content of the answer."""
    return stamped(RecordDict({PLAN: ConfigRecord({TEXT: to_message(answer)})}))


def read_plan_answer(content: RecordDict) -> PlanAnswer:
    """Inverse of `pack_plan_answer`.

    Raises:
      VersionMismatch: As `read_plan`.
      DataError: If it is no answer that a site sends.
    """
    try:
        return from_message(PlanAnswer, _text(content), path="answer")
    except InvalidSetting as error:
        raise DataError(f"an answer cannot be read: {error}") from error


def _text(content: RecordDict) -> str:
    check_version(content)
    if set(content) != {PLAN, PROTOCOL} or PLAN not in content.config_records:
        raise DataError(f"a message about a plan must have the records {PLAN!r} and {PROTOCOL!r} alone")
    text = content.config_records[PLAN].get(TEXT)
    if list(content.config_records[PLAN]) != [TEXT] or not isinstance(text, str) or len(text) > MOST_CHARACTERS:
        raise DataError(f"a message about a plan must hold one text of at most {MOST_CHARACTERS} characters")
    return text
