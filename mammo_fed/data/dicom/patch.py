"""From one mammogram to the patches of its lesions: what a worker process does."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mammo_fed.common.private_files import write_private
from mammo_fed.data.dicom.findings import Box, Breast, Lesion, Masks, Outline, Reason, Skipped
from mammo_fed.data.dicom.geometry import COARSE, CropRule, area_resize, breast_box, mask_box, outline_box, square_crop
from mammo_fed.data.dicom.headers import identities_of
from mammo_fed.data.dicom.intensity import Intensity, Windowing, intensity_of
from mammo_fed.data.dicom.phi import shows_text
from mammo_fed.data.dicom.reading import Mammogram, read_mammogram, read_mask
from mammo_fed.data.pseudonyms import Pseudonyms

__all__ = ["Job", "MadePatch", "PatchRecipe", "Refusal", "Wanted", "make_patches"]

WHITE = 65535


@dataclass(frozen=True, kw_only=True)
class PatchRecipe:
    """How patches are made.

    Attributes:
      crop: the square around a lesion.
      windowing: how stored values become intensities.
      modality: what files must be; None takes any.
      burned_in: whether to take images that say, or whose crop shows, that text is burned into their pixels.
    """

    crop: CropRule
    windowing: Windowing
    modality: str | None
    burned_in: bool = False


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
      provenance: where its pixels come from: only numbers, hashes, keyed digests and words of a fixed list.
    """

    name: str
    view: str
    sha256: str
    provenance: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """A lesion without a patch; `detail` may name the file and is for the site's own console."""

    name: str
    reason: Reason
    detail: str


def make_patches(job: Job) -> Sequence[MadePatch | Refusal]:
    """Read the mammogram once, and make a patch of every lesion, or say why not."""
    try:
        mammogram = read_mammogram(job.image, modality=job.recipe.modality)
        intensity = intensity_of(mammogram.header, mammogram.stored, windowing=job.recipe.windowing)
    except Skipped as error:
        return [Refusal(name=one.name, reason=error.reason, detail=error.detail) for one in job.wanted]
    return [_one(job, one, mammogram, intensity) for one in job.wanted]


def _one(job: Job, wanted: Wanted, mammogram: Mammogram, intensity: Intensity) -> MadePatch | Refusal:
    rule, stored = job.recipe.crop, mammogram.stored
    shape = (stored.shape[0], stored.shape[1])
    try:
        box = _box(wanted.lesion, mammogram, intensity)
        crop = square_crop(box, shape=shape, rule=rule, spacing=mammogram.spacing)
        square = stored[crop.top : crop.top + crop.side, crop.left : crop.left + crop.side]
        shown = intensity(square)
        _check_text(job, mammogram, shown)
        patch = area_resize(shown, rule.size)
    except Skipped as error:
        return Refusal(name=wanted.name, reason=error.reason, detail=error.detail)
    except MemoryError:
        return Refusal(name=wanted.name, reason="too_large", detail="the patch does not fit into memory")
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError, NotImplementedError) as error:
        return Refusal(name=wanted.name, reason="damaged", detail=f"the pixels cannot be mapped ({type(error).__name__})")
    spacing = mammogram.spacing or ("", "")
    provenance = {
        "source_sha256": mammogram.sha256,
        "rows": shape[0],
        "columns": shape[1],
        "crop_top": crop.top,
        "crop_left": crop.left,
        "crop_side": crop.side,
        "spacing_down_mm": spacing[0],
        "spacing_across_mm": spacing[1],
        "transfer_syntax": mammogram.transfer_syntax,
        "windowing": intensity.describe(),
        **{kind: job.pseudonyms.of(kind, value) if value else "" for kind, value in identities_of(mammogram.header).items()},
    }
    return MadePatch(
        name=wanted.name,
        view=mammogram.view,
        sha256=_write(patch, job.folder / f"{wanted.name}.png"),
        provenance={name: str(value) for name, value in provenance.items()},
    )


def _check_text(job: Job, mammogram: Mammogram, shown: NDArray[np.float32]) -> None:
    if job.recipe.burned_in:
        return
    if str(mammogram.header.get("BurnedInAnnotation") or "").strip().upper() == "YES":
        raise Skipped("burned_in_text", f"{job.image} says that text is burned into its pixels")
    if shows_text(shown):
        raise Skipped("burned_in_text", f"{job.image}: what lies around the lesion looks like text")


def _box(lesion: Lesion, mammogram: Mammogram, intensity: Intensity) -> Box:
    shape = (mammogram.stored.shape[0], mammogram.stored.shape[1])
    match lesion:
        case Box():
            return lesion
        case Outline():
            return outline_box(lesion)
        case Masks():
            return mask_box(_mask(lesion, shape))
        case Breast():
            return breast_box(intensity(mammogram.stored[::COARSE, ::COARSE]), shape=shape)


def _mask(masks: Masks, shape: tuple[int, int]) -> NDArray[np.bool_]:
    """The file that is a mask by its shape and values.

    Raises:
      Skipped: If none is; with a reason of its own where one has two values and another shape.
    """
    other: tuple[int, ...] | None = None
    unread: Skipped | None = None
    for path in masks.candidates:
        try:
            pixels = read_mask(path)
        except Skipped as error:
            unread = error
            continue
        low, high = pixels.min(), pixels.max()
        if low == high or np.count_nonzero(pixels == low) + np.count_nonzero(pixels == high) != pixels.size:
            continue
        if pixels.shape == shape:
            marked: NDArray[np.bool_] = pixels != low
            return marked
        other = pixels.shape
    if other is not None:
        raise Skipped("mask_mismatch", f"the mask has {other[0]} x {other[1]} pixels, the mammogram {shape[0]} x {shape[1]}")
    if unread is not None:
        raise unread
    raise Skipped("no_mask", "none of the files beside the lesion is a mask")


def _write(patch: NDArray[np.float32], path: Path) -> str:
    """Write a 16-bit grey PNG in one step; its SHA-256."""
    values = np.round(patch.astype(np.float64) * WHITE).astype(np.uint16)
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, format="PNG", compress_level=4)
    content = buffer.getvalue()
    write_private(path, content)
    return hashlib.sha256(content).hexdigest()
