"""The plots of a report, as SVG text from plain arrays."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import precision_recall_curve, roc_curve

from mammo_fed.data.cohort import BENIGN, MALIGNANT
from mammo_fed.errors import DataError
from mammo_fed.reporting.formatting import epsilon_text, set_title
from mammo_fed.reporting.plots.svg import GRID, INK, SERIES, Svg, draw, legend, legend_label

__all__ = [
    "ScoredSet",
    "TradeOffPoint",
    "auroc_per_round",
    "calibration",
    "epsilon_per_round",
    "precision_recall",
    "roc",
    "score_histogram",
    "site_sizes",
    "trade_off",
]

HISTOGRAM_BINS: Final = np.linspace(0.0, 1.0, 26)
CALIBRATION_BINS: Final = 10
# Standard normal quantile of a two-sided 95 % interval.
Z95: Final = 1.959964
MOST_SITES_SHOWN: Final = 30
# Where a run without noise sits on a logarithmic axis: this many times the largest finite epsilon.
INFINITY_FACTOR: Final = 4.0
SHIFT: Final = 1.05
# Titles of sets longer than this, in characters, do not fit three in a row.
LONGEST_OF_THREE: Final = 16


@dataclass(frozen=True, kw_only=True, eq=False)
class ScoredSet:
    """Labels and scores of one evaluation set, in an order that does not tell whose they are.

    Attributes:
      labels: int, shape (images,): MALIGNANT = 1 or BENIGN = 0, both present.
      scores: float, shape (images,), in [0, 1]: probability of malignant.
      public: whether the patients are declared public. A curve gives back the score of single patients, so a set that is
        not public has no curve in a report.
      round_auroc: AUROC after each round, or empty where it was not measured.
    """

    labels: NDArray[Any]
    scores: NDArray[Any]
    public: bool
    round_auroc: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if len(self.labels) != len(self.scores):
            raise DataError(
                f"{len(self.labels)} labels and {len(self.scores)} scores must be as many; give one of each for every image"
            )
        if set(np.unique(self.labels).tolist()) != {BENIGN, MALIGNANT}:
            raise DataError("labels must hold 0 for benign and 1 for malignant, both present; a curve needs the two classes")
        if not ((self.scores >= 0) & (self.scores <= 1)).all():
            raise DataError("scores must be numbers in [0, 1]: give the probability of malignant")


@dataclass(frozen=True, kw_only=True)
class TradeOffPoint:
    """One run in the trade-off plot: what it spent (infinite without noise) and the AUROC it reached."""

    epsilon: float
    auroc: float
    auroc_ci: tuple[float, float] | None


def roc(sets: Mapping[str, ScoredSet], *, auroc: Mapping[str, str]) -> Svg:
    """Receiver operating characteristic of each set; `auroc` gives the legend's text, value and interval."""

    def paint(axes: Any) -> None:
        axes.plot([0, 1], [0, 1], color=GRID, linewidth=1.2)
        lines = []
        for scored, (colour, dash, _) in zip(sets.values(), _styles(len(sets)), strict=True):
            false_positive, true_positive, _ = roc_curve(scored.labels, scored.scores)
            lines += axes.plot(false_positive, true_positive, color=colour, linestyle=dash)
        legend(axes, lines, [set_title(name) for name in sets], loc="lower right")
        for text, name in zip(axes.get_legend().get_texts(), sets, strict=True):
            text.set_text(f"{text.get_text()}: {auroc[name]}")
        _unit_square(axes)

    label = "ROC curves: " + "; ".join(f"{set_title(name)} AUROC {auroc[name]}" for name in sets)
    return draw("roc", paint, label=label, xlabel="1 - specificity", ylabel="Sensitivity")


def precision_recall(sets: Mapping[str, ScoredSet], *, positive: int) -> Svg:
    """Precision over recall of each set with `positive` (MALIGNANT or BENIGN) as the positive class; thin lines: chance."""
    word = "malignant" if positive == MALIGNANT else "benign"

    def paint(axes: Any) -> None:
        lines = []
        for scored, (colour, dash, _) in zip(sets.values(), _styles(len(sets)), strict=True):
            wanted = scored.labels == positive
            scores = scored.scores if positive == MALIGNANT else 1.0 - scored.scores
            precision, recall, _ = precision_recall_curve(wanted, scores)
            axes.axhline(float(np.mean(wanted)), color=colour, linestyle=dash, linewidth=0.7, alpha=0.6)
            lines += axes.plot(recall, precision, color=colour, linestyle=dash, drawstyle="steps-post")
        legend(axes, lines, [set_title(name) for name in sets], loc="lower left")
        _unit_square(axes)

    label = f"Precision and recall with {word} as the positive class"
    return draw(f"precision-recall-{word}", paint, label=label, xlabel=f"Recall ({word})", ylabel=f"Precision ({word})")


