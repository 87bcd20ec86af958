"""DICOM collections as they come out of downloads, other systems and other hands; no pixel is decoded here."""

from __future__ import annotations

import plistlib
from collections.abc import Sequence
from pathlib import Path

import pytest

from mammo_fed.data.cohort import BENIGN, MALIGNANT
from mammo_fed.data.dicom.archives.registry import SOURCES
from mammo_fed.data.dicom.findings import Finding, Masks, Outline, SkippedFinding
from mammo_fed.errors import DataError
from tests.data.dicom.making import gradient, mammogram, write

TRAIN = "mass_case_description_train_set.csv"
CBIS = "patient_id,left or right breast,image view,abnormality id,abnormality type,pathology,image file path"
LESION = "Mass-Training_P_00001_LEFT_CC"
CMMD = "ID1,LeftRight,Age,number,abnormality,classification,subtype"


def listed(source: str, root: Path) -> list[Finding | SkippedFinding]:
    return list(SOURCES[source](root))


def taken(found: Sequence[Finding | SkippedFinding]) -> list[Finding]:
    return [one for one in found if isinstance(one, Finding)]


def reasons(found: Sequence[Finding | SkippedFinding]) -> list[str]:
    return [one.reason for one in found if isinstance(one, SkippedFinding)]


def put(root: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)


def save(root: Path, name: str, header: str, *rows: str) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")


def cbis(root: Path, **more: bytes) -> None:
    put(root, {f"{LESION}/1/2/1-1.dcm": b"mammogram", f"{LESION}_1/1/2/1-1.dcm": b"mask", f"{LESION}_1/1/2/1-2.dcm": b"crop"})
    put(root, more)


def test_cbis_hidden_files_of_other_systems_are_passed_over(tmp_path):
    cbis(tmp_path)
    for name in [f"{LESION}/1/2/1-1.dcm", f"{LESION}_1/1/2/1-1.dcm"]:
        path = tmp_path / name
        put(path.parent, {f"._{path.name}": b"\0\5\x16\7", ".DS_Store": b"x", "__MACOSX/1-9.dcm": b"x", "Thumbs.db": b"x"})
        put(path.parent, {"DICOMDIR": bytes(128) + b"DICM", "@eaDir/1-1.dcm": b"x"})
    put(tmp_path, {f"__MACOSX/{LESION}/1-1.dcm": b"x", f"._{TRAIN}": b"x"})
    save(tmp_path, TRAIN, CBIS, "P_00001,LEFT,CC,1,mass,MALIGNANT,x")
    (found,) = taken(listed("cbis_ddsm", tmp_path))
    assert isinstance(found.lesion, Masks)
    assert [path.name for path in found.lesion.candidates] == ["1-1.dcm", "1-2.dcm"]


def test_cbis_files_of_an_interrupted_download_count_once_and_whole(tmp_path):
    whole = bytes(range(1, 200)) * 2000
    cbis(tmp_path / "second", **{f"{LESION}/1/2/1-1.dcm": whole})
    put(
        tmp_path / "first",
        {
            f"{LESION}/1/2/1-1.dcm": whole[:70_000],
            f"{LESION}_1/1/2/1-1.dcm": b"mask",
            f"{LESION}_1/1/2/1-2.dcm": b"",
            f"again/{LESION}/1-1.dcm": whole[:1000] + bytes(len(whole) - 1000),
        },
    )
    save(tmp_path, TRAIN, CBIS, "P_00001,LEFT,CC,1,mass,BENIGN,x")
    (found,) = taken(listed("cbis_ddsm", tmp_path))
    assert found.image == tmp_path / f"second/{LESION}/1/2/1-1.dcm"
    assert isinstance(found.lesion, Masks)
    assert [path.read_bytes() for path in found.lesion.candidates] == [b"mask", b"crop"]


