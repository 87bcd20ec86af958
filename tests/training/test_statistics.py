"""Statistics against scikit-learn; intervals that cover; seeds' spread and patients' sampling kept apart; pairs."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scipy.special import expit, logit
from scipy.stats import kstest, norm
from sklearn.calibration import calibration_curve
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, brier_score_loss, roc_auc_score, roc_curve

from mammo_fed.errors import DataError, InvalidSetting
from mammo_fed.training.recalibration import recalibration
from mammo_fed.training.scored import metric_values
from mammo_fed.training.statistics import (
    METRICS,
    PAIRED_METRICS,
    Scores,
    paired_difference,
    subgroups,
    summarise,
)


def scored(draws, *, patients=60, images_each=2, separation=1.2, alike=0.6, seeds=1, seed_noise=0.0, strata=None):
    """Scores whose true AUROC is Phi(separation / sqrt 2) without noise of seeds; a patient's images share `alike` variance."""
    patient = np.repeat(np.arange(patients), images_each)
    label = draws.integers(0, 2, patients)[patient]
    own = draws.normal(size=patients)[patient] * np.sqrt(alike)
    latent = label * separation + own + draws.normal(size=len(patient)) * np.sqrt(1 - alike)
    noise = draws.normal(size=(seeds, len(patient))) * seed_noise
    return Scores(labels=label, patients=patient, scores=expit(latent - separation / 2 + noise), strata=strata or {})


def with_scores(scores, values):
    return replace(scores, scores=np.atleast_2d(values))


def again(scores, draws):
    """Other scores of the same images, with the same distribution given the label and the same patients' effects."""
    shift = draws.normal(size=len(scores.labels)) * 0.8
    return [with_scores(scores, expit(logit(scores.scores) + sign * shift)) for sign in (1, -1)]


def by_scikit_learn(score, label):
    """Every metric of one seed by scikit-learn, or None for a recalibration without a finite fit."""
    false_positive, true_positive, _ = roc_curve(label, score, drop_intermediate=False)
    share, mean_score = calibration_curve(label, score, n_bins=10, strategy="quantile")
    edges = np.percentile(score, np.linspace(0, 100, 11))
    size = np.bincount(np.searchsorted(edges[1:-1], score), minlength=11)
    found = {
        "auroc": roc_auc_score(label, score),
        "auprc_benign": average_precision_score(1 - label, -score),
        "auprc_malignant": average_precision_score(label, score),
        "sensitivity_at_90_specificity": true_positive[false_positive <= 0.1 + 1e-9].max(),
        "brier": brier_score_loss(label, score),
        "calibration_error": np.abs(share - mean_score) @ size[size > 0] / len(label),
    }
    benign, malignant = score[label == 0], score[label == 1]
    if benign.max() > malignant.min() and malignant.max() > benign.min():
        fit = LogisticRegression(C=np.inf, solver="newton-cholesky", tol=1e-10)
        # At the optimum of a few rows its line search finds nothing better, says so, and ends with another solver.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            fit.fit(logit(np.clip(score, 1e-6, 1 - 1e-6))[:, None], label)
        return found | {"calibration_slope": fit.coef_[0, 0], "calibration_intercept": fit.intercept_[0]}
    return found | {"calibration_slope": None, "calibration_intercept": None}


rows_with_ties = st.lists(st.tuples(st.integers(1, 9), st.integers(0, 1), st.integers(0, 5)), min_size=4, max_size=60).filter(
    lambda rows: len({label for _, label, _ in rows}) == 2
)


