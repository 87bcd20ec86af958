"""Collections of The Cancer Imaging Archive by its REST interface (NBIA): series by series, every file held against its MD5.

`getSeries?Collection=` lists the series as JSON; `getImageWithMD5Hash?SeriesInstanceUID=` gives the files of one as a ZIP file,
with `md5hashes.csv` (Filename, MD5Hash). Folders are named as the archive's own retriever does by "Descriptive Directory Name".
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
import shutil
import zipfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from mammo_fed.data.downloads.fetching import Fetched, Progress, check_room, download, plain_name, staging, unpack_member
from mammo_fed.errors import DataError

__all__ = ["COLLECTIONS", "NBIA", "Collection", "Series", "fetch_nbia", "list_series"]

NBIA: Final = "https://services.cancerimagingarchive.net/nbia-api/services/v1"
DIGESTS: Final = "md5hashes.csv"
UID: Final = re.compile(r"[0-9.]{1,64}")
LARGEST_LIST: Final = 256 << 20
TRIES: Final = 3


@dataclass(frozen=True, kw_only=True)
class Collection:
    """A collection: its name, how wanted patients begin, its tables with where they are, and what is left to do by hand."""

    name: str
    patients: str = ""
    tables: Mapping[str, str]
    left: tuple[str, ...] = ()


WIKI: Final = "https://wiki.cancerimagingarchive.net/download/attachments/22516629"
COLLECTIONS: Final[Mapping[str, Collection]] = {
    # Calcifications are more than half of it, and are not read.
    "cbis_ddsm": Collection(
        name="CBIS-DDSM",
        patients="Mass-",
        tables={f"mass_case_description_{part}_set.csv": WIKI for part in ("train", "test")},
    ),
    "cmmd": Collection(
        name="CMMD",
        tables={},
        left=(
            "download CMMD_clinicaldata_revision.xlsx from https://www.cancerimagingarchive.net/collection/cmmd/ and save it "
            "as CMMD_clinicaldata_revision.csv (UTF-8) in the folder",
        ),
    ),
}


@dataclass(frozen=True, kw_only=True)
class Series:
    """One series: its identifier, where its files go below the folder, and how large it is."""

    uid: str
    folder: str
    size: int


def list_series(collection: Collection, place: Path, *, url: str = NBIA) -> tuple[Series, ...]:
    """The wanted series, by their folders.

    Raises:
      DataError: If the list cannot be fetched or is none.
    """
    path = download(f"{url}/getSeries?Collection={collection.name}&format=json", place / "series.json")
    try:
        if path.stat().st_size > LARGEST_LIST:
            raise ValueError("too large")
        listed = json.loads(path.read_bytes())
        found = [_series(collection, {str(key): str(value) for key, value in one.items()}) for one in listed]
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
        raise DataError(f"{url} lists no series of {collection.name}; try again later, or use the retriever") from error
    wanted = [one for one, patient in found if patient.startswith(collection.patients)]
    if not wanted:
        raise DataError(f"{url} lists no series of {collection.name}; try again later, or use the retriever")
    times = Counter(one.folder for one in wanted)
    # Two identifiers may end alike.
    return tuple(
        sorted(
            (
                one if times[one.folder] == 1 else Series(uid=one.uid, folder=f"{one.folder}-{one.uid}", size=one.size)
                for one in wanted
            ),
            key=lambda one: one.folder,
        )
    )


def _series(collection: Collection, said: Mapping[str, str]) -> tuple[Series, str]:
    uid, study, patient = said["SeriesInstanceUID"], said.get("StudyInstanceUID", ""), said["PatientID"]
    if not UID.fullmatch(uid):
        raise ValueError("no identifier")
    date = re.match(r"(\d{4})-?(\d{2})-?(\d{2})", said.get("StudyDate", said.get("SeriesDate", "")))
    day = f"{date[2]}-{date[3]}-{date[1]}" if date else "NA"
    about = [day, said.get("StudyID", "NA"), said.get("StudyDesc", "NA"), study[-5:] or "NA"]
    series = [f"{_number(said.get('SeriesNumber', '')):f}", said.get("SeriesDescription", "NA"), uid[-5:]]
    parts = (collection.name, patient, "-".join(about), "-".join(series))
    return Series(
        uid=uid, folder="/".join(map(plain_name, parts)), size=max(1, int(_number(said.get("FileSize", ""))))
    ), patient


def _number(text: str) -> float:
    return float(text) if re.fullmatch(r"[0-9]{1,18}(\.[0-9]+)?", text) else 0.0


def fetch_nbia(collection: Collection, folder: Path, *, url: str | None = None, on_progress: Progress) -> Fetched:
    """Fetch what is missing of a collection into `folder`.

    Args:
      collection: which.
      folder: made if it is not there; the archive for `mammo-fed data ingest`.
      url: of a mirror that has the interface and the tables; the archive itself without.
      on_progress: called with (bytes that are there, bytes in all).

    Raises:
      DataError: If something cannot be fetched or does not agree with its digest. What is whole stays.
    """
    with staging(folder) as place:
        series = list_series(collection, place, url=url or NBIA)
        missing = [one for one in series if not (folder / one.folder).exists()]
        total, needed = sum(one.size for one in series), sum(one.size for one in missing)
        done = total - needed
        check_room(folder, needed + max((one.size for one in missing), default=0))
        on_progress(done, total)
        for one in missing:
            _fetch_series(one, folder, place, url or NBIA)
            done += one.size
            on_progress(done, total)
        tables = [name for name in collection.tables if not (folder / name).exists()]
        for name in tables:
            # Downloaded beside, so that a table is there whole or not at all; no digest of it is published.
            download(f"{url or collection.tables[name]}/{name}", place / name).rename(folder / name)
    left = tuple(step for step in collection.left if not any(folder.glob("CMMD_clinicaldata*.csv")))
    return Fetched(fetched=len(missing) + len(tables), there=len(series) - len(missing), left=left)


def _fetch_series(series: Series, folder: Path, place: Path, url: str) -> None:
    for tries_left in reversed(range(TRIES)):
        part, packed = place / series.uid, place / f"{series.uid}.zip"
        try:
            download(f"{url}/getImageWithMD5Hash?SeriesInstanceUID={series.uid}", packed)
            _unpack(packed, part)
            target = folder / series.folder
            target.parent.mkdir(parents=True, exist_ok=True)
            part.rename(target)
            return
        except DataError:
            if not tries_left:
                raise
        finally:
            packed.unlink(missing_ok=True)
            shutil.rmtree(part, ignore_errors=True)


def _unpack(packed: Path, part: Path) -> None:
    """Raises: DataError, if a file does not agree with its MD5, or has none."""
    try:
        with zipfile.ZipFile(packed) as archive:
            digests = _digests(archive)
            images = [one for one in archive.infolist() if one.filename.casefold().endswith(".dcm")]
            if not images or {one.filename for one in images} != set(digests):
                raise DataError("a series that was fetched is not all there; run again")
            for member in images:
                md5 = hashlib.md5(usedforsecurity=False)
                unpack_member(archive, member, part / plain_name(PurePosixPath(member.filename).name), watch=md5.update)
                if md5.hexdigest() != digests[member.filename]:
                    raise DataError("a file that was fetched does not agree with its MD5; run again")
    except (zipfile.BadZipFile, FileExistsError) as error:
        raise DataError(f"a series that was fetched is no ZIP file ({type(error).__name__}); run again") from error


def _digests(archive: zipfile.ZipFile) -> dict[str, str]:
    try:
        if archive.getinfo(DIGESTS).file_size > LARGEST_LIST:
            raise KeyError
        text = archive.read(DIGESTS).decode("utf-8-sig")
    except (KeyError, UnicodeDecodeError) as error:
        raise DataError(f"a series that was fetched has no {DIGESTS}; run again") from error
    return dict(_pairs(list(csv.reader(io.StringIO(text)))))


def _pairs(rows: Sequence[Sequence[str]]) -> Iterable[tuple[str, str]]:
    """File and digest, whatever their order in a row and whatever the header is called."""
    for row in rows:
        digest = next((value.strip().lower() for value in row if re.fullmatch(r"\s*[0-9a-fA-F]{32}\s*", value)), None)
        name = next((value.strip() for value in row if value.strip().casefold().endswith(".dcm")), None)
        if digest and name:
            yield name, digest
