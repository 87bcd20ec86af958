"""The table of experiments next to the published numbers, as Markdown to read and as CSV to compute with."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from mammo_fed.common.private_files import write_atomically
from mammo_fed.errors import DataError
from mammo_fed.privacy.events import Unit
from mammo_fed.reporting.formatting import epsilon_text, readable, set_title
from mammo_fed.reporting.record.statements import LOOSE_ABOVE
from mammo_fed.training.statistics import METRICS, Interval, Summary

__all__ = [
    "ABSENT",
    "CSV_COLUMNS",
    "CSV_NAME",
    "MARKDOWN_NAME",
    "SETS",
    "Published",
    "TableRow",
    "check_rows",
    "table_cells",
    "table_set_title",
    "value_text",
    "write_table",
]

MARKDOWN_NAME: Final = "table.md"
CSV_NAME: Final = "table.csv"
SETS: Final = ("cv", "val", "test", "external")
ABSENT: Final = "—"
FIRST_COLUMNS: Final = ("Key", "Experiment", "Unit", "Sites", "ε", "ε of a patient")
CSV_COLUMNS: Final = (
    *("key", "experiment", "group", "unit", "sites", "epsilon", "patient_epsilon", "set", "patients", "images", "seeds"),
    *("metric", "value", "low", "high", "seed_std", "paper"),
)
# Markdown gives these a meaning inside a line, a bracket only as part of a link; a backslash takes it away.
MARKED: Final = re.compile(r"([\\`*_<>|&~$]|\[(?=[^\]]*\][(:\[]))")


@dataclass(frozen=True, kw_only=True)
class Published:
    """What the paper reports for one row on one set; None where it does not.

    Attributes:
      auroc: mean over the paper's seeds, in [0, 1].
      auprc_benign: average precision with benign as the positive class, in [0, 1].
    """

    auroc: float | None = None
    auprc_benign: float | None = None

    def metric(self, name: str) -> float | None:
        """The number published for a metric of METRICS; None for those that the paper does not have."""
        found: float | None = getattr(self, name, None)
        return found


@dataclass(frozen=True, kw_only=True)
class TableRow:
    """One experiment.

    Attributes:
      key: short name, distinct in a table.
      title: what was done, in words.
      group: what the rows of one privacy-utility curve have in common.
      epsilon: of the unit, at least 0; infinite without a guarantee.
      unit: whose data epsilon speaks of; None without a guarantee.
      sites: number of sites.
      patient_epsilon: of a patient, at least 0; None where it is not known.
      paper: published numbers by set of SETS.
      summaries: our numbers by set of SETS; a set that was not at hand is missing.
      note: what else a reader must know; may be empty.
    """

    key: str
    title: str
    group: str
    epsilon: float
    unit: Unit | None
    sites: int
    patient_epsilon: float | None = None
    paper: Mapping[str, Published] = field(default_factory=dict)
    summaries: Mapping[str, Summary] = field(default_factory=dict)
    note: str = ""

    def __post_init__(self) -> None:
        unknown = sorted({*self.paper, *self.summaries} - set(SETS))
        if unknown:
            raise DataError(f"row {self.key}: sets {unknown} are unknown; use {', '.join(SETS)}")
        for name, epsilon in (("epsilon", self.epsilon), ("patient_epsilon", self.patient_epsilon)):
            if epsilon is not None and not epsilon >= 0:
                raise DataError(
                    f"row {self.key}: {name}={epsilon} must be at least 0; use infinity where there is no guarantee"
                )


def write_table(folder: Path, rows: Sequence[TableRow], *, absent: str = "", notes: Sequence[str] = ()) -> tuple[Path, Path]:
    """Write table.md and table.csv into `folder`, which must exist; a crash leaves each as it was or whole.

    Args:
      folder: where to.
      rows: in the order of the table.
      absent: which sets are missing and why, one line above the table; empty where none is.
      notes: paragraphs below the table.

    Returns:
      The paths of the two.

    Raises:
      DataError: If there is no row or two have the same key.
    """
    check_rows(rows)
    markdown, table = Path(folder) / MARKDOWN_NAME, Path(folder) / CSV_NAME
    write_atomically(markdown, _markdown(rows, absent, notes))
    write_atomically(table, _csv(rows))
    return markdown, table


def check_rows(rows: Sequence[TableRow]) -> None:
    """Refuse rows that make no table.

    Raises:
      DataError: If there is no row or two have the same key.
    """
    keys = [row.key for row in rows]
    twice = sorted({key for key in keys if keys.count(key) > 1})
    if twice or not keys:
        raise DataError(f"a table needs at least one row and distinct keys; two rows are called {twice}")


def table_set_title(name: str) -> str:
    """What people call a set of SETS."""
    return "Cross-validation" if name == "cv" else set_title(name)


def value_text(interval: Interval | None, seed_std: float | None = None, *, between: bool = True) -> str:
    """A metric in three decimals with its interval and the seeds' standard deviation.

    >>> value_text(Interval(value=0.8571, low=0.8, high=0.9), 0.0042)
    '0.857 [0.800, 0.900] ± 0.004'
    """
    if interval is None:
        return ABSENT
    limits = f" [{interval.low:.3f}, {interval.high:.3f}]" if between else ""
    return f"{interval.value:.3f}{limits}" + ("" if seed_std is None else f" ± {seed_std:.3f}")


def table_cells(rows: Sequence[TableRow]) -> tuple[list[str], list[list[str]]]:
    """Titles of the columns and the cells of every row as plain text, a dash for what is not there.

    The published numbers and our difference from them have columns for the sets that the paper has.
    """
    published = {name for row in rows for name in row.paper}
    noted = any(row.note for row in rows)
    head = list(FIRST_COLUMNS)
    for name in SETS:
        title = table_set_title(name)
        head += [f"{title}: AUROC [95 % CI] ± seeds", f"{title}: AUPRC, benign"]
        if name in published:
            head += [f"{title}: paper, AUROC / AUPRC", f"{title}: ours less paper"]
    body = [
        [
            *(row.key, row.title, row.unit or ABSENT, str(row.sites), epsilon_text(row.epsilon)),
            ABSENT if row.patient_epsilon is None else _patient_text(row.patient_epsilon),
            *(cell for name in SETS for cell in _set_cells(row, name, paper=name in published)),
            *([row.note or ABSENT] if noted else []),
        ]
        for row in rows
    ]
    return head + (["Note"] if noted else []), body


def _patient_text(epsilon: float) -> str:
    """A patient's epsilon, marked where it is no more than an upper bound."""
    return ("≤ " if LOOSE_ABOVE < epsilon < math.inf else "") + epsilon_text(epsilon)


