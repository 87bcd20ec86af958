"""The ledger's folder on disk: a SQLite journal that only grows, the site's key and the head file, all written durably.

The head file says where the chain ended when it was last written, sealed, in two slots used in turn; it is also the ledger's
lock. The slot written last holds the head, the other the one before. A write cut short by a power failure spoils one slot only,
and only after the entry it speaks of is on the disk; so a spoilt slot is believed where the chain is one entry longer than the
other slot says, and is tampering otherwise. Writing in place costs one disk flush, renaming a new file into place three.
What the operating system or SQLite raises becomes plain words.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import hmac
import os
import random
import secrets
import shutil
import sqlite3
import stat
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Self
from urllib.parse import quote

from mammo_fed.errors import LedgerError, LedgerUnavailable
from mammo_fed.privacy.ledger.chain import (
    KEY_BYTES,
    REMEDY,
    START,
    Entry,
    Head,
    LedgerKeys,
    extend,
    head_from_text,
    reply_seal,
    verified,
)

__all__ = [
    "BUSY",
    "DATABASE",
    "HEAD",
    "KEY",
    "PARTS",
    "WAIT_SECONDS",
    "HeadFile",
    "Journal",
    "read_secret",
    "storage_errors",
    "sync_folder",
    "write_durably",
]

SLOT_BYTES: Final = 4096
WAIT_SECONDS: Final = 60.0
FULL: Final = "the ledger cannot be written, the disk is full; nothing is released; free space, then start the site again"
READ_ONLY: Final = (
    "the ledger cannot be written, its disk or folder is read-only or not the site's; nothing is released; make it writable"
)
BUSY: Final = f"the ledger stayed locked for {WAIT_SECONDS:g} s; nothing is released; look for another site process that hangs"
MISSING: Final = f"a part of the ledger is missing; {REMEDY}"
BROKEN: Final = f"the ledger cannot be read or written; {REMEDY}"
BY_ERRNO: Final = {
    errno.ENOSPC: FULL,
    errno.EDQUOT: FULL,
    errno.EFBIG: FULL,
    errno.EROFS: READ_ONLY,
    errno.EACCES: READ_ONLY,
    errno.EPERM: READ_ONLY,
    errno.ENOENT: MISSING,
}
BY_SQLITE_CODE: Final = {
    sqlite3.SQLITE_FULL: FULL,
    sqlite3.SQLITE_READONLY: READ_ONLY,
    sqlite3.SQLITE_PERM: READ_ONLY,
    sqlite3.SQLITE_BUSY: BUSY,
    sqlite3.SQLITE_LOCKED: BUSY,
}

# How SQLite's files beside the journal meet a full disk.
NO_ROOM: Final = (
    sqlite3.SQLITE_IOERR_SHMOPEN,
    sqlite3.SQLITE_IOERR_SHMSIZE,
    sqlite3.SQLITE_IOERR_SHMMAP,
    sqlite3.SQLITE_IOERR_WRITE,
    sqlite3.SQLITE_IOERR_TRUNCATE,
)
PASSING: Final = (FULL, READ_ONLY, BUSY)

DATABASE: Final = "journal.sqlite"
KEY: Final = "site.key"
HEAD: Final = "head"
PARTS: Final = (DATABASE, KEY, HEAD)
TABLES: Final = (
    "CREATE TABLE entries (seq INTEGER PRIMARY KEY, kind TEXT NOT NULL, payload BLOB NOT NULL, mac BLOB NOT NULL) STRICT",
    "CREATE TABLE replies (entry INTEGER PRIMARY KEY REFERENCES entries, body BLOB NOT NULL) STRICT",
)


@contextmanager
def storage_errors() -> Iterator[None]:
    """Turn what the operating system or SQLite raises into LedgerError: no paths, no content, what to do next.

    What passes by itself or is mended beside the ledger (a full disk, a lock that is held) becomes LedgerUnavailable.
    """
    try:
        yield
    except OSError as error:
        raise _error(BY_ERRNO.get(error.errno or 0, BROKEN)) from error
    except sqlite3.ProgrammingError as error:
        raise LedgerError("the ledger was closed or belongs to another thread; open it again there") from error
    except sqlite3.Error as error:
        # The low byte is the primary code; the rest only refines it.
        code = getattr(error, "sqlite_errorcode", 0)
        raise _error(FULL if code in NO_ROOM else BY_SQLITE_CODE.get(code & 0xFF, BROKEN)) from error


def _error(words: str) -> LedgerError:
    return LedgerUnavailable(words) if words in PASSING else LedgerError(words)


def write_durably(path: Path, content: bytes) -> None:
    """Write a file that only its owner can read, and return when it is on the disk."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with open(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Return when the names in `folder` are on the disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_secret(path: Path) -> bytes:
    """The site's key.

    Raises:
      LedgerError: If others may read or change it.
    """
    with path.open("rb") as file:
        if stat.S_IMODE(os.fstat(file.fileno()).st_mode) & 0o077:
            raise LedgerError("the ledger's key is open to others; its mode must be 600: chmod it and find out who read it")
        return file.read()


