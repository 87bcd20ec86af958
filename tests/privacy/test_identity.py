"""Who is one patient: cohorts, pseudonyms and ledgers agree, whatever the spelling, and nobody else compares identifiers."""

import re
import unicodedata
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import mammo_fed
from mammo_fed.audit.gate import largest_move, noiseless
from mammo_fed.cli.main import main
from mammo_fed.data.cohort import Cohort, concatenate, fingerprint
from mammo_fed.data.dicom.findings import Breast, Finding
from mammo_fed.data.partition import fold_rows, partition_rows
from mammo_fed.data.pseudonyms import Pseudonyms
from mammo_fed.data.run_cohorts import check_disjoint, limit_images_per_patient
from mammo_fed.data.sources.csv_table import read_csv
from mammo_fed.errors import DataError, InvalidSetting
from mammo_fed.privacy.events import PrivacyEvent
from mammo_fed.privacy.ledger.chain import LedgerKeys, patient_digests
from mammo_fed.privacy.patient_identity import (
    count_patients,
    is_placeholder,
    loose_identifiers,
    normal_identifier,
    patient_index,
    require_identifier,
    respelt,
)
from mammo_fed.synthesis.real_gradients import real_images
from mammo_fed.training.evaluation import auroc_interval, evaluate_scores
from mammo_fed.training.local import SiteFeatures, release_mean

KEYS = LedgerKeys.derive(bytes(32))
NAMES = Pseudonyms(bytes(32))
# (one spelling, another of the same patient)
SAME = [
    ("DOE JANE", "DOE  JANE"),
    ("P-1", "P-1\u200b"),
    ("P-1", "P\u00ad-1"),
    ("DOE JANE", "DOE\tJANE"),
    ("DOE JANE", "DOE\u00a0JANE"),
    ("DOE JANE", "DOE \u3000 JANE"),
    ("P-1", "\uff30-\uff11"),
    ("P-1", "\ufeffP-1"),
    ("P-1", "\u200eP-1\u200f"),
    ("P-1", "\u2066P-1\u2069"),
    ("P-1", "P\u2060-1"),
    ("P-1", "P-1\ufe0f"),
    ("P-1", "P-1\u034f"),
    ("P-1", "P\x07-1"),
    ("P-1", " p-1 "),
    ("\u00c9MILE", "E\u0301mile"),
    ("STRASSE", "stra\u00dfe"),
    ("\ufb01 1", "FI 1"),
    ("DOE JANE", "doe\u2028jane"),
    ("DOE JANE", "DOE\u0085JANE"),
]
IDS = [ascii(other) for _, other in SAME]


def cohort(patients: list[str], *, public: bool = True, split: str = "train", name: str = "c") -> Cohort:
    count = len(patients)
    pixels = np.random.default_rng(count).random((count, 8, 8)).astype(np.float32)
    return Cohort(
        name=name,
        pixels=pixels,
        labels=np.arange(count) % 2,
        patients=np.array(patients, dtype=np.str_),
        images=np.array([f"{name}-{number:04d}" for number in range(count)]),
        views=np.full(count, ""),
        splits=np.full(count, split),
        public=public,
    )


def unchecked(patients: list[str], monkeypatch: pytest.MonkeyPatch) -> Cohort:
    """A cohort with two spellings of a patient, as a source would give it that no check stands before."""
    with monkeypatch.context() as patch:
        patch.setattr(Cohort, "__post_init__", lambda _: None)
        return cohort(patients)


def cohort_takes_as_one(one: str, other: str) -> bool:
    try:
        return cohort([one, other]).num_patients == 1
    except DataError as error:
        return "one patient in two spellings" in str(error)


def blank(text: str) -> bool:
    return normal_identifier(text) == ""


# Any text, and texts that differ from another in what people do not see.
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
SEEDS = st.text(st.sampled_from("Aa \u00c9\u00dfP1-\u200b\u00ad\t\u00a0\u0301\ufb01\uff21\u0345\u2028\u034f\x00"), max_size=6)


@settings(max_examples=400)
@given(st.tuples(TEXTS, TEXTS) | st.tuples(SEEDS, SEEDS))
def test_identity_of_any_two_texts_is_one_to_cohort_pseudonyms_and_ledger(pair):
    one, other = pair
    if blank(one) or blank(other):
        for refuse, error in (
            (lambda: cohort([one, other]), DataError),
            (lambda: [NAMES.of("patient", text) for text in pair], DataError),
            (lambda: patient_digests(KEYS, pair), InvalidSetting),
        ):
            with pytest.raises(error, match="identifier is blank"):
                refuse()
        return
    ledger = patient_digests(KEYS, [one]) == patient_digests(KEYS, [other])
    assert (NAMES.of("patient", one) == NAMES.of("patient", other)) == ledger
    assert cohort_takes_as_one(one, other) == ledger
    assert (count_patients([one, other]) == 1) == ledger


