"""Poisson DP-SGD on cached features on the grid (`privacy.noise=secure`, the default) beside floating point (`float`, Opacus).

What a site's 100 local steps cost in processor time (one thread), for several sizes of a cohort, batches and heads; the two
kinds take turns. Usage: python benchmarks/bench_noise.py [--repetitions 3] [--json]
"""

import argparse
import json
import statistics
import time

import numpy as np
import torch

from mammo_fed.models.heads import HeadSpec, build_head, flatten
from mammo_fed.privacy.events import PrivacyEvent
from mammo_fed.privacy.noise import NoiseSource
from mammo_fed.training.local import LocalSteps, SiteFeatures, train_head

DIMS, STEPS = 400, 100
STEP = LocalSteps(learning_rate=1.0, weight_decay=0.0, optimizer="sgd", label_smoothing=0.0, proximal=0.0)


def site_of(images):
    """Two images of unit norm for each patient."""
    rng = np.random.default_rng(0)
    features = rng.standard_normal((images, DIMS)).astype(np.float32)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    labels, units = rng.integers(0, 2, images), np.arange(images) // 2
    return SiteFeatures(features=features, labels=labels, units=units, public_images=images)


def seconds(site, head, batch, mode):
    """Processor time of a round's local steps."""
    event = PrivacyEvent(
        mechanism="gradient",
        noise_multiplier=2.0,
        steps=STEPS,
        sample_rate=min(1.0, batch / site.public_images),
        unit="patient",
        clipping_norm=0.45,
        max_images_per_patient=16,
    )
    source = NoiseSource(injected_seed=None)
    start = time.process_time()
    train_head(
        site,
        flatten(build_head(head, seed=0)),
        head=head,
        feature_mean=np.full(DIMS, 0.01, np.float32),
        steps=STEP,
        event=event,
        closed_form=False,
        noise=source.draws(mode, site="a", round_index=1, purpose="noise"),
        sampling=source.draws(mode, site="a", round_index=1, purpose="sampling"),
    )
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for kind in ("linear", "mlp"):
        head = HeadSpec(kind=kind, dims=DIMS, hidden=256)
        for images, batch in ((276, 128), (1104, 128), (10_000, 1024)):
            site = site_of(images)
            for mode in ("float", "secure"):
                seconds(site, head, batch, mode)
            pairs = [[seconds(site, head, batch, mode) for mode in ("float", "secure")] for _ in range(options.repetitions)]
            floating, secure = (statistics.median(column) for column in zip(*pairs, strict=True))
            rows.append({"head": kind, "images": images, "batch": batch, "float_s": floating, "secure_s": secure})
            if not options.json:
                print(
                    f"{kind:6} {images:6,} images, batch {batch:5,}: float {floating:.2f} s, secure {secure:.2f} s, "
                    f"ratio {secure / floating:.1f}",
                    flush=True,
                )
    if options.json:
        print(json.dumps(rows))


if __name__ == "__main__":
    main()
