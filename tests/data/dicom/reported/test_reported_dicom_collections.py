"""The public collections as people have them: unpacked on a Mac, joined by hand, saved by a spreadsheet, without a side."""

from __future__ import annotations

import csv
import os
import plistlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
from PIL import Image

from mammo_fed.data.dicom.findings import Box
from tests.data.dicom.reported.drawing import (
    COLUMNS,
    LESION,
    ROWS,
    TOLERANCE,
    Archive,
    Told,
    as_stored,
    cut,
    header,
    scene,
    write,
)

SECOND: Final = Box(top=240, left=40, bottom=290, right=90)
VIEWS: Final = ("CC", "MLO")
CBIS_COLUMNS: Final = (
    "patient_id,breast_density,left or right breast,image view,abnormality id,abnormality type,mass shape,mass margins,"
    "assessment,pathology,subtlety,image file path,cropped image file path,ROI mask file path"
)
CMMD_COLUMNS: Final = "ID1,LeftRight,Age,number,abnormality,classification,subtype"
BCDR_COLUMNS: Final = (
    "patient_id,study_id,series,lesion_id,segmentation_id,image_view,image_filename,lw_x_points,lw_y_points,mammography_type,"
    "mammography_nodule,mammography_calcification,mammography_microcalcification,mammography_axillary_adenopathy,"
    "mammography_architectural_distortion,mammography_stroma_distortion,age,density,classification"
)


def write_table(path: Path, columns: str, rows: Sequence[Sequence[object]], *, separator: str = ",") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, delimiter=separator)
        table.writerow(columns.split(","))
        table.writerows(rows)


def mask_of(box: Box) -> Any:
    mask = np.zeros((ROWS, COLUMNS), np.uint8)
    mask[int(box.top) : int(box.bottom), int(box.left) : int(box.right)] = 255
    return mask


def cbis(archive: Archive, number: int) -> list[object]:
    """One mass with the Descriptive names of the retriever; its row."""
    patient, view = f"P_{number + 1:05d}", VIEWS[number % 2]
    image = f"Mass-Training_{patient}_LEFT_{view}"
    series = f"{image}_1/07-21-2016-DDSM-NA-5{number:04d}/1.000000-ROI mask images-6{number:04d}"
    full = f"{image}/07-21-2016-DDSM-NA-3{number:04d}/1.000000-full mammogram images-4{number:04d}"
    write(header(as_stored(scene(number), 16), number=number, bits=16), archive.root / full / "1-1.dcm")
    crop = as_stored(cut(scene(number)), 16)
    write(header(crop, number=1000 + number, bits=16), archive.root / series / "1-1.dcm")
    write(header(mask_of(LESION), number=2000 + number, bits=8), archive.root / series / "1-2.dcm")
    archive.wanted[f"{image}_1"] = cut(scene(number))
    files = (f"{image}/1.3/1.3/000000.dcm", f"{image}_1/1.3/1.3/000000.dcm\n", f"{image}_1/1.3/1.3/000001.dcm\n")
    said = ("MALIGNANT", "BENIGN")[number % 2]
    return [patient, 3, "LEFT", view, 1, "mass", "OVAL", "CIRCUMSCRIBED", 4, said, 4, *files]


def cbis_archive(folder: Path, count: int = 4) -> tuple[Archive, list[list[object]]]:
    archive = Archive(folder / "archive")
    rows = [cbis(archive, number) for number in range(count)]
    write_table(archive.root / "mass_case_description_train_set.csv", CBIS_COLUMNS, rows)
    return archive, rows


def as_drawn(told: Told) -> bool:
    return max(told.off(name) for name in told.wanted) < TOLERANCE


def test_dicom_collection_of_cbis_ddsm_is_read_and_so_beside_the_hidden_files_of_a_mac(tmp_path: Path) -> None:
    """AppleDouble files, `._NAME`, lie beside what was packed on a Mac: they are no images."""
    archive, _ = cbis_archive(tmp_path)
    plain = archive.ingest(source="cbis_ddsm", cohort=tmp_path / "plain")
    assert (plain.code, plain.about["refused"]) == (0, {})
    assert as_drawn(plain)
    for path in list(archive.root.rglob("*.dcm")):
        (path.parent / f"._{path.name}").write_bytes(b"\0\5\x16\7\0\2\0\0Mac OS X        " + bytes(4060))
    beside = archive.ingest(source="cbis_ddsm", cohort=tmp_path / "beside")
    assert (beside.code, beside.about["refused"]) == (0, {})
    assert as_drawn(beside)


def test_dicom_collection_row_that_stands_twice_is_refused_alone(tmp_path: Path) -> None:
    """Tables joined by hand have it."""
    archive, rows = cbis_archive(tmp_path)
    write_table(archive.root / "mass_case_description_train_set.csv", CBIS_COLUMNS, [*rows, rows[2]])
    told = archive.ingest(source="cbis_ddsm")
    assert (told.code, told.about["refused"]) == (0, {"repeated_row": 1})
    assert as_drawn(told)