def test_cbis_two_masks_stay_candidates_and_two_mammograms_are_refused(tmp_path):
    cbis(tmp_path, **{f"{LESION}_1/1/2/1-0.dcm": b"other mask", f"{LESION}_2/1-1.dcm": b"mask"})
    save(tmp_path, TRAIN, CBIS, "P_00001,LEFT,CC,1,mass,BENIGN,x")
    (found,) = taken(listed("cbis_ddsm", tmp_path))
    assert isinstance(found.lesion, Masks)
    assert len(found.lesion.candidates) == 3
    put(tmp_path, {f"{LESION}/3/1-2.dcm": b"another mammogram"})
    assert reasons(listed("cbis_ddsm", tmp_path)) == ["unusable_row"]


def test_cbis_rows_are_read_as_copies_of_the_tables_spell_them(tmp_path):
    cbis(tmp_path)
    put(tmp_path, {"mass-training_p_00002_right_mlo/1.DCM": b"a", "MASS-TRAINING_P_00002_RIGHT_MLO_1/1.dicom": b"b"})
    header = "index;patient_id;left_or_right_breast;image_view;abnormality_id;pathology"
    rows = [
        "0;1;left;cc;1.0;Benign without callback",
        "1;p_00002;R;MLO;1;malignant",
        "2;00001;LEFT;CC;1;BENIGN WITHOUT CALLBACK",
    ]
    save(tmp_path, f"csv/{TRAIN}", header, *rows)
    first, second, third = listed("cbis_ddsm", tmp_path)
    assert [(one.name, one.patient, one.label, one.view) for one in taken([first, second])] == [
        (f"{LESION}_1", "P_00001", BENIGN, "CC"),
        ("Mass-Training_P_00002_RIGHT_MLO_1", "P_00002", MALIGNANT, "MLO"),
    ]
    assert reasons([third]) == ["repeated_row"]


@pytest.mark.parametrize(
    "row",
    [
        "P_00001,LEFT,ML,1,mass,BENIGN,x",
        "P_00001,,CC,1,mass,BENIGN,x",
        "../P_1,LEFT,CC,1,mass,BENIGN,x",
        "P_00001,LEFT,CC,../1,mass,BENIGN,x",
        "P_0000123,LEFT,CC,1,mass,BENIGN,x",
        "P_00001,LEFT,CC,,mass,BENIGN,x",
        "P_00001,LEFT,CC,1",
    ],
)
def test_cbis_row_that_makes_no_name_of_a_folder_is_refused_alone(tmp_path, row):
    cbis(tmp_path)
    save(tmp_path, TRAIN, CBIS, row, "P_00001,LEFT,CC,1,mass,MALIGNANT,x")
    found = listed("cbis_ddsm", tmp_path)
    assert reasons(found) == ["unusable_row"]
    assert len(taken(found)) == 1


def test_cbis_lesion_with_two_pathologies_is_refused_twice(tmp_path):
    cbis(tmp_path)
    save(tmp_path, TRAIN, CBIS, "P_00001,LEFT,CC,1,mass,MALIGNANT,x", "P_00001,LEFT,CC,1,mass,BENIGN,x")
    assert reasons(listed("cbis_ddsm", tmp_path)) == ["unusable_row", "unusable_row"]


def test_cbis_both_tables_in_one_take_the_set_from_the_path_or_the_folders(tmp_path):
    cbis(tmp_path)
    for name in ("Mass-Test_P_00003_LEFT_MLO", "Mass-Test_P_00004_LEFT_CC"):
        put(tmp_path, {f"{name}/1.dcm": name.encode(), f"{name}_1/1.dcm": b"mask"})
    rows = [
        f"P_00001,LEFT,CC,1,mass,MALIGNANT,{LESION}/1.3/000000.dcm",
        "P_00003,LEFT,MLO,1,mass,BENIGN,Mass-Test_P_00003_LEFT_MLO/1.3/000000.dcm",
        "P_00004,LEFT,CC,1,mass,BENIGN,",
        "P_00005,LEFT,CC,1,mass,BENIGN,",
        "P_00001,LEFT,CC,9,calcification,BENIGN,Calc-Training_P_00001_LEFT_CC/1.3/000000.dcm",
    ]
    save(tmp_path, "mass_case_description_all.csv", CBIS, *rows)
    save(tmp_path, "calc_case_description_train_set.csv", "nothing,of,this")
    found = listed("cbis_ddsm", tmp_path)
    assert [one.split for one in taken(found)] == ["train", "test", "test"]
    assert reasons(found) == ["unusable_row"]


