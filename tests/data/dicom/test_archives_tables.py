"""Tables beside DICOM files as people save them: separators, encodings, spellings, paths; no pixel is decoded."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import numpy as np
import pytest

from mammo_fed.data.cohort import BENIGN, MALIGNANT
from mammo_fed.data.dicom.archives.registry import SOURCES
from mammo_fed.data.dicom.findings import Box, Finding, Masks, Outline, SkippedFinding
from mammo_fed.errors import DataError

HEADER = "file,patient,label,top,left,bottom,right"


def listed(root: Path, content: str | bytes, *files: str) -> list[Finding | SkippedFinding]:
    for name in files or ("a.dcm",):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())
    (root / "findings.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    return list(SOURCES["csv"](root))


def only(root: Path, content: str | bytes, *files: str) -> Finding:
    (found,) = listed(root, content, *files)
    assert isinstance(found, Finding), found
    return found


@pytest.mark.parametrize(
    "content",
    [
        f"{HEADER}\na.dcm,p,1,1,2,30,40\n".encode("utf-8-sig"),
        f"{HEADER}\r\na.dcm,p,1,1,2,30,40\r\n".encode("utf-16"),
        f"{HEADER}\ra.dcm,p,1,1,2,30,40\r".encode(),
        f"{HEADER}\n\n\na.dcm,p,1,1,2,30,40\n\n".encode(),
        HEADER.replace(",", ";").encode() + b"\na.dcm;p;1;1;2;30;40\n",
        HEADER.replace(",", "\t").encode() + b"\na.dcm\tp\t1\t1\t2\t30\t40\n",
        b"sep=;\r\n" + HEADER.replace(",", ";").encode() + b"\r\na.dcm;p;1;1;2;30;40\r\n",
        f"{HEADER},,,\na.dcm,p,1,1,2,30,40,,,\n,,,,,,,,,\n".encode(),
        f"{HEADER}\na.dcm,p,1,1,2,30,40,,,\n".encode(),
        f" {HEADER.upper().replace(',', ' , ')} \na.dcm, p ,1, 1,2 ,30,40\n".encode(),
        b'"file","patient","label","top","left","bottom","right"\n"a.dcm","p","1","1","2","30","40"\n',
        f",{HEADER}\n0,a.dcm,p,1.0,1.0,2.0,30.0,40.0\n".encode(),
        f"Unnamed: 0,{HEADER}\n0,a.dcm,p,MALIGNANT,1,2,3e1,40\n".encode(),
        f"{HEADER}\na.dcm,p,malign,30,40,1,2\n".encode(),
    ],
    ids=[
        "byte-order-mark",
        "utf-16",
        "old-mac-line-ends",
        "blank-lines",
        "semicolons",
        "tabs",
        "sep-line",
        "empty-columns",
        "empty-values-beyond",
        "case-and-blanks",
        "all-quoted",
        "data-frame-index",
        "data-frame-index-read-again",
        "flipped-corners",
    ],
)
def test_table_is_read_however_a_spreadsheet_saved_it(tmp_path, content):
    found = only(tmp_path, content)
    assert (found.lesion, found.label, found.patient) == (Box(top=1, left=2, bottom=30, right=40), MALIGNANT, "p")


def test_table_with_semicolons_has_decimal_commas(tmp_path):
    header = "file;patient;label;top;left;bottom;right;contour"
    box, pairs, decimals, odd = listed(
        tmp_path,
        f"{header}\na.dcm;p;0;1,5;2;30,25;40;\na.dcm;p;0;;;;;1,2 3,40 50,6\n"
        "a.dcm;p;0;;;;;1,5,2,25 3,0,40,5 50,0,6,0\na.dcm;p;0;;;;;1,5,2 3,40 50,6\n",
    )
    assert isinstance(box, Finding)
    assert isinstance(pairs, Finding)
    assert isinstance(decimals, Finding)
    assert box.lesion == Box(top=1.5, left=2, bottom=30.25, right=40)
    assert isinstance(pairs.lesion, Outline)
    assert isinstance(decimals.lesion, Outline)
    assert pairs.lesion.points.tolist() == [[1, 2], [3, 40], [50, 6]]
    assert decimals.lesion.points.tolist() == [[1.5, 2.25], [3, 40.5], [50, 6]]
    assert isinstance(odd, SkippedFinding)
    assert odd.reason == "unusable_row"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (f"{HEADER}\na.dcm,J\xfcrgen,1,1,2,30,40\n".encode("cp1252"), "is not UTF-8.*save it as CSV in UTF-8"),
        (f"{HEADER}\na.dcm,p,1,1,2,30,40\n".encode("utf-16-le"), "no text in UTF-8.*save it as CSV in UTF-8"),
        (b"PK\x03\x04\x14\x00", "is a spreadsheet.*save it as CSV in UTF-8"),
        (b"", "has no column 'file'"),
        (b"file,patient\na.dcm,p\n", "has no column 'label'"),
        (f"{HEADER},Top\na.dcm,p,1,1,2,30,40,1\n".encode(), "'top' twice"),
        (f"{HEADER},lable\n".encode(), "unknown column 'lable'"),
    ],
)
def test_table_that_is_none_is_refused_with_its_remedy(tmp_path, content, said):
    with pytest.raises(DataError, match=said):
        listed(tmp_path, content)


def test_what_joined_and_copied_tables_have_around_their_values_is_not_seen(tmp_path):
    content = f"{HEADER}\na.dcm\u200b,p\xa0,malignant\ufeff,1,2,30,40\n\ufeff{HEADER}\n\ufeffa.dcm,q,0,1,2,30,40\n\x1a"
    first, second = listed(tmp_path, content)
    assert isinstance(first, Finding)
    assert isinstance(second, Finding)
    assert [(one.patient, one.label, one.image.name) for one in (first, second)] == [
        ("p", MALIGNANT, "a.dcm"),
        ("q", BENIGN, "a.dcm"),
    ]


@pytest.mark.parametrize("corners", ["1,5;2.25;30;40", "1.234,5;2;30;40", "1e400;2;30;40", "1,234,5;2;30;40", "1;2;30;4O"])
def test_number_that_may_mean_two_is_refused(tmp_path, corners):
    (found,) = listed(tmp_path, f"{HEADER.replace(',', ';')}\na.dcm;p;0;{corners}\n")
    assert isinstance(found, SkippedFinding)
    assert found.reason == "unusable_row"


def test_row_that_holds_no_text_is_refused_alone(tmp_path):
    first, second = listed(tmp_path, f"{HEADER}\na.dcm,p\0,1,1,2,30,40\na.dcm,p,1,1,2,30,40\n")
    assert isinstance(first, SkippedFinding)
    assert isinstance(second, Finding)


@pytest.mark.parametrize("name", ["Findings.CSV", "findings.tsv", "FINDINGS.txt"])
def test_table_is_found_by_another_case_or_suffix(tmp_path, name):
    listed(tmp_path, f"{HEADER}\na.dcm,p,1,1,2,30,40\n")
    (tmp_path / "findings.csv").rename(tmp_path / name)
    assert len(list(SOURCES["csv"](tmp_path))) == 1


def test_table_that_is_a_spreadsheet_only_is_to_be_saved_as_csv(tmp_path):
    (tmp_path / "findings.xlsx").write_bytes(b"PK")
    with pytest.raises(DataError, match=r"only as a spreadsheet; save it as findings\.csv"):
        list(SOURCES["csv"](tmp_path))
    (tmp_path / "findings.xlsx").unlink()
    with pytest.raises(DataError, match="does not exist"):
        list(SOURCES["csv"](tmp_path))


def test_errors_of_a_table_quote_no_value_of_its_rows(tmp_path):
    for content in (b"DOE,JANE\n12345,1\n", b"file,patient\na.dcm,DOE\n", f"{HEADER}\na.dcm,DO\xcb,1\n".encode("cp1252")):
        with pytest.raises(DataError) as raised:
            listed(tmp_path, content)
        assert "DO" not in str(raised.value).replace(str(tmp_path), "")


def test_quote_that_is_never_closed_costs_its_own_row(tmp_path):
    rows = ["a.dcm,p,1,1,2,30,40", 'a.dcm,"p,1,1,2,30,40', "a.dcm,q,1,1,2,30,40", 'a.dcm,r",1,1,2,30,40', "a.dcm,s,0,1,2,30,40"]
    found = listed(tmp_path, "\n".join([HEADER, *rows]))
    assert [one.patient for one in found if isinstance(one, Finding)] == ["p", "q", 'r"', "s"]
    assert [one.reason for one in found if isinstance(one, SkippedFinding)] == ["unusable_row"]


def test_value_that_slipped_into_a_nameless_column_is_refused(tmp_path):
    (found,) = listed(tmp_path, f"{HEADER},,\na.dcm,p,1,1,2,30,40,50,\n")
    assert isinstance(found, SkippedFinding)
    assert found.reason == "unusable_row"


def test_row_that_stands_twice_is_a_repeated_one_with_or_without_a_name(tmp_path):
    row = "a.dcm,p,1,1,2,30,40"
    first, second, other = listed(tmp_path, f"{HEADER}\n{row}\n{row} \na.dcm,p,1,1,2,30,41\n")
    assert isinstance(first, Finding)
    assert isinstance(second, SkippedFinding)
    assert isinstance(other, Finding)
    assert second.reason == "repeated_row"
    named = listed(tmp_path, f"{HEADER},name\n{row},x\n{row},x\n{row},y\n")
    assert [type(one) for one in named] == [Finding, SkippedFinding, Finding]
    assert len({one.name for one in named}) == 3


@pytest.mark.parametrize(
    ("word", "label"),
    [("Malignant", MALIGNANT), ("MALIGN", MALIGNANT), ("1.0", MALIGNANT), ("BENIGN", BENIGN), ("0.0", BENIGN), ("", None)],
)
def test_label_is_read_in_any_case(tmp_path, word, label):
    assert only(tmp_path, f"{HEADER}\na.dcm,p,{word},1,2,30,40\n").label == label


@pytest.mark.parametrize(
    ("word", "view"),
    [("CC", "CC"), ("cc", "CC"), ("LCC", "CC"), ("R-MLO", "MLO"), ("L CC", "CC"), ("MLO_R", "MLO"), ("Left CC", "CC")]
    + [("cranio-caudal", "CC"), ("Medio-Lateral Oblique", "MLO"), ("RCCID", "CC")]
    + [(word, "") for word in ("", "ML", "LM", "LMO", "XCCL", "RXCCM", "FB", "SIO", "spot", "L CC spot", "MLO mag", "LAT")],
)
def test_view_is_read_as_people_write_it(tmp_path, word, view):
    assert only(tmp_path, f"{HEADER},view\na.dcm,p,1,1,2,30,40,{word}\n").view == view


@pytest.mark.parametrize(
    ("word", "split"), [("Train", "train"), ("TEST", "test"), ("validation", "val"), ("training", "train")]
)
def test_split_is_read_in_any_case(tmp_path, word, split):
    assert only(tmp_path, f"{HEADER},split\na.dcm,p,1,1,2,30,40,{word}\n").split == split


@pytest.mark.parametrize(
    ("said", "there"),
    [
        ("sub\\a.dcm", "sub/a.dcm"),
        (".\\Sub\\A.DCM", "sub/a.dcm"),
        ("./sub//a.dcm", "sub/a.dcm"),
        ("sub/a.dcm", "Sub/A.DCM"),
        ("sub/a", "sub/a.dcm"),
        ("sub/a.dcm", "sub/a"),
        ("sub/a.dcm", "sub/a.DICOM"),
        ("sub/1.2.3", "sub/1.2.3.dcm"),
        ("sub/a.tif", "sub/A.TIFF"),
        (unicodedata.normalize("NFC", "Müller/é.dcm"), unicodedata.normalize("NFD", "Müller/é.dcm")),
    ],
)
def test_file_is_found_as_the_table_spells_it(tmp_path, said, there):
    assert only(tmp_path, f"{HEADER}\n{said},p,1,1,2,30,40\n", there).image == (tmp_path / there).resolve()


def test_spelling_of_several_files_is_refused_unless_one_is_exactly_so(tmp_path):
    files = ("sub/a.dcm", "sub/A.DCM", "sub/b.dcm", "sub/b.dicom", "sub/c.tif", "sub/._c.dcm")
    rows = [f"sub/{name},p,1,1,2,30,40" for name in ("a.dcm", "a.Dcm", "b", "c.dcm", "c")]
    exact, case, suffix, other_kind, bare = listed(tmp_path, "\n".join([HEADER, *rows]), *files)
    assert isinstance(exact, Finding)
    assert [one.reason for one in (case, suffix, other_kind) if isinstance(one, SkippedFinding)] == [
        "unusable_row",
        "unusable_row",
        "missing_file",
    ]
    assert isinstance(bare, Finding)
    assert bare.image.name == "c.tif"


def test_box_knows_the_size_of_the_image_that_it_was_drawn_on(tmp_path):
    header = f"{HEADER},rows,columns,contour"
    rows = ["a.dcm,p,1,1,2,30,40,100,80.0,", 'a.dcm,p,1,,,,,100,80,"1,2 3,4 5,6"', "a.dcm,p,1,1,2,30,40,,,"]
    box, contour, plain = listed(tmp_path, "\n".join([header, *rows]))
    for one, drawn_on in ((box, (100, 80)), (contour, (100, 80)), (plain, None)):
        assert isinstance(one, Finding)
        assert isinstance(one.lesion, Box | Outline)
        assert one.lesion.drawn_on == drawn_on
    for sizes in ("100,", ",80", "0,80", "1.5,80", "x,80"):
        (refused,) = listed(tmp_path, f"{HEADER},rows,columns\na.dcm,p,1,1,2,30,40,{sizes}\n")
        assert isinstance(refused, SkippedFinding)
        assert refused.reason == "unusable_row"


def test_annotation_is_a_dicom_file_and_a_region_of_it(tmp_path):
    rows = ["a.dcm,p,1,seg.dcm,,2.0", "a.dcm,p,1,,seg,tumour", "a.dcm,p,1,seg.dcm,seg.dcm,"]
    number, label, both = listed(tmp_path, "\n".join(["file,patient,label,annotation,mask,region", *rows]), "a.dcm", "seg.dcm")
    for one, region in ((number, "2"), (label, "tumour")):
        assert isinstance(one, Finding)
        assert one.lesion == Masks(candidates=((tmp_path / "seg.dcm").resolve(),), region=region)
    assert isinstance(both, SkippedFinding)
    assert both.reason == "unusable_row"


def test_large_table_of_broken_quotes_is_read_in_time(tmp_path):
    found = listed(tmp_path, HEADER + "\n" + 'a.dcm,"p,1,1,2,30,40\n' * 4000 + "a.dcm,q,1,1,2,30,40\n")
    assert len(found) == 4001
    assert isinstance(found[-1], Finding)
    assert np.isfinite(found[-1].lesion.top)  # type: ignore[union-attr]
