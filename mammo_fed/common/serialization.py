"""Frozen dataclasses to strict JSON and back, checked by their own type hints; every complaint names its key.

One set of rules for two forms. Both refuse unknown keys and values of another type, give tuples for lists, and never write what
is not a number (NaN) or minus infinity; the range of a number that is read is its field's to check. The forms differ in what
their files have always had: how infinity is written, whether a key may be absent, and whether a single value may be given for a
tuple of one.

What a stranger wrote, be it JSON, a text or a whole number, is read within bounds: what is outside of one is a DataError,
before memory is taken for it.
"""

from __future__ import annotations

import json
import math
import types
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from typing import Any, Final, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from mammo_fed.errors import DataError, InvalidSetting

__all__ = [
    "LINE",
    "LONG_TEXT",
    "RECORD",
    "SETTINGS",
    "TEXT",
    "JsonForm",
    "bounded_json",
    "build",
    "canonical_json",
    "dumps",
    "line",
    "plain",
    "printable",
    "text_of",
    "whole",
]

T = TypeVar("T")
# Characters: of a word or a hash, of a JSON text about one site, and of one about all sites of a masked sum.
LINE: Final = 200
TEXT: Final = 1 << 16
LONG_TEXT: Final = 1 << 23
# Of a stranger's JSON: more digits than any 64-bit number has, and deeper than any message of ours is.
MOST_DIGITS: Final = 19
MOST_NUMBER: Final = 64
MOST_DEPTH: Final = 16
# Characters of a value or a key that a message shows.
SHOWN: Final = 80
NAMES: Final = {int: "a whole number", float: "a number", str: "text", bool: "true or false", type(None): "null"}


@dataclass(frozen=True, kw_only=True)
class JsonForm:
    """What the two forms of JSON differ in.

    Attributes:
      infinity: what is written for an infinite number, and read as one where a number is expected.
      defaults: whether a key whose field has a default may be absent.
      single: whether a value that is no list is taken as a tuple of one.
      thing: what a key is, in messages.
      error: what is raised.
    """

    infinity: str | None
    defaults: bool
    single: bool
    thing: str
    error: type[InvalidSetting | DataError]


# People write settings, messages keep their form: all keys are there, and infinity is a word.
SETTINGS: Final = JsonForm(infinity="inf", defaults=False, single=True, thing="a setting", error=InvalidSetting)
# Records are read by other programs, and those of an earlier version lack keys.
RECORD: Final = JsonForm(infinity=None, defaults=True, single=False, thing="a key of this version", error=DataError)


def bounded_json(text: str, *, most: int) -> Any:
    """What a JSON text says that came from a stranger, read within bounds; what it says is not checked.

    Args:
      text: as it came.
      most: characters that it may have.

    Raises:
      DataError: If it is longer or nested deeper, is no strict JSON, or holds a whole number beyond 64 bits, another number
        that is infinite as a float, or half of a surrogate pair.
    """
    if len(text) > most:
        raise DataError(f"a JSON text of {len(text)} characters is longer than {most}")
    try:
        values = json.loads(text, parse_int=_bounded_int, parse_float=_bounded_float, parse_constant=_no_constant)
        # Half of a surrogate pair can be written in JSON, and then in no file.
        if "\\u" in text:
            json.dumps(values, ensure_ascii=False).encode()
    except (ValueError, RecursionError, MemoryError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError("a text is not valid JSON, or nested too deeply") from error
    level: list[Any] = [values]
    for _ in range(MOST_DEPTH):
        level = [item for each in level for item in _items(each)]
        if not level:
            return values
    raise DataError(f"a JSON text is nested more than {MOST_DEPTH} levels deep")


def _items(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def _bounded_int(text: str) -> int:
    # By its length before anything else: the time that a conversion takes grows with its square.
    if len(text.lstrip("-")) > MOST_DIGITS or not -(1 << 63) <= int(text) < 1 << 63:
        raise DataError(f"a whole number of {len(text)} characters has more than 64 bits")
    return int(text)


def _bounded_float(text: str) -> float:
    if len(text) > MOST_NUMBER or not math.isfinite(float(text)):
        raise DataError(f"a number of {len(text)} characters is too long, or infinite as a float")
    return float(text)


def _no_constant(text: str) -> float:
    raise DataError(f"{text} is no strict JSON")


def text_of(value: object, what: str, *, most: int = TEXT) -> str:
    """`value`, checked to be a text of at most `most` characters.

    Raises:
      DataError: If it is not.
    """
    if not isinstance(value, str):
        raise DataError(f"{what} must be a text")
    if len(value) > most:
        raise DataError(f"{what} has {len(value)} characters, more than {most}")
    return value


def line(value: object, what: str) -> str:
    """`value`, checked to be a printable text of at most LINE characters, or empty.

    Raises:
      DataError: If it is not.
    """
    found = text_of(value, what, most=LINE)
    if not found.isprintable():
        raise DataError(f"{what} must be printable")
    return found


def whole(value: object, what: str, *, least: int, most: int) -> int:
    """`value`, checked to be a whole number in a range.

    Raises:
      DataError: If it is not.
    """
    if not isinstance(value, int) or isinstance(value, bool):
        raise DataError(f"{what} must be a whole number")
    if not least <= value <= most:
        raise DataError(f"{what} must be in {least} to {most}")
    return value


def build(cls: type[T], values: Any, *, path: str, form: JsonForm = SETTINGS) -> T:
    """Build dataclass `cls` from a mapping of its fields, nested dataclasses from nested mappings; the inverse of `plain`.

    Args:
      cls: a dataclass whose fields are bool, int, float, str, None, Literal, tuple[X, ...], tuple[X, X], Mapping[str, X],
        dataclasses, or unions of these.
      values: plain values, as `json.loads` gives them.
      path: key of this mapping in the whole, for messages; "" at the top.
      form: of the JSON.

    Raises:
      InvalidSetting, DataError: As `form` has it: if a key is missing or unknown, or a value has the wrong type.
    """
    if not isinstance(values, Mapping):
        raise form.error(
            f"{path}={_shown(values)} must be a group of settings" if form is SETTINGS else f"{path} must be an object"
        )
    hints = get_type_hints(cls)
    named = {field.name: field for field in fields(cast(Any, cls))}
    prefix = f"{path}." if path else ""
    if unknown := sorted(set(values) - set(named)):
        raise form.error(
            f"{prefix}{printable(unknown[0])} is not {form.thing}; {path or 'the top level'} knows {', '.join(named)}"
        )
    missing = [name for name, field in named.items() if name not in values and not (form.defaults and _has_default(field))]
    if missing:
        raise form.error(f"{prefix}{missing[0]} is missing; give {prefix}{missing[0]}=VALUE")
    return cls(**{name: _convert(values[name], hints[name], f"{prefix}{name}", form) for name in named if name in values})


def plain(value: Any, *, form: JsonForm = SETTINGS) -> Any:
    """A dataclass (or nested containers) as values that strict JSON knows: tuples become lists, infinity what `form` says.

    Raises:
      InvalidSetting, DataError: As `form` has it: if a number is NaN or minus infinity, which JSON cannot say.
    """
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name), form=form) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item, form=form) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, form=form) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        if value != math.inf:
            raise form.error(f"a value is {'not a number (NaN)' if math.isnan(value) else value} and cannot be written as JSON")
        return form.infinity
    return value


