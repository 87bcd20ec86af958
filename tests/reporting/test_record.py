"""The record is strict JSON with the agreed keys, survives crashes, and refuses what it cannot read."""

import json
import math
import os
import resource
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mammo_fed.common.private_files import write_atomically
from mammo_fed.common.serialization import RECORD, build, plain
from mammo_fed.errors import DataError
from mammo_fed.privacy.events import PrivacyEvent
from mammo_fed.reporting.record.record import RECORD_NAME, Evaluation, SiteData, SitePrivacy, comparable, read_record

KEYS = {
    "": {
        *("schema_version", "run_id", "mode", "config_hash", "seeds", "versions", "started", "finished", "seconds"),
        *("data", "model", "synthesis", "privacy", "evaluation", "federation"),
    },
    "seconds": {"features", "training", "evaluation", "total"},
    "data": {"source", "fingerprint", "sites"},
    "data.sites.0": {"site", "patients", "images", "malignant_fraction"},
    "model": {"backbone", "weights_sha256", "scope", "parameters_trained"},
    "synthesis": {"use", "source", "images", "sha256", "provenance", "set_sha256", "total"},
    "synthesis.provenance": {
        *("epsilon", "delta", "trained_on", "overlap"),
        *("generator_unit", "total_epsilon", "total_delta", "total_unit", "chosen", "events", "generator_accountant"),
        "generator_floating",
    },
    "privacy": {
        *("unit", "delta", "accountant", "target_epsilon", "sites", "guarantee", "not_covered"),
        *("mechanism", "rounds", "local_steps", "noise", "relation", "ledger"),
        *("aggregation", "min_survivors", "colluders", "cautions"),
    },
    "privacy.sites.0": {
        *("site", "epsilon", "epsilon_account", "epsilon_after_round", "patient_epsilon", "mechanism", "budget_left"),
        *(
            "rounds",
            "refused",
            "patient_epsilon_account",
            "cap_epsilon",
            "cap_delta",
            "mismatches",
            "unanswered",
            "rejected",
            "ledger_head",
            "epsilon_other_site",
            "epsilon_all_colluding",
            "events",
            "cap_since",
            "cap_raised",
            "account_published",
            "withdrawn_at",
            "withdrawn_rounds",
            "missed",
            "revoked",
        ),
    },
    "evaluation": {"val", "test", "external"},
    "evaluation.test": {
        *("n_patients", "n_images", "auroc", "auroc_ci", "auprc_benign", "auprc_malignant", "brier"),
        "sensitivity_at_90_specificity",
    },
    "federation": {
        *("strategy", "rounds", "sites", "bytes_up", "bytes_down", "seconds_per_round", "failed_rounds", "central", "weights"),
    },
}
# Names chosen by the run, not by the schema: any may be missing.
FREE = {"seeds", "versions", "evaluation"}
# Added after the first records were written: a record without them is still read.
ADDED = {"ledger", "patient_epsilon_account", "cap_epsilon", "cap_delta", "mismatches", "unanswered", "ledger_head"} | {
    *("aggregation", "min_survivors", "colluders", "epsilon_other_site", "epsilon_all_colluding", "failed_rounds"),
    *("rejected", "central", "set_sha256", "total", "overlap", "generator_unit", "total_epsilon", "total_delta", "total_unit"),
    *("chosen", "events", "generator_accountant", "cap_since", "cap_raised", "account_published"),
    *("withdrawn_at", "withdrawn_rounds", "generator_floating", "cautions", "missed", "revoked", "weights"),
}


def at(values, path):
    for part in filter(None, path.split(".")):
        values = values[int(part)] if part.isdigit() else values[part]
    return values


def every_key(values, path=""):
    if isinstance(values, dict):
        for key, value in values.items():
            yield path, key
            yield from every_key(value, f"{path}.{key}".lstrip("."))
    if isinstance(values, list):
        for row, value in enumerate(values):
            yield from every_key(value, f"{path}.{row}")


def refuse_constant(name):
    raise AssertionError(f"{name} in a strict JSON file")


@pytest.mark.parametrize("path", KEYS)
def test_the_keys_are_those_that_outside_code_relies_on(record, tmp_path, path):
    values = json.loads(record.write(tmp_path).read_text(encoding="utf-8"), parse_constant=refuse_constant)
    assert set(at(values, path)) == KEYS[path]


def test_a_written_record_reads_back_equal(record, tmp_path):
    assert record.write(tmp_path) == tmp_path / "record.json"
    assert read_record(tmp_path) == record


