"""How samples lie in a DICOM file, in the ways that people have met: each is shown as it was drawn, or refused with a reason.

PS3.5, chapter 8, says what counts: BitsStored bits up to HighBit, in two's complement where PixelRepresentation is 1; of any
other bit nothing may be assumed.
"""

from __future__ import annotations

import io
import subprocess
from collections.abc import Callable
from pathlib import Path
from shutil import which
from typing import Any, Final

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pydicom import Dataset
from pydicom.encaps import encapsulate, encapsulate_extended, generate_frames
from pydicom.uid import (
    UID,
    ExplicitVRBigEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLSLossless,
    RLELossless,
)

from mammo_fed.data.dicom.phantom_archive.writing import write_dicom
from tests.data.dicom.reported.drawing import (
    COLUMNS,
    ROWS,
    TOLERANCE,
    Archive,
    Told,
    as_stored,
    file_of,
    header,
    scene,
)

OVERLAY_BIT: Final = 14


def left_justified(number: int) -> Dataset:
    """HighBit above BitsStored - 1, PS3.5 8.1.1 of the editions before 2014: old film digitisers put 12 bits on top of 16."""
    return header((as_stored(scene(number)) << 4).astype(np.uint16), number=number, HighBit=15)


def in_the_middle(number: int) -> Dataset:
    """HighBit between the two ends, with what is left of another image below: neither belongs to the samples."""
    noise = np.random.default_rng(number).integers(0, 4, (ROWS, COLUMNS), dtype=np.uint16)
    return header(((as_stored(scene(number)) << 2) | noise).astype(np.uint16), number=number, HighBit=13)


def few_bits_said(number: int) -> Dataset:
    """BitsStored of 10 over samples of 12 bits, as converters leave it: 1024 and 0 are not one value."""
    return header(as_stored(scene(number)), number=number, bits=10)


def signed_without_sign_bits(number: int) -> Dataset:
    """Bits above HighBit need not repeat the sign (PS3.5 8.1.1): here they are 0."""
    return header(signed(number) & np.uint16(0x0FFF), number=number, PixelRepresentation=1)


def signed(number: int, bits: int = 12) -> NDArray[np.uint16]:
    """Two's complement in 16 bits."""
    steps = np.round(scene(number) * ((1 << bits) - 1)).astype(np.int32) - (1 << (bits - 1))
    return (steps & 0xFFFF).astype(np.uint16)


def with_drawing(stored: NDArray[np.uint16]) -> NDArray[np.uint16]:
    drawn = stored.copy()
    drawn[130:190:3, 60:150] |= np.uint16(1 << OVERLAY_BIT)
    return drawn


def overlay_in_a_bit(number: int) -> Dataset:
    """An overlay in a bit of its own above the samples (PS3.3 C.9.2, retired in 2004)."""
    made = undeclared_overlay(number)
    plane = {0x0010: ("US", ROWS), 0x0011: ("US", COLUMNS), 0x0040: ("CS", "G"), 0x0050: ("SS", [1, 1])}
    for element, (kind, value) in {**plane, 0x0100: ("US", 16), 0x0102: ("US", OVERLAY_BIT)}.items():
        made.add_new((0x6000, element), kind, value)
    return made


def undeclared_overlay(number: int) -> Dataset:
    """The same bit after an anonymiser took group 60xx away: the image is smooth without it and not with it."""
    return header(with_drawing(as_stored(scene(number))), number=number)


def compressed(stored: NDArray[Any], number: int, syntax: UID, *, bits: int, **said: Any) -> Dataset:
    """Encoded as unsigned values of `bits` bits; what the header says of them is another thing."""
    made = header(stored, number=number, bits=bits)
    made.compress(syntax, generate_instance_uid=False)
    for name, value in said.items():
        setattr(made, name, value)
    return made


def jpeg_2000_overlay(number: int) -> Dataset:
    """16 bits in the JPEG 2000 codestream, 12 of which are samples (PS3.5 8.2.4)."""
    stored = with_drawing(as_stored(scene(number)))
    return compressed(stored, number, JPEG2000Lossless, bits=16, BitsStored=12, HighBit=11)


