"""From one mammogram to the patches of its lesions: what a worker process does."""

from __future__ import annotations

import errno
import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mammo_fed.common.private_files import write_private
from mammo_fed.data.dicom.annotations.marked import marked_in_files
from mammo_fed.data.dicom.findings import Box, Breast, Lesion, Masks, Outline, Reason, Skipped
from mammo_fed.data.dicom.geometry import (
    Crop,
    CropRule,
    area_resize,
    box_in_image,
    breast_box,
    mask_box,
    outline_box,
    square_crop,
)
from mammo_fed.data.dicom.identifiers.text_in_pixels import shows_text
from mammo_fed.data.dicom.image.acquisition import Intent, is_raw, vendor_of, year_of
from mammo_fed.data.dicom.image.breast import COARSE, air_level, breast_region, enlarged
from mammo_fed.data.dicom.image.headers import code_of, identities_of
from mammo_fed.data.dicom.image.intensity import Intensity, Windowing, intensity_of
from mammo_fed.data.dicom.image.reading import Mammogram, read_mammogram
from mammo_fed.data.pseudonyms import Pseudonyms

__all__ = ["Job", "MadePatch", "PatchRecipe", "Refusal", "Wanted", "make_patches"]

WHITE: Final = 65535
# So little brighter than air there is no tissue.
AIR: Final = 0.02


@dataclass(frozen=True, kw_only=True)
class PatchRecipe:
    """How patches are made.

    Attributes:
      crop: the square around a lesion.
      windowing: how stored values become intensities.
      modality: what files must be; None takes any.
      burned_in: whether to take images that say, or whose crop shows, that text is burned into their pixels.
      intent: images made to be looked at, raw data of the detector, or both.
      synthetic_views: whether to take views that were computed of a tomosynthesis.
      blank_background: whether everything beside the breast becomes black: air, view markers, labels.
    """

    crop: CropRule
    windowing: Windowing
    modality: str | None
    burned_in: bool = False
    intent: Intent = "presentation"
    synthetic_views: bool = False
    blank_background: bool = False


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """One patch to make: where the lesion is, and the pseudonym that the patch gets."""

    name: str
    lesion: Lesion


@dataclass(frozen=True, kw_only=True)
class Job:
    """One mammogram with all its lesions.

    Attributes:
      image: the DICOM file.
      wanted: its lesions.
      recipe: how patches are made.
      folder: where they are written as NAME.png.
      pseudonyms: of the site; what identifies people leaves the process as keyed digests only.
    """

    image: Path
    wanted: tuple[Wanted, ...]
    recipe: PatchRecipe
    folder: Path
    pseudonyms: Pseudonyms


@dataclass(frozen=True, kw_only=True)
class MadePatch:
    """A patch that was written.

    Attributes:
      name: its pseudonym.
      view: "CC", "MLO" or "", as the file says.
      sha256: of the PNG file.
      provenance: where its pixels come from: only numbers, hashes, keyed digests and words of fixed lists.
      sources: SHA-256 of the files that it was made from, in the order of `files_of`; "" where one could not be read.
    """

    name: str
    view: str
    sha256: str
    provenance: dict[str, str]
    sources: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """A lesion without a patch; `detail` may name the file and is for the site's own console."""

    name: str
    reason: Reason
    detail: str


@dataclass(frozen=True, kw_only=True)
class Unwritten:
    """A patch that the disk did not take, which is no fault of its file; `code` is the system's own (errno)."""

    name: str
    code: int


def make_patches(job: Job) -> Sequence[MadePatch | Refusal | Unwritten]:
    """Read the mammogram once, and make a patch of every lesion, or say why not."""
    recipe = job.recipe
    try:
        mammogram = read_mammogram(
            job.image, modality=recipe.modality, intent=recipe.intent, synthetic_views=recipe.synthetic_views
        )
        view = _View(mammogram, intensity_of(mammogram.header, mammogram.stored, windowing=recipe.windowing))
    except Skipped as error:
        return [Refusal(name=one.name, reason=error.reason, detail=error.detail) for one in job.wanted]
    except MemoryError:
        return [Refusal(name=one.name, reason="too_large", detail="the image does not fit into memory") for one in job.wanted]
    return [_one(job, one, view) for one in job.wanted]


class _View:
    """A mammogram as it is shown, and where the breast is in it."""

    def __init__(self, mammogram: Mammogram, intensity: Intensity) -> None:
        self.mammogram, self.intensity = mammogram, intensity
        self.stored = mammogram.stored
        self.shape = (self.stored.shape[0], self.stored.shape[1])

    @cached_property
    def coarse(self) -> NDArray[np.float32]:
        return self.intensity(self.stored[::COARSE, ::COARSE])

    @cached_property
    def breast(self) -> NDArray[np.bool_]:
        return breast_region(self.coarse)

    def mapped_for(self, box: Box) -> Intensity:
        """How samples are shown for a lesion."""
        top, left, bottom, right = box_in_image(box, shape=self.shape)
        return self.intensity.holding(self.stored[top:bottom, left:right])

    def square(self, crop: Crop, intensity: Intensity, *, blank_background: bool) -> NDArray[np.float32]:
        """What is shown inside a square."""
        shown = intensity(self.stored[crop.top : crop.top + crop.side, crop.left : crop.left + crop.side])
        if blank_background:
            side = (crop.side, crop.side)
            shown[~enlarged(self.breast, shape=side, top=crop.top, left=crop.left)] = 0.0
        return shown


