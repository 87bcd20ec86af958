"""The sentences state the guarantee's facts, and the digits never flatter."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mammo_fed.errors import InvalidSetting
from mammo_fed.reporting.formatting import budget_text, delta_text, epsilon_text, headline_set, participation_text, readable
from mammo_fed.reporting.record.provenance import Provenance
from mammo_fed.reporting.record.statements import guarantee_sentence, not_covered_sentences, warning_sentences

PATIENT = {"unit": "patient", "epsilon": 6.0, "delta": 1e-4, "noise": "operating system", "ledger": "run"}
PUBLIC_PHANTOM = {
    "evaluation_public": True,
    "synthetic_source": "phantom",
    "seen": Provenance(epsilon=0.0, delta=0.0, trained_on="nothing"),
}

PRIVATE = Provenance(
    epsilon=3.0,
    delta=1e-5,
    trained_on="site A",
    generator_unit="patient",
    total_epsilon=6.37,
    total_delta=1e-4,
    total_unit="patient",
)


def last_sentence(seen):
    return not_covered_sentences(**{**PUBLIC_PHANTOM, "synthetic_source": "folder", "seen": seen})[-1]


def test_a_patient_level_run_is_described_in_full():
    assert guarantee_sentence(**PATIENT) == (
        "Each patient's data (all images) is protected with (epsilon=6, delta=1e-04)-differential privacy at its site for "
        "this run alone; neighbouring cohorts differ in one patient contributing nothing, cohort sizes are public constants."
    )


def test_a_ledger_over_several_runs_says_so():
    sentence = guarantee_sentence(**{**PATIENT, "ledger": "site"}, schedule_cost=3.207)
    assert "over all runs in the site's ledger" in sentence
    assert "this run alone" not in sentence


def test_a_guarantee_over_several_runs_is_the_cap_and_the_running_value_is_a_schedule_cost():
    sentence = guarantee_sentence(**{**PATIENT, "ledger": "site"}, schedule_cost=3.207)
    assert "(epsilon=6, delta=1e-04)" in sentence
    assert "by the cap that the ledger enforces (schedule cost so far: epsilon 3.21)" in sentence
    with pytest.raises(InvalidSetting, match="schedule_cost must be given"):
        guarantee_sentence(**{**PATIENT, "ledger": "site"})


def test_a_ledger_without_a_cap_guarantees_nothing_over_several_runs():
    sentence = guarantee_sentence(**{**PATIENT, "ledger": "site", "epsilon": math.inf}, schedule_cost=3.2)
    assert sentence == (
        "None: a site's policy for all runs in its ledger has no bound, so this run gives no privacy guarantee."
    )


def test_an_image_level_guarantee_over_several_runs_says_what_a_patient_has_paid_and_that_no_cap_holds_for_one():
    sentence = guarantee_sentence(
        **{**PATIENT, "unit": "image", "ledger": "site"}, patient_epsilon=37.9, max_images_per_patient=4, schedule_cost=3.2
    )
    assert "for a patient with 4 images no cap is set, and the schedule cost so far is epsilon 37.9;" in sentence


def test_lost_replies_and_figures_that_differ_are_said():
    found = warning_sentences(site="north", mismatches=[2, 3], unanswered=[7, 8])
    assert found == (
        "north: no readable reply came in rounds 7, 8; they are charged, as the reply may be in other hands.",
        "north: its own epsilon is not the server's after rounds 2, 3; the larger one is shown.",
    )
    assert warning_sentences(site="north", mismatches=[], unanswered=[]) == ()


def test_an_image_level_run_says_what_it_is_for_a_patient():
    sentence = guarantee_sentence(**{**PATIENT, "unit": "image"}, patient_epsilon=37.994, max_images_per_patient=4)
    assert sentence.startswith("Each image, not each patient,")
    assert "for a patient with 4 images epsilon is 38;" in sentence
    assert "one image contributing nothing" in sentence


def test_an_image_level_run_cannot_hide_what_it_is_for_a_patient():
    with pytest.raises(InvalidSetting, match="patient_epsilon"):
        guarantee_sentence(**{**PATIENT, "unit": "image"})


def test_injected_noise_guarantees_nothing_and_names_its_seed():
    assert guarantee_sentence(**{**PATIENT, "noise": "injected"}, noise_seed=7) == (
        "None: noise was injected with privacy.noise_seed=7, so this run gives no privacy guarantee."
    )


@pytest.mark.parametrize("change", [{"noise": "none"}, {"epsilon": math.inf}])
def test_a_run_without_noise_guarantees_nothing(change):
    sentence = guarantee_sentence(**{**PATIENT, **change})
    assert sentence.startswith("None: ")
    assert "epsilon=6" not in sentence


def test_a_run_that_every_site_refused_released_nothing():
    assert guarantee_sentence(**{**PATIENT, "epsilon": 0.0}).startswith("Nothing computed from a patient was released")


@pytest.mark.parametrize("change", [{"delta": 0.0}, {"delta": 1.0}, {"epsilon": -1.0}, {"epsilon": math.nan}])
def test_a_guarantee_out_of_range_is_refused(change):
    with pytest.raises(InvalidSetting, match="must be at least 0"):
        guarantee_sentence(**{**PATIENT, **change})


@given(st.floats(0, 1e4))
def test_a_shown_epsilon_is_at_most_a_hundredth_above_and_never_below_the_true_one(epsilon):
    shown = float(epsilon_text(epsilon))
    assert epsilon - 1.1e-8 <= shown <= epsilon + 0.01


@given(st.floats(0, 1e4))
def test_a_shown_budget_is_never_above_the_true_one(left):
    assert left - 0.01 <= float(budget_text(left)) <= left + 1.1e-8


@given(st.floats(1e-12, 0.5))
def test_a_shown_delta_is_the_exact_one(delta):
    assert float(delta_text(delta)) == delta


def test_a_phantom_costs_no_privacy():
    sentences = " ".join(not_covered_sentences(**PUBLIC_PHANTOM))
    assert "procedural" in sentences
    assert "generator" not in sentences


def test_a_generator_without_privacy_is_named_as_not_covered():
    last = last_sentence(Provenance(epsilon=math.inf, delta=0.0, trained_on="CBIS-DDSM training images"))
    assert "trained on CBIS-DDSM training images without differential privacy" in last
    assert "epsilon does not cover" in last


def test_a_private_generator_adds_its_own_epsilon():
    sentence = last_sentence(PRIVATE)
    assert "(epsilon=3, delta=1e-05)-differential privacy for each patient" in sentence
    assert "who may be in both cohorts are protected with (epsilon=6.37, delta=1e-04) for each patient" in sentence


def test_a_private_generator_of_the_same_patients_says_so():
    assert "patients who are in both cohorts" in last_sentence(replace(PRIVATE, overlap="some"))


def test_a_private_generator_of_others_leaves_each_cohort_its_own_guarantee():
    sentence = last_sentence(replace(PRIVATE, overlap="none"))
    assert "each cohort has its own guarantee" in sentence
    assert "a patient in both would have (epsilon=6.37, delta=1e-04) for each patient" in sentence


def test_a_private_generator_beside_a_run_without_guarantee_promises_nothing_in_all():
    assert "not protected in all" in last_sentence(replace(PRIVATE, total_epsilon=math.inf))


def test_a_generator_of_a_chosen_step_says_that_the_choice_is_not_covered():
    assert "a choice that no epsilon covers" in last_sentence(replace(PRIVATE, chosen="by request"))


def test_a_generator_of_others_without_privacy_is_still_not_covered():
    sentence = last_sentence(Provenance(epsilon=math.inf, delta=0.0, trained_on="some", overlap="none"))
    assert "does not cover what it reveals about them, nobody of them is among the patients" in sentence


@pytest.mark.parametrize(("public", "words"), [(True, "public cohorts"), (False, "sites' policies allow")])
def test_evaluation_counts_and_tuning_are_always_named(public, words):
    evaluation, counts, tuning, _ = not_covered_sentences(**{**PUBLIC_PHANTOM, "evaluation_public": public})
    assert "without differential privacy" in evaluation
    assert words in evaluation
    assert "public by declaration" in counts
    assert "Hyper-parameters" in tuning


def test_text_that_does_not_print_is_made_visible():
    assert readable("a\x1b[31mb\u202ec\nd") == "a?[31mb?c?d"


def test_the_headline_speaks_of_the_test_set_before_validation():
    assert headline_set(["val", "external", "test"]) == "test"
    assert headline_set(["val"]) == "val"
    assert headline_set([]) is None


@pytest.mark.parametrize(
    ("rounds", "refused", "charged", "words"),
    [
        (3, False, False, "took part"),
        (3, False, True, "took part"),
        (3, True, False, "refused after round 3"),
        (0, True, False, "refused"),
        (0, False, False, "not asked"),
        (0, False, True, "no usable answer"),
    ],
)
def test_participation_in_words(rounds, refused, charged, words):
    assert participation_text(rounds=rounds, refused=refused, charged=charged) == words


def test_relation_of_a_price_to_floating_point_is_said_with_the_guarantee_and_beside_it():
    exact, floating = (guarantee_sentence(**PATIENT, floating=floating) for floating in (False, True))
    assert "differential privacy in exact arithmetic (the noise was drawn in floating point) at its site" in floating
    assert "exact arithmetic" not in exact
    beside, none = (not_covered_sentences(**PUBLIC_PHANTOM, floating=floating) for floating in (True, False))
    assert [sentence for sentence in beside if "floating point" in sentence] == list(set(beside) - set(none))
    assert any("privacy.noise=float" in sentence and "privacy.noise=secure" in sentence for sentence in beside)


def test_relation_of_a_generators_price_to_floating_point_is_said_of_its_set():
    assert "exact arithmetic" not in last_sentence(PRIVATE)
    said = last_sentence(replace(PRIVATE, generator_floating=True))
    assert "differential privacy in exact arithmetic (the noise was drawn in floating point) for each patient" in said
