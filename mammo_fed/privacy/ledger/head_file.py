"""The head file: where the chain ended when it was last written, sealed, in two slots used in turn; also the ledger's lock.

The slot written last holds the head, the other the one before. A write cut short by a power failure spoils one slot only, and
only after the entry it speaks of is on the disk; so a spoilt slot is believed where the chain is one entry longer than the
other slot says, and is tampering otherwise. Writing in place costs one disk flush, renaming a new file into place three.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import os
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from mammo_fed.errors import LedgerError
from mammo_fed.privacy.ledger.chain import START, Head, LedgerKeys, head_from_text
from mammo_fed.privacy.ledger.durable_files import BUSY, REMEDY, WAIT_SECONDS, write_durably

__all__ = ["HeadFile"]

SLOT_BYTES: Final = 4096


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
