"""Faults that the gate or the audit must catch; each test says which of them does."""

import math
from dataclasses import replace

import numpy as np
import pytest

from mammo_fed.audit.claims import Claim
from mammo_fed.audit.report import audit_subject
from mammo_fed.audit.subject import sensitivity
from mammo_fed.audit.trials import audit_canary
from mammo_fed.privacy.accounting.pricing import epsilon
from mammo_fed.privacy.noise import NoiseSource
from mammo_fed.training.local import release_mean, train_head

SLACK = 1 + 1e-4


def refuted(subject, mechanism, trials=200):
    return audit_canary(subject, "gradient", trials=trials, seed=0, mechanism=mechanism).rejected


def with_noise(factor):
    """The site's code with `factor` times the noise that it has declared."""

    def less(event):
        return replace(event, noise_multiplier=event.noise_multiplier * factor)

    return {
        "mean": lambda site, *, event, noise: release_mean(site, event=less(event), noise=noise),
        "train": lambda site, flat, *, event, **rest: train_head(site, flat, event=less(event), **rest),
    }


@pytest.mark.parametrize("noise", ["secure", "float"])
def test_no_mutation_is_not_refuted(make_subject, seeded, noise):
    subject = make_subject(noise=noise)
    found = audit_canary(subject, "gradient", trials=300, seed=0, mechanism=seeded())
    assert not found.rejected
    assert 3 < found.epsilon_lower < subject.claim.epsilon
    assert 0 < found.epsilon_assumption_free < subject.claim.epsilon


@pytest.mark.parametrize("noise", ["secure", "float"])
def test_mutation_no_noise_is_caught_by_the_audit(make_subject, seeded, noise):
    subject, code = make_subject(noise=noise), seeded(**with_noise(0.0))
    assert max(sensitivity(subject, code).values()) <= SLACK, "the gate switches the noise off anyway: it cannot see this"
    assert refuted(subject, code)


@pytest.mark.parametrize("noise", ["secure", "float"])
def test_mutation_half_noise_is_caught_by_the_audit(make_subject, seeded, noise):
    subject, code = make_subject(noise=noise), seeded(**with_noise(0.5))
    assert max(sensitivity(subject, code).values()) <= SLACK
    assert refuted(subject, code)


@pytest.mark.parametrize("noise", ["secure", "float"])
def test_mutation_noise_smaller_by_the_root_of_2_breaks_the_relation_and_fails_the_audit(make_subject, seeded, noise):
    subject, code = make_subject(noise=noise), seeded(**with_noise(math.sqrt(0.5)))
    report = audit_subject(subject, run_id="r", trials=50, canaries=(), seed=0, mechanism=code)
    assert any("check of its scale" in fault for fault in report.faults)


def test_mutation_noise_twenty_percent_too_low_is_caught_by_the_audit(make_subject, seeded):
    subject = make_subject(rounds=1)
    assert refuted(subject, seeded(**with_noise(0.8)), trials=2000)


@pytest.mark.slow
def test_mutation_noise_twenty_percent_too_low_fails_most_audits(make_subject, seeded):
    """As often as a person would see it: fresh noise, the number of trials that the command line takes by default."""
    subject = make_subject()
    fresh = [
        refuted(subject, seeded(**with_noise(0.8), sources=lambda _: NoiseSource(injected_seed=None)), trials=1500)
        for _ in range(5)
    ]
    assert sum(fresh) > len(fresh) / 2


def test_mutation_no_clipping_is_caught_by_the_gate_and_by_the_audit(make_subject, seeded):
    def unclipped(site, flat, *, event, **rest):
        loose = replace(event, clipping_norm=event.clipping_norm * 1e4, noise_multiplier=event.noise_multiplier / 1e4)
        return train_head(site, flat, event=loose, **rest)

    subject, code = make_subject(), seeded(train=unclipped)
    assert sensitivity(subject, code)["gradient"] > 2
    assert refuted(subject, code)


def test_mutation_no_clipping_of_the_mean_is_caught_by_the_gate_and_by_the_audit(make_subject, seeded):
    def unclipped(site, *, event, noise):
        loose = replace(event, clipping_norm=event.clipping_norm * 1e9, noise_multiplier=event.noise_multiplier / 1e9)
        return release_mean(site, event=loose, noise=noise)

    subject, code = make_subject(), seeded(mean=unclipped)
    assert sensitivity(subject, code)["mean"] > 2
    assert refuted(subject, code)


@pytest.mark.parametrize("sample_rate", [1.0, pytest.param(0.5, marks=pytest.mark.slow)])
def test_mutation_per_image_clipping_under_a_patient_claim_is_caught_by_the_gate_and_by_the_audit(
    make_subject, seeded, sample_rate
):
    def by_image(site):
        return replace(site, units=np.arange(len(site.units)))

    code = seeded(
        mean=lambda site, **rest: release_mean(by_image(site), **rest),
        train=lambda site, flat, **rest: train_head(by_image(site), flat, **rest),
    )
    subject = make_subject(rounds=1, sample_rate=sample_rate)
    moves = sensitivity(subject, code)
    assert moves["gradient"] > 2
    assert moves["mean"] > 2
    assert refuted(subject, code, trials=100)


