"""Results of seeded runs with injected noise, as numbers to store: what a change that moves or renames code must not move.

`python tests/simulated/stored_results.py FOLDER` runs the installed commands and writes them anew; they were made before the
code was arranged in rooms.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

SMALL = (
    "model=efficientnet_lite0",
    "model.input_size=64",
    "model.flips=none",
    "model.components=20",
    "data.image_size=64",
    "data.images_train=96",
    "data.images_test=48",
    "data.images_external=24",
    "synthesis.count=48",
    "federation.rounds=3",
    "engine.threads=1",
    "privacy.noise_seed=5",
)
RUNS = {
    "dp_gd": ("federation.strategy=FedAvg",),
    "dp_gd_image": ("privacy.unit=image", "federation.strategy=FedAdam"),
    "dp_sgd": ("privacy=dp_sgd", "privacy.noise=float", "federation.strategy=FedAvg"),
    "dp_sgd_kept_optimizer": (
        *("privacy=dp_sgd", "privacy.noise=float", "federation.keep_optimizer=true", "privacy.optimizer=adamw"),
        "federation.strategy=FedAvg",
    ),
    "robust": ("federation=robust",),
    "masks": ("federation.secure.use=masks",),
    "shared_noise": ("federation.secure.use=shared_noise",),
    "augmented": (
        *("synthesis.use=[whiten,pretrain,augment]", "privacy=dp_sgd", "privacy.noise=float", "federation.strategy=FedAvg"),
    ),
}
GAN = (
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
    "privacy.noise_seed=5",
    "privacy.target_epsilon=3",
)

Call = Callable[[Sequence[str]], None]


def results(call: Call, folder: Path, cache: Path) -> dict[str, dict[str, Any]]:
    """Every run's arrays and epsilons by name; `call` runs one command line of mammo-fed."""
    found: dict[str, dict[str, Any]] = {}
    for name, overrides in RUNS.items():
        run = folder / name
        call(["simulate", *SMALL, *overrides, f"engine.cache={cache}", f"hydra.run.dir={run}"])
        record = json.loads((run / "record.json").read_text(encoding="utf-8"))
        model = load_file(run / "model.safetensors")
        feature_mean = model["centre"]
        sites = record["privacy"]["sites"]
        found[name] = {
            "head": model["head"].tolist(),
            "feature_mean": feature_mean.tolist(),
            "epsilon": [site["epsilon"] for site in sites],
            "epsilon_after_round": [site["epsilon_after_round"] for site in sites],
            "auroc": {split: record["evaluation"][split]["auroc"] for split in sorted(record["evaluation"])},
        }
    run = folder / "gan"
    call(["gan", "train", *GAN, f"cache={cache}", f"hydra.run.dir={run}"])
    call(["gan", "sample", str(run), "--output", str(folder / "set"), "--count", "8"])
    provenance = json.loads((folder / "set" / "provenance.json").read_text(encoding="utf-8"))
    weights = load_file(max((run / "checkpoints").glob("*.safetensors")))
    flat = np.concatenate([weights[name].astype(np.float64).ravel() for name in sorted(weights) if name != "losses"])
    found["gan"] = {
        "head": flat.tolist()[:: max(1, len(flat) // 400)],
        "feature_mean": [float(flat.sum()), float(np.abs(flat).sum())],
        "epsilon": [provenance["privacy"]["epsilon"]],
        "epsilon_after_round": [],
        "auroc": {},
    }
    return found


def machine(cache: Path) -> str:
    """Hash of the cached features: machines on which it is the same compute the same bits."""
    digest = hashlib.sha256()
    for path in sorted(cache.rglob("*.npy")):
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def main() -> int:
    """Run the commands installed beside this Python, and write what they give."""
    command = str(Path(sys.executable).parent / "mammo-fed")

    def call(arguments: Sequence[str]) -> None:
        subprocess.run([command, *arguments], check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})

    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder) / "cache"
        found = results(call, Path(folder), cache)
        stored = {"machine": machine(cache), "runs": found}
    (Path(sys.argv[1]) / "stored_results.json").write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
