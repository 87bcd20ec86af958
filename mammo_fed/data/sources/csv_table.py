"""A site's own patches: one CSV table beside PNG files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Final

from mammo_fed.data.cohort import BENIGN, MALIGNANT, Cohort
from mammo_fed.data.preflight import check_waived, errors_of, table_findings
from mammo_fed.data.sources.rows import SPLITS, PatchRow, Split, cohort_from_rows
from mammo_fed.data.sources.tables import path_inside, read_table
from mammo_fed.errors import DataError, InvalidSetting
from mammo_fed.privacy.patient_identity import normal_identifier, require_identifier

__all__ = ["check_identities", "check_patients", "read_csv"]

_REQUIRED: Final = ("patient", "image", "label")
_OPTIONAL: Final = ("view", "split")
_LABELS: Final = {"malignant": MALIGNANT, "1": MALIGNANT, "benign": BENIGN, "0": BENIGN}
_VIEWS: Final = ("CC", "MLO", "")
_SPLIT_OF: Final[Mapping[str, Split]] = {split: split for split in SPLITS}


def read_csv(table: Path, *, split: str | None, public: bool) -> Cohort:
    """The patches that a CSV table lists.

    The table is UTF-8, separated by commas, with a header. Values are taken without surrounding blanks.

      patient  any text; a patient is written one way in the whole table
      image    path of the PNG, relative to the table's folder, inside it
      label    malignant or 1, benign or 0
      view     CC, MLO or empty; the column may be left out
      split    train, val, test or external; without the column every row is train

    Other columns are refused: a misspelt `split` would turn test patients into training patients without a word.

    Args:
      table: the CSV file.
      split: the rows to read; None reads all. A patient in two splits, or in two spellings, is refused either way.
      public: whether the patients' data is declared public.

    Returns:
      The cohort, named after the table and the split, in the order of the image paths.

    Raises:
      InvalidSetting: If `split` is unknown.
      DataError: If the table or a row of it breaks a rule above (the message names row and value), an image lies outside the
        table's folder or cannot be read, or no row is of the split.
    """
    if split is not None and split not in SPLITS:
        raise InvalidSetting(f"split={split!r} must be one of {', '.join(SPLITS)}; check the split asked for")
    read = read_table(table, required=_REQUIRED, optional=_OPTIONAL)
    rows = [_row(table, line, fields) for line, fields in read]
    check_patients(table, [(line, row.patient, row.split) for (line, _), row in zip(read, rows, strict=True)])
    chosen = [row for row in rows if split in (None, row.split)]
    if not chosen:
        there = ", ".join(sorted({row.split for row in rows})) or "none"
        raise DataError(f"{table} has no rows of split {split or 'any'} (splits that are there: {there}); check the table")
    return cohort_from_rows(chosen, name=f"{table.stem}-{split}" if split else table.stem, public=public)


@lru_cache(maxsize=4)
def check_identities(table: Path, waived: tuple[str, ...]) -> None:
    """Keep a table out whose patients are not the people in it, in whichever split; looked at once in a process.

    Raises:
      DataError: As `read_csv`, or if an error of `TABLE_CHECKS` is left that is not waived, or a name is of no check.
    """
    check_waived(waived)
    errors = errors_of(table_findings(read_csv(table, split=None, public=False)), waived=waived)
    if errors:
        found = "; ".join(f"{error.message} ({error.name})" for error in errors)
        raise DataError(f"{table} failed its preflight: {found}; correct the table, or name the checks in data.waived")


def _row(table: Path, line: int, fields: Mapping[str, str]) -> PatchRow:
    where = f"{table} row {line}"
    require_identifier(fields["patient"], where=where)
    if fields["label"] not in _LABELS:
        raise DataError(f"{where}: label={fields['label']!r} must be malignant, benign, 1 or 0; correct the row")
    view = fields.get("view", "")
    if view not in _VIEWS:
        raise DataError(f"{where}: view={view!r} must be CC, MLO or empty; correct the row")
    split = fields.get("split", "train")
    if split not in _SPLIT_OF:
        raise DataError(f"{where}: split={split!r} must be one of {', '.join(SPLITS)}; correct the row")
    folder = table.parent.resolve()
    path = path_inside(folder, fields["image"], column="image", where=where)
    return PatchRow(
        path=path,
        label=_LABELS[fields["label"]],
        patient=fields["patient"],
        image=path.relative_to(folder).as_posix(),
        split=_SPLIT_OF[split],
        view=view,
    )


def check_patients(table: Path, rows: Sequence[tuple[int, str, str]]) -> None:
    """Check that a table writes each patient one way and puts each into one split, whichever split is asked for.

    Args:
      table: for the message.
      rows: line, patient and split of every row.

    Raises:
      DataError: If it does not; the message names both rows and no identifier.
    """
    first: dict[str, tuple[int, str, str]] = {}
    for line, patient, split in rows:
        other, spelling, other_split = first.setdefault(normal_identifier(patient), (line, patient, split))
        if spelling != patient:
            raise DataError(
                f"{table} rows {other} and {line} are of one patient in two spellings, which "
                "differ only in case, spaces or Unicode form, or in what is not seen; write each patient one way"
            )
        if split != other_split:
            raise DataError(
                f"{table} rows {other} and {line}: one patient is in splits {other_split} and {split}; split by patient"
            )
