"""The archives that can be ingested, by name; a new one is one module with a function `findings`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from mammo_fed.data.dicom import source_bcdr, source_cbis, source_cmmd, source_csv, source_inbreast
from mammo_fed.data.dicom.findings import Source

__all__ = ["SOURCES"]

SOURCES: Final[Mapping[str, Source]] = {
    "csv": source_csv.findings,
    "cbis_ddsm": source_cbis.findings,
    "bcdr": source_bcdr.findings,
    "inbreast": source_inbreast.findings,
    "cmmd": source_cmmd.findings,
}
