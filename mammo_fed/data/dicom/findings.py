"""What a source of mammograms says about a lesion, before a pixel is read. A source is one module that yields these."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, Protocol, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from mammo_fed.data.sources.rows import Split
from mammo_fed.errors import DataError
from mammo_fed.privacy.patient_identity import require_identifier

__all__ = [
    "REASONS",
    "Box",
    "Breast",
    "Finding",
    "Lesion",
    "Masks",
    "Outline",
    "Reason",
    "Skipped",
    "SkippedFinding",
    "Source",
    "files_inside",
    "files_of",
]

Reason = Literal[
    "missing_file",
    "unusable_row",
    "repeated_row",
    "patient_in_two_splits",
    "other_finding",
    "no_side",
    "not_dicom",
    "damaged",
    "no_pixels",
    "several_frames",
    "tomosynthesis",
    "synthetic_view",
    "for_processing",
    "for_presentation",
    "specimen",
    "biopsy_view",
    "implant",
    "burned_in_text",
    "wrong_modality",
    "colour",
    "unsupported_encoding",
    "too_large",
    "size_mismatch",
    "decoding_failed",
    "decoder_crashed",
    "timed_out",
    "flat_image",
    "unclear_polarity",
    "no_mask",
    "unclear_mask",
    "several_regions",
    "mask_mismatch",
    "no_lesion",
    "lesions_apart",
    "lesion_outside",
    "lesion_off_breast",
    "lesion_too_small",
    "unknown_label",
    "unknown_spacing",
    "unreadable_annotation",
]
REASONS: Final[tuple[Reason, ...]] = get_args(Reason)
"""Why a finding gives no patch: a fixed list, so that reasons can be counted and say nothing about a patient."""


@dataclass(frozen=True, kw_only=True)
class Box:
    """A rectangle of pixels: rows [top, bottom), columns [left, right); whoever crops rounds outwards.

    `drawn_on` is the size (rows, columns) of the image that it was drawn on, where that is another than the mammogram: a
    smaller copy, for instance.
    """

    top: float
    left: float
    bottom: float
    right: float
    drawn_on: tuple[int, int] | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Outline:
    """A closed contour: float64, shape (points, 2), as (row, column) in pixels of the mammogram or of `drawn_on`."""

    points: NDArray[np.float64]
    drawn_on: tuple[int, int] | None = None


@dataclass(frozen=True, kw_only=True)
class Masks:
    """Files one of which marks the lesion: an image of two values as large as the mammogram, or a DICOM annotation.

    Names are not trusted. `region` chooses one of several regions of an annotation: its number from 1, or its label.
    """

    candidates: tuple[Path, ...]
    region: str = ""


@dataclass(frozen=True, kw_only=True)
class Breast:
    """No lesion is marked: the label is the breast's, and the patch is all of it."""


Lesion: TypeAlias = Box | Outline | Masks | Breast


@dataclass(frozen=True, kw_only=True, eq=False)
class Finding:
    """One lesion in one mammogram.

    Attributes:
      image: the mammogram's DICOM file.
      lesion: where it is.
      patient: the source's identifier of the patient, not blank; stays at the site.
      name: the source's identifier of the finding, unique in the source; stays at the site.
      label: MALIGNANT or BENIGN; None where no biopsy says so: such a patch is of use for pretraining only.
      split: which part of the source it belongs to.
      view: "CC", "MLO" or "" where the source does not say; the file's own attribute is then used.
    """

    image: Path
    lesion: Lesion
    patient: str
    name: str
    label: int | None
    split: Split
    view: str = ""

    def __post_init__(self) -> None:
        require_identifier(self.patient, where="a finding of the source")


@dataclass(frozen=True, kw_only=True)
class SkippedFinding:
    """A finding, or a file, that a source could not make sense of.

    Attributes:
      name: which one, in the source's words; stays at the site.
      reason: one of a fixed list.
      detail: for the site's own console and log.
    """

    name: str
    reason: Reason
    detail: str = ""


class Skipped(DataError):
    """A finding gives no patch, for a reason of a fixed list; the text is for the site's own console."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason: Reason = reason
        self.detail = detail


class Source(Protocol):
    """Lists the findings of one kind of archive."""

    def __call__(self, root: Path) -> Iterator[Finding | SkippedFinding]:
        """Findings below `root`, in an order that does not depend on the file system; no pixels are decoded.

        Raises:
          DataError: If `root` is not such an archive at all.
        """
        ...


def files_of(finding: Finding) -> tuple[Path, ...]:
    """The files that a patch is made from: the mammogram, then those that mark the lesion."""
    return (finding.image, *(finding.lesion.candidates if isinstance(finding.lesion, Masks) else ()))


def files_inside(root: Path, paths: Iterable[Path]) -> list[Path]:
    """Those of `paths` that are files of the archive, sorted: no pipe waits to be read, and no link leads out of `root`."""
    top = root.resolve()
    return sorted(path for path in paths if path.is_file() and path.resolve().is_relative_to(top))
