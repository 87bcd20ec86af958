"""A folder of synthetic patches whose class is in the file name."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from mammo_fed.data.cohort import BENIGN, MALIGNANT, Cohort
from mammo_fed.data.sources.rows import PatchRow, cohort_from_rows, list_pngs
from mammo_fed.errors import DataError

__all__ = ["read_image_folder"]

_NAME: Final = re.compile(r"[\w.+ -]+_(?P<label>malignant|benign)\.png")
_LABELS: Final = {"malignant": MALIGNANT, "benign": BENIGN}


def read_image_folder(
    root: Path, *, public: bool, name: str | None = None, remedy: str = "check the folder of synthesis.source"
) -> Cohort:
    """Patches named `<anything>_malignant.png` or `<anything>_benign.png`, every image a patient of its own, split "train".

    Made for synthetic images. Images of people need their patients told apart: use a table (`read_csv`) for those.

    Args:
      root: the folder; its subfolders are not searched.
      public: whether the images are declared public.
      name: of the cohort; None takes the folder's name.
      remedy: what a message about a missing or empty folder advises.

    Returns:
      The cohort, in the order of the file names.

    Raises:
      DataError: If the folder is missing or has no images, a name does not end in its class, or an image cannot be read.
    """
    title = name or root.name
    rows = [
        _row(path, title)
        for path in list_pngs(root, expected="files <name>_malignant.png and <name>_benign.png", remedy=remedy)
    ]
    return cohort_from_rows(rows, name=title, public=public)


def _row(path: Path, title: str) -> PatchRow:
    match = _NAME.fullmatch(path.name)
    if match is None:
        raise DataError(f"{path} must end in _malignant.png or _benign.png; rename or remove it")
    # The class stays part of the identifier: 7_benign and 7_malignant are two images.
    identifier = f"{title}/{path.stem}"
    return PatchRow(path=path, label=_LABELS[match["label"]], patient=identifier, image=identifier, split="train")
