"""How an image was taken, by its header: what kind it is, which breast and view, at which scale, by whom and when."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterator
from typing import Final, Literal

from pydicom import Dataset
from pydicom.uid import (
    BreastProjectionXRayImageStorageForPresentation,
    BreastProjectionXRayImageStorageForProcessing,
    BreastTomosynthesisImageStorage,
    DigitalIntraOralXRayImageStorageForProcessing,
    DigitalMammographyXRayImageStorageForProcessing,
    DigitalXRayImageStorageForProcessing,
)

from mammo_fed.data.dicom.findings import Skipped
from mammo_fed.data.dicom.image.headers import code_of, codes_of, text_of

__all__ = ["INTENTS", "Intent", "check_kind", "is_raw", "side_of", "spacing_of", "vendor_of", "view_of", "year_of"]

Intent = Literal["presentation", "processing", "any"]
INTENTS: Final[tuple[Intent, ...]] = ("presentation", "processing", "any")
WIDEST_SPACING_MM: Final = 10.0
# A breast on its support lies about this many times nearer to the source than the detector, and never more than so many times.
LARGEST_MAGNIFICATION: Final = 4.0
TOMOSYNTHESIS: Final = frozenset(
    {
        BreastTomosynthesisImageStorage,
        BreastProjectionXRayImageStorageForPresentation,
        BreastProjectionXRayImageStorageForProcessing,
    }
)
RAW: Final = frozenset(
    {
        DigitalMammographyXRayImageStorageForProcessing,
        DigitalXRayImageStorageForProcessing,
        DigitalIntraOralXRayImageStorageForProcessing,
    }
)
# As the devices of today name what they compute of a tomosynthesis, in free text.
SYNTHETIC: Final = re.compile(r"\b(C[- ]?VIEW|S[- ]?VIEW|V[- ]?PREVIEW|INSIGHT ?2D|INTELLIGENT ?2D|SYNTH\w*|GENERATED[ _]2D)\b")
SYNTHETIC_TYPES: Final = frozenset({"GENERATED_2D", "SYNTHETIC_2D", "SYNTHESIZED_2D"})
# The ordinary exposure of a combined examination, as some devices call it.
ORDINARY_TYPE: Final = "TOMO_2D"
# Value 3 of stereotactic images (PS3.3, C.8.11.7.1.4): needles and clips, from the side.
BIOPSY: Final = ("STEREO", "PREFIRE", "POSTFIRE", "PREBIOPSY", "POSTBIOPSY", "PREMARKER", "POSTMARKER")
# Values 4 and 5 of contrast mammography (PS3.3, C.8.11.7.1.4): two exposures taken from each other, and that of high energy,
# show vessels.
COMBINED_TYPES: Final = frozenset({"SUBTRACTION", "ADDITION", "HIGH_ENERGY"})
DESCRIPTIONS: Final = ("SeriesDescription", "ProtocolName", "AcquisitionDeviceProcessingDescription")
# Schemes of SNOMED's codes, of today and as older devices name them (PS3.16, 8).
SNOMED: Final = frozenset({"SCT", "SRT", "SNM3", "99SDM", ""})
# PS3.16, CID 4014, and the codes of its older editions.
CRANIO_CAUDAL: Final = frozenset({"399162004", "R-10242"})
OBLIQUE: Final = frozenset({"399368009", "R-10226"})
SPECIMEN: Final = frozenset({"127457009", "G-8310"})
# CID 4015, and CID 244.
MAGNIFICATION: Final = frozenset({"399163009", "R-102D6"})
IMPLANT_DISPLACED: Final = frozenset({"399209000", "R-102D5"})
SIDES: Final = {"24028007": "R", "G-A100": "R", "7771000": "L", "G-A101": "L"}
SIDE_AND_VIEW: Final = re.compile(r"(?P<side>[LR])?[ _-]?(?P<view>CC|MLO)")
# How manufacturers are told apart; a header's own text may hold anything.
VENDORS: Final = {
    "HOLOGIC": "Hologic",
    "LORAD": "Hologic",
    "GE ": "GE",
    "GE_": "GE",
    "GENERAL ELECTRIC": "GE",
    "SIEMENS": "Siemens",
    "FUJI": "Fujifilm",
    "PHILIPS": "Philips",
    "SECTRA": "Philips",
    "AGFA": "Agfa",
    "CARESTREAM": "Carestream",
    "KODAK": "Carestream",
    "KONICA": "Konica Minolta",
    "PLANMED": "Planmed",
    "IMS": "IMS Giotto",
    "GIOTTO": "IMS Giotto",
    "METALTRONICA": "Metaltronica",
    "HITACHI": "Fujifilm",
    "VILLA": "Villa",
}


def check_kind(header: Dataset, *, modality: str | None, intent: Intent, synthetic_views: bool) -> None:
    """Check that the image is one to learn from.

    Raises:
      Skipped: If it is a tomosynthesis, or was computed of one or of two exposures, raw data, a specimen, of another modality
        or intent, or shows an implant.
    """
    types = codes_of(header, "ImageType")
    described = " ".join(text_of(header, name).upper() for name in DESCRIPTIONS)
    synthetic = bool(SYNTHETIC_TYPES & set(types)) or SYNTHETIC.search(described) is not None
    if text_of(header, "SOPClassUID") in TOMOSYNTHESIS or (
        not synthetic and any("TOMO" in one for one in types if one != ORDINARY_TYPE)
    ):
        raise Skipped("tomosynthesis", "a tomosynthesis or a projection of one, not a mammogram")
    if synthetic and not synthetic_views:
        raise Skipped("synthetic_view", "a view that was computed of a tomosynthesis, not taken")
    if COMBINED_TYPES & set(types) and not synthetic_views:
        raise Skipped("synthetic_view", "a view of contrast mammography that shows vessels")
    if any(one.startswith(BIOPSY) for one in types[2:3]):
        raise Skipped("biopsy_view", "a view taken to guide or check a biopsy")
    if modality is not None and code_of(header, "Modality") != modality:
        raise Skipped("wrong_modality", f"the modality is not {modality}")
    _check_intent(header, intent)
    codes = set(_view_codes(header))
    words = " ".join((code_of(header, "BodyPartExamined"), code_of(header, "ViewPosition"), described))
    if codes & SPECIMEN or "SPECIMEN" in words:
        raise Skipped("specimen", "a specimen, not a breast")
    if code_of(header, "BreastImplantPresent") == "YES" or set(_modifiers(header)) & IMPLANT_DISPLACED:
        raise Skipped("implant", "the breast has an implant")


def _check_intent(header: Dataset, intent: Intent) -> None:
    raw = is_raw(header)
    if raw and intent == "presentation":
        raise Skipped(
            "for_processing", "raw data of the detector, FOR PROCESSING: bright is not dense (--intent processing reads it)"
        )
    if not raw and intent == "processing":
        raise Skipped("for_presentation", "an image FOR PRESENTATION, and only raw ones are asked for")


def is_raw(header: Dataset) -> bool:
    """Whether it is the detector's data, before it was made into an image to look at (PS3.3, C.8.11.1)."""
    return text_of(header, "SOPClassUID") in RAW or "PROCESSING" in code_of(header, "PresentationIntentType").replace("_", " ")


