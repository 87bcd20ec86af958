"""A site's backup: whole while the site is in use, put back where no charge is forgotten, and never trusted with a path."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import tarfile
import threading
from hashlib import sha256
from pathlib import Path

import pytest
from real_federation import SMALL_RUN, real_federation

from mammo_fed.client.charging import site_ledger
from mammo_fed.client.folder import SiteFolder
from mammo_fed.privacy.ledger.report import show_ledger, verify_ledger


@pytest.fixture(autouse=True)
def machine(tmp_path, monkeypatch):
    """`machine("other")`: from now on another machine, where the user has no state yet; the first is "one"."""

    def use(name: str) -> None:
        monkeypatch.setenv("MAMMO_FED_STATE", str(tmp_path / f"state-of-{name}"))

    use("one")
    return use


@pytest.fixture
def note(client, tmp_path):
    """`note(site, "P1")`: one more entry in the site's ledger, by a command; gives the ledger's end."""

    def add(site: SiteFolder, name: str) -> str:
        listed = tmp_path / "withdrawn.txt"
        listed.write_text(f"{name}\n", encoding="utf-8")
        code, _, err = client("withdraw", site.path, "--patients", listed)
        assert code == 0, err
        return verify_ledger(Path(site.file.ledger))

    return add


@pytest.fixture
def saved(client, tmp_path):
    """`saved(site)`: a new backup of it."""
    made = []

    def save(site: SiteFolder, *options: str) -> Path:
        file = tmp_path / f"backup-{len(made)}.tar"
        made.append(file)
        code, _, err = client("backup", site.path, file, *options)
        assert code == 0, err
        assert "as closed to others as the site's folder" in " ".join(err.split())
        return file

    return save


def forgotten(finished: tuple[int, str, str]) -> bool:
    """Whether a restoration was refused in one line because it would forget charges."""
    code, out, err = finished
    return (code, out, len(err.splitlines())) == (3, "", 1) and "would be forgotten" in err


def content(folder: Path) -> dict[str, bytes]:
    """Every file below a folder but for the lock of who looked at it."""
    found = [path for path in folder.rglob("*") if path.is_file() and path.name != "lock"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def test_backup_on_a_new_machine_is_the_same_site_once_a_person_says_that_it_is_the_newest(
    client, site, note, saved, machine, mode, tmp_path
):
    end = note(site, "P1")
    file, new = saved(site), tmp_path / "new"
    assert mode(file) == 0o600
    machine("other")
    finished = client("restore", file, new)
    assert forgotten(finished)
    assert "--reported HEAD" in finished[2]
    assert not new.exists()

    code, out, err = client("restore", file, new, "--latest")
    assert code == 0, err
    assert "ledger/journal.sqlite" in out
    restored = SiteFolder.open(new)
    assert verify_ledger(new / "ledger") == end
    assert (new / "private" / "ledger-head").read_text().strip() == end
    assert restored.public_key() == site.public_key()
    assert (new / "site.toml").read_bytes() == site.site_file.read_bytes()
    assert {path.name: mode(path) for path in new.rglob("*") if path.is_dir()} == {
        "keys": 0o700,
        "ledger": 0o700,
        "private": 0o700,
    }
    assert all(mode(path) == 0o600 for path in new.rglob("*") if path.is_file())
    note(restored, "P2")


def test_backup_is_put_back_where_it_holds_what_the_coordinator_was_told_and_not_where_it_does_not(
    client, site, note, saved, machine, tmp_path
):
    note(site, "P1")
    file = saved(site)
    earlier = verify_ledger(Path(site.file.ledger))
    later = note(site, "P2")
    machine("other")
    assert forgotten(client("restore", file, tmp_path / "new", "--reported", later))
    # Nobody's word outweighs what is remembered.
    assert forgotten(client("restore", file, tmp_path / "new", "--reported", later, "--latest"))
    code, _, err = client("restore", file, tmp_path / "new", "--reported", "12")
    assert (code, len(err.splitlines())) == (2, 1)
    assert not (tmp_path / "new").exists()
    assert client("restore", file, tmp_path / "new", "--reported", earlier)[0] == 0


@pytest.mark.parametrize("lost", ["nothing", "ledger", "journal", "memory", "ledger and memory", "folder"])
def test_backup_from_before_a_charge_is_refused_whatever_was_lost_since(client, site, note, saved, tmp_path, lost):
    note(site, "P1")
    old = saved(site)
    end = note(site, "P2")
    ledger, memory = Path(site.file.ledger), site.private / "ledger-head"
    if "ledger" in lost:
        shutil.rmtree(ledger)
    if lost == "journal":
        (ledger / "journal.sqlite").write_bytes(b"damaged")
    if "memory" in lost:
        memory.unlink()
    if lost == "folder":
        shutil.rmtree(site.path)
    before = content(site.path)
    assert forgotten(client("restore", old, site.path))
    assert forgotten(client("restore", old, site.path, "--latest"))
    assert content(site.path) == before
    if lost == "nothing":
        assert verify_ledger(ledger) == end


def test_backup_that_is_the_newest_mends_a_site_and_keeps_what_is_newer_there(client, site, note, saved, refused):
    end = note(site, "P1")
    file = saved(site)
    old_key = site.public_key()
    assert client("rotate-key", site.path)[0] == 0
    site.site_file.write_text(site.site_file.read_text().replace("min_patients = ", "min_patients = 1"))
    kept = content(site.path)
    (site.path / "ledger" / "journal.sqlite").write_bytes(b"damaged")
    site.authority.unlink()
    code, out, err = client("restore", file, site.path)
    assert code == 0, err
    assert "ca.crt, ledger" in out
    assert verify_ledger(site.path / "ledger") == end
    now = content(site.path)
    for name in ("site.toml", "keys/site.key", "keys/hospital-a.pub", "keys/site.key.old", "ca.crt"):
        assert now[name] == kept[name]
    assert site.public_key() != old_key
    (aside,) = site.path.glob("ledger.before-*")
    assert (aside / "journal.sqlite").read_bytes() == b"damaged"
    # All is there: once more changes nothing.
    assert "nothing, all of it was there" in client("restore", file, site.path)[1]
    note(site, "P2")


def test_backup_brings_back_a_key_that_was_lost_and_without_one_the_site_gets_a_new_one(
    client, site, note, saved, machine, tmp_path
):
    note(site, "P1")
    with_key, without = saved(site), saved(site, "--without-key")
    private = site.key.read_bytes()
    assert private in with_key.read_bytes()
    assert private not in without.read_bytes()
    known = site.public_key()
    site.key.unlink()
    assert client("restore", with_key, site.path)[0] == 0
    assert site.public_key() == known
    code, _, err = client("restore", without, tmp_path / "new")
    assert code == 0, err
    assert "registers with --replace" in err
    assert SiteFolder.open(tmp_path / "new").public_key() != known


def test_backup_of_a_site_that_never_ran_is_restored_and_is_older_than_any_run(client, site, note, saved, machine, tmp_path):
    file = saved(site)
    machine("other")
    assert client("restore", file, tmp_path / "new", "--latest")[0] == 0
    assert SiteFolder.open(tmp_path / "new").public_key() == site.public_key()
    note(site, "P1")
    shutil.rmtree(site.path / "ledger")
    assert forgotten(client("restore", file, site.path, "--latest"))


def test_backup_replaces_no_file_lies_outside_the_folder_and_holds_no_ledger_that_the_site_would_refuse(
    client, site, note, saved, refused, tmp_path
):
    note(site, "P1")
    shutil.copytree(site.path / "ledger", tmp_path / "older")
    file = saved(site)
    before = file.read_bytes()
    assert "must be new" in refused(client("backup", site.path, file))
    assert file.read_bytes() == before
    assert "outside" in refused(client("backup", site.path, site.path / "private" / "b.tar"))
    assert "cannot be written" in refused(client("backup", site.path, tmp_path / "no" / "b.tar"))
    note(site, "P2")
    shutil.rmtree(site.path / "ledger")
    (tmp_path / "older").rename(site.path / "ledger")
    code, _, err = client("backup", site.path, tmp_path / "b.tar")
    assert (code, len(err.splitlines())) == (3, 1)
    assert not (tmp_path / "b.tar").exists()
    assert [path for path in (*tmp_path.iterdir(), *site.private.iterdir()) if path.name.startswith((".b", ".backup"))] == []


def test_backup_of_another_site_or_into_a_folder_in_use_is_refused(client, make_site, note, saved, refused):
    site, other = make_site("hospital-a"), make_site("hospital-b")
    note(site, "P1")
    note(other, "P1")
    assert "hospital-b" in refused(client("restore", saved(site), other.path))
    with site.hold():
        assert "in use" in refused(client("restore", saved(site), site.path))


def test_backup_taken_while_others_write_is_always_a_whole_ledger(client, site, note, saved, machine, tmp_path):
    first, ends = note(site, "P0"), []

    def write() -> None:
        for number in range(40):
            with site_ledger(site.file, usual="declared") as ledger:
                ledger.withdraw([[f"patient-{number}"]])
                with ledger.holding() as head:
                    ends.append(head)

    writer = threading.Thread(target=write)
    writer.start()
    files = [saved(site)]
    while writer.is_alive() and len(files) < 8:
        files.append(saved(site))
    writer.join()
    machine("other")
    for number, file in enumerate(files):
        place = tmp_path / f"place-{number}"
        assert client("restore", file, place, "--latest")[0] == 0
        assert verify_ledger(place / "ledger", reported=first) in {first, *ends}
        shutil.rmtree(tmp_path / "state-of-other")
    assert len(ends) == 40


def packed(path: Path, members: list[tuple[tarfile.TarInfo, bytes]], *, mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:
        for member, body in members:
            archive.addfile(member, io.BytesIO(body))
    return path


def unpacked(path: Path) -> list[tuple[tarfile.TarInfo, bytes]]:
    with tarfile.open(path) as archive:
        return [(member, archive.extractfile(member).read()) for member in archive.getmembers()]


def file_of(name: str, body: bytes) -> tuple[tarfile.TarInfo, bytes]:
    member = tarfile.TarInfo(name)
    member.size = len(body)
    return member, body


def renamed(members, old: str, new: str):
    """The archive with one file under another name, in the manifest too."""
    manifest = json.loads(members[0][1])
    manifest["files"] = {new if name == old else name: fact for name, fact in manifest["files"].items()}
    rest = [file_of(new if member.name == old else member.name, body) for member, body in members[1:]]
    return [file_of("manifest.json", json.dumps(manifest).encode()), *rest]


def linked(members, kind: bytes):
    """The archive with a link in the place of the authority."""
    found = []
    for member, body in members:
        if member.name == "ca.crt":
            member.type, member.linkname, member.size = kind, "/etc/passwd", 0
            body = b""
        found.append((member, body))
    return found


def with_manifest(members, **values: object):
    manifest = {**json.loads(members[0][1]), **values}
    return [file_of("manifest.json", json.dumps(manifest).encode()), *members[1:]]


def changed_toml(members, old: str, new: str):
    """The archive with other settings, and a manifest that agrees."""
    manifest = json.loads(members[0][1])
    body = next(body for member, body in members if member.name == "site.toml").replace(old.encode(), new.encode())
    manifest["files"]["site.toml"] = {"bytes": len(body), "sha256": sha256(body).hexdigest()}
    rest = [file_of("site.toml", body) if member.name == "site.toml" else (member, part) for member, part in members[1:]]
    return [file_of("manifest.json", json.dumps(manifest).encode()), *rest]


HOSTILE = {
    "a path upwards": lambda members, _: renamed(members, "ca.crt", "../../escaped"),
    "an absolute path": lambda members, path: renamed(members, "ca.crt", str(path / "escaped")),
    "a name of no place": lambda members, _: renamed(members, "ca.crt", "private/executor.py"),
    "a symbolic link": lambda members, _: linked(members, tarfile.SYMTYPE),
    "a hard link": lambda members, _: linked(members, tarfile.LNKTYPE),
    "a device": lambda members, _: linked(members, tarfile.CHRTYPE),
    "a further file": lambda members, _: [*members, file_of("site.toml", b"x")],
    "a file twice": lambda members, _: [*members[:2], *members[1:]],
    "a missing file": lambda members, _: members[:-1],
    "another content": lambda members, _: [*members[:-1], file_of(members[-1][0].name, members[-1][1][::-1])],
    "no manifest": lambda members, _: members[1:],
    "a manifest that is no table": lambda members, _: [file_of("manifest.json", b"[" * 100_000), *members[1:]],
    "a manifest without a head": lambda members, _: with_manifest(members, head=""),
    "a manifest with another head": lambda members, _: with_manifest(members, head="3:" + 64 * "0"),
    "a manifest with an unknown key": lambda members, _: with_manifest(members, run="rm"),
    "a manifest that speaks to the terminal": lambda members, _: with_manifest(members, made="\x1b]0;title\x07"),
    "a manifest of two lines": lambda members, _: with_manifest(members, version="1\nall is well"),
    "a manifest of another format": lambda members, _: with_manifest(members, format=2),
    "a size beyond all bounds": lambda members, _: with_manifest(
        members, files={"site.toml": {"bytes": 1 << 60, "sha256": "0" * 64}}
    ),
    "another name in its site.toml": lambda members, _: changed_toml(members, "hospital-a", "hospital-z"),
    "a ledger elsewhere": lambda members, path: changed_toml(members, 'ledger = "ledger"', f'ledger = "{path / "escaped"}"'),
    "a key elsewhere": lambda members, path: changed_toml(members, '"keys/site.key"', f'"{path / "escaped"}"'),
}


@pytest.fixture
def genuine(site, note, saved, machine):
    """A backup, on a machine that does not know its site."""
    note(site, "P1")
    file = saved(site)
    machine("other")
    return file


def test_backup_of_a_hostile_hand_is_refused_in_one_line_and_writes_nothing(client, genuine, tmp_path):
    members = unpacked(genuine)
    for name, change in HOSTILE.items():
        file = packed(tmp_path / "hostile.tar", change(unpacked(genuine), tmp_path))
        code, out, err = client("restore", file, tmp_path / "new", "--latest")
        assert (code, out, len(err.splitlines())) == (2, "", 1), (name, err)
        assert not (tmp_path / "new").exists(), name
        assert not list(tmp_path.rglob("*escaped*")), name
    # The same way of packing, with nothing changed, is taken.
    assert client("restore", packed(tmp_path / "same.tar", members), tmp_path / "new", "--latest")[0] == 0


@pytest.mark.parametrize("body", [b"", b"\0" * 20_480, b"no archive", os.urandom(4096)])
def test_backup_that_is_no_archive_is_refused(client, tmp_path, body, refused):
    (tmp_path / "file").write_bytes(body)
    assert "is not a site's backup" in refused(client("restore", tmp_path / "file", tmp_path / "new", "--latest"))
    assert not (tmp_path / "new").exists()


def test_backup_that_is_compressed_or_cut_short_is_refused(client, genuine, tmp_path, refused):
    file = packed(tmp_path / "small.tar.gz", unpacked(genuine), mode="w:gz")
    refused(client("restore", file, tmp_path / "new", "--latest"))
    whole = genuine.read_bytes()
    end = sum(512 + -(-member.size // 512) * 512 for member, _ in unpacked(genuine))
    for length in range(0, end, max(1, end // 40)):
        (tmp_path / "cut.tar").write_bytes(whole[:length])
        refused(client("restore", tmp_path / "cut.tar", tmp_path / "new", "--latest"))
    assert not (tmp_path / "new").exists()


def test_backup_on_a_disk_without_room_leaves_nothing(client, genuine, tmp_path):
    folder = tmp_path / "small"
    folder.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32k", "tmpfs", folder], check=False).returncode:
        pytest.skip("needs root and a file system in memory")
    try:
        code, _, err = client("restore", genuine, folder / "new", "--latest")
        assert code in (1, 2)
        assert len(err.splitlines()) == 1
        assert list(folder.iterdir()) == []
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_backup_of_a_site_that_runs_is_old_once_it_answered_again_and_the_newest_trains_on(client, cache, tmp_path):
    with real_federation(tmp_path, num_sites=2, cache=cache) as federation:
        for name in federation.sites:
            federation.start_client(name)
        federation.start_server(*SMALL_RUN, "federation.num_sites=2", "federation.rounds=3")
        federation.wait_for("round 1/3", seconds=600)
        site = federation.site("site-1")
        assert client("backup", site, tmp_path / "during.tar")[0] == 0
        assert federation.wait(900) == 0, federation.tail()
        federation.clients["site-1"].terminate()
        federation.clients["site-1"].wait(120)
        reported = next(each.ledger_head for each in federation.record.privacy.sites if each.site == "site-1")
        assert client("backup", site, tmp_path / "after.tar")[0] == 0
        shutil.rmtree(site)
        # What this user's state remembers was written by the site's own process, before its replies left.
        assert forgotten(client("restore", tmp_path / "during.tar", site, "--latest"))
        code, _, err = client("restore", tmp_path / "after.tar", site, "--reported", reported)
        assert code == 0, err

        shutil.move(federation.run_folder, tmp_path / "first")
        federation.start_client("site-1")
        federation.start_server(*SMALL_RUN, "federation.num_sites=2", "federation.rounds=2", "seed=1")
        assert federation.wait(900) == 0, federation.tail()
        # The mean of round 0 and two rounds.
        assert [(each.refused, each.rounds) for each in federation.record.privacy.sites] == [(False, 3)] * 2
        first = {run.run_id for each in show_ledger(site / "ledger", delta=None).accounts for run in each.runs}
        assert len(first) == 2
