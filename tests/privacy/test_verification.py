"""Figures of a record and of a ledger are recomputed by dp-accounting alone, and what was changed disagrees."""

from __future__ import annotations

import copy
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
from flwr.serverapp import GaussianPrivacyEvent
from hypothesis import given, settings
from hypothesis import strategies as st

from mammo_fed.common.isolation import python_command
from mammo_fed.errors import MammoFedError
from mammo_fed.federation.strategies.site_level_dp import site_level_accountant
from mammo_fed.privacy.accounting.composition import gaussian_epsilon, gaussian_mu
from mammo_fed.privacy.accounting.pricing import epsilon, patient_epsilon
from mammo_fed.privacy.events import PrivacyEvent
from mammo_fed.privacy.schedule import epsilon_curve, plan_schedule
from mammo_fed.privacy.shared_noise import adversary_epsilons
from mammo_fed.privacy.verification.figures import Sheet
from mammo_fed.privacy.verification.prices import price_of
from mammo_fed.privacy.verification.record_figures import check_record
from mammo_fed.reporting.record.provenance import Provenance
from mammo_fed.reporting.record.statements import (
    guarantee_sentence,
    shared_noise_sentence,
    site_level_sentence,
    synthetic_sentence,
    threat_text,
)
from mammo_fed.settings import CentralSettings

DELTA = 1e-4
# What the process that recomputes may import of this package: the events' reader, what that needs, and itself.
OURS = {"mammo_fed", "mammo_fed.errors", "mammo_fed.privacy", "mammo_fed.privacy.events"}


def event(noise, *, steps=1, rate=1.0, unit="patient", images=4, **more):
    return PrivacyEvent(
        mechanism="gradient",
        noise_multiplier=noise,
        steps=steps,
        sample_rate=rate,
        unit=unit,
        clipping_norm=1.0,
        max_images_per_patient=images,
        **more,
    )


SCHEDULES = {
    "full batch": [event(5.0), event(8.0, steps=12)],
    "little noise": [event(0.5, steps=10)],
    "almost nothing": [event(500.0)],
    "sampled": [event(6.0, steps=2700, rate=0.116)],
    "sampled at two rates": [event(3.0), event(1.5, steps=40, rate=0.3), event(2.0, steps=10, rate=0.05)],
    "few steps, rarely": [event(1.0, steps=10, rate=0.01)],
    "beyond every grid": [event(0.01, steps=10)],
    "sampled, beyond every grid": [event(0.02, steps=50, rate=0.5)],
    "nothing": [],
    "no noise": [event(0.0)],
}


@pytest.mark.parametrize("accountant", ["pld", "gdp", "rdp", "prv"])
@pytest.mark.parametrize("name", SCHEDULES)
def test_verify_agrees_with_what_every_accountant_shows(name, accountant):
    events = SCHEDULES[name]
    if (accountant == "gdp" and "ampled" in name) or (
        name in ("few steps, rarely", "sampled at two rates") and accountant == "gdp"
    ):
        pytest.skip("gdp prices no sampled steps")
    try:
        shown = epsilon(events, delta=DELTA, accountant=accountant)
    except MammoFedError:
        pytest.skip("Opacus cannot discretise these")
    price = price_of(events, delta=DELTA, accountant=accountant)
    assert price.agrees(shown), (shown, price)
    if 0 < shown < math.inf:
        assert not price.agrees(0.999 * (price.epsilon if accountant == "prv" else shown))
        assert not price.agrees(shown * 1.03 + 0.03)


@pytest.mark.parametrize("rate", [1.0, 0.2])
def test_verify_agrees_with_the_figure_of_a_patient_with_several_images(rate):
    events = [event(8.0, steps=20, rate=rate, unit="image")]
    shown = patient_epsilon(events, delta=DELTA, accountant="pld")
    price = price_of(events, delta=DELTA, accountant="pld", protected="patient")
    assert price.agrees(shown)
    assert not price.agrees(shown * 0.999)
    assert shown > 2 * price_of(events, delta=DELTA, accountant="pld").epsilon


