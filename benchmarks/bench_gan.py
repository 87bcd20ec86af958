"""One step of a generator's training: plain against private, and float32 against bfloat16, in turn in one process."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

from mammo_fed.data.phantom.hospitals import phantom_synthetic
from mammo_fed.privacy.noise import NoiseSource
from mammo_fed.settings.compose import compose_gan
from mammo_fed.synthesis.adversarial import Adversaries, RealGradient
from mammo_fed.synthesis.real_gradients import gan_event, plain_gradients, private_gradients, real_images

IMAGES = 400


def main() -> None:
    """Print seconds a step and their ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--gan", default="mcgan_64")
    options = parser.parse_args()
    cohort = phantom_synthetic(count=IMAGES, image_size=128, seed=1)
    cases: dict[str, Callable[[], object]] = {}
    for name, overrides in {
        "plain": [],
        "bfloat16": ["gan.precision=bfloat16"],
        "private": ["privacy.target_epsilon=6"],
        "private, floating point": ["privacy.target_epsilon=6", "privacy.noise=float"],
    }.items():
        settings = compose_gan([f"gan={options.gan}", *overrides]).settings
        real = real_images(cohort, image_size=settings.gan.image_size, unit="image")
        gradient: RealGradient
        if settings.privacy.private:
            gradient = private_gradients(
                real,
                event=gan_event(settings, public_images=IMAGES),
                public_units=IMAGES,
                noise=NoiseSource(injected_seed=None),
                mode=settings.privacy.noise,
            )
        else:
            gradient = plain_gradients(real, batch_size=settings.gan.batch_size)
        adversaries = Adversaries(settings.gan, seed=0)
        cases[name] = lambda adversaries=adversaries, gradient=gradient: adversaries.advance(gradient)
    for case in cases.values():
        case()
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(options.steps):
        for name, case in cases.items():
            start = time.perf_counter()
            case()
            seconds[name].append(time.perf_counter() - start)
    plain = statistics.median(seconds["plain"])
    print(f"{options.gan}, {torch.get_num_threads()} threads, medians of {options.steps} steps")
    for name, values in seconds.items():
        median = statistics.median(values)
        print(f"{name:24s} {median:7.3f} s a step, {median / plain:5.2f} x plain (spread {np.ptp(values):.3f} s)")


if __name__ == "__main__":
    main()