@given(rows_with_ties)
@example([(1, 0, 0), (1, 0, 0), (1, 1, 0), (1, 1, 0), (1, 1, 0), (2, 0, 0), (2, 0, 0), (6, 1, 0), (6, 1, 0), (8, 0, 0)])
def test_every_metric_agrees_with_scikit_learn_ties_included(rows):
    score, label, patient = (np.array(column) for column in zip(*rows, strict=True))
    scores = Scores(labels=label, patients=patient, scores=score[None] / 10)
    found = dict(zip(METRICS, metric_values(scores, np.ones((1, len(rows))), METRICS)[:, 0, 0], strict=True))
    for name, expected in by_scikit_learn(score / 10, label).items():
        assert found[name] == pytest.approx(np.nan if expected is None else expected, abs=1e-5, nan_ok=True), name
    summary = summarise(scores, bootstrap=5, seed=0)
    assert (summary.n_images, summary.n_patients, summary.n_seeds) == (len(rows), len(set(patient.tolist())), 1)
    assert all(summary.metric(name).value == found[name] for name in PAIRED_METRICS)


def test_a_replicate_is_the_metric_of_the_repeated_images():
    scores = scored(np.random.default_rng(3), patients=50)
    times = np.random.default_rng(4).multinomial(50, np.full(50, 1 / 50))[scores.patients]
    repeated = np.repeat(np.arange(100), times)
    found = dict(zip(METRICS, metric_values(scores, times[None].astype(float), METRICS)[:, 0, 0], strict=True))
    expected = by_scikit_learn(scores.scores[0][repeated], scores.labels[repeated])
    # The groups of the calibration error stay those of the whole set; scikit-learn forms them anew.
    for name in set(METRICS) - {"calibration_error"}:
        assert found[name] == pytest.approx(expected[name], abs=1e-6), name


def test_the_recalibration_of_a_calibrated_score_is_one_and_zero():
    draws = np.random.default_rng(0)
    score = expit(draws.normal(size=100_000))
    label = (draws.random(100_000) < score).astype(int)
    slope, intercept = recalibration(expit(2 * logit(score) + 1), label, np.ones((1, len(label))))
    # The label's log odds are (x - 1) / 2 for the overconfident, shifted logit x.
    assert slope[0] == pytest.approx(0.5, abs=0.02)
    assert intercept[0] == pytest.approx(-0.5, abs=0.02)


@pytest.mark.parametrize("values", [[0.1, 0.2, 0.8, 0.9], [0.1, 0.5, 0.5, 0.9], [0.5, 0.5, 0.5, 0.5], [0.9, 0.8, 0.2, 0.1]])
def test_scores_that_part_the_classes_have_no_recalibration(values):
    scores = Scores(labels=np.array([0, 0, 1, 1]), patients=np.arange(4), scores=np.array([values]))
    found = summarise(scores, bootstrap=20, seed=0)
    assert (found.calibration_slope, found.calibration_intercept) == (None, None)
    assert found.auroc.value == roc_auc_score(scores.labels, values)


def test_a_row_is_the_mean_of_its_seeds_and_their_spread_stands_apart():
    scores = scored(np.random.default_rng(1), seeds=3, seed_noise=0.5)
    found = summarise(scores, bootstrap=50, seed=0)
    each = [by_scikit_learn(one, scores.labels) for one in scores.scores]
    for name in METRICS:
        values = [one[name] for one in each]
        assert found.metric(name).value == pytest.approx(np.mean(values), abs=1e-5)
        assert found.seed_std[name] == pytest.approx(np.std(values, ddof=1), abs=1e-5)
    assert summarise(with_scores(scores, scores.scores[0]), bootstrap=5, seed=0).seed_std is None


def test_a_seed_repeated_changes_no_interval_and_has_no_spread():
    scores = scored(np.random.default_rng(2))
    once = summarise(scores, bootstrap=100, seed=0)
    thrice = summarise(with_scores(scores, np.repeat(scores.scores, 3, axis=0)), bootstrap=100, seed=0)
    assert max(thrice.seed_std.values()) == pytest.approx(0.0, abs=1e-12)
    for name in METRICS:
        assert vars(thrice.metric(name)) == pytest.approx(vars(once.metric(name)))


def test_the_spread_of_seeds_is_not_in_the_interval():
    # Few images less of noise: with many seeds the mean hardly moves, whatever each seed does.
    draws = np.random.default_rng(5)
    calm, wild = (scored(draws, patients=300, seeds=8, seed_noise=noise, alike=0.0) for noise in (0.0, 1.0))
    calm_found, wild_found = (summarise(one, bootstrap=300, seed=0) for one in (calm, wild))
    width = [one.auroc.high - one.auroc.low for one in (calm_found, wild_found)]
    assert calm_found.seed_std["auroc"] < 1e-12 < 1e-3 < wild_found.seed_std["auroc"]
    assert width[1] < 1.5 * width[0]


