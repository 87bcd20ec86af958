"""RT structure sets on mammograms: the box of the contour, or the reason that is true."""

from __future__ import annotations

from typing import Any

import pytest
from pydicom import Dataset
from pydicom.uid import RTStructureSetStorage

from tests.data.dicom.annotating import DRAWN, annotation, drawn_mammogram, item, marked, reference

IMAGE = drawn_mammogram()
OTHER_VIEW = drawn_mammogram(1)
OTHER = (5, 6, 15, 20)


def corners(box: tuple[int, int, int, int]) -> list[tuple[float, float]]:
    """(column, row), in pixels of which the first covers [0, 1)."""
    top, left, bottom, right = box
    return [(left, top), (right, top), (right, bottom), (left, bottom)]


def flat(column: float, row: float) -> tuple[float, float, float]:
    """As programs write it that know of no place in space: from the middle of the first pixel."""
    return (column - 0.5) * 0.2, (row - 0.5) * 0.1, 0.0


def contour(box: tuple[int, int, int, int], image: Dataset | None = IMAGE, *, place: Any = flat, **more: Any) -> Dataset:
    data = [number for column, row in corners(box) for number in place(column, row)]
    made = item(ContourGeometricType="CLOSED_PLANAR", NumberOfContourPoints=4, ContourData=[f"{one:.9g}" for one in data])
    if image is not None:
        made.ContourImageSequence = [reference(image)]
    made.update(item(**more))
    return made


def structures(*rois: tuple[int, str, list[Dataset]], **more: Any) -> Dataset:
    return annotation(
        RTStructureSetStorage,
        "RTSTRUCT",
        StructureSetROISequence=[item(ROINumber=number, ROIName=name) for number, name, _ in rois],
        ROIContourSequence=[item(ReferencedROINumber=number, ContourSequence=contours) for number, _, contours in rois],
        **more,
    )


def test_dicom_structure_on_a_projection_image_gives_the_box_that_was_drawn():
    assert marked(structures((1, "mass", [contour(DRAWN)])), IMAGE) == DRAWN
    # What the detector's spacing does not say, the patient's may.
    image = drawn_mammogram(0, ImagerPixelSpacing=None, PixelSpacing=[0.1, 0.2])
    assert marked(structures((1, "mass", [contour(DRAWN)])), image) == DRAWN


def test_dicom_structure_on_an_image_with_a_place_in_space_gives_the_box_that_was_drawn():
    # Rows run along -y, columns along z: a sagittal image.
    image = drawn_mammogram(
        0, PixelSpacing=[0.1, 0.2], ImageOrientationPatient=[0, -1, 0, 0, 0, 1], ImagePositionPatient=[11, 22, 33]
    )

    def place(column: float, row: float) -> tuple[float, float, float]:
        return 11.0, 22 - (column - 0.5) * 0.2, 33 + (row - 0.5) * 0.1

    assert marked(structures((1, "mass", [contour(DRAWN, place=place)])), image) == DRAWN
    assert marked(structures((1, "mass", [contour(DRAWN)])), image) == "unreadable_annotation"


def test_dicom_structure_is_chosen_by_number_or_name():
    made = structures((0, "node", [contour(OTHER)]), (4, "mass", [contour(DRAWN)]))
    assert marked(made, IMAGE) == "several_regions"
    assert marked(made, IMAGE, "4") == marked(made, IMAGE, "Mass") == DRAWN
    assert marked(made, IMAGE, "0") == OTHER
    assert marked(made, IMAGE, "1") == "no_lesion"
    made.RTROIObservationsSequence = [
        item(ReferencedROINumber=4, ROIObservationLabel="upper quadrant", RTROIInterpretedType="GTV")
    ]
    assert marked(made, IMAGE, "upper quadrant") == DRAWN


