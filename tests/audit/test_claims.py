"""The claim's trade-off curve: exact where it is Gaussian, never above the truth where steps are sampled."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import norm

from mammo_fed.audit.claims import Claim
from mammo_fed.errors import InvalidSetting
from mammo_fed.privacy.accounting.composition import gaussian_mu
from mammo_fed.privacy.accounting.pricing import epsilon
from mammo_fed.privacy.events import PrivacyEvent

DELTA = 1e-4


def claim_of(*events):
    return Claim(epsilon=epsilon(events, delta=DELTA, accountant="pld"), delta=DELTA, events=tuple(events), accountant="pld")


def step(*, noise=1.0, steps=1, sample_rate=1.0):
    return PrivacyEvent(
        mechanism="gradient",
        noise_multiplier=noise,
        steps=steps,
        sample_rate=sample_rate,
        unit="patient",
        clipping_norm=0.5,
        max_images_per_patient=16,
    )


def sampled_rates(thresholds, *, noise, sample_rate):
    """Exact error rates of thresholds on one sampled Gaussian step."""
    fpr = norm.sf(thresholds / noise)
    fnr = (1 - sample_rate) * norm.cdf(thresholds / noise) + sample_rate * norm.cdf((thresholds - 1) / noise)
    return fpr, fnr


def test_a_full_batch_claim_is_the_gaussian_curve_of_its_epsilon():
    claim = claim_of(step(noise=2.0, steps=9))
    assert claim.mu == pytest.approx(1.5, rel=1e-4)
    assert claim.mu == pytest.approx(gaussian_mu(epsilon=claim.epsilon, delta=DELTA), rel=1e-5)
    fpr = np.array([0.01, 0.3, 0.9])
    np.testing.assert_allclose(claim.least_fnr(fpr), norm.cdf(norm.isf(fpr) - claim.mu), rtol=1e-9)


def test_errors_on_the_curve_are_allowed_and_errors_below_it_are_not():
    claim = claim_of(step(noise=2.0, steps=9))
    fnr = float(claim.least_fnr(np.array([0.2]))[0])
    assert not claim.refuted_by(0.2, fnr * (1 + 1e-9))
    assert claim.refuted_by(0.2, fnr * (1 - 1e-9))


def test_the_bound_from_the_exact_errors_of_a_gaussian_is_its_epsilon():
    claim = claim_of(step(noise=2.0, steps=9))
    bound = claim.epsilon_lower(norm.sf(0.7), norm.cdf(0.7 - 1.5))
    assert bound == pytest.approx(claim.epsilon, rel=1e-3)


@pytest.mark.parametrize("sample_rate", [0.05, 0.3, 0.8])
def test_a_sampled_claim_allows_whatever_the_sampled_step_can_show(sample_rate):
    claim = claim_of(step(noise=0.8, sample_rate=sample_rate))
    assert claim.mu is None
    rates = sampled_rates(np.linspace(-3, 5, 60), noise=0.8, sample_rate=sample_rate)
    assert not any(claim.refuted_by(float(fpr), float(fnr)) for fpr, fnr in zip(*rates, strict=True))


def test_a_sampled_claim_forbids_what_the_full_batch_shows():
    claim = claim_of(step(noise=0.8, sample_rate=0.3))
    fpr, fnr = sampled_rates(np.array([0.5]), noise=0.8, sample_rate=1.0)
    assert claim.refuted_by(float(fpr[0]), float(fnr[0]))


def test_the_bound_for_a_sampled_claim_stays_below_it_and_says_something():
    claim = claim_of(step(noise=0.8, sample_rate=0.3))
    rates = sampled_rates(np.array([1.2, 1.6]), noise=0.8, sample_rate=0.3)
    bounds = [claim.epsilon_lower(float(fpr), float(fnr)) for fpr, fnr in zip(*rates, strict=True)]
    assert max(bounds) <= claim.epsilon
    assert min(bounds) > claim.epsilon / 2


def test_guessing_bounds_a_sampled_claim_by_nothing():
    assert claim_of(step(noise=0.8, sample_rate=0.3)).epsilon_lower(0.5, 0.5) == 0.0


@pytest.mark.parametrize("epsilon_", [0.0, math.inf])
def test_a_claim_that_promises_nothing_cannot_be_made(epsilon_):
    with pytest.raises(InvalidSetting, match="promises nothing"):
        replace(claim_of(step()), epsilon=epsilon_)


def test_a_claim_about_no_release_cannot_be_made():
    with pytest.raises(InvalidSetting, match="promises nothing"):
        Claim(epsilon=1.0, delta=DELTA, events=(), accountant="pld")
