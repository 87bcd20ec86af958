"""Phantom cohorts: hospitals that differ in style, size and prevalence, and the public synthetic set."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from mammo_fed.data.cohort import BENIGN, MALIGNANT, Cohort, concatenate
from mammo_fed.data.phantom.masses import (
    EXTERNAL_STYLE,
    HOSPITALS,
    PhantomStyle,
    any_style,
    draw_mass,
    draw_suspicion,
    site_style,
)
from mammo_fed.data.phantom.shapes import Image
from mammo_fed.errors import InvalidSetting

__all__ = ["PhantomFederation", "phantom_cohort", "phantom_hospitals", "phantom_synthetic"]

SPLITS: Final = ("train", "val", "test", "external")
VIEWS: Final = ("CC", "MLO")
# One to four patches, 1.9 on average, as the masses of CBIS-DDSM have.
PATCHES_PER_PATIENT: Final = (0.4, 0.4, 0.1, 0.1)
# With at most four patches to a patient this many images always hold two patients, hence both classes.
FEWEST_IMAGES: Final = 8

StyleOf = Callable[[np.random.Generator], PhantomStyle]


@dataclass(frozen=True, kw_only=True, eq=False)
class PhantomFederation:
    """Hospitals with a phantom cohort each, and the two sets that score a model.

    Attributes:
      sites: training cohorts, "site-1" to "site-n".
      test: other patients of the same hospitals, in the same proportions, pooled.
      external: patients of one hospital that takes no part and whose images look different.
    """

    sites: tuple[Cohort, ...]
    test: Cohort
    external: Cohort


def phantom_cohort(
    *,
    name: str,
    num_images: int,
    style: PhantomStyle,
    d_prime: float,
    image_size: int,
    seed: int,
    split: str,
    public: bool = True,
) -> Cohort:
    """A cohort of patients with one to four patches each; the views of a patient share label and suspicion.

    Every patient has a generator of its own, from the seed, the cohort's name and the patient's number. The number of malignant
    patients follows the prevalence, rounded; with at least 8 images both classes are present.

    Args:
      name: the cohort's name; identifiers begin with it.
      num_images: number of patches, at least 1.
      style: how the images look, and the prevalence.
      d_prime: distance between the classes in standard deviations of the latent, in [0, 10].
      image_size: height and width in pixels, in [32, 1024].
      seed: the same seed and arguments give the same cohort, at least 0.
      split: "train", "val", "test" or "external".
      public: what the cohort declares about itself.

    Raises:
      InvalidSetting: If a setting is out of its range.
    """
    if num_images < 1:
        raise InvalidSetting(f"num_images={num_images} must be at least 1; check data.images_train")
    if split not in SPLITS:
        raise InvalidSetting(f"split={split!r} must be one of {SPLITS}; check the cohort's split")
    patches, labels = _plan(num_images, style.prevalence, _generator(seed, name, 0))
    patients = _draw_patients(name, patches, labels, lambda _: style, d_prime=d_prime, image_size=image_size, seed=seed)
    return _table(name, patients, labels, split=split, public=public)


def phantom_hospitals(
    *,
    images_train: int = 800,
    images_test: int = 400,
    images_external: int = 240,
    d_prime: float = 2.4,
    image_size: int = 128,
    seed: int = 0,
    num_sites: int = 4,
) -> PhantomFederation:
    """Hospitals of unequal size (40, 30, 20 and 10 % where there are four), each with its style, and their evaluation sets.

    Within one style no classifier passes `auroc_ceiling(d_prime)`. The pooled test set lies a little above it: prevalence
    differs between hospitals, so that recognising the hospital helps.

    Args:
      images_train: training patches of all sites together; every site needs at least 8.
      images_test: test patches of all sites together; every site needs at least 1 and the largest 8.
      images_external: patches of the external hospital, at least 8.
      d_prime: distance between the classes in standard deviations of the latent, in [0, 10].
      image_size: height and width in pixels, in [32, 1024].
      seed: the same seed and arguments give the same federation, at least 0.
      num_sites: number of hospitals, at least 1; beyond four the styles repeat with small variations.

    Raises:
      InvalidSetting: If a setting is out of its range or a site would have too few images.
    """
    if num_sites < 1:
        raise InvalidSetting(f"num_sites={num_sites} must be at least 1; check federation.num_sites")
    train, test = _shares(images_train, num_sites), _shares(images_test, num_sites)
    _require_images("images_train", images_train, min(train), FEWEST_IMAGES, num_sites)
    _require_images("images_test", images_test, min(test), 1, num_sites)
    # The largest part has both classes, and so has the pooled set.
    _require_images("images_test", images_test, max(test), FEWEST_IMAGES, num_sites)
    if images_external < FEWEST_IMAGES:
        raise InvalidSetting(f"images_external={images_external} must be at least {FEWEST_IMAGES}; check data.images_external")

    def hospital(name: str, num_images: int, style: PhantomStyle, split: str) -> Cohort:
        return phantom_cohort(
            name=name, num_images=num_images, style=style, d_prime=d_prime, image_size=image_size, seed=seed, split=split
        )

    names = [f"site-{number + 1}" for number in range(num_sites)]
    styles = [site_style(number) for number in range(num_sites)]
    tests = [hospital(f"{n}-test", k, style, "test") for n, k, style in zip(names, test, styles, strict=True)]
    return PhantomFederation(
        sites=tuple(hospital(n, k, style, "train") for n, k, style in zip(names, train, styles, strict=True)),
        test=concatenate(tests, name="test"),
        external=hospital("external", images_external, EXTERNAL_STYLE, "external"),
    )


def phantom_synthetic(*, count: int = 600, d_prime: float = 2.4, image_size: int = 128, seed: int = 1) -> Cohort:
    """The public set that is shared with every site: one patch per patient, labels balanced, every image in a style of its own.

    The styles spread over those of all hospitals, so that statistics of this set fit each of them.

    Args:
      count: number of patches, at least 2.
      d_prime: distance between the classes in standard deviations of the latent, in [0, 10].
      image_size: height and width in pixels, in [32, 1024].
      seed: the same seed and arguments give the same set, at least 0.

    Raises:
      InvalidSetting: If a setting is out of its range.
    """
    if count < 2:
        raise InvalidSetting(f"count={count} must be at least 2; check synthesis.count")
    name = "phantom-synthetic"
    labels = _generator(seed, name, 0).permutation(np.where(np.arange(count) % 2, MALIGNANT, BENIGN))
    patients = _draw_patients(name, [1] * count, labels, any_style, d_prime=d_prime, image_size=image_size, seed=seed)
    return _table(name, patients, labels, split="train", public=True)


def _require_images(setting: str, total: int, images: int, fewest: int, num_sites: int) -> None:
    """Raise InvalidSetting where a site's share of `total` is below `fewest`."""
    if images < fewest:
        raise InvalidSetting(
            f"{setting}={total} over num_sites={num_sites} must leave at least {fewest} images where it leaves {images}; "
            f"check data.{setting} and federation.num_sites"
        )


