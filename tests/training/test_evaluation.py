"""Metrics against scikit-learn and closed forms; the interval covers, and respects patients."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm
from sklearn.metrics import average_precision_score, brier_score_loss, roc_auc_score, roc_curve

from mammo_fed.errors import DataError, InvalidSetting
from mammo_fed.training import evaluation
from mammo_fed.training.evaluation import auroc_interval, evaluate_scores


def binormal(patients, images_each, separation, draws, alike=0.0):
    """Scores whose true AUROC is Phi(separation / sqrt 2); `alike` is the share of variance that a patient's images share."""
    patient = np.repeat(np.arange(patients), images_each)
    label = draws.integers(0, 2, patients)
    own = draws.normal(size=patients)[patient] * np.sqrt(alike)
    latent = label[patient] * separation + own + draws.normal(size=len(patient)) * np.sqrt(1 - alike)
    return 1 / (1 + np.exp(-latent)), label[patient], patient


def width(scores, labels, patients):
    low, high = auroc_interval(scores, labels, patients, bootstrap=500, seed=0)
    return high - low


two_classes = st.lists(st.tuples(st.integers(0, 8), st.integers(0, 1), st.integers(0, 5)), min_size=2, max_size=40).filter(
    lambda rows: len({label for _, label, _ in rows}) == 2
)


@given(two_classes)
def test_metrics_agree_with_scikit_learn_ties_included(rows):
    score, label, patient = (np.array(column) for column in zip(*rows, strict=True))
    score = score / 8
    found = evaluate_scores(score, label, patient, bootstrap=5, seed=0)
    assert found.auroc == pytest.approx(roc_auc_score(label, score))
    assert found.auprc_malignant == pytest.approx(average_precision_score(label, score))
    assert found.auprc_benign == pytest.approx(average_precision_score(1 - label, -score))
    assert found.brier == pytest.approx(brier_score_loss(label, score))
    false_positive, true_positive, _ = roc_curve(label, score, drop_intermediate=False)
    assert found.sensitivity_at_90_specificity == pytest.approx(true_positive[false_positive <= 0.1 + 1e-9].max())
    assert (found.n_images, found.n_patients) == (len(rows), len(set(patient.tolist())))


@given(two_classes)
def test_swapping_the_classes_swaps_the_two_auprcs_and_keeps_the_auroc(rows):
    score, label, patient = (np.array(column) for column in zip(*rows, strict=True))
    found = evaluate_scores(score / 8, label, patient, bootstrap=5, seed=0)
    swapped = evaluate_scores(1 - score / 8, 1 - label, patient, bootstrap=5, seed=0)
    assert swapped.auroc == pytest.approx(found.auroc)
    assert swapped.auroc_ci == pytest.approx(found.auroc_ci)
    assert swapped.auprc_malignant == pytest.approx(found.auprc_benign)
    assert swapped.auprc_benign == pytest.approx(found.auprc_malignant)
    assert swapped.brier == pytest.approx(found.brier)


def test_a_perfect_score_has_perfect_metrics():
    label = np.array([0, 0, 1, 1, 1])
    found = evaluate_scores(label.astype(float), label, np.arange(5), bootstrap=50, seed=1)
    assert (found.auroc, found.auroc_ci, found.auprc_benign, found.auprc_malignant) == (1.0, (1.0, 1.0), 1.0, 1.0)
    assert (found.brier, found.sensitivity_at_90_specificity) == (0.0, 1.0)


def test_a_constant_score_knows_nothing():
    label = np.array([0, 0, 0, 1])
    found = evaluate_scores(np.full(4, 0.5), label, np.arange(4), bootstrap=50, seed=1)
    assert (found.auroc, found.auroc_ci, found.brier) == (0.5, (0.5, 0.5), 0.25)
    assert (found.auprc_malignant, found.auprc_benign) == (0.25, 0.75)
    assert found.sensitivity_at_90_specificity == 0.0


@pytest.mark.parametrize("benign", [10, 70, 90])
def test_one_false_alarm_in_ten_is_allowed_and_one_more_is_not(benign):
    # A tenth of the benign images scores 0.9; to find more than half of the malignant ones takes the benign image at 0.5 too.
    label = np.concatenate([np.zeros(benign, int), np.ones(4, int)])
    allowed = benign // 10
    low_scores = np.full(benign - allowed - 1, 0.1)
    score = np.concatenate([np.full(allowed, 0.9), [0.5], low_scores, [0.95, 0.7, 0.4, 0.3]])
    found = evaluate_scores(score, label, np.arange(len(label)), bootstrap=5, seed=0)
    assert found.sensitivity_at_90_specificity == 0.5


