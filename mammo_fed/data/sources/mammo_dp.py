"""Mass patches in the layout of the public repository RichardObi/mammo_dp: CBIS-DDSM splits and the external BCDR set."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from mammo_fed.data.cohort import BENIGN, MALIGNANT, Cohort
from mammo_fed.data.sources.image_folder import read_image_folder
from mammo_fed.data.sources.rows import SPLITS, PatchRow, Split, cohort_from_rows, list_pngs, require_folder
from mammo_fed.errors import DataError, InvalidSetting

__all__ = ["available_splits", "read_mammo_dp", "read_mammo_dp_synthetic"]

_DATASET: Final = "dataset16062024"
_FOLDERS: Final[dict[str, tuple[str, str]]] = {
    "train": ("cbis-ddsm", "train"),
    "val": ("cbis-ddsm", "val"),
    "test": ("cbis-ddsm", "test"),
    "external": ("bcdr", "test"),
}
_CLASSES: Final = {"is_benign_false": MALIGNANT, "is_benign_true": BENIGN}
_SYNTHETIC: Final = ("extension", "synthetic_data", "cbis-ddsm", "c-dcgan")
_REMEDY: Final = "point MAMMO_DP_ROOT or data.root= at a full clone of RichardObi/mammo_dp"

# Identifiers differ between the sets (cbis-ddsm__P_00009, bcdr__1000): any letters, digits, "_.+-" and blanks will do.
# The label part is strict.
_NAME: Final = re.compile(
    r"patient(?P<patient>[\w.+ -]+?)_image(?P<image>[\w.+ -]+?)_mass(?P<mass>[\w.+ -]+?)_is_benign_(?P<benign>[01])\.png"
)


def available_splits(root: Path) -> tuple[Split, ...]:
    """Which of train, val, test and external a clone holds, in this order; the held-out sets are often absent.

    Raises:
      DataError: If `root` is not such a clone.
    """
    _require_dataset(root)
    return tuple(split for split in SPLITS if _split_folder(root, split).is_dir())


def read_mammo_dp(root: Path, *, split: Split) -> Cohort:
    """One split of the CBIS-DDSM masses, or the external BCDR set, as a public cohort.

    The label is the class folder's (`is_benign_true`, `is_benign_false`) and must agree with the file name,
    `patient<ID>_image<ID>_mass<ID>_is_benign_<0|1>.png`. The patient is the name's; a patch is one mass of one image.

    Args:
      root: the clone: the folder that holds `dataset16062024`.
      split: "train", "val", "test" (all CBIS-DDSM) or "external" (BCDR).

    Returns:
      The cohort "cbis-ddsm-<split>" or "bcdr-external", in the order of patient, image and mass; views are unknown.

    Raises:
      InvalidSetting: If `split` is none of the four.
      DataError: If a folder is missing or has no images, a name breaks the pattern or contradicts its folder, or an image
        cannot be read.

    Source: patches of arXiv:2407.12669 from CBIS-DDSM (Lee et al., Sci Data 4:170177, 2017) and BCDR.
    """
    if split not in _FOLDERS:
        raise InvalidSetting(f"split={split!r} must be one of {', '.join(SPLITS)}; check the split asked for")
    _require_dataset(root)
    folder = _split_folder(root, split)
    there = ", ".join(available_splits(root)) or "none"
    require_folder(folder, expected=f"the {split} split (splits that are there: {there})", remedy=_REMEDY)
    return cohort_from_rows(_rows(folder, split), name=f"{_FOLDERS[split][0]}-{split}", public=True)


def read_mammo_dp_synthetic(root: Path) -> Cohort:
    """The clone's GAN-generated masses as the public cohort "c-dcgan": every image a patient of its own, split "train".

    The generator was trained on the CBIS-DDSM training images without differential privacy.

    Raises:
      DataError: If the folder is missing or empty, a name does not end in its class, or an image cannot be read.
    """
    _require_dataset(root, folder=_SYNTHETIC[0])
    return read_image_folder(root.joinpath(*_SYNTHETIC), public=True, remedy=_REMEDY)


def _require_dataset(root: Path, *, folder: str = _DATASET) -> None:
    require_folder(root, expected="a clone of RichardObi/mammo_dp", remedy=_REMEDY)
    require_folder(root / folder, expected=f"{folder}/ inside the clone", remedy=_REMEDY)


def _split_folder(root: Path, split: Split) -> Path:
    return root.joinpath(_DATASET, *_FOLDERS[split])


def _rows(folder: Path, split: Split) -> Iterator[PatchRow]:
    """The rows of one split folder, class by class."""
    strangers = sorted(entry.name for entry in folder.glob("is_benign_*") if entry.name not in _CLASSES)
    if strangers:
        raise DataError(
            f"folder {folder} has the unknown class {strangers[0]}; only {' and '.join(_CLASSES)} are known, move it"
        )
    for class_folder, label in _CLASSES.items():
        expected = "files patient<ID>_image<ID>_mass<ID>_is_benign_<0|1>.png"
        for path in list_pngs(folder / class_folder, expected=expected, remedy=_REMEDY):
            yield _row(path, label=label, split=split)


def _row(path: Path, *, label: int, split: Split) -> PatchRow:
    match = _NAME.fullmatch(path.name)
    if match is None:
        raise DataError(f"{path} breaks the pattern patient<ID>_image<ID>_mass<ID>_is_benign_<0|1>.png; rename or remove it")
    if (BENIGN if match["benign"] == "1" else MALIGNANT) != label:
        raise DataError(
            f"{path}: the name says is_benign_{match['benign']}, its folder {path.parent.name}; correct one of them"
        )
    image = f"{match['patient']}/image{match['image']}/mass{match['mass']}"
    return PatchRow(path=path, label=label, patient=match["patient"], image=image, split=split)
