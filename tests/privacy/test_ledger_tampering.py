"""A ledger that somebody without its key edits: every change stops the site, in words and with exit code 3."""

import os
import shutil
import sqlite3
from contextlib import closing

import numpy as np
import pytest
from ledger_workers import TASK, event, open_ledger

from mammo_fed.errors import LedgerError
from mammo_fed.privacy.ledger.journal import TABLES
from mammo_fed.privacy.ledger.report import export_ledger, verify_ledger

COLUMNS = {"kind": "TEXT", "payload": "BLOB", "mac": "BLOB"}


def fill(folder, *, entries, site="north"):
    """A ledger of `entries` entries: opened, declared, then rounds reserved and settled."""
    with open_ledger(folder, site=site) as ledger:
        ledger.declare(run_id="run", schedule=[event(steps=100)], patients=["p1", "p2"])
        for round_index in range((entries - 2) // 2):
            reservation = ledger.reserve(run_id="run", round_index=round_index, task_hash=TASK, events=[event()])
            ledger.settle(reservation, f"reply {round_index}".encode())
    return folder


@pytest.fixture
def folder(tmp_path):
    return fill(tmp_path / "ledger", entries=12)


@pytest.fixture
def editor(folder):
    with closing(edit(folder)) as database:
        yield database


def edit(folder):
    """The journal as any SQLite tool opens it."""
    database = sqlite3.connect(folder / "journal.sqlite", isolation_level=None)
    database.execute("PRAGMA synchronous = OFF")
    return database


def rows(editor):
    return editor.execute("SELECT seq, kind, payload, mac FROM entries ORDER BY seq").fetchall()


def check_refused(folder, match="restore it from a backup"):
    with pytest.raises(LedgerError, match=match) as refusal:
        verify_ledger(folder)
    assert refusal.value.exit_code == 3
    with pytest.raises(LedgerError, match=match):
        open_ledger(folder)


def check_every_byte_of_every_entry(folder, editor):
    """Change one byte, look, put it back; gives how many were changed."""
    changed = 0
    for seq, *values in rows(editor):
        for (column, kind), value in zip(COLUMNS.items(), values, strict=True):
            content = value.encode() if isinstance(value, str) else value
            update = f"UPDATE entries SET {column} = CAST(? AS {kind}) WHERE seq = ?"  # noqa: S608, fixed names
            for place in range(len(content)):
                forged = content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]
                editor.execute(update, (forged, seq))
                with pytest.raises(LedgerError):
                    verify_ledger(folder)
                changed += 1
            editor.execute(update, (content, seq))
        for place in range(8):
            editor.execute("UPDATE entries SET seq = ? WHERE seq = ?", (seq ^ (0x40 << 8 * place), seq))
            with pytest.raises(LedgerError):
                verify_ledger(folder)
            editor.execute("UPDATE entries SET seq = ? WHERE seq = ?", (seq, seq ^ (0x40 << 8 * place)))
            changed += 1
    verify_ledger(folder)
    return changed


def test_ledger_detects_a_change_of_any_byte_of_any_entry(folder, editor):
    size = sum(8 + len(kind) + len(payload) + len(mac) for _, kind, payload, mac in rows(editor))
    assert check_every_byte_of_every_entry(folder, editor) == size


@pytest.mark.slow
def test_ledger_of_fifty_entries_detects_a_change_of_any_byte(tmp_path):
    folder = fill(tmp_path / "ledger", entries=50)
    with closing(edit(folder)) as editor:
        assert len(rows(editor)) == 50
        size = sum(8 + len(kind) + len(payload) + len(mac) for _, kind, payload, mac in rows(editor))
        assert check_every_byte_of_every_entry(folder, editor) == size


