"""Dataclasses as the JSON texts that travel: a field with a default may be absent, an unknown one is refused by name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any, Final, TypeVar, get_type_hints

from mammo_fed.common.serialization import build, canonical_json, plain
from mammo_fed.errors import InvalidSetting
from mammo_fed.federation.protocol.version import own_version

__all__ = ["from_json", "from_message", "to_message"]

T = TypeVar("T")

# Version 1 looks at no version, but refuses a field that it does not know: so it refuses a text of a later version before it
# charges anything.
MARK: Final = "protocol_version"


def to_message(value: Any) -> str:
    """Canonical JSON of a dataclass as it travels, marked with this program's version."""
    return canonical_json({**plain(value), MARK: own_version()})


def from_message(cls: type[T], text: str, *, path: str) -> T:
    """Inverse of `to_message`, for a message whose version was checked.

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


def _parsed(text: str, path: str) -> dict[str, Any]:
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidSetting(f"{path} is not valid JSON") from error
    if not isinstance(values, dict):
        raise InvalidSetting(f"{path} must be a JSON object")
    return values


def _built(cls: type[T], values: Mapping[str, Any], path: str) -> T:
    names = [field.name for field in fields(cls)]  # type: ignore[arg-type]
    if unknown := sorted(set(values) - set(names)):
        raise InvalidSetting(f"{path}.{unknown[0]:.80} is not a field of protocol version {own_version()}; it is refused")
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
