"""Rare but sound mammograms, masks and folders are taken as they are; what was computed of two exposures is not."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image, ImageDraw
from scipy import ndimage

from mammo_fed.data.dicom.annotations.masks import lesion_in_mask
from mammo_fed.data.dicom.findings import Skipped
from mammo_fed.data.dicom.geometry import mask_box
from mammo_fed.data.dicom.image.reading import read_mammogram
from mammo_fed.errors import InvalidSetting
from tests.data.dicom.making import mammogram, write
from tests.data.dicom.test_ingest import finding, run


def outline(points: list[tuple[int, int]]) -> np.ndarray:
    drawn = Image.new("L", (320, 400))
    ImageDraw.Draw(drawn).line([*points, points[0]], fill=255, width=1)
    return np.asarray(drawn).copy()


@pytest.mark.parametrize(
    "points",
    [
        [(100, 60), (160, 130), (110, 190), (40, 120)],
        [(100, 60), (180, 90), (190, 200), (120, 230), (60, 150)],
    ],
)
def test_a_dicom_mask_that_is_an_outline_of_one_pixel_is_one_lesion(points):
    mask = outline(points)
    box = mask_box(lesion_in_mask(mask, inverted=False, breast=None))
    columns, rows = zip(*points, strict=True)
    assert (box.top, box.left, box.bottom, box.right) == (min(rows), min(columns), max(rows) + 1, max(columns) + 1)


@pytest.mark.parametrize("edge", [161, 17, 401])
def test_a_dicom_image_that_is_black_above_an_edge_is_read(tmp_path, edge):
    stored = np.zeros((558, 346), np.uint16)
    stored[edge:] = 4000
    read = read_mammogram(write(mammogram(stored, bits=12), tmp_path / "a.dcm"))
    assert np.array_equal(read.stored, stored)


def test_a_dicom_crop_in_which_little_but_a_scratch_is_to_be_seen_is_read(tmp_path):
    stored = np.full((558, 346), 4095, np.uint16)
    stored[200:401, 60:140] = 300
    read = read_mammogram(write(mammogram(stored, bits=12), tmp_path / "a.dcm"))
    assert np.array_equal(read.stored, stored)


def test_dicom_rows_and_columns_that_changed_places_are_still_refused(tmp_path):
    rng = np.random.default_rng(0)
    smooth = ndimage.gaussian_filter(rng.normal(size=(512, 384)), 8)
    stored = ((smooth - smooth.min()) / np.ptp(smooth) * 4000).astype(np.uint16)
    path = write(mammogram(stored, bits=12, Rows=384, Columns=512), tmp_path / "a.dcm")
    with pytest.raises(Skipped) as refused:
        read_mammogram(path)
    assert refused.value.reason == "size_mismatch"


@pytest.mark.parametrize(
    ("types", "taken"),
    [
        (["DERIVED", "PRIMARY", "POST_CONTRAST", "SUBTRACTION"], False),
        (["DERIVED", "PRIMARY", "POST_CONTRAST", "ADDITION"], False),
        (["DERIVED", "PRIMARY", "POST_CONTRAST", "", "LOW_ENERGY"], True),
    ],
)
def test_a_dicom_view_of_two_exposures_with_contrast_agent_is_taken_only_if_asked_for(tmp_path, types, taken):
    stored = np.arange(96 * 64, dtype=np.uint16).reshape(96, 64)
    path = write(mammogram(stored, ImageType=types), tmp_path / "a.dcm")
    assert np.array_equal(read_mammogram(path, synthetic_views=True).stored, stored)
    if taken:
        assert np.array_equal(read_mammogram(path).stored, stored)
        return
    with pytest.raises(Skipped) as refused:
        read_mammogram(path)
    assert refused.value.reason == "synthetic_view"


def test_a_dicom_journal_with_lines_that_are_none_is_passed_over(tmp_path):
    findings, cohort = [finding(tmp_path, "aa"), finding(tmp_path, "bb")], tmp_path / "cohort"
    run(findings, cohort)
    path = cohort / "journal.jsonl"
    first = path.read_bytes().splitlines()[0]
    values = json.loads(first)
    values["patch"]["provenance"] = 5
    second = path.read_bytes().splitlines()[1]
    path.write_bytes(b"\n".join([b"\xff\xfe\x00", b"[" * 100_000, json.dumps(values).encode(), second, b""]))
    made = run(findings, cohort)
    assert (made.images, made.reused) == (2, 1)


def test_a_dicom_ingestion_leaves_folders_beside_patches_alone(tmp_path):
    cohort = tmp_path / "cohort"
    run([finding(tmp_path, "aa")], cohort)
    (cohort / "patches" / "@eaDir").mkdir()
    assert run([finding(tmp_path, "aa")], cohort).images == 1
    assert (cohort / "patches" / "@eaDir").is_dir()


def test_a_dicom_ingestion_does_not_write_through_a_link_out_of_the_cohort(tmp_path):
    cohort, elsewhere = tmp_path / "cohort", tmp_path / "elsewhere"
    run([finding(tmp_path, "aa")], cohort)
    elsewhere.mkdir()
    (elsewhere / "letter.txt").write_text("kept")
    (cohort / "patches").rename(tmp_path / "before")
    (cohort / "patches").symlink_to(elsewhere)
    with pytest.raises(InvalidSetting, match="link"):
        run([finding(tmp_path, "aa")], cohort)
    assert [path.name for path in elsewhere.iterdir()] == ["letter.txt"]
