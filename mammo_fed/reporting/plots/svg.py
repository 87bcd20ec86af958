"""Matplotlib figures as inline SVG: the same bytes for the same data, text left to the browser, colours left to the page."""

from __future__ import annotations

import html
import io
import re
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Final

from matplotlib import rc_context, rcdefaults, rcParams
from matplotlib.figure import Figure

from mammo_fed.reporting.formatting import readable

__all__ = ["COLOUR_VARIABLES", "GRID", "INK", "SERIES", "Svg", "draw", "legend", "legend_label", "prefixed", "styles"]

INK: Final = "#1f2933"
GRID: Final = "#d3d9e0"
# Okabe and Ito's palette, safe for the common colour-vision deficiencies; dashes and markers say the same without colour.
SERIES: Final = (
    ("#0072b2", "-", "o"),
    ("#d55e00", "--", "s"),
    ("#009e73", "-.", "^"),
    ("#cc79a7", ":", "D"),
    ("#b07c00", (0, (5, 1, 1, 1, 1, 1)), "v"),
    ("#3a8fc4", (0, (1, 2)), "P"),
)
# A page that defines the variable recolours the plot (dark mode); alone, the SVG shows the colour given here.
COLOUR_VARIABLES: Final = {
    INK: "--ink",
    GRID: "--grid",
    **{colour: f"--series-{row}" for row, (colour, _, _) in enumerate(SERIES, start=1)},
}
LONGEST_LABEL: Final = 26
STYLE: Final[dict[Any, Any]] = {
    "axes.edgecolor": GRID,
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.axisbelow": True,
    "font.family": ["DejaVu Sans"],
    "font.size": 10.0,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "legend.fontsize": 9.0,
    "legend.frameon": False,
    "legend.handlelength": 2.6,
    "lines.linewidth": 1.9,
    "svg.fonttype": "none",
    "text.color": INK,
    # A site may have a dollar sign in its name; that is not mathematics.
    "text.parse_math": False,
    "xtick.color": INK,
    "ytick.color": INK,
}
NO_METADATA: Final = {"Creator": None, "Date": None, "Format": None, "Type": None}


class Svg(str):
    """An `<svg>` element that `draw` made: the one text that a page takes without escaping it."""

    __slots__ = ()


def draw(
    name: str, paint: Callable[[Any], None], *, label: str, xlabel: str, ylabel: str, inches: tuple[float, float] = (5.2, 3.9)
) -> Svg:
    """An `<svg>` element that `paint` has drawn on one pair of axes.

    No pyplot and no global figure: the matplotlib settings are put back afterwards.

    Args:
      name: distinct for each plot of a page, letters and hyphens; every id in the SVG starts with it.
      paint: draws on the axes it is given.
      label: what the plot shows, for people who do not see it.
      xlabel: quantity and unit along x.
      ylabel: quantity and unit along y.
      inches: width and height.
    """
    with rc_context(), warnings.catch_warnings():
        # A matplotlibrc that lies in the current folder has been read: nothing of it may decide what a report looks like.
        rcdefaults()
        rcParams.update({**STYLE, "svg.hashsalt": name})
        # The browser draws the text with its own fonts, so a glyph that matplotlib's font lacks is not missing.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font", category=UserWarning)
        figure = Figure(figsize=inches, layout="constrained")
        axes = figure.add_subplot()
        axes.tick_params(length=0)
        axes.set_xlabel(xlabel)
        axes.set_ylabel(ylabel)
        paint(axes)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata=NO_METADATA, transparent=True)
    return _inline(buffer.getvalue(), name, label)


def styles(count: int) -> list[tuple[Any, Any, str]]:
    """Colour, dash and marker of `count` series; they repeat after the sixth."""
    return [SERIES[row % len(SERIES)] for row in range(count)]


def legend(axes: Any, lines: Sequence[Any], labels: Sequence[str], **where: Any) -> None:
    """A legend that shows every label as it is."""
    axes.legend(list(lines), [legend_label(label) for label in labels], **where)


def legend_label(text: str) -> str:
    """`text` cut to a length that fits a plot; a leading underscore, which matplotlib would hide, gets a space before it."""
    short = readable(text if len(text) <= LONGEST_LABEL else text[: LONGEST_LABEL - 1] + "…")
    return f" {short}" if short.startswith("_") else short


def prefixed(svg: Svg, prefix: str) -> Svg:
    """The same plot under other identifiers, so that one drawn for several sets can be on one page several times."""
    return Svg(_with_prefix(svg, prefix))


def _inline(svg: str, name: str, label: str) -> Svg:
    """What matplotlib wrote as an element that can be next to others on one page: no prologue, no shared ids or styles."""
    svg = svg[svg.index("<svg") :].rstrip()
    svg = re.sub(r"\s*<defs>\s*<style[^>]*>.*?</style>\s*</defs>", "", svg, count=1, flags=re.DOTALL)
    svg = _with_prefix(svg, name)
    for colour, variable in COLOUR_VARIABLES.items():
        svg = svg.replace(f": {colour}", f": var({variable}, {colour})")
    head = f'<svg role="img" aria-label="{html.escape(label)}" style="stroke-linejoin: round; stroke-linecap: butt"'
    return Svg(head + svg[len("<svg") :])


def _with_prefix(svg: str, prefix: str) -> str:
    return re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{prefix}-", svg)
