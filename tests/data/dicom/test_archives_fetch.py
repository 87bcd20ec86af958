"""Public DICOM collections fetched from a server on this machine: checked by their digests, resumed, nothing overwritten."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import socket
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from mammo_fed.cli.main import main
from mammo_fed.common.private_files import file_lock
from mammo_fed.data.downloads import github
from mammo_fed.data.downloads.github import COMMIT

pytest.importorskip("pooch", reason="needs the extra 'dicom'")

TABLES = ("mass_case_description_train_set.csv", "mass_case_description_test_set.csv")


class Server(ThreadingHTTPServer):
    """Answers by path and series; counts what was asked."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: dict[str, list[bytes | int]] = {}
        self.asked: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    """One answer after the other, the last one again and again."""

    server: Server

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        key = parse_qs(parts.query).get("SeriesInstanceUID", [parts.path.rsplit("/", 1)[-1]])[0]
        self.server.asked.append(key)
        answers = self.server.answers.get(key, [404])
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if isinstance(answer, int):
            self.send_error(answer)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with Server() as found:
        thread = threading.Thread(target=found.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield found
        found.shutdown()
        thread.join()


def packed(files: dict[str, bytes], *, digests: dict[str, str] | None = None) -> bytes:
    buffer, table = io.BytesIO(), io.StringIO()
    written = csv.writer(table)
    written.writerow(["Filename", "MD5Hash"])
    for name, content in files.items():
        written.writerow([name, (digests or {}).get(name, hashlib.md5(content, usedforsecurity=False).hexdigest())])
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
        archive.writestr("LICENSE", "CC BY")
        archive.writestr("md5hashes.csv", table.getvalue())
    return buffer.getvalue()


def series(uid: str, patient: str, *, study: str = "1.2.39478", size: object = 100, **more: object) -> dict[str, object]:
    about = {"SeriesInstanceUID": uid, "StudyInstanceUID": study, "PatientID": patient, "FileSize": size}
    return {
        **about,
        "SeriesNumber": 1,
        "SeriesDescription": "full mammogram images",
        "StudyDate": "2016-07-21 00:00:00.0",
        **more,
    }


def offer(server: Server, *listed: dict[str, object]) -> None:
    server.answers["getSeries"] = [json.dumps(listed).encode()]
    for one in listed:
        uid = str(one["SeriesInstanceUID"])
        server.answers[uid] = [packed({"1-1.dcm": f"image {uid}".encode(), "1-2.dcm": f"mask {uid}".encode()})]
    for name in TABLES:
        server.answers[name] = [b"patient_id,pathology\n"]


def fetch(server: Server, folder: Path, *more: str, name: str = "cbis_ddsm") -> int:
    return main(["data", "fetch", name, str(folder), "--url", server.url, *more])


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


FOLDER = "CBIS-DDSM/Mass-Training_P_00001_LEFT_CC/07-21-2016-NA-NA-39478/1.000000-full mammogram images-00001"


def test_dicom_series_of_masses_are_fetched_with_their_tables_into_descriptive_folders(tmp_path, server, capsys):
    offer(server, series("1.3.00001", "Mass-Training_P_00001_LEFT_CC"), series("1.3.00002", "Calc-Test_P_00001_LEFT_CC"))
    assert fetch(server, tmp_path, "--json") == 0
    assert files(tmp_path) == {
        f"{FOLDER}/1-1.dcm": b"image 1.3.00001",
        f"{FOLDER}/1-2.dcm": b"mask 1.3.00001",
        **dict.fromkeys(TABLES, b"patient_id,pathology\n"),
    }
    said = json.loads(capsys.readouterr().out)
    assert (said["fetched"], said["there"]) == (3, 0)
    assert "1.3.00002" not in server.asked


def test_second_fetch_of_dicom_series_asks_for_what_is_missing_only(tmp_path, server):
    offer(
        server, series("1.3.00001", "Mass-Test_P_1"), series("1.3.00002", "Mass-Test_P_2"), series("1.3.00003", "Mass-Test_P_3")
    )
    server.answers["1.3.00002"] = [503]
    assert fetch(server, tmp_path) == 2
    before = files(tmp_path)
    assert len(before) == 2
    server.answers["1.3.00002"] = [packed({"1-1.dcm": b"late"})]
    server.asked.clear()
    assert fetch(server, tmp_path) == 0
    assert sorted(server.asked) == sorted(["getSeries", "1.3.00002", "1.3.00003", *TABLES])
    assert before.items() <= files(tmp_path).items()
    server.asked.clear()
    (tmp_path / TABLES[0]).write_text("changed by hand")
    assert fetch(server, tmp_path) == 0
    assert server.asked == ["getSeries"]
    assert (tmp_path / TABLES[0]).read_text() == "changed by hand"


@pytest.mark.parametrize(
    "bad",
    [
        packed({"1-1.dcm": b"other"}, digests={"1-1.dcm": "0" * 32}),
        packed({"1-1.dcm": b"x", "1-2.dcm": b"y"}, digests={"1-2.dcm": "no digest"}),
        packed({}),
        packed({"1-1.dcm": b"image"})[:-40],
        b"<html>please sign in</html>",
        b"",
        500,
    ],
    ids=["digest", "no-digest", "empty", "torn", "page", "nothing", "error"],
)
def test_series_of_dicom_files_that_does_not_agree_is_asked_for_again_and_never_kept(tmp_path, server, bad):
    offer(server, series("1.3.00001", "Mass-Training_P_00001_LEFT_CC"))
    good = server.answers["1.3.00001"][0]
    server.answers["1.3.00001"] = [bad, good]
    assert fetch(server, tmp_path) == 0
    assert files(tmp_path)[f"{FOLDER}/1-1.dcm"] == b"image 1.3.00001"
    server.answers["1.3.00001"] = [bad]
    assert fetch(server, tmp_path / "other") == 2
    assert files(tmp_path / "other") == {}


def test_names_of_a_server_lead_out_of_no_folder_of_dicom_files(tmp_path, server):
    offer(server, series("1.3.00001", "Mass-/../../..", SeriesDescription="..\\..\\x:y"))
    server.answers["1.3.00001"] = [packed({"../../../up.dcm": b"image"})]
    assert fetch(server, tmp_path / "in") == 0
    assert {path.parts[0] for path in (Path(name) for name in files(tmp_path))} == {"in"}
    offer(server, series("../../up", "Mass-1"))
    assert fetch(server, tmp_path / "in") == 2


def test_series_whose_identifiers_end_alike_have_dicom_folders_of_their_own(tmp_path, server):
    offer(server, series("1.3.1.00001", "Mass-Test_P_1"), series("1.3.2.00001", "Mass-Test_P_1"))
    assert fetch(server, tmp_path) == 0
    assert len(files(tmp_path)) == 6


@pytest.mark.parametrize("answer", [404, 500, b"[]", b"{", b"[1]", b'[{"PatientID": "Mass-1"}]'])
def test_list_of_dicom_series_that_is_none_is_an_error_with_a_remedy(tmp_path, server, answer, capsys):
    server.answers["getSeries"] = [answer]
    assert fetch(server, tmp_path) == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert "error" in said


def test_download_of_dicom_files_says_how_much_room_is_missing(tmp_path, server, capsys):
    offer(server, series("1.3.00001", "Mass-Test_P_1", size=10**15))
    assert fetch(server, tmp_path) == 2
    assert "needs 2000000.0 GB" in " ".join(capsys.readouterr().err.split())
    assert server.asked == ["getSeries"]


@pytest.mark.parametrize("name", ["cbis_ddsm", "mammo_dp"])
def test_dicom_fetch_without_a_network_says_so(tmp_path, server, name, capsys):
    # Nobody listens there.
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        assert main(["data", "fetch", name, str(tmp_path / "in"), "--url", f"http://127.0.0.1:{taken.getsockname()[1]}"]) == 2
    assert "check the network, or fetch it by hand" in " ".join(capsys.readouterr().err.split())
    assert files(tmp_path) == {}


def test_two_downloads_of_dicom_files_do_not_meet_in_one_folder(tmp_path, server, capsys):
    offer(server, series("1.3.00001", "Mass-Test_P_1"))
    (tmp_path / ".fetch").mkdir()
    with file_lock(tmp_path / ".fetch" / "lock", what="test"):
        assert fetch(server, tmp_path) == 2
    assert "in use by another mammo-fed data fetch" in " ".join(capsys.readouterr().err.split())
    # What a download that was killed has left is no obstacle.
    (tmp_path / ".fetch" / "part").mkdir()
    (tmp_path / ".fetch" / "part" / "series.json").write_text("torn")
    assert fetch(server, tmp_path) == 0


def test_cmmd_is_fetched_and_says_that_its_table_is_to_be_saved(tmp_path, server, capsys):
    offer(server, series("1.3.00001", "D1-0001"))
    assert fetch(server, tmp_path, name="cmmd") == 0
    assert any(name.startswith("CMMD/D1-0001/") for name in files(tmp_path))
    assert "save it as CMMD_clinicaldata_revision.csv" in " ".join(capsys.readouterr().err.split())


def clone(monkeypatch: pytest.MonkeyPatch, *, comment: str = COMMIT, missing: str = "", extra: str = "") -> bytes:
    monkeypatch.setattr(github, "IMAGES", dict.fromkeys(github.IMAGES, 2))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.comment = comment.encode()
        for group in github.IMAGES:
            for number in range(2):
                name = f"{group}/{number}.png"
                if name != missing:
                    archive.writestr(f"mammo_dp-{COMMIT}/{name}", f"{group} {number}")
        archive.writestr(f"mammo_dp-{COMMIT}/code.py", "x")
        if extra:
            archive.writestr(extra, "x")
    return buffer.getvalue()


def test_mammo_dp_is_fetched_at_one_commit_and_only_once(tmp_path, server, monkeypatch):
    server.answers[f"{COMMIT}.zip"] = [clone(monkeypatch, extra=f"mammo_dp-{COMMIT}/dataset16062024/../../up.png")]
    assert fetch(server, tmp_path / "in", name="mammo_dp") == 0
    there = files(tmp_path)
    assert len(there) == 14
    assert there["in/dataset16062024/bcdr/test/1.png"] == b"dataset16062024/bcdr/test 1"
    (tmp_path / "in/dataset16062024/bcdr/test/1.png").unlink()
    assert fetch(server, tmp_path / "in", name="mammo_dp") == 0
    assert files(tmp_path) == there
    assert fetch(server, tmp_path / "in", name="mammo_dp") == 0
    assert len(server.asked) == 2


def test_mammo_dp_of_another_commit_or_number_or_over_other_files_is_refused(tmp_path, server, monkeypatch):
    name = f"{next(iter(github.IMAGES))}/1.png"
    for content in (clone(monkeypatch, comment="0" * 40), clone(monkeypatch, missing=name), b"no archive"):
        server.answers[f"{COMMIT}.zip"] = [content]
        assert fetch(server, tmp_path / "in", name="mammo_dp") == 2
    assert files(tmp_path) == {}
    server.answers[f"{COMMIT}.zip"] = [clone(monkeypatch)]
    (tmp_path / "in" / name).parent.mkdir(parents=True)
    (tmp_path / "in" / name).write_text("the site's own")
    assert fetch(server, tmp_path / "in", name="mammo_dp") == 2
    assert (tmp_path / "in" / name).read_text() == "the site's own"


@pytest.mark.parametrize("name", ["bcdr", "inbreast", "vindr_mammo", "embed"])
def test_dicom_collections_that_need_an_agreement_print_their_steps(tmp_path, server, name, capsys):
    assert fetch(server, tmp_path, name=name) == 0
    assert main(["data", "fetch", name, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["steps"]
    assert (server.asked, files(tmp_path)) == ([], {})