def _one(job: Job, wanted: Wanted, view: _View) -> MadePatch | Refusal | Unwritten:
    rule, mammogram = job.recipe.crop, view.mammogram
    try:
        box, marks = _box(wanted.lesion, view)
        crop = square_crop(box, shape=view.shape, rule=rule, spacing=mammogram.spacing)
        if not isinstance(wanted.lesion, Breast):
            _check_on_breast(box, view)
        whole = isinstance(wanted.lesion, Breast)
        intensity = view.intensity if whole else view.mapped_for(box)
        shown = view.square(crop, intensity, blank_background=job.recipe.blank_background)
        if whole and not job.recipe.burned_in and shows_text(shown):
            # Beside a whole breast there nearly always is a view marker.
            shown = view.square(crop, intensity, blank_background=True)
            intensity = replace(intensity, notes=(*intensity.notes, "text_made_black"))
        _check_text(job, mammogram, shown)
        patch = area_resize(shown, rule.size)
    except Skipped as error:
        return Refusal(name=wanted.name, reason=error.reason, detail=error.detail)
    except MemoryError:
        return Refusal(name=wanted.name, reason="too_large", detail="the patch does not fit into memory")
    # What odd numbers of a table or a file bring numpy to: it costs this lesion, and not the others of the mammogram.
    except (ValueError, IndexError, OverflowError) as error:
        return Refusal(name=wanted.name, reason="damaged", detail=f"the pixels cannot be mapped ({type(error).__name__})")
    try:
        sha256 = _write(patch, job.folder / f"{wanted.name}.png")
    except OSError as error:
        return Unwritten(name=wanted.name, code=error.errno or errno.EIO)
    return MadePatch(
        name=wanted.name,
        view=mammogram.view,
        sha256=sha256,
        provenance={name: str(value) for name, value in _provenance(job, wanted, view, crop, intensity).items()},
        sources=(mammogram.sha256, *marks),
    )


def _provenance(job: Job, wanted: Wanted, view: _View, crop: Crop, intensity: Intensity) -> dict[str, object]:
    """Numbers, hashes, keyed digests and words of fixed lists."""
    mammogram, header = view.mammogram, view.mammogram.header
    spacing = mammogram.spacing or ("", "")
    return {
        "source_sha256": mammogram.sha256,
        "rows": view.shape[0],
        "columns": view.shape[1],
        "crop_top": crop.top,
        "crop_left": crop.left,
        "crop_side": crop.side,
        "spacing_down_mm": spacing[0],
        "spacing_across_mm": spacing[1],
        "transfer_syntax": mammogram.transfer_syntax,
        "windowing": intensity.describe(),
        "notes": " ".join(intensity.notes),
        "lesion": type(wanted.lesion).__name__.lower(),
        "vendor": vendor_of(header),
        "intent": "processing" if is_raw(header) else "presentation",
        "year": year_of(header),
        **{kind: job.pseudonyms.of(kind, value) if value else "" for kind, value in identities_of(header).items()},
    }


def _check_text(job: Job, mammogram: Mammogram, shown: NDArray[np.float32]) -> None:
    if job.recipe.burned_in:
        return
    if code_of(mammogram.header, "BurnedInAnnotation") == "YES":
        raise Skipped("burned_in_text", "the header says that text is burned into its pixels")
    if shows_text(shown):
        raise Skipped("burned_in_text", "what lies around the lesion looks like text")


def _check_on_breast(box: Box, view: _View) -> None:
    """A lesion lies in tissue: a box on air was drawn on another image, or on this one turned round."""
    top, left, bottom, right = box_in_image(box, shape=view.shape)
    inside = view.intensity(view.stored[top:bottom:2, left:right:2])
    if float(np.quantile(inside, 0.95)) < air_level(view.coarse, view.breast) + AIR:
        raise Skipped("lesion_off_breast", "what is marked lies beside the breast, on the background")


def _box(lesion: Lesion, view: _View) -> tuple[Box, tuple[str, ...]]:
    """The box around a lesion, and the hashes of the files that mark it."""
    match lesion:
        case Box():
            return lesion, ()
        case Outline():
            return outline_box(lesion), ()
        case Breast():
            return breast_box(view.breast, shape=view.shape), ()
        case Masks():
            marked, hashes = marked_in_files(lesion, header=view.mammogram.header, shape=view.shape, breast=view.breast)
            match marked:
                case Box():
                    return marked, hashes
                case Outline():
                    return outline_box(marked), hashes
                case _:
                    return mask_box(marked), hashes


def _write(patch: NDArray[np.float32], path: Path) -> str:
    """Write a 16-bit grey PNG in one step; its SHA-256."""
    values = np.round(patch.astype(np.float64) * WHITE).astype(np.uint16)
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, format="PNG", compress_level=4)
    content = buffer.getvalue()
    write_private(path, content)
    return hashlib.sha256(content).hexdigest()
