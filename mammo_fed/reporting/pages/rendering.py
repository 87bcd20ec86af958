"""Pages from the templates beside this module: every value is escaped, a missing one is an error, and nothing is loaded.

Names of sites, settings and sentences of records come from elsewhere. They are values, never templates: what looks like markup
or like a template's own language in them is shown as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Final

from jinja2 import Environment, PackageLoader, StrictUndefined, Undefined
from markupsafe import Markup

from mammo_fed.reporting.formatting import NO_BREAK, readable
from mammo_fed.reporting.plots.svg import COLOUR_VARIABLES, Svg
from mammo_fed.reporting.record.statements import HOW_TO_READ

__all__ = ["Card", "Figure", "Table", "render"]

PACKAGE: Final = "mammo_fed.reporting.pages"


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table; the first cell of each row names it.

    Attributes:
      head: titles of the columns.
      rows: cells, as many in each row as there are titles.
      caption: what the table shows.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str


@dataclass(frozen=True, kw_only=True)
class Card:
    """A headline: the answer, what it means, and "good" or "bad" where it is one of them."""

    value: str
    note: str
    kind: str = ""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A plot with its caption."""

    svg: Svg
    caption: str

    @property
    def element(self) -> Markup:
        """The plot as it is, not escaped: the one place where a page takes markup that is not in a template.

        Raises:
          TypeError: If the plot was not made by `mammo_fed.reporting.plots.svg.draw`, which escapes every label.
        """
        if not isinstance(self.svg, Svg):
            raise TypeError(f"a plot must be an Svg that draw() made, not {type(self.svg).__name__}: other text is escaped")
        return Markup(self.svg)  # noqa: S704


def render(template: str, /, **values: object) -> str:
    """The page that a template makes of `values`, as HTML.

    Args:
      template: name of a file in the folder templates.
      values: what the template names. Only text is shown: a number must have been formatted.

    Raises:
      jinja2.UndefinedError: If the template names something that is not in `values`.
      TypeError: If something to be shown is not text.
    """
    return _environment().get_template(template).render(values)


@cache
def _environment() -> Environment:
    # Escaping is on for every template, whatever its file is called.
    environment = Environment(
        loader=PackageLoader(PACKAGE),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_printable,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    environment.filters["unbroken"] = _unbroken
    environment.globals.update(plot_colours=COLOUR_VARIABLES, how_to_read=HOW_TO_READ)
    return environment


def _printable(value: object) -> object:
    """A value on its way into a page, before it is escaped: text without characters that do not print."""
    if isinstance(value, Markup | Undefined):
        return value
    if not isinstance(value, str):
        raise TypeError(f"a page shows text, not {type(value).__name__}: format the value first")
    return value if value.isprintable() else readable(value)


def _unbroken(title: str) -> str:
    """A column's title in which "[95 % CI]" and "ε this run" stay in one piece; a longer title may break elsewhere."""
    return title.replace("95 % CI", f"95{NO_BREAK}%{NO_BREAK}CI").replace("ε ", f"ε{NO_BREAK}")