@pytest.mark.parametrize("sample_rate", [1.0, pytest.param(0.5, marks=pytest.mark.slow)])
def test_mutation_one_patient_under_two_units_breaks_the_identity_of_gate_and_audit(make_subject, seeded, sample_rate):
    """The later half of each patient's images is filed under a second unit, on the way from the cohort to the mechanism."""

    def split(site):
        images = np.arange(len(site.units))
        rank = images - np.searchsorted(site.units, site.units)
        later = rank >= np.bincount(site.units)[site.units] / 2
        return replace(site, units=np.unique(2 * site.units + later, return_inverse=True)[1].astype(np.int64))

    code = seeded(
        mean=lambda site, **rest: release_mean(split(site), **rest),
        train=lambda site, flat, **rest: train_head(split(site), flat, **rest),
    )
    subject = make_subject(rounds=1, sample_rate=sample_rate)
    moves = sensitivity(subject, code)
    assert moves["gradient"] > 1.9
    assert moves["mean"] > 1.9
    assert refuted(subject, code, trials=200)


@pytest.mark.parametrize("noise", ["secure", "float"])
def test_mutation_one_seed_for_all_rounds_is_caught_by_the_audit(make_subject, seeded, noise):
    class OneSeed(NoiseSource):
        """Fresh for every run, the same in every round."""

        def draws(self, mode, *, site, round_index, purpose):
            return super().draws(mode, site=site, round_index=1, purpose=purpose)

    subject = make_subject(noise=noise)
    code = seeded(sources=lambda trial: OneSeed(injected_seed=trial))
    assert max(sensitivity(subject, code).values()) <= SLACK
    assert refuted(subject, code)


def test_mutation_one_seed_for_all_runs_is_caught_by_the_audit(make_subject, seeded):
    subject = make_subject()
    assert refuted(subject, seeded(sources=lambda _: NoiseSource(injected_seed=5)))


def test_mutation_sampling_claimed_but_not_done_is_caught_by_the_audit(make_subject, seeded):
    rate = 0.25

    def everybody(site, flat, *, event, **rest):
        """Every patient in every step, with the noise and the denominator of the sampled step."""
        crowded = replace(site, public_images=max(1, int(rate * site.public_images)))
        return train_head(crowded, flat, event=replace(event, sample_rate=1.0), **rest)

    subject = make_subject(rounds=2, sample_rate=rate)
    moves = sensitivity(subject, seeded(train=everybody))
    assert max(moves.values()) <= SLACK, "the gate takes full batches anyway: it cannot see this"
    assert refuted(subject, seeded(train=everybody), trials=100)
    assert not refuted(subject, seeded(), trials=40)


def test_mutation_sampling_rate_doubled_breaks_the_relation_and_fails_the_audit(make_subject, seeded):
    def twice(site, flat, *, event, **rest):
        """Twice as many patients in a step, with the noise and the denominator of the declared step."""
        rate = min(1.0, 2 * event.sample_rate)
        crowded = replace(site, public_images=max(1, int(site.public_images * event.sample_rate / rate)))
        return train_head(crowded, flat, event=replace(event, sample_rate=rate), **rest)

    subject, code = make_subject(rounds=2, sample_rate=0.25), seeded(train=twice)
    report = audit_subject(subject, run_id="r", trials=60, canaries=(), seed=0, mechanism=code)
    assert any("check of its sampling rate" in fault for fault in report.faults)


def reset_every_round(subject):
    """The subject with a claim that counts one round of its schedule only."""
    events = (subject.schedule.step_event,)
    price = epsilon(events, delta=subject.claim.delta, accountant="pld")
    return replace(subject, claim=Claim(epsilon=price, delta=subject.claim.delta, events=events, accountant="pld"))


def test_mutation_accountant_reset_every_round_is_caught_by_the_price_and_by_the_audit(make_subject, seeded):
    subject = reset_every_round(make_subject(rounds=8))
    report = audit_subject(subject, run_id="r", trials=200, canaries=("gradient",), seed=0, mechanism=seeded())
    assert any("below the price" in fault for fault in report.faults)
    assert any("gradient canary refutes" in fault for fault in report.faults)


def test_mutation_accountant_reset_under_sampling_is_caught_by_the_price(make_subject, seeded):
    subject = reset_every_round(make_subject(rounds=8, sample_rate=0.25))
    report = audit_subject(subject, run_id="r", trials=20, canaries=(), seed=0, mechanism=seeded())
    assert [fault for fault in report.faults if "below the price" in fault] == list(report.faults) != []