@pytest.mark.slow
def test_verify_agrees_with_the_figure_of_a_patient_whose_images_cost_much():
    events = [event(2.5, steps=30, rate=0.5, unit="image", images=16)]
    shown = patient_epsilon(events, delta=DELTA, accountant="pld")
    price = price_of(events, delta=DELTA, accountant="pld", protected="patient")
    assert price.agrees(shown), (shown, price)
    assert not price.agrees(0.99 * shown)


def test_verify_holds_an_accountant_from_outside_to_the_tight_price_from_below():
    events = SCHEDULES["full batch"]
    shown = epsilon(events, delta=DELTA, accountant="pld")
    price = price_of(events, delta=DELTA, accountant="theirs")
    assert price.agrees(shown)
    assert price.agrees(2 * shown)
    assert not price.agrees(0.99 * shown)


def fits_beside(spent, *, cap) -> float:
    """Epsilon of the Gaussian release that composes with one of `spent` to `cap`."""
    squares = gaussian_mu(epsilon=cap, delta=DELTA) ** 2 - gaussian_mu(epsilon=spent, delta=DELTA) ** 2
    return gaussian_epsilon(mu=math.sqrt(squares), delta=DELTA)


def record_of(*, unit="patient", accountant="pld", shared=False, sample_rate=1.0, target=6.0, images=4) -> dict:
    """What a record says of privacy, made by the project's own accountants for two sites that did all that was declared."""
    rounds = 3
    schedule = plan_schedule(
        unit=unit,
        target_epsilon=target,
        delta=DELTA,
        accountant=accountant,
        rounds=rounds,
        local_steps=2,
        sample_rate=sample_rate,
        mean_fraction=0.1,
        clipping_norm=0.5,
        max_images_per_patient=images,
    ).shared_by(2 if shared else 1)
    assert schedule.mean_event is not None
    events = (schedule.mean_event, *[schedule.step_event] * rounds)
    curve = epsilon_curve(schedule, delta=DELTA, accountant=accountant)
    patient = patient_epsilon(schedule.events(), delta=DELTA, accountant="pld")
    seen = adversary_epsilons(events, min_survivors=3, delta=DELTA, accountant=accountant)
    site = {
        "epsilon": curve[-1],
        "epsilon_account": curve[-1],
        "epsilon_after_round": curve,
        "patient_epsilon": patient if unit == "image" else max(patient, curve[-1]),
        "patient_epsilon_account": patient if unit == "image" else max(patient, curve[-1]),
        "budget_left": fits_beside(curve[-1], cap=target + 3.0),
        "rounds": 4,
        "cap_epsilon": target + 3.0,
        "cap_delta": DELTA,
        "mismatches": [],
        "unanswered": [],
        "epsilon_other_site": seen.other_site,
        "epsilon_all_colluding": seen.all_colluding,
        "events": [dict(vars(each)) for each in events],
    }
    sentence = guarantee_sentence(
        unit=unit,
        epsilon=curve[-1],
        delta=DELTA,
        noise="operating system",
        ledger="run",
        patient_epsilon=patient,
        max_images_per_patient=images,
        threat=threat_text(min_survivors=3, colluders=1) if shared else "",
    )
    beyond = [shared_noise_sentence(other_site=seen.other_site, all_colluding=seen.all_colluding)] if shared else []
    return {
        "schema_version": 1,
        "seeds": {"seed": 0, "privacy.noise_seed": None},
        "privacy": {
            "unit": unit,
            "delta": DELTA,
            "accountant": accountant,
            "target_epsilon": target,
            "rounds": rounds,
            "local_steps": 2,
            "noise": "operating system",
            "relation": "no_contribution",
            "sites": [{"site": name, **copy.deepcopy(site)} for name in ("north", "south")],
            "guarantee": sentence,
            "not_covered": beyond,
            "ledger": "run",
            "aggregation": "shared_noise" if shared else "plain",
            "min_survivors": 3 if shared else 1,
            "colluders": 1 if shared else 0,
        },
        "synthesis": {
            "provenance": {"epsilon": 0.0, "delta": 0.0, "total_epsilon": None, "total_delta": 0.0, "events": []},
            "total": "",
        },
        "federation": {"rounds": rounds, "sites": 2, "failed_rounds": [], "central": None},
    }


