"""The shared synthetic set."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Final, Literal

from mammo_fed.errors import InvalidSetting
from mammo_fed.settings.checks import Auto, at_least, check_drawn

__all__ = ["SynthesisSettings"]

_HASH: Final = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class SynthesisSettings:
    """The centrally shared synthetic set and what it is used for.

    Attributes:
      source: "phantom" (procedural), "gan" (a synthetic set from `mammo-fed gan`, or the clone's GAN images), "folder" (such a
        set, or images named *_malignant / *_benign), or "auto": gan for data=mammo_dp where the clone has them, else phantom.
      root: the set's folder, or for "gan" a clone.
      sha256: the hash that a synthetic set must have, 64 hex digits; None takes any that is whole.
      use: of "whiten" (fits the public statistics), "pretrain" (training starts from it) and "augment" (sites train on it
        beside their patients). Whitening is always needed.
      count: number of phantom images.
      pretrain_scope: "head", or "network" (backbone and head together, as the paper's pretraining row).
      keep_head: whether a network's pretraining hands on its head; otherwise the head starts afresh.
      epochs, batch_size, learning_rate, weight_decay, label_smoothing: of the network's pretraining.
      augment_weight: of the synthetic gradient beside the patients', which gets the noise alone.
      sampler: "separate" draws a synthetic batch beside the patients'; "mixed" is the paper's: synthetic images stand among the
        patients', are drawn, clipped and noised with them.
    """

    source: Literal["phantom", "gan", "folder"] | Auto
    root: str | None
    sha256: str | None
    use: tuple[Literal["whiten", "pretrain", "augment"], ...]
    count: int
    pretrain_scope: Literal["head", "network"]
    keep_head: bool
    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    label_smoothing: float
    augment_weight: float
    sampler: Literal["separate", "mixed"]

    def __post_init__(self) -> None:
        if self.sha256 is not None and not _HASH.fullmatch(self.sha256):
            raise InvalidSetting(f"synthesis.sha256={self.sha256} must be 64 hex digits; `mammo-fed gan check SET` prints it")
        check_drawn("synthesis.count", self.count, 16)
        at_least("synthesis.epochs", self.epochs, 1)
        at_least("synthesis.batch_size", self.batch_size, 2)
        for name in ("learning_rate", "weight_decay", "augment_weight"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise InvalidSetting(f"synthesis.{name}={getattr(self, name)} must be a finite number, at least 0")
        if not 0 <= self.label_smoothing < 1:
            raise InvalidSetting(f"synthesis.label_smoothing={self.label_smoothing} must be in [0, 1)")
        if "whiten" not in self.use:
            raise InvalidSetting(
                f"synthesis.use={list(self.use)} must contain whiten: features need public statistics, and they are never "
                "fitted on patients"
            )
        if self.source == "folder" and not self.root:
            raise InvalidSetting(
                "synthesis.source=folder needs synthesis.root=FOLDER: a set from `mammo-fed gan sample`, or "
                "*_malignant.png and *_benign.png"
            )
