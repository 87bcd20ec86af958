"""One mammogram from one file: checked before anything is allocated, refused with a reason of a fixed list."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, FileDataset

from mammo_fed.data.dicom.image.acquisition import Intent, check_kind, side_of, spacing_of, view_of
from mammo_fed.data.dicom.image.headers import dataset, opened, parse, quietly, regular
from mammo_fed.data.dicom.image.pixels import LARGEST_PIXELS, check_grey, image_size, samples
from mammo_fed.data.dicom.image.tiff import read_tiff

__all__ = ["LARGEST_PIXELS", "Mammogram", "read_header", "read_mammogram", "read_side_and_view", "samples_inside"]

# Suffixes of images without a header, as BCDR publishes them.
PLAIN: Final = (".tif", ".tiff")


@dataclass(frozen=True, kw_only=True, eq=False)
class Mammogram:
    """A decoded image, and what of its header a cohort may keep.

    Attributes:
      header: the whole header without its pixels; stays where it is read.
      stored: samples, shape (rows, columns), of an integer dtype.
      spacing: millimetres in the breast for a pixel, down and across, or None.
      view: "CC", "MLO" or "".
      transfer_syntax: how the pixels were encoded (a UID of the standard), or "TIFF".
      sha256: of the file.
    """

    header: Dataset
    stored: NDArray[Any]
    spacing: tuple[float, float] | None
    view: str
    transfer_syntax: str
    sha256: str


def read_mammogram(
    path: Path, *, modality: str | None = "MG", intent: Intent = "presentation", synthetic_views: bool = False
) -> Mammogram:
    """Read and decode one mammogram.

    Args:
      path: the file; a TIFF image has no header, and is what it is said to be.
      modality: what the file must be; None takes images of any modality.
      intent: "presentation" (made to be looked at), "processing" (the detector's raw data) or "any".
      synthetic_views: whether to take views that were computed of a tomosynthesis.

    Raises:
      Skipped: If the file is not a single grey mammogram that can be decoded within bounds.
    """
    if path.suffix.lower() in PLAIN:
        return _plain(path)
    with opened(path) as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        header = quietly(lambda: parse(file, path), path)
    check_kind(header, modality=modality, intent=intent, synthetic_views=synthetic_views)
    return Mammogram(
        header=header,
        stored=samples_inside(header),
        spacing=spacing_of(header),
        view=view_of(header),
        transfer_syntax=str(header.file_meta.TransferSyntaxUID),
        sha256=sha256,
    )


def samples_inside(header: FileDataset) -> NDArray[Any]:
    """The samples of a file's single grey frame, whatever it shows, shape (rows, columns).

    Raises:
      Skipped: As `read_mammogram`.
    """
    check_grey(header)
    return samples(header, *image_size(header))


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
    return side_of(header), view_of(header)


def _plain(path: Path) -> Mammogram:
    """A TIFF image as a mammogram whose header says nothing."""
    stored = read_tiff(path)
    header = Dataset()
    header.PhotometricInterpretation, header.PixelRepresentation = "MONOCHROME2", 0
    header.BitsAllocated = header.BitsStored = 8 * stored.dtype.itemsize
    with regular(path) as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return Mammogram(
        header=header, stored=np.ascontiguousarray(stored), spacing=None, view="", transfer_syntax="TIFF", sha256=sha256
    )