def test_the_interval_covers_the_truth_about_as_often_as_it_says_when_patients_images_are_alike():
    draws = np.random.default_rng(11)
    truth = norm.cdf(1.2 / np.sqrt(2))
    found = [summarise(scored(draws, patients=80, images_each=3), bootstrap=200, seed=row) for row in range(150)]
    covered = np.mean([one.auroc.low <= truth <= one.auroc.high for one in found])
    # 95 % less four standard errors of 150 trials (0.018 each), and the percentile interval's known shortfall.
    assert covered > 0.86


def test_every_interval_holds_its_value_and_moves_with_the_seed_of_the_bootstrap():
    scores = scored(np.random.default_rng(7), patients=100, seeds=2, seed_noise=0.3)
    first, same, other = (summarise(scores, bootstrap=200, seed=seed) for seed in (1, 1, 2))
    assert first == same != other
    assert all(first.metric(name).low <= first.metric(name).value <= first.metric(name).high for name in METRICS)


def test_images_of_a_patient_that_are_copies_add_no_information():
    scores = scored(np.random.default_rng(8), patients=100, images_each=1)
    copies = Scores(
        labels=np.repeat(scores.labels, 4), patients=np.repeat(scores.patients, 4), scores=np.repeat(scores.scores, 4, axis=1)
    )
    ignoring = replace(copies, patients=np.arange(400))
    width = [vars(summarise(one, bootstrap=300, seed=0).auroc) for one in (scores, copies, ignoring)]
    assert width[1] == pytest.approx(width[0])
    assert (width[1]["high"] - width[1]["low"]) / (width[2]["high"] - width[2]["low"]) == pytest.approx(2.0, rel=0.2)


@pytest.mark.parametrize("metric", PAIRED_METRICS)
def test_pairing_narrows_the_interval_and_the_value_is_the_difference(metric):
    draws = np.random.default_rng(9)
    a = scored(draws, patients=150, seeds=2, seed_noise=0.1)
    b = with_scores(a, expit(logit(a.scores[0]) + 0.2 * draws.normal(size=len(a.labels))))
    found = paired_difference(a, b, metric=metric, bootstrap=300, seed=0)
    alone = [summarise(one, bootstrap=300, seed=0).metric(metric) for one in (a, b)]
    assert found.value == pytest.approx(alone[0].value - alone[1].value)
    unpaired = np.hypot(*(one.high - one.low for one in alone))
    assert found.high - found.low < 0.75 * unpaired
    turned = paired_difference(b, a, metric=metric, bootstrap=300, seed=0)
    assert (turned.value, turned.low, turned.high) == pytest.approx((-found.value, -found.high, -found.low))
    assert turned.p_value == found.p_value


def test_a_row_does_not_differ_from_itself():
    scores = scored(np.random.default_rng(0))
    found = paired_difference(scores, scores, bootstrap=50, seed=0)
    assert (found.value, found.low, found.high, found.p_value) == (0.0, 0.0, 0.0, 1.0)


def test_a_clear_difference_has_the_smallest_p_value():
    scores = scored(np.random.default_rng(0), separation=3.0)
    found = paired_difference(scores, with_scores(scores, 1 - scores.scores), bootstrap=199, seed=0)
    assert found.low > 0
    assert found.p_value == 2 / 200


def test_p_values_are_about_uniform_where_rows_do_not_differ():
    draws = np.random.default_rng(13)
    pairs = [again(scored(draws, patients=80), draws) for _ in range(200)]
    found = [paired_difference(a, b, bootstrap=200, seed=row) for row, (a, b) in enumerate(pairs)]
    p_values = [one.p_value for one in found]
    assert kstest(p_values, "uniform").pvalue > 0.001
    # 5 % and four standard errors of 200 trials (0.015 each).
    assert np.mean([p < 0.05 for p in p_values]) < 0.12
    # The p-value and the interval tell the same story but for rounding of a percentile.
    disagree = [(one.p_value < 0.045) and one.low <= 0 <= one.high for one in found]
    assert not any(disagree)


