"""What the classifier is."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from mammo_fed.errors import InvalidSetting
from mammo_fed.settings.checks import Auto, at_least

__all__ = ["ModelSettings"]

# Beyond it float32 would round away everything but the bias; a site holds every declaration to it.
LARGEST_BIAS_SCALE = 10.0


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """The classifier: frozen backbones, their descriptors, public whitening, and the head that is trained.

    Attributes:
      backbone: one or more timm architectures, side by side.
      weights, weights_file: where their weights come from; see mammo_fed.models.backbones.
      tap, input_size, flips: see mammo_fed.models.features.
      taps, block_weights: a tap and a weight in the whitening for each backbone; empty: `tap` for all, and all alike.
      pooling, window, window_down: see mammo_fed.models.pooling; window=inf counts all positions alike.
      components, whitening_power: see mammo_fed.models.whitening; components=0 leaves descriptors
        as they are, "auto" takes fewer the more noise there is.
      norm: "unit" (features are brought to norm 1) or "none".
      head, hidden, bias_scale: see mammo_fed.models.heads.
      scope: what private training changes; the head.
    """

    backbone: tuple[str, ...]
    weights: Literal["wheel", "timm", "file", "none"]
    weights_file: str | None
    tap: int | None
    taps: tuple[int, ...]
    block_weights: tuple[float, ...]
    pooling: Literal["mean", "mean_std", "covariance", "sqrt_covariance"]
    window: float
    window_down: float
    input_size: int
    flips: Literal["none", "average", "dihedral", "random"]
    components: int | Auto
    whitening_power: float
    norm: Literal["unit", "none"]
    head: Literal["linear", "mlp"]
    hidden: int
    bias_scale: float
    scope: Literal["head"]

    def __post_init__(self) -> None:
        if self.components != "auto":
            at_least("model.components", self.components, 0)
        for name in ("taps", "block_weights"):
            if getattr(self, name) and len(getattr(self, name)) != len(self.backbone):
                raise InvalidSetting(f"model.{name} must have one entry for each of {list(self.backbone)}, or be empty")
        if not all(math.isfinite(weight) and weight > 0 for weight in self.block_weights):
            raise InvalidSetting(f"model.block_weights={list(self.block_weights)} must be finite and above 0")
        if self.components == 0 and self.pooling.endswith("covariance"):
            raise InvalidSetting("model.components=0 keeps all descriptors: with model.pooling=covariance give 1 or more")
        at_least("model.hidden", self.hidden, 1)
        if not 0 <= self.whitening_power <= 1:
            raise InvalidSetting(f"model.whitening_power={self.whitening_power} must be in [0, 1]")
        if not 0 <= self.bias_scale <= LARGEST_BIAS_SCALE:
            raise InvalidSetting(f"model.bias_scale={self.bias_scale} must be in [0, {LARGEST_BIAS_SCALE:g}]")
