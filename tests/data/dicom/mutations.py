"""Damaged DICOM files: what a broken disk, a careless export or somebody with bad intent may put into an archive."""

from __future__ import annotations

import io
import random
import struct
import warnings
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import pydicom
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian

BUNDLED = Path(pydicom.__file__).parent / "data" / "test_files"
PREAMBLE = 132
Mutation = Callable[[bytes, random.Random], bytes]


def bundled_files() -> list[Path]:
    """Files that come with pydicom, of all kinds and encodings."""
    return sorted(path for path in BUNDLED.rglob("*") if path.is_file() and path.stat().st_size < 1 << 20)


def flip_bytes(content: bytes, rng: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.choice((1, 2, 8, 64))):
        changed[rng.randrange(len(changed))] = rng.randrange(256)
    return bytes(changed)


def truncate(content: bytes, rng: random.Random) -> bytes:
    return content[: rng.randrange(1, len(content))]


def repeat_a_part(content: bytes, rng: random.Random) -> bytes:
    start, length = rng.randrange(len(content)), rng.randrange(1, 4096)
    return content[: start + length] + content[start:]


def lie_about_a_length(content: bytes, rng: random.Random) -> bytes:
    changed = bytearray(content)
    place = rng.randrange(PREAMBLE, max(PREAMBLE + 1, len(changed) - 8))
    for at in range(place, min(place + 4096, len(changed) - 8)):
        if changed[at : at + 2] in (b"OB", b"OW", b"SQ", b"UN", b"US", b"LO", b"UI"):
            changed[at + 2 : at + 8] = rng.choice(
                (b"\xff" * 6, b"\x00" * 6, struct.pack("<HI", 0, 0x7FFFFFFF), b"\x10\x00\x00\x10\x00\x00")
            )
            break
    return bytes(changed)


def lie_about_the_size(content: bytes, rng: random.Random) -> bytes:
    """Rows, columns, bits or frames that the pixels do not have."""
    tag = rng.choice((b"\x28\x00\x10\x00", b"\x28\x00\x11\x00", b"\x28\x00\x00\x01", b"\x28\x00\x01\x01", b"\x28\x00\x02\x00"))
    place = content.find(tag)
    if place < 0:
        return flip_bytes(content, rng)
    lie = struct.pack("<H", rng.choice((0, 1, 7, 255, 4096, 32767, 65535)))
    return content[: place + 8] + lie + content[place + 10 :]


def swap_tags(content: bytes, rng: random.Random) -> bytes:
    changed = bytearray(content)
    first, second = (rng.randrange(PREAMBLE, max(PREAMBLE + 1, len(changed) - 4)) & ~1 for _ in range(2))
    changed[first : first + 4], changed[second : second + 4] = changed[second : second + 4], changed[first : first + 4]
    return bytes(changed)


def other_syntax(content: bytes, rng: random.Random) -> bytes:
    """Pixels that say they are encoded in another way than they are."""
    syntaxes = (b"1.2.840.10008.1.2.5", b"1.2.840.10008.1.2.4.90", b"1.2.840.10008.1.2.4.80", b"1.2.840.10008.1.2.4.70")
    for old in (*syntaxes, b"1.2.840.10008.1.2.1", b"1.2.840.10008.1.2.2", b"1.2.840.10008.1.2"):
        place = content.find(old + b"\x00") if len(old) % 2 else content.find(old)
        if place > 0:
            new = rng.choice([syntax for syntax in syntaxes if len(syntax) <= len(old)] or [old])
            return content[:place] + new.ljust(len(old), b"\x00") + content[place + len(old) :]
    return flip_bytes(content, rng)


def bomb(content: bytes, rng: random.Random) -> bytes:
    """A small deflated file that is huge when it is inflated."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        header = pydicom.Dataset()
        header.file_meta = pydicom.dataset.FileMetaDataset()
        header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        header.file_meta.MediaStorageSOPClassUID = header.SOPClassUID = "1.2.840.10008.5.1.4.1.1.1.2"
        header.file_meta.MediaStorageSOPInstanceUID = header.SOPInstanceUID = "1.2.3"
        buffer = io.BytesIO()
        header.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
        pydicom.dcmwrite(buffer, header, enforce_file_format=True)
    whole = buffer.getvalue()
    length = struct.unpack_from("<I", whole, PREAMBLE + 8)[0]
    squeezer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    zeros = b"\x00" * (1 << 20)
    squeezed = [squeezer.compress(b"\xe0\x7f\x10\x00OB\x00\x00" + struct.pack("<I", 0x7FFFFFF0))]
    squeezed += [squeezer.compress(zeros) for _ in range(300 + rng.randrange(40))]
    return whole[: PREAMBLE + 12 + length] + b"".join(squeezed) + squeezer.flush()


# The bomb takes a second to make and to take apart: one in a thousand.
COMMON: Sequence[Mutation] = (
    flip_bytes,
    truncate,
    repeat_a_part,
    lie_about_a_length,
    lie_about_the_size,
    swap_tags,
    other_syntax,
)


def mutate(content: bytes, rng: random.Random) -> bytes:
    """One damaged copy."""
    if rng.random() < 0.0005:
        return bomb(content, rng)
    for _ in range(rng.choice((1, 1, 1, 2))):
        content = rng.choice(COMMON)(content, rng) or b"\x00"
    return content
