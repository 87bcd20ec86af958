"""The ledger's folder on disk: a SQLite journal that only grows, the site's key and the head file."""

from __future__ import annotations

import hmac
import os
import secrets
import shutil
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Self
from urllib.parse import quote

from mammo_fed.errors import LedgerError
from mammo_fed.privacy.ledger.chain import KEY_BYTES, REMEDY, START, Entry, Head, LedgerKeys, extend, reply_seal, verified
from mammo_fed.privacy.ledger.durable_files import (
    WAIT_SECONDS,
    HeadFile,
    read_secret,
    storage_errors,
    sync_folder,
    write_durably,
)

__all__ = ["PARTS", "Journal"]

DATABASE: Final = "journal.sqlite"
KEY: Final = "site.key"
HEAD: Final = "head"
PARTS: Final = (DATABASE, KEY, HEAD)
TABLES: Final = (
    "CREATE TABLE entries (seq INTEGER PRIMARY KEY, kind TEXT NOT NULL, payload BLOB NOT NULL, mac BLOB NOT NULL) STRICT",
    "CREATE TABLE replies (entry INTEGER PRIMARY KEY REFERENCES entries, body BLOB NOT NULL) STRICT",
)


class Journal:
    """Durable, tamper-evident, append-only entries, for one process and thread; others may hold the same folder open.

    Every change adds exactly one entry: commit to the disk, then the head file. A crash between the two leaves the head one
    entry behind, which the next caller repairs; a head further behind, or ahead, is tampering. Putting back an older copy of
    the whole folder passes here: only a head that was reported elsewhere can show that.
    """

    def __init__(self, folder: Path) -> None:
        """Open the existing journal in `folder`; use `Journal.open` to have it created.

        Raises:
          LedgerError: If a part is missing, the key is open to others, or the tables are not as they were made.
        """
        self._process = os.getpid()
        self._head = self._before = START
        with storage_errors():
            self.keys = LedgerKeys.derive(read_secret(folder / KEY))
            self._head_file = HeadFile(folder / HEAD, self.keys)
            try:
                self._database = _connect(folder / DATABASE)
            except BaseException:
                self._head_file.close()
                raise

    @classmethod
    def open(cls, folder: Path, *, kind: str, details: Mapping[str, Any]) -> Self:
        """The journal in `folder`; where there is none, a new one whose first entry is `kind` with `details`.

        A journal appears whole or not at all, also where two processes create it at once or one is killed meanwhile.

        Raises:
          LedgerError: If the folder holds something else or only parts of a ledger, or the disk cannot be written.
        """
        with storage_errors():
            if folder.exists() and not folder.is_dir():
                raise LedgerError(
                    "ledger must be a folder of its own; check ledger in the site's file (privacy.ledger in a simulation)"
                )
            if not folder.is_dir() or not any(folder.iterdir()):
                _create(folder, kind=kind, details=details)
        return cls(folder)

    @property
    def head(self) -> Head:
        """The last entry that this object has verified."""
        return self._head

    @contextmanager
    def exclusive(self) -> Iterator[list[Entry]]:
        """Hold the journal alone, among threads and processes; gives the entries that others added since, verified.

        Raises:
          LedgerError: If entries or head were tampered with, or the journal stays busy.
        """
        if os.getpid() != self._process:
            raise LedgerError("the ledger was opened by another process; open it again in this one")
        with storage_errors():
            self._head_file.lock()
            try:
                yield self._catch_up()
            finally:
                if self._database.in_transaction:
                    self._database.execute("ROLLBACK")
                self._head_file.unlock()

    def append(self, kind: str, details: Mapping[str, Any], *, reply: bytes | None = None) -> Entry:
        """Add one entry, and with it the reply that it settles, in one transaction; durable on return. Needs `exclusive`.

        Raises:
          LedgerError: If the disk cannot take it. The entry may then be there or not; either is safe, as nothing is released.
        """
        entry = extend(self.keys, self._head, kind=kind, details=details)
        # The lock keeps other sites' processes out; on a disk that ignores locks, the same position twice still fails here.
        self._database.execute("BEGIN IMMEDIATE")
        self._database.execute("INSERT INTO entries VALUES (?, ?, ?, ?)", (entry.seq, entry.kind, entry.payload, entry.mac))
        if reply is not None:
            self._database.execute("INSERT INTO replies VALUES (?, ?)", (entry.seq, reply))
        self._database.execute("COMMIT")
        self._head_file.write(entry.head)
        self._before, self._head = self._head, entry.head
        return entry

    def reply(self, seq: int, *, seal: str) -> bytes:
        """The reply stored with entry `seq` under `seal`. Needs `exclusive`.

        Raises:
          LedgerError: If it is missing or changed.
        """
        row = self._database.execute("SELECT body FROM replies WHERE entry = ?", (seq,)).fetchone()
        if row is None or not hmac.compare_digest(reply_seal(self.keys, row[0]), seal):
            raise LedgerError(f"the reply stored with ledger entry {seq} is not what the site stored; {REMEDY}")
        return bytes(row[0])

    def reply_entries(self) -> frozenset[int]:
        """Positions of all entries that have a reply stored. Needs `exclusive`."""
        return frozenset(seq for (seq,) in self._database.execute("SELECT entry FROM replies"))

    def entries(self) -> list[Entry]:
        """All entries, verified from the first. Needs `exclusive`."""
        return verified(self.keys, START, self._rows(0))

    def close(self) -> None:
        """Let go of the files; closing twice is harmless."""
        self._database.close()
        self._head_file.close()

    def _rows(self, first: int) -> Iterator[Entry]:
        query = "SELECT seq, kind, payload, mac FROM entries WHERE seq >= ? ORDER BY seq"
        for seq, kind, payload, mac in self._database.execute(query, (first,)):
            yield Entry(seq=seq, kind=kind, payload=payload, mac=mac)

    def _catch_up(self) -> list[Entry]:
        """Verify what others added against the chain and the head file; bring the file up where a crash left it behind."""
        proven = verified(self.keys, self._before, self._rows(self._before.seq + 1))
        chain = [self._before, *(entry.head for entry in proven)]
        written = self._head_file.check(chain)
        if self._head not in chain or written.seq < self._head.seq:
            raise LedgerError(f"the ledger no longer ends at entry {self._head.seq} or later; {REMEDY}")
        if written != chain[-1]:
            self._head_file.write(chain[-1])
        fresh = [entry for entry in proven if entry.seq > self._head.seq]
        self._before, self._head = chain[-2], chain[-1]
        return fresh


