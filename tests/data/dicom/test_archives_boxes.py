"""VinDr-Mammo and EMBED beside their DICOM files: which rows are masses, whose they are and what their labels say."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from mammo_fed.data.cohort import BENIGN, MALIGNANT
from mammo_fed.data.dicom.archives.registry import SOURCES
from mammo_fed.data.dicom.findings import Box, Finding, SkippedFinding
from mammo_fed.errors import DataError

VINDR = (
    "study_id,series_id,image_id,laterality,view_position,height,width,breast_birads,breast_density,finding_categories,"
    "finding_birads,xmin,ymin,xmax,ymax,split"
)


def taken(found: Sequence[Finding | SkippedFinding]) -> list[Finding]:
    return [one for one in found if isinstance(one, Finding)]


def reasons(found: Sequence[Finding | SkippedFinding]) -> list[str]:
    return [one.reason for one in found if isinstance(one, SkippedFinding)]


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def vindr(root: Path, *rows: str) -> list[Finding | SkippedFinding]:
    (root / "finding_annotations.csv").write_text("\n".join([VINDR, *rows]) + "\n")
    return list(SOURCES["vindr_mammo"](root))


def row(kinds: str, *, image: str = "i1", box: str = "10,20,30.5,40", split: str = "training", size: str = "3518,2800") -> str:
    return f's1,e1,{image},L,MLO,{size},BI-RADS 4,DENSITY C,"{kinds}",BI-RADS 4,{box},{split}'


def test_vindr_masses_have_boxes_on_their_image_and_no_label(tmp_path):
    touch(tmp_path, "images/s1/i1.dicom", "images/s1/i2.DCM")
    rows = [
        row("['Mass']"),
        row("['Skin Retraction', 'Mass']", image="i2", split="test"),
        row("['No Finding']", box=",,,"),
        row("['Suspicious Calcification']"),
        row("['Focal Asymmetry']"),
    ]
    found = vindr(tmp_path, *rows)
    first, second = taken(found)
    assert (first.lesion, first.patient, first.label) == (
        Box(top=20, left=10, bottom=40, right=30.5, drawn_on=(3518, 2800)),
        "s1",
        None,
    )
    assert [(one.image.name, one.split, one.view) for one in (first, second)] == [
        ("i1.dicom", "train", "MLO"),
        ("i2.DCM", "test", "MLO"),
    ]
    assert reasons(found) == ["other_finding"]


def test_vindr_rows_that_cannot_be_used_are_refused_one_by_one(tmp_path):
    touch(tmp_path, "images/s1/i1.dicom")
    rows = [
        row("['Mass']"),
        row("['Mass']"),
        row("['Mass']", image="i9"),
        row("['Mass']", box="10,20,,40"),
        row("['Mass']", split="all"),
        row("['Mass']", size="0,2800"),
        row("['Mass']", image="../s1/i1"),
        row(""),
        "s1,e1",
    ]
    found = vindr(tmp_path, *rows)
    assert len(taken(found)) == 1
    assert reasons(found) == ["repeated_row", "missing_file", *["unusable_row"] * 6]


def test_vindr_without_its_table_is_refused(tmp_path):
    with pytest.raises(DataError, match="holds 0 tables finding_annotations"):
        list(SOURCES["vindr_mammo"](tmp_path))


CLINICAL = "empi_anon,acc_anon,numfind,side,massshape,calcfind,bside,path_severity"
IMAGES = "Unnamed: 0,empi_anon,acc_anon,anon_dicom_path,ImageLateralityFinal,ViewPosition,FinalImageType,num_roi,ROI_coords"


def embed(root: Path, findings: Sequence[str], images: Sequence[str]) -> list[Finding | SkippedFinding]:
    touch(root, "images/cohort_1/1/10/a.dcm", "images/cohort_1/1/10/b.dcm")
    (root / "tables").mkdir(exist_ok=True)
    (root / "tables/EMBED_OpenData_clinical_reduced.csv").write_text("\n".join([CLINICAL, *findings]) + "\n")
    (root / "tables/EMBED_OpenData_metadata_reduced.csv").write_text("\n".join([IMAGES, *images]) + "\n")
    return list(SOURCES["embed"](root))


def image(
    *,
    file: str = "a",
    side: str = "L",
    kind: str = "2D",
    count: str = "1",
    regions: str = "((1, 2, 30, 40),)",
    patient: str = "1",
) -> str:
    return f'0,{patient},10,/mnt/NAS/anon/cohort_1/1/10/{file}.dcm,{side},CC,{kind},{count},"{regions}"'


def test_embed_regions_of_masses_have_the_label_of_their_pathology(tmp_path):
    regions = "((1, 2, 30, 40), (5, 6, 70, 80))"
    found = embed(
        tmp_path,
        ["1,10,1,L,O,,L,4.0", "1,10,1,L,O,,L,1.0", "1,10,2,R,X,A,,", "1,10,3,R,,,,", "1,11,1,L,,C,,0"],
        [image(count="2.0", regions=regions), image(file="b", side="R"), image(count="0", regions="()"), image(count="")],
    )
    first, second, third = taken(found)
    assert (first.lesion, second.lesion) == (Box(top=1, left=2, bottom=30, right=40), Box(top=5, left=6, bottom=70, right=80))
    assert [(one.label, one.patient, one.view, one.split) for one in (first, second, third)] == [
        (MALIGNANT, "1", "CC", "train"),
        (MALIGNANT, "1", "CC", "train"),
        (None, "1", "CC", "train"),
    ]
    assert len(found) == 3


@pytest.mark.parametrize(
    ("findings", "reason"),
    [
        ([], "other_finding"),
        (["1,10,1,L,,C,L,0"], "other_finding"),
        (["1,10,1,L,A,,L,0"], "other_finding"),
        (["1,10,1,R,O,,R,0"], "other_finding"),
        (["1,10,1,L,O,,L,4", "1,10,2,L,,C,L,0"], "unusable_row"),
        (["1,10,1,L,O,,L,4", "1,10,2,L,R,,L,0"], "unusable_row"),
        (["1,10,1,L,O,,L,4", "1,10,2,L,R,,,"], "unusable_row"),
        (["1,10,1,L,O,,L,2"], "unknown_label"),
        (["1,10,1,L,O,,L,4", "1,10,1,L,O,,L,6"], "unknown_label"),
    ],
)
def test_embed_region_of_which_nobody_can_say_what_it_is_has_a_reason(tmp_path, findings, reason):
    found = embed(tmp_path, findings, [image()])
    assert (taken(found), reasons(found)) == ([], [reason])


@pytest.mark.parametrize(
    ("findings", "label"),
    [
        (["1,10,1,B,O,,L,0"], MALIGNANT),
        (["1,10,1,,O,,L,5"], BENIGN),
        (["1,10,1,B,O,,R,0"], None),
        (["1,10,1,L,G,,,nan"], None),
        (["1,10,1,L,O,,L,0", "1,10,2,L,R,,L,1"], MALIGNANT),
    ],
)
def test_embed_pathology_counts_for_the_breast_that_it_is_of(tmp_path, findings, label):
    (found,) = embed(tmp_path, findings, [image()])
    assert isinstance(found, Finding)
    assert found.label == label


def test_embed_images_that_cannot_be_used_are_refused_one_by_one(tmp_path):
    rows = [
        image(),
        image(),
        image(kind="C-view", file="f"),
        image(kind="ROI_SSC", file="b"),
        image(side="", file="c"),
        image(count="2", file="d"),
        image(count="x"),
        image(file="e"),
        image(file="../../b"),
    ]
    found = embed(tmp_path, ["1,10,1,L,O,,L,4", "1,10,1,Q,O,,L,4", "1,10"], rows)
    assert len(taken(found)) == 1
    assert reasons(found) == [
        "unusable_row",
        "unusable_row",
        "repeated_row",
        "synthetic_view",
        "other_finding",
        "no_side",
        "unreadable_annotation",
        "unusable_row",
        "missing_file",
        "unusable_row",
    ]


def test_embed_without_a_table_is_refused(tmp_path):
    with pytest.raises(DataError, match="no EMBED_OpenData_clinical"):
        list(SOURCES["embed"](tmp_path))
