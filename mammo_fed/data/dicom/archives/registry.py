"""The archives that can be ingested, by name; a new one is one function `findings`, here or in another distribution."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from mammo_fed.data.dicom.archives import bcdr, cbis_ddsm, cmmd, embed, generic_table, inbreast, vindr_mammo
from mammo_fed.data.dicom.findings import Source
from mammo_fed.errors import InvalidSetting
from mammo_fed.extensions.kinds import ARCHIVES

__all__ = ["SOURCES", "archive_named", "archive_origin"]

SOURCES: Final[Mapping[str, Source]] = {
    "csv": generic_table.findings,
    "cbis_ddsm": cbis_ddsm.findings,
    "bcdr": bcdr.findings,
    "inbreast": inbreast.findings,
    "cmmd": cmmd.findings,
    "vindr_mammo": vindr_mammo.findings,
    "embed": embed.findings,
}


def archive_named(name: str) -> Source:
    """The reader of that name; one from outside is imported now.

    Raises:
      InvalidSetting: If there is none, or it is not a function.
    """
    if name in SOURCES:
        return SOURCES[name]
    found: Source = ARCHIVES.load(name)
    if not callable(found):
        raise InvalidSetting(f"--source={name} from {ARCHIVES.origin(name)} must be a function of an archive's folder")
    return found


def archive_origin(name: str) -> str:
    """The name for a cohort's provenance: one from outside with its distribution and version."""
    return name if name in SOURCES else f"{name} ({ARCHIVES.origin(name)})"