def test_dicom_structures_of_other_images_are_passed_over():
    made = structures((1, "node", [contour(OTHER, OTHER_VIEW)]), (2, "mass", [contour(DRAWN)]))
    assert marked(made, IMAGE) == DRAWN
    assert marked(made, OTHER_VIEW) == OTHER
    assert marked(made, drawn_mammogram(2)) == "mask_mismatch"
    # One structure with a contour on each view.
    made = structures((1, "mass", [contour(OTHER, OTHER_VIEW), contour(DRAWN)]))
    assert (marked(made, IMAGE), marked(made, OTHER_VIEW)) == (DRAWN, OTHER)


def test_dicom_structure_set_may_name_its_images_once_for_all():
    series = item(SeriesInstanceUID="1.2.3", ContourImageSequence=[reference(OTHER_VIEW)])
    study = item(ReferencedSOPClassUID="1.2.3", ReferencedSOPInstanceUID="1.2.4", RTReferencedSeriesSequence=[series])
    frame = item(FrameOfReferenceUID="1.2.3", RTReferencedStudySequence=[study])
    made = structures((1, "mass", [contour(DRAWN, None)]), ReferencedFrameOfReferenceSequence=[frame])
    assert marked(made, IMAGE) == "mask_mismatch"
    assert marked(made, OTHER_VIEW) == DRAWN
    assert marked(structures((1, "mass", [contour(DRAWN, None)])), IMAGE) == DRAWN


def test_dicom_structure_of_two_contours_is_one_lesion_unless_they_are_apart():
    near = (60, 12, 70, 44)
    assert marked(structures((1, "mass", [contour(DRAWN), contour(near)])), IMAGE) == (30, 12, 70, 44)
    assert marked(structures((1, "mass", [contour((2, 2, 8, 8)), contour((80, 50, 90, 60))])), IMAGE) == "lesions_apart"


def test_dicom_structure_around_the_patient_is_no_lesion():
    made = structures((1, "body", [contour((0, 0, 96, 64))]), (2, "mass", [contour(DRAWN)]))
    made.RTROIObservationsSequence = [item(ReferencedROINumber=1, RTROIInterpretedType="EXTERNAL")]
    assert marked(made, IMAGE) == DRAWN


@pytest.mark.parametrize("kind", ["POINT", "OPEN_PLANAR", "OPEN_NONPLANAR"])
def test_dicom_structure_without_extent_is_unreadable(kind):
    assert marked(structures((1, "mass", [contour(DRAWN, ContourGeometricType=kind)])), IMAGE) == "unreadable_annotation"


def test_dicom_structure_whose_millimetres_cannot_become_pixels_is_unreadable():
    made = structures((1, "mass", [contour(DRAWN)]))
    assert marked(made, drawn_mammogram(0, ImagerPixelSpacing=None)) == "unreadable_annotation"
    assert marked(made, drawn_mammogram(0, PixelSpacing=[0.05, 0.1])) == "unreadable_annotation"
    assert marked(made, drawn_mammogram(0, PixelSpacing=[0.1, 0.2])) == DRAWN
    lifted = structures((1, "mass", [contour(DRAWN, place=lambda column, row: (column, row, 40.0))]))
    assert marked(lifted, IMAGE) == "unreadable_annotation"
    skew = drawn_mammogram(0, ImageOrientationPatient=[1, 0, 0, 1, 0, 0], ImagePositionPatient=[0, 0, 0])
    assert marked(made, skew) == "unreadable_annotation"


@pytest.mark.parametrize("data", [["1", "2"], ["nan", "0", "0"], [], ["1", "1", "0"] * 5])
def test_dicom_structure_with_coordinates_that_make_no_region_is_unreadable(data):
    assert marked(structures((1, "mass", [contour(DRAWN, ContourData=data)])), IMAGE) == "unreadable_annotation"


def test_dicom_structure_set_without_structures_has_no_lesion():
    assert marked(structures(), IMAGE) == "no_lesion"
    assert marked(structures((1, "mass", [])), IMAGE) == "no_lesion"
