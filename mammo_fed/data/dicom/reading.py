"""One mammogram from one DICOM file: checked before anything is allocated, refused with a reason of a fixed list."""

from __future__ import annotations

import contextlib
import hashlib
import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, FileDataset
from pydicom.encaps import generate_frames
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import (
    UID,
    BreastTomosynthesisImageStorage,
    RLELossless,
)

from mammo_fed.data.dicom.codestream import frame_size
from mammo_fed.data.dicom.findings import Skipped
from mammo_fed.data.dicom.headers import dataset, number_of, opened, parse, quietly, text_of

__all__ = ["LARGEST_PIXELS", "Mammogram", "read_header", "read_mammogram", "read_mask", "read_side_and_view"]

LARGEST_SIDE: Final = 16384
# A full-field detector of today has 4096 x 5120.
LARGEST_PIXELS: Final = 64_000_000
WIDEST_SPACING_MM: Final = 10.0
GREY: Final = ("MONOCHROME1", "MONOCHROME2")


@dataclass(frozen=True, kw_only=True, eq=False)
class Mammogram:
    """A decoded image, and what of its header a cohort may keep.

    Attributes:
      header: the whole header without its pixels; stays where it is read.
      stored: integers as they were stored, shape (rows, columns).
      spacing: millimetres per pixel, down and across, or None.
      view: "CC", "MLO" or "".
      transfer_syntax: how the pixels were encoded (a UID of the standard).
      sha256: of the file.
    """

    header: Dataset
    stored: NDArray[Any]
    spacing: tuple[float, float] | None
    view: str
    transfer_syntax: str
    sha256: str


def read_mammogram(path: Path, *, modality: str | None = "MG") -> Mammogram:
    """Read and decode one mammogram.

    Args:
      path: the file.
      modality: what the file must be; None takes images of any modality.

    Raises:
      Skipped: If the file is not a single grey mammogram that can be decoded within bounds.
    """
    with opened(path) as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        header = quietly(lambda: parse(file, path), path)
    _check_kind(header, modality)
    rows, columns = _check_size(header)
    stored = _pixels(header, rows, columns)
    return Mammogram(
        header=header,
        stored=stored,
        spacing=_spacing(header),
        view=_view(header),
        transfer_syntax=str(header.file_meta.TransferSyntaxUID),
        sha256=sha256,
    )


def read_mask(path: Path) -> NDArray[Any]:
    """Pixels of a file that may be a mask, whatever its modality, shape (rows, columns).

    Raises:
      Skipped: As `read_mammogram`.
    """
    header = dataset(path)
    _check_grey(header)
    return _pixels(header, *_check_size(header))


def read_header(path: Path) -> Dataset:
    """A file's header; its pixels are not decoded.

    Raises:
      Skipped: If it is no DICOM file or is damaged.
    """
    return dataset(path)


def read_side_and_view(path: Path) -> tuple[str, str]:
    """Which breast ("L", "R" or "") and which view ("CC", "MLO" or "") a file shows, by its header.

    Raises:
      Skipped: If it is no DICOM file or is damaged.
    """
    header = dataset(path)
    side = (text_of(header, "ImageLaterality") or text_of(header, "Laterality")).upper()
    return side if side in ("L", "R") else "", _view(header)


def _check_kind(header: Dataset, modality: str | None) -> None:
    if text_of(header, "SOPClassUID") == BreastTomosynthesisImageStorage:
        raise Skipped("tomosynthesis", "a tomosynthesis, not a mammogram")
    if modality is not None and text_of(header, "Modality") != modality:
        raise Skipped("wrong_modality", f"the modality is not {modality}")
    if text_of(header, "BreastImplantPresent").upper() == "YES":
        raise Skipped("implant", "the breast has an implant")
    _check_grey(header)


def _check_grey(header: Dataset) -> None:
    if "PixelData" not in header:
        other = "FloatPixelData" in header or "DoubleFloatPixelData" in header
        raise Skipped("unsupported_encoding" if other else "no_pixels", "there are no integer pixels")
    if number_of(header, "NumberOfFrames", otherwise=1) != 1:
        raise Skipped("several_frames", "the file has several frames")
    if number_of(header, "SamplesPerPixel", otherwise=1) != 1 or text_of(header, "PhotometricInterpretation") not in GREY:
        raise Skipped("colour", "the image is not grey")


