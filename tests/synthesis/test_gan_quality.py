"""What sets are judged by: closed forms, second implementations, and planted faults that must be found."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.linalg import sqrtm

from mammo_fed.data.cohort import Cohort
from mammo_fed.data.patches import read_patch
from mammo_fed.errors import DataError, InvalidSetting
from mammo_fed.synthesis.quality.descriptors import descriptor, radiomics_distance
from mammo_fed.synthesis.quality.evaluation import evaluate_set, noise_images, reference
from mammo_fed.synthesis.quality.fidelity import frechet_distance, neighbourhood
from mammo_fed.synthesis.quality.memorisation import memorisation, thumbnails
from mammo_fed.synthesis.quality.spectrum import artefacts, checkerboard, radial_power, wrapped_share


def test_frechet_of_a_set_to_itself_is_zero_and_of_a_moved_one_the_squared_way():
    points = np.random.default_rng(0).standard_normal((50, 4))
    assert frechet_distance(points, points) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(points, points + np.array([3, 0, 4, 0])) == pytest.approx(25)


def test_frechet_of_a_scaled_set_has_a_closed_form():
    points = np.random.default_rng(0).standard_normal((200, 3))
    points -= points.mean(axis=0)
    assert frechet_distance(points, 3 * points) == pytest.approx(4 * np.trace(np.cov(points, rowvar=False)))


@given(st.integers(0, 10_000), st.integers(2, 12))
def test_frechet_agrees_with_the_matrix_square_root(seed, dims):
    rng = np.random.default_rng(seed)
    one, two = rng.standard_normal((40, dims)) @ rng.standard_normal((dims, dims)), rng.standard_normal((60, dims)) + 1
    first, second = np.cov(one, rowvar=False), np.cov(two, rowvar=False)
    apart = one.mean(axis=0) - two.mean(axis=0)
    expected = apart @ apart + np.trace(first + second - 2 * np.real(sqrtm(first @ second)))
    assert frechet_distance(one, two) == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert frechet_distance(two, one) == pytest.approx(frechet_distance(one, two), rel=1e-6, abs=1e-6)


def test_frechet_takes_fewer_images_than_dimensions_and_refuses_what_is_not_finite():
    few = np.random.default_rng(0).standard_normal((5, 40))
    assert np.isfinite(frechet_distance(few, few + 1))
    with pytest.raises(DataError):
        frechet_distance(few, np.full((5, 40), np.nan))
    with pytest.raises(DataError):
        frechet_distance(few[:1], few)


def test_neighbourhood_of_one_distribution_is_near_one_and_of_two_apart_zero():
    rng = np.random.default_rng(0)
    real, same, far = (rng.standard_normal((300, 3)) + shift for shift in (0, 0, 50))
    found = neighbourhood(real, same)
    assert min(found.precision, found.recall, found.density, found.coverage) > 0.9
    apart = neighbourhood(real, far)
    assert (apart.precision, apart.recall, apart.density, apart.coverage) == (0, 0, 0, 0)


def test_neighbourhood_tells_a_collapsed_generator_by_its_coverage():
    rng = np.random.default_rng(0)
    real = rng.standard_normal((300, 3))
    collapsed = real[:1] + 0.01 * rng.standard_normal((300, 3))
    found = neighbourhood(real, collapsed)
    assert found.precision > 0.9
    assert found.coverage < 0.1


def test_neighbourhood_agrees_with_a_loop():
    rng = np.random.default_rng(1)
    real, drawn, k = rng.standard_normal((30, 2)), rng.standard_normal((20, 2)) * 1.5, 3
    reach = [sorted(np.linalg.norm(real - one, axis=1))[k] for one in real]
    within = [[np.linalg.norm(one - other) <= r for other in drawn] for one, r in zip(real, reach, strict=True)]
    found = neighbourhood(real, drawn, neighbours=k)
    assert found.density == pytest.approx(np.sum(within) / (k * 20))
    assert found.coverage == pytest.approx(np.mean(np.any(within, axis=1)))
    assert found.precision == pytest.approx(np.mean(np.any(within, axis=0)))


def test_spectrum_finds_a_checkerboard_that_is_planted(images):
    smooth = images(40, side=64) * 0.5
    board = np.indices((64, 64)).sum(axis=0) % 2
    quarter = np.tile([0, 0, 1, 1], 16)[None, :] * np.ones((64, 1))
    clean = checkerboard(smooth + 0.01 * np.random.default_rng(0).standard_normal(smooth.shape).astype(np.float32))
    assert max(clean) < 30
    assert checkerboard((smooth + 0.2 * board).astype(np.float32))[0] > 100 * clean[0]
    assert checkerboard((smooth + 0.2 * quarter).astype(np.float32))[1] > 5 * clean[1]


def test_spectrum_of_noise_is_flat_and_of_smooth_images_falls(images):
    noise, _ = noise_images(100, side=64, seed=0)
    power = radial_power(noise)[2:]
    assert power.max() / power.min() < 1.5
    assert artefacts(noise).fine_detail > 5 * artefacts(images(100, side=64)).fine_detail


def test_spectrum_counts_pixels_that_wrapped_around():
    grey = np.full((3, 32, 32), 0.95, np.float32)
    assert wrapped_share(grey) == 0
    grey[0, 5, 5] = 0.02
    grey[2, 20, 9] = 0.01
    assert wrapped_share(grey) == pytest.approx(2 / (3 * 30 * 30))


def test_spectrum_refuses_images_that_are_too_small():
    with pytest.raises(DataError):
        artefacts(np.zeros((2, 8, 8), np.float32))


@pytest.mark.parametrize("disguise", ["none", "mirrored", "dimmed", "noisy"])
def test_memorisation_finds_a_planted_copy(images, disguise):
    rng = np.random.default_rng(3)
    train, held_out, drawn = images(60, seed=1), images(30, seed=2), images(40, seed=3)
    planted = train[17].copy()
    if disguise == "mirrored":
        planted = planted[:, ::-1]
    elif disguise == "dimmed":
        planted = 0.5 * planted + 0.1
    elif disguise == "noisy":
        planted = np.clip(planted + 0.05 * rng.standard_normal(planted.shape), 0, 1)
    drawn[11] = planted
    found = memorisation(thumbnails(drawn), thumbnails(train), thumbnails(held_out), mirrored=thumbnails(train[:, :, ::-1]))
    assert found.copies.tolist() == [11]
    assert found.of.tolist() == [17]


def test_memorisation_of_strangers_finds_nothing_and_of_the_training_set_everything(images):
    train, held_out, drawn = images(80, seed=1), images(80, seed=2), images(80, seed=3)
    mirrored = thumbnails(train[:, :, ::-1])
    strangers = memorisation(thumbnails(drawn), thumbnails(train), thumbnails(held_out), mirrored=mirrored)
    assert len(strangers.copies) == 0
    assert strangers.ratio == pytest.approx(1, abs=0.1)
    assert 0.6 < strangers.nearer_to_train < 1.4
    parrot = memorisation(thumbnails(train), thumbnails(train), thumbnails(held_out), mirrored=mirrored)
    assert len(parrot.copies) == 80
    assert parrot.ratio == pytest.approx(0, abs=1e-9)
    assert parrot.nearer_to_train == 2


def cohort_of(pixels, labels, name):
    names = np.array([f"{name}{row}" for row in range(len(labels))])
    return Cohort(
        name=name,
        pixels=pixels,
        labels=labels,
        patients=names,
        images=names,
        views=np.full(len(labels), "", dtype=np.str_),
        splits=np.full(len(labels), "train"),
        public=True,
    )


def blobs(count, *, seed):
    """Bright discs for malignant, dark ones for benign."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    pixels = rng.uniform(0.4, 0.6, (count, 32, 32)).astype(np.float32)
    for image, label in zip(pixels, labels, strict=True):
        y, x = rng.integers(6, 18, 2)
        image[y : y + 8, x : x + 8] = 0.9 if label else 0.1
    return pixels, labels


