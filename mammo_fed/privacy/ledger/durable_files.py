"""The ledger's files: durable writes, a private key, the head file, and plain words where the operating system fails.

The head file says where the chain ended when it was last written, sealed, in two slots used in turn; it is also the ledger's
lock. The slot written last holds the head, the other the one before. A write cut short by a power failure spoils one slot only,
and only after the entry it speaks of is on the disk; so a spoilt slot is believed where the chain is one entry longer than the
other slot says, and is tampering otherwise. Writing in place costs one disk flush, renaming a new file into place three.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import hmac
import os
import random
import sqlite3
import stat
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from mammo_fed.errors import LedgerError
from mammo_fed.privacy.ledger.chain import REMEDY, START, Head, LedgerKeys, head_from_text

__all__ = ["BUSY", "WAIT_SECONDS", "HeadFile", "read_secret", "storage_errors", "sync_folder", "write_durably"]

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
