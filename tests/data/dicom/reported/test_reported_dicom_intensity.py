"""From samples to grey, in the ways that people have met: padding, polarity, look-up tables and windows.

PS3.3, C.7.5, C.8.11 and C.11, say what is right.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut
from pydicom.sequence import Sequence
from pydicom.uid import DigitalMammographyXRayImageStorageForProcessing

from tests.data.dicom.reported.drawing import (
    LESION,
    SKIN,
    TOLERANCE,
    Archive,
    Told,
    as_stored,
    header,
    scene,
    table_item,
)

Drawn = tuple[Dataset, NDArray[np.float64]]
WINDOW: Final = ("--margin", "0", "--windowing", "window")


def padding_of_many_values(number: int) -> Drawn:
    """Everything from Pixel Padding Value to Pixel Padding Range Limit is padding (PS3.3 C.7.5.1.1.2), no tissue."""
    drawn = scene(number)
    stored, air = np.round(1000 + drawn * 3095).astype(np.uint16), drawn == 0
    stored[air] = np.random.default_rng(number).integers(0, 64, int(air.sum()))
    made = header(stored, number=number, PixelPaddingValue=0, PixelPaddingRangeLimit=63)
    return made, range_of(stored, ~air)


def padding_from_the_top(number: int) -> Drawn:
    """The limit may be the lower end of the range: padding of MONOCHROME1 starts where it is black (same paragraph)."""
    drawn = scene(number)
    stored, air = np.round(3000 - drawn * 2900).astype(np.uint16), drawn == 0
    stored[air] = np.random.default_rng(number).integers(4000, 4096, int(air.sum()))
    how = {"PhotometricInterpretation": "MONOCHROME1", "PixelPaddingValue": 4095, "PixelPaddingRangeLimit": 4000}
    wanted = 1 - range_of(stored, ~air)
    wanted[air] = 0
    return header(stored, number=number, **how), wanted


def white_padding(number: int) -> Drawn:
    """Padding of 0 in MONOCHROME1, where low is white: it is not shown as the brightest tissue (PS3.3 C.7.5.1.1.2)."""
    drawn = scene(number)
    stored, air = np.round(4095 - drawn * 3000).astype(np.uint16), drawn == 0
    stored[air] = 0
    wanted = 1 - range_of(stored, ~air)
    wanted[air] = 0
    return header(stored, number=number, PhotometricInterpretation="MONOCHROME1", PixelPaddingValue=0), wanted


def signed_padding_written_as_unsigned(number: int) -> Drawn:
    """The value representation of padding follows PixelRepresentation (PS3.5 annex A, US or SS); writers take US for both."""
    drawn = scene(number)
    stored, air = np.round(drawn * 3000).astype(np.int16), drawn == 0
    stored[air] = -2000
    made = header(stored, number=number, bits=16)
    made.add_new("PixelPaddingValue", "US", 65536 - 2000)
    return made, range_of(stored, ~air)


def padding_that_no_sample_can_be(number: int) -> Drawn:
    """A padding value above BitsStored is no sample (PS3.3 C.7.5.1.1.2): nothing is padding, least of all the brightest."""
    return header(as_stored(scene(number)), number=number, PixelPaddingValue=65535), scene(number)


def padding_written_as_signed(number: int) -> Drawn:
    """SS for the padding of unsigned samples: the same word (PS3.5 annex A)."""
    drawn = scene(number)
    stored, air = np.round(1000 + drawn * 50000).astype(np.uint16), drawn == 0
    stored[air] = 65536 - 2000
    made = header(stored, number=number, bits=16)
    made.add_new("PixelPaddingValue", "SS", -2000)
    wanted = range_of(stored, ~air)
    wanted[air] = 0
    return made, wanted


def lead_marker(number: int) -> Drawn:
    """Letters of lead beside the breast, four times brighter than all tissue: the range is the breast's."""
    stored = np.round(scene(number) * 1000).astype(np.uint16)
    for letter in range(3):
        stored[20:44, 205 + 14 * letter : 209 + 14 * letter] = 4095
        stored[20:24, 205 + 14 * letter : 215 + 14 * letter] = 4095
    return header(stored, number=number), scene(number)


def range_of(stored: NDArray[Any], tissue: NDArray[np.bool_]) -> NDArray[np.float64]:
    low, high = float(stored[tissue].min()), float(stored[tissue].max())
    return np.clip((stored.astype(np.float64) - low) / (high - low), 0, 1)


def modality_table_of_12_bits(number: int) -> Drawn:
    """A modality table whose entries have 12 bits in 16 (PS3.3 C.11.1.1.1); here it changes nothing."""
    return modality_table(number, bits=12)