def test_the_weighted_replicate_is_the_auroc_of_the_repeated_images():
    draws = np.random.default_rng(3)
    score, label, patient = binormal(20, 2, 1.0, draws)
    times = draws.multinomial(20, np.full(20, 1 / 20))
    counts = evaluation.counts_by_score(score, label, times[patient][None, :].astype(float))
    again = np.repeat(np.arange(40), times[patient])
    assert evaluation.auroc_of_counts(*counts)[0] == pytest.approx(roc_auc_score(label[again], score[again]))


def test_the_interval_is_a_function_of_the_seed_and_not_of_the_chunks(monkeypatch):
    score, label, patient = binormal(60, 2, 1.0, np.random.default_rng(0))
    first = auroc_interval(score, label, patient, bootstrap=300, seed=5)
    assert auroc_interval(score, label, patient, bootstrap=300, seed=5) == first
    assert auroc_interval(score, label, patient, bootstrap=300, seed=6) != first
    monkeypatch.setattr(evaluation, "CHUNK_ELEMENTS", 7 * len(score))
    assert auroc_interval(score, label, patient, bootstrap=300, seed=5) == first


@pytest.mark.parametrize("alike", [0.0, 0.8])
def test_the_interval_covers_the_true_auroc_about_as_often_as_it_says(alike):
    draws = np.random.default_rng(11)
    truth = norm.cdf(1.2 / np.sqrt(2))
    sets = [binormal(80, 3, 1.2, draws, alike) for _ in range(150)]
    bounds = [auroc_interval(*one, bootstrap=200, seed=row) for row, one in enumerate(sets)]
    covered = np.mean([low <= truth <= high for low, high in bounds])
    # 95 % less four standard errors of 150 trials (0.018 each), and the percentile interval's known shortfall.
    assert covered > 0.86


def test_an_interval_that_ignores_patients_is_too_narrow_when_their_images_are_copies():
    score, label, patient = binormal(100, 1, 1.0, np.random.default_rng(2))
    copies = [np.repeat(column, 4) for column in (score, label, patient)]
    ignoring = width(copies[0], copies[1], np.arange(400))
    # Copies add no information: the cluster interval stays as wide as without them, the other halves (1 / sqrt 4).
    assert width(*copies) == pytest.approx(width(score, label, patient))
    assert width(*copies) / ignoring == pytest.approx(2.0, rel=0.15)


def test_replicates_that_lack_a_class_are_drawn_again():
    # One malignant patient: more than a third of the replicates miss it.
    label = np.array([1, 0, 0, 0])
    low, high = auroc_interval(np.array([0.6, 0.1, 0.7, 0.2]), label, np.arange(4), bootstrap=400, seed=0)
    assert 0.0 <= low < high <= 1.0


def test_one_patient_with_both_classes_has_an_interval_of_no_width():
    found = evaluate_scores([0.2, 0.9], [0, 1], ["p", "p"], bootstrap=10, seed=0)
    assert found.auroc_ci == (1.0, 1.0)


@pytest.mark.parametrize(
    ("scores", "labels", "patients", "words"),
    [
        ([0.1, 0.2], [1, 1], [0, 1], "one class only"),
        ([0.1, 0.2], [0, 0], [0, 1], "one class only"),
        ([0.1, np.nan], [0, 1], [0, 1], "no NaN"),
        ([0.1, 1.1], [0, 1], [0, 1], "not a logit"),
        ([0.1, -0.1], [0, 1], [0, 1], "not a logit"),
        ([0.1, 0.2], [0, 2], [0, 1], "labels must be"),
        ([0.1, 0.2], [0, 1], [0], "one row per image"),
        ([[0.1, 0.2]], [[0, 1]], [[0, 1]], "one row per image"),
        ([], [], [], "one class only"),
    ],
)
def test_what_has_no_metric_is_refused(scores, labels, patients, words):
    with pytest.raises(DataError, match=words):
        evaluate_scores(scores, labels, patients, seed=0)


def test_an_interval_needs_a_replicate():
    with pytest.raises(InvalidSetting, match="bootstrap=0 must be at least 1"):
        evaluate_scores([0.1, 0.2], [0, 1], [0, 1], bootstrap=0, seed=0)
