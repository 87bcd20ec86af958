"""What the ledger asks of the operating system: durable writes, a private key, and plain words when one of them fails."""

from __future__ import annotations

import errno
import os
import sqlite3
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from mammo_fed.errors import LedgerError

__all__ = ["BUSY", "REMEDY", "WAIT_SECONDS", "read_secret", "storage_errors", "sync_folder", "write_durably"]

REMEDY: Final = (
    "nothing is released; keep the ledger's folder as it is and restore it from a backup no older than the last round"
)
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


@contextmanager
def storage_errors() -> Iterator[None]:
    """Turn what the operating system or SQLite raises into LedgerError: no paths, no content, what to do next."""
    try:
        yield
    except OSError as error:
        raise LedgerError(BY_ERRNO.get(error.errno or 0, BROKEN)) from error
    except sqlite3.ProgrammingError as error:
        raise LedgerError("the ledger was closed or belongs to another thread; open it again there") from error
    except sqlite3.Error as error:
        # The low byte is the primary code; the rest only refines it.
        raise LedgerError(BY_SQLITE_CODE.get(getattr(error, "sqlite_errorcode", 0) & 0xFF, BROKEN)) from error


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