def jpeg_2000_overlay_signed(number: int) -> Dataset:
    """The same of signed samples: sign bits are taken from bit 11 and the overlay is not."""
    stored = with_drawing(signed(number) & np.uint16(0x0FFF))
    return compressed(stored, number, JPEG2000Lossless, bits=16, BitsStored=12, HighBit=11, PixelRepresentation=1)


def jpeg_2000_sign_differs(number: int) -> Dataset:
    """The codestream says unsigned, the header two's complement: the header decides (PS3.5 8.2.4)."""
    return compressed(signed(number, 13) & np.uint16(0x1FFF), number, JPEG2000Lossless, bits=13, PixelRepresentation=1)


def jpeg_ls_signed(number: int) -> Dataset:
    """JPEG-LS knows no sign (ISO 14495-1): the header's counts, in 13 bits (PS3.5 8.2.3)."""
    return compressed(signed(number, 13) & np.uint16(0x1FFF), number, JPEGLSLossless, bits=13, PixelRepresentation=1)


def rle_signed(number: int) -> Dataset:
    """Run lengths of bytes (PS3.5 annex G), sign bits left out."""
    return compressed(signed(number) & np.uint16(0x0FFF), number, RLELossless, bits=12, PixelRepresentation=1)


def one_byte_too_many(number: int) -> Dataset:
    """Trailing padding beyond the even length (PS3.5 8.1.1, note: receivers accept it)."""
    made = header(as_stored(scene(number)), number=number)
    made.PixelData += b"\0\0"
    return made


def one_sector_too_many(number: int) -> Dataset:
    """The same to the end of a disk's sector."""
    made = header(as_stored(scene(number)), number=number)
    made.PixelData += b"\0" * 512
    return made


def many_fragments(number: int) -> Dataset:
    """One frame in several fragments (PS3.5 A.4)."""
    made = header(as_stored(scene(number)), number=number)
    made.compress(JPEG2000Lossless, generate_instance_uid=False)
    made.PixelData = encapsulate([next(generate_frames(made.PixelData, number_of_frames=1))], fragments_per_frame=5)
    return made


def extended_offsets(number: int) -> Dataset:
    """An extended offset table in place of the basic one (PS3.3 C.7.6.3.1.8)."""
    made = header(as_stored(scene(number)), number=number)
    made.compress(JPEG2000Lossless, generate_instance_uid=False)
    frame = next(generate_frames(made.PixelData, number_of_frames=1))
    made.PixelData, made.ExtendedOffsetTable, made.ExtendedOffsetTableLengths = encapsulate_extended([frame])
    return made


def baseline_jpeg(number: int) -> Dataset:
    """Lossy JPEG of 8 bits, process 1 (PS3.5 A.4.1)."""
    stored, buffer = as_stored(scene(number), 8), io.BytesIO()
    Image.fromarray(stored).save(buffer, format="JPEG", quality=98)
    made = header(stored, number=number, bits=8)
    made.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    made.PixelData = encapsulate([buffer.getvalue()])
    return made


def big_endian(number: int) -> bytes:
    """Explicit VR big endian, retired in 2006: words have their high byte first (PS3.5 annex A.3, 2005)."""
    return as_big_endian(header(as_stored(scene(number)).byteswap(), number=number))


def big_endian_bytes_in_words(number: int) -> bytes:
    """8-bit samples in OW are words: every two bytes are swapped (PS3.5 8.1.2 and annex D)."""
    stored = as_stored(scene(number), 8)
    made = header(stored, number=number, bits=8)
    made.PixelData = stored.ravel().view(np.uint16).byteswap().tobytes()
    return as_big_endian(made)


def as_big_endian(made: Dataset) -> bytes:
    made.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
    made["PixelData"].VR = "OW"
    buffer = io.BytesIO()
    made.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def implicit_without_meta_header(number: int) -> bytes:
    """A data set alone, without preamble and group 2 (PS3.10 7.1 asks for them; old exports and stores leave them out)."""
    return data_set_alone(number, implicit=True)


