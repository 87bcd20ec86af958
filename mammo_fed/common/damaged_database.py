"""Databases of SQLite that a power loss or a disk has damaged: found before they are used, and put aside, never deleted."""

from __future__ import annotations

import os
import shutil
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final
from urllib.parse import quote

from mammo_fed.common.private_files import sync_folder

__all__ = ["damage", "log_tells_of_database", "put_aside"]

# What SQLite answers where the bytes of the file are the reason, and not a lock, a full disk or a permission.
OF_BYTES: Final = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_FORMAT)
BESIDE: Final = ("-wal", "-shm", "-journal")
LAST_BYTES: Final = 1 << 16
# What the last words of a process name where its own reading of its database failed.
OF_DATABASE: Final = (b"sqlite3.", b"sqlalchemy.", b"alembic.")
# Reasons that are not in its bytes, and pass.
PASSING: Final = (b"is full", b"readonly", b"locked", b"disk I/O error", b"unable to open")


def damage(database: Path) -> str:
    """What is wrong with the file of a database; "" where it is sound, empty or not there, or cannot be looked at now."""
    if not database.exists():
        return ""
    if not database.is_file():
        return "it is no file"
    if not database.stat().st_size:
        return ""
    try:
        connection = sqlite3.connect(f"file:{quote(os.fsencode(database))}?mode=rw", uri=True, timeout=1.0)
        try:
            (found,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        finally:
            connection.close()
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        return str(error) if code in OF_BYTES else ""
    return "" if found == "ok" else str(found).splitlines()[0]


def put_aside(database: Path) -> Path:
    """Give a database another name beside it, with all that belongs to it, and return that name.

    What belongs to it goes first: a process that is killed in between leaves the damaged database, which is found again, and
    never a new one beside the journal of the old.

    Raises:
      OSError: If it cannot be moved.
    """
    for aside in _names(database):
        try:
            # Reserves the name: of two processes one has it.
            os.close(os.open(aside, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        except FileExistsError:
            continue
        break
    for ending in BESIDE:
        beside = database.with_name(database.name + ending)
        if beside.exists():
            beside.replace(aside.with_name(aside.name + ending))
    if database.is_dir():
        aside.unlink()
        shutil.move(database, aside)
    else:
        database.replace(aside)
    sync_folder(database.parent)
    return aside


def log_tells_of_database(log: Path) -> bool:
    """Whether the last words of a process are of a database that it could not use, be its bytes sound or not."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - LAST_BYTES))
            last = file.read()
    except OSError:
        return False
    words = last[last.rfind(b"Traceback (most recent call last)") :] if b"Traceback" in last else b""
    return any(word in words for word in OF_DATABASE) and not any(word in words for word in PASSING)


def _names(database: Path) -> Iterator[Path]:
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    number = 0
    while True:
        yield database.with_name(f"{database.name}.damaged-{stamp}{f'-{number}' if number else ''}")
        number += 1
