"""Where cohorts come from. A source is one module: it lists `PatchRow`s and hands them to `rows.cohort_from_rows`."""

from __future__ import annotations

from collections.abc import Sequence

from mammo_fed.data.cohort import Cohort
from mammo_fed.data.sources.csv_table import read_csv
from mammo_fed.data.sources.image_folder import read_image_folder
from mammo_fed.data.sources.mammo_dp import available_splits, read_mammo_dp, read_mammo_dp_synthetic
from mammo_fed.errors import DataError

__all__ = [
    "available_splits",
    "check_disjoint",
    "read_csv",
    "read_image_folder",
    "read_mammo_dp",
    "read_mammo_dp_synthetic",
]


def check_disjoint(cohorts: Sequence[Cohort]) -> None:
    """Make sure that no patient is in two splits, across cohorts; a patient may be in two cohorts of one split.

    Raises:
      DataError: If a patient identifier is in two splits; the message names the cohorts.
    """
    seen: dict[str, tuple[str, str]] = {}
    for cohort in cohorts:
        for patient, split in sorted(set(zip(cohort.patients.tolist(), cohort.splits.tolist(), strict=True))):
            other, other_split = seen.setdefault(patient, (cohort.name, split))
            if other_split != split:
                raise DataError(
                    f"patient {patient!r} is in {other} ({other_split}) and in {cohort.name} ({split}); "
                    "a patient may be in one split only, check the sources"
                )
