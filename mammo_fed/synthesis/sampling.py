"""Images from a trained generator."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from mammo_fed.errors import InvalidSetting
from mammo_fed.synthesis.adversarial import public_generator
from mammo_fed.synthesis.mcgan import Generator, from_range

__all__ = ["draw_images", "weights_sha256"]

AT_A_TIME: Final = 64
LEVELS: Final = 255


def draw_images(
    generator: Generator, *, count: int, seed: int, progress: Callable[[int, int], None] = lambda *_: None
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Images, as many of each class, the same for the same generator and seed on the same machine.

    Args:
      generator: in any mode; it is used in evaluation mode and left in its own.
      count: number of images, >= 2.
      seed: of the latent numbers; public.
      progress: called with (images done, images in all).

    Returns:
      float32 in [0, 1], whole multiples of 1/255, shape (count, side, side); labels int64, 0 and 1 in turn.

    Raises:
      InvalidSetting: If `count` is below 2.
    """
    if count < 2:
        raise InvalidSetting(f"count={count} must be at least 2: one image of each class")
    was_training = generator.training
    device = next(generator.parameters()).device
    generator.eval()
    # Latent numbers by image, so that the first images are the same however many are drawn.
    labels = torch.arange(count) % 2
    drawn = []
    with torch.inference_mode():
        for start in range(0, count, AT_A_TIME):
            latent = torch.randn(AT_A_TIME, generator.spec.latent, generator=public_generator(seed, start, "sample"))
            some = labels[start : start + AT_A_TIME]
            drawn.append(from_range(generator(latent[: len(some)].to(device), some.to(device)))[:, 0].cpu())
            progress(start + len(some), count)
    generator.train(was_training)
    pixels = torch.cat(drawn).float().numpy()
    # As they are stored: what was evaluated is what is shared.
    return (np.round(pixels * LEVELS) / LEVELS).astype(np.float32), labels.numpy().astype(np.int64)


def weights_sha256(generator: Generator) -> str:
    """Hash of a generator's weights and buffers by name, 64 hex digits."""
    digest = hashlib.sha256()
    for name, value in sorted(generator.state_dict().items()):
        digest.update(name.encode() + b"\0" + str(tuple(value.shape)).encode() + b"\0")
        digest.update(np.ascontiguousarray(value.detach().cpu().numpy()).tobytes())
    return digest.hexdigest()