def test_a_run_without_noise_is_written_as_null_and_reads_back_infinite(record, tmp_path):
    site = replace(record.privacy.sites[0], epsilon=math.inf, epsilon_after_round=(1.0, math.inf), budget_left=math.inf)
    privacy = replace(record.privacy, target_epsilon=math.inf, noise="none", sites=(site,))
    written = replace(record, privacy=privacy).write(tmp_path)
    values = json.loads(written.read_text(encoding="utf-8"), parse_constant=refuse_constant)
    assert values["privacy"]["target_epsilon"] is None
    assert values["privacy"]["sites"][0]["epsilon"] is None
    assert values["privacy"]["sites"][0]["epsilon_after_round"] == [1.0, None]
    assert values["synthesis"]["provenance"]["epsilon"] is None
    found = read_record(tmp_path).privacy
    assert found == privacy
    assert math.isinf(found.epsilon)
    assert not found.guaranteed


def test_what_a_site_withholds_is_null_and_reads_back_as_none(record, tmp_path):
    hidden = Evaluation.withheld(n_patients=10, n_images=20)
    written = replace(record, evaluation={"sites": hidden}).write(tmp_path)
    entry = json.loads(written.read_text(encoding="utf-8"))["evaluation"]["sites"]
    assert entry["auroc"] is None
    assert entry["n_patients"] == 10
    assert read_record(tmp_path).evaluation["sites"] == hidden


epsilons = st.floats(0, 1e6) | st.just(math.inf)


@given(epsilons, epsilons, st.lists(epsilons, max_size=4), st.integers(0, 1000), st.booleans(), st.text())
def test_any_site_survives_json(epsilon, left, after, rounds, refused, name):
    site = SitePrivacy(
        site=name,
        epsilon=epsilon,
        epsilon_account=epsilon,
        epsilon_after_round=tuple(after),
        patient_epsilon=epsilon,
        mechanism="m",
        budget_left=left,
        rounds=rounds,
        refused=refused,
    )
    assert (
        build(SitePrivacy, json.loads(json.dumps(plain(site, form=RECORD), allow_nan=False)), path="site", form=RECORD) == site
    )


STEP = PrivacyEvent(
    mechanism="gradient",
    noise_multiplier=5.0,
    steps=2,
    sample_rate=1.0,
    unit="patient",
    clipping_norm=1.0,
    max_images_per_patient=4,
    noise_shares=3,
)


def test_the_events_of_a_site_are_written_for_others_to_price_and_read_back(record, tmp_path):
    privacy = record.privacy
    sites = [replace(site, events=(STEP,) * len(site.epsilon_after_round)) for site in privacy.sites]
    written = replace(record, privacy=replace(privacy, sites=tuple(sites))).write(tmp_path)
    (first, *_) = json.loads(written.read_text(encoding="utf-8"))["privacy"]["sites"]
    assert PrivacyEvent.from_dict({**first["events"][0], "relation": STEP.as_dict()["relation"]}) == STEP
    assert read_record(tmp_path).privacy.sites[0].events == sites[0].events


def test_a_site_with_another_number_of_events_than_of_figures_is_refused(record):
    with pytest.raises(DataError, match="events has 1 entries and must have 12"):
        replace(record.privacy.sites[-1], events=(STEP,))


def test_every_missing_key_is_named(record, tmp_path):
    text = record.write(tmp_path).read_text(encoding="utf-8")
    keys = [(path, key) for path, key in every_key(json.loads(text)) if path.split(".")[0] not in FREE]
    required = [(path, key) for path, key in keys if key not in ADDED]
    assert len(required) > 60
    for path, key in required:
        values = json.loads(text)
        del at(values, path)[key]
        (tmp_path / RECORD_NAME).write_text(json.dumps(values), encoding="utf-8")
        with pytest.raises(DataError, match=key):
            read_record(tmp_path)


def test_a_record_written_before_keys_were_added_is_read_and_promises_nothing_about_them(record, tmp_path):
    values = json.loads(record.write(tmp_path).read_text(encoding="utf-8"))
    for section in (values["privacy"], *values["privacy"]["sites"]):
        for key in ADDED & section.keys():
            del section[key]
    (tmp_path / RECORD_NAME).write_text(json.dumps(values), encoding="utf-8")
    privacy = read_record(tmp_path).privacy
    assert privacy.ledger == "run"
    assert privacy.warnings == ()
    assert {(site.patient_epsilon_account, site.cap_epsilon) for site in privacy.sites} == {(math.inf, math.inf)}


def test_a_record_of_ledgers_that_carry_over_guarantees_the_largest_cap_of_a_site_that_was_charged(record):
    sites = [replace(site, cap_epsilon=cap) for site, cap in zip(record.privacy.sites, (8.0, 9.0, 7.0, 30.0), strict=True)]
    sites[3] = replace(sites[3], epsilon=0.0, epsilon_after_round=())
    privacy = replace(record.privacy, ledger="site", sites=tuple(sites))
    assert privacy.guaranteed_epsilon == 9.0
    assert privacy.guaranteed
    unbounded = replace(privacy, sites=(replace(sites[0], cap_epsilon=math.inf), *sites[1:]))
    assert not unbounded.guaranteed


