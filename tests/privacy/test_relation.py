"""The neighbouring relation: what records, ledgers and messages call it, and what another relation would cost."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from dp_accounting import NeighboringRelation
from dp_accounting.pld import privacy_loss_distribution as pld

from mammo_fed.errors import InvalidSetting
from mammo_fed.privacy.accounting.calibration import calibrate
from mammo_fed.privacy.accounting.pricing import epsilon
from mammo_fed.privacy.events import RELATION, PrivacyEvent, events_from_json, events_to_json
from mammo_fed.reporting.pages.run_page import Curves, write_page
from mammo_fed.reporting.record.record import guarantee_sentence, read_record

STORED = Path(__file__).parents[1] / "stored"
EVENT = PrivacyEvent(
    mechanism="gradient",
    noise_multiplier=15.0,
    steps=1,
    sample_rate=1.0,
    unit="patient",
    clipping_norm=1.0,
    max_images_per_patient=4,
)


def test_relation_that_is_written_is_that_of_a_unit_which_contributes_nothing():
    assert EVENT.as_dict()["relation"] == RELATION == "no_contribution"
    assert '"relation":"no_contribution"' in events_to_json([EVENT])


def test_relation_of_earlier_events_is_read_under_its_older_name():
    older = {**EVENT.as_dict(), "relation": "zero_out"}
    assert PrivacyEvent.from_dict(older) == EVENT
    assert events_from_json(json.dumps([older])) == (EVENT,)


@pytest.mark.parametrize("relation", ["replace", "add_remove", "zeroed", "", None, 1, ["no_contribution"]])
def test_relation_of_another_kind_is_refused(relation):
    with pytest.raises(InvalidSetting, match="relation"):
        PrivacyEvent.from_dict({**EVENT.as_dict(), "relation": relation})


def test_relation_of_an_earlier_record_is_read_and_shown_with_its_name_of_today(tmp_path):
    record = read_record(STORED / "version-1" / "finished")
    assert record.privacy.relation == "zero_out"
    page = write_page(tmp_path, record, Curves(sets={}))
    assert "zero_out, now called no_contribution: one unit contributes nothing" in page.read_text(encoding="utf-8")


@pytest.mark.parametrize("unit", ["patient", "image"])
def test_relation_in_the_guarantee_is_a_unit_that_contributes_nothing_beside_public_sizes(unit):
    said = guarantee_sentence(
        unit=unit,
        epsilon=6.0,
        delta=1e-4,
        noise="operating system",
        ledger="run",
        patient_epsilon=38.0,
        max_images_per_patient=4,
    )
    assert f"neighbouring cohorts differ in one {unit} contributing nothing, cohort sizes are public constants" in said
    assert "zero" not in said


ROW = r"\| (full batch|Poisson), (\d+)(?: of rate ([\d.]+))? \| (1e-\d) \| (\d+) \| ([\d.]+) \| ([\d.]+) \|"
ROWS = re.findall(ROW, (Path(__file__).parents[2] / "docs" / "privacy.md").read_text(encoding="utf-8"))


def test_relation_table_of_the_docs_has_both_targets_deltas_and_kinds_of_steps():
    assert len({(kind, delta, target) for kind, _, _, delta, target, _, _ in ROWS}) == len(ROWS) == 8


@pytest.mark.parametrize("row", ROWS, ids=" ".join)
def test_relation_table_of_the_docs_is_what_the_accountants_say(row):
    kind, count, rate, *figures = row
    delta, target, replaced, factor = (float(figure) for figure in figures)
    steps = replace(EVENT, steps=int(count), sample_rate=float(rate or 1.0))
    noise = calibrate(
        lambda multiplier: (replace(steps, noise_multiplier=multiplier),),
        target_epsilon=target,
        delta=delta,
        accountant="pld",
    )
    if kind == "full batch":
        found = epsilon([replace(steps, noise_multiplier=noise / 2)], delta=delta, accountant="pld")
    else:
        step = pld.from_gaussian_mechanism(
            noise,
            sampling_prob=steps.sample_rate,
            neighboring_relation=NeighboringRelation.REPLACE_ONE,
            value_discretization_interval=1e-3,
        )
        found = step.self_compose(steps.steps).get_epsilon_for_delta(delta)
    assert found == pytest.approx(replaced, abs=0.006)
    assert found / target == pytest.approx(factor, abs=0.006)