def view_of(header: Dataset) -> str:
    """ "CC", "MLO", or "" for others, and where ViewPosition and ViewCodeSequence contradict each other."""
    found = SIDE_AND_VIEW.fullmatch(code_of(header, "ViewPosition"))
    written = code_of(header, "ViewPosition")
    said = found["view"] if found else ""
    codes = set(_view_codes(header))
    coded = "CC" if codes & CRANIO_CAUDAL else "MLO" if codes & OBLIQUE else ""
    if not codes:
        return said
    return coded if not written or coded == said else ""


def side_of(header: Dataset) -> str:
    """ "L", "R", or "" where no attribute says it or two contradict each other."""
    found = {code_of(header, "ImageLaterality"), code_of(header, "Laterality")}
    found |= {
        code_of(item, "FrameLaterality") for item in _inside(header, "SharedFunctionalGroupsSequence", "FrameAnatomySequence")
    }
    found |= {
        code_of(item, "FrameLaterality") for item in _inside(header, "PerFrameFunctionalGroupsSequence", "FrameAnatomySequence")
    }
    for item in _inside(header, "AnatomicRegionSequence", "AnatomicRegionModifierSequence"):
        found.add(SIDES.get(text_of(item, "CodeValue"), ""))
    position = SIDE_AND_VIEW.fullmatch(code_of(header, "ViewPosition"))
    if position is not None and position["side"]:
        found.add(position["side"])
    sides = {{"LEFT": "L", "RIGHT": "R"}.get(one, one) for one in found} - {""}
    return sides.pop() if len(sides) == 1 and sides <= {"L", "R"} else ""


