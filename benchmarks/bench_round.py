"""CPU time of a site's round with features prepared once beside the same round that prepares them again.

A round is what a site computes between a task and its update: the features behind the feature mean, sorted by unit, and one
noisy full-batch step (or one sampled step of the perceptron head). Both kinds of round run in turn on the same data with the
same start and the same kind of noise; the ratio is taken pair by pair.
Usage: python benchmarks/bench_round.py [--images 5000 50000] [--dims 400] [--noise float] [--rounds 7] [--json]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import replace

import numpy as np
import torch

from mammo_fed.models.heads import HeadSpec
from mammo_fed.privacy.events import PrivacyEvent
from mammo_fed.privacy.noise import NoiseSource
from mammo_fed.training.local import LocalSteps, SiteFeatures, train_head

STEPS = LocalSteps(learning_rate=2.0, weight_decay=0.0, optimizer="sgd", label_smoothing=0.0, proximal=0.0)


def cohort(images: int, dims: int) -> SiteFeatures:
    """Unit-norm features of patients with two images each on average."""
    rng = np.random.default_rng(0)
    features = rng.standard_normal((images, dims)).astype(np.float32)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    _, units = np.unique(rng.integers(0, images // 2, images), return_inverse=True)
    return SiteFeatures(features=features, labels=rng.integers(0, 2, images), units=units, public_images=images)


def train(site: SiteFeatures, *, head: HeadSpec, noise: str, round_index: int) -> np.ndarray:
    """One round from a fixed start, with noise from the operating system."""
    closed_form = head.kind == "linear"
    event = PrivacyEvent(
        mechanism="gradient",
        noise_multiplier=5.0,
        steps=1,
        sample_rate=1.0 if closed_form else 0.05,
        unit="patient",
        clipping_norm=0.5,
        max_images_per_patient=16,
    )
    source = NoiseSource(injected_seed=None)
    return train_head(
        site,
        np.full(head.num_parameters, 0.01, np.float32),
        head=head,
        feature_mean=np.full(head.dims, 0.01, np.float32),
        steps=STEPS,
        event=event,
        closed_form=closed_form,
        noise=source.draws(noise, site="site-1", round_index=round_index, purpose="noise"),
        sampling=source.draws(noise, site="site-1", round_index=round_index, purpose="sampling"),
    )


def measure(images: int, *, head: HeadSpec, noise: str, rounds: int) -> dict[str, float]:
    """Median CPU milliseconds of both kinds of round, and the median of their ratios."""
    site = cohort(images, head.dims)
    train(site, head=head, noise=noise, round_index=0)
    kept, again = [], []
    for round_index in range(1, rounds + 1):
        # A copy of the same arrays has prepared nothing yet.
        for of, taken in ((site, kept), (replace(site), again)):
            started = time.process_time()
            train(of, head=head, noise=noise, round_index=round_index)
            taken.append((time.process_time() - started) * 1e3)
    return {
        "prepared_once_ms": statistics.median(kept),
        "prepared_each_time_ms": statistics.median(again),
        "ratio": statistics.median(a / k for a, k in zip(again, kept, strict=True)),
    }


def main() -> None:
    """Print medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, nargs="+", default=[5_000, 50_000])
    parser.add_argument("--dims", type=int, default=400)
    parser.add_argument("--noise", choices=["float", "secure"], default="float")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    heads = {
        "full batch, linear head": HeadSpec(kind="linear", dims=options.dims),
        "sampled, perceptron head": HeadSpec(kind="mlp", dims=options.dims, hidden=64),
    }
    rows = [
        {"images": images, "round": name, **measure(images, head=head, noise=options.noise, rounds=options.rounds)}
        for images in options.images
        for name, head in heads.items()
    ]
    if options.json:
        print(json.dumps(rows, indent=2))
        return
    print(
        f"{options.dims} features, {options.noise} noise, {torch.get_num_threads()} threads; CPU time of one round at one site"
    )
    for row in rows:
        print(
            f"{row['images']:>7} images  {row['round']:<25} prepared once {row['prepared_once_ms']:9.1f} ms   "
            f"each time {row['prepared_each_time_ms']:9.1f} ms   ratio {row['ratio']:6.1f}"
        )


if __name__ == "__main__":
    main()