@given(st.text(st.characters(codec="ascii", exclude_categories=["Cc"])))
def test_identity_of_plain_text_is_what_the_general_rule_gives(text):
    folded = unicodedata.normalize("NFKC", text).casefold()
    assert normal_identifier(text) == " ".join(folded.split())


@pytest.mark.parametrize(("one", "other"), SAME, ids=IDS)
def test_identity_two_spellings_of_a_patient_are_refused_in_one_cohort(one, other):
    with pytest.raises(DataError, match=r"images 2 and 3 are of one patient in two spellings") as caught:
        cohort(["someone", one, other])
    assert one not in str(caught.value)
    whole = cohort([one], name="a")
    with pytest.raises(DataError, match="one patient in two spellings"):
        concatenate([whole, cohort([other], name="b")], name="both")


@pytest.mark.parametrize(("one", "other"), SAME, ids=IDS)
def test_identity_two_spellings_have_one_pseudonym_and_one_digest_in_a_ledger(one, other):
    assert NAMES.of("patient", one) == NAMES.of("patient", other)
    assert patient_digests(KEYS, [one]) == patient_digests(KEYS, [one, other])


@pytest.mark.parametrize(("one", "other"), SAME, ids=IDS)
def test_identity_a_table_with_two_spellings_names_both_rows_and_no_patient(one, other, tmp_path):
    for name in "abc":
        Image.new("L", (8, 8)).save(tmp_path / f"{name}.png")
    quoted = [f'"{text}"' for text in (one, other)]
    lines = ["patient,image,label,split", "Q7,a.png,1,train", f"{quoted[0]},b.png,0,train", f"{quoted[1]},c.png,0,test"]
    (tmp_path / "t.csv").write_text("\n".join(lines), encoding="utf-8")
    # Whichever split is asked for: the whole table is looked at.
    for split in ("train", "test", None):
        with pytest.raises(DataError, match=r"rows 3 and 4 are of one patient") as caught:
            read_csv(tmp_path / "t.csv", split=split, public=False)
        assert "DOE" not in str(caught.value)


@pytest.mark.parametrize("nobody", ["", " ", "\u200b", "\t\u00ad", "\ufeff", "\u2066\u2069", "\x00"], ids=ascii)
def test_identity_that_is_blank_is_refused_everywhere(nobody):
    with pytest.raises(DataError, match="identifier is blank"):
        cohort(["P1", nobody])
    with pytest.raises(DataError, match="identifier is blank"):
        NAMES.of("patient", nobody)
    with pytest.raises(InvalidSetting, match="identifier is blank"):
        patient_digests(KEYS, ["P1", nobody])
    with pytest.raises(DataError, match="identifier is blank"):
        Finding(image=Path("x.dcm"), lesion=Breast(), patient=nobody, name="x", label=1, split="train")


def test_identity_that_cannot_be_encoded_is_refused_with_a_message():
    with pytest.raises(DataError, match="can be encoded"):
        require_identifier("P\ud800", where="row 2")
    with pytest.raises(InvalidSetting, match="can be encoded"):
        patient_digests(KEYS, ["P\ud800"])


@given(st.text(st.characters(codec="ascii", categories=["L", "N", "P"]), min_size=1))
def test_identity_ordinary_identifiers_keep_the_pseudonym_of_earlier_cohorts(identifier):
    assert NAMES.of("patient", identifier) == NAMES.earlier_of_patient(identifier)


def test_identity_pseudonyms_of_a_known_salt_are_those_of_earlier_cohorts():
    assert NAMES.of("patient", "P_00001") == "08485e6018bbe09a2278"
    assert NAMES.of("finding", "a  b") != NAMES.of("finding", "a b"), "names of findings are no patients"


def test_identity_unit_index_gives_every_patient_one_unit_wherever_the_images_stand():
    whole = cohort(["b", "a", "b", "c", "a", "b"])
    assert whole.unit_index("patient").tolist() == [1, 0, 1, 2, 0, 1]
    assert whole.unit_index("image").tolist() == [0, 1, 2, 3, 4, 5]
    assert whole.num_patients == 3


