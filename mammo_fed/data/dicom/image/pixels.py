"""From a header to its samples: what the header claims is compared with what is there before a decoder allocates by either."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, FileDataset
from pydicom.encaps import generate_frames
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import (
    UID,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from mammo_fed.data.dicom.findings import Skipped
from mammo_fed.data.dicom.image.codestream import FrameSize, frame_size
from mammo_fed.data.dicom.image.headers import code_of, number_of, quietly
from mammo_fed.data.dicom.image.stored_bits import samples_of

__all__ = ["LARGEST_PIXELS", "check_grey", "image_size", "samples"]

LARGEST_SIDE: Final = 16384
# A full-field detector of today has 4096 x 5120.
LARGEST_PIXELS: Final = 64_000_000
GREY: Final = ("MONOCHROME1", "MONOCHROME2")
# What a compressed frame is, by its transfer syntax; all others that are read are JPEG 2000.
KINDS: Final = {
    JPEGBaseline8Bit: ("JPEG",),
    JPEGExtended12Bit: ("JPEG",),
    JPEGLossless: ("lossless JPEG",),
    JPEGLosslessSV1: ("lossless JPEG",),
    JPEGLSLossless: ("JPEG-LS",),
    JPEGLSNearLossless: ("JPEG-LS",),
}
# Rows that tell whether rows follow each other, how many are looked at, and how much more those of a sheared image differ.
FEWEST_ROWS, MOST_ROWS, SHEARED = 64, 1024, 3.0
# So many pixels of a row, and such a part of the rest of it, tell that it goes on.
CUT_PIXELS, CUT_PART = 8, 0.8
# Repeating groups of overlays, PS3.5, 7.6.
OVERLAY_GROUPS: Final = range(0x6000, 0x6020, 2)


def check_grey(header: Dataset) -> None:
    """Check that there is one frame of grey integer pixels.

    Raises:
      Skipped: If there is not.
    """
    if "PixelData" not in header:
        other = "FloatPixelData" in header or "DoubleFloatPixelData" in header
        raise Skipped("unsupported_encoding" if other else "no_pixels", "there are no integer pixels")
    if number_of(header, "NumberOfFrames", otherwise=1) not in (0, 1):
        raise Skipped("several_frames", "the file has several frames")
    photometric = _photometric(header)
    if photometric in ("", "MONOCHROME"):
        raise Skipped("unclear_polarity", "PhotometricInterpretation does not say whether low values are dark or bright")
    if number_of(header, "SamplesPerPixel", otherwise=1) != 1 or photometric not in GREY:
        raise Skipped("colour", "the image is not grey")


def _photometric(header: Dataset) -> str:
    return code_of(header, "PhotometricInterpretation").replace(" ", "")


def image_size(header: Dataset) -> tuple[int, int]:
    """Rows and columns, within bounds.

    Raises:
      Skipped: If the header's sizes are out of bounds, or no sizes.
    """
    rows, columns = number_of(header, "Rows"), number_of(header, "Columns")
    if not (0 < rows <= LARGEST_SIDE and 0 < columns <= LARGEST_SIDE and rows * columns <= LARGEST_PIXELS):
        raise Skipped("too_large", f"the header claims {rows} x {columns} pixels")
    allocated = number_of(header, "BitsAllocated")
    stored = number_of(header, "BitsStored", otherwise=allocated)
    if allocated not in (8, 16) or not 1 <= stored <= allocated:
        raise Skipped("unsupported_encoding", f"{allocated} bits allocated, {stored} stored; 8 to 16 are read")
    if number_of(header, "PixelRepresentation", otherwise=0) not in (0, 1):
        raise Skipped("damaged", "the header's PixelRepresentation is neither 0 nor 1")
    return rows, columns


def samples(header: FileDataset, rows: int, columns: int) -> NDArray[Any]:
    """Decoded samples, shape (rows, columns), of a signed or unsigned dtype of 8 or 16 bits.

    Raises:
      Skipped: If they cannot be decoded, or are not what the header says.
    """
    syntax = UID(header.file_meta.TransferSyntaxUID)
    allocated = number_of(header, "BitsAllocated")
    bits = number_of(header, "BitsStored", otherwise=allocated)
    # Decoders know the standard's spelling only, and no defaults.
    header.PhotometricInterpretation, header.SamplesPerPixel, header.NumberOfFrames = _photometric(header), 1, 1
    header.BitsStored, header.PixelRepresentation = bits, number_of(header, "PixelRepresentation", otherwise=0)
    expected = rows * columns * (allocated // 8)
    frame = quietly(lambda: _check_pixel_bytes(header, syntax, rows, columns, expected), Path("the image"))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            words = _decoded(header, syntax, rows, columns)
    except Skipped:
        raise
    except MemoryError as error:
        raise Skipped("too_large", "the pixels do not fit into memory") from error
    except Exception as error:
        raise Skipped("decoding_failed", f"the pixels cannot be decoded ({type(error).__name__})") from error
    if words.shape != (rows, columns) or words.dtype.kind not in "iu":
        raise Skipped("size_mismatch", f"the pixels have shape {words.shape}, the header says {rows} x {columns}")
    if not words.dtype.isnative:
        words = words.astype(words.dtype.newbyteorder("="))
    if not syntax.is_encapsulated:
        _check_rows(words)
        _check_whole(words)
    if frame is not None and frame.signed and words.dtype.kind == "u" and int(words.max()) >> (frame.precision - 1):
        raise Skipped("size_mismatch", "the compressed frame has negative samples, the header says unsigned")
    high_bit = number_of(header, "HighBit", otherwise=bits - 1)
    if syntax.is_encapsulated and syntax != RLELossless and not int(words.max()) >> bits:
        # A code stream has its samples in the lowest bits, whatever lay where before.
        high_bit = bits - 1
    overlay_bits = quietly(lambda: _overlay_bits(header), Path("the image"))
    return samples_of(words, bits=bits, high_bit=high_bit, overlay_bits=overlay_bits)


def _decoded(header: FileDataset, syntax: UID, rows: int, columns: int) -> NDArray[Any]:
    if syntax == JPEGExtended12Bit and number_of(header, "BitsAllocated") == 16:
        return _extended_jpeg(header, rows, columns)
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError as error:
        raise Skipped("unsupported_encoding", f"pixels in {syntax.name} are not read") from error
    if not decoder.is_available:
        remedy = 'pip install "mammo-fed[dicom]" brings its decoder'
        raise Skipped("unsupported_encoding", f"pixels in {syntax.name} are not read here; {remedy}")
    # A view: twelve million pixels need not be copied to be looked at. All bits of the words: `samples_of` knows what to do
    # with those above the stored ones.
    options: Any = {"view_only": True, "correct_unused_bits": False}
    words: NDArray[Any] = decoder.as_array(header, **options)[0]
    return words


def _extended_jpeg(header: FileDataset, rows: int, columns: int) -> NDArray[Any]:
    """JPEG of 12 bits (process 4), which GDCM decodes and pydicom does not ask it to."""
    try:
        # Of the extra `dicom`.
        import gdcm
    except ImportError as error:
        remedy = 'pip install "mammo-fed[dicom]" brings its decoder'
        raise Skipped("unsupported_encoding", f"pixels in {JPEGExtended12Bit.name} are not read here; {remedy}") from error
    frame = next(iter(generate_frames(header.PixelData, number_of_frames=1)))
    size = frame_size(frame)
    precision = size.precision if size is not None else 0
    if precision not in (8, 12):
        raise Skipped("unsupported_encoding", f"a JPEG frame of {precision} bits a sample is not read")
    fragment, fragments = gdcm.Fragment(), gdcm.SequenceOfFragments.New()
    fragment.SetByteStringValue(frame)
    fragments.AddFragment(fragment)
    element = gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010))
    element.SetValue(fragments.__ref__())
    image = gdcm.Image()
    image.SetNumberOfDimensions(2)
    image.SetDimensions((columns, rows, 1))
    image.SetDataElement(element)
    image.SetPhotometricInterpretation(gdcm.PhotometricInterpretation(gdcm.PhotometricInterpretation.MONOCHROME2))
    image.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.JPEGExtendedProcess2_4))
    image.SetPixelFormat(gdcm.PixelFormat(1, 16 if precision > 8 else 8, precision, precision - 1, 0))
    buffer = image.GetBuffer().encode("utf-8", "surrogateescape")
    words = np.frombuffer(buffer, dtype="<u2" if precision > 8 else "u1").reshape(rows, columns)
    signed = number_of(header, "PixelRepresentation", otherwise=0) == 1
    return words.astype("u2").view("i2" if signed else "u2")


def _check_pixel_bytes(header: Dataset, syntax: UID, rows: int, columns: int, expected: int) -> FrameSize | None:
    """Compare what is there with what the header claims; what a code stream says of itself, where there is one."""
    if not syntax.is_encapsulated:
        _check_plain_bytes(header.PixelData, columns, expected)
        return None
    frame = next(iter(generate_frames(header.PixelData, number_of_frames=1)))
    if syntax == RLELossless:
        # Two bytes give at most 128; more than that cannot come out, and less than a byte for that many is too little.
        if 64 * len(frame) < expected:
            raise Skipped("size_mismatch", "the run-length segments are too short for the image")
        return None
    size = frame_size(frame)
    if size is None:
        raise Skipped("decoding_failed", "the compressed frame has no header")
    if (size.rows, size.columns, size.samples) != (rows, columns, 1):
        raise Skipped("size_mismatch", "the compressed frame has another size than the header says")
    if size.kind not in KINDS.get(syntax, ("JPEG 2000",)):
        raise Skipped("decoding_failed", f"the compressed frame is {size.kind}, the header says {syntax.name}")
    return size


def _check_plain_bytes(pixels: bytes, columns: int, expected: int) -> None:
    """Bytes beyond the last pixel are padding (PS3.5, 8.1.1): less than a row, or nothing but one value."""
    more = len(pixels) - expected
    padding = memoryview(pixels)[expected:]
    if more < 0 or (more >= columns and (more * 20 > expected or padding.tobytes().strip(bytes(padding[:1])))):
        raise Skipped("size_mismatch", f"{len(pixels)} bytes of pixels, the header asks for {expected}")


def _check_rows(words: NDArray[Any]) -> None:
    """Refuse pixels that make an image only where rows and columns change places: nothing else tells of it.

    Raises:
      Skipped: If they do.
    """
    rows, columns = words.shape
    if rows == columns or min(rows, columns) < FEWEST_ROWS:
        return
    turned = words.reshape(columns, rows)
    said, other = (_roughness(image, max(1, len(image) // MOST_ROWS)) for image in (words, turned))
    # In an image neighbours across differ as those below each other do, however little there is to see in it.
    across = float(np.abs(np.diff(words[:: max(1, rows // MOST_ROWS)].astype(np.int32), axis=1)).mean())
    if max(other, across) * SHEARED < said:
        raise Skipped("size_mismatch", f"{rows} x {columns} pixels make no image, {columns} x {rows} do")


def _roughness(image: NDArray[Any], step: int) -> float:
    """Mean difference of a row and the next, of rows so many apart."""
    following = image[1::step].astype(np.int32)
    return float(np.abs(following - image[:-1:step][: len(following)]).mean())


def _check_whole(words: NDArray[Any]) -> None:
    """Refuse pixels that are zero from within a row to the end: room that a download made and did not fill.

    An image that ends in black ends along the skin, and the row above its last pixel is black from there on as well.

    Raises:
      Skipped: If they are.
    """
    if words[-1].any():
        return
    filled = np.flatnonzero(words.any(axis=1))
    if not len(filled) or filled[-1] == 0:
        return
    row = int(filled[-1])
    last = int(np.flatnonzero(words[row])[-1])
    above = words[max(0, row - 2) : row, last + 1 :]
    if (
        above.shape[1] >= CUT_PIXELS
        and row < len(words) - 2
        and np.count_nonzero(above, axis=1).min() > CUT_PART * above.shape[1]
    ):
        raise Skipped("damaged", "the pixels are zero from within a row on: a copy or download that was not finished")


def _overlay_bits(header: Dataset) -> frozenset[int]:
    """Bits of a pixel's word that overlays lie in (retired: OverlayBitPosition in OverlayBitsAllocated of 16)."""
    found = set()
    for group in OVERLAY_GROUPS:
        element = header.get((group, 0x0102))
        if element is not None and isinstance(element.value, int) and 0 <= element.value < 16:
            found.add(element.value)
    return frozenset(found)
