"""site-client withdraw: whom a file names, what the command tells the site's people, and what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from mammo_fed.client.charging import site_ledger
from mammo_fed.client.folder import SiteFolder
from mammo_fed.client.operations.withdrawal import read_patients
from mammo_fed.data.cache import ArrayCache
from mammo_fed.data.pseudonyms import Pseudonyms
from mammo_fed.data.run_cohorts import load_pool, patients_of
from mammo_fed.privacy.ledger.report import export_ledger, verify_ledger


@pytest.fixture
def hospital(make_site, table) -> SiteFolder:
    """A site with a table that is not public."""
    return make_site("hospital-p", "data=csv", f"data.root={table.path}")


@pytest.fixture
def names(tmp_path):
    """`names(text)`: a file of patients."""

    def write(content: str | bytes) -> Path:
        path = tmp_path / "patients.csv"
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


@pytest.fixture
def told(client, hospital, names):
    """`told(text, ...)`: what the command says as JSON, once it ended well."""

    def run(content: str | bytes, *options: object) -> dict[str, object]:
        code, out, err = client("withdraw", hospital.path, "--patients", names(content), "--json", *options)
        assert code == 0, err
        return {**json.loads(out), "err": err}

    return run


def withdrawn(folder: SiteFolder, *patients: str) -> set[str]:
    with site_ledger(folder.file, usual="gdp") as ledger:
        return set(ledger.withdrawn(patients).patients)


def kinds(folder: SiteFolder) -> list[str]:
    return [entry.kind for entry in export_ledger(Path(folder.file.ledger))]


def test_a_patient_withdraws_before_any_run_and_the_ledger_is_made_for_it(told, hospital, table):
    one, other = table.patients[:2]
    said = told(f"{one}\n")
    assert {name: said[name] for name in ("named", "new", "in_cohort", "in_ledger", "unknown_lines")} == {
        "named": 1,
        "new": 1,
        "in_cohort": 1,
        "in_ledger": 0,
        "unknown_lines": [],
    }
    assert kinds(hospital) == ["opened", "withdrawn"]
    assert withdrawn(hospital, one, other) == {one}
    verify_ledger(Path(hospital.file.ledger))
    assert (hospital.private / "ledger-head").is_file()


def test_a_patient_of_a_held_out_split_withdraws_too(told, hospital):
    file, store = hospital.file, ArrayCache(Path(hospital.file.cache))
    trained_on = set(load_pool(file.data, file.share, cache=store).cohort.patients.tolist())
    held_out = patients_of(file.data, file.share, index=0, cache=store) - trained_on
    assert held_out
    assert told("\n".join(sorted(held_out)))["in_cohort"] == len(held_out)


@pytest.mark.parametrize(
    "content",
    [
        "patient\n{}\n",
        "Patient\r\n{}\r\n\r\n",
        "\ufeffpatient\n{}",
        "\n\n  {}  \n\n",
        '"{}"\n',
        "{}\r{}\r",
        "\u200b\n{}\n\u00a0\n",
    ],
    ids=["header", "windows", "mark", "blanks", "quotes", "old-mac", "invisible"],
)
def test_patients_withdraw_by_a_file_as_people_and_spreadsheets_write_it(names, content):
    (found,) = read_patients(names(content.format("P-1", "p-1")))
    assert found.identifier == "P-1"


def test_a_name_with_a_comma_withdraws_in_quotes(names):
    assert [(one.line, one.identifier) for one in read_patients(names('patient\n"DOE, JANE"\nP-2\n'))] == [
        (2, "DOE, JANE"),
        (3, "P-2"),
    ]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "names nobody"),
        ("patient\n\n", "names nobody"),
        ("P-1\nDOE, JANE\n", "line 2 has 2 values"),
        ('P-1\n"DOE\n', "line 2 has quotes that do not close"),
        (b"P-1\nJ\xf6rg\n", "line 2 is not UTF-8"),
        ("patient\n".encode("utf-16"), "line 1 is not UTF-8"),
        ("P-1\n" + "x" * 2000 + "\n", "line 2 is no identifier"),
        (b"P-1\nP\x00-2\n", "line 2 is no identifier"),
    ],
    ids=["empty", "header", "columns", "quotes", "latin", "utf-16", "long", "nul"],
)
def test_a_file_from_which_nobody_can_withdraw_is_refused_by_line_and_writes_nothing(client, hospital, names, content, said):
    code, out, err = client("withdraw", hospital.path, "--patients", names(content))
    assert (code, out) == (2, "")
    assert said in err
    assert "JANE" not in err
    assert list(Path(hospital.file.ledger).iterdir()) == []


def test_a_withdrawal_needs_a_file_that_can_be_read(client, hospital, tmp_path):
    for path in (tmp_path / "absent.csv", tmp_path):
        code, _, err = client("withdraw", hospital.path, "--patients", path)
        assert code == 2
        assert "cannot be read" in err
    assert client("withdraw", hospital.path)[0] == 2
    assert client("withdraw", tmp_path, "--patients", tmp_path / "absent.csv")[0] == 2


def test_who_may_be_misspelt_in_a_withdrawal_is_named_by_line_and_never_by_name(client, hospital, names, table):
    content = f"{table.patients[0]}\nErika-misspelt\n"
    code, out, err = client("withdraw", hospital.path, "--patients", names(content))
    assert code == 0
    assert "line 2: neither the cohort nor the ledger knows this patient" in err
    assert "line 1" not in err
    shown = out + err
    assert "Erika" not in shown
    assert "2 patients in the file: 1 in the cohort, 0 known to the ledger, 2 new to withdraw." in out
    assert "No model or synthetic set that was made with them is undone" in out
    assert "exp(epsilon)" in out
    assert str(hospital.file.cache) in out


def test_a_dry_run_of_a_withdrawal_counts_and_writes_nothing(told, hospital, table):
    said = told("\n".join(table.patients[:3]), "--dry-run")
    assert (said["named"], said["new"], said["in_cohort"], said["dry_run"]) == (3, 3, 3, True)
    assert list(Path(hospital.file.ledger).iterdir()) == []
    told(table.patients[0])
    before = kinds(hospital)
    assert told("\n".join(table.patients[:3]), "--dry-run")["new"] == 2
    assert kinds(hospital) == before


def test_a_withdrawal_can_be_repeated_in_another_spelling_and_changes_nothing(told, hospital, table):
    told(table.patients[0])
    before = kinds(hospital)
    again = told(f"  {table.patients[0].upper()}\u200b \n")
    assert (again["new"], again["in_cohort"], again["in_ledger"], again["unknown_lines"]) == (0, 1, 1, [])
    assert kinds(hospital) == before


def test_a_withdrawal_does_not_wait_for_a_cohort_that_cannot_be_read(client, make_site, table, names, tmp_path):
    moved = shutil.copytree(table.path.parent, tmp_path / "table")
    folder = make_site("hospital-q", "data=csv", f"data.root={moved / table.path.name}")
    shutil.rmtree(moved)
    code, out, err = client("withdraw", folder.path, "--patients", names(table.patients[0]))
    assert code == 0
    assert "the cohort cannot be read" in err
    assert "1 patient in the file: 0 known to the ledger, 1 new to withdraw." in out
    assert withdrawn(folder, table.patients[0]) == {table.patients[0]}


def test_a_withdrawal_is_refused_where_the_ledger_was_put_back_from_an_older_copy(client, hospital, names, table, tmp_path):
    with site_ledger(hospital.file, usual="gdp"):
        pass
    older = shutil.copytree(hospital.file.ledger, tmp_path / "older")
    assert client("withdraw", hospital.path, "--patients", names(table.patients[0]))[0] == 0
    shutil.rmtree(hospital.file.ledger)
    shutil.copytree(older, hospital.file.ledger)
    for options in ((), ("--dry-run",)):
        code, _, err = client("withdraw", hospital.path, "--patients", names(table.patients[1]), *options)
        assert code == 3
        assert "does not hold the entry" in err
    shutil.rmtree(hospital.file.ledger)
    assert client("withdraw", hospital.path, "--patients", names(table.patients[1]), "--dry-run")[0] == 3


def test_check_and_privacy_show_tell_the_sites_people_how_many_withdrew(client, cli, told, hospital, table):
    told("\n".join([patient for patient in table.patients if "site" in patient][:2]))
    _, out, _ = client("check", hospital.path)
    assert "of whom 2 have withdrawn" in out
    code, out, _ = cli("privacy", "show", hospital.file.ledger)
    assert code == 0
    assert "2 patients withdrew; what was charged before stays" in out
    code, out, _ = cli("privacy", "show", hospital.file.ledger, "--json")
    assert [one["patients"] for one in json.loads(out)["withdrawals"]] == [2]
    _, out, _ = cli("privacy", "export", hospital.file.ledger)
    assert json.loads(out.splitlines()[-1])["details"] == {"patients": 2}


# A cohort of pseudonyms


@pytest.fixture
def ingested(make_site, cli, tmp_path) -> tuple[SiteFolder, dict[str, str]]:
    """A site whose cohort was made of a DICOM archive, and pseudonyms by the hospital's identifiers."""
    archive, cohort = tmp_path / "archive", tmp_path / "cohort"
    tree = ("--images", "16", "--size", "32", "--rows", "96", "--columns", "80")
    assert cli("data", "phantom", archive, *tree)[0] == 0
    code, _, err = cli("data", "ingest", archive, cohort, "--public", "--size", "32", "--jobs", "1")
    assert code == 0, err
    folder = make_site("hospital-d", "--min-patients", "1", "data=cohort", f"data.root={cohort}", "data.public=true")
    known = patients_of(folder.file.data, folder.file.share, index=0, cache=ArrayCache(Path(folder.file.cache)))
    pseudonyms = Pseudonyms.kept_at(cohort.with_name("cohort.salt"))
    listed = {row.split(",")[1] for path in archive.rglob("*.csv") for row in path.read_text().splitlines()[1:]}
    pairs = {name: pseudonyms.of("patient", name) for name in listed}
    return folder, {name: pseudonym for name, pseudonym in pairs.items() if pseudonym in known}


