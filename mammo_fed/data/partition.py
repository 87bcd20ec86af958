"""One cohort as several hospitals: whole patients only."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from mammo_fed.data.cohort import BENIGN, MALIGNANT, Cohort
from mammo_fed.errors import InvalidSetting
from mammo_fed.privacy.patient_identity import count_patients
from mammo_fed.settings.data import PartitionRule

__all__ = ["MAX_ALPHA", "fold_rows", "partition_rows"]

# Beyond this a Dirichlet draw is even to 3 digits, and its gamma variates come near overflow soon after.
MAX_ALPHA: Final = 1e6


def fold_rows(cohort: Cohort, *, folds: int, fold: int) -> NDArray[np.int64]:
    """Rows of one fold of cross-validation: whole patients, classes in about equal parts; every fold of a cohort is disjoint.

    Args:
      cohort: what to divide; the same images always give the same folds.
      folds: number of folds, >= 2 and at most the patients of either class (one with both counts for both).
      fold: which one, from 0.

    Raises:
      InvalidSetting: If there are too few patients for so many folds.
    """
    # Slow to import, and a real site never cuts folds.
    from sklearn.model_selection import StratifiedGroupKFold

    people = cohort.unit_index("patient")
    fewest = min(count_patients(people[cohort.labels == label]) for label in (BENIGN, MALIGNANT))
    if not 2 <= folds <= fewest:
        raise InvalidSetting(f"data.folds={folds} must be from 2 to {fewest}, the patients of the smaller class")
    cutter = StratifiedGroupKFold(n_splits=folds, shuffle=True, random_state=0)
    order = np.argsort(cohort.images, kind="stable")
    parts = list(cutter.split(order, cohort.labels[order], people[order]))
    rows: NDArray[np.int64] = np.sort(order[parts[fold][1]])
    return rows


def partition_rows(
    cohort: Cohort, *, num_sites: int, how: PartitionRule, alpha: float, seed: int
) -> tuple[NDArray[np.int64], ...]:
    """Rows of the cohort that each site holds: disjoint, covering, no patient at two sites, no site empty.

    - "uniform": equal numbers of patients, give or take one.
    - "size": site k gets a part of the patients proportional to (k + 1) ** -alpha; site 0 is the largest.
    - "label": the malignant patients (any patch malignant) and the benign ones are spread by one Dirichlet(alpha) draw each;
      small alpha gives sites of one class. A site left empty takes one patient from the largest.

    Args:
      cohort: what to divide.
      num_sites: from 1 to the number of patients.
      how: the rule.
      alpha: exponent of "size", concentration of "label", in (0, 1e6]; without effect on "uniform".
      seed: of the shuffles and the Dirichlet draws, >= 0; the same seed and the same patients give the same sites.

    Returns:
      int64 row indices, ascending, one array per site.

    Raises:
      InvalidSetting: If a setting is out of its range.

    Source: Dirichlet label skew, arXiv:1909.06335, Sec. 3.
    """
    index, num_patients = cohort.unit_index("patient"), cohort.num_patients
    _check(num_patients=num_patients, num_sites=num_sites, how=how, alpha=alpha, seed=seed)
    rng = np.random.default_rng(seed)
    if how == "label":
        malignant = np.zeros(num_patients, dtype=bool)
        malignant[index[cohort.labels == MALIGNANT]] = True
        site_of = _by_label(malignant, num_sites, alpha, rng)
    else:
        exponent = alpha if how == "size" else 0.0
        counts = _without_empty(_apportion(num_patients, np.arange(1, num_sites + 1, dtype=np.float64) ** -exponent))
        site_of = np.empty(num_patients, dtype=np.int64)
        site_of[rng.permutation(num_patients)] = np.repeat(np.arange(num_sites), counts)
    return tuple(np.flatnonzero(site_of[index] == site).astype(np.int64) for site in range(num_sites))


def _check(*, num_patients: int, num_sites: int, how: str, alpha: float, seed: int) -> None:
    if how not in ("uniform", "size", "label"):
        raise InvalidSetting(f"partition={how!r} must be uniform, size or label; check federation.partition")
    if num_sites < 1:
        raise InvalidSetting(f"num_sites={num_sites} must be at least 1; check federation.num_sites")
    if num_sites > num_patients:
        raise InvalidSetting(
            f"num_sites={num_sites} must be at most the number of patients, {num_patients}; check federation.num_sites"
        )
    if not 0 < alpha <= MAX_ALPHA:
        raise InvalidSetting(f"partition_alpha={alpha} must be in (0, {MAX_ALPHA:g}]; check federation.partition_alpha")
    if seed < 0:
        raise InvalidSetting(f"seed={seed} must be at least 0; check seed")


def _apportion(total: int, weights: NDArray[np.float64]) -> NDArray[np.int64]:
    """`total` in whole parts proportional to `weights` (any scale, sum > 0), by largest remainder; ties go to the first."""
    quotas = total * weights / weights.sum()
    counts: NDArray[np.int64] = np.floor(quotas).astype(np.int64)
    order = np.argsort(counts - quotas, kind="stable")
    counts[order[: total - int(counts.sum())]] += 1
    return counts


def _without_empty(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """The same total with no zero: every zero takes one from the last of the largest, which keeps a falling order falling."""
    counts = counts.copy()
    for site in np.flatnonzero(counts == 0):
        counts[np.flatnonzero(counts == counts.max())[-1]] -= 1
        counts[site] = 1
    return counts


def _by_label(malignant: NDArray[np.bool_], num_sites: int, alpha: float, rng: np.random.Generator) -> NDArray[np.int64]:
    """Site of every patient, int64, shape (patients,), by a Dirichlet draw per class."""
    site_of = np.empty(len(malignant), dtype=np.int64)
    for of_class in (malignant, ~malignant):
        patients = rng.permutation(np.flatnonzero(of_class))
        counts = _apportion(len(patients), rng.dirichlet(np.full(num_sites, alpha)))
        site_of[patients] = np.repeat(np.arange(num_sites), counts)
    for site in range(num_sites):
        sizes = np.bincount(site_of, minlength=num_sites)
        if sizes[site] == 0:
            site_of[rng.choice(np.flatnonzero(site_of == sizes.argmax()))] = site
    return site_of
