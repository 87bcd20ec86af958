"""Evaluation of synthetic sets against the same real masses, and the page that shows them side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mammo_fed.client.folder import SiteFolder
from mammo_fed.client.generator.cohort import training_cohort, training_partition, without_withdrawn
from mammo_fed.common.private_files import new_folder, write_private
from mammo_fed.common.serialization import RECORD, dumps, plain
from mammo_fed.data.cache import ArrayCache, default_cache_root
from mammo_fed.data.cohort import Cohort
from mammo_fed.data.known_patients import NOBODY_KNOWN, KnownPatients, Overlap, known_patients, patient_overlap
from mammo_fed.data.run_cohorts import evaluation_cohorts
from mammo_fed.data.sources.image_folder import read_image_folder
from mammo_fed.data.sources.synthetic_set import is_synthetic_set, read_synthetic_set
from mammo_fed.errors import DataError
from mammo_fed.reporting.pages.quality_page import QualityRow, quality_page
from mammo_fed.settings.data import Partition
from mammo_fed.settings.gan import GanSettings
from mammo_fed.synthesis.adversarial import Adversaries
from mammo_fed.synthesis.quality.descriptors import descriptor, radiomics_distance
from mammo_fed.synthesis.quality.evaluation import Quality, at_side, evaluate_set, noise_images, reference
from mammo_fed.synthesis.sampling import draw_images

__all__ = ["HELD_OUT_ROW", "EvaluatedSet", "Evaluation", "evaluate_sets", "write_evaluation"]

# Of the sets that a source keeps apart from training, the first that is there.
HELD_OUT: Final = ("val", "test")
PAGE_NAME: Final = "quality.html"
FIGURES_NAME: Final = "quality.json"
LEAST: Final = 64
HELD_OUT_ROW: Final = "real, held out"
TRAIN_ROW: Final = "real, train"


@dataclass(frozen=True, kw_only=True, eq=False)
class EvaluatedSet:
    """One set: its name, where it comes from in a word, images at the common side, labels and figures.

    `radiomics` is its Frechet radiomics distance to the training masses, where that was asked for. `held_out_seen` is whether
    its generator saw patients who are held out here: where it did, memorisation and TSTR speak of no others.
    """

    name: str
    kind: str
    pixels: NDArray[np.float32]
    labels: NDArray[np.int64]
    quality: Quality
    radiomics: float | None = None
    held_out_seen: Overlap = "unknown"


@dataclass(frozen=True, kw_only=True, eq=False)
class Evaluation:
    """All sets, and the real masses that they were compared with: rows "real, held out" and "real, train" are among them.

    Attributes:
      title: what was compared, and how.
      public: whether the real masses are declared public.
      side: pixels at which all were compared.
      sets: the rows.
    """

    title: str
    public: bool
    side: int
    sets: tuple[EvaluatedSet, ...]

    def as_dict(self) -> dict[str, Any]:
        """Figures without images, for JSON."""
        rows = [_row(one) for one in self.sets]
        return {"title": self.title, "side": self.side, "sets": rows}


def evaluate_sets(
    settings: GanSettings,
    sets: Sequence[Path],
    *,
    site_folder: Path | None,
    name: str,
    radiomics: bool,
    side: int | None,
    baselines: bool,
    progress: Callable[[str], None],
) -> Evaluation:
    """Compare sets with the masses that a generator learns from and with held-out patients of the same source.

    Args:
      settings: `data`, `donor` and `seed` say which masses, `gan` which untrained generator is the baseline.
      sets: folders of sets, or of images named *_malignant.png and *_benign.png.
      site_folder: of the site whose cohort it is, or None.
      name: of the descriptor.
      radiomics: whether the Frechet radiomics distance is computed too.
      side: pixels at which all are compared; None is the smallest side among them.
      baselines: whether noise and an untrained generator are evaluated too.
      progress: called with a line before each set.

    Raises:
      DataError: If a set or the masses cannot be read, or the source keeps no patients apart.
    """
    site = None if site_folder is None else SiteFolder.open(site_folder).file
    train = training_cohort(settings, site).taking_part
    share = site.share if site else training_partition(settings)
    held_out = without_withdrawn(_held_out(settings if site is None else replace(settings, data=site.data), share=share), site)
    read = [_read(folder) for folder in sets]
    smallest = min(train.image_size[0], held_out.image_size[0], *(cohort.image_size[0] for _, cohort, _, _ in read))
    at = side or max(smallest, LEAST)
    cache = ArrayCache(Path(settings.cache or default_cache_root()).expanduser())
    progress(f"real masses: {len(train):,} to learn from, {len(held_out):,} held out, compared at {at} pixels")
    real = reference(train, held_out, side=at, describe=descriptor(name, cache=cache))
    rows: list[tuple[str, str, NDArray[np.float32], NDArray[np.int64]]] = [
        (HELD_OUT_ROW, "real", held_out.pixels, held_out.labels),
        (TRAIN_ROW, "real", train.pixels, train.labels),
    ]
    rows += [(title, kind, cohort.pixels, cohort.labels) for title, cohort, kind, _ in read]
    apart = NOBODY_KNOWN
    if held_out.public:
        data = settings.data if site is None else site.data
        apart = known_patients(held_out, source=data.source, seed=share.seed)
    seen = {title: patient_overlap(donor, apart) for title, _, _, donor in read}
    if baselines:
        count = max(LEAST, min(1000, *(len(cohort) for _, cohort, _, _ in read)))
        rows.append(("noise, classes mean nothing", "baseline", *noise_images(count, side=at, seed=settings.seed)))
        untrained = Adversaries(settings.gan, seed=settings.seed).average
        drawn, labels = draw_images(untrained, count=count, seed=settings.seed)
        if drawn.shape[-1] >= at:
            rows.append(("untrained weights", "baseline", drawn, labels))
    evaluated = []
    for title, kind, pixels, labels in rows:
        progress(f"evaluating {title}")
        quality = evaluate_set(pixels, labels, real, seed=settings.seed)
        images = at_side(pixels, at)
        distance = radiomics_distance(real.train, images) if radiomics and title != TRAIN_ROW else None
        evaluated.append(
            EvaluatedSet(
                name=title,
                kind=kind,
                pixels=images,
                labels=labels,
                quality=quality,
                radiomics=distance,
                held_out_seen=seen.get(title, "unknown"),
            )
        )
    title = f"Against {len(train):,} masses of {train.name}, at {at} pixels, by {name}; held out: {held_out.name}"
    return Evaluation(title=title, public=train.public and held_out.public, side=at, sets=tuple(evaluated))


def write_evaluation(evaluation: Evaluation, folder: Path) -> Path:
    """Write page and figures into a new folder, readable by its owner only; returns the page."""
    with new_folder(folder, last=PAGE_NAME) as draft:
        write_private(draft / FIGURES_NAME, dumps(plain(evaluation.as_dict(), form=RECORD)).encode())
        rows = [
            QualityRow(name=one.name, kind=one.kind, pixels=one.pixels, labels=one.labels, figures=_row(one))
            for one in evaluation.sets
        ]
        write_private(draft / PAGE_NAME, quality_page(evaluation.title, rows, public=evaluation.public).encode())
    return folder / PAGE_NAME


def _row(one: EvaluatedSet) -> dict[str, Any]:
    values: dict[str, Any] = {"name": one.name, "kind": one.kind, "images": len(one.pixels), **_figures(one.quality)}
    if one.name == HELD_OUT_ROW:
        # Trained and tested on the same patients: their figure says nothing.
        values |= {"tstr": None, "tstr_ci": None}
    if one.kind not in ("real", "baseline"):
        values["held_out_seen"] = one.held_out_seen
    return values if one.radiomics is None else {**values, "radiomics": one.radiomics}


def _figures(quality: Quality) -> Mapping[str, Any]:
    near, lines, copies = quality.neighbourhood, quality.artefacts, quality.memorisation
    return {
        "frechet": quality.frechet,
        "precision": near.precision,
        "recall": near.recall,
        "density": near.density,
        "coverage": near.coverage,
        "consistency": quality.consistency,
        "tstr": quality.tstr,
        "tstr_ci": list(quality.tstr_ci),
        "checkerboard_half": lines.checkerboard_half,
        "checkerboard_quarter": lines.checkerboard_quarter,
        "fine_detail": lines.fine_detail,
        "wrapped": lines.wrapped,
        "nearest_ratio": copies.ratio,
        "nearer_to_train": copies.nearer_to_train,
        "copies": len(copies.copies),
    }


def _read(folder: Path) -> tuple[str, Cohort, str, KnownPatients]:
    """Name, images and kind of a set, and whom its generator saw."""
    if is_synthetic_set(folder):
        cohort, provenance = read_synthetic_set(folder)
        return folder.name, cohort, provenance.kind, provenance.donor.known
    images = read_image_folder(folder, public=True, remedy="give the folder of a synthetic set")
    return folder.name, images, "unknown", NOBODY_KNOWN


def _held_out(settings: GanSettings, *, share: Partition) -> Cohort:
    cache = ArrayCache(Path(settings.cache or default_cache_root()).expanduser())
    found = evaluation_cohorts(settings.data, share, cache=cache)
    for name in HELD_OUT:
        if name in found:
            return found[name]
    raise DataError(f"data={settings.data.source} keeps no patients apart (val or test): there is nobody to compare with")
