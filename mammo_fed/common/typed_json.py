"""Frozen dataclasses to strict JSON and back, checked by their own type hints."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, cast, get_args, get_origin, get_type_hints

from mammo_fed.errors import DataError

__all__ = ["build", "dumps", "plain"]

T = TypeVar("T")


def plain(value: Any) -> Any:
    """A dataclass as JSON values: tuples become lists, an infinite float becomes None.

    Raises:
      DataError: If a float is not a number: nothing in JSON stands for it.
    """
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [plain(item) for item in value]
    if isinstance(value, float):
        if math.isnan(value):
            raise DataError("a value is not a number (NaN) and cannot be written as JSON")
        return None if math.isinf(value) else value
    return value


def dumps(values: Mapping[str, Any]) -> str:
    """Strict JSON for people: indented, keys in the order given, a newline at the end."""
    return json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def build(hint: type[T], value: Any, *, where: str) -> T:
    """Inverse of `plain`: `value` as the type that `hint` names.

    A null stands for infinity where the hint is `float` and for None where it is `float | None`. A key whose field has a
    default may be missing: records of an earlier version lack it.

    Args:
      hint: a dataclass whose fields are dataclasses, mappings with str keys, variadic tuples, pairs, unions with None,
        literals, str, int, float or bool.
      value: what `json.loads` gave.
      where: name of the value in messages, such as "record.privacy".

    Raises:
      DataError: If a key is missing or unknown, or a value is of another type; the message names which.
    """
    return cast(T, _build(hint, value, where))


def _build(hint: Any, value: Any, where: str) -> Any:
    if is_dataclass(hint):
        return _build_dataclass(hint, value, where)
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is UnionType:
        return None if value is None else _build(next(part for part in arguments if part is not NoneType), value, where)
    if origin is Literal:
        if value not in arguments:
            raise DataError(f"{where}={value!r} must be one of {list(arguments)}")
        return value
    if origin is tuple:
        return _build_tuple(arguments, value, where)
    if origin is not None and issubclass(origin, Mapping):
        _require_type(value, dict, where)
        return {key: _build(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    return _build_scalar(hint, value, where)


def _build_dataclass(hint: Any, value: Any, where: str) -> Any:
    _require_type(value, dict, where)
    hints = get_type_hints(hint)
    names = [field.name for field in fields(hint)]
    optional = {field.name for field in fields(hint) if field.default is not MISSING}
    for name in names:
        if name not in value and name not in optional:
            raise DataError(f"{where}.{name} is missing")
    for name in value:
        if name not in names:
            raise DataError(f"{where}.{name} is unknown; another version of mammo-fed may have written it")
    return hint(**{name: _build(hints[name], value[name], f"{where}.{name}") for name in names if name in value})


def _build_tuple(arguments: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    _require_type(value, list, where)
    if arguments[-1] is not Ellipsis and len(value) != len(arguments):
        raise DataError(f"{where} must have {len(arguments)} values, not {len(value)}")
    return tuple(_build(arguments[0], item, f"{where}[{row}]") for row, item in enumerate(value))


def _build_scalar(hint: Any, value: Any, where: str) -> Any:
    if hint is float:
        if value is None:
            return math.inf
        # JSON writes 6.0 as 6 in many languages; a bool is an int in Python but never a number in a record.
        if isinstance(value, int) and not isinstance(value, bool):
            return float(value)
    if hint is int and isinstance(value, bool):
        raise DataError(f"{where}={value!r} must be of type int")
    _require_type(value, hint, where)
    return value


def _require_type(value: Any, kind: type, where: str) -> None:
    if not isinstance(value, kind):
        raise DataError(f"{where}={value!r} must be of type {kind.__name__}")