def test_a_patient_of_a_cohort_of_pseudonyms_withdraws_by_the_hospitals_identifier(client, ingested, names):
    folder, known = ingested
    (one, pseudonym), (_, other) = sorted(known.items())[:2]
    code, out, err = client("withdraw", folder.path, "--patients", names(f" {one.lower()} \n{other}\n"))
    assert (code, err) == (0, "")
    assert "2 patients in the file: 2 in the cohort" in out
    assert withdrawn(folder, *known.values()) == {pseudonym, other}
    assert withdrawn(folder, one) == {one}


def test_a_withdrawal_without_the_salt_says_that_the_cohort_holds_pseudonyms(client, ingested, names, tmp_path):
    folder, known = ingested
    salt = (tmp_path / "cohort.salt").rename(tmp_path / "elsewhere")
    one = min(known)
    code, _, err = client("withdraw", folder.path, "--patients", names(one), "--dry-run")
    assert code == 0
    assert "give --salt FILE" in err
    assert not (tmp_path / "cohort.salt").exists()
    code, _, err = client("withdraw", folder.path, "--patients", names(one), "--salt", salt)
    assert (code, err) == (0, "")
    assert withdrawn(folder, known[one]) == {known[one]}


def test_a_withdrawal_with_another_salt_than_the_cohorts_is_refused(client, ingested, names, tmp_path):
    folder, known = ingested
    Pseudonyms.kept_at(tmp_path / "other.salt")
    for salt in (tmp_path / "other.salt", tmp_path / "absent"):
        code, _, err = client("withdraw", folder.path, "--patients", names(min(known)), "--salt", salt)
        assert code == 2
        assert "--salt" in err
    assert not (tmp_path / "absent").exists()
    assert list(Path(folder.file.ledger).iterdir()) == []