def test_dicom_collection_folder_with_the_masks_of_two_lesions_is_unclear(tmp_path: Path) -> None:
    """Downloads merged by patient and view: which is which no file says, so neither is taken. The same mask twice is one."""
    archive, _ = cbis_archive(tmp_path)
    folders = sorted({path.parent for path in archive.root.rglob("1-2.dcm")})
    write(header(mask_of(SECOND), number=3000, bits=8), folders[0] / "1-0.dcm")
    write(header(mask_of(LESION), number=3001, bits=8), folders[1] / "1-0.dcm")
    told = archive.ingest(source="cbis_ddsm")
    assert told.about["refused"] == {"unclear_mask": 1}
    assert told.reason("Mass-Training_P_00001_LEFT_CC_1") == "unclear_mask"
    told.wanted.pop("Mass-Training_P_00001_LEFT_CC_1")
    assert as_drawn(told)


def cmmd(archive: Archive, number: int, **attributes: Any) -> list[object]:
    patient = f"D1-{number + 1:04d}"
    for place, view in enumerate(VIEWS):
        image = header(
            as_stored(scene(10 * number + place), 8), number=10 * number + place, bits=8, ViewPosition=view, **attributes
        )
        write(image, archive.root / patient / "07-18-2010-NA-NA-40000" / "1.000000-NA-70000" / f"1-{place + 1}.dcm")
    return [patient, "L", 50, 2, "mass", ("Malignant", "Benign")[number % 2], ""]


def test_dicom_collection_image_without_a_side_is_counted(tmp_path: Path) -> None:
    """Image Laterality is required of mammograms (PS3.3 C.8.11.7) and de-identifiers take it away: findings still add up."""
    archive = Archive(tmp_path / "archive")
    rows = [cmmd(archive, 0, ImageLaterality=None), *(cmmd(archive, number) for number in range(1, 4))]
    write_table(archive.root / "CMMD_clinicaldata_revision.csv", CMMD_COLUMNS, rows)
    told = archive.ingest("--split", "train", source="cmmd")
    assert (told.code, told.about["refused"]) == (0, {"no_side": 2})
    assert len(told.rows) == 6


def test_dicom_collection_file_whose_name_is_no_text_is_read_or_counted(tmp_path: Path) -> None:
    """File systems keep bytes: a name in Latin-1, or one that would move a terminal's cursor, is a name."""
    archive = Archive(tmp_path / "archive")
    write_table(archive.root / "CMMD_clinicaldata_revision.csv", CMMD_COLUMNS, [cmmd(archive, number) for number in range(2)])
    first, second = sorted(archive.root.rglob("*.dcm"))[:2]
    os.rename(first, os.fsencode(first.parent) + b"/M\xfcller [bold]\n.dcm")
    write(b"nothing", second.parent / "x\x1b[31m.dcm")
    told = archive.ingest("--split", "train", source="cmmd")
    assert (told.code, told.about["refused"], len(told.rows)) == (0, {"not_dicom": 1}, 4)
    assert "\x1b[31m" not in told.said
    inbreast(archive, 5, [region("Mass")])
    os.rename(next((archive.root / "AllDICOMs").iterdir()), os.fsencode(archive.root / "AllDICOMs") + b"/M\xfcller.dcm")
    assert archive.ingest(source="inbreast", cohort=tmp_path / "other").code == 2


@pytest.mark.parametrize("separator", [";", "\t"])
def test_dicom_collection_table_is_read_as_spreadsheets_of_other_countries_save_it(tmp_path: Path, separator: str) -> None:
    """Where the comma is a decimal sign, a list is separated by semicolons."""
    archive = Archive(tmp_path / "archive")
    rows = [cmmd(archive, number) for number in range(2)]
    write_table(archive.root / "CMMD_clinicaldata_revision.csv", CMMD_COLUMNS, rows, separator=separator)
    told = archive.ingest("--split", "train", source="cmmd")
    assert (told.code, len(told.rows)) == (0, 4)


def test_dicom_collection_of_whole_breasts_does_not_drift_from_patches_of_lesions(tmp_path: Path) -> None:
    """A breast is darker and has more contrast than a lesion's surroundings: that is no fault of the archive."""
    archive = Archive(tmp_path / "archive")
    rows = [cmmd(archive, number) for number in range(8)]
    write_table(archive.root / "CMMD_clinicaldata_revision.csv", CMMD_COLUMNS, rows)
    assert archive.ingest("--split", "train", source="cmmd").level("drift") == "ok"


