"""Plain nested values to frozen dataclasses and back: every type checked, every complaint naming its key."""

from __future__ import annotations

import json
import math
import types
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from mammo_fed.errors import InvalidSetting

__all__ = ["build", "canonical_json", "plain"]

T = TypeVar("T")


def build(cls: type[T], values: Mapping[str, Any], *, path: str) -> T:
    """Build dataclass `cls` from a mapping with exactly its fields, nested dataclasses from nested mappings.

    Args:
      cls: a dataclass whose fields are bool, int, float, str, None, Literal, tuple[X, ...], dataclasses, or unions of these.
      values: plain values; lists stand for tuples, "inf" for infinity, a single value for a tuple of one.
      path: key of this mapping in the whole configuration, for messages; "" at the top.

    Raises:
      InvalidSetting: If a key is missing or unknown, or a value has the wrong type.
    """
    if not isinstance(values, Mapping):
        raise InvalidSetting(f"{path}={values!r} must be a group of settings")
    hints = get_type_hints(cls)
    names = [field.name for field in fields(cls)]  # type: ignore[arg-type]
    prefix = f"{path}." if path else ""
    unknown = sorted(set(values) - set(names))
    if unknown:
        raise InvalidSetting(f"{prefix}{unknown[0]} is not a setting; {path or 'the top level'} knows {', '.join(names)}")
    missing = [name for name in names if name not in values]
    if missing:
        raise InvalidSetting(f"{prefix}{missing[0]} is missing; give {prefix}{missing[0]}=VALUE")
    return cls(**{name: _convert(values[name], hints[name], f"{prefix}{name}") for name in names})


def plain(value: Any) -> Any:
    """A dataclass (or nested containers) as values that strict JSON knows; infinity becomes the string "inf"."""
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return "inf" if isinstance(value, float) and math.isinf(value) else value


def canonical_json(value: Any) -> str:
    """JSON of `plain(value)` with sorted keys and no spaces, fit for hashing."""
    return json.dumps(plain(value), sort_keys=True, separators=(",", ":"), allow_nan=False)


def _convert(value: Any, hint: Any, path: str) -> Any:
    if isinstance(hint, type) and is_dataclass(hint):
        return build(hint, value, path=path)
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return _convert_union(value, get_args(hint), path)
    if origin is tuple:
        items = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
        return tuple(_convert(item, get_args(hint)[0], path) for item in items)
    accepted, converted = _convert_scalar(value, hint, origin)
    if not accepted:
        raise InvalidSetting(f"{path}={value!r} must be {_describe(hint)}")
    return converted


def _convert_union(value: Any, options: tuple[Any, ...], path: str) -> Any:
    # Literals and None first: "auto" must not be tried as a number.
    for option in sorted(options, key=lambda option: not (_is_literal(option) or option is type(None))):
        try:
            return _convert(value, option, path)
        except InvalidSetting:
            continue
    raise InvalidSetting(f"{path}={value!r} must be {' or '.join(_describe(option) for option in options)}")


def _convert_scalar(value: Any, hint: Any, origin: Any) -> tuple[bool, Any]:
    """Whether `value` fits `hint`, and the value in that type."""
    if origin is Literal:
        return value in get_args(hint), value
    if hint is type(None):
        return value is None, None
    if hint is bool:
        return isinstance(value, bool), value
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool), value
    if hint is float:
        number = math.inf if value == "inf" else value
        return isinstance(number, int | float) and not isinstance(number, bool), number if isinstance(number, str) else _real(
            number
        )
    return hint is str and isinstance(value, str), value


def _is_literal(hint: Any) -> bool:
    origin: Any = get_origin(hint)
    return origin is Literal


def _real(number: Any) -> Any:
    return float(number) if isinstance(number, int | float) else number


def _describe(hint: Any) -> str:
    if _is_literal(hint):
        return "one of " + ", ".join(str(option) for option in get_args(hint))
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false", type(None): "null"}
    return names.get(hint, str(hint))
