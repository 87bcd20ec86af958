"""The table of experiments as one HTML file that loads nothing: numbers, privacy-utility curves, ROC, pairs, subgroups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np

from mammo_fed.common.private_files import write_atomically
from mammo_fed.errors import DataError
from mammo_fed.reporting.formatting import metric_text
from mammo_fed.reporting.pages.rendering import Figure, Table, render
from mammo_fed.reporting.plots.score_plots import ScoredSet
from mammo_fed.reporting.plots.table_plots import PAPER_SET, curve_plots, utility_plot
from mammo_fed.reporting.table import ABSENT, SETS, TableRow, check_rows, table_cells, table_set_title, value_text
from mammo_fed.training.evaluation import auroc
from mammo_fed.training.statistics import Difference, Subgroup

__all__ = ["TABLE_PAGE_NAME", "Comparison", "Stratified", "TablePage", "write_table_page"]

TABLE_PAGE_NAME: Final = "table.html"
METRIC_WORDS: Final = {
    "auroc": "AUROC",
    "auprc_benign": "AUPRC, benign",
    "auprc_malignant": "AUPRC, malignant",
    "sensitivity_at_90_specificity": "Sensitivity at 90 % specificity",
    "brier": "Brier score (lower is better)",
}
SPREAD: Final = (
    "Brackets: 95 % interval of drawing other patients, whole patients resampled. ±: standard deviation over the seeds, which "
    "the interval does not hold."
)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two rows of the table compared on the same images.

    Attributes:
      first: key of the row.
      second: key of the row that is taken from it.
      set_name: of SETS.
      difference: the first less the second.
    """

    first: str
    second: str
    set_name: str
    difference: Difference


@dataclass(frozen=True, kw_only=True)
class Stratified:
    """The subgroups of one row on one set.

    Attributes:
      key: of the row.
      set_name: of SETS.
      groups: as `subgroups` gives them.
    """

    key: str
    set_name: str
    groups: tuple[Subgroup, ...]


@dataclass(frozen=True, kw_only=True)
class TablePage:
    """What the page shows.

    Attributes:
      title: heading.
      rows: of the table, in order.
      absent: which sets are missing and why; empty where none is.
      notes: paragraphs on how the numbers were made.
      curves: scores of chosen rows, by set of SETS and then by key of the row. A curve gives back scores of single patients:
        only those declared public are drawn.
      comparisons: paired differences.
      strata: subgroups.
    """

    title: str
    rows: tuple[TableRow, ...]
    absent: str = ""
    notes: tuple[str, ...] = ()
    curves: Mapping[str, Mapping[str, ScoredSet]] = field(default_factory=dict)
    comparisons: tuple[Comparison, ...] = ()
    strata: tuple[Stratified, ...] = ()

    def __post_init__(self) -> None:
        check_rows(self.rows)
        named = [
            *self.curves,
            *(one.set_name for one in self.comparisons),
            *(one.set_name for one in self.strata),
        ]
        unknown = sorted({*named} - {*SETS})
        if unknown:
            raise DataError(f"sets {unknown} are unknown; use {', '.join(SETS)}")


def write_table_page(folder: Path, page: TablePage) -> Path:
    """Write table.html into `folder`, which must exist; a crash leaves what was there before.

    Returns:
      The path of the page.
    """
    path = Path(folder) / TABLE_PAGE_NAME
    curves, hidden = _curves(page)
    head, rows = table_cells(page.rows)
    content = render(
        "table.html",
        page=page,
        results=Table(head=head, rows=rows, caption=f"{SPREAD} The paper gives no intervals."),
        utility=_utility(page.rows),
        at_zero=any(row.epsilon == 0 for row in page.rows),
        curves=curves,
        hidden=", ".join(hidden),
        comparisons=_comparisons(page.comparisons),
        subgroups=_subgroups(page.strata),
    )
    write_atomically(path, content)
    return path


def _utility(rows: Sequence[TableRow]) -> list[Figure]:
    figures = []
    for name in SETS:
        svg = utility_plot(rows, name)
        if svg is None:
            continue
        caption = (
            f"{table_set_title(name)}: AUROC over epsilon; bars are 95 % intervals. An image's epsilon protects less than a "
            "patient's: compare lines of one unit."
        )
        if any(PAPER_SET[name] in row.paper for row in rows):
            caption += " The paper's line takes its best row at each epsilon."
            if PAPER_SET[name] != name:
                caption += " That line is of its test set: other patients, so not like for like."
        figures.append(Figure(svg=svg, caption=caption))
    return figures


def _curves(page: TablePage) -> tuple[list[Figure], list[str]]:
    """The curves of sets that are public, and the names of those that are not drawn."""
    figures: list[Figure] = []
    hidden: list[str] = []
    for name in (one for one in SETS if one in page.curves):
        public = {key: scored for key, scored in page.curves[name].items() if scored.public}
        hidden += [f"{key} ({table_set_title(name)})" for key in page.curves[name] if key not in public]
        # Of the curve that is drawn, which may be one seed of several.
        shown = {key: metric_text(auroc(np.asarray(one.scores, np.float64), one.labels)) for key, one in public.items()}
        if public:
            figures += [Figure(svg=svg, caption=caption) for svg, caption in curve_plots(name, public, auroc=shown)]
    return figures, hidden


def _comparisons(comparisons: Sequence[Comparison]) -> Table:
    rows = [
        (
            f"{one.first} less {one.second}",
            table_set_title(one.set_name),
            METRIC_WORDS[one.difference.metric],
            f"{one.difference.value:+.3f} [{one.difference.low:+.3f}, {one.difference.high:+.3f}]",
            f"{one.difference.p_value:.3f}",
        )
        for one in comparisons
    ]
    caption = (
        "Both rows on the same drawn patients, means over seeds. p: two-sided bootstrap p-value, twice the smaller fraction of "
        "replicates on the other side of 0; not corrected for the number of comparisons."
    )
    head = ("Rows", "Set", "Metric", "Difference [95 % CI]", "p")
    return Table(head=head, rows=rows, caption=caption)


def _subgroups(strata: Sequence[Stratified]) -> Table:
    rows = [_subgroup(one, group) for one in strata for group in one.groups]
    caption = f"Only groups with at least 10 patients of each class have metrics. {SPREAD}"
    head = ("Row", "Set", "Group", "Patients, benign / malignant", "Images", "AUROC [95 % CI] ± seeds", "AUPRC, benign")
    return Table(head=head, rows=rows, caption=caption)


def _subgroup(one: Stratified, group: Subgroup) -> tuple[str, ...]:
    values = ("too small", ABSENT)
    if group.summary is not None:
        spread = group.summary.seed_std or {}
        values = (
            value_text(group.summary.auroc, spread.get("auroc")),
            value_text(group.summary.auprc_benign, spread.get("auprc_benign")),
        )
    return (
        one.key,
        table_set_title(one.set_name),
        f"{group.stratum}: {group.value or 'unknown'}",
        f"{group.benign_patients:,} / {group.malignant_patients:,}",
        f"{group.n_images:,}",
        *values,
    )
