"""What the adversary knows and sends: its forecasts are the site's own code, and the gradient canary reaches every clip."""

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from scipy.stats import norm

from mammo_fed.audit.adversaries import Question, evidence
from mammo_fed.audit.canaries import CANARIES, place_canary
from mammo_fed.audit.gate import noiseless
from mammo_fed.audit.subject import Mechanism, sensitivity
from mammo_fed.audit.trials import run_trial
from mammo_fed.errors import InvalidSetting
from mammo_fed.privacy.noise import NoiseSource
from mammo_fed.training.local import release_mean, train_head


class Silent(NoiseSource):
    """A source without noise."""

    def draws(self, mode, *, site, round_index, purpose):
        return noiseless("float")


def silent_trial(subject, data, canary):
    return run_trial(Mechanism(), subject, data, canary, source=Silent(injected_seed=0))


def question(*, repetitions=1, sample_rate=1.0, scale=2.0):
    return Question(
        round_index=1,
        feature_mean=np.zeros(3, np.float32),
        parameters=np.zeros(3, np.float32),
        steps=None,
        absent=np.array([1.0, 0.0, 0.0]),
        shift=np.array([0.0, 3.0, 0.0]),
        scale=scale,
        repetitions=repetitions,
        sample_rate=sample_rate,
    )


def test_evidence_of_one_gaussian_message_is_the_log_likelihood_ratio():
    reply = np.array([5.0, 1.7, -9.0], np.float32)
    ratio = norm.logpdf(1.7, loc=3.0, scale=2.0) - norm.logpdf(1.7, loc=0.0, scale=2.0)
    assert evidence(question(), reply) == pytest.approx(ratio, rel=1e-6)


def test_evidence_of_a_sampled_message_is_the_ratio_of_the_mixture():
    # One participation adds 3 / 0.25 = 12 where the mean over samples adds 3.
    reply = np.array([1.0, 4.0, 0.0], np.float32)
    mixture = 0.75 * norm.pdf(4.0, scale=2.0) + 0.25 * norm.pdf(4.0, loc=12.0, scale=2.0)
    expected = math.log(mixture / norm.pdf(4.0, scale=2.0))
    assert evidence(question(sample_rate=0.25), reply) == pytest.approx(expected, rel=1e-6)


def test_a_reply_that_is_not_finite_gives_everything_away():
    assert evidence(question(), np.array([1.0, np.nan, 0.0], np.float32)) == math.inf


def test_a_canary_that_moves_nothing_gives_no_evidence():
    still = replace(question(), shift=np.zeros(3))
    assert evidence(still, np.ones(3, np.float32)) == 0.0


@pytest.mark.parametrize("unit", ["patient", "image"])
@pytest.mark.parametrize("local_steps", [1, 3])
def test_the_gradient_canary_stands_as_far_off_as_the_claim_allows(make_subject, unit, local_steps):
    """Without noise the evidence is -mu^2 / 2 or mu^2 / 2: the claim's own mu, from every message together."""
    subject = make_subject(unit=unit, local_steps=local_steps)
    canary = place_canary(subject, "gradient", seed=0)
    half = subject.claim.mu**2 / 2
    assert silent_trial(subject, canary.absent, canary) == pytest.approx(-half, rel=2e-3)
    assert silent_trial(subject, canary.present, canary) == pytest.approx(half, rel=2e-3)


def test_the_gradient_canary_turns_round_from_round_to_round(make_subject):
    canary = place_canary(make_subject(), "gradient", seed=0)
    rounds = [asked.shift for asked in canary.play() if asked.round_index]
    assert len(rounds) == 4
    for first, second in pairwise(rounds):
        cosine = first @ second / (np.linalg.norm(first) * np.linalg.norm(second))
        assert cosine < -0.9


@pytest.mark.parametrize("kind", CANARIES)
def test_forecasts_are_what_the_site_answers_without_noise(make_subject, kind):
    subject = make_subject()
    canary = place_canary(subject, kind, seed=1)
    play = canary.play()
    asked, messages = next(play), 0
    while True:
        if asked.steps is None:
            reply = release_mean(canary.present, event=subject.schedule.mean_event, noise=noiseless("float"))
        else:
            reply = train_head(
                canary.present,
                asked.parameters,
                head=subject.head,
                feature_mean=asked.feature_mean,
                steps=asked.steps,
                event=subject.schedule.step_event,
                closed_form=True,
                noise=noiseless("float"),
                sampling=noiseless("float"),
            )
        np.testing.assert_allclose(reply, asked.absent + asked.shift, rtol=1e-4, atol=1e-4)
        messages += 1
        try:
            asked = play.send(reply)
        except StopIteration:
            break
    assert messages == 5


def test_a_canary_takes_one_seat_and_leaves_the_public_count(make_subject):
    subject = make_subject()
    for kind in CANARIES:
        canary = place_canary(subject, kind, seed=3)
        assert len(np.unique(canary.absent.units)) == 7
        assert len(np.unique(canary.present.units)) == 8
        assert canary.absent.public_images == canary.present.public_images == subject.data.public_images


def test_the_mislabelled_canary_is_a_patient_with_the_other_label(make_subject):
    subject = make_subject()
    canary = place_canary(subject, "mislabelled", seed=3)
    mine = canary.present.units == canary.present.units.max()
    rows = [int(np.flatnonzero((subject.data.features == row).all(axis=1))[0]) for row in canary.present.features[mine]]
    np.testing.assert_array_equal(canary.present.labels[mine], 1 - subject.data.labels[rows])


def test_a_site_of_one_patient_has_no_seat_for_a_canary(make_subject):
    with pytest.raises(InvalidSetting, match="at least two patients"):
        place_canary(make_subject(patients=1), "gradient", seed=0)


def test_an_unknown_canary_is_named(make_subject):
    with pytest.raises(InvalidSetting, match=r"canary='coal' must be one of .*--canary"):
        place_canary(make_subject(), "coal", seed=0)


@pytest.mark.parametrize("noise", ["secure", "float"])
@pytest.mark.parametrize(
    "site", [{}, {"unit": "image"}, {"sample_rate": 0.3}, {"sample_rate": 0.3, "kind": "mlp"}, {"mean_fraction": 0.0}]
)
def test_the_gate_passes_the_sites_own_code_and_reaches_its_clip(make_subject, site, noise):
    moves = sensitivity(make_subject(**site, noise=noise), Mechanism())
    assert set(moves) == ({"gradient"} if "mean_fraction" in site else {"gradient", "mean"})
    assert all(0.99 < move <= 1 + 1e-4 for move in moves.values())