def modality_table_of_16_bits(number: int) -> Drawn:
    """The same with 16."""
    return modality_table(number, bits=16)


def modality_table(number: int, *, bits: int) -> Drawn:
    item = table_item(range(4096), bits=bits, ModalityLUTType="US")
    return header(as_stored(scene(number)), number=number, ModalityLUTSequence=Sequence([item])), scene(number)


def raw_by_class(number: int) -> Drawn:
    """FOR PROCESSING images are the detector's (PS3.3 C.8.11.1.1.1): not for display. Known by SOP class."""
    made = raw(number)
    made.PresentationIntentType = "FOR PRESENTATION"
    made.SOPClassUID = DigitalMammographyXRayImageStorageForProcessing
    made.file_meta.MediaStorageSOPClassUID = made.SOPClassUID
    return made, scene(number)


def raw_by_intent(number: int) -> Drawn:
    """The same, known by Presentation Intent Type (PS3.3 C.8.11.7)."""
    return raw(number), scene(number)


def raw(number: int) -> Dataset:
    stored = np.round(16383 * np.exp(-3 * scene(number))).astype(np.uint16)
    how = {"PixelIntensityRelationship": "LIN", "PixelIntensityRelationshipSign": 1}
    return header(stored, number=number, bits=14, PresentationIntentType="FOR PROCESSING", **how)


def inverse_shape_of_monochrome2(number: int) -> Drawn:
    """Presentation LUT Shape INVERSE goes with MONOCHROME1 only (PS3.3 C.8.11.3): viewers disagree on this file."""
    return header(as_stored(1 - scene(number)), number=number, PresentationLUTShape="INVERSE"), scene(number)


def identity_shape_of_monochrome1(number: int) -> Drawn:
    """And IDENTITY with MONOCHROME2 only."""
    how = {"PhotometricInterpretation": "MONOCHROME1", "PresentationLUTShape": "IDENTITY"}
    return header(as_stored(scene(number)), number=number, **how), scene(number)


def said_the_wrong_way_round(number: int) -> Drawn:
    """MONOCHROME1 over samples of which air is the lowest: shown as said, air is white. A converter turned one of two."""
    return header(as_stored(scene(number)), number=number, PhotometricInterpretation="MONOCHROME1"), scene(number)


BY_RANGE: Final[tuple[Callable[[int], Drawn], ...]] = (
    padding_of_many_values,
    padding_from_the_top,
    white_padding,
    signed_padding_written_as_unsigned,
    padding_that_no_sample_can_be,
    padding_written_as_signed,
    lead_marker,
    modality_table_of_12_bits,
    modality_table_of_16_bits,
)
REFUSED: Final[dict[Callable[[int], Drawn], str]] = {
    raw_by_class: "for_processing",
    raw_by_intent: "for_processing",
    inverse_shape_of_monochrome2: "unclear_polarity",
}
# Where low values are bright, air that a device blanked is bright too: which of the two it is, the operator has to say.
DOUBTED: Final = (identity_shape_of_monochrome1, said_the_wrong_way_round)


def intercept_alone(number: int) -> Drawn:
    """Rescale Slope and Intercept come together (PS3.3 C.11.1.1); the likely slope of an intercept alone is 1."""
    how = {"RescaleIntercept": "-1024", "WindowCenter": "1024", "WindowWidth": "4096"}
    return header(as_stored(scene(number)), number=number, **how), scene(number)


def table_below_its_bits(number: int) -> Drawn:
    """A VOI table said to have 16 bits whose entries end at 4095: what it holds is the range, or all is nearly black."""
    return with_table(number, table_item(range(4096), bits=16)), scene(number)


def table_of_bytes(number: int) -> Drawn:
    """A VOI table of 8 bits, two entries in a word of OW (PS3.3 C.11.2.1.1)."""
    steps = np.arange(4096) // 16
    return with_table(number, table_item(steps, bits=8, packed=steps.astype(np.uint8).tobytes())), scene(number)