def explicit_without_meta_header(number: int) -> bytes:
    """The same with explicit value representations."""
    return data_set_alone(number, implicit=False)


def data_set_alone(number: int, *, implicit: bool) -> bytes:
    made, buffer = header(as_stored(scene(number)), number=number), io.BytesIO()
    del made.file_meta
    made.save_as(buffer, implicit_vr=implicit, little_endian=True)
    return buffer.getvalue()


def nul_after_a_word(number: int) -> bytes:
    """Code strings are padded with a blank (PS3.5 6.2, CS); some writers take NUL."""
    return replaced(number, b"MONOCHROME2 ", b"MONOCHROME2\0")


def lower_case_word(number: int) -> bytes:
    """Code strings are upper case (PS3.5 6.2, CS); what is meant is not in doubt."""
    return replaced(number, b"MONOCHROME2 ", b"monochrome2 ")


def lower_case_modality(number: int) -> bytes:
    """The same of the modality."""
    return replaced(number, b"\x08\x00\x60\x00CS\x02\x00MG", b"\x08\x00\x60\x00CS\x02\x00mg")


def modality_with_blank_and_nul(number: int) -> bytes:
    """Padded with both."""
    return replaced(number, b"\x08\x00\x60\x00CS\x02\x00MG", b"\x08\x00\x60\x00CS\x04\x00MG \0")


def replaced(number: int, old: bytes, new: bytes) -> bytes:
    content = file_of(header(as_stored(scene(number)), number=number))
    assert old in content
    return content.replace(old, new)


def two_undeclared_overlays(number: int) -> Dataset:
    """Two bits, of two overlays that lie over each other."""
    stored = as_stored(scene(number))
    stored[130:190:3, 60:150] |= np.uint16(1 << 15)
    stored[100:150:4, 60:150] |= np.uint16(1 << 12)
    return header(stored, number=number)


def undeclared_overlay_beside_the_breast(number: int) -> Dataset:
    """A label in the next bit above the samples, over air only."""
    stored = as_stored(scene(number))
    stored[5:25:2, 200:250] |= np.uint16(1 << 12)
    return header(stored, number=number)


def brightest_beyond_the_bits(number: int) -> Dataset:
    """Only the brightest tissue is beyond the BitsStored that a converter left: wrapped it would be a dark hole."""
    stored = as_stored(scene(number) * 0.999)
    stored[stored > 3000] += np.uint16(1500)
    return header(stored, number=number)


def signed_stream_said_unsigned(number: int) -> Dataset:
    """A JPEG 2000 codestream of signed samples under a header of unsigned ones: they must agree (PS3.5 8.2.4)."""
    made = header(signed(number).view(np.int16), number=number, PixelRepresentation=1)
    made.compress(JPEG2000Lossless, generate_instance_uid=False)
    made.PixelRepresentation = 0
    return made


def stream_of_another_kind(number: int) -> Dataset:
    """JPEG 2000 under the transfer syntax of JPEG (PS3.5 8.2): decoders guess, and one of them cuts samples to 8 bits."""
    made = header(as_stored(scene(number)), number=number)
    made.compress(JPEG2000Lossless, generate_instance_uid=False)
    made.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    return made


def rows_for_columns(number: int) -> Dataset:
    """Rows and Columns exchanged by a writer that counts the other way: as many bytes, and a sheared image."""
    return header(as_stored(scene(number)), number=number, Rows=COLUMNS, Columns=ROWS)


SHOWN: Final[tuple[Callable[[int], Dataset | bytes], ...]] = (
    left_justified,
    in_the_middle,
    signed_without_sign_bits,
    overlay_in_a_bit,
    undeclared_overlay,
    two_undeclared_overlays,
    undeclared_overlay_beside_the_breast,
    jpeg_2000_overlay,
    jpeg_2000_overlay_signed,
    jpeg_2000_sign_differs,
    jpeg_ls_signed,
    rle_signed,
    one_byte_too_many,
    one_sector_too_many,
    many_fragments,
    extended_offsets,
    baseline_jpeg,
    big_endian,
    big_endian_bytes_in_words,
    implicit_without_meta_header,
    explicit_without_meta_header,
    nul_after_a_word,
    lower_case_word,
    lower_case_modality,
    modality_with_blank_and_nul,
)


