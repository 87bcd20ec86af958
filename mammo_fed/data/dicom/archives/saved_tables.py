"""Tables as people save them: several separators and encodings, and rows that are read one by one.

A row that cannot be used ends nothing: it comes with what is wrong with it. Texts of errors quote no value of a row, for values
identify patients.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Final

from mammo_fed.data.dicom.archives.csv_records import Lines, records
from mammo_fed.data.dicom.findings import SkippedFinding
from mammo_fed.errors import DataError

__all__ = ["Repeats", "SavedTable", "TableRow", "open_table", "unusable"]

SEPARATORS: Final = (",", ";", "\t", "|")
# What spreadsheets write above the header: a line that names the separator, a title.
LINES_ABOVE: Final = 3
UTF16: Final = (b"\xff\xfe", b"\xfe\xff")
SPREADSHEETS: Final = (b"PK\x03\x04", b"\xd0\xcf\x11\xe0")
NAMELESS: Final = re.compile(r"(unnamed: \d+)?")
NUMBER: Final = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?")
SAVE_AS: Final = "save it as CSV in UTF-8"
# Marks of order and direction, of no width, and of the end of a file; what joined and copied text has around it.
UNSEEN: Final = " \t\r\n\v\f\x1a\xa0\xad\u200b\u200c\u200d\u200e\u200f\u2060\ufeff"
# The layout's word for a nameless column, and for one that nobody asked for.
NOWHERE: Final = "\0nowhere"
UNASKED: Final = "\0unasked"


@dataclass(frozen=True, kw_only=True)
class TableRow:
    """One row: its line, its values by the names that were asked for, and what is wrong with it, if anything."""

    line: int
    fields: dict[str, str]
    fault: str = ""


@dataclass(frozen=True, kw_only=True)
class SavedTable:
    """A table whose header was understood.

    Attributes:
      path: the file.
      separator: between values.
      columns: names that were asked for and are there.
    """

    path: Path
    separator: str
    columns: frozenset[str]
    _layout: tuple[str, ...]
    _encoding: str
    _above: int

    def rows(self) -> Iterator[TableRow]:
        """All rows but blank ones and headers that were joined in with another table; values without surrounding blanks.

        Raises:
          DataError: If the file cannot be read to its end.
        """
        with _opened(self.path, self._encoding) as file:
            lines = Lines(file)
            for line, values, fault in records(lines, self.separator, len(self._layout)):
                if line > self._above and (fault or any(map(_seen, values))):
                    row = self._row(line, values, fault)
                    if any(_plain(value) != _plain(name) for name, value in row.fields.items()):
                        yield row

    def number(self, text: str) -> float:
        """A number as this table writes them: a comma is a decimal one only where it does not separate values.

        Raises:
          ValueError: If it is none; the text is not quoted.
        """
        text = text.strip()
        if self.separator != "," and text.count(",") == 1 and "." not in text:
            text = text.replace(",", ".")
        if not NUMBER.fullmatch(text) or not math.isfinite(number := float(text)):
            raise ValueError("not a number")
        return number

    def _row(self, line: int, values: Sequence[str], fault: str) -> TableRow:
        width = len(self._layout)
        fields = {name: _seen(values[place]) if place < len(values) else "" for name, place in self._places.items()}
        if not fault and (len(values) < width or any(map(_seen, values[width:]))):
            fault = f"it has {len(values)} values, the header {width}"
        # A nameless first column is the row's number, as data frames write it; a value in another one has slipped.
        if not fault and any(_seen(values[place]) for place in self._nowhere):
            fault = "it has a value in a column without a name"
        if not fault and "\0" in "".join(fields.values()):
            fault = "it holds what is no text"
        return TableRow(line=line, fields=fields, fault=fault)

    @cached_property
    def _places(self) -> dict[str, int]:
        return {name: place for place, name in enumerate(self._layout) if name in self.columns}

    @cached_property
    def _nowhere(self) -> tuple[int, ...]:
        return tuple(place for place, name in enumerate(self._layout) if name is NOWHERE)


def open_table(path: Path, *, required: Sequence[str], optional: Sequence[str] = (), strict: bool = False) -> SavedTable:
    """Understand a table's encoding, separator and header.

    Names of columns are compared without case, surrounding blanks and quotes, with `_` and blanks the same.

    Args:
      path: the file.
      required: columns that must be there.
      optional: columns that may be; what else is there is passed over.
      strict: refuse other columns, for one may be a misspelt one.

    Raises:
      DataError: If it cannot be read, or its header is not of such a table.
    """
    encoding = _encoding(path)
    asked = {_plain(name): name for name in (*required, *optional)}
    closest: list[str] = []
    for separator in SEPARATORS:
        with _opened(path, encoding) as file:
            for line, values, _ in records(Lines(file), separator, 0):
                if any("\0" in value for value in values):
                    raise DataError(f"table {path} is no text in UTF-8 (or UTF-16 with its mark); {SAVE_AS}")
                names = [asked.get(_plain(value), "") for value in values]
                missing = [name for name in required if name not in names]
                if not missing:
                    layout = _layout(path, values, asked, strict=strict)
                    columns = frozenset(name for name in layout if name in asked.values())
                    return SavedTable(
                        path=path, separator=separator, columns=columns, _layout=layout, _encoding=encoding, _above=line
                    )
                if len(missing) < len(required) and (not closest or len(missing) < len(closest)):
                    closest = missing
                if line > LINES_ABOVE:
                    break
    raise DataError(
        f"table {path} has no column {(closest or list(required))[0]!r}; the header must name {', '.join(required)}, "
        "separated by commas, semicolons or tabs"
    )


def unusable(table: SavedTable, row: TableRow, why: str) -> SkippedFinding:
    """A row that cannot be used, as one refused finding."""
    name = f"{table.path.name} row {row.line}"
    return SkippedFinding(name=name, reason="unusable_row", detail=f"{table.path} row {row.line}: {why}; correct the row")


class Repeats:
    """Which rows, or whatever stands for them, came before."""

    def __init__(self) -> None:
        self._seen: set[object] = set()

    def again(self, key: object) -> bool:
        """Whether it came before; it has come now."""
        before = key in self._seen
        self._seen.add(key)
        return before


def _layout(path: Path, header: Sequence[str], asked: dict[str, str], *, strict: bool) -> tuple[str, ...]:
    layout: list[str] = []
    for place, value in enumerate(header):
        plain = _plain(value)
        known = asked.get(plain)
        if known in layout:
            raise DataError(f"table {path} names the column {known!r} twice; remove one of them")
        if known is None and NAMELESS.fullmatch(plain):
            layout.append(UNASKED if place == 0 or not strict else NOWHERE)
        elif known is None and strict:
            known_names = ", ".join(asked.values())
            raise DataError(
                f"table {path} has the unknown column {value.strip()!r}; known are {known_names}; rename or remove it"
            )
        else:
            layout.append(UNASKED if known is None else known)
    return tuple(layout)


def _plain(name: str) -> str:
    return re.sub(r"[\s_]+", " ", _seen(name).strip("\"'").strip()).casefold()


def _seen(value: str) -> str:
    """A value without blanks around it, and without what is not seen there."""
    value = value.strip()
    return value if value.isascii() and value.isprintable() else value.strip(UNSEEN)


def _encoding(path: Path) -> str:
    if not path.is_file():
        raise DataError(f"table {path} does not exist; expected a CSV table there")
    try:
        with path.open("rb") as file:
            start = file.read(4)
    except OSError as error:
        raise DataError(f"table {path} cannot be read ({error.strerror}); check its permissions") from error
    if start in SPREADSHEETS:
        raise DataError(f"table {path} is a spreadsheet whatever its name says; {SAVE_AS}")
    return "utf-16" if start.startswith(UTF16) else "utf-8-sig"


class _Reading:
    """A text file whose faults of encoding become one error with its remedy."""

    def __init__(self, path: Path, file: IO[str]) -> None:
        self._path, self._file = path, file

    def __enter__(self) -> Iterator[str]:
        return self._lines()

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def _lines(self) -> Iterator[str]:
        try:
            yield from self._file
        except UnicodeError as error:
            raise DataError(f"table {self._path} is not UTF-8, but perhaps Windows-1252; {SAVE_AS}") from error
        except OSError as error:
            raise DataError(f"table {self._path} cannot be read ({error.strerror}); check its permissions") from error


def _opened(path: Path, encoding: str) -> _Reading:
    # Line ends of any system; those inside quotes become "\n".
    return _Reading(path, path.open(encoding=encoding, newline=None))
