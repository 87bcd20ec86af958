"""Tables as people and spreadsheet programs write them: read strictly, with a message that names the row."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from mammo_fed.errors import DataError

__all__ = ["path_inside", "read_table"]


def read_table(
    table: Path, *, required: Sequence[str], optional: Sequence[str] | None, separator: str = ","
) -> list[tuple[int, dict[str, str]]]:
    """Line number and fields of every row, blank lines left out; names and values without surrounding blanks.

    Args:
      table: a UTF-8 file with a header, with or without a byte order mark.
      required: columns that must be there.
      optional: columns that may be; any other is refused, for it may be a misspelt one. None lets every other pass.
      separator: between values.

    Raises:
      DataError: If the table cannot be read, or its header or a row breaks a rule.
    """
    if not table.is_file():
        raise DataError(f"table {table} does not exist; expected a CSV with columns {', '.join(required)}; check data.root")
    try:
        # utf-8-sig: spreadsheet programs write a byte order mark, which would become part of the first column's name.
        with table.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True, delimiter=separator)
            header = [column.strip() for column in next(reader, [])]
            _check_header(table, header, required, optional)
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


def _check_header(table: Path, header: Sequence[str], required: Sequence[str], optional: Sequence[str] | None) -> None:
    missing = [column for column in required if column not in header]
    if missing:
        raise DataError(f"table {table} has no column {missing[0]}; the header must name {', '.join(required)}, with commas")
    known = (*required, *(optional or ()))
    unknown = [column for column in header if column not in known]
    if unknown and optional is not None:
        raise DataError(
            f"table {table} has the unknown column {unknown[0]!r}; known are {', '.join(known)}; rename or remove it"
        )
    if len(set(header)) != len(header):
        raise DataError(f"table {table} names a column twice; remove one of them")


def path_inside(folder: Path, value: str, *, column: str, where: str) -> Path:
    """The file that `value` means, links followed: a table must not reach files that its folder does not hold.

    Args:
      folder: of the table, resolved.
      value: what the table says.
      column: the value's name, for messages.
      where: the row, for messages.

    Raises:
      DataError: If it is no file inside `folder`.
    """
    relative = Path(value)
    if not value or relative.is_absolute() or ".." in relative.parts:
        raise DataError(
            f"{where}: {column}={value!r} must be a path relative to the table's folder, without ..; correct the row"
        )
    try:
        path = (folder / relative).resolve()
        found = path.is_file()
    except (OSError, ValueError, RuntimeError) as error:
        raise DataError(f"{where}: {column}={value!r} is not a usable path; correct the row") from error
    if not path.is_relative_to(folder):
        raise DataError(f"{where}: {column}={value!r} is a link out of the table's folder; copy the file into it")
    if not found:
        raise DataError(f"{where}: {column}={value!r} does not exist in {folder}; correct the row")
    return path