REFUSED: Final[dict[Callable[[int], Dataset | bytes], set[str]]] = {
    few_bits_said: {"size_mismatch"},
    brightest_beyond_the_bits: {"size_mismatch"},
    signed_stream_said_unsigned: {"size_mismatch"},
    stream_of_another_kind: {"decoding_failed", "damaged", "unsupported_encoding"},
    rows_for_columns: {"size_mismatch"},
}


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Told:
    """One archive with every kind of file, two of each."""
    archive = Archive(tmp_path_factory.mktemp("samples") / "archive")
    for make in (*SHOWN, *REFUSED):
        for number in (2 * len(archive.rows), 2 * len(archive.rows) + 1):
            archive.add(f"{make.__name__} {number % 2}", image=make(number), wanted=scene(number), file=f"{number}.dcm")
    return archive.ingest()


@pytest.mark.parametrize("make", SHOWN, ids=lambda make: make.__name__)
def test_dicom_samples_are_shown_as_drawn(told: Told, make: Callable[[int], Dataset | bytes]) -> None:
    """Each maker above says by which paragraph."""
    assert max(told.off(f"{make.__name__} {number}") for number in (0, 1)) < TOLERANCE


@pytest.mark.parametrize("make", REFUSED, ids=lambda make: make.__name__)
def test_dicom_samples_that_contradict_their_header_are_refused(told: Told, make: Callable[[int], Dataset | bytes]) -> None:
    """Each maker above says by which paragraph: either may be wrong, and a guess would be read without a word."""
    assert {told.reason(f"{make.__name__} {number}") for number in (0, 1)} <= REFUSED[make]


@pytest.mark.parametrize("sign", [False, True])
def test_dicom_samples_in_lossless_jpeg_of_12_bits_are_shown_as_drawn(tmp_path: Path, sign: bool) -> None:
    """Process 14, selection value 1 (PS3.5 8.2.1, A.4.2): the coder knows no sign, the header does. gdcm encodes."""
    pytest.importorskip("gdcm", reason="needs the extra 'dicom'")
    archive = Archive(tmp_path / "archive")
    stored: NDArray[Any] = signed(0).view(np.int16) if sign else as_stored(scene(0))
    write_dicom(header(stored, number=0, PixelRepresentation=int(sign)), archive.root / "a.dcm", "jpeg_lossless")
    archive.add("a", wanted=scene(0))
    assert archive.ingest().off("a") < TOLERANCE


@pytest.mark.skipif(which("dcmcjpeg") is None, reason="needs dcmtk's dcmcjpeg")
def test_dicom_samples_in_12_bit_jpeg_by_dcmtk_are_shown_as_drawn_or_refused_as_not_read(tmp_path: Path) -> None:
    """Process 14 in both forms (PS3.5 A.4.2), and process 4, lossy of 12 bits (A.4.1), as another library encodes them."""
    archive, plain = Archive(tmp_path / "archive"), tmp_path / "plain.dcm"
    archive.root.mkdir()
    for number, (option, sign) in enumerate([("+e1", False), ("+e1", True), ("+el", True), ("+ee", False)]):
        stored = signed(number).view(np.int16) if sign else as_stored(scene(number))
        header(stored, number=number, PixelRepresentation=int(sign)).save_as(plain, enforce_file_format=True)
        path = archive.add(f"{option} {sign}", wanted=scene(number), file=f"{number}.dcm")
        subprocess.run(["dcmcjpeg", option, plain, path], check=True, capture_output=True)
    told = archive.ingest()
    assert max(told.off(name) for name in ("+e1 False", "+e1 True", "+el True")) < TOLERANCE
    # Not every set of decoders has one for it.
    assert told.reason("+ee False") == "unsupported_encoding" or told.off("+ee False") < TOLERANCE