def _create(folder: Path, *, kind: str, details: Mapping[str, Any]) -> None:
    """Make a whole ledger under another name, then rename it into place: a crash leaves either no ledger or a whole one."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = folder.parent / f".{folder.name}.{secrets.token_hex(8)}"
    draft.mkdir(mode=0o700)
    try:
        secret = secrets.token_bytes(KEY_BYTES)
        keys = LedgerKeys.derive(secret)
        first = extend(keys, START, kind=kind, details=details)
        write_durably(draft / KEY, secret)
        HeadFile.create(draft / HEAD, keys, first.head)
        write_durably(draft / DATABASE, b"")
        database = _connect(draft / DATABASE, create=True)
        database.execute("INSERT INTO entries VALUES (?, ?, ?, ?)", (first.seq, first.kind, first.payload, first.mac))
        database.close()
        sync_folder(draft)
        try:
            draft.rename(folder)
        except OSError:
            # Another process was first; its ledger is as good as this one, and opening it tells whether it is a ledger.
            if not (folder / DATABASE).exists():
                raise
        sync_folder(folder.parent)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _connect(path: Path, *, create: bool = False) -> sqlite3.Connection:
    """Connection that commits to the disk before it says so, to an existing file with our tables and nothing else.

    Raises:
      LedgerError: If the tables are others or the disk cannot keep a write-ahead log.
    """
    address = f"file:{quote(str(path.absolute()))}?mode=rw"
    database = sqlite3.connect(address, uri=True, isolation_level=None, timeout=WAIT_SECONDS)
    try:
        # A schema may hold triggers that change what is written: distrust it, and refuse any that is not ours.
        database.execute("PRAGMA trusted_schema = OFF")
        if create:
            database.execute("PRAGMA journal_mode = WAL")
            for table in TABLES:
                database.execute(table)
        found = tuple(sql for (sql,) in database.execute("SELECT sql FROM sqlite_schema ORDER BY name"))
        if found != TABLES or database.execute("PRAGMA journal_mode").fetchone() != ("wal",):
            raise LedgerError(f"the ledger's tables are not as they were made; {REMEDY}")
        database.execute("PRAGMA synchronous = FULL")
        database.execute("PRAGMA fullfsync = ON")
    except BaseException:
        database.close()
        raise
    return database
