"""Whose data is it? Attributes that identify people, counted by name and never by value.

A cohort keeps nothing of a header but spacing, view and transfer syntax: the audit tells a site what its archive holds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from pydicom import Dataset
from pydicom.datadict import keyword_for_tag

from mammo_fed.common.worker_pool import Lost, run_isolated
from mammo_fed.data.dicom.findings import Skipped
from mammo_fed.data.dicom.reading import read_header
from mammo_fed.errors import InvalidSetting

__all__ = ["HeaderAudit", "audit_headers"]

# Edition of DICOM PS3.15, table E.1-1 (basic profile), as the package dicom-anonymizer carries it.
EDITION: Final = "dicomfields_2026c"
SECONDS: Final = 60.0
MEMORY_BYTES: Final = 768 << 20
PRIVATE: Final = "private attributes"


@dataclass(frozen=True, kw_only=True)
class HeaderAudit:
    """What the headers of an archive hold.

    Attributes:
      files: DICOM files that were looked at.
      unreadable: files that are none, or damaged.
      identifying: files by the keyword of a non-empty attribute that the basic profile removes, replaces or empties; private
        attributes are counted under "private attributes".
      burned_in: files that say that people's data is burned into their pixels.
      unsaid: files that do not say whether.
    """

    files: int
    unreadable: int
    identifying: Mapping[str, int]
    burned_in: int
    unsaid: int


def audit_headers(paths: Sequence[Path], *, processes: int) -> HeaderAudit:
    """Look at every attribute of every header, nested ones included.

    Raises:
      InvalidSetting: If the package with the table of the profile is not installed.
    """
    _profile()
    names: Counter[str] = Counter()
    said: Counter[str] = Counter()
    unreadable = 0
    for _, answer in run_isolated(_one, paths, processes=processes, seconds=SECONDS, memory_bytes=MEMORY_BYTES):
        if isinstance(answer, Lost) or answer is None:
            unreadable += 1
            continue
        found, burned_in = answer
        names.update(found)
        said[burned_in] += 1
    return HeaderAudit(
        files=len(paths) - unreadable,
        unreadable=unreadable,
        identifying=dict(sorted(names.items())),
        burned_in=said["YES"],
        unsaid=len(paths) - unreadable - said["YES"] - said["NO"],
    )


def _one(path: Path) -> tuple[list[str], str] | None:
    """Keywords of identifying attributes of one file, and what it says of its pixels; None where it cannot be read."""
    try:
        header = read_header(path)
        found = _identifying(header)
        return sorted(found), str(header.get("BurnedInAnnotation") or "").strip().upper()
    except Skipped:
        return None
    except Exception:  # noqa: BLE001 - pydicom converts values when they are asked for, and damaged ones fail in any way
        return None


def _identifying(header: Dataset) -> set[str]:
    exact, ranges = _profile()
    found = set()
    for element in header.iterall():
        if element.tag.group == 0x7FE0 or element.value in (None, "", b"") or element.is_empty:
            continue
        tag = (element.tag.group, element.tag.element)
        if element.tag.is_private:
            found.add(PRIVATE)
        elif tag in exact or any(_matches(tag, one) for one in ranges):
            found.add(keyword_for_tag(element.tag) or str(element.tag))
    return found


def _matches(tag: tuple[int, int], one: tuple[int, int, int, int]) -> bool:
    return tag[0] & one[2] == one[0] & one[2] and tag[1] & one[3] == one[1] & one[3]


@lru_cache(maxsize=1)
def _profile() -> tuple[frozenset[tuple[int, int]], tuple[tuple[int, int, int, int], ...]]:
    """Tags of the basic profile: exact ones, and repeating groups with their masks."""
    try:
        from dicomanonymizer.dicomfields_selector import dicom_anonymization_database_selector
    except ImportError as error:
        raise InvalidSetting('the audit needs the table of DICOM PS3.15: pip install "mammo-fed[dicom]"') from error
    tags: list[Any] = dicom_anonymization_database_selector(EDITION)["ALL_TAGS"]
    exact = frozenset((int(tag[0]), int(tag[1])) for tag in tags if len(tag) == 2)
    return exact, tuple((int(tag[0]), int(tag[1]), int(tag[2]), int(tag[3])) for tag in tags if len(tag) == 4)
