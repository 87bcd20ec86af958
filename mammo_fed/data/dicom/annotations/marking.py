"""Which region of a DICOM annotation marks the lesion in one mammogram."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, FileDataset
from pydicom.uid import UID, KeyObjectSelectionDocumentStorage, RTStructureSetStorage, SegmentationStorage

from mammo_fed.data.dicom.annotations.presentation import drawn_graphic
from mammo_fed.data.dicom.annotations.references import uids_of
from mammo_fed.data.dicom.annotations.regions import corners_of
from mammo_fed.data.dicom.annotations.report import reported_finding
from mammo_fed.data.dicom.annotations.segmentation import segmented
from mammo_fed.data.dicom.annotations.structures import contoured
from mammo_fed.data.dicom.findings import Box, Outline, Skipped
from mammo_fed.data.dicom.image.headers import text_of

__all__ = ["is_annotation", "marked_region"]

LABEL_MAP_STORAGE: Final = "1.2.840.10008.5.1.4.1.1.66.7"
SEGMENTATIONS: Final = (SegmentationStorage, LABEL_MAP_STORAGE)
# A lesion is no half of a mammogram.
LARGEST_PART: Final = 0.5
# PS3.4, B.5: storage classes of a family begin alike.
SEGMENTATION_FAMILY: Final = "1.2.840.10008.5.1.4.1.1.66."
REPORT_FAMILY: Final = "1.2.840.10008.5.1.4.1.1.88."
PRESENTATION_FAMILY: Final = "1.2.840.10008.5.1.4.1.1.11."
BY_MODALITY: Final = {"SEG": "segmentation", "RTSTRUCT": "structures", "SR": "report", "PR": "presentation", "KO": "selection"}


def is_annotation(header: Dataset) -> bool:
    """Whether a file is an annotation: by its SOP class, else (a class that says nothing, pixels of one bit) its modality."""
    return bool(_kind(header))


def marked_region(
    annotation: FileDataset, *, image: Dataset, shape: tuple[int, int], region: str = ""
) -> Box | Outline | NDArray[np.bool_]:
    """The region of an annotation that lies on a mammogram, in pixels of it.

    Where an annotation says which images it is of, this mammogram must be among them; or the image that it was made of with
    every pixel in its place (the FOR PROCESSING image, on which detection programs work).

    Args:
      annotation: the whole file.
      image: the mammogram's header.
      shape: rows and columns of the mammogram.
      region: which one: its number from 1 (of a segment, of a structure, or among the findings or graphics on this mammogram in
        the order of the file), its label or its tracking identifier; "" where there is only one.

    Returns:
      A box or an outline in pixels, of which the first covers [0, 1); or a mask, bool, shape `shape`.

    Raises:
      Skipped: If there is none, there are several to choose from, or it is another image's or cannot be read.
    """
    kind, uids = _kind(annotation), uids_of(image)
    try:
        match kind:
            case "segmentation":
                mask = segmented(annotation, uids=uids, shape=shape, region=region)
                if mask.all():
                    raise Skipped("unclear_mask", "the segmentation marks the whole image, not a lesion")
                return mask
            case "structures":
                return _no_more_than_a_lesion(contoured(annotation, image=image, uids=uids, region=region), shape)
            case "report":
                return _no_more_than_a_lesion(reported_finding(annotation, uids=uids, region=region), shape)
            case "presentation":
                return _no_more_than_a_lesion(drawn_graphic(annotation, uids=uids, shape=shape, region=region), shape)
    except MemoryError as error:
        raise Skipped("too_large", "the annotation does not fit into memory") from error
    except Skipped:
        raise
    except Exception as error:  # pydicom converts values when they are asked for, and damaged ones fail in any way
        raise Skipped("unreadable_annotation", f"the annotation cannot be read ({type(error).__name__})") from error
    raise Skipped("unreadable_annotation", "annotations of this kind mark no region that is read")


def _no_more_than_a_lesion(region: Box | Outline, shape: tuple[int, int]) -> Box | Outline:
    """The region; but not where it is around the breast, or around all that is displayed."""
    (top, left), (bottom, right) = corners_of(region)
    inside = 0 <= top <= bottom <= shape[0] and 0 <= left <= right <= shape[1]
    if inside and (bottom - top) * (right - left) > LARGEST_PART * shape[0] * shape[1]:
        raise Skipped("unclear_mask", "the annotation marks most of the image, not a lesion")
    return region


def _kind(header: Dataset) -> str:
    known = UID(text_of(header, "SOPClassUID"))
    modality = BY_MODALITY.get(text_of(header, "Modality").strip("\0 ").upper(), "")
    if known in SEGMENTATIONS:
        return "segmentation"
    if known == RTStructureSetStorage:
        return "structures"
    if known == KeyObjectSelectionDocumentStorage or known.startswith(SEGMENTATION_FAMILY):
        return "selection"
    if known.startswith(REPORT_FAMILY):
        return "report"
    if known.startswith(PRESENTATION_FAMILY):
        return "presentation"
    bits: Any = text_of(header, "BitsAllocated")
    nameless = not known or known.name == known
    return modality if nameless or (modality == "segmentation" and bits == "1") else ""
