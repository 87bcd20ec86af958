"""From data settings to the cohorts of a run: a pool that sites share out, evaluation sets, and the shared synthetic set."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mammo_fed.common.private_files import load_or_create_secret
from mammo_fed.data.cache import ArrayCache
from mammo_fed.data.cohort import Cohort, concatenate, fingerprint, require_both_classes
from mammo_fed.data.partition import fold_rows, partition_rows
from mammo_fed.data.phantom.hospitals import phantom_hospitals, phantom_synthetic
from mammo_fed.data.sources.cohort_folder import read_cohort_folder
from mammo_fed.data.sources.csv_table import check_identities, read_csv
from mammo_fed.data.sources.image_folder import read_image_folder
from mammo_fed.data.sources.mammo_dp import available_splits, read_mammo_dp, read_mammo_dp_synthetic
from mammo_fed.data.sources.synthetic_set import SetProvenance, is_synthetic_set, read_synthetic_set
from mammo_fed.errors import DataError, InvalidSetting
from mammo_fed.privacy.patient_identity import normal_identifier
from mammo_fed.settings import DataSettings, SynthesisSettings
from mammo_fed.settings.data import Partition

__all__ = [
    "Pool",
    "check_disjoint",
    "evaluation_cohorts",
    "limit_images_per_patient",
    "load_pool",
    "patients_of",
    "synthetic_cohort",
    "synthetic_provenance",
    "synthetic_source",
    "whole_cohort",
]

# Bumped whenever the phantom draws other images from the same settings.
PHANTOM_FORMAT = 1
DEFAULT_HOSPITALS = 4
COLUMNS = ("labels", "patients", "images", "views", "splits")


@dataclass(frozen=True, kw_only=True, eq=False)
class Pool:
    """Training patients of all sites that this process can see, and which rows belong to whom.

    Attributes:
      cohort: all training images.
      rows: row indices of each site, whole patients only, disjoint.
      fingerprint: of `cohort`, keyed with a secret beside the cache unless the cohort is public.
    """

    cohort: Cohort
    rows: tuple[NDArray[np.int64], ...]
    fingerprint: str


def load_pool(data: DataSettings, partition: Partition, *, cache: ArrayCache) -> Pool:
    """Training images and their split over sites; the same arguments always give the same pool.

    Raises:
      DataError: If the source cannot be read.
      InvalidSetting: If there are more sites than patients.
    """
    return _load_pool(data, partition, cache.root)


@lru_cache(maxsize=4)
def _load_pool(data: DataSettings, partition: Partition, cache_root: Path) -> Pool:
    if data.source == "phantom":
        drawn = _phantom(data, partition, ArrayCache(cache_root))
        sites = [drawn[f"site_{i + 1}"] for i in range(_hospitals(partition))]
        ends = np.cumsum([0] + [len(site) for site in sites])
        rows = tuple(np.arange(start, end) for start, end in itertools.pairwise(ends))
        if partition.num_sites == 1:
            rows = (np.concatenate(rows),)
        return _pool(concatenate(sites, name="phantom-train"), rows, cache_root)
    cohort = _read_synthetic(_root(data)) if data.train == "synthetic" else _read_for(data, "train")
    split = partition_rows(cohort, num_sites=partition.num_sites, how=partition.how, alpha=partition.alpha, seed=partition.seed)  # type: ignore[arg-type]
    return _pool(cohort, tuple(split), cache_root)


def _pool(cohort: Cohort, rows: tuple[NDArray[np.int64], ...], cache_root: Path) -> Pool:
    key = None if cohort.public else load_or_create_secret(cache_root / "fingerprint.key")
    return Pool(cohort=cohort, rows=rows, fingerprint=fingerprint(cohort, key=key))


def patients_of(data: DataSettings, partition: Partition, *, index: int, cache: ArrayCache) -> frozenset[str]:
    """Identifiers of a site's patients: its share of those who are trained on, and all whom its own table keeps apart.

    Args:
      data, partition, cache: as of `load_pool`.
      index: the site's share.

    Raises:
      DataError: If the source cannot be read.
      InvalidSetting: If there is no such share.
    """
    pool = load_pool(data, partition, cache=cache)
    if not 0 <= index < len(pool.rows):
        raise InvalidSetting(f"index={index} must be from 0 to {len(pool.rows) - 1}; check share in the site's file")
    found = set(pool.cohort.patients[pool.rows[index]].tolist())
    if data.source in ("csv", "cohort"):
        found |= set(_read_from(data.source, _root(data), None, data.public, data.waived).patients.tolist())
    return frozenset(found)


def evaluation_cohorts(data: DataSettings, partition: Partition, *, cache: ArrayCache) -> dict[str, Cohort]:
    """Held-out sets by their name in the record ("val", "test", "external"); those that the source does not have are absent.

    Raises:
      DataError: If a set has one class only, or shares a patient with another split.
    """
    if data.source == "phantom":
        drawn = _phantom(data, partition, cache)
        found = {name: drawn[name] for name in ("test", "external")}
    else:
        found = {name: _read_for(data, name) for name in _splits(data) if name != "train"}
        check_disjoint([_load_pool(data, partition, cache.root).cohort, *found.values()])
    for cohort in found.values():
        require_both_classes(cohort)
    return found


def check_disjoint(cohorts: Sequence[Cohort]) -> None:
    """Make sure that no patient is in two splits, across cohorts; a patient may be in two cohorts of one split.

    Raises:
      DataError: If a patient is in two splits, in whatever spelling; the message names the cohorts, and a patient of public
        ones only.
    """
    seen: dict[str, tuple[Cohort, str]] = {}
    for cohort in cohorts:
        for patient, split in sorted(set(zip(cohort.patients.tolist(), cohort.splits.tolist(), strict=True))):
            other, other_split = seen.setdefault(normal_identifier(patient), (cohort, split))
            if other_split != split:
                who = f"patient {patient!r}" if cohort.public and other.public else "a patient"
                raise DataError(
                    f"{who} is in {other.name} ({other_split}) and in {cohort.name} ({split}); "
                    "a patient may be in one split only, check the sources"
                )


def synthetic_source(synthesis: SynthesisSettings, data: DataSettings) -> str:
    """What "auto" means here: "gan", "phantom" or "folder"."""
    if synthesis.source != "auto":
        return synthesis.source
    return "gan" if data.source == "mammo_dp" else "phantom"


def synthetic_cohort(synthesis: SynthesisSettings, data: DataSettings, *, seed: int, cache: ArrayCache) -> Cohort:
    """The centrally shared synthetic set.

    Raises:
      DataError: If its folder is absent or unreadable.
      InvalidSetting: If the GAN images are asked for without a clone to read them from.
    """
    source = synthetic_source(synthesis, data)
    if (folder := _set_folder(synthesis)) is not None:
        return _read_set(folder, synthesis.sha256)[0]
    if synthesis.sha256 is not None:
        raise InvalidSetting("synthesis.sha256 is given, and there is no synthetic set with a hash: give synthesis.root=SET")
    if source == "folder":
        return read_image_folder(Path(str(synthesis.root)), public=True)
    if source == "gan":
        root = synthesis.root or (data.root if data.source == "mammo_dp" else None)
        if root is None:
            raise InvalidSetting(
                "synthesis.source=gan reads a synthetic set, or the GAN images of a clone of RichardObi/mammo_dp: give "
                "synthesis.root, or choose synthesis.source=phantom"
            )
        return _read_synthetic(Path(root))
    # Seeds of hospitals are even and those of the shared set odd: the set never shares a draw with a patient.
    drawing: dict[str, Any] = {
        "count": synthesis.count,
        "d_prime": data.d_prime,
        "image_size": data.image_size,
        "seed": 2 * seed + 1,
    }
    arrays = _cached_cohorts(cache, {"drawn": "synthetic", **drawing}, lambda: {"synthetic": phantom_synthetic(**drawing)})
    return arrays["synthetic"]


def synthetic_provenance(synthesis: SynthesisSettings) -> SetProvenance | None:
    """Where the synthetic set comes from, None where it has no provenance of its own.

    Raises:
      DataError: If the set is damaged, or not the expected one.
    """
    folder = _set_folder(synthesis)
    return None if folder is None else _read_set(folder, synthesis.sha256)[1]


def _set_folder(synthesis: SynthesisSettings) -> Path | None:
    """The folder of the synthetic set that the settings name, None if they name another kind of thing."""
    if synthesis.source not in ("gan", "folder") or synthesis.root is None:
        return None
    folder = Path(synthesis.root).expanduser()
    return folder if is_synthetic_set(folder) else None


@lru_cache(maxsize=2)
def _read_set(folder: Path, sha256: str | None) -> tuple[Cohort, SetProvenance]:
    return read_synthetic_set(folder, expected_sha256=sha256)


def limit_images_per_patient(cohort: Cohort, rows: NDArray[np.int64], *, most: int) -> NDArray[np.int64]:
    """Of `rows`, at most the first `most` images of each patient (by image identifier).

    What a patient keeps depends on that patient's own images only, so the bound costs no privacy.
    """
    units = cohort.unit_index("patient")
    order = rows[np.lexsort((cohort.images[rows], units[rows]))]
    _, starts, counts = np.unique(units[order], return_index=True, return_counts=True)
    place = np.arange(len(order)) - np.repeat(starts, counts)
    kept: NDArray[np.int64] = np.sort(order[place < most])
    return kept


def _root(data: DataSettings) -> Path:
    if data.root is None:
        remedies = {"mammo_dp": "set MAMMO_DP_ROOT or give data.root=CLONE", "cohort": "give data.root=COHORT"}
        remedy = remedies.get(data.source, "give data.root=TABLE.csv")
        raise InvalidSetting(f"data.root=null must name where data={data.source} is; {remedy}")
    return Path(data.root).expanduser()


def _splits(data: DataSettings) -> tuple[str, ...]:
    if data.source == "mammo_dp":
        return available_splits(_root(data))
    return tuple(sorted(set(_read_from(data.source, _root(data), None, data.public, data.waived).splits.tolist())))


def whole_cohort(data: DataSettings) -> Cohort:
    """Train and val together: what cross-validation cuts into folds."""
    parts = [_read(data, "train"), _read(data, "val")]
    check_disjoint(parts)
    return concatenate([replace(part, splits=np.full(len(part), "train")) for part in parts], name="train-and-val")


def _read(data: DataSettings, split: str) -> Cohort:
    return _read_from(data.source, _root(data), split, data.public, data.waived)


@lru_cache(maxsize=4)
def _read_from(source: str, root: Path, split: str | None, public: bool, waived: tuple[str, ...]) -> Cohort:
    """Read once in a process: a reproduction asks for the same images hundreds of times."""
    if source == "mammo_dp":
        return read_mammo_dp(root, split=split)  # type: ignore[arg-type]
    if source == "cohort":
        return read_cohort_folder(root, split=split, public=public, waived=waived)
    if not public:
        check_identities(root, waived)
    return read_csv(root, split=split, public=public)


@lru_cache(maxsize=1)
def _read_synthetic(root: Path) -> Cohort:
    return read_mammo_dp_synthetic(root)


def _read_for(data: DataSettings, split: str) -> Cohort:
    """A split, or under cross-validation what takes its place: train and val divide the patients of both again."""
    if data.fold is None or split not in ("train", "val"):
        return _read(data, split)
    return _read_fold(data, split)


@lru_cache(maxsize=10)
def _read_fold(data: DataSettings, split: str) -> Cohort:
    both = whole_cohort(data)
    held_out = fold_rows(both, folds=data.folds, fold=data.fold or 0)
    rows = held_out if split == "val" else np.setdiff1d(np.arange(len(both)), held_out)
    name = f"{split}-fold-{1 + (data.fold or 0)}-of-{data.folds}"
    return replace(both.select(rows, name=name), splits=np.full(len(rows), split))


def _phantom(data: DataSettings, partition: Partition, cache: ArrayCache) -> dict[str, Cohort]:
    sizes = {name: getattr(data, name) for name in ("images_train", "images_test", "images_external")}
    drawing = {
        **sizes,
        "d_prime": data.d_prime,
        "size": data.image_size,
        "seed": 2 * partition.seed,
        "num_sites": _hospitals(partition),
    }

    def draw() -> dict[str, Cohort]:
        made = phantom_hospitals(
            **sizes, d_prime=data.d_prime, image_size=data.image_size, seed=2 * partition.seed, num_sites=_hospitals(partition)
        )
        return {**{f"site_{i + 1}": site for i, site in enumerate(made.sites)}, "test": made.test, "external": made.external}

    return _cached_cohorts(cache, drawing, draw)


def _hospitals(partition: Partition) -> int:
    """Hospitals that the phantom draws: a single site holds the patients of the usual four."""
    return DEFAULT_HOSPITALS if partition.num_sites == 1 else partition.num_sites


def _cached_cohorts(cache: ArrayCache, drawing: Mapping[str, Any], draw: Any) -> dict[str, Cohort]:
    """Public cohorts drawn once and kept, keyed by what they are drawn from."""
    key = hashlib.sha256(json.dumps({**drawing, "format": PHANTOM_FORMAT}, sort_keys=True).encode()).hexdigest()

    def make() -> dict[str, NDArray[Any]]:
        arrays: dict[str, NDArray[Any]] = {}
        for name, cohort in draw().items():
            arrays[f"{name}_pixels"] = cohort.pixels
            arrays |= {f"{name}_{column}": getattr(cohort, column) for column in COLUMNS}
        return arrays

    arrays = cache.get_or_make(key, make)
    names = sorted(name.removesuffix("_pixels") for name in arrays if name.endswith("_pixels"))
    return {
        name: Cohort(
            name=f"phantom-{name}",
            pixels=arrays[f"{name}_pixels"],
            public=True,
            **{column: np.asarray(arrays[f"{name}_{column}"]) for column in COLUMNS},
        )
        for name in names
    }
