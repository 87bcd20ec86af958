"""A site's folder out of a backup: refused unless something shows that no charge is forgotten with it.

A ledger from a backup is one of the past. It is put back only where it holds every end of that ledger which anything remembers:
the folder's own ledger, the site's private folder, the user's state outside of it, what the coordinator was told last. Where
nothing remembers, nobody knows, and a person has to say so.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from mammo_fed.client.backup.archive import LEDGER_PARTS, Manifest, read_backup
from mammo_fed.client.backup.outside import MEMORY, outside_memory, remember_outside
from mammo_fed.client.folder import ABOUT, SiteFolder
from mammo_fed.common.private_files import new_folder, sync_folder, write_private
from mammo_fed.errors import DataError, InvalidSetting, LedgerError, MammoFedError, RunFailed
from mammo_fed.federation.identity.keys import make_private_key, public_key_of
from mammo_fed.privacy.ledger.chain import head_from_text
from mammo_fed.privacy.ledger.report import verify_ledger

__all__ = ["Restored", "restore_site"]

UNPACKED: Final = ".restored-"
UNKNOWN: Final = (
    "nothing here remembers where the ledger of {site} ended, and FILE is of {made}: what was charged since would be "
    "forgotten; give --reported HEAD, the site's ledger_head in the record of its last run, or --latest if nothing was "
    "charged since"
)
OLDER: Final = (
    "FILE's ledger ends at entry {ours}, and {where} remembers entry {theirs}: it is older or another one, and what was "
    "charged since would be forgotten; nothing was changed; restore a newer backup{keep}"
)


@dataclass(frozen=True, kw_only=True)
class Restored:
    """What was done: the folder, where its ledger ends, which parts came from the backup, and whether the key is a new one."""

    site: str
    folder: str
    ledger_head: str
    made: str
    parts: tuple[str, ...]
    new_key: bool
    vouched: bool


def restore_site(file: Path, path: Path, *, reported: str | None, latest: bool) -> Restored:
    """Restore a site from a backup, into a new folder or its own.

    Of a site's own folder everything that is there is kept, its newer keys and policy above all; what is missing comes from the
    backup, and the ledger where the backup's is as far or further. The ledger that was there before is kept aside.

    Args:
      file: of `save_site`.
      path: new, empty, or the site's folder; no site-client runs on it.
      reported: an end of the ledger that the coordinator was told; the backup's must hold it.
      latest: a person says that nothing was charged since the backup; used only where nothing remembers an end.

    Raises:
      DataError: If the file is no backup or damaged.
      InvalidSetting: If the folder is of another site or cannot be written.
      LedgerError: If the backup's ledger is older than what is remembered, or nothing remembers one.
      RunFailed: If the disk does not take it.
    """
    if not file.is_file():
        raise InvalidSetting(f"FILE={file} must be a site's backup; check the path")
    try:
        if (path / ABOUT).is_file():
            # Not opened: its key may be what is missing.
            with SiteFolder.described(path).hold(), _unpacked(file, path) as (manifest, parts):
                return _into_own(path, manifest, parts, reported=reported, latest=latest)
        with new_folder(path, last=ABOUT) as draft, _unpacked(file, draft) as (manifest, parts):
            made = _into_new(draft, manifest, parts, reported=reported, latest=latest)
    except OSError as error:
        raise RunFailed(f"SITE={path} cannot be written ({error.strerror}); make room or choose another place") from error
    folder = SiteFolder.open(path)
    remember_outside(folder.file)
    return _result(folder, manifest, tuple(manifest.files), new_key=made, vouched=latest)


@contextmanager
def _unpacked(file: Path, below: Path) -> Iterator[tuple[Manifest, Path]]:
    """The checked parts of a backup in a folder of their own, on the disk on which they will stay; removed afterwards."""
    parts = below / f"{UNPACKED}{secrets.token_hex(4)}"
    parts.mkdir(mode=0o700)
    try:
        manifest = read_backup(file, parts)
        if manifest.head and verify_ledger(parts / "ledger") != manifest.head:
            raise DataError(f"FILE={file} is damaged: its ledger does not end where its manifest says")
        yield manifest, parts
    finally:
        shutil.rmtree(parts, ignore_errors=True)


def _into_new(draft: Path, manifest: Manifest, parts: Path, *, reported: str | None, latest: bool) -> bool:
    """Fill a new folder; whether the site has a new key."""
    _check_newest(manifest, parts, {}, reported=reported, latest=latest)
    _put(parts / ABOUT, draft / ABOUT)
    folder = _inside(draft, manifest)
    for name, place in _places(folder).items():
        if name in manifest.files:
            _put(parts / name, place)
    folder.private.mkdir(mode=0o700, parents=True, exist_ok=True)
    _put_ledger(manifest, parts, Path(folder.file.ledger), folder.private)
    made = "site.key" not in manifest.files
    if made:
        folder.key.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_private(folder.key, make_private_key())
        write_private(folder.public_key_file, public_key_of(folder.key).file_content(folder.file.site))
    SiteFolder.open(draft)
    return made


def _into_own(path: Path, manifest: Manifest, parts: Path, *, reported: str | None, latest: bool) -> Restored:
    folder = SiteFolder.described(path)
    if folder.file.site != manifest.site:
        raise InvalidSetting(f"FILE is a backup of {manifest.site}, and SITE={path} is {folder.file.site}; check both")
    ledger = Path(folder.file.ledger)
    remembered = _remembered_inside(folder)
    head = _intact(ledger)
    if head:
        remembered["the ledger in SITE"] = head
    _check_newest(manifest, parts, remembered, reported=reported, latest=latest)
    put = [name for name, place in _places(folder).items() if name in manifest.files and not place.exists()]
    # A private key alone is no use with another public one, and an old one has been replaced.
    put = [name for name in put if name == "ca.crt" or not folder.key.exists()]
    for name in put:
        _put(parts / name, _places(folder)[name])
    if manifest.head and head != manifest.head:
        _put_aside(ledger, head)
        _put_ledger(manifest, parts, ledger, folder.private)
        put.append("ledger")
    SiteFolder.open(path)
    remember_outside(folder.file)
    return _result(folder, manifest, tuple(put), new_key=False, vouched=latest)


def _check_newest(
    manifest: Manifest, parts: Path, remembered: Mapping[str, str], *, reported: str | None, latest: bool
) -> None:
    """Raise LedgerError unless the backup's ledger holds every end that anything remembers, and something does."""
    ends = dict(remembered)
    if manifest.head:
        outside = _read_outside(parts / "ledger")
        ends |= {"this user's state": outside} if outside else {}
    if reported is not None:
        ends["--reported"] = reported
    if not ends and not latest:
        raise LedgerError(UNKNOWN.format(site=manifest.site, made=manifest.made))
    for where, end in ends.items():
        try:
            theirs = head_from_text(end).seq
        except ValueError as error:
            raise InvalidSetting(f"{where}={end!r} must read POSITION:HEX, as `mammo-fed privacy show` prints it") from error
        keep = ", or keep the ledger that is in SITE" if where == "the ledger in SITE" else ""
        ours = head_from_text(manifest.head).seq if manifest.head else "none"
        refused = OLDER.format(ours=ours, where=where, theirs=theirs, keep=keep)
        if not manifest.head:
            raise LedgerError(refused)
        try:
            verify_ledger(parts / "ledger", reported=end)
        except LedgerError as error:
            raise LedgerError(refused) from error


