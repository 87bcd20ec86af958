"""Which region a DICOM annotation marks."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, FileDataset

from mammo_fed.data.dicom.findings import Box, Outline, Skipped

__all__ = ["is_annotation", "marked_region"]


def is_annotation(header: Dataset) -> bool:
    """Whether a file is an annotation."""
    return header is None


def marked_region(
    annotation: FileDataset, *, image: Dataset, shape: tuple[int, int], region: str
) -> Box | Outline | NDArray[np.bool_]:
    """The region."""
    raise Skipped("unreadable_annotation", "not read")
