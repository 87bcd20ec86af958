"""A copy of a ledger as it is at one moment, while its site may run; and a name by which copies of one ledger are known."""

from __future__ import annotations

import hashlib
import os
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Final
from urllib.parse import quote

from mammo_fed.privacy.ledger.journal import DATABASE, HEAD, KEY, read_secret, storage_errors, sync_folder, write_durably
from mammo_fed.privacy.ledger.report import existing_journal, verify_journal

__all__ = ["copy_ledger", "ledger_name"]

NAME_DIGITS: Final = 32


def copy_ledger(folder: Path, into: Path) -> str:
    """Write a copy of the verified ledger in `folder` into the empty folder `into`; durable on return.

    A site that runs waits for its turn meanwhile, so that nothing is charged while the copy is made.

    Returns:
      The copy's head, "position:seal".

    Raises:
      LedgerError: If there is no ledger, it does not verify, or the disk cannot take the copy.
    """
    with storage_errors(), existing_journal(folder) as journal:
        verify_journal(journal, reported=None)
        for part in (KEY, HEAD):
            write_durably(into / part, (folder / part).read_bytes())
        write_durably(into / DATABASE, b"")
        address = f"file:{quote(os.fsencode((folder / DATABASE).absolute()))}?mode=ro"
        with closing(sqlite3.connect(address, uri=True)) as source, closing(sqlite3.connect(into / DATABASE)) as copy:
            source.backup(copy)
        sync_folder(into)
        return str(journal.head)


def ledger_name(folder: Path) -> str:
    """A name that every copy of the ledger in `folder` has and no other ledger; it tells nothing of the key.

    Raises:
      LedgerError: If the ledger's key is not there or open to others.
    """
    with storage_errors():
        return hashlib.sha256(b"name of a ledger\0" + read_secret(folder / KEY)).hexdigest()[:NAME_DIGITS]