def test_pairs_must_score_the_same_images():
    scores = replace(scored(np.random.default_rng(0)), images=np.arange(120))
    for other in (
        replace(scores, labels=1 - scores.labels),
        replace(scores, patients=scores.patients[::-1]),
        replace(scores, images=scores.images[::-1]),
        scored(np.random.default_rng(0), patients=61),
    ):
        with pytest.raises(DataError, match="same images in the same order"):
            paired_difference(scores, other, seed=0)
    with pytest.raises(InvalidSetting, match="metric='calibration_slope' must be one of auroc"):
        paired_difference(scores, scores, metric="calibration_slope", seed=0)


def test_a_subgroup_needs_ten_patients_of_each_class():
    # Patients 0 to 29 are benign, 30 to 59 malignant, with a view each; of the second density there are 9 malignant patients.
    label = np.repeat([0, 1], 60)
    patient = np.repeat(np.arange(60), 2)
    density = np.where((patient < 10) | ((patient >= 30) & (patient < 39)), "d4", "d2")
    draws = np.random.default_rng(0)
    scores = Scores(
        labels=label,
        patients=patient,
        scores=draws.random((2, 120)),
        strata={"view": np.tile(["CC", "MLO"], 60), "density": density},
    )
    found = {(one.stratum, one.value): one for one in subgroups(scores, bootstrap=20, seed=0)}
    assert list(found) == [("view", "CC"), ("view", "MLO"), ("density", "d2"), ("density", "d4")]
    small = found["density", "d4"]
    assert (small.summary, small.benign_patients, small.malignant_patients, small.n_images) == (None, 10, 9, 38)
    cc = found["view", "CC"]
    assert (cc.benign_patients, cc.malignant_patients, cc.n_images) == (30, 30, 60)
    expected = np.mean([roc_auc_score(label[::2], one[::2]) for one in scores.scores])
    assert cc.summary.auroc.value == pytest.approx(expected)


def test_ten_patients_of_each_class_are_enough():
    scores = scored(np.random.default_rng(0), patients=20, images_each=1)
    scores = replace(scores, labels=np.arange(20) % 2, strata={"view": np.full(20, "CC")})
    (only,) = subgroups(scores, bootstrap=20, seed=0)
    assert only.summary == summarise(scores, bootstrap=20, seed=0)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"scores": np.full(4, 0.5)}, "one row per seed"),
        ({"scores": np.empty((0, 4))}, "one row per seed"),
        ({"scores": np.full((2, 3), 0.5)}, "one row per image"),
        ({"scores": np.array([[0.5] * 4, [0.1, 0.2, 0.3, np.nan]])}, "no NaN"),
        ({"scores": np.array([[0.5] * 4, [0.1, 0.2, 0.3, 2.0]])}, "not a logit"),
        ({"labels": np.array([0, 1, 2, 1])}, "labels must be"),
        ({"labels": np.zeros(4, int)}, "one class only"),
        ({"patients": np.arange(3)}, "one row per image"),
        ({"strata": {"view": np.array(["CC"])}}, r"stratum view \(1,\) must have one value per image"),
        ({"images": np.arange(3)}, "images .* must have one value per image"),
    ],
)
def test_what_is_no_scored_set_is_refused(change, words):
    good = {"labels": np.array([0, 1, 0, 1]), "patients": np.arange(4), "scores": np.full((1, 4), 0.5)}
    with pytest.raises(DataError, match=words):
        Scores(**good | change)


def test_a_bootstrap_needs_a_replicate():
    scores = scored(np.random.default_rng(0))
    for run in (summarise, lambda one, **options: paired_difference(one, one, **options)):
        with pytest.raises(InvalidSetting, match="bootstrap=0 must be at least 1"):
            run(scores, bootstrap=0, seed=0)
