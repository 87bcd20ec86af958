"""Where noise and Poisson draws come from: the operating system, unless a test injects them."""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass

import numpy as np

__all__ = ["NoiseSource"]


@dataclass(frozen=True, kw_only=True)
class NoiseSource:
    """Makes one generator per release.

    Guarantee: only with `injected_seed=None` does any release have one. A generator is seeded with 256 fresh bits of the
    operating system for every call, so no state survives a fork, a restart or a round.

    Attributes:
      injected_seed: makes the draws repeatable, for tests and benchmarks on public cohorts; it voids the guarantee.
    """

    injected_seed: int | None

    def generator(self, *, site: str, round_index: int, purpose: str) -> np.random.Generator:
        """A generator for one purpose in one round at one site.

        Args:
          site: name of the site; injected noise differs between sites.
          round_index: 0 for the mean, from 1 for training.
          purpose: "noise" or "sampling"; the two never share a generator.
        """
        if self.injected_seed is None:
            return np.random.Generator(np.random.PCG64DXSM(secrets.randbits(256)))
        text = f"{self.injected_seed}/{site}/{round_index}/{purpose}"
        return np.random.Generator(np.random.PCG64DXSM(int.from_bytes(hashlib.sha256(text.encode()).digest(), "big")))