def test_ledger_detects_a_change_of_any_byte_of_a_stored_reply(folder, editor):
    for entry, body in editor.execute("SELECT entry, body FROM replies").fetchall():
        for place in range(len(body)):
            forged = body[:place] + bytes([body[place] ^ 1]) + body[place + 1 :]
            editor.execute("UPDATE replies SET body = ? WHERE entry = ?", (forged, entry))
            with pytest.raises(LedgerError, match=f"reply stored with ledger entry {entry}"):
                verify_ledger(folder)
        with open_ledger(folder) as ledger, pytest.raises(LedgerError, match="reply stored with ledger entry"):
            ledger.stored_reply(run_id="run", round_index=entry // 2 - 1, task_hash=TASK)
        editor.execute("UPDATE replies SET body = ? WHERE entry = ?", (body, entry))
    verify_ledger(folder)


def test_ledger_files_with_a_flipped_byte_are_refused_or_read_the_same(folder, tmp_path):
    before, places = export_ledger(folder), np.random.default_rng(3)
    refused = 0
    for name in ["journal.sqlite"] * 60 + ["head"] * 20 + ["site.key"] * 10:
        copy = shutil.copytree(folder, tmp_path / "copy")
        content = bytearray((copy / name).read_bytes())
        content[places.integers(len(content))] ^= 1 << int(places.integers(8))
        (copy / name).write_bytes(content)
        try:
            assert export_ledger(copy) == before
        except LedgerError:
            refused += 1
        shutil.rmtree(copy)
    assert refused > 20


@pytest.mark.parametrize("seq", range(12))
def test_ledger_detects_a_removed_entry(folder, editor, seq):
    editor.execute("DELETE FROM entries WHERE seq = ?", (seq,))
    check_refused(folder)


@pytest.mark.parametrize("seq", range(11))
def test_ledger_detects_two_entries_that_changed_places(folder, editor, seq):
    (_, *first), (_, *second) = rows(editor)[seq : seq + 2]
    for place, content in ((seq, second), (seq + 1, first)):
        editor.execute("UPDATE entries SET kind = ?, payload = ?, mac = ? WHERE seq = ?", (*content, place))
    check_refused(folder)


@pytest.mark.parametrize("kept", range(12))
def test_ledger_detects_a_tail_that_was_cut_off(folder, editor, kept):
    editor.execute("DELETE FROM entries WHERE seq >= ?", (kept,))
    editor.execute("DELETE FROM replies WHERE entry >= ?", (kept,))
    check_refused(folder)


def test_ledger_detects_an_entry_of_another_ledger(folder, editor, tmp_path):
    other = fill(tmp_path / "other", entries=14)
    with closing(edit(other)) as source:
        foreign = rows(source)
    editor.execute("INSERT INTO entries VALUES (?, ?, ?, ?)", foreign[12])
    check_refused(folder)
    editor.execute("DELETE FROM entries WHERE seq = 12")
    verify_ledger(folder)
    editor.execute("UPDATE entries SET kind = ?, payload = ?, mac = ? WHERE seq = ?", (*foreign[5][1:], 5))
    check_refused(folder)


def test_ledger_detects_a_copy_of_its_own_entry_at_the_end(folder, editor):
    for _, *content in rows(editor):
        editor.execute("INSERT INTO entries VALUES (12, ?, ?, ?)", content)
        check_refused(folder)
        editor.execute("DELETE FROM entries WHERE seq = 12")
    verify_ledger(folder)


def test_ledger_detects_replies_added_removed_or_exchanged(folder, editor):
    editor.execute("INSERT INTO replies VALUES (2, x'00')")
    with pytest.raises(LedgerError, match="replies are not those it settled"):
        verify_ledger(folder)
    editor.execute("DELETE FROM replies WHERE entry = 2")
    editor.execute("UPDATE replies SET entry = CASE entry WHEN 3 THEN -5 WHEN 5 THEN -3 ELSE entry END")
    editor.execute("UPDATE replies SET entry = -entry WHERE entry < 0")
    with pytest.raises(LedgerError, match="reply stored with ledger entry"):
        verify_ledger(folder)
    editor.execute("DELETE FROM replies WHERE entry = 3")
    with pytest.raises(LedgerError, match="replies are not those it settled"):
        verify_ledger(folder)


def test_ledger_detects_a_trigger_that_would_change_what_it_writes(folder, editor):
    editor.execute("CREATE TRIGGER forget AFTER INSERT ON entries BEGIN DELETE FROM entries WHERE seq = new.seq; END")
    check_refused(folder, match="tables are not as they were made")


def append_one(folder, number):
    with open_ledger(folder) as ledger:
        ledger.reserve(run_id="run", round_index=50 + number, task_hash=TASK, events=[event()])
    return (folder / "head").read_bytes()


def test_ledger_repairs_a_head_that_a_crash_left_one_entry_behind(folder):
    before = (folder / "head").read_bytes()
    after = append_one(folder, 0)
    (folder / "head").write_bytes(before)
    verify_ledger(folder)
    assert (folder / "head").read_bytes() == after


def test_ledger_repairs_a_head_whose_last_write_was_cut_short(folder):
    before = (folder / "head").read_bytes()
    after = append_one(folder, 0)
    torn = bytes(new if place % 2 else old for place, (old, new) in enumerate(zip(before, after, strict=True)))
    assert torn not in (before, after)
    (folder / "head").write_bytes(torn)
    verify_ledger(folder)
    assert (folder / "head").read_bytes() == after


def test_ledger_refuses_a_head_two_entries_behind(folder):
    before = (folder / "head").read_bytes()
    append_one(folder, 0)
    append_one(folder, 1)
    (folder / "head").write_bytes(before)
    check_refused(folder)


def test_ledger_refuses_a_head_ahead_of_its_entries(folder, editor):
    ahead = append_one(folder, 0)
    editor.execute("DELETE FROM entries WHERE seq = 12")
    (folder / "head").write_bytes(ahead)
    check_refused(folder)


@pytest.mark.parametrize("slot", [0, 1])
def test_ledger_refuses_a_cut_tail_behind_a_spoilt_head(folder, editor, slot):
    """Spoiling one slot must not pass off the entry before the last as the last."""
    editor.execute("DELETE FROM entries WHERE seq = 11")
    editor.execute("DELETE FROM replies WHERE entry = 11")
    content = bytearray((folder / "head").read_bytes())
    content[slot * len(content) // 2] ^= 1
    (folder / "head").write_bytes(content)
    check_refused(folder)


def test_ledger_refuses_a_head_written_without_its_key(folder, editor):
    seq, _, _, mac = rows(editor)[9]
    editor.execute("DELETE FROM entries WHERE seq > 9")
    editor.execute("DELETE FROM replies WHERE entry > 9")
    content = (folder / "head").read_bytes()
    half = len(content) // 2
    seal = content[half : half * 2].split()[1]
    forged = f"{seq}:{mac.hex()} ".encode() + seal
    (folder / "head").write_bytes(content[:half] + forged.ljust(half - 1) + b"\n")
    check_refused(folder)


@pytest.mark.parametrize("part", ["journal.sqlite", "head", "site.key"])
def test_ledger_with_a_missing_part_is_refused_and_not_made_anew(folder, part):
    (folder / part).unlink()
    check_refused(folder)
    assert not (folder / part).exists()


def test_ledger_whose_key_others_may_read_is_refused(folder):
    (folder / "site.key").chmod(0o640)
    check_refused(folder, match="mode must be 600")


def test_ledger_keeps_its_files_to_its_owner(folder):
    assert [oct(path.stat().st_mode & 0o077) for path in [folder, *folder.iterdir()]] == ["0o0"] * 4


def test_ledger_put_back_from_an_older_copy_is_caught_by_a_reported_head(folder, tmp_path):
    older = shutil.copytree(folder, tmp_path / "older")
    append_one(folder, 0)
    reported = verify_ledger(folder)
    shutil.rmtree(folder)
    os.rename(older, folder)
    verify_ledger(folder)
    with pytest.raises(LedgerError, match="does not hold the entry 12 that the site reported"):
        verify_ledger(folder, reported=reported)


def test_ledger_that_grew_since_still_holds_the_head_it_reported(folder):
    reported = verify_ledger(folder)
    append_one(folder, 0)
    assert verify_ledger(folder, reported=reported) != reported


def test_ledger_open_while_it_is_tampered_with_stops_at_the_next_step(folder, editor):
    with open_ledger(folder) as ledger:
        editor.execute("DELETE FROM entries WHERE seq = 11")
        with pytest.raises(LedgerError, match="restore it from a backup"):
            ledger.reserve(run_id="run", round_index=9, task_hash=TASK, events=[event()])


def test_ledger_of_another_version_of_tables_is_refused(tmp_path, folder, editor):
    assert tuple(sql for (sql,) in editor.execute("SELECT sql FROM sqlite_schema ORDER BY name")) == TABLES
    editor.execute("ALTER TABLE entries ADD COLUMN note TEXT")
    check_refused(folder, match="tables are not as they were made")


def test_ledger_of_another_site_is_refused(folder):
    with pytest.raises(LedgerError, match="must be the ledger's own site"):
        open_ledger(folder, site="south")


@pytest.mark.parametrize("content", ["file", "folder"])
def test_ledger_does_not_take_a_place_that_holds_something_else(tmp_path, content):
    place = tmp_path / "place"
    if content == "file":
        place.write_text("something")
    else:
        place.mkdir()
        (place / "something").write_text("else")
    with pytest.raises(LedgerError):
        open_ledger(place)
    with pytest.raises(LedgerError):
        verify_ledger(place)
