"""What the sources make of their tables, also of odd ones; no pixel is decoded here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from mammo_fed.data.cohort import BENIGN, MALIGNANT
from mammo_fed.data.dicom.archives.registry import SOURCES
from mammo_fed.data.dicom.findings import Box, Breast, Finding, Masks, Outline, SkippedFinding
from mammo_fed.errors import DataError
from tests.data.dicom.making import gradient, mammogram, write

CBIS = '"patient_id","left or right breast","image view","abnormality id","abnormality type","pathology","image file path"\n'


def listed(source: str, root: Path) -> list[Finding | SkippedFinding]:
    return list(SOURCES[source](root))


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def reasons(found: Sequence[Finding | SkippedFinding]) -> list[str]:
    return [one.reason for one in found if isinstance(one, SkippedFinding)]


def table(
    root: Path, *rows: str, header: str = "file,patient,label,top,left,bottom,right,mask,contour,view,split,name"
) -> None:
    (root / "findings.csv").write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")


def test_generic_table_gives_boxes_masks_and_contours(tmp_path):
    touch(tmp_path, "a.dcm", "deep/b.dcm", "m.dcm")
    table(
        tmp_path,
        "a.dcm,P 1,malignant,1,2,30,40,,,CC,test,first",
        "deep/b.dcm,P 2,0,,,,,m.dcm,,,train,",
        'a.dcm,P 1,,,,,,,"1,2 3,40 50,6",,test,',
    )
    box, mask, contour = listed("csv", tmp_path)
    assert isinstance(box, Finding)
    assert (box.lesion, box.label, box.view, box.split, box.name) == (
        Box(top=1, left=2, bottom=30, right=40),
        MALIGNANT,
        "CC",
        "test",
        "first",
    )
    assert isinstance(mask, Finding)
    assert isinstance(mask.lesion, Masks)
    assert (mask.lesion.candidates, mask.label) == ((tmp_path.resolve() / "m.dcm",), BENIGN)
    assert isinstance(contour, Finding)
    assert isinstance(contour.lesion, Outline)
    assert (contour.lesion.points.tolist(), contour.label) == ([[1, 2], [3, 40], [50, 6]], None)


@pytest.mark.parametrize(
    ("row", "reason", "said"),
    [
        ("../a.dcm,p,1,1,2,30,40,,,,train,", "unusable_row", "without .."),
        ("..\\a.dcm,p,1,1,2,30,40,,,,train,", "unusable_row", "without .."),
        ("/etc/passwd,p,1,1,2,30,40,,,,train,", "unusable_row", "must be a path relative"),
        ("C:\\a.dcm,p,1,1,2,30,40,,,,train,", "unusable_row", "must be a path relative"),
        (",p,1,1,2,30,40,,,,train,", "unusable_row", "must be a path relative"),
        ("none.dcm,p,1,1,2,30,40,,,,train,", "missing_file", "is not in"),
        ("a.dcm,,1,1,2,30,40,,,,train,", "unusable_row", "patient is empty"),
        ("a.dcm,\u200b,1,1,2,30,40,,,,train,", "unusable_row", "patient is empty"),
        ("a.dcm,p,maybe,1,2,30,40,,,,train,", "unknown_label", "must be malignant, benign"),
        ("a.dcm,p,1,,,,,,,,train,", "unusable_row", "gives no lesion"),
        ("a.dcm,p,1,1,2,30,40,m.dcm,,,train,", "unusable_row", "gives mask and box"),
        ("a.dcm,p,1,,,,,no.dcm,,,train,", "missing_file", "is not in"),
        ("a.dcm,p,1,1,2,30,,,,,train,", "unusable_row", "not made of numbers"),
        ("a.dcm,p,1,1,2,30,nan,,,,train,", "unusable_row", "not made of numbers"),
        ("a.dcm,p,1,1,2,30,1_0,,,,train,", "unusable_row", "not made of numbers"),
        ('a.dcm,p,1,,,,,,"1,2 3",,train,', "unusable_row", "not made of numbers"),
        ("a.dcm,p,1,1,2,30,40,,,XYZ,train,", "unusable_row", "must be CC, MLO"),
        ("a.dcm,p,1,1,2,30,40,,,CC,all,", "unusable_row", "must be one of train"),
        ("a.dcm,p,1,1,2,30,40,,,CC,,", "unusable_row", "must be one of train"),
        ("a.dcm,p,1,1,2,30,40,,,CC,train,n,more", "unusable_row", "it has 13 values"),
        ("a.dcm,p,1,1,2,30,40", "unusable_row", "it has 7 values"),
        ('a.dcm,"p,1,1,2,30,40,,,CC,train,', "unusable_row", "check its quotes"),
    ],
)
def test_generic_table_refuses_a_row_that_breaks_a_rule_and_reads_the_others(tmp_path, row, reason, said):
    touch(tmp_path, "a.dcm", "m.dcm")
    table(tmp_path, "a.dcm,q,0,1,2,30,40,,,CC,train,before", row, "a.dcm,q,0,1,2,30,40,,,CC,train,after")
    first, refused, last = listed("csv", tmp_path)
    assert isinstance(first, Finding)
    assert isinstance(last, Finding)
    assert isinstance(refused, SkippedFinding)
    assert (refused.reason, last.name) == (reason, "after")
    assert said in refused.detail
    assert "row 3" in refused.detail


def test_generic_table_refuses_an_unknown_column_and_a_link_out_of_the_folder(tmp_path):
    touch(tmp_path, "a.dcm")
    table(tmp_path, "a.dcm,p,1,x", header="file,patient,label,lable")
    with pytest.raises(DataError, match="unknown column 'lable'"):
        listed("csv", tmp_path)
    inner = tmp_path / "inner"
    inner.mkdir()
    (inner / "out.dcm").symlink_to(tmp_path / "a.dcm")
    table(inner, "out.dcm,p,1,1,2,3,4,,,,train,")
    (refused,) = listed("csv", inner)
    assert isinstance(refused, SkippedFinding)
    assert refused.reason == "unusable_row"
    assert "is a link out of" in refused.detail


def test_cbis_reads_rows_with_broken_lines_and_finds_folders_by_name_at_any_depth(tmp_path):
    touch(
        tmp_path,
        "CBIS/Mass-Training_P_00001_LEFT_CC/1.3/1.4/1-1.dcm",
        "CBIS/Mass-Training_P_00001_LEFT_CC_1/1.3/1.4/1-1.dcm",
        "CBIS/Mass-Training_P_00001_LEFT_CC_1/1.5/1.6/1-1.dcm",
        "CBIS/Mass-Training_P_00001_LEFT_CC_2/1.3/1.4/000000.dcm",
        "CBIS/Mass-Training_P_00002_RIGHT_MLO/1.3/1.4/1-1.dcm",
    )
    rows = [
        'P_00001,LEFT,CC,1,mass,MALIGNANT,"Mass-Training_P_00001_LEFT_CC/9.9/000000.dcm\n"',
        "P_00001,LEFT,CC,2,mass,BENIGN_WITHOUT_CALLBACK,x",
        "P_00001,LEFT,CC,3,mass,UNPROVEN,x",
        "P_00002,RIGHT,MLO,1,mass,BENIGN,x",
        "P_00003,LEFT,CC,1,mass,BENIGN,x",
    ]
    # Files of one content count once.
    (tmp_path / "CBIS/Mass-Training_P_00001_LEFT_CC_1/1.3/1.4/1-1.dcm").write_bytes(b"mask")
    (tmp_path / "CBIS/Mass-Training_P_00001_LEFT_CC_1/1.5/1.6/1-1.dcm").write_bytes(b"crop")
    (tmp_path / "mass_case_description_train_set.csv").write_text("\ufeff" + CBIS + "\n".join(rows) + "\n", encoding="utf-8")
    found = listed("cbis_ddsm", tmp_path)
    first, second = (one for one in found if isinstance(one, Finding))
    assert (first.label, second.label, first.split, first.view) == (MALIGNANT, BENIGN, "train", "CC")
    assert first.image == second.image
    assert isinstance(first.lesion, Masks)
    assert len(first.lesion.candidates) == 2
    assert reasons(found) == ["unknown_label", "no_mask", "missing_file"]


def test_cbis_says_what_is_missing(tmp_path):
    with pytest.raises(DataError, match="holds neither"):
        listed("cbis_ddsm", tmp_path)
    (tmp_path / "mass_case_description_test_set.csv").write_text("patient_id,pathology\nP_00001,BENIGN\n")
    with pytest.raises(DataError, match="no column 'left or right breast'"):
        listed("cbis_ddsm", tmp_path)


def bcdr(root: Path, *rows: str) -> None:
    header = (
        "patient_id,study_id,series,lesion_id,segmentation_id,image_view,image_filename,lw_x_points,lw_y_points,classification"
    )
    (root / "bcdr_f01_outlines.csv").write_text("\n".join([header, *rows]) + "\n")


def test_bcdr_reads_outlines_beside_dicom_exports_and_stays_in_its_folder(tmp_path):
    touch(tmp_path, "p/img_1.dcm")
    bcdr(
        tmp_path,
        "3,4,1,1,1,2, p/img_1.tif, 10 20 30, 1 2 3, Malign",
        "3,4,1,2,1,2, p/img_2.tif, 10 20 30, 1 2 3, Benign",
        "3,4,1,3,1,2, ../../etc/x.tif, 10 20 30, 1 2 3, Benign",
        "3,4,1,4,1,2, p/img_1.tif, 10 twenty 30, 1 2 3, Benign",
        "3,4,1,5,1,2, p/img_1.tif, 10 20, 1 2 3, Benign",
        "3,4,1,6,1,2, p/img_1.tif, 10 20 30, 1 2 3, Unknown",
    )
    found = listed("bcdr", tmp_path)
    (good,) = (one for one in found if isinstance(one, Finding))
    assert isinstance(good.lesion, Outline)
    assert (good.lesion.points.tolist(), good.label, good.view, good.split) == (
        [[1, 10], [2, 20], [3, 30]],
        MALIGNANT,
        "CC",
        "external",
    )
    assert reasons(found) == ["missing_file", "unusable_row", "unreadable_annotation", "unreadable_annotation", "unknown_label"]


def inbreast(root: Path, xml: str) -> None:
    touch(root, "AllDICOMs/20586908_6c613a14b80a8591_MG_R_CC_ANON.dcm", "AllXML/20586908.xml")
    (root / "AllXML/20586908.xml").write_text(xml)


def test_inbreast_reads_masses_as_contours_without_a_label(tmp_path):
    region = "<dict><key>Name</key><string>{}</string><key>Point_px</key><array>{}</array></dict>"
    points = "".join(f"<string>({x}, {y})</string>" for x, y in ((10.5, 1), (20, 2), (30, 3)))
    regions = (
        region.format("Mass", points) + region.format("Calcification", points) + region.format("mass ", "<string>none</string>")
    )
    inbreast(
        tmp_path,
        '<?xml version="1.0"?><plist version="1.0"><dict><key>Images</key><array><dict><key>ROIs</key><array>'
        f"{regions}</array></dict></array></dict></plist>",
    )
    touch(tmp_path, "AllDICOMs/notes.dcm", "AllDICOMs/20586909_6c613a14b80a8591_MG_R_ML_ANON.dcm")
    odd, first, second = listed("inbreast", tmp_path)
    assert isinstance(first, Finding)
    assert isinstance(first.lesion, Outline)
    assert (first.lesion.points.tolist(), first.label, first.patient) == (
        [[1, 10.5], [2, 20], [3, 30]],
        None,
        "6c613a14b80a8591",
    )
    assert isinstance(second, Finding)
    assert isinstance(second.lesion, Outline)
    assert np.isnan(second.lesion.points).all()
    assert reasons([odd]) == ["unreadable_annotation"]


@pytest.mark.parametrize(
    "xml",
    [
        "<plist",
        "<plist><dict></dict></plist>",
        '<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;">]><plist><string>&b;</string></plist>',
        "x" * (11 << 20),
        '<?xml version="1.0" encoding="of-nobody"?><plist version="1.0"><dict></dict></plist>',
        "<plist><dict><key>Images</key><date>never</date></dict></plist>",
        "<plist>" + "<array>" * 100_000,
    ],
    ids=["torn", "empty", "entities", "huge", "encoding", "date", "deep"],
)
def test_inbreast_gives_up_a_contour_file_that_is_none(tmp_path, xml):
    inbreast(tmp_path, xml)
    assert reasons(listed("inbreast", tmp_path)) == ["unreadable_annotation"]


def test_cmmd_takes_the_side_from_the_header_and_passes_calcifications_over(tmp_path):
    for number, side in enumerate("LRL"):
        (tmp_path / "D1-0001/1/2").mkdir(parents=True, exist_ok=True)
        write(mammogram(gradient(), ImageLaterality=side, ViewPosition="MLO"), tmp_path / f"D1-0001/1/2/1-{number}.dcm")
    touch(tmp_path, "D1-0002/1/2/1-1.dcm")
    rows = [
        "D1-0001,L,44,1,both,Malignant",
        "D1-0002,R,44,1,mass,Benign",
        "D1-0003,R,44,1,mass,Benign",
        "D1-0001,R,44,1,calcification,Benign",
        "../D1-0001,R,44,1,mass,Benign",
        "D1-0001,R,44,1,mass,unclear",
    ]
    header = "ID1,LeftRight,Age,number,abnormality,classification"
    (tmp_path / "CMMD_clinicaldata_revision.csv").write_text("\n".join([header, *rows]) + "\n")
    found = listed("cmmd", tmp_path)
    good = [one for one in found if isinstance(one, Finding)]
    assert [(one.label, one.view, one.lesion) for one in good] == [(MALIGNANT, "MLO", Breast())] * 2
    assert reasons(found) == ["unusable_row", "unknown_label", "not_dicom", "missing_file"]
