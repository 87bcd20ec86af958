"""The terminal tables fit 80 columns and carry the record's numbers."""

import io
from dataclasses import replace

import pytest
from rich.console import Console

from mammo_fed.reporting.console import results_table
from mammo_fed.reporting.record.record import Evaluation


def printed(record):
    out = io.StringIO()
    Console(file=out, width=80, color_system=None).print(results_table(record))
    return out.getvalue()


@pytest.mark.parametrize("unit", ["patient", "image"])
def test_the_tables_fit_80_columns_with_nothing_cut(record, unit):
    everything = replace(
        record,
        evaluation={**record.evaluation, "sites": record.evaluation["test"]},
        privacy=replace(record.privacy, unit=unit),
    )
    text = printed(everything)
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text


def test_the_tables_carry_the_metrics_and_the_guarantee(record):
    text = printed(record)
    for found in record.evaluation.values():
        low, high = found.auroc_ci
        for value in (found.auroc, found.auprc_benign, found.auprc_malignant, found.brier, found.sensitivity_at_90_specificity):
            assert f"{value:.3f}" in text
        assert f"[{low:.3f}, {high:.3f}]" in text
    assert record.privacy.guarantee in " ".join(text.split())
    assert "refused after round 7" in text
    for site in record.privacy.sites:
        assert site.site in text


def test_withheld_metrics_say_so(record):
    hidden = replace(record, evaluation={"sites": Evaluation.withheld(n_patients=3, n_images=5)})
    assert "withheld" in printed(hidden)


def test_a_site_can_send_neither_markup_nor_terminal_commands(record):
    site = replace(record.privacy.sites[0], site="[red]\x1b[2J[/red]\u202e")
    text = printed(replace(record, privacy=replace(record.privacy, sites=(site,))))
    assert "[red]?[2J[/red]?" in text
    assert "\x1b" not in text