def _shares(total: int, num_sites: int) -> list[int]:
    """`total` split in proportion to the hospitals' sizes; the parts sum to it, the largest remainders rounded up."""
    weights = np.array([HOSPITALS[number % len(HOSPITALS)][0] for number in range(num_sites)])
    exact = total * weights / weights.sum()
    parts = np.floor(exact).astype(int)
    parts[np.argsort(parts - exact, kind="stable")[: total - parts.sum()]] += 1
    return [int(part) for part in parts]


def _plan(num_images: int, prevalence: float, rng: np.random.Generator) -> tuple[list[int], NDArray[np.int64]]:
    """Number of patches and label of every patient; the patches sum to `num_images`."""
    patches: list[int] = []
    while (missing := num_images - sum(patches)) > 0:
        patches.append(min(missing, 1 + int(rng.choice(len(PATCHES_PER_PATIENT), p=PATCHES_PER_PATIENT))))
    malignant = round(prevalence * len(patches))
    if len(patches) > 1:
        malignant = min(max(malignant, 1), len(patches) - 1)
    labels = np.full(len(patches), BENIGN, dtype=np.int64)
    labels[:malignant] = MALIGNANT
    return patches, rng.permutation(labels)


def _generator(seed: int, name: str, number: int) -> np.random.Generator:
    """Generator of patient `number` (from 1) of cohort `name`; number 0 draws the cohort's plan."""
    if seed < 0:
        raise InvalidSetting(f"seed={seed} must be at least 0; check seed")
    return np.random.default_rng(np.random.SeedSequence([seed, zlib.crc32(name.encode()), number]))


def _draw_patients(
    name: str,
    patches: Sequence[int],
    labels: NDArray[np.int64],
    style_of: StyleOf,
    *,
    d_prime: float,
    image_size: int,
    seed: int,
) -> list[list[Image]]:
    """The patches of every patient, each patient from a generator of its own; `style_of` is asked once a patient."""
    patients = []
    for number, (count, label) in enumerate(zip(patches, labels.tolist(), strict=True), start=1):
        rng = _generator(seed, name, number)
        style = style_of(rng)
        suspicion = draw_suspicion(np.array(label), d_prime=d_prime, rng=rng).item()
        patients.append(
            [draw_mass(label, suspicion=suspicion, style=style, image_size=image_size, rng=rng) for _ in range(count)]
        )
    return patients


def _table(name: str, patients: Sequence[Sequence[Image]], labels: NDArray[np.int64], *, split: str, public: bool) -> Cohort:
    """Cohort of the drawn patients; a patient's views alternate between CC and MLO."""
    patches = [len(drawn) for drawn in patients]
    owners = [f"{name}-{number:04d}" for number, count in enumerate(patches, start=1) for _ in range(count)]
    positions = [position for count in patches for position in range(count)]
    views = [VIEWS[position % 2] for position in positions]
    images = [f"{owner}-{view.lower()}-{k}" for owner, view, k in zip(owners, views, positions, strict=True)]
    return Cohort(
        name=name,
        pixels=np.stack([image for drawn in patients for image in drawn]),
        labels=np.repeat(labels, patches),
        patients=np.array(owners),
        images=np.array(images),
        views=np.array(views),
        splits=np.full(len(images), split),
        public=public,
    )
