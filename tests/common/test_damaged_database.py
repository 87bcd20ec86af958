"""A damaged database is told from one that is sound, empty or in use, and put aside; a secret that was cut is replaced."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from mammo_fed.common.damaged_database import damage, log_tells_of_database, put_aside
from mammo_fed.common.private_files import hex_secret


@pytest.fixture
def database(tmp_path: Path) -> Path:
    path = tmp_path / "a folder (1) #?%" / "link.db"
    path.parent.mkdir()
    with closing(sqlite3.connect(path)) as made:
        made.execute("create table message (id integer primary key, text blob)")
        made.executemany("insert into message (text) values (?)", [(bytes([n % 256]) * 3000,) for n in range(300)])
        made.commit()
    return path


def test_database_that_is_sound_empty_locked_or_missing_is_not_damaged(database):
    assert damage(database) == ""
    with closing(sqlite3.connect(database)) as other:
        other.execute("begin exclusive")
        assert damage(database) == ""
    database.write_bytes(b"")
    assert damage(database) == ""
    database.unlink()
    assert damage(database) == ""


@pytest.mark.parametrize("how", ["random", "cut", "header", "pages", "zeros", "folder"])
def test_database_that_is_damaged_is_found_and_put_aside(database, how):
    content = database.read_bytes()
    changed = {
        "random": bytes(range(7, 256)) * 90,
        "cut": content[: len(content) // 2],
        "header": b"\x00" * 40 + content[40:],
        "pages": content[:4096] + b"\xff" * 8192 + content[12_288:],
        "zeros": b"\x00" * len(content),
    }
    if how == "folder":
        database.unlink()
        database.mkdir()
    else:
        database.write_bytes(changed[how])
    beside = [database.with_name(database.name + ending) for ending in ("-wal", "-shm")]
    assert damage(database)
    for path in beside:
        path.write_bytes(b"old")
    aside = [put_aside(database)]
    assert not database.exists()
    assert not any(path.exists() for path in beside)
    assert aside[0].with_name(aside[0].name + "-wal").read_bytes() == b"old"
    if how != "folder":
        assert aside[0].read_bytes() == changed[how]
    # A second time in the same second.
    database.write_bytes(b"x" * 5000)
    aside.append(put_aside(database))
    assert aside[0] != aside[1]
    assert all(path.name.startswith("link.db.damaged-") for path in aside)


def test_database_that_a_process_cannot_use_is_known_from_its_last_words(tmp_path):
    log = tmp_path / "log"
    assert not log_tells_of_database(log)
    log.write_text("Traceback (most recent call last):\n  alembic.util.exc.CommandError: Can't locate revision\n")
    assert log_tells_of_database(log)
    log.write_text("Traceback (most recent call last):\n  sqlalchemy.exc.OperationalError: database is locked\n")
    assert not log_tells_of_database(log)
    log.write_text("sqlite3. was read\nTraceback (most recent call last):\n  OSError: address already in use\n")
    assert not log_tells_of_database(log)


@pytest.mark.parametrize("content", [b"", b"ab", b"\x00" * 96, b"z" * 96, b"ab" * 49, b"\xff" * 96])
def test_secret_that_was_cut_is_replaced_and_said(tmp_path, content):
    path = tmp_path / "superexec.secret"
    path.write_bytes(content)
    secret, damaged = hex_secret(path)
    assert damaged
    assert hex_secret(path) == (secret, False)
    assert len(secret) == 96
    assert path.stat().st_mode & 0o777 == 0o600


def test_secret_is_made_once_and_kept(tmp_path):
    secret, damaged = hex_secret(tmp_path / "control.secret")
    assert not damaged
    assert hex_secret(tmp_path / "control.secret") == (secret, False)
