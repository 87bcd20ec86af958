"""Synthetic sets next to real masses: grids, figures and spectra on one page, for the site's own people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mammo_fed.reporting.pages.pictures import Picture, picture
from mammo_fed.reporting.pages.rendering import Figure, Table, render
from mammo_fed.reporting.plots.svg import SERIES, Svg, draw, legend
from mammo_fed.synthesis.quality.spectrum import radial_power

__all__ = ["QualityRow", "quality_page"]

ACROSS: Final = 6
DOWN: Final = 4
MOST_CURVES: Final = len(SERIES)
NO_VALUE: Final = "\N{EN DASH}"
COLUMNS: Final[Sequence[tuple[str, str, str]]] = (
    ("frechet", "Fréchet distance", "{:.1f}"),
    ("precision", "Precision", "{:.3f}"),
    ("recall", "Recall", "{:.3f}"),
    ("density", "Density", "{:.3f}"),
    ("coverage", "Coverage", "{:.3f}"),
    ("consistency", "Consistency", "{:.3f}"),
)
LINES: Final[Sequence[tuple[str, str, str]]] = (
    ("checkerboard_half", "Checkerboard N/2", "{:.1f}"),
    ("checkerboard_quarter", "Checkerboard N/4", "{:.1f}"),
    ("fine_detail", "Fine detail", "{:.4f}"),
    ("wrapped", "Wrapped pixels", "{:.1e}"),
    ("nearest_ratio", "Nearest ratio", "{:.3f}"),
    ("nearer_to_train", "Nearer to train", "{:.3f}"),
    ("copies", "Copies", "{}"),
)
MEANING: Final = (
    ("Fréchet distance", "to the training masses; that of held-out patients is what chance alone gives"),
    ("Precision, recall, density, coverage", "how much of the set lies among real masses, and how much of them it reaches"),
    ("Consistency", "AUROC of a classifier of real masses for the set's own labels: do the classes differ as real ones do?"),
    ("TSTR", "train on synthetic, test on real: AUROC on held-out patients, with its 95 % interval over patients"),
    ("Checkerboard", "power at N/2 and N/4 over that around them; about 1 without a checkerboard"),
    ("Wrapped pixels", "fraction of pixels that jump across the range, as where values were cast to 8 bits without clipping"),
    ("Nearest ratio", "distance to the nearest training mass, over that of held-out patients; well below 1 is memorisation"),
    ("Nearer to train", "fraction nearer to a training than to a held-out mass, over what sets of one size would give"),
    ("Copies", "images half as far from a training mass as the nearest held-out one, or nearer"),
)


@dataclass(frozen=True, kw_only=True, eq=False)
class QualityRow:
    """One set on the page.

    Attributes:
      name, kind: of the set.
      pixels: float32 in [0, 1], shape (images, side, side); all rows of one side.
      labels: int64, shape (images,).
      figures: by the names of COLUMNS and LINES, and "tstr" and "tstr_ci", which may be None.
    """

    name: str
    kind: str
    pixels: NDArray[np.float32]
    labels: NDArray[np.int64]
    figures: Mapping[str, Any]


def quality_page(title: str, rows: Sequence[QualityRow], *, public: bool) -> str:
    """The page as HTML; it loads nothing from elsewhere.

    Args:
      title: what was compared.
      rows: the sets, real ones first.
      public: whether the real masses are declared public.
    """
    return render(
        "quality.html",
        title=title,
        public=public,
        fidelity=_figures(rows, COLUMNS, tstr=True, caption="Fidelity and classes"),
        artefacts=_figures(rows, LINES, tstr=False, caption="Artefacts of generators and copies of training masses"),
        spectra=Figure(svg=_spectra(rows), caption="Mean power by frequency; a peak is a pattern that repeats"),
        sheets=[(row, _sheet(row)) for row in rows],
        meaning=MEANING,
    )


def _figures(rows: Sequence[QualityRow], columns: Sequence[tuple[str, str, str]], *, tstr: bool, caption: str) -> Table:
    head = ["Set", "Kind", *(title for _, title, _ in columns), *(["TSTR AUROC [95 % CI]"] if tstr else [])]
    body = []
    for row in rows:
        cells = [form.format(row.figures[name]) for name, _, form in columns]
        if tstr:
            interval = row.figures["tstr_ci"]
            shown = f"{row.figures['tstr']:.3f} [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else NO_VALUE
            cells.append(shown)
        body.append((row.name, row.kind, *cells))
    return Table(head=head, rows=body, caption=caption)


def _spectra(rows: Sequence[QualityRow]) -> Svg:
    def paint(axes: Any) -> None:
        lines = []
        for row, (colour, dash, _) in zip(rows[:MOST_CURVES], SERIES, strict=False):
            power = radial_power(row.pixels)[1:]
            lines += axes.plot(np.arange(1, len(power) + 1), power, color=colour, linestyle=dash)
        axes.set_yscale("log")
        # The page takes no mathematics in its text.
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        legend(axes, lines, [row.name for row in rows[:MOST_CURVES]])

    return draw("spectra", paint, label="power spectra of the sets", xlabel="Cycles per image", ylabel="Power")


def _sheet(row: QualityRow) -> list[Picture]:
    """Benign images on the left, malignant ones on the right, evenly taken from the set."""
    halves = []
    for word, label in (("benign", 0), ("malignant", 1)):
        images = row.pixels[row.labels == label]
        if not len(images):
            continue
        places = np.linspace(0, len(images) - 1, ACROSS * DOWN).astype(int)
        lines = [np.concatenate(list(images[places[at : at + ACROSS]]), axis=1) for at in range(0, ACROSS * DOWN, ACROSS)]
        grid = Image.fromarray(np.round(np.concatenate(lines) * 255).astype(np.uint8))
        halves.append(picture(grid, title=f"{word} images of {row.name}"))
    return halves
