"""Annotations of every kind, named in a table, from the command line to the patch."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
from PIL import Image

from mammo_fed.cli.main import main
from tests.data.dicom import test_dicom_presentations as states
from tests.data.dicom import test_dicom_reports as reports
from tests.data.dicom import test_dicom_structures as structures
from tests.data.dicom.annotating import (
    DRAWN,
    MASS,
    SHAPE,
    described,
    drawn_mammogram,
    drawn_mask,
    segmentation,
    sloppy_segmentation,
)
from tests.data.dicom.making import write

OTHER = (5, 6, 15, 20)
PIXELS = (np.random.default_rng(5).random(SHAPE) * 60000).astype(np.uint16)
SIDE = DRAWN[3] - DRAWN[1]


def archive(folder: Path) -> list[dict[str, str]]:
    """One mammogram with one annotation for each kind; the rows of a table that names them."""
    rows = []
    two = np.stack([drawn_mask(OTHER), drawn_mask()], axis=-1)[None]

    def add(kind: str, column: str, region: str, make: object) -> None:
        image = drawn_mammogram(len(rows), PixelData=PIXELS.tobytes(), PatientID=f"P{len(rows)}")
        write(image, folder / f"{kind}.dcm")
        write(make(image), folder / f"{kind}.mark.dcm")
        label = ("benign", "malignant")[len(rows) % 2]
        rows.append(
            {"file": f"{kind}.dcm", "patient": kind, "label": label, "name": kind, column: f"{kind}.mark.dcm", "region": region}
        )

    add("sloppy", "mask", "", lambda image: sloppy_segmentation(drawn_mask()))
    add("inverted", "mask", "", lambda image: sloppy_segmentation(1 - drawn_mask()))
    add("named", "annotation", "mass", lambda image: segmentation([image], two, [described(1, "node"), described(2, "mass")]))
    add("unnamed", "annotation", "", lambda image: segmentation([image], two, [described(1, "node"), described(2, "mass")]))
    add(
        "structures",
        "annotation",
        "4",
        lambda image: structures.structures(
            (1, "node", [structures.contour(OTHER, image)]), (4, "mass", [structures.contour(DRAWN, image)])
        ),
    )
    add(
        "report",
        "annotation",
        "lesion 1",
        lambda image: reports.report(
            reports.measured(
                reports.placed("111030", "POLYLINE", reports.SQUARE, reports.picture(image, "SELECTED FROM"), "CONTAINS"),
                name="Lesion 1",
                what=MASS,
            )
        ),
    )
    add(
        "state",
        "mask",
        "",
        lambda image: states.presentation(states.group(states.graphic(), image=image), images=(image,)),
    )
    add("other", "annotation", "", lambda image: segmentation([drawn_mammogram(99)], two[..., 1], [described(1, "mass")]))
    return rows


def test_dicom_annotations_of_every_kind_give_the_patch_of_what_they_mark(tmp_path, capfd):
    folder, cohort = tmp_path / "archive", tmp_path / "cohort"
    folder.mkdir()
    rows = archive(folder)
    with (folder / "findings.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, ["file", "patient", "label", "name", "mask", "annotation", "region"])
        table.writeheader()
        table.writerows(rows)
    options = ["--size", str(SIDE), "--smallest", "8", "--margin", "0", "--windowing", "stored", "--json"]
    assert main(["data", "ingest", str(folder), str(cohort), *options]) == 0
    done = json.loads(capfd.readouterr().out)
    assert done["refused"] == {"mask_mismatch": 1, "several_regions": 1}
    assert done["images"] == 6
    # The square around the box, which is wider than it is high.
    top = (DRAWN[0] + DRAWN[2] - SIDE) // 2
    expected = PIXELS[top : top + SIDE, DRAWN[1] : DRAWN[3]]
    for path in (cohort / "patches").iterdir():
        assert np.abs(np.asarray(Image.open(path)).astype(int) - expected).max() <= 1
