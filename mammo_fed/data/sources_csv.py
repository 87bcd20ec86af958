"""A site's own patches: one CSV table beside PNG files."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from mammo_fed.data.cohort import BENIGN, MALIGNANT, Cohort
from mammo_fed.data.rows import SPLITS, PatchRow, Split, cohort_from_rows
from mammo_fed.errors import DataError, InvalidSetting

__all__ = ["read_csv"]

_REQUIRED: Final = ("patient", "image", "label")
_OPTIONAL: Final = ("view", "split")
_LABELS: Final = {"malignant": MALIGNANT, "1": MALIGNANT, "benign": BENIGN, "0": BENIGN}
_VIEWS: Final = ("CC", "MLO", "")
_SPLIT_OF: Final[Mapping[str, Split]] = {split: split for split in SPLITS}


def read_csv(table: Path, *, split: str | None, public: bool) -> Cohort:
    """The patches that a CSV table lists.

    The table is UTF-8, separated by commas, with a header. Values are taken without surrounding blanks.

      patient  any text; equal values are one patient
      image    path of the PNG, relative to the table's folder, inside it
      label    malignant or 1, benign or 0
      view     CC, MLO or empty; the column may be left out
      split    train, val, test or external; without the column every row is train

    Other columns are refused: a misspelt `split` would turn test patients into training patients without a word.

    Args:
      table: the CSV file.
      split: the rows to read; None reads all. A patient in two splits is refused either way.
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
    rows = [_row(table, line, fields) for line, fields in _read_table(table)]
    _check_patients(table, rows)
    chosen = [row for row in rows if split in (None, row.split)]
    if not chosen:
        there = ", ".join(sorted({row.split for row in rows})) or "none"
        raise DataError(f"{table} has no rows of split {split or 'any'} (splits that are there: {there}); check the table")
    return cohort_from_rows(chosen, name=f"{table.stem}-{split}" if split else table.stem, public=public)


def _read_table(table: Path) -> list[tuple[int, dict[str, str]]]:
    """Line number and fields of every row, blank lines left out."""
    if not table.is_file():
        raise DataError(f"table {table} does not exist; expected a CSV with columns {', '.join(_REQUIRED)}; check data.root")
    try:
        # utf-8-sig: spreadsheet programs write a byte order mark, which would become part of the first column's name.
        with table.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = [column.strip() for column in next(reader, [])]
            _check_header(table, header)
            rows = []
            for values in reader:
                if not values:
                    continue
                if len(values) != len(header):
                    raise DataError(
                        f"{table} row {reader.line_num} has {len(values)} values, the header {len(header)}; correct the row"
                    )
                rows.append((reader.line_num, dict(zip(header, (value.strip() for value in values), strict=True))))
            return rows
    except UnicodeDecodeError as error:
        raise DataError(f"table {table} is not UTF-8; save it as UTF-8 CSV") from error
    except csv.Error as error:
        raise DataError(f"table {table} is not a well-formed CSV ({error}); check its quotes") from error
    except OSError as error:
        raise DataError(f"table {table} cannot be read ({error.strerror}); check its permissions") from error


def _check_header(table: Path, header: Sequence[str]) -> None:
    known = (*_REQUIRED, *_OPTIONAL)
    missing = [column for column in _REQUIRED if column not in header]
    if missing:
        raise DataError(f"table {table} has no column {missing[0]}; the header must name {', '.join(_REQUIRED)}, with commas")
    unknown = [column for column in header if column not in known]
    if unknown:
        raise DataError(
            f"table {table} has the unknown column {unknown[0]!r}; known are {', '.join(known)}; rename or remove it"
        )
    if len(set(header)) != len(header):
        raise DataError(f"table {table} names a column twice; remove one of them")


def _row(table: Path, line: int, fields: Mapping[str, str]) -> PatchRow:
    where = f"{table} row {line}"
    if not fields["patient"]:
        raise DataError(f"{where}: patient is empty; every row needs the patient's identifier")
    if fields["label"] not in _LABELS:
        raise DataError(f"{where}: label={fields['label']!r} must be malignant, benign, 1 or 0; correct the row")
    view = fields.get("view", "")
    if view not in _VIEWS:
        raise DataError(f"{where}: view={view!r} must be CC, MLO or empty; correct the row")
    split = fields.get("split", "train")
    if split not in _SPLIT_OF:
        raise DataError(f"{where}: split={split!r} must be one of {', '.join(SPLITS)}; correct the row")
    folder = table.parent.resolve()
    path = _path_inside(folder, fields["image"], where)
    return PatchRow(
        path=path,
        label=_LABELS[fields["label"]],
        patient=fields["patient"],
        image=path.relative_to(folder).as_posix(),
        split=_SPLIT_OF[split],
        view=view,
    )


def _path_inside(folder: Path, image: str, where: str) -> Path:
    """The file that `image` means, links followed: a table must not reach files that its folder does not hold."""
    relative = Path(image)
    if not image or relative.is_absolute() or ".." in relative.parts:
        raise DataError(f"{where}: image={image!r} must be a path relative to the table's folder, without ..; correct the row")
    try:
        path = (folder / relative).resolve()
        found = path.is_file()
    except (OSError, ValueError, RuntimeError) as error:
        raise DataError(f"{where}: image={image!r} is not a usable path; correct the row") from error
    if not path.is_relative_to(folder):
        raise DataError(f"{where}: image={image!r} is a link out of the table's folder; copy the file into it")
    if not found:
        raise DataError(f"{where}: image={image!r} does not exist in {folder}; correct the row")
    return path


def _check_patients(table: Path, rows: Sequence[PatchRow]) -> None:
    """Raise DataError if a patient is in two splits, whichever of them is asked for."""
    split_of: dict[str, str] = {}
    for row in rows:
        if split_of.setdefault(row.patient, row.split) != row.split:
            raise DataError(
                f"{table}: patient {row.patient!r} is in splits {split_of[row.patient]} and {row.split}; split by patient"
            )
