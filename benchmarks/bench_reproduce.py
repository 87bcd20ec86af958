"""A row of the reproduction on cached flips beside the same row with the network in every step.

The slow path is that of the paper's code: flip, resize to 224 pixels, Swin-T, Opacus' hooks on the head, AdamW; every step runs
the frozen network on the expected batch, on all threads. Ours is a site's training: nine Poisson steps a pass on cached
descriptors of all four flips, on one thread, as `mammo-fed reproduce` runs a row. Both start from random patches and random
weights, which take as long as any others. The cost of the cache is measured on a few patches, on all threads, and scaled to the
1,104 of the training set; it takes less an image than a slow step does, for its passes are small, so the cold ratio is above
what counting images gives (345,600 / 4,416 = 78). Evaluation is left out on both sides. Slow steps, patches for the cache and
passes of ours alternate, so that a drift of the machine meets all of them; ratios are taken repetition by repetition.
Usage: python benchmarks/bench_reproduce.py [--steps 540] [--slow-steps 3] [--threads N] [--json [FILE]]
"""

import argparse
import json
import statistics
import tempfile
import time
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import torch
from opacus import GradSampleModule
from opacus.optimizers import DPOptimizer

from mammo_fed.data.cache import ArrayCache
from mammo_fed.models.backbones import BackboneSpec
from mammo_fed.models.features import Extractor, ExtractorSpec, resize
from mammo_fed.models.heads import HeadSpec, build_head, flatten, head_loss
from mammo_fed.privacy.events import PrivacyEvent
from mammo_fed.privacy.noise import NoiseSource
from mammo_fed.training.local import LocalSteps, SiteFeatures, train_head

IMAGES, PATCH, SIZE, BATCH, STEPS_PER_EPOCH, EPOCHS = 1104, 128, 224, 128, 9, 300
ROW_STEPS = EPOCHS * STEPS_PER_EPOCH
# Rows and seeds of the table, each taken for a row of 300 epochs on the training set.
RUNS = 21 * 3
# Networks whose descriptors the table needs: ImageNet's, and one pretrained on synthetic images for each seed.
NETWORKS = 1 + 3
CACHED_PATCHES = 16
HEAD = HeadSpec(kind="mlp", dims=768)
NOISE, CLIP, RATE, DECAY, SMOOTHING = 1.0, 1.0, 1e-5, 1e-8, 0.1
RESULTS = Path(__file__).parent / "results" / "bench_reproduce.json"


def swin(folder):
    """The paper's network, with random weights; a cache that stays empty."""
    backbone = BackboneSpec(name="swin_tiny_patch4_window7_224", weights="none")
    spec = ExtractorSpec(backbones=(backbone,), pooling="mean", input_size=SIZE, flips="random")
    return Extractor(spec, cache=ArrayCache(Path(folder)))


def slow_step(extractor, pixels, labels):
    """Flip, resize, network, Opacus' hooks and optimizer, on exactly the expected batch."""
    (network,) = extractor.backbones
    head = GradSampleModule(build_head(HEAD, seed=0))
    optimizer = DPOptimizer(
        torch.optim.AdamW(head.parameters(), lr=RATE, weight_decay=DECAY),
        noise_multiplier=NOISE,
        max_grad_norm=CLIP,
        expected_batch_size=BATCH,
    )
    sampling = np.random.default_rng(1)

    def step(batch=BATCH):
        rows = sampling.choice(IMAGES, batch, replace=False)
        mirrored, upended = sampling.random((2, batch, 1, 1)) < 0.5
        chosen = np.where(mirrored, pixels[rows][:, :, ::-1], pixels[rows])
        chosen = np.where(upended, chosen[:, ::-1], chosen)
        # Cloned: what the network made in inference mode cannot be saved for a gradient.
        features = network(resize(torch.from_numpy(chosen), SIZE))[:, :, 0].clone()
        optimizer.zero_grad()
        head_loss(head(features), torch.from_numpy(labels[rows]), label_smoothing=SMOOTHING).mean().backward()
        optimizer.step()

    return step


def our_epoch(features, labels):
    """A site's round: nine Poisson steps on cached flips, noise drawn from the operating system as in a run."""
    site = SiteFeatures(features=features, labels=labels, units=np.arange(IMAGES), public_images=IMAGES)
    steps = LocalSteps(learning_rate=RATE, weight_decay=DECAY, optimizer="adamw", label_smoothing=SMOOTHING, proximal=0.0)
    charged = PrivacyEvent(
        mechanism="gradient",
        noise_multiplier=NOISE,
        steps=STEPS_PER_EPOCH,
        sample_rate=BATCH / IMAGES,
        unit="image",
        clipping_norm=CLIP,
        max_images_per_patient=16,
    )
    source, state, flat = NoiseSource(injected_seed=None), {}, flatten(build_head(HEAD, seed=0))
    draws = partial(source.draws, "float", site="site-1", round_index=1)

    def epoch():
        nonlocal flat
        flat = train_head(
            site,
            flat,
            head=HEAD,
            feature_mean=np.zeros(HEAD.dims, np.float32),
            steps=steps,
            event=charged,
            closed_form=False,
            noise=draws(purpose="noise"),
            sampling=draws(purpose="sampling"),
            normalize=False,
            state=state,
        )

    return epoch