def test_verify_agrees_with_a_record_whose_figure_of_a_patient_is_a_loose_bound_beyond_every_grid():
    record = record_of(unit="image", target=20.0, images=16)
    assert record["privacy"]["sites"][0]["patient_epsilon"] > 3000
    assert disagreements(record) == []
    record["privacy"]["sites"][0]["patient_epsilon"] *= 0.9
    assert disagreements(record)


def with_generator(record) -> dict:
    """The record of a run that used a private synthetic set, some of whose patients train in it too."""
    trained = [event(4.0, steps=300, rate=0.05)]
    own = epsilon(trained, delta=1e-5, accountant="pld")
    events = [PrivacyEvent(**each) for each in record["privacy"]["sites"][0]["events"]]
    seen = {
        "epsilon": own,
        "delta": 1e-5,
        "trained_on": "images of patients",
        "overlap": "some",
        "generator_unit": "patient",
        "total_epsilon": epsilon([*trained, *events], delta=DELTA, accountant="pld"),
        "total_delta": DELTA,
        "total_unit": "patient",
    }
    sentence = synthetic_sentence("gan", Provenance(**seen))
    provenance = {**seen, "events": [dict(vars(each)) for each in trained], "generator_accountant": "pld"}
    return {**copy.deepcopy(record), "synthesis": {"provenance": provenance, "total": sentence}}


def with_site_level_noise(record) -> dict:
    """The record of a run whose server added noise of its own to every aggregate."""
    settings = CentralSettings(noise_multiplier=4.0, clipping_norm=1.0, delta=DELTA)
    accountant = site_level_accountant(settings, sites=2)
    accountant.compose(GaussianPrivacyEvent(noise_multiplier=4.0, sample_size=2, population_size=2), 4)
    spent = accountant.get_privacy_spent().epsilon
    central = {
        "epsilon": spent,
        "delta": DELTA,
        "noise_multiplier": 4.0,
        "clipping_norm": 1.0,
        "releases": 4,
        "guarantee": site_level_sentence(epsilon=spent, delta=DELTA, noise_multiplier=4.0, clipping_norm=1.0),
    }
    return {**copy.deepcopy(record), "federation": {**record["federation"], "central": central}}


def disagreements(record) -> list[str]:
    """Names of the figures that disagree; a record that cannot be one counts as well."""
    try:
        return [figure["name"] for figure in check_record(record).as_dicts() if figure["agrees"] is False]
    except MammoFedError as error:
        return [str(error)]


KINDS = {
    "patients": {},
    "images": {"unit": "image"},
    "shared noise": {"shared": True},
    "Renyi": {"accountant": "rdp"},
}
RECORDS = {name: record_of(**kind) for name, kind in KINDS.items()}
OTHERS = {"generator": with_generator(RECORDS["patients"]), "site-level noise": with_site_level_noise(RECORDS["patients"])}


@pytest.mark.parametrize("name", OTHERS)
def test_verify_recomputes_the_figures_beside_those_of_the_sites_of(name):
    record = OTHERS[name]
    assert disagreements(record) == []
    section = ("synthesis",) if name == "generator" else ("federation", "central")
    # The norm cancels out, and images of a patient count where the unit is the image.
    free = {"clipping_norm", "max_images_per_patient", "noise_shares"}
    missed = []
    for path in numbers(record):
        if path[: len(section)] != section or path[-1] in free:
            continue
        value = record
        for part in path:
            value = value[part]
        other = value + 1 if isinstance(value, int) else 0.99 * value
        if path[-1] == "sample_rate":
            other = 0.9 * value
        if not disagreements(changed(record, path, other)):
            missed.append(path)
    assert missed == []


@pytest.mark.parametrize("name", KINDS)
def test_verify_agrees_with_a_record_that_nobody_changed(name):
    assert disagreements(RECORDS[name]) == []


@pytest.mark.parametrize("name", KINDS)
def test_verify_takes_the_difference_that_earlier_records_have_for_what_is_left_of_a_budget(name):
    record = copy.deepcopy(RECORDS[name])
    for site in record["privacy"]["sites"]:
        site["budget_left"] = site["cap_epsilon"] - site["epsilon"]
    assert disagreements(record) == []
    # A Renyi figure is above what the site's filter charges, which leaves the budget some room.
    record["privacy"]["sites"][0]["budget_left"] *= 1.6 if name == "Renyi" else 1.1
    assert disagreements(record)


