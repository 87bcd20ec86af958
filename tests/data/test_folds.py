"""Folds of cross-validation: every patient whole and held out once, whatever the order and the seed."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mammo_fed.data.cache import ArrayCache
from mammo_fed.data.cohort import BENIGN, MALIGNANT, Cohort
from mammo_fed.data.partition import fold_rows
from mammo_fed.data.run_cohorts import evaluation_cohorts, load_pool, whole_cohort
from mammo_fed.errors import DataError, InvalidSetting
from mammo_fed.settings.compose import compose_settings
from mammo_fed.settings.data import Partition


def cohort_of(patients, labels) -> Cohort:
    count = len(patients)
    return Cohort(
        name="drawn",
        pixels=np.zeros((count, 1, 1), np.float32),
        labels=np.array(labels, dtype=np.int64),
        patients=np.array([f"P{patient}" for patient in patients]),
        images=np.array([f"{row:03}" for row in range(count)]),
        views=np.full(count, ""),
        splits=np.full(count, "train"),
        public=True,
    )


@st.composite
def cases(draw):
    """Patients of one class or both with one to four images, and a number of folds that fits."""
    classes = [BENIGN, MALIGNANT, "both"]
    kinds = draw(st.lists(st.sampled_from(classes), min_size=4, max_size=25))
    kinds += [BENIGN, BENIGN, MALIGNANT, MALIGNANT]
    patients, labels = [], []
    for patient, kind in enumerate(kinds):
        images = draw(st.integers(2 if kind == "both" else 1, 4))
        patients += [patient] * images
        labels += [row % 2 if kind == "both" else kind for row in range(images)]
    order = draw(st.permutations(range(len(patients))))
    most = min(sum(kind in (label, "both") for kind in kinds) for label in (BENIGN, MALIGNANT))
    return cohort_of([patients[row] for row in order], [labels[row] for row in order]), draw(st.integers(2, min(most, 6)))


def folds_of(cohort, folds):
    return [fold_rows(cohort, folds=folds, fold=fold) for fold in range(folds)]


@settings(deadline=None)
@given(cases())
def test_folds_are_disjoint_cover_all_rows_and_keep_patients_whole(case):
    cohort, folds = case
    parts = folds_of(cohort, folds)
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(len(cohort)))
    assert all((np.diff(rows) > 0).all() for rows in parts)
    assert sum(len(np.unique(cohort.patients[rows])) for rows in parts) == cohort.num_patients


@settings(deadline=None)
@given(cases(), st.randoms(use_true_random=False))
def test_the_order_of_the_rows_does_not_move_a_patient(case, random):
    cohort, folds = case
    order = list(range(len(cohort)))
    random.shuffle(order)
    shuffled = cohort.select(np.array(order))
    for rows, others in zip(folds_of(cohort, folds), folds_of(shuffled, folds), strict=True):
        assert set(cohort.images[rows]) == set(shuffled.images[others])


def test_classes_are_spread_evenly():
    cohort = cohort_of(range(100), [MALIGNANT] * 40 + [BENIGN] * 60)
    assert [int(cohort.labels[rows].sum()) for rows in folds_of(cohort, 5)] == [8] * 5
    assert [len(rows) for rows in folds_of(cohort, 5)] == [20] * 5


@pytest.mark.parametrize(
    ("patients", "labels"),
    [
        (range(4), [0, 1, 0, 1]),
        # Images enough, but three patients with one class each.
        ([0] * 8 + [1] * 8 + [2] * 8, [0] * 8 + [1] * 8 + [1] * 8),
        # Patients enough, but of one class but for two.
        (range(20), [0] * 18 + [1] * 2),
    ],
)
def test_more_folds_than_patients_of_a_class_are_refused_by_name(patients, labels):
    with pytest.raises(InvalidSetting, match=r"data\.folds=5 .* patients"):
        fold_rows(cohort_of(patients, labels), folds=5, fold=0)


@pytest.fixture(scope="module")
def data(table):
    """Settings of a table with a training and a validation split."""
    return compose_settings(
        ["data=csv", f"data.root={table.path}", "data.public=true", "data.folds=3", "data.fold=1"]
    ).settings.data


def share(seed=0, sites=1):
    return Partition(num_sites=sites, how="uniform", alpha=1.0, seed=seed)


def held_out_and_trained(data, store, *, seed=0, sites=1):
    held_out = evaluation_cohorts(data, share(seed, sites), cache=store)["val"]
    return held_out, load_pool(data, share(seed, sites), cache=store).cohort


def test_a_fold_is_held_out_and_all_other_patients_are_trained_on(data, cache):
    whole, store = whole_cohort(data), ArrayCache(cache)
    for fold in range(3):
        val, train = held_out_and_trained(replace(data, fold=fold), store)
        assert not set(val.patients) & set(train.patients)
        assert set(val.images) | set(train.images) == set(whole.images)
        assert len(val) + len(train) == len(whole)
        assert (set(val.splits), set(train.splits)) == ({"val"}, {"train"})
        np.testing.assert_array_equal(np.sort(val.images), np.sort(whole.images[fold_rows(whole, folds=3, fold=fold)]))


def test_the_cut_is_the_same_for_every_seed_and_number_of_sites(data, cache):
    store = ArrayCache(cache)
    first = held_out_and_trained(data, store)
    for seed, sites in ((1, 1), (7, 1), (0, 2), (5, 3)):
        for one, other in zip(first, held_out_and_trained(data, store, seed=seed, sites=sites), strict=True):
            np.testing.assert_array_equal(one.images, other.images)


def test_without_a_fold_the_splits_are_as_the_source_has_them(data, cache, phantom):
    val, train = held_out_and_trained(replace(data, fold=None), ArrayCache(cache))
    assert len(val) == len(phantom.external)
    assert len(train) == sum(len(site) for site in phantom.sites)


def test_cross_validation_needs_validation_patients(training):
    data = compose_settings([*training, "data.fold=0"]).settings.data
    with pytest.raises(DataError, match="val"):
        whole_cohort(data)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["data=csv", "data.root=x", "data.fold=5"], r"data\.fold=5 must be from 0 to 4"),
        (["data=csv", "data.root=x", "data.fold=-1"], r"data\.fold=-1 must be from 0 to 4"),
        (["data=csv", "data.root=x", "data.folds=1"], r"data\.folds=1 must be at least 2"),
        (["data.fold=0"], r"data\.fold needs data=mammo_dp, csv or cohort"),
        (["data=mammo_dp", "data.root=x", "data.train=synthetic", "data.fold=0"], r"data\.train=synthetic .* data\.fold=null"),
        (["data.train=synthetic"], r"data\.train=synthetic .* needs data=mammo_dp"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(overrides, said):
    with pytest.raises(InvalidSetting, match=said):
        compose_settings(overrides)