def seconds(work):
    """How long `work` takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def measure(extractor, repetitions, epochs, threads):
    """Seconds of a slow step, of a step of ours (median over passes) and of caching one patch, per repetition."""
    rng = np.random.default_rng(0)
    pixels = rng.random((IMAGES, PATCH, PATCH), dtype=np.float32)
    labels = rng.integers(0, 2, IMAGES)
    slow = slow_step(extractor, pixels, labels)
    ours = our_epoch(rng.standard_normal((IMAGES, 4, HEAD.dims), dtype=np.float32), labels)
    slow(8)
    ours()
    taken = []
    for _ in range(repetitions):
        torch.set_num_threads(threads)
        in_slow = seconds(slow)
        in_cache = seconds(lambda: extractor.compute(pixels[:CACHED_PATCHES], flips="random")) / CACHED_PATCHES
        # As `mammo-fed reproduce` runs it: a row a process, each on one thread.
        torch.set_num_threads(1)
        in_ours = statistics.median(seconds(ours) for _ in range(epochs)) / STEPS_PER_EPOCH
        taken.append((in_slow, in_ours, in_cache))
    return taken


def figures(taken):
    """Medians over the repetitions of what is printed."""
    slow, ours, cache = np.array(taken).T
    slow_row, our_row, caching = ROW_STEPS * slow, ROW_STEPS * ours, IMAGES * cache
    found = {
        "slow_step_ms": slow * 1e3,
        "our_step_ms": ours * 1e3,
        "cache_seconds_scaled": caching,
        "slow_row_seconds_scaled": slow_row,
        "our_row_seconds_scaled": our_row,
        "ratio_row_cached": slow_row / our_row,
        "ratio_row_cold": slow_row / (our_row + caching),
        "ratio_table_one_network": RUNS * slow_row / (RUNS * our_row + caching),
        "ratio_table_all_networks": RUNS * slow_row / (RUNS * our_row + NETWORKS * caching),
    }
    return {name: float(np.median(values)) for name, values in found.items()}


def report(found, options, epochs):
    """Print the figures in words."""
    counts = f"{options.slow_steps} slow steps, {options.slow_steps * epochs * STEPS_PER_EPOCH} of ours on one thread"
    print(f"Swin-T at {SIZE} pixels, head {HEAD.dims}-{HEAD.hidden}-2, {options.threads} threads: {counts}")
    print(f"slow step, the network on {BATCH} images        {found['slow_step_ms']:10.1f} ms")
    print(f"our step, on cached flips                 {found['our_step_ms']:10.2f} ms")
    print(f"four flips of {IMAGES:,} patches (scaled)     {found['cache_seconds_scaled']:10.1f} s")
    print(f"a row of {EPOCHS} epochs, {ROW_STEPS:,} steps (scaled): ", end="")
    print(f"slow {found['slow_row_seconds_scaled']:,.0f} s, ours {found['our_row_seconds_scaled']:,.1f} s")
    print(f"ratio of a row, flips cached              {found['ratio_row_cached']:10.0f}")
    print(f"ratio of a row, cold                      {found['ratio_row_cold']:10.1f}")
    print(f"ratio of the table, {RUNS} runs, one network   {found['ratio_table_one_network']:10.0f}")
    print(f"ratio of the table, its {NETWORKS} networks        {found['ratio_table_all_networks']:10.0f}")


def main():
    """Print times and ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=540, help="steps of ours in all, rounded to whole passes of nine")
    parser.add_argument("--slow-steps", type=int, default=3, help="slow steps, one a repetition")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of the network; our steps run on one")
    parser.add_argument("--json", type=Path, nargs="?", const=RESULTS, help=f"write the figures to a file ({RESULTS.name})")
    options = parser.parse_args()
    if min(options.steps, options.slow_steps, options.threads) < 1:
        parser.error("--steps, --slow-steps and --threads must be at least 1")
    warnings.filterwarnings("ignore", category=UserWarning)
    epochs = max(1, round(options.steps / STEPS_PER_EPOCH / options.slow_steps))
    with tempfile.TemporaryDirectory() as folder:
        found = figures(measure(swin(folder), options.slow_steps, epochs, options.threads))
    report(found, options, epochs)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps({"threads": options.threads, **found}, indent=2) + "\n")


if __name__ == "__main__":
    main()
