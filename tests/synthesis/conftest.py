"""Networks small enough for a test, and what they are trained on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from mammo_fed.settings.compose import compose_gan
from mammo_fed.settings.gan import GanSettings

TINY = (
    "gan.image_size=32",
    "gan.channels=4",
    "gan.latent=8",
    "gan.embedding=4",
    "gan.batch_size=8",
    "gan.steps=6",
    "gan.checkpoint_every=2",
    "data.images_train=80",
    "data.images_test=40",
    "data.image_size=64",
    "threads=1",
)


@pytest.fixture(scope="session")
def tiny(cache) -> tuple[str, ...]:
    """Settings of a training that takes a second."""
    return (*TINY, f"cache={cache}")


@pytest.fixture(scope="session")
def gan_settings(tiny) -> Callable[..., GanSettings]:
    """`gan_settings("gan.loss=lsgan")`: checked settings of a small training."""
    return lambda *overrides: compose_gan([*tiny, *overrides]).settings


@pytest.fixture
def images() -> Callable[..., Any]:
    """`images(10, side=32)`: smooth patches, float32 in [0, 1]."""

    def make(count: int, *, side: int = 32, seed: int = 0) -> np.ndarray:
        rng = np.random.default_rng(seed)
        coarse = rng.uniform(0.1, 0.9, (count, 8, 8)).astype(np.float32)
        return np.kron(coarse, np.ones((side // 8, side // 8), np.float32)).astype(np.float32)

    return make
