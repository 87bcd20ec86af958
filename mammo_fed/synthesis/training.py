"""A generator's training from first step to last, over interruptions: nothing is shown that no checkpoint holds.

Why that order: under privacy a step that is taken again after a crash has fresh noise. Were a sample of the lost step on the
disk, or its losses on a screen, somebody would hold two draws of a release that was paid for once. So losses, samples, scalars
and what is told while it trains come after the checkpoint that holds them, and from it.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from mammo_fed.common.private_files import write_atomically, write_private
from mammo_fed.settings.gan import GanSettings
from mammo_fed.synthesis.adversarial import Adversaries, Losses, RealGradient
from mammo_fed.synthesis.checkpoints import Custody, checkpoint_path, checkpoint_steps, read_checkpoint, write_checkpoint
from mammo_fed.synthesis.mcgan import Generator
from mammo_fed.synthesis.sampling import draw_images
from mammo_fed.synthesis.scalars import Scalars, open_scalars

__all__ = ["LOSSES_NAME", "SAMPLES_NAME", "GanProgress", "read_losses", "train_gan"]

LOSSES_NAME: Final = "losses.csv"
SAMPLES_NAME: Final = "samples"
GRID_SIDE: Final = 8

GanProgress = Callable[[int, int, Losses | None], None]
"""Told (steps done, steps in all, losses of the newest checkpoint or None): of later steps nothing but their number."""


def train_gan(
    settings: GanSettings,
    real: RealGradient,
    folder: Path,
    *,
    progress: GanProgress = lambda *_: None,
    tensorboard: bool = False,
    custody: Custody | None = None,
) -> Adversaries:
    """Train until the last step, from the newest checkpoint of `folder` if it has one.

    With the same settings on the same machine, a training that was interrupted anywhere ends with the same networks and losses
    as one that was not, but for noise from the operating system, of which no two trainings have the same.

    Args:
      settings: of the training.
      real: the real images' part of the discriminator's gradient; see mammo_fed.synthesis.real_gradients.
      folder: of the training; checkpoints, losses and samples go there.
      progress: called after every step with (step, steps, losses of the newest checkpoint, None before the first). The losses
        of a step that no checkpoint holds yet are told to nobody: after a crash that step is taken again, with fresh noise.
      tensorboard: whether TensorBoard's scalars go there too; needs the extra `mammo-fed[tensorboard]`.
      custody: who answers for checkpoints, where the training was paid for.

    Raises:
      InvalidSetting: If the folder's checkpoints were written under other settings, or TensorBoard is asked for and not there.
      DataError: If its newest checkpoint is damaged.
      LedgerError: If another copy of the folder went on, or its newest checkpoint is not the one that was noted.
    """
    scalars = open_scalars(folder) if tensorboard else None
    if settings.threads:
        torch.set_num_threads(settings.threads)
    adversaries = Adversaries(settings.gan, seed=settings.seed)
    identity = settings.sha256()
    losses = _resumed(folder, adversaries, settings_sha256=identity, custody=custody)
    with _Shown(folder, settings, scalars) as shown:
        shown.update(adversaries, losses)
        while adversaries.step < settings.gan.steps:
            losses.append(adversaries.advance(real))
            if adversaries.step % settings.gan.checkpoint_every == 0 or adversaries.step == settings.gan.steps:
                write_checkpoint(folder, adversaries, losses, settings_sha256=identity, custody=custody)
                shown.update(adversaries, losses)
                _forget(folder, keep=settings.gan.keep_checkpoints)
            progress(adversaries.step, settings.gan.steps, losses[shown.last - 1] if shown.last else None)
    return adversaries


def _resumed(folder: Path, adversaries: Adversaries, *, settings_sha256: str, custody: Custody | None) -> list[Losses]:
    """Bring `adversaries` to the newest checkpoint of the folder, if it has one; returns the losses until then."""
    losses: list[Losses] = []
    digest, steps = "", checkpoint_steps(folder)
    if steps:
        losses = read_checkpoint(folder, steps[-1], adversaries, settings_sha256=settings_sha256)
        digest = hashlib.sha256(checkpoint_path(folder, steps[-1]).read_bytes()).hexdigest()
    if custody is not None:
        custody.check(content_sha256=digest, step=adversaries.step)
    return losses


@dataclass
class _Shown:
    """What people look at while it trains."""

    folder: Path
    settings: GanSettings
    scalars: Scalars | None
    last: int = 0

    def __enter__(self) -> _Shown:
        return self

    def __exit__(self, *_: object) -> None:
        if self.scalars is not None:
            self.scalars.close()

    def update(self, adversaries: Adversaries, losses: list[Losses]) -> None:
        """Show what the checkpoint that was just read or written holds."""
        if not losses:
            return
        write_private(self.folder / LOSSES_NAME, _table(losses))
        _write_grid(self.folder, adversaries.average, step=adversaries.step, seed=self.settings.seed)
        if self.scalars is not None:
            self.scalars.add(losses[self.last :])
        self.last = len(losses)


def _table(losses: list[Losses]) -> bytes:
    rows = ["step,generator,fake,real"]
    rows += [f"{one.step},{one.generator!r},{one.fake!r},{'' if one.real is None else repr(one.real)}" for one in losses]
    return ("\n".join(rows) + "\n").encode()


def read_losses(folder: Path) -> list[Losses]:
    """The losses of a training, as its newest checkpoint had them."""
    with (folder / LOSSES_NAME).open(encoding="utf-8", newline="") as file:
        return [
            Losses(
                step=int(row["step"]),
                generator=float(row["generator"]),
                fake=float(row["fake"]),
                real=float(row["real"]) if row["real"] else None,
            )
            for row in csv.DictReader(file)
        ]


def _write_grid(folder: Path, average: Generator, *, step: int, seed: int) -> None:
    """Samples of a step, the same latent numbers each time: benign in the left half, malignant in the right."""
    path = folder / SAMPLES_NAME / f"step_{step:08d}.png"
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    pixels, labels = draw_images(average, count=GRID_SIDE * GRID_SIDE, seed=seed)
    buffer = io.BytesIO()
    Image.fromarray(np.round(grid(pixels, labels) * 255).astype(np.uint8)).save(buffer, format="PNG")
    write_atomically(path, buffer.getvalue())


def grid(pixels: NDArray[np.float32], labels: NDArray[np.int64]) -> NDArray[np.float32]:
    """One picture of many images, benign ones in the left half and malignant ones in the right; those left over are dropped."""
    halves = []
    for label in (0, 1):
        images = pixels[labels == label]
        across = max(1, int(np.sqrt(len(images) / 2)))
        rows = [np.concatenate(list(images[at : at + across]), axis=1) for at in range(0, len(images) - across + 1, across)]
        halves.append(np.concatenate(rows, axis=0))
    height = min(len(half) for half in halves)
    return np.concatenate([half[:height] for half in halves], axis=1)


def _forget(folder: Path, *, keep: int) -> None:
    if keep:
        for step in checkpoint_steps(folder)[:-keep]:
            checkpoint_path(folder, step).unlink(missing_ok=True)