def score_histogram(scored: ScoredSet, *, name: str) -> Svg:
    """How benign and malignant images of one set score, as fractions of their class."""

    def paint(axes: Any) -> None:
        for value, word, (colour, dash, _) in zip((BENIGN, MALIGNANT), ("benign", "malignant"), SERIES, strict=False):
            scores = scored.scores[scored.labels == value]
            fraction = np.full(len(scores), 1.0 / len(scores))
            axes.hist(scores, HISTOGRAM_BINS, weights=fraction, color=colour, alpha=0.25, histtype="stepfilled")
            outline = {"color": colour, "linestyle": dash, "histtype": "step", "linewidth": 1.6}
            axes.hist(scores, HISTOGRAM_BINS, weights=fraction, label=f"{word} ({len(scores):,})", **outline)
        axes.legend(loc="upper center", ncols=2)
        axes.set_xlim(0, 1)
        axes.margins(y=0.2)

    label = f"{set_title(name)}: distribution of scores of benign and of malignant images"
    return draw(
        "scores", paint, label=label, xlabel="Score (probability of malignant)", ylabel="Fraction of the class's images"
    )


def calibration(sets: Mapping[str, ScoredSet]) -> Svg:
    """Fraction of malignant images over the mean score, in ten groups of equal size; bars: 95 % Wilson intervals."""

    def paint(axes: Any) -> None:
        axes.plot([0, 1], [0, 1], color=GRID, linewidth=1.2)
        lines = []
        for scored, (colour, dash, marker) in zip(sets.values(), _styles(len(sets)), strict=True):
            mean_score, fraction, low, high = _calibration_points(scored)
            axes.vlines(mean_score, low, high, color=colour, linewidth=1.0, alpha=0.6)
            lines += axes.plot(mean_score, fraction, color=colour, linestyle=dash, marker=marker, markersize=5)
        legend(axes, lines, [set_title(name) for name in sets], loc="upper left")
        _unit_square(axes)

    label = "Calibration: fraction of malignant images over the mean score"
    return draw("calibration", paint, label=label, xlabel="Mean score", ylabel="Fraction of malignant images")


def epsilon_per_round(sites: Mapping[str, Sequence[float]], *, target: float) -> Svg:
    """Cumulative epsilon after each round; sites that spent the same share a line; the target is drawn where finite.

    `sites` maps a site to its finite cumulative epsilons, one for each round.
    """
    groups: dict[tuple[float, ...], list[str]] = {}
    for site, values in sites.items():
        groups.setdefault(tuple(values), []).append(site)

    def paint(axes: Any) -> None:
        lines, labels = [], []
        for (values, names), (colour, dash, marker) in zip(groups.items(), _styles(len(groups)), strict=True):
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
        for values, (colour, dash, marker) in zip(sets.values(), _styles(len(sets)), strict=True):
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
        for row, (points, (colour, dash, marker)) in enumerate(zip(sets.values(), _styles(len(sets)), strict=True)):
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


def _styles(count: int) -> list[tuple[Any, Any, str]]:
    """Colour, dash and marker of `count` series; they repeat after the sixth."""
    return [SERIES[row % len(SERIES)] for row in range(count)]


def _unit_square(axes: Any) -> None:
    axes.set_xlim(-0.01, 1.01)
    axes.set_ylim(-0.01, 1.01)


def _calibration_points(scored: ScoredSet) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Mean score, fraction of malignant images and its Wilson interval for groups of equal size by rising score."""
    order = np.argsort(scored.scores, kind="stable")
    groups = np.array_split(order, min(CALIBRATION_BINS, len(order)))
    size = np.array([len(group) for group in groups], dtype=np.float64)
    mean_score = np.array([scored.scores[group].mean() for group in groups])
    fraction = np.array([(scored.labels[group] == MALIGNANT).mean() for group in groups])
    centre = (fraction + Z95**2 / (2 * size)) / (1 + Z95**2 / size)
    half = Z95 * np.sqrt(fraction * (1 - fraction) / size + (Z95 / (2 * size)) ** 2) / (1 + Z95**2 / size)
    return mean_score, fraction, centre - half, centre + half
