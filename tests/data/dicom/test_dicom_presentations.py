"""Graphics of presentation states: the box of what was drawn, or the reason that is true."""

from __future__ import annotations

from typing import Any

import highdicom as hd
import numpy as np
import pytest
from pydicom import Dataset
from pydicom.uid import GrayscaleSoftcopyPresentationStateStorage, generate_uid

from tests.data.dicom.annotating import DRAWN, MADE, annotation, drawn_mammogram, item, marked, reference

IMAGE = drawn_mammogram()
OTHER_VIEW = drawn_mammogram(1)
TOP, LEFT, BOTTOM, RIGHT = DRAWN
SQUARE = [LEFT, TOP, RIGHT, TOP, RIGHT, BOTTOM, LEFT, BOTTOM, LEFT, TOP]
# Middle, and the ends of the axes.
CIRCLE = [28.0, 44.0, 28.0, 58.0]
ELLIPSE = [28.0, 30.0, 28.0, 58.0, 12.0, 44.0, 44.0, 44.0]


def graphic(kind: str = "POLYLINE", data: Any = SQUARE, units: str = "PIXEL", filled: str = "N", **more: Any) -> Dataset:
    return item(
        GraphicAnnotationUnits=units,
        GraphicDimensions=2,
        NumberOfGraphicPoints=len(data) // 2,
        GraphicData=list(data),
        GraphicType=kind,
        GraphicFilled=filled,
        **more,
    )


def group(*graphics: Dataset, image: Dataset | None = IMAGE, layer: str = "LESIONS", **more: Any) -> Dataset:
    made = item(GraphicLayer=layer, GraphicObjectSequence=list(graphics), **more)
    if image is not None:
        made.ReferencedImageSequence = [reference(image)]
    return made


def presentation(*groups: Dataset, images: tuple[Dataset, ...] = (IMAGE,), **more: Any) -> Dataset:
    series = item(SeriesInstanceUID="1.2.3", ReferencedImageSequence=[reference(image) for image in images])
    made = annotation(GrayscaleSoftcopyPresentationStateStorage, "PR", GraphicAnnotationSequence=list(groups), **more)
    made.ReferencedSeriesSequence = [series]
    return made


def area(first: tuple[int, int] = (1, 1), last: tuple[int, int] = (64, 96)) -> list[Dataset]:
    """Corners as (column, row), counted from 1."""
    return [item(DisplayedAreaTopLeftHandCorner=list(first), DisplayedAreaBottomRightHandCorner=list(last))]


@pytest.mark.parametrize(
    ("kind", "data", "box"),
    [
        ("POLYLINE", SQUARE, DRAWN),
        ("CIRCLE", CIRCLE, (30, 14, 58, 42)),
        ("ELLIPSE", ELLIPSE, DRAWN),
        ("ELLIPSE", [18, 34, 38, 54, 23, 49, 33, 39], (44 - 125**0.5, 28 - 125**0.5, 44 + 125**0.5, 28 + 125**0.5)),
    ],
)
def test_dicom_graphic_gives_the_box_that_was_drawn(kind, data, box):
    found = marked(presentation(group(graphic(kind, data))), IMAGE)
    assert found == pytest.approx(box, abs=1e-3)


def test_dicom_graphic_that_highdicom_drew_gives_the_box():
    points = np.array(SQUARE, dtype=np.float32).reshape(-1, 2)
    layer = hd.pr.GraphicLayer(layer_name="LESIONS", order=1)
    drawn = hd.pr.GraphicObject(
        graphic_type="POLYLINE", graphic_data=points, units="PIXEL", is_filled=True, tracking_id="seven", tracking_uid="1.2.7"
    )
    made = hd.pr.GrayscaleSoftcopyPresentationState(
        referenced_images=[IMAGE],
        sop_instance_uid=generate_uid(entropy_srcs=["state"]),
        concept_name=None,
        content_label="LESIONS",
        content_description="",
        graphic_annotations=[hd.pr.GraphicAnnotation(referenced_images=[IMAGE], graphic_layer=layer, graphic_objects=[drawn])],
        graphic_layers=[layer],
        **MADE,
    )
    assert marked(made, IMAGE) == marked(made, IMAGE, "seven") == marked(made, IMAGE, "lesions") == DRAWN
    assert marked(made, OTHER_VIEW) == "mask_mismatch"


def test_dicom_interpolated_graphic_reaches_as_far_as_its_curve():
    turn = np.linspace(0, 2 * np.pi, 7)[:-1] + 0.3
    data = np.column_stack([28 + 14 * np.cos(turn), 44 + 14 * np.sin(turn)]).ravel()
    closed = [*data, *data[:2]]
    assert marked(presentation(group(graphic("INTERPOLATED", closed))), IMAGE) == pytest.approx((30, 14, 58, 42), abs=0.3)


def test_dicom_graphic_that_is_filled_is_closed_and_a_line_is_not():
    assert marked(presentation(group(graphic("POLYLINE", SQUARE[:-2], filled="Y"))), IMAGE) == DRAWN
    for kind, data in (("POLYLINE", SQUARE[:-2]), ("POLYLINE", SQUARE[:4]), ("POINT", SQUARE[:2]), ("CIRCLE", [5, 5, 5, 5])):
        assert marked(presentation(group(graphic(kind, data))), IMAGE) == "unreadable_annotation", (kind, data)
    # An arrow beside the region is none itself.
    assert marked(presentation(group(graphic("POLYLINE", SQUARE[:4]), graphic())), IMAGE, "1") == DRAWN


