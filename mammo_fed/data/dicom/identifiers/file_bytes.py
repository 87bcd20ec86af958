"""Where a file holds bytes that no attribute shows: its preamble, comments of codestreams, what follows pixels."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from itertools import islice
from typing import Final

from pydicom import FileDataset
from pydicom.encaps import generate_fragments
from pydicom.uid import RLELossless

from mammo_fed.data.dicom.image.headers import PREAMBLE, text_of

__all__ = ["bytes_beside_attributes", "kind_of_file"]

PREAMBLE_WORD: Final = "preamble"
COMMENTS: Final = "comments in compressed pixels"
AFTER_PIXELS: Final = "bytes after the pixels"
AFTER_DATA: Final = "bytes after the data set"
# PS3.10, 7.1: a file may be a TIFF file at the same time.
TIFF: Final = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
# What programs write of themselves, and nothing more; and what is a word at all, in one byte a letter or in two.
OWN_WORDS: Final = re.compile(
    rb"(?:Created by (?:GDCM/)?OpenJPEG version [\d.]+|Creator: JasPer Version [\d.]+|Kakadu-v?[\d.]+"
    rb"|Kdu-Layer-Info[^A-Za-z]*|JFIF\0.{9}|Adobe.{7}|mrfx.{1,2}|SPIFF\0.{20,26})\0?",
    re.DOTALL,
)
WORD: Final = re.compile(rb"[0-9A-Za-z\x80-\xff]{3}|(?:[0-9A-Za-z]\0){3}")
MOST_FRAGMENTS, MOST_SEGMENTS = 1000, 1000
JPEG_2000: Final = b"\xff\x4f"
JP2: Final = b"\0\0\0\x0cjP  "
STARTS: Final = (b"\xff\xd8", JPEG_2000, JP2)
# Boxes of a JP2 file that hold what its writer likes.
BOXES: Final = re.compile(rb"(?:xml |uuid|uinf)")
# A marker with a length, or the end. In entropy-coded data a byte of ones is followed by none of them.
JPEG_MARKER: Final = re.compile(rb"\xff[\xc0-\xcf\xd9-\xfe]")
MAGIC: Final = {
    b"%PDF": "PDF",
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG": "PNG",
    b"GIF8": "GIF",
    b"BM": "BMP",
    b"PK\x03\x04": "ZIP or Office",
    b"\xd0\xcf\x11\xe0": "Office",
    b"\x1f\x8b": "GZIP",
    b"7z\xbc\xaf": "7-Zip",
    **dict.fromkeys(TIFF, "TIFF"),
}
WINDOW: Final = 4096


def bytes_beside_attributes(content: bytes, header: FileDataset) -> set[str]:
    """Places of one file that hold something, by words of a fixed list.

    Args:
      content: the whole file.
      header: what pydicom read of it.
    """
    found = set()
    if content[PREAMBLE : PREAMBLE + 4] == b"DICM" and content[:PREAMBLE].strip(b"\0") and not content.startswith(TIFF):
        found.add(PREAMBLE_WORD)
    if "DataSetTrailingPadding" in header and bytes(header.DataSetTrailingPadding).strip(b"\0"):
        found.add(AFTER_DATA)
    if "PixelData" not in header:
        return found
    pixels, syntax = header.PixelData, header.file_meta.TransferSyntaxUID
    end = _end_of_pixels(content, pixels, encapsulated=syntax.is_encapsulated)
    if end is not None and _not_an_element(content[end:]):
        found.add(AFTER_DATA)
    if not syntax.is_encapsulated:
        rest = pixels[_native_bytes(header) :]
        # One byte makes the length even; with its bytes swapped, it stands before the last of the pixels.
        if len(rest) > 1 and rest.strip(b"\0"):
            found.add(AFTER_PIXELS)
        return found
    if syntax != RLELossless:
        for frame in _codestreams(pixels):
            found |= _of_codestream(frame)
    return found


def kind_of_file(start: bytes) -> str:
    """What a file that is no DICOM file seems to be, by its first bytes: a word of a fixed list."""
    for magic, kind in MAGIC.items():
        if start.startswith(magic):
            return kind
    if not start:
        return "empty"
    return "other" if b"\0" in start[:WINDOW].removeprefix(b"\xff\xfe")[::2] else "text"


def _native_bytes(header: FileDataset) -> int:
    words = ("Rows", "Columns", "BitsAllocated", "SamplesPerPixel", "NumberOfFrames")
    rows, columns, bits, samples, frames = (int(text_of(header, word) or 1) for word in words)
    return -(-rows * columns * bits * samples * frames // 8)


def _end_of_pixels(content: bytes, pixels: bytes, *, encapsulated: bool) -> int | None:
    """Where the pixels' element ends in the file; None where they are not in it as they are, as in deflated files."""
    start = content.rfind(pixels[:WINDOW]) if len(pixels) <= WINDOW else content.find(pixels[: 1 << 16])
    if not pixels or start < 0 or content[start : start + len(pixels)] != pixels:
        return None
    # A sequence delimiter follows compressed frames (PS3.5, A.4).
    return start + len(pixels) + (8 if encapsulated and content[start + len(pixels) :].startswith(b"\xfe\xff\xdd\xe0") else 0)