def _check_size(header: Dataset) -> tuple[int, int]:
    rows, columns = number_of(header, "Rows"), number_of(header, "Columns")
    if not (0 < rows <= LARGEST_SIDE and 0 < columns <= LARGEST_SIDE and rows * columns <= LARGEST_PIXELS):
        raise Skipped("too_large", f"the header claims {rows} x {columns} pixels")
    allocated, stored = number_of(header, "BitsAllocated"), number_of(header, "BitsStored")
    if allocated not in (8, 16) or not 1 <= stored <= allocated:
        raise Skipped("unsupported_encoding", f"{allocated} bits allocated, {stored} stored; 8 to 16 are read")
    if number_of(header, "PixelRepresentation", otherwise=0) not in (0, 1):
        raise Skipped("damaged", "the header's PixelRepresentation is neither 0 nor 1")
    return rows, columns


def _pixels(header: FileDataset, rows: int, columns: int) -> NDArray[Any]:
    syntax = UID(header.file_meta.TransferSyntaxUID)
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError as error:
        raise Skipped("unsupported_encoding", f"pixels in {syntax.name} are not read") from error
    if not decoder.is_available:
        remedy = 'pip install "mammo-fed[dicom]" brings its decoder'
        raise Skipped("unsupported_encoding", f"pixels in {syntax.name} are not read here; {remedy}")
    expected = rows * columns * (number_of(header, "BitsAllocated") // 8)
    quietly(lambda: _check_pixel_bytes(header, syntax, rows, columns, expected), Path("the image"))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # A view: twelve million pixels need not be copied to be looked at.
            options: Any = {"view_only": True}
            stored: NDArray[Any] = decoder.as_array(header, **options)[0]
    except MemoryError as error:
        raise Skipped("too_large", "the pixels do not fit into memory") from error
    except Exception as error:
        raise Skipped("decoding_failed", f"the pixels cannot be decoded ({type(error).__name__})") from error
    if stored.shape != (rows, columns) or stored.dtype.kind not in "iu":
        raise Skipped("size_mismatch", f"the pixels have shape {stored.shape}, the header says {rows} x {columns}")
    return _masked(stored, number_of(header, "BitsStored"))


def _check_pixel_bytes(header: Dataset, syntax: UID, rows: int, columns: int, expected: int) -> None:
    """Hold what is there against what the header claims, before a decoder allocates by either."""
    if not syntax.is_encapsulated:
        # An odd number of bytes is padded to an even one.
        if not expected <= len(header.PixelData) <= expected + expected % 2:
            raise Skipped("size_mismatch", f"{len(header.PixelData)} bytes of pixels, the header asks for {expected}")
        return
    frame = next(iter(generate_frames(header.PixelData, number_of_frames=1)))
    if syntax == RLELossless:
        # Two bytes give at most 128; more than that cannot come out, and less than a byte for that many is too little.
        if 64 * len(frame) < expected:
            raise Skipped("size_mismatch", "the run-length segments are too short for the image")
        return
    size = frame_size(frame)
    if size is None:
        raise Skipped("decoding_failed", "the compressed frame has no header")
    if (size.rows, size.columns, size.samples) != (rows, columns, 1):
        raise Skipped("size_mismatch", "the compressed frame has another size than the header says")


def _spacing(header: Dataset) -> tuple[float, float] | None:
    for name in ("PixelSpacing", "ImagerPixelSpacing"):
        parts = text_of(header, name).strip("[]").split(",")
        with contextlib.suppress(ValueError):
            down, across = (float(part) for part in parts)
            if all(math.isfinite(value) and 0 < value <= WIDEST_SPACING_MM for value in (down, across)):
                return down, across
    return None


def _view(header: Dataset) -> str:
    view = text_of(header, "ViewPosition").upper()
    return view if view in ("CC", "MLO") else ""


def _masked(stored: NDArray[Any], bits: int) -> NDArray[Any]:
    """Unsigned pixels without what some devices write above the stored bits, such as overlays."""
    if stored.dtype.kind == "u" and bits < 8 * stored.dtype.itemsize and int(stored.max()) >> bits:
        kept: NDArray[Any] = np.bitwise_and(stored, stored.dtype.type((1 << bits) - 1))
        return kept
    return stored
