"""Masks and boxes as tools, resizers and merged downloads leave them: the drawn lesion, or the reason that is true."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.pixels.utils import pack_bits
from pydicom.uid import SegmentationStorage
from scipy import ndimage

from mammo_fed.data.dicom.findings import Box
from tests.data.dicom.reported.drawing import COLUMNS, LESION, ROWS, TOLERANCE, Archive, Told, as_stored, cut, header, scene

INSIDE: Final = np.s_[int(LESION.top) : int(LESION.bottom), int(LESION.left) : int(LESION.right)]


def marked() -> NDArray[np.uint8]:
    """A mask that is right: 255 in the lesion's box, 0 elsewhere."""
    mask = np.zeros((ROWS, COLUMNS), np.uint8)
    mask[INSIDE] = 255
    return mask


def breast(number: int) -> NDArray[np.uint8]:
    return ((scene(number) > 0) * 255).astype(np.uint8)


def framed() -> NDArray[np.uint8]:
    """With a frame of two pixels that a viewer drew around its canvas."""
    mask = marked()
    for edge in (np.s_[:2], np.s_[-2:], np.s_[:, :2], np.s_[:, -2:]):
        mask[edge] = 255
    return mask


def two_labels() -> NDArray[np.uint8]:
    """Labels 1 and 2 of two lesions of one image."""
    mask = (marked() // 255).astype(np.uint8)
    mask[250:280, 40:70] = 2
    return mask


def half() -> NDArray[np.uint8]:
    """Everything left of a line: the half of a canvas, no lesion."""
    mask = np.zeros((ROWS, COLUMNS), np.uint8)
    mask[:, : COLUMNS // 2 + 8] = 255
    return mask


def of_bits(number: int) -> Dataset:
    """DICOM SEG, binary, of one frame (PS3.3 A.51 and C.8.20): eight pixels in a byte, lowest bit first (PS3.5 8.1.1)."""
    made = header(marked() // 255, number=number, bits=8)
    made.SOPClassUID = made.file_meta.MediaStorageSOPClassUID = SegmentationStorage
    made.Modality, made.SegmentationType, made.NumberOfFrames = "SEG", "BINARY", 1
    made.BitsAllocated, made.BitsStored, made.HighBit = 1, 1, 0
    made.PixelData = pack_bits((marked() // 255).ravel())
    return made


def as_mask(pixels: NDArray[Any], number: int, **attributes: Any) -> Dataset:
    return header(pixels.astype(np.uint8), number=500 + number, bits=8, Modality="OT", **attributes)


MASKS: Final[dict[str, Any]] = {
    "right": lambda number: as_mask(marked(), number),
    # An annotation tool whose foreground is black: what is marked reaches all four borders.
    "inverted": lambda number: as_mask(255 - marked(), number),
    # PS3.3 C.7.6.3.1.2: in MONOCHROME1 the lowest value is white, so 0 is what is marked.
    "of monochrome1": lambda number: as_mask(255 - marked(), number, PhotometricInterpretation="MONOCHROME1"),
    "framed": lambda number: as_mask(framed(), number),
    "of bits": lambda number: of_bits(500 + number),
    # Dust of a scanner.
    "with specks": lambda number: as_mask(
        np.where(np.random.default_rng(1).random((ROWS, COLUMNS)) < 4e-4, 255, marked()), number
    ),
    # Resized or compressed with loss.
    "with soft edges": lambda number: as_mask(np.round(ndimage.gaussian_filter(marked().astype(float), 1.0)), number),
}
UNCLEAR: Final[dict[str, tuple[Any, str]]] = {
    "two labels": (lambda number: as_mask(two_labels(), number), "several_regions"),
    "whole breast": (lambda number: as_mask(breast(number), number), "unclear_mask"),
    "half a canvas": (lambda number: as_mask(half(), number), "unclear_mask"),
    "nothing": (lambda number: as_mask(marked() * 0, number), "no_mask no_lesion"),
    "everything": (lambda number: as_mask(marked() | 255, number), "no_mask unclear_mask"),
    "another aspect": (lambda number: as_mask(marked()[:-60], number), "mask_mismatch"),
}


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Told:
    archive = Archive(tmp_path_factory.mktemp("masks") / "archive")
    for number, (name, make) in enumerate([*MASKS.items(), *((name, make) for name, (make, _) in UNCLEAR.items())]):
        made = make(number)
        (archive.root).mkdir(parents=True, exist_ok=True)
        made.save_as(archive.root / f"mask-{number}.dcm", enforce_file_format=True)
        image = header(as_stored(scene(number)), number=number)
        archive.add(name, image=image, wanted=scene(number), file=f"{number}.dcm", box=None, mask=f"mask-{number}.dcm")
    boxes = {"flipped": Box(top=224, left=168, bottom=96, right=40), "air": Box(top=2, left=180, bottom=60, right=250)}
    for number, (name, box) in enumerate(boxes.items(), start=100):
        archive.add(name, image=header(as_stored(scene(number)), number=number), file=f"{number}.dcm", box=box)
    archive.wanted["flipped"] = cut(scene(100))
    return archive.ingest("--margin", "0", "--smallest", "16")


@pytest.mark.parametrize("name", MASKS)
def test_dicom_mask_gives_the_drawn_lesion(told: Told, name: str) -> None:
    """Whatever the tool that drew it: never the whole mammogram for the lesion."""
    assert told.off(name) < TOLERANCE


@pytest.mark.parametrize("name", UNCLEAR)
def test_dicom_mask_of_something_else_than_a_lesion_is_refused(told: Told, name: str) -> None:
    """What is marked must be one lesion beyond doubt; the reason says what the mask is."""
    assert told.reason(name) in UNCLEAR[name][1].split()


def test_dicom_box_drawn_from_another_corner_is_the_same_box(told: Told) -> None:
    """Tools write where the mouse went down and up."""
    assert told.off("flipped") < TOLERANCE


def test_dicom_box_on_the_background_is_refused(told: Told) -> None:
    """A box drawn on a mirrored or rotated copy lies where there is no breast."""
    assert told.reason("air") == "lesion_off_breast"


def test_dicom_region_of_several_is_taken_where_the_table_names_it(tmp_path: Path) -> None:
    """Labels 1 and 2 in one mask are two findings, and `region` says which."""
    archive = Archive(tmp_path / "archive")
    archive.root.mkdir()
    as_mask(two_labels(), 0).save_as(archive.root / "mask.dcm", enforce_file_format=True)
    image = header(as_stored(scene(0)), number=0)
    archive.add("first", image=image, wanted=scene(0), file="0.dcm", box=None, mask="mask.dcm", region="1")
    archive.add("second", file="0.dcm", box=None, mask="mask.dcm", region="2", patient="woman 1009")
    archive.add("third", file="0.dcm", box=None, mask="mask.dcm", region="3", patient="woman 1009")
    told = archive.ingest("--margin", "0", "--smallest", "30", "--size", "128")
    assert told.off("first") < TOLERANCE
    assert {row["crop_side"] for row in told.provenance} == {"128", "30"}
    assert told.reason("third") == "no_mask" or told.reason("third") == "no_lesion"
