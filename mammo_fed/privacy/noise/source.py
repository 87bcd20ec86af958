"""Where noise and Poisson draws come from: the operating system, unless a test injects them."""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from mammo_fed.privacy.noise.discrete_gaussian import operating_system_words
from mammo_fed.privacy.noise.integer_grid import SecureDraws

__all__ = ["Draws", "NoiseMode", "NoiseSource"]

NoiseMode: TypeAlias = Literal["secure", "float"]
Draws: TypeAlias = np.random.Generator | SecureDraws
"""What a release takes its noise from: in floating point, or on the grid."""


@dataclass(frozen=True, kw_only=True)
class NoiseSource:
    """Makes the draws of one release.

    Guarantee: only with `injected_seed=None` does any release have one. Secure draws take every bit from the operating system
    and keep none; a generator is seeded with 256 fresh bits of it for every call. So no state survives a fork, a restart or a
    round.

    Attributes:
      injected_seed: makes the draws repeatable, for tests and benchmarks on public cohorts; it voids the guarantee.
    """

    injected_seed: int | None

    def draws(self, mode: NoiseMode, *, site: str, round_index: int, purpose: str) -> Draws:
        """Secure draws or a generator, as `mode` says, for one purpose in one round at one site; see `generator`."""
        if mode == "float":
            return self.generator(site=site, round_index=round_index, purpose=purpose)
        return self.secure(site=site, round_index=round_index, purpose=purpose)

    def secure(self, *, site: str, round_index: int, purpose: str) -> SecureDraws:
        """Secure draws for one purpose in one round at one site; see `generator`."""
        if self.injected_seed is None:
            return SecureDraws(words=operating_system_words)
        return SecureDraws(words=self._bits(site, round_index, purpose).random_raw)

    def generator(self, *, site: str, round_index: int, purpose: str) -> np.random.Generator:
        """A generator for one purpose in one round at one site.

        Args:
          site: name of the site; injected noise differs between sites.
          round_index: 0 for the mean, from 1 for training.
          purpose: "noise" or "sampling"; the two never share a generator.
        """
        return np.random.Generator(self._bits(site, round_index, purpose))

    def _bits(self, site: str, round_index: int, purpose: str) -> np.random.PCG64DXSM:
        if self.injected_seed is None:
            return np.random.PCG64DXSM(secrets.randbits(256))
        text = f"{self.injected_seed}/{site}/{round_index}/{purpose}"
        return np.random.PCG64DXSM(int.from_bytes(hashlib.sha256(text.encode()).digest(), "big"))
