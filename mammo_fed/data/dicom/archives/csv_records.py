"""Records of a CSV file, of which a bad one ends nothing and swallows no other."""

from __future__ import annotations

import csv
from collections import deque
from collections.abc import Iterable, Iterator

__all__ = ["Lines", "records"]


class Lines:
    """Lines of a file, of which the last record's can be given back but for the first.

    Attributes:
      taken: lines of the record that is read.
      first: number of its first line, from 1.
    """

    def __init__(self, lines: Iterable[str]) -> None:
        self._lines = iter(lines)
        self._again: deque[str] = deque()
        self.taken: list[str] = []
        self.first = 1

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._again.popleft() if self._again else next(self._lines)
        self.taken.append(line)
        return line

    def start_record(self) -> None:
        """What is taken from now on is the next record's."""
        self.first += len(self.taken)
        self.taken = []

    def give_back(self) -> None:
        """Put all lines of the record back but its first."""
        self._again.extendleft(reversed(self.taken[1:]))
        del self.taken[1:]


def records(lines: Lines, separator: str, width: int) -> Iterator[tuple[int, list[str], str]]:
    """First line, values and fault of every record; `width` values are expected, or any number where it is 0.

    A quote that is never closed swallows the lines below it, up to the next quote: where a record of several lines is none, or
    a line within it is one by itself, only its first line is given up, and the others are read again.
    """
    while True:
        reader = csv.reader(lines, strict=True, delimiter=separator, skipinitialspace=True)
        while True:
            lines.start_record()
            values, fault = [], ""
            try:
                values = next(reader)
            except StopIteration:
                return
            except csv.Error:
                fault = "it is not well-formed CSV (check its quotes)"
            within = lines.taken[1:] if width else []
            if within and (fault or len(values) != width or any(_width(line, separator) == width for line in within)):
                lines.give_back()
                yield lines.first, values, fault or "a quote in it is not closed"
                break
            yield lines.first, values, fault


def _width(line: str, separator: str) -> int:
    """Number of values of a line by itself."""
    return len(next(csv.reader([line], delimiter=separator, skipinitialspace=True), []))
