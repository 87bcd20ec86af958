"""Which cohorts a run has."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

from mammo_fed.errors import InvalidSetting
from mammo_fed.settings.checks import at_least, check_drawn

__all__ = ["DataSettings", "Partition", "PartitionRule"]

# By equal numbers of patients, by sizes that fall off, or by class.
PartitionRule: TypeAlias = Literal["uniform", "size", "label"]


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """Which cohorts, and how large the phantom ones are.

    Attributes:
      source: "phantom", "mammo_dp" (a clone of the paper's repository), "csv" (a table and its images) or "cohort" (a
        folder from `mammo-fed data ingest`).
      train: whom the sites train on: "train" (the patients of that split) or "synthetic" (the clone's GAN images, each as a
        patient of its own: the paper's synthetic-only rows).
      lesion_down: how far below the middle of a patch its lesion sits, in halves of the side; public.
      folds, fold: cross-validation: train and val together are cut into `folds` parts by patient, `fold` (from 0) is the val
        set and the rest is trained on; null leaves the splits as they are. The cut is the same for every seed.
      root: folder of the clone or cohort, or the CSV table; unused by the phantom.
      public: whether the patients' data is declared public; decides what a record may say of them.
      publish_metrics: whether a run may compute and show metrics of evaluation patients: a release outside epsilon.
      waived: checks of a cohort's preflight, or of a table's identities, whose errors are accepted, by name; see
        `mammo-fed data check` and `site-client check`.
      images_train, images_test, images_external: sizes of the phantom's pooled sets.
      d_prime: separation of the phantom's classes.
      image_size: side of phantom patches in pixels.
    """

    source: Literal["phantom", "mammo_dp", "csv", "cohort"]
    root: str | None
    train: Literal["train", "synthetic"]
    lesion_down: float
    folds: int
    fold: int | None
    public: bool
    publish_metrics: bool
    waived: tuple[str, ...]
    images_train: int
    images_test: int
    images_external: int
    d_prime: float
    image_size: int

    def __post_init__(self) -> None:
        if not (math.isfinite(self.d_prime) and self.d_prime >= 0):
            raise InvalidSetting(f"data.d_prime={self.d_prime} must be a finite number, at least 0")
        for name in ("images_train", "images_test", "images_external"):
            check_drawn(f"data.{name}", getattr(self, name), 8)
        at_least("data.image_size", self.image_size, 32)
        at_least("data.folds", self.folds, 2)
        if not -1 <= self.lesion_down <= 1:
            raise InvalidSetting(f"data.lesion_down={self.lesion_down} must be in [-1, 1]")
        if self.fold is not None and not 0 <= self.fold < self.folds:
            raise InvalidSetting(f"data.fold={self.fold} must be from 0 to {self.folds - 1}, or null for no cross-validation")
        if self.fold is not None and self.source == "phantom":
            raise InvalidSetting(
                "data.fold needs data=mammo_dp, csv or cohort: the phantom has no validation patients to exchange"
            )
        if self.train == "synthetic" and (self.source != "mammo_dp" or self.fold is not None):
            raise InvalidSetting(
                "data.train=synthetic trains on a clone's GAN images: it needs data=mammo_dp and data.fold=null"
            )


@dataclass(frozen=True, kw_only=True)
class Partition:
    """How a pool is divided over sites.

    Attributes:
      num_sites: number of sites, >= 1.
      how: "uniform", "size" or "label"; the phantom's hospitals come ready-made and ignore it.
      alpha: skew of "size" and "label", > 0.
      seed: of the split (and of the phantom's images).
    """

    num_sites: int
    how: str
    alpha: float
    seed: int