def _set_cells(row: TableRow, name: str, *, paper: bool) -> list[str]:
    """The cells of one row for one set: two, or four where the table has columns for the paper."""
    ours, published = row.summaries.get(name), row.paper.get(name, Published())
    cells = [ABSENT, ABSENT]
    if ours is not None:
        spread = ours.seed_std or {}
        cells = [value_text(ours.auroc, spread.get("auroc")), value_text(ours.auprc_benign, spread.get("auprc_benign"))]
    if not paper:
        return cells
    numbers = (published.auroc, published.auprc_benign)
    values = (None, None) if ours is None else (ours.auroc.value, ours.auprc_benign.value)
    gaps = [None if None in pair else pair[0] - pair[1] for pair in zip(values, numbers, strict=True)]  # type: ignore[operator]
    return [*cells, _pair(numbers, ".3f"), _pair(gaps, "+.3f")]


def _pair(values: Sequence[float | None], form: str) -> str:
    """Two numbers with a stroke between them; one dash where neither is there."""
    if all(value is None for value in values):
        return ABSENT
    return " / ".join(ABSENT if value is None else format(value, form) for value in values)


def _markdown(rows: Sequence[TableRow], absent: str, notes: Sequence[str]) -> str:
    head, body = table_cells(rows)
    # Words to the left, numbers to the right.
    rule = ["---" if title in {"Key", "Experiment", "Unit", "Note"} else "---:" for title in head]
    lines = ["| " + " | ".join(map(_marked, cells)) + " |" for cells in (head, *body)]
    lines.insert(1, "| " + " | ".join(rule) + " |")
    parts = [*([_marked(absent)] if absent else []), "\n".join(lines), *map(_marked, notes)]
    return "\n\n".join(parts) + "\n"


def _marked(text: str) -> str:
    """`text` on one line that Markdown shows as it is."""
    return MARKED.sub(r"\\\1", readable(" ".join(text.split())))


def _csv(rows: Sequence[TableRow]) -> str:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, CSV_COLUMNS, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerows(_long(row))
    return buffer.getvalue()


def _long(row: TableRow) -> Iterator[dict[str, object]]:
    """One line for each metric of each set that we or the paper have, numbers in full."""
    about = {"key": row.key, "experiment": row.title, "group": row.group, "unit": row.unit, "sites": row.sites}
    spent = {"epsilon": row.epsilon, "patient_epsilon": row.patient_epsilon}
    for name in SETS:
        ours, published = row.summaries.get(name), row.paper.get(name, Published())
        counts = {"patients": ours.n_patients, "images": ours.n_images, "seeds": ours.n_seeds} if ours else {}
        for metric in METRICS:
            found, paper = ours.metric(metric) if ours else None, published.metric(metric)
            if ours is None and paper is None:
                continue
            values = {} if found is None else {"value": found.value, "low": found.low, "high": found.high}
            spread = (ours.seed_std or {}).get(metric, math.nan) if ours else math.nan
            seeds = {} if math.isnan(spread) else {"seed_std": spread}
            yield {**about, **spent, "set": name, "metric": metric, **counts, **values, **seeds, "paper": paper}
