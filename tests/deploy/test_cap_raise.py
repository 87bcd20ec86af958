"""site-client raise-cap: the operator's one way past a promise, with an entry in the ledger and a person's file kept."""

from __future__ import annotations

import contextlib
import io
import json
import math
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from mammo_fed.cli.main import main
from mammo_fed.client.charging import site_ledger
from mammo_fed.client.folder import SiteFolder
from mammo_fed.client.policy import read_site_file
from mammo_fed.client.site_file_edit import set_max_epsilon
from mammo_fed.errors import InvalidSetting, PolicyRefused
from mammo_fed.privacy.events import PrivacyEvent
from mammo_fed.privacy.ledger.report import export_ledger

EVENT = PrivacyEvent(
    mechanism="gradient",
    noise_multiplier=50.0,
    steps=1,
    sample_rate=1.0,
    unit="patient",
    clipping_norm=1.0,
    max_images_per_patient=16,
)


@pytest.fixture
def run_once(site) -> Callable[..., None]:
    """`run_once("run1")`: a run declared by the site as its file is now."""

    def declare(run_id: str, account: str = "default") -> None:
        with site_ledger(SiteFolder.open(site.path).file, usual="gdp") as ledger:
            ledger.declare(run_id=run_id, schedule=[EVENT], patients=["A", "B"], account=account)

    return declare


def edit(site: SiteFolder, old: str, new: str) -> None:
    text = site.site_file.read_text()
    assert old in text
    site.site_file.write_text(text.replace(old, new))


def kinds(site: SiteFolder) -> list[str]:
    return [entry.kind for entry in export_ledger(Path(site.file.ledger))]


def test_cap_is_raised_in_the_ledger_and_then_in_the_file_with_its_comments(client, site, run_once, mode):
    run_once("run1")
    before = site.site_file.read_text()
    code, out, err = client("raise-cap", site.path, "--max-epsilon", "8")
    assert code == 0, err
    said = " ".join(out.split()) + " ".join(err.split())
    (entry,) = [entry for entry in export_ledger(Path(site.file.ledger)) if entry.kind == "cap_raised"]
    assert (entry.details["account"], entry.details["from"], entry.details["to"]) == ("default", 6.0, 8.0)
    assert f"promised at most epsilon 6 over all runs; from {entry.at} on it is 8" in said
    assert site.site_file.read_text() == before.replace("max_epsilon = 6.0", "max_epsilon = 8.0")
    assert mode(site.site_file) == 0o600
    run_once("run2")
    assert client("check", site.path)[1].count("promised since") == 1
    shown = " ".join(client_privacy(site).split())
    assert f"all runs at most 8 at delta 0.0001, since {entry.at}; raised at {entry.at} from 6 to 8" in shown