@given(st.lists(st.sampled_from(["p1", "p2", "q", "A", "B 1", "p10"]), min_size=1, max_size=20))
def test_identity_unit_index_is_one_unit_a_patient_and_dense(patients):
    units = cohort(patients).unit_index("patient")
    assert {(unit, patient) for unit, patient in zip(units.tolist(), patients, strict=True)} == {
        (sorted(set(patients)).index(patient), patient) for patient in patients
    }


@pytest.mark.parametrize(("one", "other"), SAME, ids=IDS)
def test_identity_unit_index_is_by_person_even_where_a_cohort_was_not_checked(one, other, monkeypatch):
    whole = unchecked(["zz", one, other, one, "aa"], monkeypatch)
    units = whole.unit_index("patient")
    assert units[1] == units[2] == units[3]
    assert whole.num_patients == 3 == len(set(units.tolist())) == units.max() + 1


def mean_of(whole: Cohort, clip: float = 1.0) -> np.ndarray:
    """A site's summed and clipped features without noise, by the units that the cohort gives."""
    event = PrivacyEvent(
        mechanism="mean",
        noise_multiplier=0.0,
        steps=1,
        sample_rate=1.0,
        unit="patient",
        clipping_norm=clip,
        max_images_per_patient=16,
    )
    features = whole.pixels.reshape(len(whole), -1)
    site = SiteFeatures(features=features, labels=whole.labels, units=whole.unit_index("patient"), public_images=1)
    return np.asarray(release_mean(site, event=event, noise=noiseless("float")), np.float64)


def test_identity_a_person_in_two_spellings_moves_a_release_by_one_clip_at_most(monkeypatch):
    """The same person's two images, far longer than the clip: two units would move the sum by two clips."""
    others, person = ["aa", "bb", "cc"], ["DOE JANE", "DOE  JANE"]
    with pytest.raises(DataError, match="one patient in two spellings"):
        cohort([*others, *person])
    whole = unchecked([*others, *person], monkeypatch)
    pixels = whole.pixels.copy()
    pixels[3:] = 5.0
    monkeypatch.setattr(Cohort, "_check_patients", lambda _: None, raising=False)
    whole = replace(whole, pixels=pixels)
    without = whole.select(np.arange(3))
    assert np.linalg.norm(mean_of(whole) - mean_of(without)) <= 1 + 1e-5


