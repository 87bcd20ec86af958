"""`mammo-fed privacy verify` recomputes a real run and a real ledger, and names what was changed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from mammo_fed.cli.privacy.settings_figures import settings_figures
from mammo_fed.privacy.ledger.report import verify_ledger

STORED = Path(__file__).parents[1] / "stored" / "version-1" / "finished"


@pytest.fixture(scope="module")
def finished(succeed):
    return succeed("federation.num_sites=2")


def test_verify_agrees_with_every_figure_of_a_run_and_of_its_ledgers(cli, finished):
    code, out, err = cli("privacy", "verify", finished.folder)
    assert code == 0, out + err
    assert "0 disagree" in err
    assert "site-1: epsilon after round 3" in out
    ledger, head = finished.folder / "sites" / "site-1" / "ledger", finished.record.privacy.sites[0].ledger_head
    code, out, err = cli("privacy", "verify", ledger, "--reported", head, "--json")
    found = json.loads(out)
    assert (code, found["verified"]) == (0, True), err
    assert {figure["agrees"] for figure in found["figures"]} == {True}


def test_verify_ends_with_3_and_the_name_of_the_figure_that_was_changed(cli, finished, tmp_path):
    path = tmp_path / "record.json"
    shutil.copy(finished.folder / "record.json", path)
    values = json.loads(path.read_text(encoding="utf-8"))
    values["privacy"]["sites"][1]["epsilon_after_round"][0] *= 0.9
    path.write_text(json.dumps(values), encoding="utf-8")
    code, out, err = cli("privacy", "verify", path, "--json")
    assert code == 3, err
    assert [figure["name"] for figure in json.loads(out)["figures"] if figure["agrees"] is False] == [
        "site-2: epsilon after round 0"
    ]
    code, out, err = cli("privacy", "verify", tmp_path)
    assert code == 3
    assert "DISAGREES" in out
    assert "1 disagree" in err


def test_verify_says_that_an_older_record_holds_no_events(cli):
    code, _, err = cli("privacy", "verify", STORED)
    assert code == 2
    assert "holds no privacy events: an earlier version wrote it" in err


def test_verify_refuses_what_is_neither_a_run_nor_a_ledger(cli, finished, tmp_path):
    assert cli("privacy", "verify", tmp_path / "nowhere")[0] == 2
    code, _, err = cli("privacy", "verify", finished.folder, "--reported", "3:abc")
    assert code == 2
    assert "--reported=3:abc has no effect here" in err


def test_a_statement_of_a_ledger_tells_its_cap_and_its_head(cli, finished):
    ledger = finished.folder / "sites" / "site-2" / "ledger"
    code, out, err = cli("privacy", "statement", ledger, "--json", "--patient-site", "site-2")
    assert code == 0, err
    found = json.loads(out)
    assert found["ledger_head"] == verify_ledger(ledger)
    assert (found["promise"], found["cap"], found["all_runs"]) == ("bounded", 6.0, True)
    assert (finished.folder / "statement.html").read_text(encoding="utf-8").count("<article") == 2


def test_verify_compares_the_settings_and_the_terms_with_those_beside_the_record_cap_and_all(cli, finished, tmp_path):
    for name in ("record.json", "config.yaml"):
        shutil.copy(finished.folder / name, tmp_path / name)
    code, out, err = cli("privacy", "verify", tmp_path, "--json")
    assert code == 0, err
    assert {"hash of the settings", "settings: privacy.target_epsilon"} <= {one["name"] for one in json.loads(out)["figures"]}
    text = (tmp_path / "config.yaml").read_text(encoding="utf-8")
    assert "target_epsilon: 6.0" in text
    (tmp_path / "config.yaml").write_text(text.replace("target_epsilon: 6.0", "target_epsilon: 60.0"), encoding="utf-8")
    code, out, err = cli("privacy", "verify", tmp_path, "--json")
    assert code == 3, err
    assert [figure["name"] for figure in json.loads(out)["figures"] if figure["agrees"] is False] == [
        "hash of the settings",
        "settings: privacy.target_epsilon",
    ]


@pytest.mark.parametrize("text", ["[" * 3000, "a: &a [*a]", "3", "", "privacy: 3", "\0"])
def test_verify_says_that_settings_that_are_none_cannot_be_compared_whatever_the_cap(finished, tmp_path, text):
    shutil.copy(finished.folder / "record.json", tmp_path)
    (tmp_path / "config.yaml").write_text(text, encoding="utf-8")
    (figure,) = settings_figures(tmp_path / "record.json")
    assert (figure["name"], figure["agrees"]) == ("hash of the settings", None)
    assert figure["note"]
