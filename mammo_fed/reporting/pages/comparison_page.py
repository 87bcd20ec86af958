"""Several runs on one page: what each guaranteed and what each gained."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mammo_fed.common.private_files import write_atomically
from mammo_fed.errors import DataError
from mammo_fed.reporting.dropped import dropped_text
from mammo_fed.reporting.formatting import delta_text, epsilon_text, metric_text, set_title
from mammo_fed.reporting.pages.rendering import Figure, Table, render
from mammo_fed.reporting.plots.run_plots import TradeOffPoint, trade_off
from mammo_fed.reporting.record.record import Record

__all__ = ["write_comparison_page"]


def write_comparison_page(path: Path, records: Sequence[Record]) -> Path:
    """Write a page that compares runs: a table, AUROC over epsilon, and each run's guarantee.

    Raises:
      DataError: If there is no record.
    """
    if not records:
        raise DataError("a comparison needs at least one run; name one or more run folders")
    names = list(dict.fromkeys(name for record in records for name in record.evaluation))
    page = render("comparison.html", records=records, results=_results(records, names), figures=_trade_off(records, names))
    write_atomically(Path(path), page)
    return Path(path)


def _results(records: Sequence[Record], names: Sequence[str]) -> Table:
    head = ["Run", "Sites", "Unit", "ε this run", "δ", "Guarantee", *(f"AUROC {set_title(name)} [95 % CI]" for name in names)]
    dropped = [dropped_text([record]) for record in records]
    if any(dropped):
        head.append("Sites dropped")
    rows = []
    for record, without in zip(records, dropped, strict=True):
        privacy = record.privacy
        found = [record.evaluation.get(name) for name in names]
        rows.append(
            (
                record.run_id,
                str(len(privacy.sites)),
                privacy.unit,
                epsilon_text(privacy.epsilon),
                delta_text(privacy.delta),
                "yes" if privacy.guaranteed else "none",
                *(metric_text(one.auroc, one.auroc_ci) if one else "not measured" for one in found),
                *([without or "none"] if any(dropped) else []),
            )
        )
    caption = "ε is the largest over the sites of a run. Intervals resample whole patients."
    return Table(head=head, rows=rows, caption=caption)


def _trade_off(records: Sequence[Record], names: Sequence[str]) -> list[Figure]:
    series = {}
    for name in names:
        found = [(record.privacy.epsilon, record.evaluation[name]) for record in records if name in record.evaluation]
        points = [
            TradeOffPoint(epsilon=epsilon, auroc=one.auroc, auroc_ci=one.auroc_ci)
            for epsilon, one in found
            if one.auroc is not None and epsilon > 0
        ]
        if points:
            series[name] = points
    if not series:
        return []
    caption = (
        "AUROC with its 95 % interval over epsilon. Runs whose noise was injected are shown at the epsilon that was accounted."
    )
    return [Figure(svg=trade_off(series), caption=caption)]