def table_of_bytes_in_words(number: int) -> Drawn:
    """The same with one entry in each word, which others write."""
    return with_table(number, table_item(np.arange(4096) // 16, bits=8)), scene(number)


def with_table(number: int, item: Dataset) -> Dataset:
    return header(as_stored(scene(number)), number=number, VOILUTSequence=Sequence([item]))


def several_windows(number: int) -> Drawn:
    """The first of several windows is the default view (PS3.3 C.11.2.1.2)."""
    return as_pydicom_shows(number, WindowCenter=["3000", "100"], WindowWidth=["5000", "10"])


def sigmoid(number: int) -> Drawn:
    """VOI LUT Function SIGMOID (PS3.3 C.11.2.1.3.1)."""
    return as_pydicom_shows(number, WindowCenter="3000", WindowWidth="5000", VOILUTFunction="SIGMOID")


def exact(number: int) -> Drawn:
    """VOI LUT Function LINEAR_EXACT (PS3.3 C.11.2.1.3.2)."""
    return as_pydicom_shows(number, WindowCenter="3000", WindowWidth="5000", VOILUTFunction="LINEAR_EXACT")


def window_of_monochrome1(number: int) -> Drawn:
    """The window comes first, then the photometric interpretation (PS3.3 C.11.2.1.2)."""
    turned = {"PhotometricInterpretation": "MONOCHROME1"}
    return as_pydicom_shows(number, WindowCenter="3000", WindowWidth="9000", VOILUTFunction="LINEAR", **turned)


def as_pydicom_shows(number: int, **attributes: Any) -> Drawn:
    """Rescaled by 2 and -100, windowed by pydicom's own functions."""
    turned = "PhotometricInterpretation" in attributes
    stored = as_stored(1 - scene(number) if turned else scene(number))
    made = header(stored, number=number, RescaleSlope="2", RescaleIntercept="-100", **attributes)
    low, high = -100.0, 2 * 4095 - 100.0
    unit = np.clip((apply_voi_lut(apply_modality_lut(stored, made), made).astype(np.float64) - low) / (high - low), 0, 1)
    return made, 1 - unit if turned else unit


BY_WINDOW: Final[tuple[Callable[[int], Drawn], ...]] = (
    intercept_alone,
    table_below_its_bits,
    table_of_bytes,
    table_of_bytes_in_words,
    several_windows,
    sigmoid,
    exact,
    window_of_monochrome1,
)


def ingested(folder: Path, makers: tuple[Callable[[int], Drawn], ...], *options: str) -> Told:
    """Two of each, cropped where tissue and air meet."""
    archive = Archive(folder / "archive")
    for make in makers:
        for number in (2 * len(archive.rows), 2 * len(archive.rows) + 1):
            made, wanted = make(number)
            box = LESION if make is lead_marker else SKIN
            archive.add(f"{make.__name__} {number % 2}", image=made, wanted=wanted, file=f"{number}.dcm", box=box)
    return archive.ingest(*options)


@pytest.fixture(scope="module")
def by_range(tmp_path_factory: pytest.TempPathFactory) -> Told:
    return ingested(tmp_path_factory.mktemp("range"), (*BY_RANGE, *REFUSED, *DOUBTED))


@pytest.fixture(scope="module")
def by_window(tmp_path_factory: pytest.TempPathFactory) -> Told:
    return ingested(tmp_path_factory.mktemp("window"), BY_WINDOW, *WINDOW)


@pytest.mark.parametrize("make", BY_RANGE, ids=lambda make: make.__name__)
def test_dicom_range_of_tissue_is_shown_as_drawn(by_range: Told, make: Callable[[int], Drawn]) -> None:
    """Each maker above says by which paragraph."""
    assert max(by_range.off(f"{make.__name__} {number}") for number in (0, 1)) < TOLERANCE


@pytest.mark.parametrize("make", REFUSED, ids=lambda make: make.__name__)
def test_dicom_image_that_may_be_a_negative_is_refused(by_range: Told, make: Callable[[int], Drawn]) -> None:
    """Each maker above says by which paragraph."""
    assert {by_range.reason(f"{make.__name__} {number}") for number in (0, 1)} == {REFUSED[make]}


@pytest.mark.parametrize("make", DOUBTED, ids=lambda make: make.__name__)
def test_dicom_image_with_bright_air_is_refused_or_keeps_its_site_out(by_range: Told, make: Callable[[int], Drawn]) -> None:
    """Each maker above says by which paragraph."""
    reasons = {by_range.reason(f"{make.__name__} {number}") for number in (0, 1)}
    assert reasons == {"unclear_polarity"} or by_range.level("doubtful_values") == "error"


@pytest.mark.parametrize("make", BY_WINDOW, ids=lambda make: make.__name__)
def test_dicom_window_or_table_is_shown_as_drawn(by_window: Told, make: Callable[[int], Drawn]) -> None:
    """Each maker above says by which paragraph."""
    assert max(by_window.off(f"{make.__name__} {number}") for number in (0, 1)) < TOLERANCE


def test_dicom_intercept_without_a_slope_is_worth_a_word(by_window: Told) -> None:
    """Readers disagree on it: one drops the intercept, another takes a slope of 1."""
    assert by_window.level("doubtful_values") == "warning"
    assert any("preflight" in line and "slope" in line for line in by_window.said.splitlines())
