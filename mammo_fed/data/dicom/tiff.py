"""Mammograms that were published as TIFF images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from mammo_fed.data.dicom.findings import Skipped

__all__ = ["read_tiff"]


def read_tiff(path: Path) -> NDArray[Any]:
    """Grey samples, uint8 or uint16, shape (rows, columns).

    Raises:
      Skipped: If it cannot be read.
    """
    raise Skipped("unsupported_encoding", f"{path} is a TIFF image")