def test_cbis_table_that_was_downloaded_twice_counts_once(tmp_path):
    cbis(tmp_path)
    for name in (TRAIN, TRAIN.replace(".csv", " (1).csv")):
        save(tmp_path, name, CBIS, "P_00001,LEFT,CC,1,mass,MALIGNANT,x")
    (found,) = listed("cbis_ddsm", tmp_path)
    assert isinstance(found, Finding)


def view(root: Path, name: str, *, side: str | None, number: int = 0) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    write(mammogram(gradient(), ImageLaterality=side or "", ViewPosition="CC", InstanceNumber=number), root / name)


def test_cmmd_every_image_of_a_listed_patient_ends_in_a_count(tmp_path):
    for number, side in enumerate(("L", None, "R", "L")):
        view(tmp_path, f"D2-0001/1/1-{number}.dcm", side=side, number=number)
    put(tmp_path, {"D2-0001/1/1-7.dcm": b"x", "D2-0001/1/._1-0.dcm": b"x", "D2-0001/LICENSE": b"x", "D1-0002/1-1.dcm": b"x"})
    save(
        tmp_path,
        "CMMD_clinicaldata_revision.csv",
        CMMD,
        "D2-0001,L,50,2,mass,Malignant,",
        "D1-0002,R,50,2,calcification,Benign,",
    )
    found = listed("cmmd", tmp_path)
    assert [(one.name, one.label) for one in taken(found)] == [
        ("D2-0001 L D2-0001/1/1-0.dcm", MALIGNANT),
        ("D2-0001 L D2-0001/1/1-3.dcm", MALIGNANT),
    ]
    assert [(one.name, one.reason) for one in found if isinstance(one, SkippedFinding)] == [
        ("D2-0001 L D2-0001/1/1-1.dcm", "no_side"),
        ("D2-0001 L D2-0001/1/1-7.dcm", "not_dicom"),
    ]


def test_cmmd_breast_of_two_classifications_gives_no_label(tmp_path):
    for number, side in enumerate("LR"):
        view(tmp_path, f"D1-0001/1/1-{number}.dcm", side=side)
    rows = [
        "D1-0001,L,50,2,mass,Malignant,",
        "D1-0001,left,50,2,both,benign,",
        "D1-0001,r,50,2,mass,BENIGN,",
        "D1-0001,R,50,2,both,benign,",
    ]
    save(tmp_path, "CMMD_clinicaldata_revision.csv", CMMD, *rows)
    found = listed("cmmd", tmp_path)
    assert [(one.name, one.label) for one in taken(found)] == [("D1-0001 R D1-0001/1/1-1.dcm", BENIGN)]
    assert reasons(found) == ["repeated_row", "unusable_row"]


def test_cmmd_malignant_calcification_makes_no_benign_breast(tmp_path):
    view(tmp_path, "D1-0001/1/1-1.dcm", side="L")
    rows = ["D1-0001,L,50,2,mass,Benign,", "D1-0001,L,50,2,calcification,Malignant,"]
    save(tmp_path, "CMMD_clinicaldata_revision.csv", CMMD, *rows)
    assert reasons(listed("cmmd", tmp_path)) == ["unusable_row"]


@pytest.mark.parametrize(
    "row",
    ["D1-0002,B,50,2,mass,Benign,", "../x,L,50,2,mass,Benign,", ",L,50,2,mass,Benign,", "D1-0002,L,50,2,,Benign,", "D1-0002,L"],
)
def test_cmmd_row_that_cannot_be_used_is_refused_alone(tmp_path, row):
    view(tmp_path, "D1-0001/1/1-1.dcm", side="L")
    save(tmp_path, "CMMD_clinicaldata_revision.csv", CMMD, row, "D1-0001,L,50,2,mass,Benign,")
    found = listed("cmmd", tmp_path)
    assert (reasons(found), len(taken(found))) == (["unusable_row"], 1)


