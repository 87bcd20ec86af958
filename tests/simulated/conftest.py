"""A made-up clone of the paper's repository: a few phantom patches in its layout."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mammo_fed.data.cohort import BENIGN, MALIGNANT, Cohort
from mammo_fed.data.phantom.hospitals import phantom_cohort, phantom_synthetic
from mammo_fed.data.phantom.masses import site_style

SIDE = 32
FOLDERS = {"train": "cbis-ddsm/train", "val": "cbis-ddsm/val", "test": "cbis-ddsm/test", "external": "bcdr/test"}
COUNTS = {"train": 18, "val": 10, "test": 9, "external": 8}
GENERATED = 16


def write(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.round(pixels * 255).astype(np.uint8)).save(path)


def write_split(root: Path, split: str, cohort: Cohort) -> None:
    for row, label in enumerate(cohort.labels.tolist()):
        benign = label == BENIGN
        name = f"patient{split}__{cohort.patients[row]}_image{row}_mass{row}_is_benign_{int(benign)}.png"
        folder = root / "dataset16062024" / FOLDERS[split] / f"is_benign_{str(benign).lower()}"
        write(folder / name, cohort.pixels[row])


@pytest.fixture(scope="session")
def make_clone(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`make_clone("train", "val")`: a clone that holds these splits, and the GAN's images."""

    def make(*splits: str) -> Path:
        root = tmp_path_factory.mktemp("clone") / "mammo_dp"
        for number, split in enumerate(FOLDERS):
            if split in splits:
                cohort = phantom_cohort(
                    name=split,
                    num_images=COUNTS[split],
                    style=site_style(0),
                    d_prime=3.0,
                    image_size=SIDE,
                    seed=number,
                    split=split,
                )
                write_split(root, split, cohort)
        generated = phantom_synthetic(count=GENERATED, image_size=SIDE, seed=9)
        for row, (pixels, label) in enumerate(zip(generated.pixels, generated.labels.tolist(), strict=True)):
            word = "malignant" if label == MALIGNANT else "benign"
            write(root / "extension/synthetic_data/cbis-ddsm/c-dcgan" / f"batch_0_{row}_{word}.png", pixels)
        return root

    return make


@pytest.fixture(scope="session")
def clone(make_clone: Callable[..., Path]) -> Path:
    """A clone with every split."""
    return make_clone(*FOLDERS)


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reproduction sets this for the processes that it starts; the tests after these keep what they had."""
    monkeypatch.setenv("OMP_NUM_THREADS", os.environ.get("OMP_NUM_THREADS", "1"))
