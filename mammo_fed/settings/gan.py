"""What a generator is made from."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from mammo_fed.common.serialization import build, canonical_json, plain
from mammo_fed.errors import InvalidSetting
from mammo_fed.privacy.events import Unit
from mammo_fed.privacy.names import NoiseMode, OwnAccountant
from mammo_fed.settings.checks import at_least, check_delta, check_seed
from mammo_fed.settings.data import DataSettings, PartitionRule

__all__ = ["DonorSettings", "GanPrivacySettings", "GanSettings", "McganSettings"]

LARGEST_SIZE = 256


@dataclass(frozen=True, kw_only=True)
class McganSettings:
    """The networks and how they are trained against each other.

    Attributes:
      image_size: side of the generated images in pixels: 32, 64, 128 or 256; patches are brought to it first.
      channels: base channels; 64 is the paper's, 16 is for processors without a GPU.
      latent, embedding: numbers behind an image, and behind a class.
      upsampling: "transposed" (the paper's) or "resize" (no checkerboard).
      generator_norm: "batch", "instance" or "none"; the generator never sees a patient's image.
      discriminator_norm: "instance" or "none".
      spectral: spectral normalisation of the discriminator.
      projection: whether the class also weighs the discriminator's last map (arXiv:1802.05637).
      loss: "bce", "lsgan" or "wgan_gp".
      smoothing: of the real target under bce and lsgan: real images aim at 1 - smoothing.
      gradient_penalty: weight under wgan_gp.
      mismatch: weight of real images shown with the wrong class as not real, >= 0: what makes the class tell.
      augment: of "brightness", "contrast", "translation", "cutout", for real and generated images alike.
      mirror: whether real images are mirrored at random.
      generator_rate, discriminator_rate: of Adam.
      beta1, beta2: of Adam.
      batch_size: images of one discriminator step (expected number under privacy), and generated ones beside them.
      steps: of the generator.
      discriminator_steps: for each of those.
      precision: "float32", or "bfloat16" for processors that compute in it (AMX): twice as fast there, slow elsewhere.
      ema: of the generator's weights, in [0, 1); what is released is this average.
      checkpoint_every: steps between checkpoints; nothing is shown that no checkpoint holds.
      keep_checkpoints: how many are kept, newest first; 0 keeps all.
    """

    image_size: int
    channels: int
    latent: int
    embedding: int
    upsampling: Literal["transposed", "resize"]
    generator_norm: Literal["batch", "instance", "none"]
    discriminator_norm: Literal["instance", "none"]
    spectral: bool
    projection: bool
    loss: Literal["bce", "lsgan", "wgan_gp"]
    smoothing: float
    gradient_penalty: float
    mismatch: float
    augment: tuple[Literal["brightness", "contrast", "translation", "cutout"], ...]
    mirror: bool
    generator_rate: float
    discriminator_rate: float
    beta1: float
    beta2: float
    batch_size: int
    steps: int
    discriminator_steps: int
    precision: Literal["float32", "bfloat16"]
    ema: float
    checkpoint_every: int
    keep_checkpoints: int

    def __post_init__(self) -> None:
        for name in ("batch_size", "steps", "discriminator_steps", "checkpoint_every"):
            at_least(f"gan.{name}", getattr(self, name), 2 if name == "batch_size" else 1)
        at_least("gan.keep_checkpoints", self.keep_checkpoints, 0)
        for name in ("gradient_penalty", "mismatch"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise InvalidSetting(f"gan.{name}={getattr(self, name)} must be a finite number, at least 0")
        for name in ("generator_rate", "discriminator_rate"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise InvalidSetting(f"gan.{name}={getattr(self, name)} must be a finite number above 0")
        for name in ("beta1", "beta2", "ema", "smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise InvalidSetting(f"gan.{name}={getattr(self, name)} must be in [0, 1)")


@dataclass(frozen=True, kw_only=True)
class DonorSettings:
    """Whose patients the generator learns from: site `index` of a simulated federation, or everybody.

    Attributes:
      name: what the set's provenance calls the donor; public.
      num_sites, index: the pool is split over so many sites, and the donor is this one, from 0.
      partition, partition_alpha: how it is split.
    """

    name: str
    num_sites: int
    index: int
    partition: PartitionRule
    partition_alpha: float

    def __post_init__(self) -> None:
        at_least("donor.num_sites", self.num_sites, 1)
        if not 0 <= self.index < self.num_sites:
            raise InvalidSetting(f"donor.index={self.index} must be from 0 to {self.num_sites - 1}; check donor.num_sites")
        if not self.name.strip() or not self.name.isprintable():
            raise InvalidSetting(f"donor.name={self.name!r} must be a printable name")


@dataclass(frozen=True, kw_only=True)
class GanPrivacySettings:
    """What the training promises its patients.

    Attributes:
      unit: whose data is protected.
      target_epsilon: of the whole training, > 0; infinity trains without noise and without a guarantee, on public cohorts only.
      delta: in (0, 0.1).
      accountant: "pld", "rdp" or "prv".
      clipping_norm: largest gradient norm of one unit at the discriminator.
      max_images_per_patient: further images of a patient are left out; public.
      noise: "secure" (on the public grid) or "float".
      noise_seed: injects noise and draws for tests on public cohorts; voids the guarantee.
    """

    unit: Unit
    target_epsilon: float
    delta: float
    accountant: OwnAccountant
    clipping_norm: float
    max_images_per_patient: int
    noise: NoiseMode
    noise_seed: int | None

    def __post_init__(self) -> None:
        if not self.target_epsilon > 0:
            raise InvalidSetting(f"privacy.target_epsilon={self.target_epsilon} must be above 0 (inf trains without privacy)")
        check_delta("privacy.delta", self.delta)
        if not (math.isfinite(self.clipping_norm) and self.clipping_norm > 0):
            raise InvalidSetting(f"privacy.clipping_norm={self.clipping_norm} must be a finite number above 0")
        at_least("privacy.max_images_per_patient", self.max_images_per_patient, 1)
        check_seed("privacy.noise_seed", self.noise_seed)

    @property
    def private(self) -> bool:
        """Whether there is a guarantee to keep."""
        return math.isfinite(self.target_epsilon)


@dataclass(frozen=True, kw_only=True)
class GanSettings:
    """Everything a generator is made from.

    Attributes:
      seed: initial weights, latent numbers, augmentation, and the order of images without privacy; never noise.
      threads: CPU threads; 0 leaves it to PyTorch. Other numbers of threads round differently.
      cache: folder of drawn phantoms; null is the user's cache folder.
    """

    seed: int
    threads: int
    cache: str | None
    data: DataSettings
    donor: DonorSettings
    gan: McganSettings
    privacy: GanPrivacySettings

    def __post_init__(self) -> None:
        check_seed("seed", self.seed)
        at_least("threads", self.threads, 0)

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> GanSettings:
        """Build and check settings from plain nested values.

        Raises:
          InvalidSetting: If a key is missing or unknown, or a value has the wrong type or is out of its range.
        """
        return build(cls, values, path="")

    def sha256(self) -> str:
        """Hash of all that can change the generator."""
        values = plain(self)
        for name in ("cache", "threads"):
            del values[name]
        # Where a cohort lies is the site's own matter; which it is, a training checks by its fingerprint.
        del values["data"]["root"]
        for name in ("checkpoint_every", "keep_checkpoints"):
            del values["gan"][name]
        return hashlib.sha256(canonical_json(values).encode()).hexdigest()
