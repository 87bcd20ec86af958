"""Where noise and Poisson samples come from: the operating system, unless a test injects them."""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mammo_fed.privacy.events import PrivacyEvent
from mammo_fed.privacy.names import NoiseMode
from mammo_fed.privacy.noise.integer_grid import Words, discrete_gaussian, noisy_release, operating_system_words

__all__ = ["ClippedSum", "Draws", "FloatDraws", "GridDraws", "NoiseSource"]


class ClippedSum(Protocol):
    """What the units of a cohort add up to in one release, each unit's contribution clipped as a whole, in both arithmetics."""

    def on_grid(self, *, clipping_norm: float) -> NDArray[np.int64]:
        """The sum in grid steps without noise, shape (dims,); see mammo_fed.privacy.noise.integer_grid.grid_sum."""

    def in_floating_point(self, *, event: PrivacyEvent, noise: np.random.Generator) -> NDArray[np.floating[Any]]:
        """The sum with Gaussian noise of standard deviation noise_multiplier * clipping_norm, shape (dims,)."""


class Draws(Protocol):
    """The randomness of one release: noise, or samples; the kind of draws decides in which arithmetic a sum is released."""

    def release(self, clipped: ClippedSum, *, event: PrivacyEvent) -> NDArray[np.floating[Any]]:
        """The sum with noise, shape (dims,), in units of the contributions.

        Guarantee: one Gaussian mechanism of sensitivity `event.clipping_norm` and noise multiplier
        `event.noise_multiplier`, or at least as private; a noise multiplier of 0 adds no noise.
        """

    def poisson_sample(self, num_units: int, *, sample_rate: float) -> NDArray[np.int64]:
        """Indices of the units that take part, ascending: each independently, with probability `sample_rate` or just below."""

    def integers(self, bound: int, *, size: int) -> NDArray[np.int64]:
        """Whole numbers in [0, bound), which no privacy rests on: views, rows of public images."""


@dataclass(frozen=True, kw_only=True)
class FloatDraws:
    """Draws in floating point.

    Guarantee: that of its generator, for real numbers: floating point has gaps that can be read (see integer_grid).

    Attributes:
      generator: source of randomness.
    """

    generator: np.random.Generator

    def release(self, clipped: ClippedSum, *, event: PrivacyEvent) -> NDArray[np.floating[Any]]:
        """See Draws."""
        return clipped.in_floating_point(event=event, noise=self.generator)

    def poisson_sample(self, num_units: int, *, sample_rate: float) -> NDArray[np.int64]:
        """See Draws."""
        if sample_rate >= 1:
            return np.arange(num_units)
        return np.flatnonzero(self.generator.random(num_units) < sample_rate)

    def integers(self, bound: int, *, size: int) -> NDArray[np.int64]:
        """See Draws."""
        return self.generator.integers(bound, size=size)


@dataclass(frozen=True, kw_only=True)
class GridDraws:
    """Draws from random words: discrete noise on sums on the grid.

    Guarantee: that of its words: with the operating system's, no two draws of any process ever share randomness.

    Attributes:
      words: source of randomness; see mammo_fed.privacy.noise.integer_grid.
    """

    words: Words

    def release(self, clipped: ClippedSum, *, event: PrivacyEvent) -> NDArray[np.floating[Any]]:
        """See Draws, and mammo_fed.privacy.noise.integer_grid.noisy_release."""
        return noisy_release(clipped.on_grid(clipping_norm=event.clipping_norm), event=event, words=self.words)

    def gaussian(self, count: int, *, sigma: int) -> NDArray[np.int64]:
        """Discrete Gaussian samples; see mammo_fed.privacy.noise.integer_grid.discrete_gaussian."""
        return discrete_gaussian(count, sigma=sigma, words=self.words)

    def poisson_sample(self, num_units: int, *, sample_rate: float) -> NDArray[np.int64]:
        """See Draws; each with probability floor(sample_rate * 2^64) / 2^64: never above `sample_rate`."""
        if sample_rate >= 1:
            return np.arange(num_units)
        return np.flatnonzero(self.words(num_units) < np.uint64(int(sample_rate * 2.0**64)))

    def integers(self, bound: int, *, size: int) -> NDArray[np.int64]:
        """See Draws; uniform up to bound / 2^64."""
        return (self.words(size) % np.uint64(bound)).astype(np.int64)


@dataclass(frozen=True, kw_only=True)
class NoiseSource:
    """Makes the draws of one release.

    Guarantee: only with `injected_seed=None` does any release have one. Draws on the grid take every bit from the operating
    system and keep none; a generator is seeded with 256 fresh bits of it for every call. So no state survives a fork, a restart
    or a round.

    Attributes:
      injected_seed: makes the draws repeatable, for tests and benchmarks on public cohorts; it voids the guarantee.
    """

    injected_seed: int | None

    def draws(self, mode: NoiseMode, *, site: str, round_index: int, purpose: str) -> Draws:
        """The draws for one purpose in one round at one site, as `mode` says.

        Args:
          mode: on the grid or in floating point.
          site: name of the site; injected noise differs between sites.
          round_index: 0 for the mean, from 1 for training.
          purpose: "noise" or "sampling"; the two never share their randomness.
        """
        if mode == "float":
            return FloatDraws(generator=np.random.Generator(self._bits(site, round_index, purpose)))
        return self.on_grid(site=site, round_index=round_index, purpose=purpose)

    def on_grid(self, *, site: str, round_index: int, purpose: str) -> GridDraws:
        """Draws on the grid; see `draws`."""
        if self.injected_seed is None:
            return GridDraws(words=operating_system_words)
        return GridDraws(words=self._bits(site, round_index, purpose).random_raw)

    def _bits(self, site: str, round_index: int, purpose: str) -> np.random.PCG64DXSM:
        if self.injected_seed is None:
            return np.random.PCG64DXSM(secrets.randbits(256))
        text = f"{self.injected_seed}/{site}/{round_index}/{purpose}"
        return np.random.PCG64DXSM(int.from_bytes(hashlib.sha256(text.encode()).digest(), "big"))