class HeadFile:
    """An open head file."""

    def __init__(self, path: Path, keys: LedgerKeys) -> None:
        """Open the head file at `path`; OSError if it is missing or cannot be written."""
        self._keys = keys
        self._descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)

    @staticmethod
    def create(path: Path, keys: LedgerKeys, head: Head) -> None:
        """Write the file of a chain whose only entry is `head`; durable on return."""
        write_durably(path, _slot(keys, head) + _slot(keys, START))

    def lock(self) -> None:
        """Take the lock for this object alone, among threads and processes; a process that dies lets go of it.

        Raises:
          LedgerError: If the file was closed, or the lock stays taken for WAIT_SECONDS.
        """
        if self._descriptor < 0:
            raise LedgerError("the ledger was closed; open it again")
        deadline = time.monotonic() + WAIT_SECONDS
        pause = 0.0005
        while True:
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    raise LedgerError(BUSY) from error
                time.sleep(pause * random.uniform(0.5, 1.5))  # noqa: S311, only to keep waiting processes out of step
                pause = min(2 * pause, 0.02)
            else:
                return

    def unlock(self) -> None:
        """Let go of the lock."""
        fcntl.flock(self._descriptor, fcntl.LOCK_UN)

    def write(self, head: Head) -> None:
        """Put `head` into the slot that is not the newest; durable on return."""
        os.pwrite(self._descriptor, _slot(self._keys, head), head.seq % 2 * SLOT_BYTES)
        os.fdatasync(self._descriptor)

    def check(self, chain: Sequence[Head]) -> Head:
        """Check that a verified chain ends where the file says, or one entry later, where a crash kept the file behind.

        Args:
          chain: the verified heads, the last at the end; START or the one before the last that was known, and all since.

        Returns:
          The newest head in the file.

        Raises:
          LedgerError: If entries were cut off or added, or the file itself is not what the site wrote.
        """
        content = os.pread(self._descriptor, 2 * SLOT_BYTES + 1, 0)
        slots = [self._parse(content[:SLOT_BYTES], parity=0), self._parse(content[SLOT_BYTES:], parity=1)]
        intact = sorted((head for head in slots if head is not None), key=lambda head: head.seq)
        if not intact:
            raise LedgerError(f"the ledger's head is not what the site wrote; {REMEDY}")
        newest = intact[-1]
        behind = chain[-2:-1] == [newest]
        current = chain[-1] == newest and len(intact) == 2 and chain[-2:-1] == [intact[0]]
        if not (behind or current):
            raise LedgerError(f"the ledger ends at entry {chain[-1].seq}, its head says {newest.seq}; {REMEDY}")
        return newest

    def close(self) -> None:
        """Close the file; closing twice is harmless."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _parse(self, content: bytes, *, parity: int) -> Head | None:
        """The head in a slot, None where the slot is not exactly what this site's key sealed for it."""
        try:
            head = head_from_text(content.decode("ascii").partition(" ")[0])
        except ValueError:
            return None
        return head if head.seq % 2 == parity and hmac.compare_digest(_slot(self._keys, head), content) else None


def _slot(keys: LedgerKeys, head: Head) -> bytes:
    """A slot's bytes: the head and a seal, so that cutting journal and head together needs the key."""
    seal = hmac.digest(keys.head, str(head).encode(), hashlib.sha256).hex()
    return f"{head} {seal}".encode().ljust(SLOT_BYTES - 1) + b"\n"


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
    address = f"file:{quote(os.fsencode(path.absolute()))}?mode=rw"
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