def test_cmmd_folders_and_table_are_found_in_any_depth_and_case(tmp_path):
    view(tmp_path, "manifest-1/CMMD/d1-0001/1/1-1.DCM", side="L")
    view(tmp_path, "manifest-2/CMMD/D1-0001/1/1-1.dcm", side="L")
    view(tmp_path, "manifest-2/CMMD/D1-0001/1/1-2.dcm", side="L", number=2)
    save(tmp_path, "tables/cmmd_clinicaldata_revision.CSV", CMMD.replace(",", ";") + ";", "D1-0001;L;50;2;MASS;Benign;;")
    assert len(taken(listed("cmmd", tmp_path))) == 2


def test_cmmd_spreadsheet_is_to_be_saved_as_csv(tmp_path):
    put(tmp_path, {"CMMD_clinicaldata_revision.xlsx": b"PK\3\4"})
    with pytest.raises(DataError, match="only as a spreadsheet; save"):
        listed("cmmd", tmp_path)


BCDR = (
    "patient_id,study_id,series,lesion_id,segmentation_id,image_view,image_filename,lw_x_points,lw_y_points,"
    "mammography_nodule,classification"
)


def test_bcdr_published_tiff_is_read_unless_there_is_a_dicom_export(tmp_path):
    put(tmp_path, {"d01/p/img_1.TIF": b"x", "d01/p/img_2.tif": b"x", "d01/p/img_2.DCM": b"x", "d01/p/img_3.tiff": b"x"})
    rows = [f"3,4,1,{n},1,2, p\\img_{n}.tif, 10 20 30 10, 1 2 3 1,1, Malign" for n in (1, 2, 3, 4)]
    save(tmp_path, "d01/bcdr_d01_outlines.csv", BCDR, *rows)
    found = listed("bcdr", tmp_path)
    assert [one.image.name for one in taken(found)] == ["img_1.TIF", "img_2.DCM", "img_3.tiff"]
    assert reasons(found) == ["missing_file"]


def test_bcdr_rows_are_read_with_decimal_commas_and_other_spellings(tmp_path):
    put(tmp_path, {"img_1.tif": b"x"})
    rows = [
        " 3; 4;1;1;1; 4 ; img_1.tif ; 10,5 20 30 ; 1 2,25 3 ;1;Maligno",
        "3;4;1;2;1;LO;img_1.tif;10 20 30;1 2 3;1.0;BENIGN",
        "3;4;1;2;1;LO;img_1.tif;10 20 30;1 2 3;1.0;BENIGN",
        "3;4;1;3;1;1;img_1.tif;10 20 30;1 2;1;Benign",
        "3;4;1;4;1;1;img_1.tif;10 20 30;1 2 3;0;Benign",
        "3;4;1;5;1;1;img_1.tif;10 20 30;1 2 3;NaN;Benign",
        ";4;1;6;1;1;img_1.tif;10 20 30;1 2 3;1;Benign",
        "3;4;1;7;1;1;img_1.tif;10 20 30;1 2 3;perhaps;Benign",
        "3;4;1;8;1;1;img_1.tif;NaN;NaN;1;Benign",
    ]
    save(tmp_path, "bcdr_f01_outlines.csv", BCDR.replace(",", ";"), *rows)
    found = listed("bcdr", tmp_path)
    first, second = taken(found)
    assert isinstance(first.lesion, Outline)
    assert first.lesion.points.tolist() == [[1, 10.5], [2.25, 20], [3, 30]]
    assert [(one.view, one.label) for one in (first, second)] == [("MLO", MALIGNANT), ("MLO", BENIGN)]
    assert reasons(found) == [
        "repeated_row",
        "unreadable_annotation",
        "unusable_row",
        "unusable_row",
        "unreadable_annotation",
    ]


