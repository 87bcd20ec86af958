"""What is no mammogram as it was taken: projections of a tomosynthesis and views computed of one, specimens, implants."""

from __future__ import annotations

from typing import Any, Final

import pytest
from pydicom.sequence import Sequence
from pydicom.uid import (
    BreastProjectionXRayImageStorageForPresentation,
    BreastTomosynthesisImageStorage,
    ComputedRadiographyImageStorage,
    DigitalMammographyXRayImageStorageForProcessing,
)

from tests.data.dicom.reported.drawing import TOLERANCE, Archive, Told, as_stored, code, header, scene

CRANIO_CAUDAL: Final = ("R-10242", "SRT", "cranio-caudal")


def with_view(*words: str) -> dict[str, Any]:
    """Instead of a View Position."""
    return {"ViewPosition": None, "ViewCodeSequence": Sequence([code(*words)])}


def with_modifier(*words: str) -> dict[str, Any]:
    """View Modifier Code Sequence (PS3.16 CID 4015)."""
    item = code(*CRANIO_CAUDAL, ViewModifierCodeSequence=Sequence([code(*words)]))
    return {"ViewPosition": None, "ViewCodeSequence": Sequence([item])}


# By attributes that the header has, the reason that is true.
REFUSED: Final[dict[str, tuple[dict[str, Any], str]]] = {
    # Image Type, value 3 and 4, of devices that compute a view of a tomosynthesis (PS3.3 C.8.11.7.1.4 leaves them to makers).
    "synthetic by type": (
        {"ImageType": ["DERIVED", "PRIMARY", "TOMOSYNTHESIS", "GENERATED_2D", "", "150000"]},
        "synthetic_view",
    ),
    "computed of two exposures": ({"ImageType": ["DERIVED", "PRIMARY", "", "SUBTRACTION"]}, "synthetic_view"),
    "guide of a biopsy": ({"ImageType": ["ORIGINAL", "PRIMARY", "STEREO_MINUS"]}, "biopsy_view"),
    "synthetic by description": ({"SeriesDescription": "L CC C-View"}, "synthetic_view"),
    "synthetic by another maker": ({"SeriesDescription": "S-View RMLO"}, "synthetic_view"),
    "synthetic by a third": ({"SeriesDescription": "Insight 2D L CC"}, "synthetic_view"),
    "projection by type": ({"ImageType": ["ORIGINAL", "PRIMARY", "TOMO_PROJ", "LEFT"]}, "tomosynthesis"),
    # PS3.4, B.5: storage classes of their own.
    "projection by class": ({"SOPClassUID": BreastProjectionXRayImageStorageForPresentation}, "tomosynthesis"),
    "tomosynthesis of one frame": ({"SOPClassUID": BreastTomosynthesisImageStorage, "NumberOfFrames": 1}, "tomosynthesis"),
    "raw without intent": (
        {"SOPClassUID": DigitalMammographyXRayImageStorageForProcessing, "PresentationIntentType": None},
        "for_processing",
    ),
    "raw in small letters": ({"PresentationIntentType": "for processing"}, "for_processing"),
    # PS3.16, CID 4014: a view of a tissue specimen, in the codes of two editions.
    "specimen": (with_view("G-8310", "SRT", "tissue specimen"), "specimen"),
    "specimen in SNOMED CT": (with_view("127457009", "SCT", "tissue specimen"), "specimen"),
    "specimen in words": ({"ViewPosition": "SPECIMEN"}, "specimen"),
    "specimen as body part": ({"BodyPartExamined": "SPECIMEN"}, "specimen"),
    # An implant that was pushed aside is one (CID 4015).
    "implant": ({"BreastImplantPresent": "yes"}, "implant"),
    "implant displaced": (with_modifier("R-102D5", "SRT", "Implant Displaced"), "implant"),
    "another modality": ({"Modality": "CR", "SOPClassUID": ComputedRadiographyImageStorage}, "wrong_modality"),
    "no polarity": ({"PhotometricInterpretation": None}, "unclear_polarity"),
    "a palette": ({"PhotometricInterpretation": "PALETTE COLOR"}, "colour"),
    "several frames": ({"NumberOfFrames": 2}, "several_frames"),
    "text in the pixels": ({"BurnedInAnnotation": "YES"}, "burned_in_text"),
}
READ: Final[dict[str, dict[str, Any]]] = {
    # Type 1 of mammograms, and yet some have none (PS3.3 C.8.11.1).
    "computed radiography": {"SOPClassUID": ComputedRadiographyImageStorage, "PresentationIntentType": None},
    "derived in another way": {"ImageType": ["DERIVED", "PRIMARY"], "DerivationDescription": "compressed"},
    "one frame": {"NumberOfFrames": 1, "PlanarConfiguration": 0},
    "an identity shape": {"PresentationLUTShape": "IDENTITY"},
    "bytes after the pixels": {"DataSetTrailingPadding": bytes(200)},
    "no sign said": {"PixelRepresentation": None},
    "no high bit said": {"HighBit": None},
}


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Told:
    archive = Archive(tmp_path_factory.mktemp("kinds") / "archive")
    kinds = [*((name, change) for name, (change, _) in REFUSED.items()), *READ.items()]
    for number, (name, change) in enumerate(kinds):
        image = header(as_stored(scene(number)), number=number, **change)
        archive.add(name, image=image, wanted=scene(number), file=f"{number}.dcm")
    return archive.ingest()


@pytest.mark.parametrize("name", REFUSED)
def test_dicom_object_that_is_no_mammogram_is_refused(told: Told, name: str) -> None:
    """With the reason that is true."""
    assert told.reason(name) == REFUSED[name][1]


@pytest.mark.parametrize("name", READ)
def test_dicom_object_that_is_an_odd_mammogram_is_read(told: Told, name: str) -> None:
    """What an attribute says beside the image is no reason to lose it."""
    assert told.off(name) < TOLERANCE
