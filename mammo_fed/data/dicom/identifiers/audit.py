"""Whose data is it? What may say so, counted by name and never by value.

A cohort keeps nothing of a header but spacing, view and transfer syntax: the audit tells a site what its archive holds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mammo_fed.common.worker_pool import Lost, run_isolated
from mammo_fed.data.dicom.findings import Skipped
from mammo_fed.data.dicom.identifiers.attributes import check_profile, identifying_attributes
from mammo_fed.data.dicom.identifiers.file_bytes import WINDOW, bytes_beside_attributes, kind_of_file
from mammo_fed.data.dicom.image.headers import code_of, dataset, regular

__all__ = ["HeaderAudit", "audit_headers"]

SECONDS: Final = 60.0
# A file is held twice: as it is, and as it is parsed.
MEMORY_BYTES: Final = 1024 << 20
DICOMDIR: Final = "1.2.840.10008.1.3.10"
UNREADABLE: Final = "damaged or locked"


@dataclass(frozen=True, kw_only=True)
class HeaderAudit:
    """What the files of an archive hold.

    Attributes:
      files: DICOM files that were looked at.
      unreadable: files that are none, or damaged.
      identifying: files by what in them may say whose they are: the keyword of a non-empty attribute that the basic profile
        removes, replaces or empties, or that holds words of anybody's choice; private attributes, the preamble, comments of
        codestreams, and bytes after the pixels or the data set by words of their own.
      burned_in: files that say that people's data is burned into their pixels.
      unsaid: files that do not say whether.
      others: of the files that are no DICOM files, how many are of each kind (PDF, text, ...); and DICOMDIR files.
    """

    files: int
    unreadable: int
    identifying: Mapping[str, int]
    burned_in: int
    unsaid: int
    others: Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class _Looked:
    """Of one file: what may identify, what it says of its pixels; or of which kind it is, where it is no DICOM file."""

    identifying: tuple[str, ...] = ()
    burned_in: str = ""
    kind: str = ""
    dicom: bool = False


def audit_headers(paths: Sequence[Path], *, processes: int) -> HeaderAudit:
    """Look at every attribute of every header, nested ones included, at what no attribute shows, and at the files beside.

    Names of files and folders are not looked at, and identifiers that hide in UIDs or numbers cannot be known.

    Raises:
      InvalidSetting: If the package with the table of the profile is not installed.
    """
    check_profile()
    names, said, kinds = Counter[str](), Counter[str](), Counter[str]()
    files = 0
    for _, answer in run_isolated(_one, paths, processes=processes, seconds=SECONDS, memory_bytes=MEMORY_BYTES):
        looked = _Looked(kind=UNREADABLE) if isinstance(answer, Lost) else answer
        if looked.kind:
            kinds[looked.kind] += 1
        if looked.dicom:
            files += 1
            names.update(looked.identifying)
            said[looked.burned_in] += 1
    return HeaderAudit(
        files=files,
        unreadable=len(paths) - files,
        identifying=dict(sorted(names.items())),
        burned_in=said["YES"],
        unsaid=files - said["YES"] - said["NO"],
        others=dict(sorted(kinds.items())),
    )


def _one(path: Path) -> _Looked:
    try:
        header = dataset(path)
        found = identifying_attributes(header)
        if header.file_meta is not None:
            found |= identifying_attributes(header.file_meta)
        with regular(path) as file:
            found |= bytes_beside_attributes(file.read(), header)
        kind = "DICOMDIR" if header.file_meta.get("MediaStorageSOPClassUID") == DICOMDIR else ""
        return _Looked(identifying=tuple(sorted(found)), burned_in=code_of(header, "BurnedInAnnotation"), kind=kind, dicom=True)
    except Skipped as skipped:
        return _Looked(kind=_kind(path) if skipped.reason == "not_dicom" else UNREADABLE)
    except Exception:  # noqa: BLE001 - pydicom converts values when they are asked for, and damaged ones fail in any way
        return _Looked(kind=UNREADABLE)


def _kind(path: Path) -> str:
    try:
        with regular(path) as file:
            return kind_of_file(file.read(WINDOW))
    except Skipped:
        return UNREADABLE
