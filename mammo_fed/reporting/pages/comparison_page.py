"""Several runs on one page: what each guaranteed and what each gained."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mammo_fed.errors import DataError
from mammo_fed.reporting.pages import markup
from mammo_fed.reporting.pages.markup import Html
from mammo_fed.reporting.plots import plots
from mammo_fed.reporting.plots.plots import TradeOffPoint
from mammo_fed.reporting.record.record import Record, write_atomically
from mammo_fed.reporting.record.statements import HOW_TO_READ, delta_text, epsilon_text, metric_text, set_title

__all__ = ["write_comparison_page"]


def write_comparison_page(path: Path, records: Sequence[Record]) -> Path:
    """Write a page that compares runs: a table, AUROC over epsilon, and each run's guarantee.

    Raises:
      DataError: If there is no record.
    """
    if not records:
        raise DataError("a comparison needs at least one run; name one or more run folders")
    names = list(dict.fromkeys(name for record in records for name in record.evaluation))
    parts = [
        Html(f'<header><h1>Comparison of runs</h1><p class="soft">mammo-fed, {len(records)} runs</p></header>'),
        markup.section("Results", _table(records, names), *_trade_off(records, names)),
        _guarantees(records),
        markup.section("How to read this", markup.listing(HOW_TO_READ)),
    ]
    write_atomically(Path(path), markup.document("mammo-fed: comparison of runs", *parts))
    return Path(path)


def _table(records: Sequence[Record], names: Sequence[str]) -> Html:
    head = ["Run", "Sites", "Unit", "ε this run", "δ", "Guarantee", *(f"AUROC {set_title(name)} [95 % CI]" for name in names)]
    rows = []
    for record in records:
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
            )
        )
    return markup.table(head, rows, caption="ε is the largest over the sites of a run. Intervals resample whole patients.")


def _trade_off(records: Sequence[Record], names: Sequence[str]) -> list[Html]:
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
        "AUROC with its 95 % interval over epsilon. Runs whose noise was injected stand at the epsilon they were accounted."
    )
    return [Html(f'<div class="plots">{markup.figure(plots.trade_off(series), caption)}</div>')]


def _guarantees(records: Sequence[Record]) -> Html:
    items = [markup.join([Html(f"<b>{markup.text(record.run_id)}</b>"), record.privacy.guarantee], ": ") for record in records]
    note = "Runs on the same patients add up: what several of these runs cost together is more than what each costs alone."
    return markup.section("Guarantees", markup.listing(items), markup.paragraph(note, kind="soft"))
