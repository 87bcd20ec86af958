"""A run's record as tables for a terminal of 80 columns."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table
from rich.text import Text

from mammo_fed.reporting.dropped import dropped_text
from mammo_fed.reporting.formatting import (
    account_text,
    budget_text,
    delta_text,
    epsilon_text,
    metric_text,
    participation_text,
    readable,
    set_title,
)
from mammo_fed.reporting.record.record import Record

__all__ = ["metrics_table", "one_line", "privacy_table", "results_table", "sweep_table"]


def results_table(record: Record) -> Group:
    """What was gained and what was guaranteed: the metrics, the privacy table and the guarantee, for `rich` to print."""
    withdrawals = [Text(readable(sentence)) for sentence in record.privacy.withdrawals]
    warnings = [Text(f"WARNING: {readable(sentence)}", style="bold red") for sentence in record.privacy.warnings]
    guarantee = Text(f"Guarantee: {readable(record.privacy.guarantee)}")
    central = record.federation.central
    site_level = [] if central is None else [Text(f"Each site as a whole: {readable(central.guarantee)}")]
    # Procedural images cost nothing and need no line.
    costs = record.synthesis.provenance.epsilon > 0 and record.synthesis.total
    synthetic = [Text(f"Synthetic images: {readable(record.synthesis.total)}")] if costs else []
    return Group(metrics_table(record), privacy_table(record), *warnings, *withdrawals, guarantee, *synthetic, *site_level)


def metrics_table(record: Record) -> Table:
    """Metrics of every evaluation set; both AUPRCs, named by their positive class."""
    table = _table(f"Results of {readable(record.run_id)}")
    table.add_column("set", min_width=10)
    for column in ("AUROC\n[95 % CI]", "AUPRC\nmalignant", "AUPRC\nbenign", "Brier", "sens. at\n90% spec.", "pa-\ntients"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, found in record.evaluation.items():
        table.add_row(
            Text(set_title(name)),
            Text(_two_lines(found.auroc, found.auroc_ci)),
            metric_text(found.auprc_malignant),
            metric_text(found.auprc_benign),
            metric_text(found.brier),
            metric_text(found.sensitivity_at_90_specificity),
            f"{found.n_patients:,}",
        )
    return table


def privacy_table(record: Record) -> Table:
    """What each site spent and what its budget still allows."""
    privacy = record.privacy
    by_image = privacy.unit == "image"
    table = _table(f"Privacy, unit: {privacy.unit}, delta {delta_text(privacy.delta)}, noise: {privacy.noise}")
    table.add_column("site")
    account = "of the\naccount" if privacy.ledger == "run" else "schedule\ncost"
    for column in ("epsilon\nthis run", *(["of a\npatient"] if by_image else []), account, "budget\nleft", "rounds"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("")
    for site in privacy.sites:
        table.add_row(
            Text(readable(site.site)),
            epsilon_text(site.epsilon),
            *([epsilon_text(site.patient_epsilon)] if by_image else []),
            _broken(account_text(site.epsilon_account)),
            _broken(budget_text(site.budget_left)),
            str(site.rounds),
            participation_text(rounds=site.rounds, refused=site.refused, charged=bool(site.unanswered)),
        )
    return table


def one_line(record: Record) -> str:
    """A run in one line: AUROC of every set, the largest epsilon of a site, and the sites that it did without."""
    worth = ", ".join(f"{name} AUROC {metric_text(found.auroc)}" for name, found in record.evaluation.items())
    dropped = dropped_text([record])
    spent = f"epsilon at most {epsilon_text(record.privacy.epsilon)} at a site"
    return f"{worth or 'no evaluation set'}; {spent}" + (f"; {dropped}" if dropped else "")


def sweep_table(sweep: Sequence[Sequence[str]], records: Sequence[Record]) -> Table:
    """Runs of a sweep grouped by their settings, seeds taken together: mean and standard deviation of AUROC for each set.

    Args:
      sweep: the overrides of each run, `key=value`.
      records: the runs' records, in the same order; sites that a run did without are named under its settings.
    """
    changing = [key for key in zip(*sweep, strict=True) if len(set(key)) > 1 and not key[0].startswith("seed=")]
    groups: dict[tuple[str, ...], list[Record]] = {}
    for number, record in enumerate(records):
        groups.setdefault(tuple(key[number] for key in changing), []).append(record)
    names = sorted({name for record in records for name in record.evaluation})
    table = _table("Mean AUROC +- standard deviation over seeds")
    table.add_column("settings")
    for column in ("runs", *(set_title(name) for name in names), "largest\nepsilon"):
        table.add_column(column, justify="right", no_wrap=True)
    for key, found in groups.items():
        worth = [_spread([record.evaluation[name].auroc for record in found if name in record.evaluation]) for name in names]
        largest = max(record.privacy.epsilon for record in found)
        about = Text("\n".join(key) or "all")
        if dropped := dropped_text(found):
            about.append(f"\n{dropped}", style="bold red")
        table.add_row(about, str(len(found)), *worth, epsilon_text(largest))
    return table


def _spread(values: Sequence[float | None]) -> str:
    shown = [value for value in values if value is not None]
    if not shown:
        return metric_text(None)
    spread = f" +- {statistics.stdev(shown):.3f}" if len(shown) > 1 else ""
    return f"{statistics.fmean(shown):.4f}{spread}"


def _two_lines(auroc: float | None, interval: tuple[float, float] | None) -> str:
    """AUROC with its interval under it, so that a row fits 80 columns."""
    return metric_text(auroc, interval).replace(" [", "\n[")


def _broken(text: str) -> str:
    """Words on lines of their own, so that a row fits 80 columns."""
    return text.replace(" ", "\n")


def _table(title: str) -> Table:
    return Table(title=Text(title), title_justify="left", box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
