"""Closed forms, a second implementation, properties and bad input of the mechanisms."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mammo_fed.audit.gate import noiseless
from mammo_fed.errors import InvalidSetting
from mammo_fed.models.heads import HeadSpec, build_head, flatten, head_loss, load_flat
from mammo_fed.privacy.events import PrivacyEvent, events_from_json, events_to_json
from mammo_fed.privacy.mechanisms.full_batch import (
    LogisticData,
    clip_factors,
    clipped_logistic_sum,
    private_descent,
    private_mean,
)
from mammo_fed.privacy.mechanisms.poisson_sgd import PoissonData, poisson_steps
from mammo_fed.privacy.noise import FloatDraws, GridDraws

EVENT = PrivacyEvent(
    mechanism="gradient",
    noise_multiplier=2.0,
    steps=1,
    sample_rate=1.0,
    unit="patient",
    clipping_norm=0.5,
    max_images_per_patient=16,
)
MEAN = dataclasses.replace(EVENT, mechanism="mean", clipping_norm=1.0)


def draws(noise, seed):
    """Repeatable draws of either kind."""
    return (
        FloatDraws(generator=np.random.default_rng(seed))
        if noise == "float"
        else GridDraws(words=np.random.PCG64DXSM(seed).random_raw)
    )


def silent(noise, charged):
    """Draws that add nothing, and the event to go with them."""
    if noise == "float":
        return noiseless("float"), charged
    return draws(noise, 0), dataclasses.replace(charged, noise_multiplier=0.0)


def small_cohort(images=30, dims=4, patients=12, seed=0):
    rng = np.random.default_rng(seed)
    features = rng.standard_normal((images, dims)).astype(np.float32)
    return features, rng.integers(0, 2, images), rng.integers(0, patients, images)


def poisson_moves(features, labels, units, start, charged, **changes):
    spec = HeadSpec(kind="linear", dims=features.shape[1])
    head = build_head(spec, seed=0)
    load_flat(head, start)
    options = {
        "public_images": len(features),
        "learning_rate": 3.0,
        "weight_decay": 0.0,
        "optimizer": "sgd",
        "proximal": 0.0,
        "noise": noiseless("float"),
        "sampling": FloatDraws(generator=np.random.default_rng(5)),
    } | changes
    poisson_steps(
        head,
        PoissonData(features=features, labels=labels, units=units),
        loss=lambda logits, truth: head_loss(logits, truth, label_smoothing=0.0),
        event=charged,
        **options,
    )
    return flatten(head)


def test_unclipped_sum_is_the_gradient_that_autograd_finds():
    features, labels, units = small_cohort()
    weights = np.array([0.3, -1.0, 2.0, 0.1, 0.7], np.float32)
    data = LogisticData.build(features, labels, units, bias_scale=0.2)
    head = build_head(HeadSpec(kind="linear", dims=4), seed=0)
    load_flat(head, weights)
    head_loss(head(torch.from_numpy(features)), torch.from_numpy(labels), label_smoothing=0.0).sum().backward()
    expected = next(head.parameters()).grad.numpy().ravel()
    np.testing.assert_allclose(clipped_logistic_sum(data, weights, clipping_norm=1e9), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("noise", ["secure", "float"])
@pytest.mark.parametrize("clipping_norm", [0.05, 0.5, 50.0])
def test_closed_form_equals_opacus_with_a_full_batch(clipping_norm, noise):
    features, labels, units = small_cohort()
    units = np.unique(units, return_inverse=True)[1]
    start = np.array([0.3, -1.0, 2.0, 0.1, 0.7], np.float32)
    charged = dataclasses.replace(EVENT, clipping_norm=clipping_norm, steps=4)
    data = LogisticData.build(features, labels, units, bias_scale=0.2)
    quiet, event = silent(noise, charged)
    closed = private_descent(data, start, event=event, public_images=30, learning_rate=3.0, proximal=0.1, noise=quiet)
    opacus = poisson_moves(features, labels, units, start, charged, proximal=0.1)
    np.testing.assert_allclose(closed, opacus, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("noise", ["secure", "float"])
def test_descent_noise_has_the_promised_scale(noise):
    data = LogisticData.build(np.zeros((0, 3), np.float32), np.zeros(0, int), np.zeros(0, int), bias_scale=0.2)
    moved = np.array(
        [
            private_descent(
                data,
                np.zeros(4, np.float32),
                event=EVENT,
                public_images=10,
                learning_rate=1.0,
                proximal=0.0,
                noise=draws(noise, seed),
            )
            for seed in range(3000)
        ]
    )
    assert moved.std() == pytest.approx(2.0 * 0.5 / 10, rel=0.03)
    assert abs(moved.mean()) < 0.005


@pytest.mark.parametrize("noise", ["secure", "float"])
def test_poisson_noise_has_the_promised_scale_and_an_empty_batch_is_a_step(noise):
    charged = dataclasses.replace(EVENT, sample_rate=1e-12)
    features, labels, units = small_cohort()
    units = np.unique(units, return_inverse=True)[1]
    start = np.zeros(5, np.float32)
    moved = np.array(
        [
            poisson_moves(
                features,
                labels,
                units,
                start,
                charged,
                learning_rate=1e-12,
                noise=draws(noise, seed),
                sampling=draws(noise, seed + 1000),
            )
            for seed in range(400)
        ]
    )
    # One step of noise alone: learning rate * multiplier * clip / (rate * count).
    assert moved.std() == pytest.approx(1e-12 * 2.0 * 0.5 / (1e-12 * 30), rel=0.05)


@pytest.mark.parametrize("noise", ["secure", "float"])
def test_poisson_takes_units_with_the_charged_rate(noise):
    sampling, taken = draws(noise, 0), []
    features, labels = np.eye(50, dtype=np.float32), np.zeros(50, int)
    charged = dataclasses.replace(EVENT, sample_rate=0.3, unit="image", noise_multiplier=0.0)
    for _ in range(60):
        moved = poisson_moves(
            features, labels, np.arange(50), np.zeros(51, np.float32), charged, noise=draws(noise, 1), sampling=sampling
        )
        taken.append(np.count_nonzero(moved[:50]) / 50)
    assert np.mean(taken) == pytest.approx(0.3, abs=0.03)
    assert np.std(taken) == pytest.approx(np.sqrt(0.3 * 0.7 / 50), rel=0.35)


@pytest.mark.parametrize("noise", ["secure", "float"])
def test_mean_clips_a_patient_once_however_many_images(noise):
    features = np.tile(np.array([[0.5, 0.0]], np.float32), (10, 1))
    quiet, charged = silent(noise, MEAN)
    released = private_mean(features, np.zeros(10, int), event=charged, public_images=1, noise=quiet)
    np.testing.assert_allclose(released, [1.0, 0.0], rtol=1e-5)


rows = hnp.arrays(
    np.float32, st.tuples(st.integers(1, 10), st.just(3)), elements=st.floats(-1e6, 1e6, width=32) | st.just(np.nan)
)


@settings(deadline=None, max_examples=60)
@given(rows, st.floats(0.01, 10))
def test_property_a_patient_moves_the_gradient_sum_by_at_most_the_clipping_norm(features, clipping_norm):
    units = np.arange(len(features)) // 2
    labels = np.arange(len(features)) % 2
    last = units == units[-1]
    weights = np.array([0.5, -0.5, 1.0, 0.2], np.float32)

    def release(keep):
        data = LogisticData.build(features[keep], labels[keep], units[keep], bias_scale=0.2)
        return clipped_logistic_sum(data, weights, clipping_norm=clipping_norm).astype(np.float64)

    gap = np.linalg.norm(release(np.ones(len(features), bool)) - release(~last))
    assert gap <= clipping_norm * (1 + 1e-4)


@given(hnp.arrays(np.float64, 5, elements=st.floats(0, 1e300) | st.just(np.nan) | st.just(np.inf)), st.floats(1e-3, 1e3))
def test_property_factors_bring_every_norm_to_the_clip_and_drop_what_is_not_finite(norms, clipping_norm):
    factors = clip_factors(norms, clipping_norm=clipping_norm)
    assert ((factors >= 0) & (factors <= 1)).all()
    finite = np.isfinite(norms)
    assert (factors[finite] * norms[finite] <= clipping_norm).all()
    assert (factors[~finite] == 0).all()


def test_a_gradient_event_is_refused_for_a_mean_and_the_other_way_round():
    features, labels, units = small_cohort()
    with pytest.raises(InvalidSetting, match="must be one full-batch step on a mean"):
        private_mean(features, units, event=EVENT, public_images=1, noise=noiseless("float"))
    data = LogisticData.build(features, labels, units, bias_scale=0.2)
    with pytest.raises(InvalidSetting, match="must be full-batch gradient steps"):
        private_descent(
            data,
            np.zeros(5, np.float32),
            event=MEAN,
            public_images=1,
            learning_rate=1.0,
            proximal=0.0,
            noise=noiseless("float"),
        )


@pytest.mark.parametrize("count", [0, -3])
def test_a_public_count_below_one_is_refused(count):
    features, _, units = small_cohort()
    with pytest.raises(InvalidSetting, match=r"public_images=.* must be at least 1; check the site's policy"):
        private_mean(features, units, event=MEAN, public_images=count, noise=noiseless("float"))


def test_events_survive_json_and_bad_ones_are_named():
    assert events_from_json(events_to_json([EVENT, MEAN])) == (EVENT, MEAN)
    with pytest.raises(InvalidSetting, match="relation"):
        PrivacyEvent.from_dict({**EVENT.as_dict(), "relation": "replace"})
    for field, value in (("noise_multiplier", -1.0), ("steps", 0), ("sample_rate", 1.5), ("clipping_norm", np.nan)):
        with pytest.raises(InvalidSetting, match=field):
            dataclasses.replace(EVENT, **{field: value})