@pytest.mark.slow
def test_verify_agrees_with_a_record_of_sampled_steps_and_a_patient_of_several_images():
    assert disagreements(record_of(unit="image", sample_rate=0.2)) == []


def numbers(values, path=()):
    """Every number of a record that is about privacy, with the path to it."""
    if isinstance(values, dict):
        for key, value in values.items():
            yield from numbers(value, (*path, key))
    elif isinstance(values, list):
        for row, value in enumerate(values):
            yield from numbers(value, (*path, row))
    elif isinstance(values, int | float) and not isinstance(values, bool):
        yield path


def changed(record, path, value):
    """The record with another value at a path."""
    other = copy.deepcopy(record)
    at = other
    for part in path[:-1]:
        at = at[part]
    at[path[-1]] = value
    return other


# Without shares of noise the threat model is no part of any figure; the other seed draws partitions and evaluation only.
IRRELEVANT = {("privacy", "min_survivors"), ("privacy", "colluders")}


# A Renyi figure is above what the site's filter charges, which leaves the budget some room.
@pytest.mark.parametrize("name", sorted(set(KINDS) - {"Renyi"}))
@pytest.mark.parametrize("factor", [0.99, 2.0])
def test_verify_finds_every_number_of_a_record_that_was_changed(name, factor):
    record = RECORDS[name]
    missed = []
    for path in numbers(record):
        value = record
        for part in path:
            value = value[part]
        if path == ("seeds", "seed") or (path in IRRELEVANT and name != "shared noise"):
            continue
        other = (value + (1 if factor > 1 else -1)) if isinstance(value, int) else value * factor if value else abs(factor)
        if isinstance(value, int) and other < 0:
            continue
        if not disagreements(changed(record, path, other)):
            missed.append((path, value, other))
    assert missed == []


@given(st.sampled_from(sorted(RECORDS)), st.data())
@settings(max_examples=20, deadline=None)
def test_verify_finds_any_figure_of_a_site_that_was_lowered(name, data):
    record = RECORDS[name]
    site = record["privacy"]["sites"][1]
    key = data.draw(st.sampled_from([key for key, value in site.items() if key.startswith(("epsilon", "patient"))]))
    path = ("privacy", "sites", 1, key)
    if key == "epsilon_after_round":
        path = (*path, data.draw(st.integers(0, len(site[key]) - 1)))
    value = site[key] if isinstance(site[key], float) else site[key][path[-1]]
    assert disagreements(changed(record, path, value * data.draw(st.floats(0.0, 0.9995))))


def cut(record, position):
    """The record without one round of a site, its figures and its event alike."""
    other = copy.deepcopy(record)
    site = other["privacy"]["sites"][0]
    for key in ("events", "epsilon_after_round"):
        del site[key][position]
    site["epsilon"] = site["epsilon_after_round"][-1]
    return other


CHANGES = {
    "a round removed": lambda record: cut(record, -1),
    "the first round removed": lambda record: cut(record, 0),
    "an event removed": lambda record: (record["privacy"]["sites"][0]["events"].pop(), record)[1],
    "two events exchanged": lambda record: (record["privacy"]["sites"][0]["events"].reverse(), record)[1],
    "another unit": lambda record: changed(record, ("privacy", "unit"), "image"),
    "another unit of an event": lambda record: changed(record, ("privacy", "sites", 0, "events", 1, "unit"), "image"),
    "another accountant": lambda record: changed(record, ("privacy", "accountant"), "rdp"),
    "another relation": lambda record: changed(record, ("privacy", "relation"), "replace_one"),
    "another origin of the noise": lambda record: changed(record, ("privacy", "noise"), "none"),
    "injected noise said to be none": lambda record: changed(record, ("seeds", "privacy.noise_seed"), 7),
    "a smaller epsilon in the sentence": lambda record: changed(
        record, ("privacy", "guarantee"), record["privacy"]["guarantee"].replace("epsilon=6", "epsilon=5.98")
    ),
    "a smaller delta in the sentence": lambda record: changed(
        record, ("privacy", "guarantee"), record["privacy"]["guarantee"].replace("1e-04", "1e-05")
    ),
    "another unit in the sentence": lambda record: changed(
        record,
        ("privacy", "guarantee"),
        record["privacy"]["guarantee"].replace("Each patient's data", "Each image, not each patient,"),
    ),
    "no sentence": lambda record: changed(record, ("privacy", "guarantee"), "All data is safe."),
    "a cap below what was spent": lambda record: changed(record, ("privacy", "sites", 0, "cap_epsilon"), 5.0),
    "a hidden figure": lambda record: changed(record, ("privacy", "sites", 0, "epsilon"), None),
    "a site left out": lambda record: (record["privacy"]["sites"].pop(), record)[1],
    "a site twice": lambda record: changed(record, ("privacy", "sites", 1, "site"), "north"),
    "a generator that is free": lambda record: changed(record, ("synthesis", "provenance", "epsilon"), 1.0),
}