def _not_an_element(rest: bytes) -> bool:
    """Whether something follows that is no further element: padding (FFFC), signatures (FFFA), or pixels of another kind."""
    if not rest.strip(b"\0"):
        return False
    group = struct.unpack_from("<H", rest)[0] if len(rest) >= 8 else 0
    return group not in (0x7FE0, 0xFFFA, 0xFFFC) and not (group > 0x7FE0 and group % 2)


def _codestreams(pixels: bytes) -> Iterator[bytes]:
    """Codestreams, of one fragment or several each; not the table of offsets before them."""
    parts: list[bytes] = []
    for fragment in islice(generate_fragments(pixels), 1, MOST_FRAGMENTS):
        if fragment.startswith(STARTS) and parts:
            yield b"".join(parts)
            parts = []
        parts.append(fragment)
    yield b"".join(parts)


def _of_codestream(frame: bytes) -> set[str]:
    found = set()
    if frame.startswith(JP2):
        # Boxes are before the codestream or after it; their types may turn up in its packets by chance.
        begin = frame.find(JPEG_2000 + b"\xff\x51")
        if BOXES.search(frame[: max(begin, 0)]):
            found.add(COMMENTS)
        frame = frame[max(begin, 0) :]
    words = list(_jpeg_2000_words(frame) if frame.startswith(JPEG_2000) else _jpeg_words(frame))
    if any(WORD.search(word) and not OWN_WORDS.fullmatch(word) for word in words):
        found.add(COMMENTS)
    ended = frame.rfind(b"\xff\xd9")
    # A fragment is padded to an even length, with zero or, by some, with what fills between markers.
    if ended >= 0 and frame[ended + 2 :].strip(b"\0\xff"):
        found.add(AFTER_PIXELS)
    return found


def _jpeg_words(frame: bytes) -> Iterator[bytes]:
    """Comments and application data (ISO/IEC 10918-1, B.2.4.5 and B.2.4.6; the same markers in JPEG-LS)."""
    place = 2
    for _ in range(MOST_SEGMENTS):
        # After a scan's header, whatever is no marker is its data.
        found = JPEG_MARKER.search(frame, place) if frame.startswith(b"\xff\xd8") else None
        if found is None or found.end() + 2 > len(frame) or found[0] == b"\xff\xd9":
            return
        (length,) = struct.unpack_from(">H", frame, found.end())
        if found[0][1] == 0xFE or 0xE0 <= found[0][1] <= 0xEF:
            yield frame[found.end() + 2 : found.end() + length]
        place = found.end() + max(length, 2)


def _jpeg_2000_words(frame: bytes) -> Iterator[bytes]:
    """Comments of the main header and of those of tile parts (ISO/IEC 15444-1, A.9.2)."""
    place, part = 2, None
    for _ in range(MOST_SEGMENTS):
        if place + 4 > len(frame):
            return
        marker, length = struct.unpack_from(">HH", frame, place)
        if marker == 0xFF90 and place + 12 <= len(frame):
            part = place + struct.unpack_from(">I", frame, place + 6)[0]
        if marker == 0xFF93:
            if part is None or part <= place:
                return
            place = part
            continue
        if marker == 0xFFD9:
            return
        if marker == 0xFF64:
            yield frame[place + 6 : place + 2 + length]
        place += 2 + length