def test_dicom_graphics_on_other_images_are_passed_over():
    other = graphic("CIRCLE", [10, 10, 10, 14])
    made = presentation(group(other, image=OTHER_VIEW), group(graphic()), images=(IMAGE, OTHER_VIEW))
    assert marked(made, IMAGE) == DRAWN
    assert marked(made, OTHER_VIEW) == (6, 6, 14, 14)
    assert marked(made, drawn_mammogram(2)) == "mask_mismatch"
    assert marked(presentation(group(graphic(), image=None)), IMAGE) == DRAWN
    assert marked(presentation(group(graphic(), image=None)), OTHER_VIEW) == "mask_mismatch"


def test_dicom_graphic_is_chosen_by_number_layer_or_text():
    text = [item(UnformattedTextValue="mass 2")]
    made = presentation(group(graphic("CIRCLE", [10, 10, 10, 14]), layer="FIRST"), group(graphic(), TextObjectSequence=text))
    assert marked(made, IMAGE) == "several_regions"
    assert marked(made, IMAGE, "2") == marked(made, IMAGE, "lesions") == marked(made, IMAGE, "mass 2") == DRAWN
    assert marked(made, IMAGE, "first") == (6, 6, 14, 14)
    assert marked(made, IMAGE, "third") == "no_lesion"


def displayed(points: list[float], rotation: int, flip: str) -> list[float]:
    """Parts of the display at which pixels of the whole image, turned and then flipped, appear."""
    image = np.zeros((96, 64, 2))
    image[..., 1], image[..., 0] = np.mgrid[0:96, 0:64]
    shown = np.rot90(image, -rotation // 90)
    shown = shown[:, ::-1] if flip == "Y" else shown
    found = []
    for column, row in np.reshape(points, (-1, 2)):
        # Where the pixels with this corner in common meet.
        meet = np.argwhere((np.abs(shown - [column - 0.5, row - 0.5]) < 0.6).all(axis=-1)).mean(axis=0) + 0.5
        found += [meet[1] / shown.shape[1], meet[0] / shown.shape[0]]
    return found


@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
@pytest.mark.parametrize("flip", ["Y", "N"])
def test_dicom_graphic_in_parts_of_the_display_is_turned_back_with_the_image(rotation, flip):
    made = presentation(
        group(graphic(data=displayed(SQUARE, rotation, flip), units="DISPLAY")),
        DisplayedAreaSelectionSequence=area(),
        ImageRotation=rotation,
        ImageHorizontalFlip=flip,
    )
    assert marked(made, IMAGE) == pytest.approx(DRAWN, abs=1e-3)
    # What is in pixels is of the image itself, however it is shown.
    made.GraphicAnnotationSequence = [group(graphic())]
    assert marked(made, IMAGE) == DRAWN


def test_dicom_graphic_in_parts_of_a_displayed_area_gives_the_box():
    # PS3.3, C.10.4: the area is of the columns 11 to 50 and the rows 21 to 60, counted from 1.
    parts = [(value - (10, 20)[place % 2]) / 40 for place, value in enumerate(SQUARE)]
    made = presentation(group(graphic(data=parts, units="DISPLAY")), DisplayedAreaSelectionSequence=area((11, 21), (50, 60)))
    assert marked(made, IMAGE) == pytest.approx(DRAWN, abs=1e-3)


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"DisplayedAreaSelectionSequence": area() + area()},
        {"DisplayedAreaSelectionSequence": area((1, 1), (64, 100000))},
        {"DisplayedAreaSelectionSequence": area(), "ImageRotation": 45},
    ],
)
def test_dicom_graphic_in_parts_of_an_unknown_display_is_unreadable(more):
    parts = [value / 100 for value in SQUARE]
    assert marked(presentation(group(graphic(data=parts, units="DISPLAY")), **more), IMAGE) == "unreadable_annotation"
    assert marked(presentation(group(graphic(units="MATRIX")), **more), IMAGE) == "unreadable_annotation"


def compound(kind: str, data: list[float], **more: Any) -> Dataset:
    about = {"CompoundGraphicType": kind, "CompoundGraphicUnits": "PIXEL", "GraphicDimensions": 2, "GraphicData": data}
    made = item(GraphicLayer="LESIONS", CompoundGraphicSequence=[item(**about, **more)])
    made.ReferencedImageSequence = [reference(IMAGE)]
    return made


def test_dicom_compound_graphics_that_are_regions_give_the_box():
    assert marked(presentation(compound("RECTANGLE", [LEFT, TOP, RIGHT, BOTTOM])), IMAGE) == DRAWN
    assert marked(presentation(compound("ELLIPSE", ELLIPSE)), IMAGE) == DRAWN
    assert (
        marked(presentation(compound("RECTANGLE", [LEFT, TOP, RIGHT, BOTTOM], RotationAngle=30.0)), IMAGE)
        == "unreadable_annotation"
    )
    assert marked(presentation(compound("RULER", [1, 1, 9, 9])), IMAGE) == "no_lesion"
    # The same rectangle, drawn again by plain lines.
    both = compound("RECTANGLE", [LEFT, TOP, RIGHT, BOTTOM], GraphicGroupID=3)
    both.GraphicObjectSequence = [graphic(GraphicGroupID=3)]
    assert marked(presentation(both), IMAGE) == DRAWN


def test_dicom_presentation_state_without_graphics_has_no_lesion():
    assert marked(presentation(), IMAGE) == "no_lesion"
    assert marked(presentation(), OTHER_VIEW) == "mask_mismatch"


def test_dicom_graphic_around_most_of_the_image_is_no_lesion():
    around = [1, 1, 63, 1, 63, 95, 1, 95, 1, 1]
    assert marked(presentation(group(graphic(data=around))), IMAGE) == "unclear_mask"