def spacing_of(header: Dataset) -> tuple[float, float] | None:
    """Millimetres in the breast for a pixel, down and across; None where the header does not tell (PS3.3, 10.7.1).

    ImagerPixelSpacing is at the detector, and the breast is nearer to the source: it is divided by the magnification.
    PixelSpacing is in the breast where it was calibrated, or differs from the detector's.
    """
    pixel, imager = _pair(header, "PixelSpacing"), _pair(header, "ImagerPixelSpacing")
    if pixel is not None and code_of(header, "PixelSpacingCalibrationType") in ("GEOMETRY", "FIDUCIAL"):
        return pixel
    if pixel is not None and imager is not None and not _alike(pixel, imager):
        return pixel
    at_detector = imager or pixel or _pair(header, "NominalScannedPixelSpacing")
    magnification = _magnification(header)
    if at_detector is None or magnification is None:
        return None
    return at_detector[0] / magnification, at_detector[1] / magnification


def vendor_of(header: Dataset) -> str:
    """The manufacturer as a word of a fixed list; "other" for those that it lacks, "" where the header has none."""
    text = f"{text_of(header, 'Manufacturer').upper()} "
    found = next((vendor for start, vendor in VENDORS.items() if text.startswith(start)), "other")
    return found if text.strip() else ""


def year_of(header: Dataset) -> str:
    """The year in which the image was taken, or ""."""
    for name in ("AcquisitionDate", "ContentDate", "StudyDate"):
        year = text_of(header, name)[:4]
        if year.isascii() and year.isdigit() and 1970 <= int(year) <= 2100:
            return year
    return ""


def _magnification(header: Dataset) -> float | None:
    """How many times larger than the breast its image on the detector is; None where that is not known and not 1."""
    factor = _number(header, "EstimatedRadiographicMagnificationFactor")
    if factor is None:
        detector, patient = _number(header, "DistanceSourceToDetector"), _number(header, "DistanceSourceToPatient")
        factor = detector / patient if detector and patient else None
    if factor is not None and 1.0 <= factor <= LARGEST_MAGNIFICATION:
        return factor
    magnified = bool(set(_modifiers(header)) & MAGNIFICATION)
    magnified |= code_of(header, "ViewPosition").startswith("M ") or "MAG" in code_of(header, "ViewPosition")
    return None if magnified else 1.0


def _pair(header: Dataset, name: str) -> tuple[float, float] | None:
    parts = text_of(header, name).strip("[]").split(",")
    with contextlib.suppress(ValueError):
        down, across = (float(part) for part in parts)
        if all(math.isfinite(value) and 0 < value <= WIDEST_SPACING_MM for value in (down, across)):
            return down, across
    return None


def _alike(one: tuple[float, float], other: tuple[float, float]) -> bool:
    return all(abs(first - second) <= 0.01 * second for first, second in zip(one, other, strict=True))


def _number(header: Dataset, name: str) -> float | None:
    with contextlib.suppress(ValueError):
        value = float(text_of(header, name))
        return value if math.isfinite(value) and value > 0 else None
    return None


def _view_codes(header: Dataset) -> Iterator[str]:
    for item in _inside(header, "ViewCodeSequence"):
        if code_of(item, "CodingSchemeDesignator") in SNOMED:
            yield text_of(item, "CodeValue").strip(" \0")


def _modifiers(header: Dataset) -> Iterator[str]:
    for names in (("ViewCodeSequence", "ViewModifierCodeSequence"), ("ViewModifierCodeSequence",)):
        for item in _inside(header, *names):
            yield text_of(item, "CodeValue").strip(" \0")


def _inside(header: Dataset, *names: str) -> Iterator[Dataset]:
    """Items of a sequence, or of sequences inside its items; damaged ones are passed over."""
    try:
        items = list(header.get(names[0]) or ())
    except Exception:  # noqa: BLE001 - pydicom converts values when they are asked for, and damaged ones fail in any way
        return
    for item in items:
        if not isinstance(item, Dataset):
            continue
        if len(names) == 1:
            yield item
        else:
            yield from _inside(item, *names[1:])
