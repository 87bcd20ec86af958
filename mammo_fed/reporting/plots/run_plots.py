"""Plots of runs: epsilon and AUROC over the rounds, the sites' sizes, AUROC over epsilon; as SVG from plain numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from mammo_fed.reporting.formatting import epsilon_text, set_title
from mammo_fed.reporting.plots.svg import INK, SERIES, Svg, draw, legend, legend_label, styles

__all__ = ["TradeOffPoint", "auroc_per_round", "epsilon_per_round", "site_sizes", "trade_off"]

MOST_SITES_SHOWN: Final = 30
# Where a run without noise sits on a logarithmic axis: this many times the largest finite epsilon.
INFINITY_FACTOR: Final = 4.0
SHIFT: Final = 1.05
# Titles of sets longer than this, in characters, do not fit three in a row.
LONGEST_OF_THREE: Final = 16


@dataclass(frozen=True, kw_only=True)
class TradeOffPoint:
    """One run in the trade-off plot: what it spent (infinite without noise) and the AUROC it reached."""

    epsilon: float
    auroc: float
    auroc_ci: tuple[float, float] | None


def epsilon_per_round(sites: Mapping[str, Sequence[float]], *, target: float) -> Svg:
    """Cumulative epsilon after each round; sites that spent the same share a line; the target is drawn where finite.

    `sites` maps a site to its finite cumulative epsilons, one for each round.
    """
    groups: dict[tuple[float, ...], list[str]] = {}
    for site, values in sites.items():
        groups.setdefault(tuple(values), []).append(site)

    def paint(axes: Any) -> None:
        lines, labels = [], []
        for (values, names), (colour, dash, marker) in zip(groups.items(), styles(len(groups)), strict=True):
            mark = {"marker": marker, "markersize": 4} if len(values) <= 30 else {}
            spent = [0.0, *values]
            lines += axes.plot(range(len(spent)), spent, color=colour, linestyle=dash, **mark)
            labels.append(names[0] if len(names) == 1 else f"{len(names)} sites alike")
        if math.isfinite(target):
            lines.append(axes.axhline(target, color=INK, linewidth=1.0, linestyle=(0, (2, 2))))
            labels.append(f"target {epsilon_text(target)}")
        legend(axes, lines[-8:], labels[-8:], loc="lower right")
        axes.set_ylim(bottom=0)
        axes.xaxis.get_major_locator().set_params(integer=True)

    label = f"Cumulative epsilon of each site over the rounds, target {epsilon_text(target)}"
    return draw("epsilon", paint, label=label, xlabel="Round", ylabel="Cumulative epsilon (this run)")


def auroc_per_round(sets: Mapping[str, Sequence[float]]) -> Svg:
    """AUROC of each set after each round."""

    def paint(axes: Any) -> None:
        lines = []
        for values, (colour, dash, marker) in zip(sets.values(), styles(len(sets)), strict=True):
            mark = {"marker": marker, "markersize": 4} if len(values) <= 30 else {}
            lines += axes.plot(range(1, len(values) + 1), values, color=colour, linestyle=dash, **mark)
        legend(axes, lines, [set_title(name) for name in sets], loc="best")
        axes.xaxis.get_major_locator().set_params(integer=True)

    return draw("rounds", paint, label="AUROC after each round", xlabel="Round", ylabel="AUROC")


def site_sizes(names: Sequence[str], patients: Sequence[int], images: Sequence[int]) -> Svg:
    """Public counts of each site as bars, the first site on top; of very many sites the largest are shown."""
    largest = sorted(np.argsort(patients, kind="stable")[::-1][:MOST_SITES_SHOWN].tolist())
    rows = np.arange(len(largest))

    def paint(axes: Any) -> None:
        series = (("patients", patients, -0.19), ("images", images, 0.19))
        for (word, values, offset), (colour, _, _) in zip(series, SERIES, strict=False):
            shown = [values[site] for site in largest]
            bars = axes.barh(rows + offset, shown, height=0.34, color=colour, label=word)
            axes.bar_label(bars, labels=[f"{value:,}" for value in shown], padding=3, fontsize=8.5)
        axes.set_yticks(rows, [legend_label(names[site]) for site in largest])
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        axes.margins(x=0.12)
        axes.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=2)

    height = 1.3 + 0.5 * len(largest)
    return draw("sites", paint, label="Patients and images of each site", xlabel="Count", ylabel="", inches=(5.2, height))


def trade_off(sets: Mapping[str, Sequence[TradeOffPoint]]) -> Svg:
    """AUROC with its 95 % interval over epsilon, one series a set; runs without noise are at the right edge.

    Every epsilon is above 0.
    """
    finite = {point.epsilon for points in sets.values() for point in points if math.isfinite(point.epsilon)}
    edge = max(finite, default=1.0) * INFINITY_FACTOR
    endless = {edge for points in sets.values() for point in points if math.isinf(point.epsilon)}
    ticks = sorted(finite | endless)
    titles = [set_title(name) for name in sets]
    columns = 3 if max(map(len, titles)) <= LONGEST_OF_THREE else 1

    def paint(axes: Any) -> None:
        lines = []
        for row, (points, (colour, dash, marker)) in enumerate(zip(sets.values(), styles(len(sets)), strict=True)):
            # A small shift apart, so that the intervals of two sets at one epsilon do not cover each other.
            shift = SHIFT ** (row - (len(sets) - 1) / 2)
            shown = sorted(points, key=lambda point: point.epsilon)
            places = [min(point.epsilon, edge) * shift for point in shown]
            intervals = [point.auroc_ci or (point.auroc, point.auroc) for point in shown]
            axes.vlines(places, [low for low, _ in intervals], [high for _, high in intervals], color=colour, linewidth=1.1)
            # Runs at one epsilon differ in something else, and "no noise" is no point of the scale: no line through either.
            joined = len(set(places)) == len(places) and math.isfinite(shown[-1].epsilon)
            values = [point.auroc for point in shown]
            style = {"linestyle": dash if joined else "", "marker": marker, "markersize": 6}
            lines += axes.plot(places, values, color=colour, **style)
        legend(axes, lines, titles, loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=columns)
        axes.set_xscale("log")
        axes.set_xticks(ticks, ["no noise" if tick in endless else epsilon_text(tick) for tick in ticks], minor=False)
        axes.minorticks_off()

    return draw("trade-off", paint, label="AUROC over epsilon, all runs", xlabel="Epsilon (logarithmic)", ylabel="AUROC")