def test_identity_gate_catches_a_release_by_spelling_in_place_of_person():
    """The gate's patients, each written two ways in turn: by identity the gate passes, by spelling it does not."""

    def spelt(units: np.ndarray) -> np.ndarray:
        return np.array([f"DOE {' ' * (row % 2)}{unit:04d}" for row, unit in enumerate(units.tolist())])

    def release(of):
        def summed(features, labels, units):
            index = of(spelt(units))
            rows = np.nan_to_num(features.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
            sums = np.stack([rows[index == unit].sum(axis=0) for unit in range(int(index.max()) + 1)])
            norms = np.linalg.norm(sums, axis=1, keepdims=True)
            return (sums / np.maximum(1.0, norms)).sum(axis=0)

        return summed

    assert max(largest_move(release(patient_index), dims=6, unit="patient").values()) <= 1 + 1e-5
    by_spelling = release(lambda patients: np.unique(patients, return_inverse=True)[1])
    assert largest_move(by_spelling, dims=6, unit="patient")["huge"] > 1.9


def test_identity_decides_images_a_patient_division_folds_resampling_and_generators(monkeypatch):
    """Everything that counts or divides by patient, on a cohort that no check stands before."""
    people = [f"P {number}" for number in range(12)]
    spelt = [person.replace(" ", " " * (1 + place)) for person in people for place in range(2)]
    monkeypatch.setattr(Cohort, "_check_patients", lambda _: None, raising=False)
    whole = unchecked(spelt, monkeypatch)
    rows = np.arange(len(whole))
    assert len(limit_images_per_patient(whole, rows, most=1)) == 12
    sites = partition_rows(whole, num_sites=3, how="uniform", alpha=1.0, seed=0)
    assert all({row ^ 1 for row in site.tolist()} == set(site.tolist()) for site in sites)
    held = fold_rows(whole, folds=3, fold=0)
    assert {row ^ 1 for row in held.tolist()} == set(held.tolist())
    units = real_images(whole, image_size=8, unit="patient").units
    assert (units[::2] == units[1::2]).all()
    scores = np.linspace(0, 1, len(whole))
    assert evaluate_scores(scores, whole.labels, whole.patients, bootstrap=5, seed=0).n_patients == 12
    one_way = np.repeat(people, 2)
    drawn = [auroc_interval(scores, whole.labels, names, bootstrap=50, seed=0) for names in (whole.patients, one_way)]
    assert drawn[0] == drawn[1]


@pytest.mark.parametrize(("one", "other"), SAME, ids=IDS)
def test_identity_a_patient_in_two_splits_is_found_across_cohorts_whatever_the_spelling(one, other):
    train = cohort([one, "x"], name="left", public=False)
    with pytest.raises(DataError, match=r"a patient is in left \(train\) and in right \(test\)") as caught:
        check_disjoint([train, cohort([other, "y"], split="test", name="right", public=False)])
    assert one not in str(caught.value)


def test_identity_index_leaves_fingerprints_of_cohorts_as_they_were():
    whole = cohort(["p2", "p1", "p2", "P10"])
    assert patient_index(whole.patients).tolist() == np.unique(whole.patients, return_inverse=True)[1].tolist()
    assert fingerprint(whole, key=None) == fingerprint(replace(whole, name="other"), key=None)
    assert patient_index(np.array([7, 3, 7])).tolist() == [1, 0, 1]
    assert respelt(["a", "b", "a"]) is None


def test_identity_is_decided_in_one_module_only():
    """Nothing else of the package folds case, composes Unicode or counts distinct patients by their spelling."""
    root = Path(mammo_fed.__file__).parent
    folded = r"unicodedata|\.casefold\("
    by_hand = (
        r"np\.unique\([\w.]*\bpatients|len\(set\([^)\n]*patients|groupby\([^)\n]*patient"
        r"|patient\w*(\[[^\]]*\])?\.(lower|upper|strip|casefold)\(|Counter\([^)\n]*\.patients"
    )
    # What archives and annotations write of columns, files, labels and views is compared without case too.
    not_of_people = ("data/dicom/archives/", "data/dicom/annotations/", "data/dicom/identifiers/", "data/downloads/")
    found = {
        f"{path.relative_to(root)}: {line.strip()}"
        for path in root.rglob("*.py")
        # The gate's patients are numbers that it has drawn.
        if path.relative_to(root).as_posix() not in ("privacy/patient_identity.py", "audit/gate.py")
        for line in path.read_text(encoding="utf-8").splitlines()
        if re.search(by_hand, line)
        or (re.search(folded, line) and not path.relative_to(root).as_posix().startswith(not_of_people))
    }
    assert not found


ALIKE = ["P17", "P017", "P-17", "P_17", "p 17", "P\u201317", "P\u221217", "P/17", "P.17", "\u0420-17"]


def test_identity_loose_forms_meet_where_separators_zeros_dashes_or_order_differ():
    for one in ALIKE:
        for other in ALIKE:
            assert loose_identifiers(one) & loose_identifiers(other), (one, other)
    for one, other in [("DOE^JANE^", "DOE JANE"), ("Jane Doe", "DOE^JANE"), ("0012345", "12-345"), ("P17-01", "P17-1")]:
        assert loose_identifiers(one) & loose_identifiers(other), (one, other)
    for one, other in [("17", "17.0"), ("0017", "17,00"), ("17-0", "17.0")]:
        assert loose_identifiers(one) & loose_identifiers(other), (one, other)
    for one, other in [
        ("17", "17.5"),
        ("P17", "P18"),
        ("P17", "P170"),
        ("D1-0001", "D1-0011"),
        ("P_00001", "P_00010"),
        ("DOE J", "DOE K"),
    ]:
        assert not loose_identifiers(one) & loose_identifiers(other), (one, other)


def test_identity_placeholders_are_nobody():
    for written in ("ANONYMOUS", "REMOVED", "unknown", "0", "000", "N/A", "--", "XXXX", "de-identified", "ANON", "Anonymous^"):
        assert is_placeholder(written), written
    for written in ("P17", "1", "MRN-4711", "ANON123", "PAT0001", "Mass-Training_P_00001_LEFT_CC", "10"):
        assert not is_placeholder(written), written


def test_identity_command_refuses_a_table_with_two_spellings(tmp_path, capsys):
    for name in "abcd":
        Image.new("L", (32, 32), 9).save(tmp_path / f"{name}.png")
    lines = ["X,a.png,1", "Y,b.png,0", "DOE J,c.png,1", "DOE  J,d.png,0"]
    (tmp_path / "t.csv").write_text("\n".join(["patient,image,label", *lines]))
    run = ["simulate", "data=csv", f"data.root={tmp_path / 't.csv'}", "federation.num_sites=1"]
    run += [f"hydra.run.dir={tmp_path / 'r'}"]
    assert main(run) == 2
    assert "rows 4 and 5 are of one patient" in capsys.readouterr().err
