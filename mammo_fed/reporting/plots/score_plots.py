"""Plots of scored sets: ROC, precision and recall, calibration and histograms, as SVG from plain arrays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import precision_recall_curve, roc_curve

from mammo_fed.data.cohort import BENIGN, MALIGNANT
from mammo_fed.errors import DataError
from mammo_fed.reporting.formatting import set_title
from mammo_fed.reporting.plots.svg import GRID, SERIES, Svg, draw, legend, styles

__all__ = ["ScoredSet", "calibration", "calibration_points", "precision_recall", "roc", "score_histogram"]

HISTOGRAM_BINS: Final = np.linspace(0.0, 1.0, 26)
CALIBRATION_BINS: Final = 10
# Standard normal quantile of a two-sided 95 % interval.
Z95: Final = 1.959964


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


def roc(sets: Mapping[str, ScoredSet], *, auroc: Mapping[str, str]) -> Svg:
    """Receiver operating characteristic of each set; `auroc` gives the legend's text, value and interval."""

    def paint(axes: Any) -> None:
        axes.plot([0, 1], [0, 1], color=GRID, linewidth=1.2)
        lines = []
        for scored, (colour, dash, _) in zip(sets.values(), styles(len(sets)), strict=True):
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
        for scored, (colour, dash, _) in zip(sets.values(), styles(len(sets)), strict=True):
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
        for scored, (colour, dash, marker) in zip(sets.values(), styles(len(sets)), strict=True):
            mean_score, fraction, low, high = calibration_points(scored)
            axes.vlines(mean_score, low, high, color=colour, linewidth=1.0, alpha=0.6)
            lines += axes.plot(mean_score, fraction, color=colour, linestyle=dash, marker=marker, markersize=5)
        legend(axes, lines, [set_title(name) for name in sets], loc="upper left")
        _unit_square(axes)

    label = "Calibration: fraction of malignant images over the mean score"
    return draw("calibration", paint, label=label, xlabel="Mean score", ylabel="Fraction of malignant images")


def calibration_points(scored: ScoredSet) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Mean score, fraction of malignant images and its Wilson interval for groups of equal size by rising score."""
    order = np.argsort(scored.scores, kind="stable")
    groups = np.array_split(order, min(CALIBRATION_BINS, len(order)))
    size = np.array([len(group) for group in groups], dtype=np.float64)
    mean_score = np.array([scored.scores[group].mean() for group in groups])
    fraction = np.array([(scored.labels[group] == MALIGNANT).mean() for group in groups])
    feature_mean = (fraction + Z95**2 / (2 * size)) / (1 + Z95**2 / size)
    half = Z95 * np.sqrt(fraction * (1 - fraction) / size + (Z95 / (2 * size)) ** 2) / (1 + Z95**2 / size)
    return mean_score, fraction, feature_mean - half, feature_mean + half


def _unit_square(axes: Any) -> None:
    axes.set_xlim(-0.01, 1.01)
    axes.set_ylim(-0.01, 1.01)