def client_privacy(site: SiteFolder) -> str:
    """What `mammo-fed privacy show` prints of the site's ledger."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert main(["privacy", "show", site.file.ledger]) == 0
    return out.getvalue()


def test_cap_that_is_edited_into_the_file_alone_is_refused_until_it_is_raised(client, site, run_once):
    run_once("run1")
    edit(site, "max_epsilon = 6.0", "max_epsilon = 50.0 # more studies")
    with pytest.raises(PolicyRefused, match=r"promised 6 since .*raise it with `site-client raise-cap"):
        run_once("run2")
    code, out, _ = client("check", site.path)
    assert (code, "promised 6 since" in " ".join(out.split())) == (2, True)
    assert client("raise-cap", site.path, "--max-epsilon", "50")[0] == 0
    run_once("run2")
    assert "max_epsilon = 50.0 # more studies" in site.site_file.read_text()


@pytest.mark.parametrize("cap", ["6", "5.9", "0", "-1", "nan"])
def test_cap_that_is_not_above_the_promise_is_bad_input_and_changes_nothing(client, refused, site, run_once, cap):
    run_once("run1")
    before = site.site_file.read_bytes()
    assert "must be" in refused(client("raise-cap", site.path, f"--max-epsilon={cap}"))
    assert (site.site_file.read_bytes(), kinds(site)) == (before, ["opened", "declared"])


def test_cap_of_patients_who_are_not_public_is_never_without_end(client, refused, make_site, small_phantom):
    site = make_site("hospital-q", *small_phantom, "data.public=false")
    assert "inf is for cohorts that are declared public" in refused(client("raise-cap", site.path, "--max-epsilon", "inf"))


def test_cap_before_the_first_run_is_nobodys_promise(client, refused, site):
    assert "nobody was promised a cap" in refused(client("raise-cap", site.path, "--max-epsilon", "8"))
    assert list(Path(site.file.ledger).iterdir()) == []


def test_cap_is_raised_while_the_site_runs(client, site, run_once):
    run_once("run1")
    with site.hold():
        assert client("raise-cap", site.path, "--max-epsilon", "8")[0] == 0


def test_cap_of_one_account_is_raised_and_the_others_are_named_where_they_bind(client, refused, site, run_once):
    run_once("run1")
    run_once("run2", account="study-b")
    code, out, err = client("raise-cap", site.path, "--max-epsilon", "8", "--account", "default")
    assert code == 0
    assert "shares patients with account study-b, promised 6 since" not in out + err
    assert read_site_file(site.site_file).policy.max_epsilon == 6.0
    assert "must be one of the ledger's: default, study-b" in refused(
        client("raise-cap", site.path, "--max-epsilon", "9", "--account", "study-c")
    )
    code, out, _ = client("raise-cap", site.path, "--max-epsilon", "8", "--json")
    values = json.loads(out)
    assert (code, list(values["raised"]), values["max_epsilon"]) == (0, ["study-b"], 8.0)
    run_once("run3")


TABLES = {
    "a comment on the line": (
        "[policy]\nmax_epsilon = 6.0 # told to patients\n",
        "[policy]\nmax_epsilon = 8.0 # told to patients\n",
    ),
    "a whole number": ("[policy]\nmax_epsilon=6\n", "[policy]\nmax_epsilon=8.0\n"),
    "a dotted key": ("policy.max_epsilon = 6e0\n", "policy.max_epsilon = 8.0\n"),
    "an inline table": ("policy = {max_epsilon = 6.0, delta = 1e-4}\n", "policy = {max_epsilon = 8.0, delta = 1e-4}\n"),
    "a quoted key": ('[policy]\n"max_epsilon" = 6.0\n', '[policy]\n"max_epsilon" = 8.0\n'),
    "a decoy in a comment": (
        "# max_epsilon = 6.0\n[policy]\nmax_epsilon = 6.0\n",
        "# max_epsilon = 6.0\n[policy]\nmax_epsilon = 8.0\n",
    ),
    "a decoy in a text": (
        "note = 'max_epsilon = 6.0'\n[policy]\nmax_epsilon = 6.0\n",
        "note = 'max_epsilon = 6.0'\n[policy]\nmax_epsilon = 8.0\n",
    ),
    "another table": (
        "[other]\nmax_epsilon = 6.0\n[policy]\nmax_epsilon = 6.0\n",
        "[other]\nmax_epsilon = 6.0\n[policy]\nmax_epsilon = 8.0\n",
    ),
    "lines of another system": ("[policy]\r\nmax_epsilon = 6.0\r\n", "[policy]\r\nmax_epsilon = 8.0\r\n"),
}


@pytest.mark.parametrize("case", TABLES)
def test_cap_is_changed_in_a_persons_file_and_nothing_else_is(tmp_path, case):
    path, (before, after) = tmp_path / "site.toml", TABLES[case]
    path.write_bytes(before.encode())
    set_max_epsilon(path, 8)
    assert path.read_bytes() == after.encode()


def test_cap_without_end_is_written_as_toml_knows_it(tmp_path):
    path = tmp_path / "site.toml"
    path.write_text("[policy]\nmax_epsilon = 6.0\n")
    set_max_epsilon(path, math.inf)
    assert tomllib.loads(path.read_text())["policy"]["max_epsilon"] == math.inf


@pytest.mark.parametrize(
    "text", ["[policy]\n", "max_epsilon = 6.0\n", "policy = 3\n", "[policy\n", "[policy]\n'max\\u005fepsilon' = 6\n"]
)
def test_cap_that_cannot_be_edited_in_is_said_to_whoever_writes_it(tmp_path, text):
    path = tmp_path / "site.toml"
    path.write_text(text)
    with pytest.raises(InvalidSetting, match=r"write there, below \[policy\]: max_epsilon = 8\.0"):
        set_max_epsilon(path, 8.0)
    assert path.read_text() == text
