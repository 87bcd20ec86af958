"""Frozen settings, built once from a composed configuration, checked as they are built, with canonical JSON and a hash."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from mammo_fed.errors import InvalidSetting
from mammo_fed.typed import build, canonical_json, plain

__all__ = [
    "DataSettings",
    "EngineSettings",
    "FederationSettings",
    "ModelSettings",
    "PrivacySettings",
    "Settings",
    "SynthesisSettings",
]

Auto = Literal["auto"]
# Beyond it float32 would round away everything but the bias; a site holds every declaration to it.
LARGEST_BIAS_SCALE = 10.0


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """Which cohorts, and how large the phantom ones are.

    Attributes:
      source: "phantom", "mammo_dp" (a clone of the paper's repository) or "csv" (a table and its images).
      train: whom the sites train on: "train" (the patients of that split) or "synthetic" (the clone's GAN images, each as a
        patient of its own: the paper's synthetic-only rows).
      lesion_down: how far below the middle of a patch its lesion sits, in halves of the side; public.
      folds, fold: cross-validation: train and val together are cut into `folds` parts by patient, `fold` (from 0) is the val
        set and the rest is trained on; null leaves the splits as they are. The cut is the same for every seed.
      root: folder of the clone, or the CSV table; unused by the phantom.
      public: whether the patients' data is declared public; decides what a record may say of them.
      publish_metrics: whether a run may compute and show metrics of evaluation patients: a release outside epsilon.
      images_train, images_test, images_external: sizes of the phantom's pooled sets.
      d_prime: separation of the phantom's classes.
      image_size: side of phantom patches in pixels.
    """

    source: Literal["phantom", "mammo_dp", "csv"]
    root: str | None
    train: Literal["train", "synthetic"]
    lesion_down: float
    folds: int
    fold: int | None
    public: bool
    publish_metrics: bool
    images_train: int
    images_test: int
    images_external: int
    d_prime: float
    image_size: int

    def __post_init__(self) -> None:
        if not (math.isfinite(self.d_prime) and self.d_prime >= 0):
            raise InvalidSetting(f"data.d_prime={self.d_prime} must be a finite number, at least 0")
        for name in ("images_train", "images_test", "images_external"):
            _at_least(f"data.{name}", getattr(self, name), 8)
        _at_least("data.image_size", self.image_size, 32)
        _at_least("data.folds", self.folds, 2)
        if not -1 <= self.lesion_down <= 1:
            raise InvalidSetting(f"data.lesion_down={self.lesion_down} must be in [-1, 1]")
        if self.fold is not None and not 0 <= self.fold < self.folds:
            raise InvalidSetting(f"data.fold={self.fold} must be from 0 to {self.folds - 1}, or null for no cross-validation")
        if self.fold is not None and self.source == "phantom":
            raise InvalidSetting(
                "data.fold needs data=mammo_dp or data=csv: the phantom has no validation patients to exchange"
            )
        if self.train == "synthetic" and (self.source != "mammo_dp" or self.fold is not None):
            raise InvalidSetting(
                "data.train=synthetic trains on a clone's GAN images: it needs data=mammo_dp and data.fold=null"
            )


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
            _at_least("model.components", self.components, 0)
        for name in ("taps", "block_weights"):
            if getattr(self, name) and len(getattr(self, name)) != len(self.backbone):
                raise InvalidSetting(f"model.{name} must have one entry for each of {list(self.backbone)}, or be empty")
        if not all(math.isfinite(weight) and weight > 0 for weight in self.block_weights):
            raise InvalidSetting(f"model.block_weights={list(self.block_weights)} must be finite and above 0")
        if self.components == 0 and self.pooling.endswith("covariance"):
            raise InvalidSetting("model.components=0 keeps all descriptors: with model.pooling=covariance give 1 or more")
        _at_least("model.hidden", self.hidden, 1)
        if not 0 <= self.whitening_power <= 1:
            raise InvalidSetting(f"model.whitening_power={self.whitening_power} must be in [0, 1]")
        if not 0 <= self.bias_scale <= LARGEST_BIAS_SCALE:
            raise InvalidSetting(f"model.bias_scale={self.bias_scale} must be in [0, {LARGEST_BIAS_SCALE:g}]")


@dataclass(frozen=True, kw_only=True)
class PrivacySettings:
    """What is promised and the mechanism that keeps the promise; "auto" values are filled in by mammo_fed.recipe.

    Attributes:
      unit: whose data is protected.
      target_epsilon: of the whole run at every site, > 0; infinity trains without noise and without a guarantee.
      delta: in (0, 1).
      accountant: "pld" (default), "rdp" (the paper's) or "prv".
      mechanism: "dp_gd" (full batch, closed form) or "dp_sgd" (Poisson sampling, Opacus).
      clipping_norm: largest gradient norm of one unit.
      mean_clipping_norm: largest norm of one unit's sum of features in the private mean.
      mean_fraction: part of the budget (of mu squared) spent on the private mean, in [0, 1).
      batch_size: expected images a step at a site under dp_sgd.
      learning_rate, weight_decay, optimizer, label_smoothing: of the local steps.
      max_images_per_patient: enforced at the site; public.
      ledger: "run" (a fresh one in the run folder) or a folder whose ledgers carry over all runs.
      noise: "secure" (units rounded to a public grid, integer sums, discrete Gaussian noise) or "float".
      noise_seed: injects the noise for tests and benchmarks on public cohorts; voids the guarantee.
    """

    unit: Literal["patient", "image"]
    target_epsilon: float
    delta: float
    accountant: Literal["pld", "rdp", "prv"]
    mechanism: Literal["dp_gd", "dp_sgd"]
    clipping_norm: float | Auto
    mean_clipping_norm: float | Auto
    mean_fraction: float
    batch_size: int
    learning_rate: float | Auto
    weight_decay: float
    optimizer: Literal["sgd", "adamw"]
    label_smoothing: float
    max_images_per_patient: int
    ledger: str
    noise: Literal["secure", "float"]
    noise_seed: int | None

    def __post_init__(self) -> None:
        if not self.target_epsilon > 0:
            raise InvalidSetting(
                f"privacy.target_epsilon={self.target_epsilon} must be above 0 (inf trains without privacy); 1 to 10 is usual"
            )
        if not 0 < self.delta < 1:
            raise InvalidSetting(
                f"privacy.delta={self.delta} must be in (0, 1); well below 1 / patients is usual, such as 1e-4"
            )
        for name in ("clipping_norm", "mean_clipping_norm", "learning_rate"):
            value = getattr(self, name)
            if value != "auto" and not (math.isfinite(value) and value > 0):
                raise InvalidSetting(f"privacy.{name}={value} must be a finite number above 0, or auto")
        if not 0 <= self.mean_fraction < 1:
            raise InvalidSetting(f"privacy.mean_fraction={self.mean_fraction} must be in [0, 1)")
        if not 0 <= self.label_smoothing < 1:
            raise InvalidSetting(f"privacy.label_smoothing={self.label_smoothing} must be in [0, 1)")
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            raise InvalidSetting(f"privacy.weight_decay={self.weight_decay} must be a finite number, at least 0")
        _at_least("privacy.batch_size", self.batch_size, 1)
        _at_least("privacy.max_images_per_patient", self.max_images_per_patient, 1)
        self._check_mechanism()

    def _check_mechanism(self) -> None:
        if self.mechanism == "dp_gd" and (self.label_smoothing > 0 or self.weight_decay > 0 or self.optimizer != "sgd"):
            raise InvalidSetting(
                "privacy.mechanism=dp_gd takes plain gradient steps: set privacy.optimizer=sgd, weight_decay=0 and "
                "label_smoothing=0, or choose privacy=dp_sgd"
            )


@dataclass(frozen=True, kw_only=True)
class SynthesisSettings:
    """The centrally shared synthetic set and what it is used for.

    Attributes:
      source: "phantom" (procedural), "gan" (the clone's GAN images), "folder" (images named *_malignant / *_benign), or "auto":
        gan for data=mammo_dp where the clone has them, else phantom.
      root: the folder of source="folder".
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
        _at_least("synthesis.count", self.count, 16)
        _at_least("synthesis.epochs", self.epochs, 1)
        _at_least("synthesis.batch_size", self.batch_size, 2)
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
            raise InvalidSetting("synthesis.source=folder needs synthesis.root=FOLDER with *_malignant.png and *_benign.png")


@dataclass(frozen=True, kw_only=True)
class FederationSettings:
    """Sites, rounds and how the server adds up.

    Attributes:
      num_sites: hospitals in a simulation; 1 is the centralized configuration.
      partition, partition_alpha: how patients are split over simulated hospitals.
      rounds, local_steps: communication rounds and local steps in each; no rounds release the public start, and no site is
        asked for anything.
      keep_optimizer: a site's local optimizer goes on from round to round, as in one long training.
      release: which model is the result: "average" of the last rounds (see `tail`), or "best_val", the round with the highest
        validation AUPRC (benign), which epsilon does not cover.
      strategy: Flower's strategy by name.
      fraction: part of the sites that trains in a round, in (0, 1].
      min_nodes: sites to wait for, >= 1; "auto" is all of them.
      tail: part of the last rounds whose models are averaged, in (0, 1].
      proximal_mu, server_learning_rate, beta_1, beta_2, tau, trim, num_malicious: the strategies' own parameters.
      round_timeout: seconds to wait for replies.
      site_budgets: each simulated site's own maximum epsilon; empty means the target everywhere.
    """

    num_sites: int
    partition: Literal["uniform", "size", "label"]
    partition_alpha: float
    rounds: int | Auto
    local_steps: int | Auto
    keep_optimizer: bool
    release: Literal["average", "best_val"]
    strategy: Literal["FedAvg", "FedProx", "FedAdam", "FedYogi", "FedMedian", "FedTrimmedAvg", "Krum"]
    fraction: float
    min_nodes: int | Auto
    tail: float
    proximal_mu: float
    server_learning_rate: float
    beta_1: float
    beta_2: float
    tau: float
    trim: float
    num_malicious: int
    round_timeout: float
    site_budgets: tuple[float, ...]

    def __post_init__(self) -> None:
        _at_least("federation.num_sites", self.num_sites, 1)
        for name, least in (("rounds", 0), ("local_steps", 1), ("min_nodes", 1)):
            if getattr(self, name) != "auto":
                _at_least(f"federation.{name}", getattr(self, name), least)
        for name in ("fraction", "tail"):
            if not 0 < getattr(self, name) <= 1:
                raise InvalidSetting(f"federation.{name}={getattr(self, name)} must be in (0, 1]")
        for name in ("server_learning_rate", "tau", "round_timeout", "partition_alpha"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise InvalidSetting(f"federation.{name}={getattr(self, name)} must be a finite number above 0")
        for name in ("beta_1", "beta_2"):
            if not 0 <= getattr(self, name) < 1:
                raise InvalidSetting(f"federation.{name}={getattr(self, name)} must be in [0, 1)")
        if not (math.isfinite(self.proximal_mu) and self.proximal_mu >= 0):
            raise InvalidSetting(f"federation.proximal_mu={self.proximal_mu} must be a finite number, at least 0")
        _at_least("federation.num_malicious", self.num_malicious, 0)
        if self.min_nodes != "auto" and self.min_nodes > self.num_sites:
            raise InvalidSetting(f"federation.min_nodes={self.min_nodes} must be at most federation.num_sites={self.num_sites}")
        if not 0 <= self.trim < 0.5:
            raise InvalidSetting(f"federation.trim={self.trim} must be in [0, 0.5)")
        if self.site_budgets and len(self.site_budgets) != self.num_sites:
            raise InvalidSetting(
                f"federation.site_budgets={list(self.site_budgets)} must name one maximum epsilon for each of the "
                f"{self.num_sites} sites, or none"
            )
        if any(not budget > 0 for budget in self.site_budgets):
            raise InvalidSetting(f"federation.site_budgets={list(self.site_budgets)} must be above 0")


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """What only changes speed and place, never a result.

    Attributes:
      name: "in_process" or "ray".
      workers: sites that run at a time, >= 1.
      wire: send every message through Flower's real serialisation, in process.
      threads: CPU threads for the networks; 0 leaves it to PyTorch.
      cache: folder of cached features; null is the user's cache folder.
    """

    name: Literal["in_process", "ray"]
    workers: int
    wire: bool
    threads: int
    cache: str | None

    def __post_init__(self) -> None:
        _at_least("engine.workers", self.workers, 1)
        _at_least("engine.threads", self.threads, 0)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything a run is made from.

    Attributes:
      seed: partition, initialisation and public steps; never the noise.
    """

    seed: int
    data: DataSettings
    model: ModelSettings
    privacy: PrivacySettings
    synthesis: SynthesisSettings
    federation: FederationSettings
    engine: EngineSettings

    def __post_init__(self) -> None:
        _at_least("seed", self.seed, 0)
        if self.privacy.mechanism == "dp_gd" and self.model.head != "linear":
            raise InvalidSetting(
                f"model.head={self.model.head} needs privacy=dp_sgd: the closed form knows the linear head only"
            )
        if self.privacy.mechanism == "dp_gd" and (self.model.flips == "random" or "augment" in self.synthesis.use):
            raise InvalidSetting(
                "model.flips=random and synthesis.use=[augment] belong to steps that sample: choose privacy=dp_sgd"
            )
        if self.model.flips == "random" and self.privacy.mean_fraction > 0:
            raise InvalidSetting(
                "model.flips=random has no one feature for each image to take a mean of: set privacy.mean_fraction=0"
            )
        if "pretrain" in self.synthesis.use and self.synthesis.pretrain_scope == "network":
            self._check_network()

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


def _at_least(name: str, value: float, least: int) -> None:
    if value < least:
        raise InvalidSetting(f"{name}={value} must be at least {least}")