def bcdr(number: int) -> tuple[str, list[object]]:
    name = f"patient_{number + 1}/study_{number + 1}/img_{number + 1}_1_1_LCC.tif"
    top, left, bottom, right = (int(getattr(LESION, edge)) for edge in ("top", "left", "bottom", "right"))
    across, down = f" {left} {right} {right} {left}", f" {top} {top} {bottom} {bottom}"
    said = (" Malign", " Benign")[number % 2]
    person = number + 1
    return name, [person, person, 1, 1, 1, 2, f" {name}", across, down, 1, 1, 0, 0, 0, 0, 0, 50, "NaN", said]


@pytest.mark.parametrize("published", [True, False])
def test_dicom_collection_of_bcdr_is_read_from_its_tiff_files_or_from_an_export(tmp_path: Path, published: bool) -> None:
    """It is published as TIFF of 8 bits."""
    archive, rows = Archive(tmp_path / "archive"), []
    for number in range(4):
        name, row = bcdr(number)
        rows.append(row)
        path, stored = archive.root / name, as_stored(scene(number), 8)
        if published:
            path.parent.mkdir(parents=True)
            Image.fromarray(stored).save(path)
        else:
            write(header(stored, number=number, bits=8), path.with_suffix(".dcm"))
        archive.wanted[f"{number + 1} {number + 1} 1 1 {name}"] = cut(scene(number))
    write_table(archive.root / "bcdr_d01_outlines.csv", BCDR_COLUMNS, rows)
    told = archive.ingest("--margin", "0", "--split", "train", source="bcdr")
    assert (told.code, told.about["refused"]) == (0, {})
    assert as_drawn(told)


Corners = Sequence[tuple[float, float]]
SQUARE: Final[Corners] = ((40, 96), (168, 96), (168, 224), (40, 224))


def region(name: str, corners: Corners = SQUARE, form: str = "({:f}, {:f})") -> dict[str, Any]:
    return {"Name": name, "NumberOfPoints": len(corners), "Point_px": [form.format(*point) for point in corners], "Type": 15}


def inbreast(archive: Archive, number: int, regions: Sequence[dict[str, Any]], *, start: bytes = b"") -> str:
    """One mammogram and the contours of OsiriX; its number."""
    file = f"{20000000 + number}"
    name = f"{file}_{number + 1:016x}_MG_L_{('CC', 'ML')[number % 2]}_ANON.dcm"
    write(header(as_stored(scene(number), 14), number=number, bits=14), archive.root / "AllDICOMs" / name)
    said = plistlib.dumps({"Images": [{"ImageIndex": 0, "NumberOfROIs": len(regions), "ROIs": list(regions)}]})
    write(start + said, archive.root / "AllXML" / f"{file}.xml")
    return file


def test_dicom_collection_without_biopsies_is_ingested_with_success(tmp_path: Path) -> None:
    """INbreast has none: its patches are of use for pretraining, and an ingestion that made them has not failed."""
    archive = Archive(tmp_path / "archive")
    for number in range(3):
        archive.wanted[f"{inbreast(archive, number, [region('Mass')])} 0"] = cut(scene(number))
    told = archive.ingest(source="inbreast")
    assert (told.code, told.about["refused"]) == (0, {})
    assert as_drawn(told)
    assert len(told.rows) == 3


def test_dicom_collection_contours_are_read_as_several_versions_of_osirix_wrote_them(tmp_path: Path) -> None:
    """Blanks, capitals, a closed contour, exponents, a byte order mark: read. What is no mass is counted or passed over."""
    archive = Archive(tmp_path / "archive")
    first = Archive(tmp_path / "archive")
    ways: list[tuple[dict[str, Any], bytes]] = [
        (region("Mass "), b""),
        (region("MASS"), b""),
        (region("Mass", (*SQUARE, SQUARE[0])), b""),
        (region("Mass", form="({:e},{:.4e})"), b""),
        (region("Mass"), b"\xef\xbb\xbf"),
    ]
    for number, (way, start) in enumerate(ways):
        archive.wanted[f"{inbreast(first, number, [way], start=start)} 0"] = cut(scene(number))
    beyond = inbreast(first, 8, [region("Mass", ((-1, 96), (127, 96), (127, 224), (-1, 224)))])
    told = archive.ingest(source="inbreast")
    assert as_drawn(told)
    assert told.reason(f"{beyond} 0") == "lesion_outside" or told.off(f"{beyond} 0", scene(8)[96:224, :128]) < TOLERANCE


def test_dicom_collection_image_with_two_masses_gives_two_findings(tmp_path: Path) -> None:
    """With a calcification between them, which is none."""
    archive = Archive(tmp_path / "archive")
    lower: Corners = ((40, 240), (104, 240), (104, 304), (40, 304))
    file = inbreast(archive, 0, [region("Mass"), region("Calcification", ((5, 5),)), region("Mass", lower)])
    told = archive.ingest("--margin", "0", "--smallest", "16", "--size", "64", source="inbreast")
    assert {row["crop_side"] for row in told.provenance} == {"128", "64"}
    assert told.off(f"{file} 2", scene(0)[240:304, 40:104]) < TOLERANCE
