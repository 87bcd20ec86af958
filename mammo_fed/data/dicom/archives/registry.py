"""The archives that can be ingested, by name; a new one is one module with a function `findings`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from mammo_fed.data.dicom.archives import bcdr, cbis_ddsm, cmmd, generic_table, inbreast
from mammo_fed.data.dicom.findings import Source

__all__ = ["SOURCES"]

SOURCES: Final[Mapping[str, Source]] = {
    "csv": generic_table.findings,
    "cbis_ddsm": cbis_ddsm.findings,
    "bcdr": bcdr.findings,
    "inbreast": inbreast.findings,
    "cmmd": cmmd.findings,
}
