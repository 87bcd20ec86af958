"""Bounds of what comes over the wire, fixed before any of it is read, and how texts, numbers and arrays are read within them.

Whoever sends it is a stranger: what is outside of a bound is a DataError, before memory is taken for it and before a library
that was made for friends reads it.
"""

from __future__ import annotations

import re
from typing import Any, Final

import numpy as np
from flwr.app import Array, ArrayRecord
from numpy.typing import DTypeLike, NDArray

from mammo_fed.errors import DataError

__all__ = [
    "ANSWER_BYTES",
    "COUNT",
    "LINE",
    "LONG_TEXT",
    "SAMPLED_IMAGES_PER_PATIENT",
    "STEPS",
    "TEXT",
    "answer_bytes",
    "flat_array",
    "line",
    "text_of",
    "whole",
]

# Characters: of a word or a hash, of a JSON text about one site, and of one about all sites of a masked sum.
LINE: Final = 200
TEXT: Final = 1 << 16
LONG_TEXT: Final = 1 << 23
# Images, patients and steps: no hospital has more, and all arithmetic on them stays in the range of its types.
COUNT: Final = 10**9
STEPS: Final = 10**9
# Pricing a patient of whom several images are sampled takes memory that grows with the square of their number.
SAMPLED_IMAGES_PER_PATIENT: Final = 1000
# Bytes of a whole answer beside its arrays.
ANSWER_BYTES: Final = 1 << 25
ITEM_BYTES: Final = 8

# An array as numpy writes it, of any release: a mark, the version 1.0, the length of what follows, and the text of a dict.
MAGIC: Final = b"\x93NUMPY\x01\x00"
START: Final = len(MAGIC) + 2
HEADER: Final = re.compile(
    rb"\{'descr': '(?P<descr>[<|>][a-z][0-9]{1,2})', 'fortran_order': False, "
    rb"'shape': \((?P<length>[0-9]{1,18}),\), *\} *\n"
)
STYPE: Final = "numpy.ndarray"


def answer_bytes(numbers: int) -> int:
    """Bytes that a site's answer may have whose arrays have up to `numbers` entries."""
    return ANSWER_BYTES + 2 * ITEM_BYTES * numbers


def flat_array(record: ArrayRecord, name: str, dtype: DTypeLike) -> NDArray[Any]:
    """The one flat array of a record, in memory of its own.

    Nothing is taken on trust: the header is compared as text and not evaluated, and the data must be as long as it says.

    Args:
      record: as it came.
      name: of the array.
      dtype: that it must have.

    Raises:
      DataError: If the record holds something else.
    """
    if list(record) != [name]:
        raise DataError(f"a message must carry one array named {name!r}")
    array, wanted = record[name], np.dtype(dtype)
    count = _count(array, wanted)
    return np.frombuffer(array.data, wanted, count=count, offset=len(array.data) - count * wanted.itemsize).copy()


def _count(array: Array, wanted: np.dtype[Any]) -> int:
    """The number of entries of an array that is whole and flat."""
    if array.stype != STYPE:
        raise DataError("an array must be serialised by numpy")
    data = array.data
    start = START + int.from_bytes(data[len(MAGIC) : START], "little")
    header = HEADER.fullmatch(data, START, start)
    if not data.startswith(MAGIC) or header is None:
        raise DataError("a message's array must be flat, and written as numpy writes it")
    if header["descr"].decode("ascii") != wanted.newbyteorder("<").str:
        raise DataError(f"a message's array must be {wanted.name}")
    count = int(header["length"])
    if len(data) - start != count * wanted.itemsize:
        raise DataError(f"an array of {len(data) - start} bytes has not the {count} entries that it names")
    if tuple(array.shape) != (count,) or array.dtype != wanted.name:
        raise DataError("an array must have the shape and type that come with it")
    return count


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