def test_quality_tells_a_set_whose_classes_mean_something_from_one_whose_do_not():
    real = reference(
        cohort_of(*blobs(60, seed=0), "train"),
        cohort_of(*blobs(40, seed=1), "held"),
        side=32,
        describe=lambda pixels: pixels.reshape(len(pixels), -1),
    )
    pixels, labels = blobs(60, seed=2)
    good, shuffled = (
        evaluate_set(pixels, labels, real),
        evaluate_set(pixels, np.random.default_rng(0).permutation(labels), real),
    )
    assert good.consistency > 0.95
    assert good.tstr > 0.95
    assert good.tstr_ci[0] <= good.tstr <= good.tstr_ci[1]
    assert 0.25 < shuffled.consistency < 0.75
    noise = evaluate_set(*noise_images(60, side=32, seed=0), real)
    assert good.frechet < noise.frechet
    assert good.neighbourhood.coverage > noise.neighbourhood.coverage
    assert noise.tstr < 0.8


def test_quality_refuses_to_enlarge():
    with pytest.raises(DataError, match="smaller side"):
        reference(cohort_of(*blobs(10, seed=0), "train"), cohort_of(*blobs(10, seed=1), "held"), side=64, describe=lambda p: p)


def test_quality_extras_of_the_literature_name_the_package_that_they_need(monkeypatch, images):
    for module in ("torchmetrics.image.fid", "radiomics"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InvalidSetting, match=r"mammo-fed\[quality\]"):
        descriptor("inception", cache=None)
    with pytest.raises(InvalidSetting, match="pyradiomics"):
        radiomics_distance(images(3), images(3))
    with pytest.raises(InvalidSetting, match="must be one of"):
        descriptor("other", cache=None)


def test_quality_radiomics_distance_is_what_frd_score_says_of_the_images(monkeypatch, images):
    """A stand-in for the package, which cannot be built here: it is given two folders with every image as a PNG."""
    seen = {}

    def compute_frd(folders, *, num_workers):
        for folder in folders:
            paths = sorted(Path(folder).iterdir())
            seen[Path(folder).name] = np.stack([read_patch(path) for path in paths])
        return 3.5

    package = ModuleType("frd_score")
    package.frd = SimpleNamespace(compute_frd=compute_frd)
    monkeypatch.setitem(sys.modules, "frd_score", package)
    monkeypatch.setitem(sys.modules, "radiomics", ModuleType("radiomics"))
    assert radiomics_distance(images(3, seed=1), images(2, seed=2)) == 3.5
    np.testing.assert_allclose(seen["real"], images(3, seed=1), atol=0.6 / 255)
    np.testing.assert_allclose(seen["generated"], images(2, seed=2), atol=0.6 / 255)
