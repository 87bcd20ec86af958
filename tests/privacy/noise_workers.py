"""What a site's releases look like when nobody is in them: noise and nothing else, in this process or as a script."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from typing import Final

import numpy as np

from mammo_fed.models.heads import HeadSpec
from mammo_fed.privacy.events import PrivacyEvent
from mammo_fed.privacy.names import NoiseMode
from mammo_fed.privacy.noise import NoiseSource
from mammo_fed.training.local import LocalSteps, SiteFeatures, release_mean, train_head

MODES: Final[tuple[NoiseMode, ...]] = ("secure", "float")
ROUNDS: Final = range(5)
DIMS: Final = 4
EMPTY = SiteFeatures(
    features=np.zeros((0, DIMS), np.float32), labels=np.zeros(0, np.int64), units=np.zeros(0, np.int64), public_images=1
)
STEPS = LocalSteps(learning_rate=1.0, weight_decay=0.0, optimizer="sgd", label_smoothing=0.0, proximal=0.0)


def event(mechanism: str) -> PrivacyEvent:
    return PrivacyEvent(
        mechanism=mechanism,  # type: ignore[arg-type]
        noise_multiplier=1.0,
        steps=1,
        sample_rate=1.0,
        unit="patient",
        clipping_norm=1.0,
        max_images_per_patient=16,
    )


def site_noise(source: NoiseSource, mode: NoiseMode, rounds: Iterable[int], *, site: str = "site-1") -> list[str]:
    """The noise that a site adds in each round, the mean in round 0 and both mechanisms in turn after it, in hex."""
    noises = []
    for index in rounds:
        noise, sampling = (
            source.draws(mode, site=site, round_index=index, purpose=purpose) for purpose in ("noise", "sampling")
        )
        if index == 0:
            noises.append(release_mean(EMPTY, event=event("mean"), noise=noise).tobytes().hex())
            continue
        flat = train_head(
            EMPTY,
            np.zeros(DIMS + 1, np.float32),
            head=HeadSpec(kind="linear", dims=DIMS),
            feature_mean=np.zeros(DIMS, np.float32),
            steps=STEPS,
            event=event("gradient"),
            closed_form=index % 2 == 1,
            noise=noise,
            sampling=sampling,
        )
        noises.append(flat.tobytes().hex())
    return noises


if __name__ == "__main__":
    # For several sources one after the other, secure and float noise.
    seeds = [None if seed == "none" else int(seed) for seed in sys.argv[1:]]
    sys.stdout.write(json.dumps([[site_noise(NoiseSource(injected_seed=s), mode, ROUNDS) for mode in MODES] for s in seeds]))
