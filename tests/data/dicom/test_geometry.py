"""Where a lesion is, and the square around it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mammo_fed.data.dicom.findings import Box, Outline, Skipped
from mammo_fed.data.dicom.geometry import Crop, CropRule, area_resize, breast_box, mask_box, outline_box, square_crop
from mammo_fed.data.dicom.image.breast import COARSE, breast_region
from mammo_fed.errors import InvalidSetting


def box(top: float, left: float, bottom: float, right: float) -> Box:
    return Box(top=top, left=left, bottom=bottom, right=right)


def test_crop_is_the_lesions_longer_side_with_a_margin_in_the_middle():
    rule = CropRule(margin=0.25, smallest=1)
    assert square_crop(box(100, 200, 180, 300), shape=(1000, 1000), rule=rule) == Crop(top=65, left=175, side=150)


def test_crop_of_a_small_lesion_has_the_smallest_side():
    assert square_crop(box(100, 100, 110, 110), shape=(1000, 1000), rule=CropRule(smallest=128)).side == 128


def test_crop_moves_inwards_at_a_border_and_is_never_larger_than_the_image():
    rule = CropRule(margin=0.5, smallest=1)
    assert square_crop(box(0, 0, 40, 40), shape=(500, 400), rule=rule) == Crop(top=0, left=0, side=80)
    assert square_crop(box(460, 360, 500, 400), shape=(500, 400), rule=rule) == Crop(top=420, left=320, side=80)
    assert square_crop(box(0, 0, 400, 100), shape=(500, 120), rule=rule).side == 120


def test_crop_of_the_paper_lies_one_margin_higher_so_that_the_lesion_sits_low():
    centred = square_crop(box(400, 400, 500, 500), shape=(1000, 1000), rule=CropRule(margin=0.6, smallest=1))
    paper = square_crop(box(400, 400, 500, 500), shape=(1000, 1000), rule=CropRule(kind="paper", margin=0.6, smallest=1))
    assert (centred.top - paper.top, paper.left, paper.side) == (60, centred.left, centred.side)


def test_crop_in_millimetres_follows_the_pixel_spacing_and_needs_one():
    rule = CropRule(side_mm=20.0)
    assert square_crop(box(400, 400, 420, 420), shape=(1000, 1000), rule=rule, spacing=(0.05, 0.05)).side == 400
    with pytest.raises(Skipped, match="unknown_spacing"):
        square_crop(box(400, 400, 420, 420), shape=(1000, 1000), rule=rule)
    with pytest.raises(Skipped, match="unknown_spacing"):
        square_crop(box(40, 40, 60, 60), shape=(100, 100), rule=rule, spacing=(0.05, 0.05))


@given(
    st.integers(0, 80),
    st.integers(0, 80),
    st.integers(3, 60),
    st.integers(3, 60),
    st.floats(0, 3),
    st.integers(1, 300),
    st.booleans(),
)
def test_crop_lies_in_the_image_and_holds_the_lesion_if_it_can(top, left, height, width, margin, smallest, paper):
    shape = (150, 141)
    rule = CropRule(kind="paper" if paper else "centred", margin=margin, smallest=smallest)
    crop = square_crop(box(top, left, top + height, left + width), shape=shape, rule=rule)
    assert 0 <= crop.top <= shape[0] - crop.side
    assert 0 <= crop.left <= shape[1] - crop.side
    if crop.side >= max(height, width) and not paper:
        assert crop.top <= top
        assert crop.left <= left
        assert crop.top + crop.side >= top + height
        assert crop.left + crop.side >= left + width


@pytest.mark.parametrize(
    ("lesion", "word"),
    [
        (box(-5, 0, 10, 10), "lesion_outside"),
        (box(0, 0, 10, 900), "lesion_outside"),
        (box(5, 5, 6, 6), "lesion_too_small"),
        (box(9, 9, 4, 4), "lesion_too_small"),
        (box(float("nan"), 0, 4, 4), "unreadable_annotation"),
        (box(0, 0, 1e300, 4), "unreadable_annotation"),
    ],
)
def test_crop_refuses_a_lesion_that_cannot_be(lesion, word):
    with pytest.raises(Skipped, match=word):
        square_crop(lesion, shape=(100, 100), rule=CropRule())


def test_mask_of_several_contours_is_one_lesion_unless_they_are_apart():
    mask = np.zeros((200, 300), np.uint8)
    mask[50:90, 60:120] = 255
    mask[95:110, 100:110] = 255
    mask[5, 5] = 255
    assert mask_box(mask) == box(50, 60, 110, 120)
    mask[150:190, 250:290] = 255
    with pytest.raises(Skipped, match="lesions_apart"):
        mask_box(mask)
    with pytest.raises(Skipped, match="no_lesion"):
        mask_box(np.zeros((9, 9)))


def test_outline_gives_the_box_around_it_and_needs_three_points():
    assert outline_box(Outline(points=np.array([[1.5, 2.0], [9.0, 4.0], [3.0, 8.5]]))) == box(1.5, 2.0, 9.0, 8.5)
    with pytest.raises(Skipped, match="unreadable_annotation"):
        outline_box(Outline(points=np.array([[1.0, 2.0], [np.nan, 4.0], [3.0, 8.0]])))


def test_breast_is_the_largest_bright_area():
    image = np.full((800, 640), 0.02, np.float32)
    image[80:720, 0:400] = 0.5
    image[16:40, 560:620] = 1.0
    found = breast_box(breast_region(image[::COARSE, ::COARSE]), shape=image.shape)
    assert (found.top, found.left) == (80, 0)
    assert abs(found.bottom - 720) <= COARSE
    assert abs(found.right - 400) <= COARSE


def test_resize_averages_areas_exactly_and_leaves_the_same_size_alone():
    rng = np.random.default_rng(0)
    patch = rng.random((12, 12), dtype=np.float32)
    assert np.allclose(area_resize(patch, 4), patch.reshape(4, 3, 4, 3).mean(axis=(1, 3)), atol=1e-6)
    assert area_resize(patch, 12) is patch
    uneven = area_resize(rng.random((50, 50), dtype=np.float32), 16)
    assert uneven.shape == (16, 16)
    assert abs(area_resize(np.full((50, 50), 0.3, np.float32), 16) - 0.3).max() < 1e-6
    grown = area_resize(patch, 30)
    assert (grown.shape, grown.min() >= 0, grown.max() <= 1) == ((30, 30), True, True)


@pytest.mark.parametrize(
    "change", [{"kind": "mine"}, {"margin": -1.0}, {"margin": float("nan")}, {"smallest": 0}, {"size": 8}, {"side_mm": 0.0}]
)
def test_crop_rule_refuses_what_is_out_of_range(change):
    with pytest.raises(InvalidSetting):
        CropRule(**change)
