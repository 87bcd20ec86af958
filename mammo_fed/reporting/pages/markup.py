"""The few pieces of HTML that the pages are made of; plain text is escaped by its type, never by memory."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from typing import Final

from mammo_fed.reporting.pages.stylesheet import CSS
from mammo_fed.reporting.record.statements import NO_BREAK, readable

__all__ = [
    "Html",
    "card",
    "details",
    "document",
    "facts",
    "figure",
    "join",
    "lines",
    "listing",
    "paragraph",
    "section",
    "table",
    "text",
]

# Nothing is loaded from elsewhere; pictures are embedded.
POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


class Html(str):
    """Text that is HTML already. Every other string is escaped on its way into a page."""

    __slots__ = ()


def text(value: str) -> Html:
    """`value` fit for a page: escaped and without characters that do not print, unless it is `Html` already."""
    return value if isinstance(value, Html) else Html(html.escape(readable(value)))


def join(parts: Iterable[str], separator: str = "\n") -> Html:
    """Several pieces after one another, each escaped unless it is `Html`."""
    return Html(separator.join(text(part) for part in parts))


def lines(content: str) -> Html:
    """Text of several lines, each escaped, for a `<pre>`."""
    return join(content.expandtabs(4).splitlines())


def paragraph(content: str, *, kind: str = "") -> Html:
    """A `<p>`, with a CSS class if `kind` is given."""
    return Html(f"<p{_class(kind)}>{text(content)}</p>")


def listing(items: Iterable[str]) -> Html:
    """A bulleted list."""
    return Html("<ul>" + "".join(f"<li>{text(item)}</li>" for item in items) + "</ul>")


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *, caption: str) -> Html:
    """A table whose first column names the row; it scrolls by itself where the screen is narrow."""
    # "[95 % CI]" and "ε this run" stay in one piece; a longer title may break.
    titles = (cell.replace("95 % CI", f"95{NO_BREAK}%{NO_BREAK}CI").replace("ε ", f"ε{NO_BREAK}") for cell in head)
    columns = "".join(f'<th scope="col">{text(title)}</th>' for title in titles)
    body = "".join(
        f'<tr><th scope="row">{text(first)}</th>' + "".join(f"<td>{text(cell)}</td>" for cell in rest) + "</tr>\n"
        for first, *rest in rows
    )
    return Html(
        f'<div class="scroll"><table><caption><span>{text(caption)}</span></caption>\n'
        f"<thead><tr>{columns}</tr></thead>\n<tbody>{body}</tbody></table></div>"
    )


def facts(entries: Iterable[tuple[str, str]]) -> Html:
    """Names and values, for reading rather than comparing."""
    return Html("<dl>" + "".join(f"<dt>{text(name)}</dt><dd>{text(value)}</dd>\n" for name, value in entries) + "</dl>")


def card(title: str, value: str, note: str, *, kind: str = "") -> Html:
    """One headline: what it is about, the answer in large type, and what it means."""
    answer = f'<p class="value">{text(value)}</p><p>{text(note)}</p>'
    return Html(f'<div class="card {html.escape(kind)}"><h2>{text(title)}</h2>{answer}</div>')


def figure(svg: str, caption: str) -> Html:
    """A plot, given as an `<svg>` element, with its caption."""
    return Html(f"<figure>{svg}<figcaption>{text(caption)}</figcaption></figure>")


def section(title: str, *content: str, kind: str = "") -> Html:
    """A titled part of a page."""
    return Html(f"<section{_class(kind)}><h2>{text(title)}</h2>\n{join(content)}\n</section>")


def details(title: str, *content: str) -> Html:
    """A part of a page that is closed until someone opens it."""
    return Html(f"<details><summary>{text(title)}</summary>\n{join(content)}\n</details>")


def document(title: str, *content: str) -> str:
    """A whole page that loads nothing: the policy in its head forbids scripts and every outside resource."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{text(title)}</title>\n<style>{CSS}</style>\n</head>\n"
        f"<body>\n<main>\n{join(content)}\n</main>\n</body>\n</html>\n"
    )


def _class(kind: str) -> str:
    return f' class="{html.escape(kind)}"' if kind else ""