@pytest.mark.parametrize(
    ("path", "key", "value"),
    [
        ("", "schema_version", 2),
        ("", "surprise", 1),
        ("", "mode", "guess"),
        ("", "started", "yesterday"),
        ("", "started", "2025-03-04T10:00:00"),
        ("seconds", "total", -1.0),
        ("seconds", "total", None),
        ("data", "sites", {}),
        ("data.sites.0", "patients", "many"),
        ("data.sites.0", "patients", True),
        ("data.sites.0", "malignant_fraction", 1.2),
        ("privacy", "unit", "hospital"),
        ("privacy", "noise", "a coin"),
        ("privacy", "delta", 0),
        ("privacy.sites.0", "epsilon", -0.1),
        ("privacy.sites.0", "refused", 0),
        ("privacy.sites.0", "site", "Nordklinik"),
        ("evaluation.test", "auroc", 1.5),
        ("evaluation.test", "auroc_ci", [0.5]),
        ("federation", "bytes_up", 1.5),
    ],
)
def test_a_bad_value_is_refused_by_name(record, tmp_path, path, key, value):
    values = record.as_dict()
    at(values, path)[key] = value
    (tmp_path / RECORD_NAME).write_text(json.dumps(values), encoding="utf-8")
    with pytest.raises(DataError, match=key):
        read_record(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"schema_version": NaN}', "\xff"])
def test_a_file_that_is_no_record_is_refused(tmp_path, text):
    (tmp_path / RECORD_NAME).write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=r"record\.json"):
        read_record(tmp_path)


def test_a_missing_record_is_refused_with_the_remedy(tmp_path):
    with pytest.raises(DataError, match="give the folder of a finished run"):
        read_record(tmp_path)


@pytest.mark.parametrize("value", [math.nan, -1.0])
def test_an_epsilon_that_is_no_epsilon_cannot_be_recorded(record, value):
    with pytest.raises(DataError, match="epsilon"):
        replace(record.privacy.sites[0], epsilon=value)


def test_two_sites_of_one_name_cannot_be_recorded(record):
    site = SiteData(site="twice", patients=1, images=1, malignant_fraction=None)
    with pytest.raises(DataError, match="twice"):
        replace(record.data, sites=(site, site))


def test_a_write_that_fails_leaves_the_old_record_and_no_rest(record, tmp_path):
    record.write(tmp_path)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            replace(record, run_id="second").write(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert read_record(tmp_path) == record
    assert os.listdir(tmp_path) == [RECORD_NAME]


WRITER = """
import sys
from pathlib import Path
from mammo_fed.common.private_files import write_atomically
path = Path(sys.argv[1])
print("ready", flush=True)
while True:
    for letter in "ab":
        write_atomically(path, letter * 2_000_000)
"""


def test_readers_of_a_file_that_is_written_and_its_killed_writer_see_whole_files(tmp_path):
    path = tmp_path / "file"
    write_atomically(path, "a" * 2_000_000)
    sizes, files = set(), set()
    with subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE) as writer:
        assert writer.stdout.readline() == b"ready\n"
        until = time.monotonic() + 1.0
        while time.monotonic() < until:
            seen = path.stat()
            sizes.add(seen.st_size)
            files.add((seen.st_ino, seen.st_mtime_ns))
        writer.send_signal(signal.SIGKILL)
    assert sizes == {2_000_000}
    assert len(files) > 2
    assert path.read_text(encoding="utf-8") in {"a" * 2_000_000, "b" * 2_000_000}


def test_two_runs_compare_equal_but_for_names_times_and_versions(record):
    later = replace(
        record,
        run_id="another",
        versions={"python": "3.12.0"},
        started="2026-01-01T00:00:00+00:00",
        finished="2026-01-01T00:00:09+00:00",
        seconds=replace(record.seconds, total=9.0),
        federation=replace(record.federation, seconds_per_round=0.1),
    )
    assert comparable(later) == comparable(record)
    assert comparable(replace(later, config_hash="00")) != comparable(record)
    assert comparable(replace(later, federation=replace(later.federation, bytes_up=1))) != comparable(record)


def test_a_record_with_injected_noise_guarantees_nothing(record):
    assert record.privacy.guaranteed
    assert not replace(record.privacy, noise="injected").guaranteed


def test_the_reporting_layer_needs_neither_torch_nor_flower():
    code = "import sys, mammo_fed.reporting.pages.run_page, mammo_fed.reporting.console; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "flwr", "mammo_fed.server", "mammo_fed.client", "mammo_fed.simulations", "matplotlib.pyplot"} & set(
        loaded
    )
