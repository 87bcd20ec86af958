"""Frozen settings, built once from a composed configuration, checked as they are built, with canonical JSON and a hash."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mammo_fed.common.serialization import build, canonical_json, plain
from mammo_fed.errors import InvalidSetting
from mammo_fed.privacy.events import full_batch
from mammo_fed.settings.central import CentralSettings, SecureSettings
from mammo_fed.settings.checks import check_seed
from mammo_fed.settings.data import DataSettings
from mammo_fed.settings.engine import EngineSettings
from mammo_fed.settings.federation import FederationSettings
from mammo_fed.settings.model import ModelSettings
from mammo_fed.settings.privacy import PrivacySettings
from mammo_fed.settings.synthesis import SynthesisSettings

__all__ = [
    "CentralSettings",
    "DataSettings",
    "EngineSettings",
    "FederationSettings",
    "ModelSettings",
    "PrivacySettings",
    "SecureSettings",
    "Settings",
    "SynthesisSettings",
]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything a run is made from.

    Attributes:
      seed: partition, initialisation and public steps; never the noise.

    >>> from mammo_fed import compose_settings
    >>> settings = compose_settings(["seed=3"])
    >>> Settings.from_json(settings.to_json()) == settings, settings.seed
    (True, 3)
    """

    seed: int
    data: DataSettings
    model: ModelSettings
    privacy: PrivacySettings
    synthesis: SynthesisSettings
    federation: FederationSettings
    engine: EngineSettings

    def __post_init__(self) -> None:
        check_seed("seed", self.seed)
        if full_batch(self.privacy.mechanism) and self.model.head != "linear":
            raise InvalidSetting(
                f"model.head={self.model.head} needs privacy=dp_sgd: the closed form knows the linear head only"
            )
        if full_batch(self.privacy.mechanism) and (self.model.flips == "random" or "augment" in self.synthesis.use):
            raise InvalidSetting(
                "model.flips=random and synthesis.use=[augment] belong to steps that sample: choose privacy=dp_sgd"
            )
        if self.model.flips == "random" and self.privacy.mean_fraction > 0:
            raise InvalidSetting(
                "model.flips=random has no one feature for each image to take a mean of: set privacy.mean_fraction=0"
            )
        if self.federation.secure.use == "shared_noise":
            self._check_shared_noise()
        if "pretrain" in self.synthesis.use and self.synthesis.pretrain_scope == "network":
            self._check_network()

    def _check_shared_noise(self) -> None:
        """A share of the noise hides one sum of whole numbers, and nothing that a site computes from it."""
        privacy = self.privacy
        if privacy.mechanism != "dp_gd" or privacy.noise != "secure" or self.federation.keep_optimizer:
            raise InvalidSetting(
                "federation.secure.use=shared_noise needs privacy.mechanism=dp_gd and privacy.noise=secure, not "
                f"{privacy.mechanism} and {privacy.noise}: sites share the noise on sums of clipped gradients, on the grid"
            )

    def _check_network(self) -> None:
        model = self.model
        plain_features = (model.pooling, model.components, model.norm) == ("mean", 0, "none")
        if len(model.backbone) != 1 or not plain_features:
            raise InvalidSetting(
                "synthesis.pretrain_scope=network trains a head on one network's pooled output: choose model=pooled (one "
                "backbone, pooling=mean, components=0, norm=none)"
            )

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Settings:
        """Build and check settings from plain nested values (a composed Hydra configuration, or parsed JSON).

        Raises:
          InvalidSetting: If a key is missing or unknown, or a value has the wrong type or is out of its range.
        """
        return build(cls, values, path="")

    def to_json(self) -> str:
        """Canonical JSON (sorted keys); infinity is the string "inf"."""
        return canonical_json(self)

    @classmethod
    def from_json(cls, text: str) -> Settings:
        """Inverse of `to_json`."""
        return cls.from_mapping(json.loads(text))

    def sha256(self) -> str:
        """Hash of all that can change a result: everything but the engine."""
        values = plain(self)
        del values["engine"]
        return hashlib.sha256(canonical_json(values).encode()).hexdigest()
