"""A site's folder into one file, while the site may run."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from mammo_fed.client.backup.archive import LEDGER_PARTS, write_backup
from mammo_fed.client.backup.outside import MEMORY, remember_outside
from mammo_fed.client.charging import LedgerMemory, site_ledger
from mammo_fed.client.folder import SiteFolder
from mammo_fed.errors import InvalidSetting
from mammo_fed.privacy.ledger.copying import copy_ledger

__all__ = ["Saved", "save_site"]


@dataclass(frozen=True, kw_only=True)
class Saved:
    """A backup that was made: its file and that file's SHA-256, where the ledger ended in it, and whether it holds the key."""

    site: str
    file: str
    sha256: str
    made: str
    ledger_head: str
    holds_key: bool


def save_site(folder: SiteFolder, path: Path, *, with_key: bool) -> Saved:
    """Put all of a site that cannot be made again into the new file `path`: its file, authority, keys and ledger.

    The ledger is the one that the site remembers, verified, as it is at one moment. Logs, the cache and the state of processes
    stay out, as do the keys of masked sums: a site that is restored takes part in a masked run under new ones.

    Args:
      folder: the site's; it may be in use.
      path: outside of the folder.
      with_key: whether the private key goes in, by which the coordinator knows the site.

    Raises:
      InvalidSetting: If the file exists, lies inside the folder or cannot be written.
      LedgerError: If the ledger is gone, an older copy, or does not verify: a backup of it would be worth nothing.
    """
    path = path.absolute()
    if path.resolve().is_relative_to(folder.path):
        raise InvalidSetting(f"FILE={path} must lie outside of the site's folder {folder.path}: they would be lost together")
    files = {"site.toml": folder.site_file, "ca.crt": folder.authority}
    if with_key:
        files |= {"site.key": folder.key, "site.key.old": folder.old_key, "site.pub": folder.public_key_file}
        files = {name: file for name, file in files.items() if file.exists() or not name.startswith("site.key.")}
    try:
        draft = tempfile.TemporaryDirectory(prefix=".backup-", dir=folder.private, ignore_cleanup_errors=True)
    except OSError as error:
        raise InvalidSetting(f"{folder.private} cannot be written ({error.strerror}); make room or check its owner") from error
    with draft as copies:
        head = _copy_of_ledger(folder, Path(copies))
        if head:
            files |= {f"ledger/{part}": Path(copies) / part for part in LEDGER_PARTS}
        made = datetime.now(UTC).isoformat(timespec="seconds")
        about = {"site": folder.file.site, "made": made, "version": version("mammo-fed"), "head": head}
        digest = write_backup(path, about, files)
    return Saved(site=folder.file.site, file=str(path), sha256=digest, made=made, ledger_head=head, holds_key=with_key)


def _copy_of_ledger(folder: SiteFolder, into: Path) -> str:
    """The head of a copy of the site's ledger, "" where it has none yet."""
    ledger = Path(folder.file.ledger)
    if not (ledger.is_dir() and any(ledger.iterdir())):
        LedgerMemory(folder.private / MEMORY).check_exists(ledger)
        return ""
    # Opened as for a round: a ledger that the site would refuse is no use in a backup.
    with site_ledger(folder.file, usual="declared"):
        pass
    head = copy_ledger(ledger, into)
    remember_outside(folder.file)
    return head
