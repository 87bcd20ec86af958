"""Drawn mammograms in small archives, ingested on the command line: what came of each finding, beside what was drawn."""

from __future__ import annotations

import contextlib
import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydicom import Dataset
from pydicom.uid import generate_uid

from mammo_fed.cli.main import main
from mammo_fed.data.dicom.findings import Box
from mammo_fed.data.pseudonyms import Pseudonyms
from tests.data.dicom.making import mammogram

ROWS, COLUMNS = 320, 256
LESION = Box(top=96, left=40, bottom=224, right=168)
# A box that reaches from tissue over the skin onto the background.
SKIN = Box(top=10, left=120, bottom=138, right=248)
TOLERANCE = 0.02
CORNERS = ("top", "left", "bottom", "right")


def scene(number: int) -> NDArray[np.float64]:
    """A breast at the left of a background of exactly 0, with a mass whose brightest pixel is exactly 1; no patient."""
    rng = np.random.default_rng([7, number])
    down, across = np.mgrid[-1 : 1 : ROWS * 1j, 0 : 1 : COLUMNS * 1j]
    drawn = np.where(np.hypot(down, across / 0.85) < 0.97, 0.3 + 0.04 * rng.standard_normal((ROWS, COLUMNS)), 0.0)
    rows, columns = np.mgrid[:ROWS, :COLUMNS]
    # No two are alike, however they are turned.
    away = np.hypot((rows - 150 - 3 * (number % 7)) / (18 + number % 5), (columns - 95 - 2 * (number % 5)) / (24 - number % 6))
    drawn = np.clip(drawn + 0.5 * np.exp(-(away**2)) * (drawn > 0), 0.0, 0.97)
    drawn[150 + number % 9, 100 + number % 7] = 1.0
    return drawn


def as_stored(drawn: NDArray[np.float64], bits: int = 12) -> NDArray[Any]:
    """Unsigned values of `bits` bits."""
    return np.round(drawn * ((1 << bits) - 1)).astype(np.uint8 if bits <= 8 else np.uint16)


def header(stored: NDArray[Any], *, number: int, bits: int = 12, **attributes: Any) -> Dataset:
    """A processed mammogram of a person of its own; `attributes` are set on top, None takes one away."""
    common = {
        "SOPInstanceUID": generate_uid(entropy_srcs=["instance", str(number)]),
        "StudyInstanceUID": generate_uid(entropy_srcs=["study", str(number)]),
        "PatientID": f"H-{number * 7919 % 99991:05d}",
        "PresentationIntentType": "FOR PRESENTATION",
        "ImageLaterality": "L",
        "ViewPosition": "CC",
        "BurnedInAnnotation": "NO",
        "ImagerPixelSpacing": [0.07, 0.07],
    }
    made = mammogram(stored, bits=bits, **common)
    for name, value in attributes.items():
        if value is None:
            del made[name]
        else:
            setattr(made, name, value)
    made.file_meta.MediaStorageSOPClassUID, made.file_meta.MediaStorageSOPInstanceUID = made.SOPClassUID, made.SOPInstanceUID
    if len(made.PixelData) % 2:
        made.PixelData += b"\0"
    return made


def cut(drawn: NDArray[np.float64], box: Box = LESION) -> NDArray[np.float64]:
    """The part of an image inside a box."""
    return drawn[int(box.top) : int(box.bottom), int(box.left) : int(box.right)]


