"""Where a site's ledger ended when it was last used, remembered outside of the site's folder: it outlives the folder.

It lies with the user's state (MAMMO_FED_STATE, else XDG_STATE_HOME/mammo-fed, else ~/.local/state/mammo-fed), in `ledgers/`,
one small file a ledger. Where that cannot be written the site works as well, and a restoration has one witness fewer.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from pathlib import Path
from typing import Final

from mammo_fed.client.policy import SiteFile
from mammo_fed.common.private_files import exclusive, user_folder, write_private
from mammo_fed.errors import MammoFedError
from mammo_fed.privacy.ledger.chain import head_from_text
from mammo_fed.privacy.ledger.copying import ledger_name

__all__ = ["MEMORY", "outside_memory", "remember_outside"]

logger = logging.getLogger(__name__)
FOLDER: Final = "ledgers"
MEMORY: Final = "ledger-head"


def outside_memory(ledger: Path) -> Path:
    """The file in which the end of the ledger in the folder `ledger`, or of any copy of it, is remembered.

    Raises:
      InvalidSetting: If the user has no home folder, and no variable says where.
      LedgerError: If the ledger's key is not there.
    """
    state = user_folder("MAMMO_FED_STATE", shared="XDG_STATE_HOME", usual=".local/state", what="the memory of ledgers")
    return state / FOLDER / ledger_name(ledger)


def remember_outside(file: SiteFile) -> None:
    """Bring what is remembered outside up to what the site itself remembers, if it can be written; it never goes back."""
    inside = Path(file.folder) / MEMORY
    try:
        if not inside.exists():
            return
        head = inside.read_text(encoding="ascii").strip()
        path = outside_memory(Path(file.ledger))
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with exclusive(path.with_name(f".{path.name}.lock")):
            before = -1
            with suppress(OSError, ValueError):
                before = head_from_text(path.read_text(encoding="ascii").strip()).seq
            if head_from_text(head).seq > before:
                write_private(path, f"{head}\n")
    except (OSError, ValueError, MammoFedError) as error:
        logger.debug("the end of the ledger is not remembered outside of the site's folder (%s)", type(error).__name__)
