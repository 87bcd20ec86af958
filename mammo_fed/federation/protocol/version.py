"""The version of the protocol, in a record beside each message's payload, and the JSON texts that messages carry.

The record is read before anything else of a message. In a text a field with a default may be absent; an unknown one is refused
by name.

Two programs talk only if they have the same version. This record is the one part of a message that no later version may
change; a message without it is of version 1, which had none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any, Final, TypeVar, get_type_hints

from flwr.app import ConfigRecord, RecordDict

from mammo_fed.common.serialization import bounded_json, build, canonical_json, plain, printable
from mammo_fed.errors import DataError, InvalidSetting, VersionMismatch
from mammo_fed.federation.protocol import bounds

__all__ = [
    "PROTOCOL",
    "PROTOCOL_VERSION",
    "check_version",
    "from_json",
    "from_message",
    "own_version",
    "stamped",
    "to_message",
    "version_of",
]

T = TypeVar("T")

PROTOCOL_VERSION: Final = 3
FIRST_VERSION: Final = 1
PROTOCOL: Final = "protocol"
VERSION: Final = "version"
# Version 1 looks at no version, but refuses a field that it does not know: so it refuses a text of a later version before it
# charges anything.
MARK: Final = "protocol_version"


def own_version() -> int:
    """The version that this program speaks."""
    return PROTOCOL_VERSION


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


def to_message(value: Any) -> str:
    """Canonical JSON of a dataclass as it travels, marked with this program's version."""
    return canonical_json({**plain(value), MARK: own_version()})


def from_message(cls: type[T], text: object, *, path: str) -> T:
    """Inverse of `to_message`, for a message whose version was checked; `text` is what stands where the text should.

    Raises:
      InvalidSetting: As `from_json`.
    """
    values = _parsed(text, path)
    values.pop(MARK, None)
    return _built(cls, values, path)


def from_json(cls: type[T], text: str, *, path: str) -> T:
    """A dataclass from its JSON.

    Args:
      cls: a dataclass.
      text: JSON with its fields; those with a default may be absent.
      path: what the text is, for messages.

    Raises:
      InvalidSetting: If the text is no JSON object, or a field is unknown, missing or of the wrong type.
    """
    return _built(cls, _parsed(text, path), path)


def _parsed(text: object, path: str) -> dict[str, Any]:
    try:
        values = bounded_json(bounds.text_of(text, path, most=bounds.LONG_TEXT), most=bounds.LONG_TEXT)
    except DataError as error:
        raise InvalidSetting(f"{path} is not valid JSON within its bounds: {error}") from error
    if not isinstance(values, dict):
        raise InvalidSetting(f"{path} must be a JSON object")
    return values


def _built(cls: type[T], values: Mapping[str, Any], path: str) -> T:
    names = [field.name for field in fields(cls)]  # type: ignore[arg-type]
    if unknown := sorted(set(values) - set(names)):
        raise InvalidSetting(
            f"{path}.{printable(unknown[0])} is not a field of protocol version {own_version()}; it is refused"
        )
    return build(cls, _completed(cls, values), path=path)


def _completed(cls: type[Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """`values` with the defaults of absent fields, also of nested dataclasses."""
    hints, complete = get_type_hints(cls), dict(values)
    for field in fields(cls):
        nested, hint = complete.get(field.name), hints[field.name]
        if isinstance(hint, type) and is_dataclass(hint) and isinstance(nested, Mapping):
            complete[field.name] = _completed(hint, nested)
        elif field.name not in complete and _has_default(field):
            complete[field.name] = plain(_default(field))
    return complete


def _has_default(field: Field[Any]) -> bool:
    return field.default is not MISSING or field.default_factory is not MISSING


def _default(field: Field[Any]) -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()
