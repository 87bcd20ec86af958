"""The file of a backup: a plain tar of a few named files behind a manifest with their sizes and hashes.

Whoever made a file that is to be restored, nothing is taken from it but regular files of a fixed list of names, each of the
size and hash that the manifest says: no path, link, device or mode of the archive is ever used, and it is never decompressed.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import secrets
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

from mammo_fed.common.private_files import sync_folder
from mammo_fed.common.serialization import RECORD, build
from mammo_fed.errors import DataError, InvalidSetting

__all__ = ["LEDGER_PARTS", "NAMES", "Manifest", "read_backup", "write_backup"]

MANIFEST: Final = "manifest.json"
FORMAT: Final = 1
LEDGER_PARTS: Final = ("journal.sqlite", "site.key", "head")
NAMES: Final = ("site.toml", "ca.crt", "site.key", "site.key.old", "site.pub", *(f"ledger/{part}" for part in LEDGER_PARTS))
# The journal grows with the replies that it keeps; everything else is text or keys.
MOST_BYTES: Final[Mapping[str, int]] = {**dict.fromkeys(NAMES, 1 << 20), "ledger/journal.sqlite": 1 << 40}
CHUNK: Final = 1 << 20
PRIVATE_FILE: Final = 0o600
# Characters of what a manifest says of itself.
LINE: Final = 200


@dataclass(frozen=True, kw_only=True)
class FileFact:
    """Size and SHA-256 of one file."""

    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a backup says of itself.

    Attributes:
      format: of the file, 1.
      site: name of the site.
      made: time in UTC, ISO 8601.
      version: of the package that made it.
      head: where the ledger ended, "position:seal"; "" where there was none yet.
      files: by name.
    """

    format: int
    site: str
    made: str
    version: str
    head: str
    files: Mapping[str, FileFact]

    def __post_init__(self) -> None:
        if self.format != FORMAT:
            raise DataError(f"format={self.format} of the backup must be {FORMAT}; restore it with the release that made it")
        if any(len(text) > LINE or not text.isprintable() for text in (self.site, self.made, self.version, self.head)):
            # They are shown to who restores, on a terminal.
            raise DataError("the manifest of the backup is none of ours; nothing was restored; take another backup")
        for name, fact in self.files.items():
            if name not in MOST_BYTES or not 0 <= fact.bytes <= MOST_BYTES[name]:
                raise DataError(f"{name!r} of {fact.bytes} bytes has no place in a site's backup; nothing was restored")
        ledger = [name for name in self.files if name.startswith("ledger/")]
        if "site.toml" not in self.files or len(ledger) != (len(LEDGER_PARTS) if self.head else 0):
            raise DataError("the backup lacks a part of a site's folder; nothing was restored; take another backup")


def write_backup(path: Path, about: Mapping[str, Any], files: Mapping[str, Path]) -> str:
    """Write a backup, readable by its owner alone; it is there whole or not at all, and on the disk when this returns.

    Args:
      path: the file; nothing may be there.
      about: the manifest's values but for `files`.
      files: where each of `NAMES` is found; files that nobody changes meanwhile.

    Returns:
      The SHA-256 of the file.

    Raises:
      InvalidSetting: If it cannot be written there.
    """
    facts = {name: _fact(source) for name, source in files.items()}
    listed = {name: {"bytes": fact.bytes, "sha256": fact.sha256} for name, fact in facts.items()}
    manifest = json.dumps({"format": FORMAT, **about, "files": listed}, indent=2).encode()
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with os.fdopen(os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, PRIVATE_FILE), "wb") as out:
            with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
                _add(archive, MANIFEST, len(manifest), io.BytesIO(manifest))
                for name, source in files.items():
                    with source.open("rb") as content:
                        _add(archive, name, facts[name].bytes, content)
            out.flush()
            os.fsync(out.fileno())
        _name_it(draft, path)
        sync_folder(path.parent)
        return _fact(path).sha256
    except FileExistsError as error:
        raise InvalidSetting(f"FILE={path} must be new: a backup replaces nothing; choose another name") from error
    except OSError as error:
        raise InvalidSetting(f"FILE={path} cannot be written ({error.strerror}); choose a place with room") from error
    finally:
        draft.unlink(missing_ok=True)


def read_backup(path: Path, into: Path) -> Manifest:
    """Check a backup as a whole and put its files below the empty folder `into`, mode 0600, under their names in `NAMES`.

    Raises:
      DataError: If it is not a backup, or not as it was made.
    """
    bad = f"FILE={path} is not a site's backup, or is damaged"
    try:
        # "r:" is a plain tar: what is compressed could grow without end.
        with path.open("rb") as content, tarfile.open(fileobj=content, mode="r:") as archive:
            manifest = _manifest(archive, bad)
            (into / "ledger").mkdir(mode=0o700)
            for name, fact in manifest.files.items():
                if (member := _member(archive, bad)).name != name or member.size != fact.bytes:
                    raise DataError(f"{bad}: {member.name!r} stands where {name!r} must be")
                _take(archive, member, into / name, fact, bad)
            if archive.next() is not None:
                raise DataError(f"{bad}: it holds more than its manifest says")
    except OSError as error:
        raise DataError(f"FILE={path} cannot be read or unpacked ({error.strerror}); check the path and the room") from error
    except (tarfile.TarError, ValueError, RecursionError) as error:
        raise (error if isinstance(error, DataError) else DataError(f"{bad} ({type(error).__name__})")) from error
    return manifest


def _manifest(archive: tarfile.TarFile, bad: str) -> Manifest:
    first = _member(archive, bad)
    if first.name != MANIFEST or first.size > MOST_BYTES["site.toml"]:
        raise DataError(f"{bad}: it does not begin with a manifest")
    values = json.loads(_content(archive, first).read())
    if not isinstance(values, dict):
        raise DataError(f"{bad}: its manifest is no table")
    return build(Manifest, values, path="", form=RECORD)


def _member(archive: tarfile.TarFile, bad: str) -> tarfile.TarInfo:
    member = archive.next()
    if member is None or not member.isreg() or member.issparse():
        raise DataError(f"{bad}: a regular file is missing, or something else is in its place")
    return member


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    content = archive.extractfile(member)
    if content is None:
        raise DataError(f"{member.name!r} of the backup has no content")
    return content


def _take(archive: tarfile.TarFile, member: tarfile.TarInfo, path: Path, fact: FileFact, bad: str) -> None:
    digest, found = hashlib.sha256(), 0
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, PRIVATE_FILE), "wb") as out:
        source = _content(archive, member)
        while chunk := source.read(CHUNK):
            digest.update(chunk)
            found += len(chunk)
            out.write(chunk)
        out.flush()
        os.fsync(out.fileno())
    if (found, digest.hexdigest()) != (fact.bytes, fact.sha256):
        raise DataError(f"{bad}: {member.name!r} is not what the manifest says")


def _name_it(draft: Path, path: Path) -> None:
    """Give the draft its name; FileExistsError where that is taken."""
    try:
        # A link, unlike a rename, never replaces what is there.
        os.link(draft, path)
    except FileExistsError:
        raise
    except OSError as error:
        # A file system without links, such as that of a memory stick.
        if path.exists():
            raise FileExistsError from error
        draft.rename(path)


def _add(archive: tarfile.TarFile, name: str, size: int, content: IO[bytes]) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mode = size, PRIVATE_FILE
    archive.addfile(member, content)


def _fact(path: Path) -> FileFact:
    with path.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256")
        return FileFact(bytes=content.tell(), sha256=digest.hexdigest())
