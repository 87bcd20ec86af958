"""One file over HTTP, and an archive unpacked beside what is there: what every collection's download is made of."""

from __future__ import annotations

import contextlib
import shutil
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final

from mammo_fed.common.private_files import file_lock
from mammo_fed.errors import DataError, InvalidSetting

__all__ = ["Fetched", "Progress", "check_room", "download", "plain_name", "staging", "unpack_member"]

STAGING: Final = ".fetch"
LOCK: Final = "lock"
SECONDS: Final = 120
CHUNK: Final = 1 << 20
# No file of the collections comes near it.
LARGEST_MEMBER: Final = 1 << 30
RETRIES: Final = 3
Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class Fetched:
    """What a download came to: parts (series, files) that it fetched, parts that were there, and what is left to do by hand."""

    fetched: int
    there: int
    left: tuple[str, ...] = ()


def _pooch() -> Any:
    try:
        import pooch
    except ImportError as error:
        raise InvalidSetting('data fetch needs pooch: pip install "mammo-fed[dicom]"') from error
    # It reports every file.
    pooch.get_logger().setLevel("CRITICAL")
    return pooch


@contextlib.contextmanager
def staging(folder: Path) -> Iterator[Path]:
    """A hidden folder for what is not whole yet, empty; on the same disk, so that a finished part is moved in one step.

    Raises:
      InvalidSetting: If `folder` cannot be written, or another download is at work in it.
    """
    place = folder / STAGING
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidSetting(f"FOLDER={folder} cannot be written ({error.strerror}); choose another") from error
    with file_lock(place / LOCK, what="mammo-fed data fetch", folder=folder):
        part = place / "part"
        # What a download that was killed has left.
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        try:
            yield part
        finally:
            shutil.rmtree(place, ignore_errors=True)


def download(url: str, path: Path) -> Path:
    """Fetch `url` to the new file `path`; a line that breaks is tried again.

    Raises:
      DataError: If it cannot be fetched.
      InvalidSetting: If pooch is not installed.
    """
    pooch = _pooch()
    for tries_left in reversed(range(RETRIES)):
        try:
            # What it is held against comes with it or is counted after it: nobody publishes digests of these files.
            pooch.retrieve(
                url, known_hash=None, fname=path.name, path=path.parent, downloader=pooch.HTTPDownloader(timeout=SECONDS)
            )
            return path
        except (OSError, ValueError) as error:
            path.unlink(missing_ok=True)
            status = getattr(getattr(error, "response", None), "status_code", None)
            if not tries_left or (status is not None and status < 500):
                why = f"answer {status}" if status is not None else type(error).__name__
                raise DataError(
                    f"{url} cannot be fetched ({why}); check the network, or fetch it by hand (mammo-fed data fetch NAME "
                    "says how); run again, it goes on where it stopped"
                ) from error
    raise AssertionError("the last try returns or raises")


def check_room(folder: Path, needed: int) -> None:
    """Raises: DataError, if the disk has less than `needed` bytes left."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise DataError(f"FOLDER={folder} needs {needed / 1e9:.1f} GB and has {free / 1e9:.1f} GB left; choose another disk")


def plain_name(text: str, *, otherwise: str = "NA") -> str:
    """`text` as one component of a path that no system reads as something else."""
    kept = "".join("_" if character in '<>:"/\\|?*' or not character.isprintable() else character for character in text)
    return kept.strip(" .") or otherwise


def unpack_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path, *, watch: Callable[[bytes], Any]) -> None:
    """Write one member of a ZIP file to the new file `path`, each chunk shown to `watch`; its checksum is held against it.

    Raises:
      DataError: If it is damaged or far too large.
    """
    if member.file_size > LARGEST_MEMBER:
        raise DataError(
            f"{PurePosixPath(member.filename).name} claims {member.file_size} bytes; at most {LARGEST_MEMBER} are read"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with archive.open(member) as source, path.open("xb") as target:
            while chunk := source.read(CHUNK):
                watch(chunk)
                target.write(chunk)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        path.unlink(missing_ok=True)
        raise DataError(f"the archive that was fetched is damaged ({type(error).__name__}); run again") from error
