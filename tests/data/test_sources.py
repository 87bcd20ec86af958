"""Every source gives the same typed cohort; wrong labels, doubled patients and missing folders are refused by name."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mammo_fed.data.cohort import BENIGN, MALIGNANT, Cohort
from mammo_fed.data.run_cohorts import check_disjoint
from mammo_fed.data.sources.csv_table import read_csv
from mammo_fed.data.sources.image_folder import read_image_folder
from mammo_fed.data.sources.mammo_dp import available_splits, read_mammo_dp, read_mammo_dp_synthetic
from mammo_fed.errors import DataError, InvalidSetting

CBIS = Path("dataset16062024", "cbis-ddsm")
BCDR = Path("dataset16062024", "bcdr", "test")
SYNTHETIC = Path("extension", "synthetic_data", "cbis-ddsm", "c-dcgan")


def draw(path: Path, value: int = 0, side: int = 4) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (side, side), value).save(path)
    return path


def draw_split(folder: Path, *masses: tuple[str, str, str, int]) -> None:
    """One patch per (patient, image, mass, label), its grey value the position in the list."""
    for class_folder in ("is_benign_false", "is_benign_true"):
        (folder / class_folder).mkdir(parents=True, exist_ok=True)
    for value, (patient, image, mass, label) in enumerate(masses):
        benign = int(label == BENIGN)
        name = f"patient{patient}_image{image}_mass{mass}_is_benign_{benign}.png"
        draw(folder / f"is_benign_{'true' if benign else 'false'}" / name, value)


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    root = tmp_path / "mammo_dp"
    draw_split(
        root / CBIS / "train",
        ("cbis-ddsm__P_00009", "1855", "6", MALIGNANT),
        ("cbis-ddsm__P_00004", "4107", "4", BENIGN),
        ("cbis-ddsm__P_00004", "4107", "5", MALIGNANT),
        ("cbis-ddsm__P_00004", "2953", "3", BENIGN),
    )
    draw_split(root / CBIS / "val", ("cbis-ddsm__P_00001", "3423", "0", MALIGNANT), ("cbis-ddsm__P_00002", "1", "1", BENIGN))
    return root


def columns(cohort: Cohort) -> list[tuple[object, ...]]:
    names = ("labels", "patients", "images", "views", "splits")
    return list(zip(*(getattr(cohort, name).tolist() for name in names), strict=True))


def test_a_split_is_read_with_patients_labels_and_one_row_per_mass(clone):
    cohort = read_mammo_dp(clone, split="train")
    assert (cohort.name, cohort.public, cohort.image_size, cohort.num_patients) == ("cbis-ddsm-train", True, (4, 4), 2)
    assert columns(cohort) == [
        (BENIGN, "cbis-ddsm__P_00004", "cbis-ddsm__P_00004/image2953/mass3", "", "train"),
        (BENIGN, "cbis-ddsm__P_00004", "cbis-ddsm__P_00004/image4107/mass4", "", "train"),
        (MALIGNANT, "cbis-ddsm__P_00004", "cbis-ddsm__P_00004/image4107/mass5", "", "train"),
        (MALIGNANT, "cbis-ddsm__P_00009", "cbis-ddsm__P_00009/image1855/mass6", "", "train"),
    ]
    np.testing.assert_array_equal(cohort.pixels[:, 0, 0], np.array([3, 1, 2, 0], np.float32) / np.float32(255))


def test_the_external_set_is_read_from_bcdr(clone):
    draw_split(clone / BCDR, ("bcdr__1000", "1124", "1546", MALIGNANT), ("bcdr__1000", "1124", "1548", BENIGN))
    cohort = read_mammo_dp(clone, split="external")
    assert (cohort.name, set(cohort.splits.tolist()), cohort.num_patients) == ("bcdr-external", {"external"}, 1)


@pytest.mark.parametrize("patient", ["bcdr__1000", "P.7-b+c", "Müller 3", "42", "a_image_b"])
def test_identifiers_may_hold_any_letters(clone, patient):
    draw_split(clone / BCDR, (patient, "5_image", "m_1", MALIGNANT), (patient, "5_image", "m_2", BENIGN))
    cohort = read_mammo_dp(clone, split="external")
    assert cohort.num_patients == 1
    assert len(cohort) == 2


def test_available_splits_say_what_the_clone_holds(clone):
    assert available_splits(clone) == ("train", "val")
    draw_split(clone / BCDR)
    draw_split(clone / CBIS / "test")
    assert available_splits(clone) == ("train", "val", "test", "external")


def test_an_absent_split_is_named_with_what_is_there_and_the_remedy(clone):
    with pytest.raises(DataError, match=r"bcdr.test does not exist; expected the external split .*train, val.*MAMMO_DP_ROOT"):
        read_mammo_dp(clone, split="external")


@pytest.mark.parametrize("read", [available_splits, lambda root: read_mammo_dp(root, split="val"), read_mammo_dp_synthetic])
def test_a_root_that_is_no_clone_is_named_with_the_remedy(tmp_path, read):
    with pytest.raises(DataError, match=r"absent does not exist; expected a clone of .*MAMMO_DP_ROOT or data\.root="):
        read(tmp_path / "absent")
    with pytest.raises(DataError, match=r"does not exist; expected \w+/ inside the clone; .*MAMMO_DP_ROOT"):
        read(tmp_path)


def test_a_missing_or_empty_class_folder_is_refused(clone):
    folder = clone / CBIS / "val" / "is_benign_true"
    for path in folder.iterdir():
        path.unlink()
    with pytest.raises(DataError, match=r"is_benign_true has no images; expected files patient<ID>.*MAMMO_DP_ROOT"):
        read_mammo_dp(clone, split="val")
    folder.rmdir()
    with pytest.raises(DataError, match=r"is_benign_true does not exist; expected files patient<ID>"):
        read_mammo_dp(clone, split="val")


def test_a_name_that_contradicts_its_folder_is_refused(clone):
    draw(clone / CBIS / "val" / "is_benign_true" / "patientA_image1_mass1_is_benign_0.png")
    with pytest.raises(DataError, match="the name says is_benign_0, its folder is_benign_true"):
        read_mammo_dp(clone, split="val")


@pytest.mark.parametrize(
    "name",
    [
        "patientA_image1_mass1_is_benign_2.png",
        "patientA_image1_mass1_is_benign_true.png",
        "patientA_image1_mass1.png",
        "patientA_mass1_is_benign_1.png",
        "patient_image1_mass1_is_benign_1.png",
        "copy of patientA_image1_mass1_is_benign_1.png",
        "patientA_image1_mass1_is_benign_1 (1).png",
    ],
)
def test_a_name_outside_the_pattern_is_refused(clone, name):
    draw(clone / CBIS / "val" / "is_benign_true" / name)
    with pytest.raises(DataError, match="breaks the pattern"):
        read_mammo_dp(clone, split="val")


def test_one_mass_in_both_classes_is_refused(clone):
    draw_split(clone / CBIS / "val", ("A", "1", "1", MALIGNANT), ("A", "1", "1", BENIGN))
    with pytest.raises(DataError, match="are both image A/image1/mass1"):
        read_mammo_dp(clone, split="val")


def test_other_files_are_refused_but_not_what_desktops_leave(clone):
    folder = clone / CBIS / "val" / "is_benign_true"
    for name in (".DS_Store", "Thumbs.db"):
        (folder / name).touch()
    assert len(read_mammo_dp(clone, split="val")) == 2
    (folder / "scan.jpg").touch()
    with pytest.raises(DataError, match=r"scan\.jpg is not a \.png file"):
        read_mammo_dp(clone, split="val")


def test_an_unknown_class_folder_is_refused(clone):
    (clone / CBIS / "val" / "is_benign_unknown").mkdir()
    with pytest.raises(DataError, match="unknown class is_benign_unknown"):
        read_mammo_dp(clone, split="val")


def test_an_unknown_split_is_refused(clone):
    with pytest.raises(InvalidSetting, match="split='all' must be one of train, val, test, external"):
        read_mammo_dp(clone, split="all")


def test_a_patient_in_two_splits_is_found_across_cohorts(clone):
    draw_split(clone / CBIS / "test", ("cbis-ddsm__P_00009", "7", "7", MALIGNANT), ("new", "8", "8", BENIGN))
    train, val, test = (read_mammo_dp(clone, split=split) for split in ("train", "val", "test"))
    check_disjoint([train, val])
    check_disjoint([train, train])
    with pytest.raises(DataError, match=r"P_00009' is in cbis-ddsm-train \(train\) and in cbis-ddsm-test \(test\)"):
        check_disjoint([train, val, test])


def test_synthetic_images_are_patients_of_their_own(clone):
    for name in ("batch_0_0_malignant", "batch_0_10_malignant", "batch_1_0_benign"):
        draw(clone / SYNTHETIC / f"{name}.png")
    cohort = read_mammo_dp_synthetic(clone)
    assert (cohort.name, cohort.public, cohort.num_patients) == ("c-dcgan", True, 3)
    assert columns(cohort)[2] == (BENIGN, "c-dcgan/batch_1_0_benign", "c-dcgan/batch_1_0_benign", "", "train")
    assert cohort.labels.tolist() == [MALIGNANT, MALIGNANT, BENIGN]


def test_a_folder_may_number_its_classes_alike(tmp_path):
    for label in ("benign", "malignant"):
        draw(tmp_path / "mine" / f"7_{label}.png")
    cohort = read_image_folder(tmp_path / "mine", public=False)
    assert (cohort.name, cohort.public, cohort.labels.tolist()) == ("mine", False, [BENIGN, MALIGNANT])
    assert read_image_folder(tmp_path / "mine", public=False, name="own").images[0] == "own/7_benign"


@pytest.mark.parametrize("name", ["7.png", "7_Benign.png", "benign.png", "7_benign_malign.png", "7benign.png"])
def test_a_synthetic_name_without_its_class_is_refused(tmp_path, name):
    draw(tmp_path / "mine" / name)
    with pytest.raises(DataError, match=r"must end in _malignant\.png or _benign\.png"):
        read_image_folder(tmp_path / "mine", public=True)


def test_an_empty_synthetic_folder_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"has no images; expected files .*synthesis\.source"):
        read_image_folder(tmp_path, public=True)


def write_table(folder: Path, text: str, *, encoding: str = "utf-8") -> Path:
    for name in ("a", "b", "c", "sub/d"):
        draw(folder / f"{name}.png")
    table = folder / "site.csv"
    table.write_bytes(text.encode(encoding))
    return table


FULL = """patient,image,label,view,split
P1,b.png,malignant,CC,train
P1, a.png ,0,MLO,train

