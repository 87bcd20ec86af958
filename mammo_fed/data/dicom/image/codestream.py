"""What a compressed frame says of itself, read before a decoder sees it: no header that lies decides how much is allocated."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final, Literal

__all__ = ["FrameSize", "frame_size"]

Kind = Literal["JPEG", "lossless JPEG", "JPEG-LS", "JPEG 2000"]
JPEG_START: Final = b"\xff\xd8"
JPEG_2000_START: Final = b"\xff\x4f\xff\x51"
JP2_SIGNATURE: Final = b"\x00\x00\x00\x0cjP  \r\n\x87\n"
# Start-of-frame markers: all of JPEG's but DHT (C4), JPG (C8) and DAC (CC), and JPEG-LS' own.
LOSSLESS_MARKERS: Final = frozenset({0xC3, 0xC7, 0xCB, 0xCF})
FRAME_MARKERS: Final = frozenset({*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC})
# Markers without a length: restart intervals and the temporary one.
BARE_MARKERS: Final = frozenset({*range(0xD0, 0xD8), 0x01})
# A header is short; what has none in so many segments has none.
MOST_SEGMENTS: Final = 64


@dataclass(frozen=True, kw_only=True)
class FrameSize:
    """Rows and columns in pixels, samples of a pixel, bits of a sample and whether they are signed, and what kind it is."""

    rows: int
    columns: int
    samples: int
    precision: int
    signed: bool = False
    kind: Kind = "JPEG"


def frame_size(frame: bytes) -> FrameSize | None:
    """Size that a JPEG, JPEG-LS or JPEG 2000 codestream announces; None where there is no such header."""
    try:
        if frame.startswith(JPEG_START):
            return _jpeg(frame)
        start = frame.find(JPEG_2000_START, 0, 4096) if frame.startswith(JP2_SIGNATURE) else 0
        if start >= 0 and frame.startswith(JPEG_2000_START, start):
            return _jpeg_2000(frame, start)
    except struct.error:
        return None
    return None


def _jpeg(frame: bytes) -> FrameSize | None:
    """ISO/IEC 10918-1, B.2.2, and ISO/IEC 14495-1, C.2.2."""
    place = 2
    for _ in range(MOST_SEGMENTS):
        while frame[place : place + 2] == b"\xff\xff":
            place += 1
        fill, marker = struct.unpack_from(">BB", frame, place)
        if fill != 0xFF:
            return None
        if marker in BARE_MARKERS:
            place += 2
            continue
        (length,) = struct.unpack_from(">H", frame, place + 2)
        if marker in FRAME_MARKERS:
            precision, rows, columns, samples = struct.unpack_from(">BHHB", frame, place + 4)
            kind: Kind = "JPEG-LS" if marker == 0xF7 else "lossless JPEG" if marker in LOSSLESS_MARKERS else "JPEG"
            return FrameSize(rows=rows, columns=columns, samples=samples, precision=precision, kind=kind)
        place += 2 + length
    return None


def _jpeg_2000(frame: bytes, start: int) -> FrameSize:
    """ISO/IEC 15444-1, A.5.1: the SIZ segment."""
    right, bottom, left, top = struct.unpack_from(">IIII", frame, start + 8)
    samples, depth = struct.unpack_from(">HB", frame, start + 40)
    # Its highest bit is the sign.
    return FrameSize(
        rows=bottom - top,
        columns=right - left,
        samples=samples,
        precision=(depth & 0x7F) + 1,
        signed=depth >= 0x80,
        kind="JPEG 2000",
    )
