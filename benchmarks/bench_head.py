"""The DP step on cached features beside the same step without DP (torch autograd) and beside Opacus' hooks.

One step is: logits, loss, gradient, (clip, noise,) update, on all 1,104 images of 400 features at once. Float and secure are
the kinds of privacy.noise: in floating point, and on a grid with discrete Gaussian noise. The steps of each repetition run one
after the other, so that a drift of the machine meets all of them; the ratio is taken pair by pair.
Usage: python benchmarks/bench_head.py [--repetitions 300] [--json]
"""

import argparse
import json
import statistics
import time
import warnings

import numpy as np
import torch
from opacus import GradSampleModule
from opacus.optimizers import DPOptimizer

from mammo_fed.privacy.events import PrivacyEvent
from mammo_fed.privacy.mechanisms.full_batch import LogisticData, private_descent
from mammo_fed.privacy.noise import NoiseSource

IMAGES, PATIENTS, DIMS, CLIP, RATE = 1104, 578, 400, 0.5, 80.0


def cohort():
    """Unit-norm features, labels and patients of the size of CBIS-DDSM's training masses."""
    rng = np.random.default_rng(0)
    features = rng.standard_normal((IMAGES, DIMS)).astype(np.float32)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    labels = rng.integers(0, 2, IMAGES)
    patients = np.concatenate([np.arange(PATIENTS), rng.integers(0, PATIENTS, IMAGES - PATIENTS)])
    return features, labels, patients


def ours(features, labels, units, unit, mode):
    """Our closed-form step, noise drawn from the operating system as in a run."""
    data = LogisticData.build(features, labels, units, bias_scale=0.2)
    charged = PrivacyEvent(
        mechanism="gradient",
        noise_multiplier=5.0,
        steps=1,
        sample_rate=1.0,
        unit=unit,
        clipping_norm=CLIP,
        max_images_per_patient=16,
    )
    source = NoiseSource(injected_seed=None)
    weights = np.zeros(DIMS + 1, np.float32)

    def step():
        noise = source.draws(mode, site="site-1", round_index=1, purpose="noise")
        private_descent(data, weights, event=charged, public_images=IMAGES, learning_rate=RATE, proximal=0.0, noise=noise)

    return step


def without_privacy(features, labels):
    """Linear, cross-entropy, SGD through autograd."""
    inputs, targets = torch.from_numpy(features), torch.from_numpy(labels)
    head = torch.nn.Linear(DIMS, 2)
    optimizer = torch.optim.SGD(head.parameters(), lr=RATE)

    def step():
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(head(inputs), targets).backward()
        optimizer.step()

    return step


def opacus_hooks(features, labels):
    """The same head under Opacus' per-sample gradients."""
    inputs, targets = torch.from_numpy(features), torch.from_numpy(labels)
    head = GradSampleModule(torch.nn.Linear(DIMS, 2))
    optimizer = DPOptimizer(
        torch.optim.SGD(head.parameters(), lr=RATE), noise_multiplier=5.0, max_grad_norm=CLIP, expected_batch_size=IMAGES
    )

    def step():
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(head(inputs), targets).backward()
        optimizer.step()

    return step


def measure(steps, repetitions):
    """Milliseconds of every step in every repetition, interleaved."""
    for step in steps.values():
        for _ in range(20):
            step()
    taken = {name: [] for name in steps}
    for _ in range(repetitions):
        for name, step in steps.items():
            started = time.perf_counter()
            step()
            taken[name].append((time.perf_counter() - started) * 1e3)
    return taken


def main():
    """Print medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=300)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", category=UserWarning)
    features, labels, patients = cohort()
    steps = {
        "float, patient unit": ours(features, labels, patients, "patient", "float"),
        "float, image unit": ours(features, labels, np.arange(IMAGES), "image", "float"),
        "secure, patient unit": ours(features, labels, patients, "patient", "secure"),
        "secure, image unit": ours(features, labels, np.arange(IMAGES), "image", "secure"),
        "no DP (autograd)": without_privacy(features, labels),
        "Opacus hooks": opacus_hooks(features, labels),
    }
    taken = measure(steps, options.repetitions)
    base = taken["no DP (autograd)"]
    rows = {
        name: {
            "median_ms": statistics.median(times),
            "ratio_to_no_dp": statistics.median(a / b for a, b in zip(times, base, strict=True)),
        }
        for name, times in taken.items()
    }
    if options.json:
        print(json.dumps(rows, indent=2))
        return
    print(f"{IMAGES} images, {PATIENTS} patients, {DIMS} features, {torch.get_num_threads()} threads")
    for name, row in rows.items():
        print(f"{name:<21} {row['median_ms']:8.3f} ms   ratio to no DP {row['ratio_to_no_dp']:6.2f}")


if __name__ == "__main__":
    main()
