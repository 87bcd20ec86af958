"""Which bits of a word are the sample: headers say it, devices and anonymisers get it wrong, and the pixels show who is right.

PS3.5, 8.1.1: a sample has BitsStored bits, the highest of them at HighBit; of the other bits nothing may be assumed. Overlays
of old devices lie there, and where a header says too few bits, a part of the samples.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mammo_fed.data.dicom.findings import Skipped

__all__ = ["samples_of"]

# Rows that are looked at to compare two readings of the bits, and neighbours that make a comparison.
ROWS, FEWEST = 512, 20
# Where the bits in question change, neighbours differ so much less in the right reading than in the other.
SMOOTHER: Final = 0.5
# Against the header's sign only what is beyond doubt is believed.
MUCH_SMOOTHER: Final = 0.25
# Images of so few bits have masks and saturated edges, where black and white are neighbours in either reading.
SIGN_BITS: Final = 9


def samples_of(words: NDArray[Any], *, bits: int, high_bit: int, overlay_bits: frozenset[int] = frozenset()) -> NDArray[Any]:
    """The samples in an image's words.

    Args:
      words: as they were decoded, shape (rows, columns); a signed dtype where samples are signed.
      bits: BitsStored, from 1 to the size of a word.
      high_bit: HighBit.
      overlay_bits: positions of bits that the header gives to overlays.

    Returns:
      The same dtype and shape; `words` itself where it holds nothing else.

    Raises:
      Skipped: If the header's numbers contradict each other, or the pixels contradict them.
    """
    width, shift = 8 * words.dtype.itemsize, high_bit + 1 - bits
    if shift < 0 or high_bit >= width:
        raise Skipped(
            "unsupported_encoding", f"the header puts {bits} bits below bit {high_bit} of {width}: there is no such place"
        )
    if bits == width:
        _check_sign(words, bits)
        return words
    plain = words.view(f"u{words.dtype.itemsize}")
    if shift:
        return _left_justified(words, plain, bits=bits, shift=shift, overlay_bits=overlay_bits)
    if not int(plain.max()) >> bits:
        samples = _low(words, bits) if words.dtype.kind == "i" else words
        _check_sign(samples, bits)
        return samples
    samples = _low(words, bits)
    others = int(np.bitwise_or.reduce(plain, axis=None)) >> bits << bits
    others &= ~sum(1 << bit for bit in overlay_bits)
    if not others or np.array_equal(samples, words):
        return samples
    above = (plain & others) != 0
    jumps = _jumps(samples, words, where=above, step=max(1, len(words) // ROWS)) or _jumps(samples, words, where=above)
    if above.all() or (jumps is not None and jumps[0] <= SMOOTHER * jumps[1]):
        # What lies above is an overlay's or noise: at its edges the samples go on as before.
        return samples
    raise Skipped("size_mismatch", f"samples take more bits than the {bits} that the header says are stored")


def _left_justified(
    words: NDArray[Any], plain: NDArray[Any], *, bits: int, shift: int, overlay_bits: frozenset[int]
) -> NDArray[Any]:
    """Samples in the upper bits of the words, as film digitisers and computed radiography wrote them."""
    below = int(np.bitwise_or.reduce(plain, axis=None)) & ((1 << shift) - 1) & ~sum(1 << bit for bit in overlay_bits)
    if below and not int(plain.max()) >> bits:
        raise Skipped("size_mismatch", f"the header puts samples at bit {shift} and above, the pixels are in the {bits} lowest")
    return _low(words >> shift, bits)


def _low(words: NDArray[Any], bits: int) -> NDArray[Any]:
    """The lowest bits, with the sign that they have."""
    unused = 8 * words.dtype.itemsize - bits
    # Shifts of a signed dtype bring the sign along, of an unsigned one zeros.
    samples: NDArray[Any] = (words << unused) >> unused
    return samples


def _check_sign(samples: NDArray[Any], bits: int) -> None:
    """Signed samples that are smooth only when read as unsigned ones, and the other way round.

    Raises:
      Skipped: If the pixels contradict the header.
    """
    signed = samples.dtype.kind == "i"
    # The sign bit is in use.
    if bits < SIGN_BITS or not (int(samples.min()) < 0 if signed else int(samples.max()) >> (bits - 1)):
        return
    some = samples[:: max(1, len(samples) // ROWS)]
    turned = some.view(f"{'u' if signed else 'i'}{some.dtype.itemsize}")
    other = turned & ((1 << bits) - 1) if signed else _low(turned, bits)
    # Saturated pixels and padding are beside anything.
    inner = (some > some.min()) & (some < some.max()) & (other > other.min()) & (other < other.max())
    jumps = _jumps(some, other, where=some < 0 if signed else (some >> (bits - 1)) != 0, inner=inner)
    if jumps is not None and jumps[1] < MUCH_SMOOTHER * jumps[0]:
        raise Skipped("size_mismatch", f"the header says {'signed' if signed else 'unsigned'} samples, the pixels are not")


def _jumps(
    one: NDArray[Any],
    other: NDArray[Any],
    *,
    where: NDArray[np.bool_],
    inner: NDArray[np.bool_] | None = None,
    step: int = 1,
) -> tuple[float, float] | None:
    """Median difference of neighbours across the edges of an area, in two readings; None where there are too few."""
    found: tuple[list[NDArray[np.int64]], list[NDArray[np.int64]]] = ([], [])
    # Of rows so many apart, along them and down to the next row.
    for these, those in ((np.s_[::step, :-1], np.s_[::step, 1:]), (np.s_[:-1:step], np.s_[1::step])):
        edge = where[these] != where[those]
        if inner is not None:
            edge &= inner[these] & inner[those]
        for reading, values in zip(found, (one, other), strict=True):
            reading.append(np.abs(values[these][edge].astype(np.int64) - values[those][edge]))
    first, second = (np.concatenate(reading) for reading in found)
    return (float(np.median(first)), float(np.median(second))) if len(first) >= FEWEST else None