def canonical_json(value: Any) -> str:
    """JSON of `plain(value)` with sorted keys and no spaces, fit for hashing."""
    return json.dumps(plain(value), sort_keys=True, separators=(",", ":"), allow_nan=False)


def dumps(values: Mapping[str, Any]) -> str:
    """Strict JSON for people: indented, keys in the order given, a newline at the end."""
    return json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def printable(text: str) -> str:
    """The beginning of a text that may be a stranger's, fit for one line of a log.

    >>> printable("seed" + chr(10) + "error: all is lost")
    'seed?error: all is lost'
    """
    return "".join(character if character.isprintable() else "?" for character in text[:SHOWN])


def _shown(value: Any) -> str:
    return repr(value[:SHOWN] if isinstance(value, str) else value)[: SHOWN + 2]


def _has_default(field: Field[Any]) -> bool:
    return field.default is not MISSING or field.default_factory is not MISSING


def _convert(value: Any, hint: Any, path: str, form: JsonForm) -> Any:
    if isinstance(hint, type) and is_dataclass(hint):
        return build(hint, value, path=path, form=form)
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return _convert_union(value, arguments, path, form)
    if origin is tuple:
        return _convert_tuple(value, arguments, path, form)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            raise form.error(f"{path}={_shown(value)} must be an object")
        return {key: _convert(item, arguments[1], f"{path}.{key}", form) for key, item in value.items()}
    return _convert_scalar(value, hint, path, form)


def _convert_union(value: Any, options: tuple[Any, ...], path: str, form: JsonForm) -> Any:
    if value is None and type(None) in options:
        return None
    present = [option for option in options if option is not type(None)]
    if len(present) == 1 and (is_dataclass(present[0]) or get_origin(present[0]) is tuple):
        # Its own complaint names the key within it.
        return _convert(value, present[0], path, form)
    # Literals first: "auto" must not be tried as a number.
    for option in sorted(present, key=lambda option: not _is_literal(option)):
        try:
            return _convert(value, option, path, form)
        except form.error:
            continue
    raise form.error(f"{path}={_shown(value)} must be {' or '.join(map(_describe, options))}")


def _convert_tuple(value: Any, arguments: tuple[Any, ...], path: str, form: JsonForm) -> tuple[Any, ...]:
    if isinstance(value, Sequence) and not isinstance(value, str):
        items = value
    elif form.single:
        items = [value]
    else:
        raise form.error(f"{path}={_shown(value)} must be a list")
    if arguments[-1] is not Ellipsis and len(items) != len(arguments):
        raise form.error(f"{path} must have {len(arguments)} values, not {len(items)}")
    names = [path if form.single else f"{path}[{row}]" for row in range(len(items))]
    return tuple(_convert(item, arguments[0], name, form) for name, item in zip(names, items, strict=True))


def _convert_scalar(value: Any, hint: Any, path: str, form: JsonForm) -> Any:
    if hint is float:
        number = _number(value, form)
        if number is not None:
            return number
    elif _is_literal(hint):
        if value in get_args(hint):
            return value
    elif (hint is not int or not isinstance(value, bool)) and isinstance(value, hint):
        return value
    raise form.error(f"{path}={_shown(value)} must be {_describe(hint)}")


def _number(value: Any, form: JsonForm) -> float | None:
    """A value as a number; a whole number is one too, and True is none."""
    if value == form.infinity and type(value) is type(form.infinity):
        return math.inf
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value)
    except OverflowError:
        return None


def _is_literal(hint: Any) -> bool:
    return get_origin(hint) is cast(Any, Literal)


def _describe(hint: Any) -> str:
    if _is_literal(hint):
        return "one of " + ", ".join(str(option) for option in get_args(hint))
    return NAMES.get(hint, str(hint))
