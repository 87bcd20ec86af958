"""The pages' style: light or dark as the reader's system asks, narrow screens, print."""

from __future__ import annotations

from typing import Final

from mammo_fed.reporting.plots.svg import GRID, INK, SERIES

__all__ = ["CSS"]

_LIGHT: Final = (
    f"--ink: {INK}; --soft: #52606d; --page: #ffffff; --panel: #f5f7fa; --grid: {GRID}; --good: #0a6b4b; --bad: #a83a00; "
    + " ".join(f"--series-{row}: {colour};" for row, (colour, _, _) in enumerate(SERIES, start=1))
)
_DARK: Final = (
    "--ink: #e4e7eb; --soft: #a9b4c0; --page: #14181d; --panel: #1f252c; --grid: #3e4c59; --good: #5fd3a8; --bad: #ff9a66; "
    "--series-1: #56b4e9; --series-2: #ff8a3d; --series-3: #3fc79a; --series-4: #e3a3c5; --series-5: #e6b422; "
    "--series-6: #9ecdf0;"
)
_FONTS: Final = 'system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", Arial, sans-serif'

CSS: Final = f"""
:root {{ {_LIGHT} }}
@media screen and (prefers-color-scheme: dark) {{ :root {{ {_DARK} }} }}
* {{ box-sizing: border-box; }}
body {{ margin: 0; background: var(--page); color: var(--ink); font: 16px/1.55 {_FONTS}; }}
main {{ max-width: 70rem; margin: 0 auto; padding: 1.5rem 1.25rem 4rem; }}
h1 {{ font-size: 1.6rem; line-height: 1.25; margin: 0 0 .25rem; overflow-wrap: anywhere; }}
h2 {{ font-size: 1.2rem; margin: 0 0 .6rem; }}
section, details {{ margin-top: 2.4rem; }}
p {{ margin: 0 0 .7rem; max-width: 48rem; }}
ul {{ margin: 0; padding-left: 1.2rem; max-width: 48rem; }}
li {{ margin-bottom: .45rem; overflow-wrap: anywhere; }}
pre {{ font: .85em/1.45 ui-monospace, "Liberation Mono", Menlo, monospace; background: var(--panel); padding: 1rem;
  border-radius: .5rem; overflow-x: auto; }}
.soft, figcaption, caption {{ color: var(--soft); }}
.cards {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 21rem), 1fr)); gap: 1rem;
  margin-top: 1.4rem; }}
.card {{ background: var(--panel); border-radius: .6rem; padding: 1.1rem 1.25rem; border-left: .3rem solid var(--series-1); }}
.card.good {{ border-left-color: var(--good); }}
.card.bad {{ border-left-color: var(--bad); }}
.card h2 {{ font-size: .85rem; text-transform: uppercase; letter-spacing: .06em; color: var(--soft); margin: 0; }}
.card .value {{ font-size: 1.75rem; font-weight: 650; line-height: 1.25; margin: .25rem 0 .4rem; }}
.card p:last-child {{ margin: 0; }}
.scroll {{ overflow-x: auto; margin-bottom: 1.2rem; }}
table {{ border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }}
caption {{ text-align: left; padding-bottom: .4rem; font-size: .9rem; }}
caption span {{ display: block; max-width: min(48rem, calc(100vw - 2.5rem)); }}
th, td {{ text-align: right; padding: .45rem .7rem; border-bottom: 1px solid var(--grid); vertical-align: bottom; }}
th:first-child {{ text-align: left; padding-left: 0; overflow-wrap: anywhere; min-width: 8.5rem; }}
thead th {{ font-weight: 600; font-size: .88rem; color: var(--soft); }}
tbody th {{ font-weight: 600; }}
td {{ white-space: nowrap; }}
td:last-child, thead th:last-child {{ padding-right: 0; }}
dl {{ display: grid; grid-template-columns: minmax(8rem, 13rem) 1fr; gap: .4rem 1rem; margin: 0; }}
dt {{ color: var(--soft); }}
dd {{ margin: 0; overflow-wrap: anywhere; }}
.plots {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: 1.8rem 2rem;
  margin-bottom: 1.2rem; }}
figure {{ margin: 0; break-inside: avoid; }}
figure svg {{ display: block; width: 100%; max-width: 40rem; height: auto; }}
figure svg text {{ font-family: inherit !important; }}
figcaption {{ font-size: .9rem; margin-top: .3rem; }}
summary {{ cursor: pointer; font-size: 1.2rem; font-weight: 650; }}
details > :nth-child(2) {{ margin-top: .8rem; }}
@media print {{
  body {{ font-size: 10.5pt; }}
  main {{ max-width: none; padding: 0; }}
  .card {{ border: 1px solid var(--grid); }}
  .plots {{ grid-template-columns: 1fr 1fr; }}
  .scroll {{ overflow: visible; }}
  td {{ white-space: normal; }}
  tr, .card {{ break-inside: avoid; }}
}}
"""
