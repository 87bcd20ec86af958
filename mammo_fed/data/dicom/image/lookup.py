"""Look-up tables of headers (PS3.3, C.11.1 and C.11.2) as they are found: of 8 to 16 bits, packed or not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

__all__ = ["LookupTable", "table_of"]


@dataclass(frozen=True, kw_only=True, eq=False)
class LookupTable:
    """Values by input.

    Attributes:
      first: the input that the first entry is for; inputs below get the first entry, inputs above the table the last.
      entries: float64, shape (entries,).
      largest: the value that stands for full brightness: of the announced bits, or the largest entry where that needs fewer.
    """

    first: int
    entries: NDArray[np.float64]
    largest: float

    def __call__(self, values: NDArray[Any]) -> NDArray[np.float64]:
        """The entries for inputs of any shape and integer or float dtype."""
        # Wide enough that a difference does not wrap.
        place = np.clip(np.asarray(values).astype(np.int64) - self.first, 0, len(self.entries) - 1)
        found: NDArray[np.float64] = self.entries[place]
        return found


def table_of(item: Dataset, *, signed: bool, little_endian: bool = True) -> LookupTable:
    """The table of an item of ModalityLUTSequence or VOILUTSequence.

    Args:
      item: with LUTDescriptor and LUTData.
      signed: whether inputs can be negative: the first input of the descriptor is then a signed number.
      little_endian: how the file stores words.

    Raises:
      ValueError: If it holds no table, or fewer entries than announced; other errors of pydicom pass through.
    """
    count, first, bits = (int(value) for value in item.LUTDescriptor)
    count = (count & 0xFFFF) or 1 << 16
    first &= 0xFFFF
    if signed and first >= 1 << 15:
        first -= 1 << 16
    entries = _entries(item.LUTData, count, little_endian=little_endian)
    if not 1 <= bits <= 16 or not len(entries):
        raise ValueError("no table")
    highest = int(entries.max())
    # A table of 12 bits that announces 16 is as bright as its largest entry.
    largest = (1 << bits) - 1 if highest.bit_length() == bits else highest
    return LookupTable(first=first, entries=entries.astype(np.float64), largest=float(max(1, largest)))


def _entries(data: Any, count: int, *, little_endian: bool) -> NDArray[np.int64]:
    """Entries of one byte each, or of a word each, whichever the data's length says."""
    if not isinstance(data, (bytes, bytearray)):
        # US or SS: pydicom has made numbers of them. Negative ones are words that were written as signed.
        values = np.atleast_1d(np.asarray(data, dtype=np.int64)) & 0xFFFF
        if len(values) >= count:
            return values[:count]
        # Two entries of 8 bits in each word, the first in the lower byte.
        packed = np.stack([values & 0xFF, values >> 8], axis=1).ravel()
        if len(packed) >= count:
            return packed[:count]
        raise ValueError("a table is shorter than announced")
    if len(data) >= 2 * count:
        return np.frombuffer(data[: 2 * count], dtype="<u2" if little_endian else ">u2").astype(np.int64)
    if len(data) < count:
        raise ValueError("a table is shorter than announced")
    content = np.frombuffer(data, dtype=np.uint8)
    if not little_endian and len(content) % 2 == 0:
        content = content.reshape(-1, 2)[:, ::-1].ravel()
    return content[:count].astype(np.int64)
