"""What files beside a mammogram mark in it: an image of two values, or a DICOM annotation. Names of files are not trusted."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, FileDataset

from mammo_fed.data.dicom.annotations.marking import is_annotation, marked_region
from mammo_fed.data.dicom.annotations.masks import distinct_values, lesion_in_mask, looks_like_a_mask
from mammo_fed.data.dicom.findings import Box, Masks, Outline, Skipped
from mammo_fed.data.dicom.image.headers import code_of, opened, parse, quietly
from mammo_fed.data.dicom.image.reading import samples_inside

__all__ = ["Marked", "marked_in_files"]

Marked = Box | Outline | NDArray[np.bool_]


def marked_in_files(
    masks: Masks, *, header: Dataset, shape: tuple[int, int], breast: NDArray[np.bool_] | None
) -> tuple[Marked, tuple[str, ...]]:
    """The region that one of the files marks, and the SHA-256 of every file, in their order.

    Args:
      masks: the files, and which of several regions.
      header: of the mammogram.
      shape: its rows and columns.
      breast: where it shows the breast, on a coarser grid.

    Raises:
      Skipped: If none marks a region of this mammogram, or two mark different ones.
    """
    read = [_read(path) for path in masks.candidates]
    found: list[Marked] = []
    reasons: list[Skipped] = []
    for number, (sha256, inside) in enumerate(read):
        if sha256 and sha256 in [earlier for earlier, _ in read[:number]]:
            continue
        try:
            if isinstance(inside, Skipped):
                raise inside
            found.append(_marked(inside, masks, header=header, shape=shape, breast=breast))
        except Skipped as error:
            reasons.append(error)
    if not found:
        raise min(reasons, key=_weight) if reasons else Skipped("no_mask", "no file marks the lesion")
    if not all(_same(found[0], other) for other in found[1:]):
        raise Skipped("unclear_mask", f"{len(found)} files mark different regions: nobody knows which is the lesion")
    return found[0], tuple(sha256 for sha256, _ in read)


def _read(path: Path) -> tuple[str, FileDataset | Skipped]:
    """A file's SHA-256, and what is in it or why it cannot be read."""
    sha256 = ""
    try:
        with opened(path) as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            return sha256, quietly(lambda: parse(file, path), path)
    except Skipped as error:
        return sha256, error


def _marked(
    inside: FileDataset, masks: Masks, *, header: Dataset, shape: tuple[int, int], breast: NDArray[np.bool_] | None
) -> Marked:
    if is_annotation(inside):
        found = marked_region(inside, image=header, shape=shape, region=masks.region)
        # A segmentation is a mask as well: it may be inverted, or the breast's.
        return lesion_in_mask(found.view(np.uint8), inverted=False, breast=breast) if isinstance(found, np.ndarray) else found
    pixels = samples_inside(inside)
    if pixels.shape == shape and pixels.min() == pixels.max():
        raise Skipped("no_lesion" if not pixels.any() else "unclear_mask", "all pixels of the mask have one value")
    if not looks_like_a_mask(pixels):
        raise Skipped("no_mask", "none of the files beside the lesion is a mask")
    if pixels.shape != shape:
        rows, columns = pixels.shape
        raise Skipped("mask_mismatch", f"the mask has {rows} x {columns} pixels, the mammogram {shape[0]} x {shape[1]}")
    if masks.region and distinct_values(pixels) > 2:
        pixels = _labelled(pixels, masks.region)
    return lesion_in_mask(pixels, inverted=code_of(inside, "PhotometricInterpretation") == "MONOCHROME1", breast=breast)


def _labelled(pixels: NDArray[np.generic], region: str) -> NDArray[np.uint8]:
    """A mask of the pixels whose value is the region's number.

    Raises:
      Skipped: If it is no number, or no pixel has it.
    """
    marked = pixels == int(region) if region.isdecimal() else np.zeros(pixels.shape, dtype=bool)
    if not marked.any():
        raise Skipped("no_lesion", "no pixel of the mask has the value that the column region names")
    return marked.astype(np.uint8)


def _same(one: Marked, other: Marked) -> bool:
    if isinstance(one, Box) or isinstance(other, Box):
        return one is other or (isinstance(one, Box) and isinstance(other, Box) and one == other)
    first, second = (marked.points if isinstance(marked, Outline) else marked for marked in (one, other))
    return type(one) is type(other) and np.array_equal(first, second)


def _weight(error: Skipped) -> int:
    """What says most about why there is no mask comes first: that a file is none says least."""
    order = ("several_regions", "unclear_mask", "mask_mismatch", "no_lesion", "unreadable_annotation")
    if error.reason == "no_mask":
        return len(order) + 1
    return order.index(error.reason) if error.reason in order else len(order)
