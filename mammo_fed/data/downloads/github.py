"""The paper's patches from GitHub: the archive of one commit, its numbers of images held against those of the repository.

No digest of the commit's files is published; what is checked is the commit that the archive names, the checksum of every file
in it, and how many images of which class each set has.
"""

from __future__ import annotations

import zipfile
import zlib
from collections import Counter
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Final

from mammo_fed.data.downloads.fetching import Fetched, Progress, check_room, download, staging, unpack_member
from mammo_fed.errors import DataError

__all__ = ["COMMIT", "fetch_mammo_dp"]

GITHUB: Final = "https://github.com"
COMMIT: Final = "20caed79441855870bae6f7efca1cac0ca8bac7e"
WANTED: Final = ("dataset16062024", "extension/synthetic_data/cbis-ddsm")
# As the repository has them.
IMAGES: Final[Mapping[str, int]] = {
    "dataset16062024/cbis-ddsm/train/is_benign_true": 579,
    "dataset16062024/cbis-ddsm/train/is_benign_false": 525,
    "dataset16062024/cbis-ddsm/val/is_benign_true": 90,
    "dataset16062024/cbis-ddsm/val/is_benign_false": 102,
    "dataset16062024/cbis-ddsm/test": 402,
    "dataset16062024/bcdr/test": 1106,
    "extension/synthetic_data/cbis-ddsm/c-dcgan": 3000,
}
CHUNK: Final = 1 << 20


def fetch_mammo_dp(folder: Path, *, url: str | None = None, on_progress: Progress) -> Fetched:
    """Fetch what is missing of the patches into `folder`, which then is a `data.root` of `data=mammo_dp`.

    Args:
      folder: made if it is not there.
      url: of a mirror; GitHub without.
      on_progress: called with (images that are there, images in all).

    Raises:
      DataError: If it cannot be fetched, is not what it should be, or a file that is there is another one.
    """
    every = sum(IMAGES.values())
    if _there(folder) == dict(IMAGES):
        on_progress(every, every)
        return Fetched(fetched=0, there=every)
    try:
        with staging(folder) as place:
            packed = download(f"{url or GITHUB}/RichardObi/mammo_dp/archive/{COMMIT}.zip", place / "mammo_dp.zip")
            with zipfile.ZipFile(packed) as archive:
                members = _members(archive)
                check_room(folder, sum(member.file_size for member in members.values()))
                fetched = 0
                for done, (name, member) in enumerate(members.items(), start=1):
                    fetched += _put(archive, member, folder / name, place)
                    on_progress(done, len(members))
    except zipfile.BadZipFile as error:
        raise DataError("the archive that was fetched is no ZIP file; run again") from error
    return Fetched(fetched=fetched, there=len(members) - fetched)


def _there(folder: Path) -> dict[str, int]:
    return {name: sum(1 for _ in (folder / name).rglob("*.png")) for name in IMAGES}


def _members(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """Wanted images by their path below the clone.

    Raises:
      DataError: If the archive is of another commit, or a set has another number of images.
    """
    if archive.comment.decode("ascii", errors="replace").strip() != COMMIT:
        raise DataError(f"the archive that was fetched is not of commit {COMMIT} of mammo_dp")
    found: dict[str, zipfile.ZipInfo] = {}
    for member in archive.infolist():
        path = PurePosixPath(member.filename)
        name = "/".join(path.parts[1:])
        if path.suffix == ".png" and ".." not in path.parts and name.startswith(tuple(f"{one}/" for one in WANTED)):
            found[name] = member
    counts = Counter(group for name in found for group in IMAGES if name.startswith(f"{group}/"))
    wrong = [group for group, count in IMAGES.items() if counts[group] != count]
    if wrong:
        raise DataError(
            f"the archive that was fetched has {counts[wrong[0]]} images in {wrong[0]} instead of {IMAGES[wrong[0]]}"
        )
    return found


def _put(archive: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path, place: Path) -> int:
    """1 if the file was written, 0 if it was there."""
    if path.exists():
        if _checksum(path) != member.CRC:
            raise DataError(
                f"{path} is there and is another file; nothing is overwritten: move it away, or choose another folder"
            )
        return 0
    part = place / "part"
    unpack_member(archive, member, part, watch=len)
    path.parent.mkdir(parents=True, exist_ok=True)
    part.rename(path)
    return 1


def _checksum(path: Path) -> int:
    value = 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            value = zlib.crc32(chunk, value)
    return value
