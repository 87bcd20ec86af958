"""DICOM segmentations: the box of what was drawn, or the reason that is true."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from pydicom import Dataset
from pydicom.encaps import encapsulate
from pydicom.sr.coding import Code
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, JPEG2000Lossless, JPEGLSLossless, RLELossless

from mammo_fed.data.dicom.annotations.marking import is_annotation
from tests.data.dicom.annotating import (
    DRAWN,
    described,
    drawn_mammogram,
    drawn_mask,
    item,
    marked,
    reference,
    segmentation,
    sloppy_segmentation,
)

OTHER = (5, 6, 15, 20)
IMAGE = drawn_mammogram()
OTHER_VIEW = drawn_mammogram(1)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, JPEG2000Lossless])
def test_dicom_segmentation_of_one_bit_gives_the_box_that_was_drawn(syntax):
    made = segmentation([IMAGE], drawn_mask()[None], [described(1, "mass")], transfer_syntax_uid=syntax)
    assert marked(made, IMAGE) == DRAWN


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, RLELossless, JPEG2000Lossless, JPEGLSLossless])
def test_dicom_segmentation_of_fractions_marks_half_and_more(syntax):
    mask = 0.4 * drawn_mask((20, 10, 70, 50)) + 0.6 * drawn_mask() * (drawn_mask() > 0)
    mask = np.clip(mask, 0, 1)
    made = segmentation(
        [IMAGE],
        mask[None].astype(np.float64),
        [described(1, "mass")],
        "FRACTIONAL",
        max_fractional_value=200,
        transfer_syntax_uid=syntax,
    )
    assert marked(made, IMAGE) == DRAWN


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, RLELossless, JPEG2000Lossless, JPEGLSLossless])
@pytest.mark.parametrize("names", [(1, 2), (1, 300)])
def test_dicom_map_of_labels_gives_the_segment_that_is_asked_for(syntax, names):
    labels = names[0] * drawn_mask(OTHER).astype(np.uint16) + names[1] * drawn_mask().astype(np.uint16)
    segments = [described(number, word) for number, word in zip(names, ("node", "mass"), strict=True)]
    labels = labels.astype(np.uint8) if names[1] < 256 else labels
    made = segmentation([IMAGE], labels[None], segments, "LABELMAP", transfer_syntax_uid=syntax)
    assert marked(made, IMAGE) == "several_regions"
    assert marked(made, IMAGE, "Mass") == marked(made, IMAGE, str(names[1])) == DRAWN
    assert marked(made, IMAGE, "node") == OTHER
    assert marked(made, IMAGE, "cyst") == "no_lesion"


def two_segments(**more):
    pixels = np.stack([drawn_mask(OTHER), drawn_mask()], axis=-1)[None]
    return segmentation(
        [IMAGE],
        pixels,
        [described(1, "node"), described(2, "mass", tracking_id="lesion 7", tracking_uid="1.2.3.7")],
        **more,
    )


def test_dicom_segment_is_chosen_by_number_label_or_tracking_identifier():
    made = two_segments()
    assert marked(made, IMAGE) == "several_regions"
    for region in ("2", "2.0", " MASS ", "lesion 7", "1.2.3.7"):
        assert marked(made, IMAGE, region) == DRAWN, region
    assert marked(made, IMAGE, "node") == OTHER
    assert marked(made, IMAGE, "3") == "no_lesion"


def test_dicom_segmentation_with_one_segment_that_is_not_empty_leaves_no_choice():
    pixels = np.stack([drawn_mask() * 0, drawn_mask()], axis=-1)[None]
    segments = [described(1, "node"), described(2, "mass")]
    for omitted in (True, False):
        made = segmentation([IMAGE], pixels, segments, omit_empty_frames=omitted)
        assert marked(made, IMAGE) == DRAWN
    assert marked(made, IMAGE, "node") == "no_lesion"


def test_dicom_segmentation_of_several_views_gives_the_frame_of_this_one():
    pixels = np.stack([drawn_mask(OTHER), drawn_mask()])
    made = segmentation([OTHER_VIEW, IMAGE], pixels, [described(1, "mass")])
    assert marked(made, IMAGE) == DRAWN
    assert marked(made, OTHER_VIEW) == OTHER
    assert marked(made, drawn_mammogram(2)) == "mask_mismatch"


def test_dicom_segmentation_of_the_source_of_a_mammogram_is_its_own_where_every_pixel_is_in_its_place():
    # PS3.3, C.8.11.7: FOR PRESENTATION images name the FOR PROCESSING image that they were made of.
    made = segmentation([OTHER_VIEW], drawn_mask()[None], [described(1, "mass")])
    for said, expected in (("YES", DRAWN), ("NO", "mask_mismatch"), ("REORIENTED_ONLY", "mask_mismatch")):
        source = reference(OTHER_VIEW)
        source.SpatialLocationsPreserved = said
        assert marked(made, drawn_mammogram(0, SourceImageSequence=[source])) == expected
    assert marked(made, drawn_mammogram(0, SourceImageSequence=[reference(OTHER_VIEW)])) == "mask_mismatch"


def test_dicom_segmentation_of_another_size_does_not_fit():
    made = segmentation([IMAGE], drawn_mask()[None], [described(1, "mass")])
    assert marked(made, IMAGE, shape=(96, 65)) == "mask_mismatch"


def test_dicom_segmentation_that_is_empty_has_no_lesion():
    assert marked(sloppy_segmentation(drawn_mask() * 0), IMAGE) == "no_lesion"
    assert marked(sloppy_segmentation(drawn_mask() * 0 + 1), IMAGE) == "unclear_mask"


@pytest.mark.parametrize("kind", [Code("76752008", "SCT", "Breast"), Code("T-04000", "SRT", "Breast")])
def test_dicom_segmentation_of_the_breast_alone_has_no_lesion(kind):
    assert marked(segmentation([IMAGE], drawn_mask()[None], [described(1, "breast", kind)]), IMAGE) == "no_lesion"


def test_sloppy_dicom_segmentations_are_read():
    assert marked(sloppy_segmentation(drawn_mask()), IMAGE) == DRAWN
    assert marked(sloppy_segmentation(drawn_mask(), NumberOfFrames=None, SegmentationType=None), IMAGE) == DRAWN
    # A class of its own is not known, but its modality is.
    assert marked(sloppy_segmentation(drawn_mask(), SOPClassUID="1.2.3.4"), IMAGE) == DRAWN
    # Excess padding (PS3.5, 8.1.1) is passed over.
    made = sloppy_segmentation(drawn_mask())
    made.PixelData += bytes(512)
    assert marked(made, IMAGE) == DRAWN


def test_dicom_segmentation_of_bytes_is_read_where_it_has_two_values():
    for value in (1, 255):
        made = sloppy_segmentation(drawn_mask(), BitsAllocated=8, BitsStored=8, PixelData=(value * drawn_mask()).tobytes())
        assert marked(made, IMAGE) == DRAWN
    soft = drawn_mask() * 255 + drawn_mask(OTHER)
    made = sloppy_segmentation(drawn_mask(), BitsAllocated=8, BitsStored=8, PixelData=soft.tobytes())
    assert marked(made, IMAGE) == "unclear_mask"


def test_dicom_segmentation_whose_frame_begins_within_a_byte_is_read():
    image = drawn_mammogram(0, Rows=95, Columns=63)
    masks = np.stack([drawn_mask(box)[:95, :63] for box in (OTHER, OTHER, DRAWN)])
    made = sloppy_segmentation(masks.reshape(3 * 95, 63), Rows=95, NumberOfFrames=3)
    assert marked(made, image, shape=(95, 63)) == "several_frames"
    made.PerFrameFunctionalGroupsSequence = [
        item(SegmentIdentificationSequence=[item(ReferencedSegmentNumber=number)]) for number in (1, 2, 3)
    ]
    assert marked(made, image, "3", shape=(95, 63)) == DRAWN


def test_dicom_segmentation_in_big_endian_words_of_one_bit_is_read():
    made = sloppy_segmentation(drawn_mask())
    made.PixelData = np.frombuffer(made.PixelData, "<u2").astype(">u2").tobytes()
    made.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
    made["PixelData"].VR = "OW"
    assert marked(made, IMAGE) == DRAWN


def packed_bits(content: bytes) -> bytes:
    """PackBits: literal runs and repeated bytes (PS3.5, annex G.3)."""
    out, place = b"", 0
    while place < len(content):
        same = 1
        while same < 128 and content[place : place + 1] * (same + 1) == content[place : place + same + 1]:
            same += 1
        out += struct.pack("B", 257 - same) + content[place : place + 1] if same > 1 else b"\x00" + content[place : place + 1]
        place += same
    return out


@pytest.mark.parametrize("whole_bytes", [False, True])
def test_dicom_segmentation_of_one_bit_in_run_lengths_is_read(whole_bytes):
    made = sloppy_segmentation(drawn_mask())
    content = packed_bits(drawn_mask().tobytes() if whole_bytes else made.PixelData)
    made.PixelData = encapsulate([struct.pack("<16I", 1, 64, *[0] * 14) + content])
    made.file_meta.TransferSyntaxUID = RLELossless
    assert marked(made, IMAGE) == DRAWN


@pytest.mark.parametrize(
    ("lie", "reason"),
    [
        ({"NumberOfFrames": 10**8}, "too_large"),
        ({"NumberOfFrames": 2}, "size_mismatch"),
        ({"BitsAllocated": 32, "BitsStored": 32}, "unsupported_encoding"),
        ({"SamplesPerPixel": 3}, "unsupported_encoding"),
        ({"PhotometricInterpretation": "MONOCHROME1"}, "unclear_mask"),
        ({"PixelData": None}, "no_pixels"),
        ({"Rows": 97}, "mask_mismatch"),
        ({"PixelData": b"\0\1"}, "size_mismatch"),
    ],
)
def test_dicom_segmentation_that_lies_is_refused_with_the_reason_that_is_true(lie, reason):
    groups = [item(SegmentIdentificationSequence=[item(ReferencedSegmentNumber=number)]) for number in (1, 2)]
    made = sloppy_segmentation(drawn_mask(), PerFrameFunctionalGroupsSequence=groups, **lie)
    assert marked(made, IMAGE) == reason


def test_dicom_segmentation_of_several_images_that_does_not_say_which_frame_is_of_which_is_refused():
    series = [item(ReferencedInstanceSequence=[reference(IMAGE), reference(OTHER_VIEW)])]
    assert marked(sloppy_segmentation(drawn_mask(), ReferencedSeriesSequence=series), IMAGE) == "unreadable_annotation"
    series = [item(ReferencedInstanceSequence=[reference(OTHER_VIEW)])]
    assert marked(sloppy_segmentation(drawn_mask(), ReferencedSeriesSequence=series), IMAGE) == "mask_mismatch"
    series = [item(ReferencedInstanceSequence=[reference(IMAGE)])]
    assert marked(sloppy_segmentation(drawn_mask(), ReferencedSeriesSequence=series), IMAGE) == DRAWN


def test_dicom_mammograms_are_no_annotations():
    assert not is_annotation(IMAGE)
    assert not is_annotation(Dataset())
    assert not is_annotation(drawn_mammogram(0, Modality="SEG"))
