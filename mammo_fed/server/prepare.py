"""The first stage of a run: everything public that it starts from and is evaluated on, before any site is asked."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from mammo_fed.common.private_files import load_or_create_secret
from mammo_fed.data.cache import ArrayCache, default_cache_root
from mammo_fed.data.cohort import Cohort, fingerprint
from mammo_fed.data.known_patients import Overlap
from mammo_fed.data.run_cohorts import evaluation_cohorts
from mammo_fed.federation.public_start import PublicStart, make_extractor, make_public_start
from mammo_fed.models.features import Extractor, evaluation_flips
from mammo_fed.server.rounds.synthetic_overlap import check_synthesis, overlap_of
from mammo_fed.settings import Settings
from mammo_fed.settings.data import Partition

__all__ = ["FeatureProgress", "Prepared", "Stopwatch", "prepare"]

FeatureProgress: TypeAlias = Callable[[str, int, int], None]
"""Called with (name of the set, images done, images in all) while networks run."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Prepared:
    """What a run has before it is declared.

    Attributes:
      extractor: makes features.
      start: what every site starts from.
      overlap: between the patients behind the synthetic set and those of the run.
      held_out: the evaluation sets by name.
      blocks: their features before whitening, float32, one array for each backbone.
    """

    extractor: Extractor
    start: PublicStart
    overlap: Overlap
    held_out: Mapping[str, Cohort]
    blocks: Mapping[str, tuple[NDArray[np.float32], ...]]


@dataclass(kw_only=True)
class Stopwatch:
    """When a run started, and the seconds that its stages took."""

    started: datetime = field(default_factory=lambda: datetime.now(UTC))
    laps: list[float] = field(default_factory=list)
    _mark: float = field(default_factory=time.perf_counter)

    def lap(self) -> None:
        """End a stage."""
        now = time.perf_counter()
        self.laps.append(now - self._mark)
        self._mark = now


def prepare(settings: Settings, share: Partition, *, patients_here: bool, progress: FeatureProgress) -> Prepared:
    """Read the synthetic set and the evaluation sets and make their features.

    Args:
      settings: of the run.
      share: which patients train.
      patients_here: whether this process can see them: in a simulation.
      progress: called while networks run.

    Raises:
      DataError: If the synthetic set or an evaluation set cannot be read.
      PolicyRefused: If the synthetic set is not as `privacy.require_public_synthesis` asks.
    """
    if settings.engine.threads:
        torch.set_num_threads(settings.engine.threads)
    cache = ArrayCache(Path(settings.engine.cache).expanduser() if settings.engine.cache else default_cache_root())
    extractor = make_extractor(settings, cache=cache, progress=lambda done, total: progress("pretraining", done, total))
    held_out = evaluation_cohorts(settings.data, share, cache=cache)
    start = make_public_start(settings, extractor, cache=cache, progress=lambda done, total: progress("synthetic", done, total))
    overlap = overlap_of(start, settings, share, here=patients_here, cache=cache)
    check_synthesis(start, settings, overlap)
    return Prepared(
        extractor=extractor,
        start=start,
        overlap=overlap,
        held_out=held_out,
        blocks={name: _blocks(extractor, name, cohort, progress) for name, cohort in held_out.items()},
    )


def _blocks(extractor: Extractor, name: str, cohort: Cohort, progress: FeatureProgress) -> tuple[NDArray[np.float32], ...]:
    key = None if cohort.public else load_or_create_secret(extractor.cache_root / "fingerprint.key")
    return extractor.blocks(
        cohort.pixels,
        fingerprint=fingerprint(cohort, key=key),
        flips=evaluation_flips(extractor.spec.flips),
        progress=lambda done, total: progress(name, done, total),
    )