P2,sub/d.png,benign,,val
P3,c.png,1,CC,val
"""


def test_a_table_is_read_with_its_views_and_splits(tmp_path):
    cohort = read_csv(write_table(tmp_path, FULL), split=None, public=False)
    assert (cohort.name, cohort.public) == ("site", False)
    assert columns(cohort) == [
        (BENIGN, "P1", "a.png", "MLO", "train"),
        (MALIGNANT, "P1", "b.png", "CC", "train"),
        (MALIGNANT, "P3", "c.png", "CC", "val"),
        (BENIGN, "P2", "sub/d.png", "", "val"),
    ]


def test_one_split_of_a_table_can_be_read(tmp_path):
    table = write_table(tmp_path, FULL)
    cohort = read_csv(table, split="val", public=True)
    assert (cohort.name, cohort.images.tolist()) == ("site-val", ["c.png", "sub/d.png"])
    with pytest.raises(DataError, match=r"no rows of split test \(splits that are there: train, val\)"):
        read_csv(table, split="test", public=True)
    with pytest.raises(InvalidSetting, match="split='validation' must be one of"):
        read_csv(table, split="validation", public=True)


def test_a_table_without_optional_columns_is_a_training_set(tmp_path):
    table = write_table(tmp_path, "label,patient,image\r\n1,P1,a.png\r\n0,P2,b.png\r\n", encoding="utf-8-sig")
    assert columns(read_csv(table, split="train", public=False)) == [
        (MALIGNANT, "P1", "a.png", "", "train"),
        (BENIGN, "P2", "b.png", "", "train"),
    ]


@pytest.mark.parametrize("label", ["", "Malignant", "2", "-1", "1.0", "true", "BENIGN_WITHOUT_CALLBACK"])
def test_an_odd_label_is_refused_with_row_and_value(tmp_path, label):
    table = write_table(tmp_path, f"patient,image,label\nP1,a.png,1\nP2,b.png,{label}\n")
    with pytest.raises(DataError, match=rf"row 3: label='{label}' must be malignant, benign, 1 or 0"):
        read_csv(table, split=None, public=False)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (",a.png,1,CC,train", "row 2: patient is empty"),
        ("P1,a.png,1,LCC,train", "row 2: view='LCC' must be CC, MLO or empty"),
        ("P1,a.png,1,CC,", "row 2: split='' must be one of"),
        ("P1,a.png,1,CC,holdout", "row 2: split='holdout' must be one of"),
        ("P1,a.png,1,CC", "row 2 has 4 values, the header 5"),
        ("P1,a.png,1,CC,train,x", "row 2 has 6 values, the header 5"),
        ("P1,absent.png,1,CC,train", "row 2: image='absent.png' does not exist"),
        ("P1,,1,CC,train", "row 2: image='' must be a path"),
        ('P1,"a.png,1,CC,train', "not a well-formed CSV"),
        ("P1,a.png,1,CC,train\nP1,b.png,1,CC,test", "rows 2 and 3: one patient is in splits train and test"),
        ("P1,a.png,1,CC,train\nP1,./a.png,1,CC,train", "are both image a.png"),
    ],
)
def test_a_bad_row_is_named(tmp_path, row, said):
    table = write_table(tmp_path, f"patient,image,label,view,split\n{row}\n")
    with pytest.raises(DataError) as caught:
        read_csv(table, split="train", public=False)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ("patient;image;label", "no column patient"),
        ("", "no column patient"),
        ("patient,image,label,splt", "unknown column 'splt'"),
        ("patient,image,label,label", "names a column twice"),
    ],
)
def test_a_bad_header_is_named(tmp_path, header, said):
    with pytest.raises(DataError, match=said):
        read_csv(write_table(tmp_path, f"{header}\nP1,a.png,1\n"), split=None, public=False)


def test_a_path_out_of_the_tables_folder_is_refused(tmp_path):
    outside = draw(tmp_path / "outside" / "x.png")
    folder = tmp_path / "site"
    draw(folder / "sub" / "d.png")
    (folder / "link.png").symlink_to(outside)
    (folder / "linked").symlink_to(outside.parent)
    for image in ("../outside/x.png", "sub/../d.png", str(outside), "link.png", "linked/x.png"):
        table = write_table(folder, f"patient,image,label\nP1,{image},1\n")
        with pytest.raises(DataError, match=r"row 2: image=.*(without \.\.|link out of the table's folder)"):
            read_csv(table, split=None, public=False)


def test_a_link_inside_the_tables_folder_is_followed_to_one_image(tmp_path):
    table = write_table(tmp_path, "patient,image,label\nP1,a.png,1\nP2,again.png,1\n")
    (tmp_path / "again.png").symlink_to("a.png")
    with pytest.raises(DataError, match=r"are both image a\.png"):
        read_csv(table, split=None, public=False)


def test_unreadable_tables_are_told_apart(tmp_path):
    with pytest.raises(DataError, match="does not exist; expected a CSV with columns patient, image, label"):
        read_csv(tmp_path / "absent.csv", split=None, public=False)
    with pytest.raises(DataError, match="is not UTF-8"):
        read_csv(write_table(tmp_path, "patient,image,label\nMüller,a.png,1\n", encoding="latin-1"), split=None, public=False)
    with pytest.raises(DataError, match=r"has no rows of split any \(splits that are there: none\)"):
        read_csv(write_table(tmp_path, "patient,image,label\n"), split=None, public=False)
    for image in ("a\0.png", "x" * 5000):
        with pytest.raises(DataError, match=r"row 2: image=|well-formed"):
            read_csv(write_table(tmp_path, f"patient,image,label\nP1,{image},1\n"), split=None, public=False)


@pytest.mark.skipif("MAMMO_DP_ROOT" not in os.environ, reason="MAMMO_DP_ROOT is unset: no clone of RichardObi/mammo_dp")
def test_the_public_clone_has_the_published_counts():
    root = Path(os.environ["MAMMO_DP_ROOT"])
    published = {"train": (1104, 578, 525), "val": (192, 102, 102), "test": (402, 212, None), "external": (1106, 394, None)}
    cohorts = [read_mammo_dp(root, split=split) for split in available_splits(root)]
    assert {"cbis-ddsm-train", "cbis-ddsm-val"} <= {cohort.name for cohort in cohorts}
    for cohort in cohorts:
        images, patients, malignant = published[str(cohort.splits[0])]
        assert (len(cohort), cohort.num_patients) == (images, patients)
        assert malignant in (None, int(cohort.labels.sum()))
    check_disjoint(cohorts)
    synthetic = read_mammo_dp_synthetic(root)
    assert (len(synthetic), synthetic.num_patients, int(synthetic.labels.sum())) == (3000, 3000, 1500)