@pytest.mark.parametrize("name", CHANGES)
def test_verify_finds_a_record_with(name):
    assert disagreements(CHANGES[name](copy.deepcopy(RECORDS["patients"])))


def recomputed(path: Path) -> tuple[int, dict]:
    """Exit code and answer of the process that recomputes."""
    command = python_command("mammo_fed.privacy.verification", str(path))
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    return done.returncode, json.loads(done.stdout)


def steps(count, rate=1.0, noise=5.0):
    record = copy.deepcopy(RECORDS["patients"])
    for each in record["privacy"]["sites"][0]["events"][1:]:
        each.update(steps=count, sample_rate=rate, noise_multiplier=noise)
    return json.dumps(record)


HOSTILE = {
    "empty": ("", 2),
    "a list": ("[]", 2),
    "deep": ("[" * 100_000, 2),
    "not a number": (json.dumps(RECORDS["patients"]).replace("6.0", "NaN"), 2),
    "infinity": (json.dumps(RECORDS["patients"]).replace("6.0", "Infinity"), 2),
    "a number of 400 digits": (json.dumps(RECORDS["patients"]).replace("6.0", "9" * 400), 2),
    "10^9 steps": (steps(10**9), 3),
    "10^9 sampled steps": (steps(10**9, rate=0.01), 3),
    "10^9 sampled steps of little noise": (steps(10**9, rate=0.01, noise=1e-3), 3),
    "10^300 steps": (steps(10**300), 3),
    "a patient of 10^9 images": (
        json.dumps(RECORDS["images"]).replace('"max_images_per_patient": 4', '"max_images_per_patient": 1000000000'),
        3,
    ),
    "no events": (json.dumps(RECORDS["patients"]).replace('"events"', '"other"'), 2),
    "a site that is a number": (json.dumps(changed(RECORDS["patients"], ("privacy", "sites", 0), 7)), 2),
    "steps that are true": (json.dumps(changed(RECORDS["patients"], ("privacy", "sites", 0, "events", 0, "steps"), True)), 2),
    "steps that are a half": (json.dumps(changed(RECORDS["patients"], ("privacy", "sites", 0, "events", 0, "steps"), 1.5)), 2),
    "an event with text for its noise": (
        json.dumps(changed(RECORDS["patients"], ("privacy", "sites", 0, "events", 0, "noise_multiplier"), "5")),
        2,
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_verify_ends_with_one_line_for_a_record_that_is(name, tmp_path):
    text, code = HOSTILE[name]
    path = tmp_path / "record.json"
    path.write_text(text, encoding="utf-8")
    found, answer = recomputed(path)
    assert found == code, answer
    if code == 2:
        assert "\n" not in answer["error"]
        assert len(answer["error"]) < 400


def test_verify_reads_no_record_that_is_larger_than_any_run_leaves(tmp_path):
    path = tmp_path / "record.json"
    with path.open("wb") as file:
        file.truncate(65 * 1024 * 1024)
    code, answer = recomputed(path)
    assert code == 2
    assert "bytes" in answer["error"]


def test_verify_recomputes_in_a_process_that_imports_nothing_of_ours_but_the_reader_of_events(tmp_path):
    path = tmp_path / "record.json"
    path.write_text(json.dumps(RECORDS["patients"]), encoding="utf-8")
    script = (
        "import runpy, sys\n"
        f"sys.argv = ['verification', {str(path)!r}]\n"
        "try:\n    runpy.run_module('mammo_fed.privacy.verification', run_name='__main__')\n"
        "except SystemExit as stop:\n    assert stop.code == 0, stop.code\n"
        "sys.stderr.write('LOADED ' + ' '.join(sorted(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True, check=True)
    loaded = set(done.stderr.partition("LOADED ")[2].split())
    assert "dp_accounting" in loaded
    ours = {name for name in loaded if name.split(".")[0] == "mammo_fed"}
    assert {name for name in ours if not name.startswith("mammo_fed.privacy.verification")} == OURS
    assert not {name.split(".")[0] for name in loaded} & {"opacus", "torch", "flwr"}


def test_a_sheet_lists_what_cannot_be_recomputed():
    sheet = Sheet()
    sheet.unknown("a figure", "1", "why")
    assert [figure["agrees"] for figure in sheet.as_dicts()] == [None]


WORDS = {
    "of another relation": ("contributing nothing", "being replaced by another"),
    "over all runs by a cap": (
        "for this run alone",
        "over all runs in the site's ledger, by the cap that the ledger enforces (schedule cost so far: epsilon 1)",
    ),
    "with a figure of its own before": ("Each patient's data", "Epsilon is 0.1. Each patient's data"),
    "with a figure of its own behind": ("public constants.", "public constants. In all epsilon is 0.1."),
    "of another unit": ("differ in one patient", "differ in one image"),
    "in exact arithmetic": ("-privacy at", "-privacy in exact arithmetic (the noise was drawn in floating point) at"),
}


@pytest.mark.parametrize("claim", WORDS)
def test_verify_finds_words_of_a_guarantee_that_the_record_does_not_bear_out_relation_and_cap(claim):
    record = RECORDS["patients"]
    before, after = WORDS[claim]
    before, after = (text.replace("-privacy", "differential privacy") for text in (before, after))
    sentence = record["privacy"]["guarantee"]
    assert before in sentence
    assert disagreements(changed(record, ("privacy", "guarantee"), sentence.replace(before, after)))


def test_verify_finds_a_ledger_over_all_runs_in_a_record_whose_cap_is_of_one_run():
    assert "guarantee: about this run alone" in disagreements(changed(RECORDS["patients"], ("privacy", "ledger"), "site"))


def test_verify_knows_the_sites_of_a_record_by_name_and_identity():
    counted = {**RECORDS["patients"], "data": {"sites": [{"site": "north"}, {"site": "south"}]}}
    assert disagreements(counted) == []
    removed = copy.deepcopy(counted)
    removed["privacy"]["sites"].pop()
    removed["federation"]["sites"] = 1
    swapped = copy.deepcopy(counted)
    swapped["privacy"]["sites"].reverse()
    renamed = changed(counted, ("privacy", "sites", 0, "site"), "east")
    for other in (removed, swapped, renamed):
        assert disagreements(other) == ["sites by name"]


def test_verify_finds_a_site_whose_mechanism_is_not_that_of_the_run_or_draws_floats_unsaid():
    grid = "full-batch DP gradient descent, closed form, discrete Gaussian on a grid"
    record = copy.deepcopy(RECORDS["patients"])
    record["privacy"]["mechanism"] = grid
    for site in record["privacy"]["sites"]:
        site["mechanism"] = grid
    assert disagreements(record) == []
    floating = grid.replace("discrete Gaussian on a grid", "in floating point")
    assert disagreements(changed(record, ("privacy", "sites", 1, "mechanism"), floating)) == ["mechanism of every site"]
    for site in record["privacy"]["sites"]:
        site["mechanism"] = floating
    record["privacy"]["mechanism"] = floating
    assert disagreements(record) == ["guarantee: arithmetic"]


def test_verify_finds_figures_of_an_account_that_is_not_published_as_no_cap_allows():
    record = copy.deepcopy(RECORDS["patients"])
    record["privacy"]["sites"][0]["account_published"] = False
    assert "north: epsilon account" in disagreements(record)
