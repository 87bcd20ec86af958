"""Text burned into pixels: labels of every direction, size and brightness, and all that looks a little like them."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from mammo_fed.data.dicom.identifiers.text_in_pixels import shows_text
from mammo_fed.data.phantom.hospitals import phantom_cohort
from mammo_fed.data.phantom.masses import EXTERNAL_STYLE

REAL = os.environ.get("MAMMO_DP_ROOT", "")


def label(
    text: str, *, angle: float = 0.0, size: int = 14, bright: float = 1.0, side: int = 320, blur: float = 0.0
) -> np.ndarray:
    image = Image.new("L", (side, side), 0)
    middle = (side // 2, side // 2)
    ImageDraw.Draw(image).text(middle, text, fill=255, font=ImageFont.load_default(size), anchor="mm")
    turned = image.filter(ImageFilter.GaussianBlur(blur)).rotate(angle, resample=Image.Resampling.BICUBIC)
    return np.asarray(turned, dtype=np.float32) / 255 * bright


@pytest.mark.parametrize("text", ["DOE JANE 1961", "L MLO", "MRN 99887766", "Smith, Ann 12.03.2001"])
@pytest.mark.parametrize("mirrored", [False, True])
def test_dicom_text_over_black_is_seen_at_any_angle_also_mirrored(text, mirrored):
    for angle in range(0, 360, 15):
        drawn = label(text, angle=angle)
        assert shows_text(drawn[:, ::-1] if mirrored else drawn), angle


@pytest.mark.parametrize(
    ("size", "bright", "blur"),
    [(11, 1.0, 0.0), (14, 0.3, 0.0), (24, 0.25, 0.0), (60, 1.0, 0.0), (60, 0.5, 2.0), (24, 0.8, 0.7)],
)
def test_dicom_text_that_is_small_large_faint_or_blurred_is_seen(size, bright, blur):
    for angle in (0, 20, 45, 90, 135, 180, 270, 310):
        assert shows_text(label("DOE JANE", angle=angle, size=size, bright=bright, blur=blur, side=480)), angle


def test_dicom_text_written_downwards_letter_by_letter_is_seen():
    image = Image.new("L", (200, 200), 0)
    for place, letter in enumerate("JANE"):
        ImageDraw.Draw(image).text((100, 40 + 24 * place), letter, fill=255, font=ImageFont.load_default(18), anchor="mm")
    assert shows_text(np.asarray(image, dtype=np.float32) / 255)


def test_dicom_text_beside_a_breast_and_in_noise_is_seen_in_a_crop_of_any_size():
    rng = np.random.default_rng(3)
    for side in (320, 1500):
        drawn = label("DOE JANE", side=side, size=14)
        drawn[:, : side // 3] = np.clip(0.5 + 0.1 * rng.standard_normal((side, side // 3)), 0, 1)
        assert shows_text(np.clip(drawn + np.abs(0.02 * rng.standard_normal(drawn.shape)), 0, 1).astype(np.float32)), side


def breast(side: int, rng: np.random.Generator) -> np.ndarray:
    """Tissue to the left of a curved skin line, black to its right."""
    rows, columns = np.mgrid[0:side, 0:side] / side
    edge = 0.7 - 0.5 * (rows - 0.5) ** 2
    tissue = np.clip((edge - columns) * 4, 0, 1) * 0.5 + 0.05 * rng.standard_normal((side, side))
    return np.where(columns < edge, np.clip(tissue, 0, 1), 0.0).astype(np.float32)


def test_dicom_tissue_calcifications_and_skin_markers_are_not_taken_for_text():
    rows, columns = np.mgrid[0:400, 0:400]
    for seed in range(20):
        rng = np.random.default_rng(seed)
        image = breast(400, rng)
        # Specks in the tissue, and rods of a vessel's wall in a line.
        for _ in range(30):
            row, column, radius = rng.integers(20, 380), rng.integers(20, 200), rng.uniform(1, 5)
            image[np.hypot(rows - row, columns - column) < radius] = 1.0
        for place in range(8):
            image[100 + 6 * place : 104 + 6 * place, 60 + 3 * place : 64 + 3 * place] = 0.95
        # Metal beads on the skin, in a line over the air; and a scratch of the film that broke up into dashes.
        for place in range(4):
            image[np.hypot(rows - 60 - 25 * place, columns - 330) < 6] = 1.0
            image[300 + 20 * place : 312 + 20 * place, 350:353] = 0.9
        assert not shows_text(image), seed


def test_dicom_noise_of_any_brightness_is_not_taken_for_text():
    rng = np.random.default_rng(0)
    for most in (1.0, 0.5, 0.25, 0.1):
        assert not shows_text(rng.random((300, 300), dtype=np.float32) * np.float32(most))
    for density in (0.3, 0.1, 0.02):
        specks = (rng.random((300, 300)) < density).astype(np.float32)
        assert not shows_text(specks)
    assert not shows_text(np.zeros((128, 128), np.float32))
    assert not shows_text(np.ones((128, 128), np.float32))


def test_dicom_phantom_patches_show_no_text():
    drawn = phantom_cohort(name="any", num_images=200, style=EXTERNAL_STYLE, d_prime=2.4, image_size=128, seed=5, split="train")
    assert not any(shows_text(patch) for patch in drawn.pixels)


@pytest.mark.skipif(not REAL, reason="MAMMO_DP_ROOT does not name the public patches")
def test_dicom_real_masses_show_hardly_any_text():
    paths = sorted(Path(REAL).rglob("*.png"))[::4]
    alarms = sum(shows_text(np.asarray(Image.open(path), dtype=np.float32) / 255) for path in paths)
    assert len(paths) > 100
    assert alarms <= 0.002 * len(paths)


def test_dicom_text_in_a_large_crop_is_looked_for_in_a_moment():
    rng = np.random.default_rng(1)
    image = np.clip(breast(1500, rng) + 0.02 * rng.standard_normal((1500, 1500)), 0, 1).astype(np.float32)
    used = []
    for _ in range(3):
        begun = time.process_time()
        assert not shows_text(image)
        used.append(time.process_time() - begun)
    # A third of a second on an idle machine of today; others are not idle.
    assert min(used) < 1.0
