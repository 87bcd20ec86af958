"""The plots of the table's page: AUROC over epsilon, ours and published, and curves of chosen rows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

from mammo_fed.data.cohort import BENIGN, MALIGNANT
from mammo_fed.reporting.formatting import epsilon_text, readable
from mammo_fed.reporting.plots.score_plots import ScoredSet, precision_recall, roc
from mammo_fed.reporting.plots.svg import INK, SERIES, Svg, draw, prefixed
from mammo_fed.reporting.table import TableRow, table_set_title

__all__ = ["PAPER_SET", "curve_plots", "series_of", "utility_plot"]

# The paper has no numbers for the other sets; its test set is of the same source as these, but of other patients.
PAPER_SET: Final = {"cv": "test", "val": "test", "test": "test", "external": "external"}
# Where a run without a guarantee sits on a logarithmic axis: this many times the largest finite epsilon.
INFINITY_FACTOR: Final = 3.0
SHIFT: Final = 1.03
LONGEST_NAME: Final = 60
# Names longer than this, in characters, do not fit next to each other.
LONGEST_OF_TWO: Final = 26


def series_of(rows: Sequence[TableRow]) -> list[tuple[str, list[TableRow]]]:
    """The curves of a plot by name, each by rising epsilon: rows of one group, unit and number of sites.

    A row without a guarantee and so without a unit ends every curve of its group and number of sites; where there is none, it
    is a curve of its own.
    """
    curves: dict[tuple[str, str | None, int], list[TableRow]] = {}
    for row in sorted((one for one in rows if one.unit or math.isfinite(one.epsilon)), key=lambda one: one.epsilon):
        curves.setdefault((row.group, row.unit, row.sites), []).append(row)
    for row in (one for one in rows if not one.unit and math.isinf(one.epsilon)):
        ended = [points for (group, _, sites), points in curves.items() if (group, sites) == (row.group, row.sites)]
        for points in ended or [curves.setdefault((row.group, None, row.sites), [])]:
            points.append(row)
    many_sites = len({sites for _, _, sites in curves}) > 1
    return [(_series_name(*key, many_sites=many_sites), points) for key, points in curves.items()]


def utility_plot(rows: Sequence[TableRow], name: str) -> Svg | None:
    """AUROC over epsilon on the set called `name`: a line for each series, intervals as bars, and the paper's best rows.

    The paper's line takes, at each epsilon, the highest AUROC it publishes. Rows at epsilon 0 have no place on a logarithmic
    axis and are left out.

    Returns:
      The SVG, or None where no row has a value on the set.
    """
    ours = [row for row in rows if name in row.summaries and row.epsilon > 0]
    if not ours:
        return None
    paper = _published(rows, PAPER_SET[name])
    finite = {row.epsilon for row in ours if math.isfinite(row.epsilon)} | {one for one in paper if math.isfinite(one)}
    edge = max(finite, default=1.0) * INFINITY_FACTOR
    series = series_of(ours)
    columns = 1 if max(len(label) for label, _ in series) > LONGEST_OF_TWO else 2

    def paint(axes: Any) -> None:
        lines, labels = [], []
        for place, (label, points) in enumerate(series):
            # A small shift apart, so that the intervals of two series at one epsilon do not cover each other.
            shift = SHIFT ** (place - (len(series) - 1) / 2)
            lines.append(_line(axes, points, name, SERIES[place % len(SERIES)], shift=shift, edge=edge))
            labels.append(label)
        if paper:
            places = [min(epsilon, edge) for epsilon in sorted(paper)]
            style = {"color": INK, "linewidth": 1.2, "linestyle": (0, (2, 2)), "marker": "x", "markersize": 5}
            lines += axes.plot(places, [paper[epsilon] for epsilon in sorted(paper)], **style)
            labels.append("Paper's best" + ("" if PAPER_SET[name] == name else f", {table_set_title(PAPER_SET[name])} set"))
        axes.legend(lines, labels, loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=columns)
        axes.set_xscale("log")
        endless = edge if any(math.isinf(one) for one in (*(row.epsilon for row in ours), *paper)) else None
        ticks = sorted(finite | ({edge} if endless else set()))
        axes.set_xticks(ticks, ["inf" if tick == endless else epsilon_text(tick) for tick in ticks], minor=False)
        axes.minorticks_off()

    label = f"AUROC over epsilon, {table_set_title(name)}, ours and the paper's"
    size = (5.2, 3.7 + 0.2 * math.ceil((len(series) + 1) / columns))
    return draw(f"utility-{name}", paint, label=label, xlabel="Epsilon (logarithmic)", ylabel="AUROC", inches=size)


def curve_plots(name: str, curves: Mapping[str, ScoredSet], *, auroc: Mapping[str, str]) -> list[tuple[Svg, str]]:
    """ROC and precision-recall plots of rows on one set, each with its caption.

    Args:
      name: of SETS.
      curves: by key of the row, at least one.
      auroc: text of the legend by key of the row.
    """
    where = table_set_title(name)
    found = [(roc(curves, auroc=auroc), f"{where}: ROC curves")]
    for positive, word in ((MALIGNANT, "malignant"), (BENIGN, "benign")):
        caption = f"{where}: precision over recall, {word} as the positive class; thin lines: chance"
        found.append((precision_recall(curves, positive=positive), caption))
    return [(prefixed(svg, name), caption) for svg, caption in found]


def _series_name(group: str, unit: str | None, sites: int, *, many_sites: bool) -> str:
    """Group, unit of epsilon and, where the curves differ in it, number of sites; matplotlib hides a leading underscore."""
    of_sites = f", {sites} site{'s' if sites > 1 else ''}" if many_sites else ""
    name = group if len(group) <= LONGEST_NAME else group[: LONGEST_NAME - 1] + "…"
    name = readable(name) + (f" ({unit})" if unit else "") + of_sites
    return f" {name}" if name.startswith("_") else name


def _published(rows: Sequence[TableRow], name: str) -> dict[float, float]:
    """The highest AUROC that the paper publishes on a set, by epsilon above 0."""
    best: dict[float, float] = {}
    for row in rows:
        found = row.paper[name].auroc if name in row.paper else None
        if found is not None and row.epsilon > 0:
            best[row.epsilon] = max(found, best.get(row.epsilon, 0.0))
    return best


def _line(axes: Any, points: Sequence[TableRow], name: str, style: tuple[Any, Any, str], *, shift: float, edge: float) -> Any:
    """One series by rising epsilon: its points with their intervals, and the line through them."""
    colour, dash, marker = style
    places = [min(row.epsilon, edge) * shift for row in points]
    found = [row.summaries[name].auroc for row in points]
    axes.vlines(places, [one.low for one in found], [one.high for one in found], color=colour, linewidth=1.1, alpha=0.7)
    axes.plot(places, [one.value for one in found], color=colour, linestyle="", marker=marker, markersize=5)
    # Rows of a series at one epsilon differ in something else: the line passes by them.
    through = [(place, one.value) for place, one in zip(places, found, strict=True) if places.count(place) == 1]
    along, up = [place for place, _ in through], [value for _, value in through]
    return axes.plot(along, up, color=colour, linestyle=dash, marker=marker, markersize=5)[0]