def _remembered_inside(folder: SiteFolder) -> dict[str, str]:
    try:
        found = (folder.private / MEMORY).read_text(encoding="ascii", errors="replace").strip()
    except FileNotFoundError:
        return {}
    return {"the site's private folder": found}


def _read_outside(ledger: Path) -> str:
    try:
        return outside_memory(ledger).read_text(encoding="ascii", errors="replace").strip()
    except (OSError, InvalidSetting):
        return ""


def _intact(ledger: Path) -> str:
    """The end of a ledger that verifies, "" where there is none or it does not."""
    if not (ledger.is_dir() and any(ledger.iterdir())):
        return ""
    try:
        return verify_ledger(ledger)
    except MammoFedError:
        return ""


def _inside(draft: Path, manifest: Manifest) -> SiteFolder:
    """The folder that the backup's own file describes; every place that is written must lie in it."""
    folder = SiteFolder.described(draft)
    if folder.file.site != manifest.site:
        raise DataError(f"FILE is a backup of {manifest.site}, and its {ABOUT} is of {folder.file.site}; nothing was restored")
    for place in (folder.key, folder.authority, Path(folder.file.ledger), folder.private):
        if not place.resolve().is_relative_to(draft.resolve()):
            raise InvalidSetting(
                f"{place} in the backup's {ABOUT} lies outside of the folder that is restored, and nothing is written there; "
                "restore into the site's own folder"
            )
    return folder


def _places(folder: SiteFolder) -> dict[str, Path]:
    """Where the files of a backup lie in a site's folder, beside the site's file and its ledger."""
    return {
        "ca.crt": folder.authority,
        "site.key": folder.key,
        "site.key.old": folder.old_key,
        "site.pub": folder.public_key_file,
    }


def _put_aside(ledger: Path, head: str) -> None:
    """Rename a ledger that is to be replaced; a command that wrote into it since it was looked at keeps it in its place."""
    if not (ledger.is_dir() and any(ledger.iterdir())):
        return
    aside = ledger.with_name(f"{ledger.name}.before-{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(2)}")
    ledger.rename(aside)
    if _intact(aside) != head:
        aside.rename(ledger)
        raise LedgerError("the ledger in SITE was written to meanwhile; nothing was put back; stop what uses it, and try again")


def _put_ledger(manifest: Manifest, parts: Path, ledger: Path, private: Path) -> None:
    """Put the backup's ledger into its place, whole or not at all; there is none."""
    if not manifest.head:
        ledger.mkdir(mode=0o700, parents=True, exist_ok=True)
        return
    # First what is remembered: a crash before the ledger is there must not leave a site that believes it never had one.
    write_private(private / MEMORY, f"{manifest.head}\n")
    ledger.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # Beside its place first, which may be on another disk.
    draft = ledger.with_name(f".{ledger.name}.{secrets.token_hex(4)}")
    shutil.move(parts / "ledger", draft)
    for part in LEDGER_PARTS:
        with (draft / part).open("rb") as file:
            os.fsync(file.fileno())
    sync_folder(draft)
    draft.rename(ledger)
    sync_folder(ledger.parent)


def _put(source: Path, place: Path) -> None:
    place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    source.rename(place)
    sync_folder(place.parent)


def _result(folder: SiteFolder, manifest: Manifest, parts: tuple[str, ...], *, new_key: bool, vouched: bool) -> Restored:
    return Restored(
        site=folder.file.site,
        folder=str(folder.path),
        ledger_head=_intact(Path(folder.file.ledger)),
        made=manifest.made,
        parts=parts,
        new_key=new_key,
        vouched=vouched,
    )