@dataclass
class Archive:
    """A folder that a test fills, with `findings.csv` where it adds rows."""

    root: Path
    rows: list[dict[str, str]] = field(default_factory=list)
    wanted: dict[str, NDArray[np.float64]] = field(default_factory=dict)

    def add(
        self,
        name: str,
        *,
        image: Dataset | bytes | None = None,
        wanted: NDArray[np.float64] | None = None,
        box: Box | None = LESION,
        **columns: str,
    ) -> Path:
        """One mammogram `name`.dcm with one row; `wanted` is the image as it should be seen, in [0, 1]."""
        number = len(self.rows)
        path = self.root / columns.pop("file", f"{name}.dcm")
        if image is not None:
            write(image, path)
        corners = {} if box is None else {corner: f"{getattr(box, corner):g}" for corner in CORNERS}
        label = ("malignant", "benign")[number % 2]
        row = {
            "file": str(path.relative_to(self.root)),
            "patient": f"woman {number * 271 + 1009}",
            "label": label,
            "name": name,
        }
        self.rows.append({**row, **corners, **columns})
        if wanted is not None:
            self.wanted[name] = cut(wanted, box or LESION)
        return path

    def write_table(self) -> None:
        """Write `findings.csv`."""
        columns = list(dict.fromkeys(name for row in self.rows for name in row))
        with (self.root / "findings.csv").open("w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, columns)
            table.writeheader()
            table.writerows(self.rows)

    def ingest(self, *options: str, source: str = "csv", explain: bool = True, cohort: Path | None = None) -> Told:
        """Write the table, if there are rows, and ingest: pixels as they are, without a margin."""
        if self.rows:
            self.write_table()
        cohort = cohort or self.root.with_name(f"{self.root.name}-cohort")
        arguments = ["data", "ingest", str(self.root), str(cohort), "--source", source, "--jobs", "1"]
        arguments += [*(["--explain"] if explain else []), *(options or ("--margin", "0"))]
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main(arguments)
        return Told(code=code, said=out.getvalue() + err.getvalue(), cohort=cohort, wanted=self.wanted)


@dataclass(frozen=True)
class Told:
    """What the command said and left behind."""

    code: int
    said: str
    cohort: Path
    wanted: dict[str, NDArray[np.float64]]

    @property
    def about(self) -> dict[str, Any]:
        return dict(json.loads((self.cohort / "cohort.json").read_text()))

    @property
    def rows(self) -> list[dict[str, str]]:
        return [row for name in ("cohort.csv", "unlabelled.csv") for row in read_rows(self.cohort / name)]

    @property
    def provenance(self) -> list[dict[str, str]]:
        return read_rows(self.cohort / "provenance.csv")

    def pseudonym(self, name: str) -> str:
        return Pseudonyms.kept_at(self.cohort.with_name(f"{self.cohort.name}.salt")).of("finding", name)

    def patch(self, name: str) -> NDArray[np.float64]:
        path = self.cohort / "patches" / f"{self.pseudonym(name)}.png"
        assert path.exists(), f"{name} was refused: {self.reason(name)}"
        return np.asarray(Image.open(path)).astype(np.float64) / 65535

    def reason(self, name: str) -> str:
        """Why a finding gave no patch, by the table of problems; "" where it gave one."""
        known = self.pseudonym(name)
        if (self.cohort / "patches" / f"{known}.png").exists():
            return ""
        (row,) = [row for row in read_rows(self.cohort / "problems.csv") if row["finding"] == known]
        return row["reason"]

    def off(self, name: str, wanted: NDArray[np.float64] | None = None) -> float:
        """The largest difference between a patch and what was drawn."""
        expected, found = self.wanted[name] if wanted is None else wanted, self.patch(name)
        assert found.shape == expected.shape
        return float(np.abs(found - expected).max())

    def level(self, check: str) -> str:
        """What the preflight found."""
        findings = json.loads((self.cohort / "preflight.json").read_text())["findings"]
        (found,) = [one for one in findings if one["name"] == check]
        return str(found["level"])

    def worries(self) -> set[str]:
        findings = json.loads((self.cohort / "preflight.json").read_text())["findings"]
        return {f"{one['name']} {one['level']}" for one in findings if one["level"] != "ok"}


def read_rows(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write(image: Dataset | bytes, path: Path) -> Path:
    """A header with pixels, or bytes as they are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(image, bytes):
        path.write_bytes(image)
    else:
        image.save_as(path, enforce_file_format=True)
    return path


def file_of(image: Dataset) -> bytes:
    """A whole file, to be changed byte by byte."""
    buffer = io.BytesIO()
    image.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def code(value: str, scheme: str, meaning: str, **more: Any) -> Dataset:
    """An item of a code sequence (PS3.3, 8.8)."""
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    for name, given in more.items():
        setattr(item, name, given)
    return item


def table_item(values: Sequence[int], *, first: int = 0, bits: int, packed: bytes | None = None, **more: Any) -> Dataset:
    """An item of a look-up table sequence (PS3.3, C.11.1 and C.11.2); `packed` is its data as bytes."""
    item = Dataset()
    item.LUTDescriptor = [len(values) % 65536, first, bits]
    item["LUTDescriptor"].VR = "US"
    item.LUTData = np.asarray(values, np.uint16).tobytes() if packed is None else packed
    item["LUTData"].VR = "OW"
    for name, given in more.items():
        setattr(item, name, given)
    return item
