"""The database of a SuperLink between two runs: the nodes that it knows stay, what the runs before sent and stored goes."""

from __future__ import annotations

import sqlite3
from contextlib import closing, suppress
from pathlib import Path
from typing import Final

__all__ = ["forget_runs"]

# Who the nodes are, what may not be said twice, and which form the tables have.
KEPT: Final = frozenset({"node", "nonce_store", "alembic_version"})


def forget_runs(path: Path) -> None:
    """Take everything of runs out of the database of a SuperLink that has ended, and give the room back.

    A database that cannot be read or is in use is left as it is: a SuperLink decides what becomes of it.

    Args:
      path: of the database; it may be absent.
    """
    if not path.is_file():
        return
    with suppress(sqlite3.Error), closing(sqlite3.connect(path, timeout=1.0, isolation_level=None)) as database:
        names = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        database.execute("BEGIN EXCLUSIVE")
        for name in names:
            if name not in KEPT and not name.startswith(("sqlite_", "alembic_")):
                database.execute(f'DELETE FROM "{name}"')  # noqa: S608 - a table's own name
        database.execute("COMMIT")
        database.execute("VACUUM")
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
