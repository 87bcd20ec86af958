"""Grey PNG patches: one file or many, checked before a pixel is decoded."""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mammo_fed.errors import DataError

__all__ = ["read_patch", "read_patches"]

MAX_SIDE_PIXELS: Final = 4096
MAX_FILE_BYTES: Final = 64 * 1024 * 1024
MAX_THREADS: Final = 4

_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
_IHDR: Final = struct.Struct(">8sI4sIIBB")
_GREY: Final = 0
_COLOUR_TYPES: Final = {2: "RGB", 3: "palette", 4: "grey with alpha", 6: "RGB with alpha"}


@dataclass(frozen=True, kw_only=True)
class _Header:
    """What the first bytes of a PNG say: width and height in pixels, bits per sample."""

    width: int
    height: int
    bit_depth: int


def read_patch(path: Path) -> NDArray[np.float32]:
    """One grey PNG as numbers in [0, 1].

    An 8-bit value is divided by 255, a 16-bit value by 65535. Every chunk's checksum is verified, so a damaged file is
    refused and not decoded into something else. The message names the file: it is for the console of the site itself.

    Args:
      path: an 8- or 16-bit grey PNG without transparency, at most 4096 pixels a side.

    Returns:
      float32, shape (height, width), in [0, 1].

    Raises:
      DataError: If the file is missing, empty, truncated, damaged, no PNG, too large, coloured, transparent or animated.
    """
    content = _read_bytes(path)
    header = _read_header(path, content)
    try:
        # verify() checks the checksums and leaves the image unusable: the pixels need a second, fresh one.
        with Image.open(io.BytesIO(content), formats=("PNG",)) as image:
            image.verify()
        with Image.open(io.BytesIO(content), formats=("PNG",)) as image:
            if "transparency" in image.info:
                raise DataError(f"{path} has a transparent grey value; export it as plain grey")
            if getattr(image, "n_frames", 1) != 1:
                raise DataError(f"{path} has {getattr(image, 'n_frames', 1)} frames; export one patch per PNG")
            values = np.asarray(image)
    except DataError:
        raise
    except (OSError, SyntaxError, ValueError, EOFError, struct.error) as error:
        raise DataError(f"{path} is truncated or damaged ({error}); copy or export the file again") from error
    scale = np.float32(255 if header.bit_depth == 8 else 65535)
    pixels: NDArray[np.float32] = values.astype(np.float32) / scale
    return pixels


def read_patches(paths: Sequence[Path], *, image_size: int | None) -> NDArray[np.float32]:
    """Many square patches of one size as one array, in the order given; decoded by a few threads.

    Nothing is resized: a patch of another size shows another field of view or another pixel spacing.

    Args:
      paths: the files, at least one.
      image_size: side that every image must have, in pixels; None takes the first image's.

    Returns:
      float32, shape (len(paths), size, size), in [0, 1].

    Raises:
      DataError: If there is no path, an image cannot be read, is not square or has another size; the first in order counts.
    """
    if not paths:
        raise DataError("no image to read; check data.root and the split")
    size = image_size
    if size is None:
        first = _read_header(paths[0], _read_bytes(paths[0]))
        if first.width != first.height:
            raise DataError(f"{paths[0]} is {first.width} x {first.height} pixels; a patch must be square, crop it")
        size = first.width
    pixels = np.empty((len(paths), size, size), dtype=np.float32)

    def fill(row: int) -> None:
        patch = read_patch(paths[row])
        if patch.shape != (size, size):
            height, width = patch.shape
            raise DataError(f"{paths[row]} is {width} x {height} pixels; all patches must be {size} x {size}, crop them alike")
        pixels[row] = patch

    with ThreadPoolExecutor(max_workers=min(MAX_THREADS, os.cpu_count() or 1)) as pool:
        for _ in pool.map(fill, range(len(paths))):
            pass
    return pixels


def _read_bytes(path: Path) -> bytes:
    """The file's bytes, once: header and pixels then come from one and the same content."""
    try:
        if not path.is_file():
            what = "is not a regular file" if path.exists() else "does not exist"
            raise DataError(f"{path} {what}; expected a grey PNG, check data.root or the table")
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise DataError(
                f"{path} has {size} bytes; a patch has at most {MAX_FILE_BYTES}, export the patch and not the study"
            )
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); check its permissions") from error
    if not content:
        raise DataError(f"{path} is empty (0 bytes); copy or export the file again")
    return content


def _read_header(path: Path, content: bytes) -> _Header:
    """Width, height and bit depth of a PNG that may be decoded.

    Pillow is shown no file before this check: its own guard against decompression bombs warns first and refuses later, and
    it maps several PNG types to one mode.
    """
    if not content.startswith(_SIGNATURE):
        raise DataError(f"{path} is not a PNG; convert it to an 8- or 16-bit grey PNG")
    if len(content) < _IHDR.size:
        raise DataError(f"{path} is truncated ({len(content)} bytes); copy or export the file again")
    _, _, chunk, width, height, bit_depth, colour_type = _IHDR.unpack_from(content)
    if chunk != b"IHDR":
        raise DataError(f"{path} is damaged (no PNG header); copy or export the file again")
    if colour_type != _GREY:
        kind = _COLOUR_TYPES.get(colour_type, f"colour type {colour_type}")
        raise DataError(f"{path} is a {kind} image; a patch must be grey without alpha, convert it")
    if bit_depth not in (8, 16):
        raise DataError(f"{path} has {bit_depth} bits per pixel; a patch must have 8 or 16, convert it")
    if not (0 < width <= MAX_SIDE_PIXELS and 0 < height <= MAX_SIDE_PIXELS):
        raise DataError(f"{path} claims {width} x {height} pixels; a patch has 1 to {MAX_SIDE_PIXELS} a side, crop the patch")
    return _Header(width=width, height=height, bit_depth=bit_depth)
