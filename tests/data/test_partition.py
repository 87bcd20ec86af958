"""A partition holds every patient whole and once, whatever the rule."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mammo_fed.data.cohort import BENIGN, MALIGNANT, Cohort
from mammo_fed.data.partition import MAX_ALPHA, partition_rows
from mammo_fed.errors import InvalidSetting


def cohort_of(patients: list[int], labels: list[int]) -> Cohort:
    count = len(patients)
    return Cohort(
        name="drawn",
        pixels=np.zeros((count, 1, 1), np.float32),
        labels=np.array(labels, dtype=np.int64),
        patients=np.array([f"P{patient}" for patient in patients]),
        images=np.array([str(row) for row in range(count)]),
        views=np.full(count, ""),
        splits=np.full(count, "train"),
        public=True,
    )


def one_image_each(malignant: int, benign: int) -> Cohort:
    count = malignant + benign
    return cohort_of(list(range(count)), [MALIGNANT] * malignant + [BENIGN] * benign)


def patients_per_site(cohort: Cohort, sites: tuple[np.ndarray, ...]) -> list[int]:
    return [len(np.unique(cohort.patients[rows])) for rows in sites]


@st.composite
def cases(draw: st.DrawFn) -> tuple[Cohort, int]:
    """A cohort with repeated, interleaved patients of both, one or mixed classes, and a number of sites that fits."""
    patients = draw(st.lists(st.integers(0, 30), min_size=1, max_size=80))
    labels = draw(st.lists(st.integers(0, 1), min_size=len(patients), max_size=len(patients)))
    cohort = cohort_of(patients, labels)
    return cohort, draw(st.integers(1, cohort.num_patients))


rules = st.sampled_from(["uniform", "size", "label"])
alphas = st.floats(0, MAX_ALPHA, exclude_min=True) | st.sampled_from([1e-300, 0.01, 0.5, 1.0, 10.0])
seeds = st.integers(0, 2**63)


@settings(deadline=None)
@given(cases(), rules, alphas, seeds)
def test_sites_are_disjoint_cover_all_rows_and_keep_patients_whole(case, how, alpha, seed):
    cohort, num_sites = case
    sites = partition_rows(cohort, num_sites=num_sites, how=how, alpha=alpha, seed=seed)
    assert len(sites) == num_sites
    assert all(rows.dtype == np.int64 and len(rows) > 0 for rows in sites)
    np.testing.assert_array_equal(np.sort(np.concatenate(sites)), np.arange(len(cohort)))
    assert all((np.diff(rows) > 0).all() for rows in sites)
    assert sum(patients_per_site(cohort, sites)) == cohort.num_patients


@settings(deadline=None)
@given(cases(), rules, alphas, seeds)
def test_the_same_seed_gives_the_same_sites(case, how, alpha, seed):
    cohort, num_sites = case
    first, second = (partition_rows(cohort, num_sites=num_sites, how=how, alpha=alpha, seed=seed) for _ in range(2))
    for rows, again in zip(first, second, strict=True):
        np.testing.assert_array_equal(rows, again)


@settings(deadline=None)
@given(cases(), alphas, seeds)
def test_uniform_sites_differ_by_one_patient_at_most(case, alpha, seed):
    cohort, num_sites = case
    sizes = patients_per_site(cohort, partition_rows(cohort, num_sites=num_sites, how="uniform", alpha=alpha, seed=seed))
    assert max(sizes) - min(sizes) <= 1


@settings(deadline=None)
@given(cases(), alphas, seeds)
def test_sizes_fall_from_the_first_site_on(case, alpha, seed):
    cohort, num_sites = case
    sizes = patients_per_site(cohort, partition_rows(cohort, num_sites=num_sites, how="size", alpha=alpha, seed=seed))
    assert sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
def test_shares_follow_the_power_law_to_within_one_patient(alpha):
    cohort = one_image_each(300, 700)
    sizes = patients_per_site(cohort, partition_rows(cohort, num_sites=5, how="size", alpha=alpha, seed=3))
    weights = np.arange(1, 6) ** -alpha
    assert np.abs(np.array(sizes) - 1000 * weights / weights.sum()).max() < 1


def test_a_steep_power_law_leaves_one_patient_to_every_small_site():
    cohort = one_image_each(10, 10)
    assert patients_per_site(cohort, partition_rows(cohort, num_sites=4, how="size", alpha=100.0, seed=0)) == [17, 1, 1, 1]


def malignant_fractions(alpha: float, seed: int) -> np.ndarray:
    cohort = one_image_each(200, 200)
    sites = partition_rows(cohort, num_sites=4, how="label", alpha=alpha, seed=seed)
    return np.array([cohort.labels[rows].mean() for rows in sites])


def test_a_large_alpha_mixes_classes_evenly_and_a_small_one_parts_them():
    for seed in range(5):
        np.testing.assert_allclose(malignant_fractions(MAX_ALPHA, seed), 0.5, atol=0.02)
    spread = [np.mean([malignant_fractions(alpha, seed).std() for seed in range(30)]) for alpha in (0.1, 1.0, 10.0, 1000.0)]
    assert spread == sorted(spread, reverse=True)


def test_sites_of_one_class_are_allowed():
    assert any(set(malignant_fractions(0.05, seed)) & {0.0, 1.0} for seed in range(10))


def test_dirichlet_shares_have_the_mean_and_the_variance_of_their_law():
    cohort, alpha, num_sites = one_image_each(500, 0), 2.0, 4
    shares = np.array([
        patients_per_site(cohort, partition_rows(cohort, num_sites=num_sites, how="label", alpha=alpha, seed=seed))
        for seed in range(600)
    ])[:, 0] / 500  # fmt: skip
    mean = 1 / num_sites
    variance = mean * (1 - mean) / (num_sites * alpha + 1)
    assert abs(shares.mean() - mean) < 5 * np.sqrt(variance / 600)
    assert abs(shares.var() / variance - 1) < 0.35


def test_a_patient_with_any_malignant_patch_counts_as_malignant():
    # Every patient has one benign patch, half of them a malignant one too, before it or after it.
    cohort = cohort_of([*range(50), *range(200), *range(50, 100)], [MALIGNANT] * 50 + [BENIGN] * 200 + [MALIGNANT] * 50)
    sites = partition_rows(cohort, num_sites=4, how="label", alpha=MAX_ALPHA, seed=1)
    for rows in sites:
        malignant = len(np.unique(cohort.patients[rows][cohort.labels[rows] == MALIGNANT]))
        assert abs(malignant - 25) <= 1
        assert abs(len(np.unique(cohort.patients[rows])) - 50) <= 2


def test_another_seed_gives_other_sites():
    cohort = one_image_each(20, 20)
    for how in ("uniform", "size", "label"):
        first, second = (partition_rows(cohort, num_sites=4, how=how, alpha=1.0, seed=seed)[0] for seed in (0, 1))
        assert not np.array_equal(first, second)


def test_the_order_of_the_rows_does_not_move_a_patient():
    cohort = one_image_each(15, 15)
    shuffled = cohort.select(np.random.default_rng(5).permutation(30))
    for how in ("uniform", "size", "label"):
        for rows, others in zip(
            *(partition_rows(table, num_sites=3, how=how, alpha=1.0, seed=2) for table in (cohort, shuffled)), strict=True
        ):
            assert set(cohort.patients[rows]) == set(shuffled.patients[others])


@pytest.mark.parametrize("alpha", [0.0, -1.0, np.nan, np.inf, 1e7])
def test_an_alpha_out_of_range_is_named_with_its_remedy(alpha):
    with pytest.raises(InvalidSetting, match=r"partition_alpha=.* must be in \(0, 1e\+06\]; check federation\.partition_alpha"):
        partition_rows(one_image_each(2, 2), num_sites=2, how="label", alpha=alpha, seed=0)


def test_more_sites_than_patients_are_refused_by_name():
    with pytest.raises(InvalidSetting, match=r"num_sites=3 must be at most the number of patients, 2; .*federation\.num_sites"):
        partition_rows(cohort_of([0, 0, 1], [0, 1, 0]), num_sites=3, how="uniform", alpha=1.0, seed=0)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"num_sites": 0}, r"num_sites=0 must be at least 1; check federation\.num_sites"),
        ({"how": "random"}, r"partition='random' must be uniform, size or label; check federation\.partition"),
        ({"seed": -1}, "seed=-1 must be at least 0"),
    ],
)
def test_other_settings_out_of_range_are_named(changed, said):
    with pytest.raises(InvalidSetting, match=said):
        partition_rows(one_image_each(2, 2), **{"num_sites": 2, "how": "uniform", "alpha": 1.0, "seed": 0, **changed})
