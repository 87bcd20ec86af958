"""Which attributes of a header may say whose it is: those of the basic profile, and words that the profile does not know of."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any, Final

from pydicom import DataElement, Dataset
from pydicom.datadict import dictionary_has_tag, keyword_for_tag, repeater_has_tag

from mammo_fed.data.dicom.image.headers import text_of
from mammo_fed.errors import InvalidSetting

__all__ = ["check_profile", "identifying_attributes"]

# Edition of DICOM PS3.15, table E.1-1 (basic profile), as the package dicom-anonymizer carries it.
EDITION: Final = "dicomfields_2026c"
PRIVATE: Final = "private attributes"
UNKNOWN: Final = "attributes of no dictionary"
PIXELS: Final = 0x7FE0
# At the end of a file, whose bytes are looked at by themselves.
PADDING: Final = 0xFFFCFFFC
# Value representations that hold words: names, titles of applications, addresses, free text and labels.
TEXT: Final = frozenset({"PN", "AE", "LO", "LT", "SH", "ST", "UC", "UR", "UT"})
# Words of devices and of the standard, in attributes that nobody types into.
TECHNICAL: Final = frozenset(
    {
        "AlgorithmName",
        "AlgorithmVersion",
        "CodeValue",
        "CodingSchemeDesignator",
        "CodingSchemeName",
        "CodingSchemeVersion",
        "ContextIdentifier",
        "ConvolutionKernel",
        "DetectorManufacturerModelName",
        "DetectorManufacturerName",
        "DimensionDescriptionLabel",
        "ExposureControlModeDescription",
        "FilterType",
        "GridID",
        "ImagedNucleus",
        "ImplementationVersionName",
        "LongCodeValue",
        "Manufacturer",
        "ManufacturerModelName",
        "MappingResourceName",
        "PixelSpacingCalibrationDescription",
        "PlateType",
        "RescaleType",
        "SecondaryCaptureDeviceManufacturer",
        "SecondaryCaptureDeviceManufacturerModelName",
        "SegmentAlgorithmName",
        "SequenceName",
        "SoftwareVersions",
    }
)
# Neither text nor in the profile: labels that are codes by name only, bytes of a program's own, names of files in a DICOMDIR.
FURTHER: Final = frozenset(
    {"ContentLabel", "FileSetID", "GraphicLayer", "PrivateInformation", "PrivateInformationCreatorUID", "ReferencedFileID"}
)
# Schemes whose words for a code are the scheme's own.
SCHEMES: Final = frozenset({"DCM", "FMA", "LN", "NCIT", "RADLEX", "SCT", "SNM3", "SRT", "UCUM", "UMLS"})
# Codes that images of the breast have; anything else in these attributes is a word that somebody put there.
CODES: Final = {
    "Modality": frozenset(
        {"MG", "CR", "DX", "DR", "OT", "SC", "US", "MR", "CT", "PT", "NM", "SR", "SEG", "PR", "KO", "RTSTRUCT", "REG", "DOC"}
        | {"XA", "RF", "ES", "XC", "OP", "OPT", "ECG", "RTPLAN", "RTDOSE", "RTIMAGE", "RG", "TG", "BMD", "SM", "HC", "AU"}
    ),
    "ViewPosition": frozenset(
        {"CC", "MLO", "ML", "LM", "LMO", "SIO", "XCC", "XCCL", "XCCM", "FB", "ISO", "CV", "AT", "TAN", "AP", "PA", "SPECIMEN"}
        | {"RL", "RM", "RI", "RS", "LL", "RLO", "LLO"}
    ),
    "ImageLaterality": frozenset({"L", "R", "B", "U"}),
    "Laterality": frozenset({"L", "R", "B"}),
}


def check_profile() -> None:
    """Check that the table of the profile is installed.

    Raises:
      InvalidSetting: If it is not.
    """
    _profile()


def identifying_attributes(header: Dataset) -> set[str]:
    """Keywords of what is in a header, or nested in it, and may say whose it is; private attributes by one word for all."""
    exact, ranges = _profile()
    found = set()
    for holder, element in _elements(header):
        if element.tag.group == PIXELS or element.tag == PADDING or element.tag.element == 0 or element.is_empty:
            continue
        tag = (element.tag.group, element.tag.element)
        if element.tag.is_private:
            found.add(PRIVATE)
        elif not (dictionary_has_tag(element.tag) or repeater_has_tag(element.tag)):
            found.add(UNKNOWN)
        elif tag in exact or any(_matches(tag, one) for one in ranges) or _free_text(holder, element):
            found.add(keyword_for_tag(element.tag) or str(element.tag))
    return found


def _elements(header: Dataset) -> Iterator[tuple[Dataset, DataElement]]:
    """Every element with what holds it; what cannot be converted is passed over."""
    waiting = [header]
    while waiting:
        holder = waiting.pop()
        for tag in list(holder.keys()):
            try:
                element = holder[tag]
                inside = list(element.value or ()) if element.VR == "SQ" else []
            except Exception:  # noqa: BLE001, S112 - damaged values fail in any way
                continue
            yield holder, element
            waiting.extend(item for item in inside if isinstance(item, Dataset))


def _free_text(holder: Dataset, element: DataElement) -> bool:
    """Whether people, or programs on their behalf, may have put words there that the standard does not foresee."""
    word = keyword_for_tag(element.tag)
    if word == "CodeMeaning":
        # The meaning of a code is the scheme's word; without one it is anybody's.
        coded = any(text_of(holder, name) for name in ("CodeValue", "LongCodeValue", "URNCodeValue"))
        return not coded or text_of(holder, "CodingSchemeDesignator").upper() not in SCHEMES
    if word in CODES:
        return str(element.value).strip("\0 ").upper() not in CODES[word]
    return word in FURTHER or (element.VR in TEXT and word not in TECHNICAL)


def _matches(tag: tuple[int, int], one: tuple[int, int, int, int]) -> bool:
    return tag[0] & one[2] == one[0] & one[2] and tag[1] & one[3] == one[1] & one[3]


@lru_cache(maxsize=1)
def _profile() -> tuple[frozenset[tuple[int, int]], tuple[tuple[int, int, int, int], ...]]:
    """Tags of the basic profile: exact ones, and repeating groups with their masks."""
    try:
        from dicomanonymizer.dicomfields_selector import dicom_anonymization_database_selector
    except ImportError as error:
        raise InvalidSetting('the audit needs the table of DICOM PS3.15: pip install "mammo-fed[dicom]"') from error
    tags: list[Any] = dicom_anonymization_database_selector(EDITION)["ALL_TAGS"]
    exact = frozenset((int(tag[0]), int(tag[1])) for tag in tags if len(tag) == 2)
    return exact, tuple((int(tag[0]), int(tag[1]), int(tag[2]), int(tag[3])) for tag in tags if len(tag) == 4)
