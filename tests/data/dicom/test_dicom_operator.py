"""What the person who ingests an archive meets: a full disk, names of files on demand, any name of a folder."""

from __future__ import annotations

import csv
import errno
from pathlib import Path
from typing import Any

import pytest

from mammo_fed.cli.main import main
from mammo_fed.data.cohort import BENIGN, MALIGNANT
from mammo_fed.data.dicom.archives.words import label_of
from mammo_fed.data.dicom.patch import Unwritten, make_patches


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    root = tmp_path / "Übungs Archiv"
    assert main(["data", "phantom", str(root), "--images", "4", "--rows", "192", "--columns", "160"]) == 0
    return root


def ingest(archive: Path, cohort: str, *options: str) -> int:
    return main(["data", "ingest", str(archive), cohort, "--public", "--jobs", "1", *options])


def test_dicom_files_that_a_reader_refuses_are_named_with_explain(archive, tmp_path, capsys):
    image = sorted(archive.rglob("*.dcm"))[0]
    image.write_bytes(image.read_bytes()[:20_000])
    assert ingest(archive, str(tmp_path / "cohort"), "--explain") == 0
    with (tmp_path / "cohort.problems.csv").open(encoding="utf-8") as file:
        assert any(str(image) in row["detail"] for row in csv.DictReader(file))
    assert str(image) in capsys.readouterr().err
    assert ingest(archive, str(tmp_path / "again")) == 0
    assert image.name not in capsys.readouterr().err.replace(str(tmp_path), "")


def test_dicom_cohort_may_be_the_current_folder(archive, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir(mode=0o700)
    monkeypatch.chdir(tmp_path / "here")
    assert ingest(archive, ".", "--explain") == 0
    assert (tmp_path / "here.salt").is_file()
    assert (tmp_path / "here.problems.csv").is_file()


def test_dicom_archive_that_cannot_be_read_leaves_no_salt_behind(tmp_path):
    (tmp_path / "empty").mkdir()
    assert ingest(tmp_path / "empty", str(tmp_path / "cohort")) == 2
    assert ingest(tmp_path / "empty", str(tmp_path / "cohort"), "--size", "0") == 2
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


def test_dicom_cohort_on_a_full_disk_is_a_failure_and_no_fault_of_the_files(archive, tmp_path, monkeypatch, capsys):
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    asked = []

    def here(work: Any, tasks: Any, **_: Any) -> Any:
        for task in tasks:
            asked.append(task)
            yield task, work(task)

    monkeypatch.setattr("mammo_fed.data.dicom.patch.write_private", full)
    monkeypatch.setattr("mammo_fed.data.dicom.ingest.run_isolated", here)
    assert ingest(archive, str(tmp_path / "cohort")) == 1
    assert "No space left on device" in capsys.readouterr().err
    assert len(asked) == 1
    assert all(isinstance(one, Unwritten) and one.code == errno.ENOSPC for one in make_patches(asked[0]))


def test_dicom_phantom_archive_that_cannot_be_written_is_bad_input(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert main(["data", "phantom", str(tmp_path / "file" / "archive"), "--images", "4"]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_dicom_collections_are_fetched_from_web_addresses_only(tmp_path, capsys):
    assert main(["data", "fetch", "cmmd", str(tmp_path / "cmmd"), "--url", "ftp://mirror"]) == 2
    assert "--url=ftp://mirror must begin with https://" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "label"), [("bösartig", MALIGNANT), ("bo\u0308sartig", MALIGNANT), ("Gutartig ", BENIGN), ("Bénin", BENIGN)]
)
def test_dicom_labels_are_read_in_the_languages_of_hospitals(text, label):
    assert label_of(text) == label
