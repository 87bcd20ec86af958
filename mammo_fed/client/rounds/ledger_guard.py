"""What a site remembers of its ledger outside the ledger's folder, so that an emptied or replaced one is not taken for new."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mammo_fed.client.policy import SiteFile
from mammo_fed.common.private_files import write_private
from mammo_fed.errors import LedgerError
from mammo_fed.privacy.accounting.filters import FilterKind
from mammo_fed.privacy.ledger.durable_files import storage_errors
from mammo_fed.privacy.ledger.ledger import Budget, Ledger

__all__ = ["LedgerMemory", "site_ledger"]


@contextmanager
def site_ledger(file: SiteFile, *, usual: FilterKind) -> Iterator[Ledger]:
    """The ledger that a site's file names, compared with what the site remembers of it before and after.

    Args:
      file: of the site.
      usual: the filter that an account opens with where the policy leaves the choice to the run.

    Raises:
      LedgerError: If the ledger is gone, an older copy, tampered with, or not writable.
    """
    policy, memory = file.policy, LedgerMemory(Path(file.folder) / "ledger-head")
    memory.check_exists(Path(file.ledger))
    with Ledger.open(
        Path(file.ledger),
        site=file.site,
        budget=Budget(max_epsilon=policy.max_epsilon, delta=policy.delta),
        filter=usual if policy.filter == "auto" else policy.filter,
        adopt=policy.filter == "auto",
    ) as ledger:
        memory.check_holds(ledger)
        try:
            yield ledger
        finally:
            memory.keep(ledger)


class LedgerMemory:
    """The head that the site's ledger had when it was last used, in a file of the site's private folder.

    The file is written after the ledger: a crash between the two leaves an older head, which is still part of the ledger.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def check_exists(self, ledger: Path) -> None:
        """Raise LedgerError where the site remembers a ledger and there is none, before a new one is made in its place."""
        if self._path.exists() and not (ledger.is_dir() and any(ledger.iterdir())):
            raise LedgerError(
                "the site remembers runs, and its ledger is gone: nothing is released; put the ledger's folder back, or check "
                "ledger in the site's file"
            )

    def check_holds(self, ledger: Ledger) -> None:
        """Raise LedgerError where `ledger` does not hold the remembered head: it is an older copy, or another one."""
        if self._path.exists():
            with storage_errors():
                head = self._path.read_text(encoding="ascii", errors="replace").strip()
            ledger.check_remembered(head)

    def keep(self, ledger: Ledger) -> None:
        """Remember where `ledger` ends now."""
        head = ledger.head()
        with storage_errors():
            if self._path.exists() and self._path.read_text(encoding="ascii", errors="replace").strip() == head:
                return
            write_private(self._path, f"{head}\n")