def test_bcdr_sets_that_number_alike_keep_their_findings_apart(tmp_path):
    row = "3,4,1,1,1,2,img_1.tif,10 20 30,1 2 3,1,{}"
    for name, grade in (("d01", "Benign"), ("f01", "Malign")):
        put(tmp_path, {f"{name}/img_1.tif": name.encode()})
        save(tmp_path, f"{name}/bcdr_{name}_outlines.csv", BCDR, row.format(grade))
    found = taken(listed("bcdr", tmp_path))
    assert [one.label for one in found] == [BENIGN, MALIGNANT]
    assert len({one.name for one in found}) == 2


def inbreast(
    root: Path, regions: Sequence[dict[str, object]], *, image: str, before: bytes = b"", number: int = 20586908
) -> None:
    content = before + plistlib.dumps({"Images": [{"ImageIndex": 0, "ROIs": list(regions)}]})
    put(root, {f"AllXML/{number}.xml": content, image: image.encode()})


IMAGE = "AllDICOMs/20586908_6c613a14b80a8591_MG_R_CC_ANON.dcm"
CORNERS = ["(10.5, 1)", "(20, 2)", "(30, 3)"]


def test_inbreast_counts_what_is_no_mass_and_passes_calcifications_over(tmp_path):
    names = ["Mass", " MASS ", "Mass 1", "mass_2", "Espiculated Region", "Assymetry", "Distortion", "Massive", ""]
    names += ["Calcification", "Calcifications", "Cluster", "Point 3", "microcalcification"]
    regions = [{"Name": name, "Point_px": [f"({n}, 1)", "(20, 2)", "(30, 3)"]} for n, name in enumerate(names)]
    inbreast(tmp_path, regions, image=IMAGE)
    found = listed("inbreast", tmp_path)
    assert [one.name for one in taken(found)] == [f"20586908 {n}" for n in range(4)]
    assert reasons(found) == ["other_finding"] * 5


@pytest.mark.parametrize("before", [b"", b"\xef\xbb\xbf", b"\n  "])
@pytest.mark.parametrize(
    "points",
    [
        CORNERS,
        ["(10.5,1)", "(20,2)", "(3.0e1,3)"],
        ["( 1.05e+01 , 1.0 )", "(20., 2)", "(30, 3)"],
        ["(10,5, 1,0)", "(20,0, 2,0)", "(30,0; 3,0)"],
    ],
)
def test_inbreast_points_are_read_as_several_systems_write_them(tmp_path, before, points):
    inbreast(tmp_path, [{"Name": "Mass", "Point_px": points}], image=IMAGE, before=before)
    (found,) = taken(listed("inbreast", tmp_path))
    assert isinstance(found.lesion, Outline)
    assert found.lesion.points.tolist() == [[1, 10.5], [2, 20], [3, 30]]


def test_inbreast_images_are_found_in_subfolders_and_any_case(tmp_path):
    name = "a/20586908_6C613A14B80A8591_MG_R_ML_ANON.DCM"
    inbreast(tmp_path / "INbreast Release 1.0", [{"Name": "Mass", "Point_px": CORNERS}] * 2, image=f"AllDicoms/{name}")
    put(tmp_path / "INbreast Release 1.0", {"AllDicoms/a/._x.dcm": b"x", "AllDicoms/notes.txt": b"x", "INbreast.csv": b"x"})
    found = listed("inbreast", tmp_path)
    assert [(one.patient, one.view, one.label) for one in taken(found)] == [("6c613a14b80a8591", "MLO", None)]
    assert reasons(found) == ["repeated_row"]


def test_inbreast_mass_without_its_mammogram_is_counted(tmp_path):
    inbreast(tmp_path, [{"Name": "Mass", "Point_px": CORNERS}], image=IMAGE)
    inbreast(tmp_path, [{"Name": "Mass", "Point_px": CORNERS}], image=IMAGE, number=7)
    found = listed("inbreast", tmp_path)
    assert (len(taken(found)), reasons(found)) == (1, ["missing_file"])
