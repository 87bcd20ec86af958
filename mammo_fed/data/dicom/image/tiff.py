"""Mammograms that were published as TIFF images: one grey page of 8 or 16 bits, checked before anything is allocated."""

from __future__ import annotations

import os
import stat
import struct
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from mammo_fed.data.dicom.findings import Reason, Skipped

__all__ = ["read_tiff"]

LARGEST_FILE: Final = 256 << 20
LARGEST_SIDE: Final = 16384
LARGEST_PIXELS: Final = 64_000_000
# Numbers of TIFF 6.0, sections 4 to 8 and 19.
BITS_PER_SAMPLE: Final = 258
PHOTOMETRIC: Final = 262
ORIENTATION: Final = 274
SAMPLES_PER_PIXEL: Final = 277
SAMPLE_FORMAT: Final = 339
WHITE_IS_ZERO: Final = 0
BLACK_IS_ZERO: Final = 1
PALETTE: Final = 3
UNSIGNED: Final = 1
ORDERS: Final[Mapping[bytes, str]] = {b"II*\0": "<", b"MM\0*": ">"}


def read_tiff(path: Path) -> NDArray[Any]:
    """Grey samples, uint8 or uint16, shape (rows, columns); bright is high, whatever the file's polarity.

    Raises:
      Skipped: If it is not one grey page of 8 or 16 bits that can be decoded within bounds.
    """
    try:
        # A pipe would be waited for until somebody writes into it.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with open(descriptor, "rb") as file:
            about = os.fstat(descriptor)
            if not stat.S_ISREG(about.st_mode):
                raise Skipped("damaged", f"{path} is no regular file")
            if about.st_size > LARGEST_FILE:
                raise Skipped("too_large", f"{path} has {about.st_size} bytes; at most {LARGEST_FILE} are read")
            return _decoded(file, path)
    except OSError as error:
        raise Skipped("missing_file", f"{path} cannot be read ({error.strerror})") from error


def _decoded(file: IO[bytes], path: Path) -> NDArray[Any]:
    try:
        with warnings.catch_warnings():
            # Pillow warns of large images and of damaged directories; both are looked at here.
            warnings.simplefilter("ignore")
            with Image.open(file, formats=("TIFF",)) as image:
                if not isinstance(image, TiffImageFile):
                    raise Skipped("unsupported_encoding", f"{path} is no TIFF image")
                _check(image, path)
                image.load()
                return _grey(image, path)
    except Skipped:
        raise
    except Image.DecompressionBombError as error:
        raise Skipped("too_large", f"{path} claims more pixels than are read") from error
    except MemoryError as error:
        raise Skipped("too_large", f"{path} does not fit into memory") from error
    except UnidentifiedImageError as error:
        # Pillow says the same of what is no TIFF, of a torn one, and of bits and colours that it does not know.
        raise _unidentified(file, path) from error
    except Exception as error:
        # Pillow raises whatever a damaged directory leads to, and its text may quote the file.
        unknown = isinstance(error, KeyError) or (isinstance(error, OSError) and "not available" in str(error))
        reason: Reason = "unsupported_encoding" if unknown else "damaged"
        raise Skipped(reason, f"{path} cannot be decoded ({type(error).__name__})") from error


def _unidentified(file: IO[bytes], path: Path) -> Skipped:
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    start = file.read(8)
    order = ORDERS.get(start[:4])
    if order is None:
        return Skipped("damaged" if not start else "unsupported_encoding", f"{path} is no TIFF image")
    if len(start) == 8:
        file.seek(struct.unpack(f"{order}I", start[4:])[0])
        entries = file.read(2)
        if len(entries) == 2 and file.tell() + 12 * struct.unpack(f"{order}H", entries)[0] <= size:
            return Skipped("unsupported_encoding", f"{path} has samples or colours that are not read")
    return Skipped("damaged", f"{path} is not all there")


def _check(image: TiffImageFile, path: Path) -> None:
    """Raises: Skipped, by what the directory says; nothing is decoded yet."""
    width, height = image.size
    if not (0 < width <= LARGEST_SIDE and 0 < height <= LARGEST_SIDE and width * height <= LARGEST_PIXELS):
        raise Skipped("too_large", f"{path} claims {height} x {width} pixels")
    if image.n_frames != 1:
        raise Skipped("several_frames", f"{path} has {image.n_frames} pages")
    photometric, samples = _tag(image, PHOTOMETRIC, BLACK_IS_ZERO), _tag(image, SAMPLES_PER_PIXEL, 1)
    if samples != 1 or photometric not in (WHITE_IS_ZERO, BLACK_IS_ZERO, PALETTE):
        raise Skipped("colour", f"{path} is not grey")
    bits, layout = _tag(image, BITS_PER_SAMPLE, 1), _tag(image, SAMPLE_FORMAT, UNSIGNED)
    if bits not in (8, 16) or layout != UNSIGNED:
        raise Skipped("unsupported_encoding", f"{path} has samples of {bits} bits; unsigned ones of 8 and 16 are read")
    if _tag(image, ORIENTATION, 1) != 1:
        # Outlines and boxes were drawn on one of the two, and nobody can know on which.
        raise Skipped("unsupported_encoding", f"{path} says that it is to be turned; save it upright")


def _tag(image: TiffImageFile, number: int, otherwise: int) -> int:
    value = image.tag_v2.get(number, otherwise)
    first = value[0] if isinstance(value, tuple) and value else value
    return int(first)


def _grey(image: TiffImageFile, path: Path) -> NDArray[Any]:
    if image.mode == "P":
        return _through_palette(image, path)
    if image.mode == "L":
        # Pillow has turned 8 bits with white as zero already.
        return np.asarray(image, dtype=np.uint8)
    if image.mode.startswith("I;16"):
        pixels: NDArray[Any] = np.asarray(image).astype(np.uint16)
        return np.iinfo(np.uint16).max - pixels if _tag(image, PHOTOMETRIC, BLACK_IS_ZERO) == WHITE_IS_ZERO else pixels
    raise Skipped("unsupported_encoding", f"{path} has samples that are not read")


def _through_palette(image: TiffImageFile, path: Path) -> NDArray[Any]:
    """Raises: Skipped, where the colours are not a ramp of greys: they would not order the pixels by brightness."""
    listed = image.getpalette("RGB") or []
    colours = np.array(listed, dtype=np.int64).reshape(-1, 3)
    indices = np.asarray(image, dtype=np.uint8)
    used = colours[: int(indices.max()) + 1]
    if len(used) <= int(indices.max()) or (used != used[:, :1]).any():
        raise Skipped("colour", f"{path} has a palette of colours")
    steps = np.diff(used[:, 0])
    if not ((steps >= 0).all() or (steps <= 0).all()):
        raise Skipped("colour", f"{path} has a palette that is no ramp of greys")
    return used[:, 0].astype(np.uint8)[indices]
