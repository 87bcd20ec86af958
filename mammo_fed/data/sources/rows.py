"""What every source of patches shares: a source lists rows, this module turns them into a cohort."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np

from mammo_fed.data.cohort import Cohort
from mammo_fed.data.patches import read_patches
from mammo_fed.errors import DataError

__all__ = ["SPLITS", "PatchRow", "Split", "cohort_from_rows", "list_pngs", "require_folder"]

Split = Literal["train", "val", "test", "external"]
SPLITS: Final[tuple[Split, ...]] = ("train", "val", "test", "external")

# Files that desktops leave in any folder they show; everything else that is no PNG is refused, for it may be a lost patch.
_DESKTOP_FILES: Final = frozenset({"thumbs.db", "desktop.ini"})


@dataclass(frozen=True, kw_only=True)
class PatchRow:
    """One patch as a source describes it, before its pixels are read.

    Attributes:
      path: the PNG file.
      label: MALIGNANT or BENIGN.
      patient: identifier of the patient, not empty; equal values belong to one patient.
      image: identifier of the patch, unique in its source.
      split: which part of the source it belongs to.
      view: "CC", "MLO" or "" where unknown.
    """

    path: Path
    label: int
    patient: str
    image: str
    split: Split
    view: str = ""


def cohort_from_rows(rows: Iterable[PatchRow], *, name: str, public: bool) -> Cohort:
    """Read the pixels of all rows; the cohort is in the order of the image identifiers, whatever the file system's order.

    Raises:
      DataError: If there are no rows, two rows share an identifier, or an image cannot be read as a patch of the common size.
    """
    ordered = sorted(rows, key=lambda row: row.image)
    for row, following in itertools.pairwise(ordered):
        if row.image == following.image:
            raise DataError(f"{row.path} and {following.path} are both image {row.image}; remove one of them")
    return Cohort(
        name=name,
        pixels=read_patches([row.path for row in ordered], image_size=None),
        labels=np.array([row.label for row in ordered], dtype=np.int64),
        patients=np.array([row.patient for row in ordered], dtype=np.str_),
        images=np.array([row.image for row in ordered], dtype=np.str_),
        views=np.array([row.view for row in ordered], dtype=np.str_),
        splits=np.array([row.split for row in ordered], dtype=np.str_),
        public=public,
    )


def require_folder(path: Path, *, expected: str, remedy: str) -> Path:
    """`path` itself if it is a folder.

    Raises:
      DataError: If it is not; the message says what was expected there and the remedy.
    """
    if not path.is_dir():
        what = "is not a folder" if path.exists() else "does not exist"
        raise DataError(f"folder {path} {what}; expected {expected}; {remedy}")
    return path


def list_pngs(folder: Path, *, expected: str, remedy: str) -> Sequence[Path]:
    """All PNG files of a folder, sorted by name; hidden files and what desktops leave behind are passed over.

    Raises:
      DataError: If the folder is missing, cannot be listed, has no PNG, or holds anything else.
    """
    require_folder(folder, expected=expected, remedy=remedy)
    try:
        entries = sorted(folder.iterdir(), key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"folder {folder} cannot be listed ({error.strerror}); check its permissions") from error
    found = [entry for entry in entries if not entry.name.startswith(".") and entry.name.lower() not in _DESKTOP_FILES]
    for entry in found:
        if entry.suffix != ".png" or not entry.is_file():
            raise DataError(f"{entry} is not a .png file; {folder.name} may hold PNG patches only, move it elsewhere")
    if not found:
        raise DataError(f"folder {folder} has no images; expected {expected}; {remedy}")
    return found
