"""Honest updates stay within their limit, whatever the patients are; a hundred times as much does not."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from declarations import declared, usual_model
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mammo_fed.federation.protocol.task import Declaration, RoundTask
from mammo_fed.models.heads import build_head, flatten
from mammo_fed.privacy.events import PrivacyEvent
from mammo_fed.privacy.mechanisms.poisson_sgd import PublicBatches
from mammo_fed.privacy.noise import NoiseSource
from mammo_fed.server.rounds.reply_checks import update_bound
from mammo_fed.training.local import LocalSteps, SiteFeatures, release_mean, train_head

DIMS = 24
PATIENTS = 20
IMAGES = 40
WORST = 100
# Where noise is most of it; 11 was seen.
TIGHT = 15


def declaration_of(**changed: object) -> Declaration:
    model = replace(usual_model(), flips="none", **changed.pop("model", {}))
    usual = {"dims": DIMS, "clipping_norm": 0.45, "batch_size": 10, "rounds": 4, "noise": "float"}
    return declared(model=model, **{**usual, **changed})


def task_of(**changed: object) -> RoundTask:
    values = {
        "run_id": "run1",
        "round_index": 1,
        "kind": "train",
        "learning_rate": 100.0,
        "weight_decay": 0.0,
        "optimizer": "sgd",
        "label_smoothing": 0.0,
        "proximal": 0.0,
    }
    return RoundTask(**{**values, **changed})


def event_of(declaration: Declaration, *, noise: float, steps: int, sample_rate: float, mean: bool = False) -> PrivacyEvent:
    return PrivacyEvent(
        mechanism="mean" if mean else "gradient",
        noise_multiplier=noise,
        steps=steps,
        sample_rate=sample_rate,
        unit=declaration.unit,
        clipping_norm=declaration.mean_clipping_norm if mean else declaration.clipping_norm,
        max_images_per_patient=4,
    )


def patients(rng: np.random.Generator, *, alike: bool, unit: str) -> SiteFeatures:
    """Unit-norm features; `alike` is the worst case: every patient pulls the same way."""
    features = rng.standard_normal((IMAGES, DIMS))
    if alike:
        features[:] = features[0]
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    labels = np.ones(IMAGES, np.int64) if alike else rng.integers(2, size=IMAGES)
    units = np.arange(IMAGES) // (IMAGES // PATIENTS) if unit == "patient" else np.arange(IMAGES)
    return SiteFeatures(features=features.astype(np.float32), labels=labels, units=units, public_images=IMAGES)


def trained(
    declaration: Declaration,
    task: RoundTask,
    event: PrivacyEvent,
    *,
    rng: np.random.Generator,
    alike: bool,
    flat: np.ndarray,
    public: PublicBatches | None = None,
    state: dict | None = None,
) -> np.ndarray:
    source = NoiseSource(injected_seed=int(rng.integers(1 << 30)))
    draws = {
        purpose: source.draws(declaration.noise, site="a", round_index=1, purpose=purpose) for purpose in ("noise", "sampling")
    }
    return train_head(
        patients(rng, alike=alike, unit=declaration.unit),
        flat,
        head=declaration.head,
        feature_mean=np.zeros(DIMS, np.float32),
        steps=LocalSteps(
            learning_rate=task.learning_rate,
            weight_decay=task.weight_decay,
            optimizer=task.optimizer,
            label_smoothing=task.label_smoothing,
            proximal=task.proximal,
        ),
        event=event,
        closed_form=declaration.mechanism == "dp_gd",
        public=public,
        state=state,
        **draws,
    )


def bound(declaration: Declaration, task: RoundTask, event: PrivacyEvent, flat: np.ndarray) -> float:
    return update_bound(declaration, task, [event], public_images=IMAGES, public_patients=PATIENTS, parameters=flat)


noises = st.sampled_from([0.0, 0.3, 2.0, 20.0])
common = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@common
@given(
    noise=noises,
    unit=st.sampled_from(["patient", "image"]),
    kind=st.sampled_from(["secure", "float"]),
    alike=st.booleans(),
    seed=st.integers(0, 2**20),
)
def test_an_honest_mean_is_within_its_bound_and_not_far_below_where_patients_are_alike(noise, unit, kind, alike, seed):
    declaration = declaration_of(unit=unit, noise=kind, mean_clipping_norm=2.0 if unit == "patient" else 1.0)
    event = event_of(declaration, noise=noise, steps=1, sample_rate=1.0, mean=True)
    rng = np.random.default_rng(seed)
    draws = NoiseSource(injected_seed=seed).draws(kind, site="a", round_index=0, purpose="noise")
    mean = release_mean(patients(rng, alike=alike, unit=unit), event=event, noise=draws)
    task = task_of(round_index=0, kind="mean")
    length, limit = float(np.linalg.norm(mean)), bound(declaration, task, event, np.zeros(DIMS, np.float32))
    assert length <= limit
    # Where nobody is alike and there is no noise, the mean is short by itself.
    assert limit <= WORST * length
    if alike:
        assert limit <= TIGHT * length


@common
@given(
    noise=noises,
    unit=st.sampled_from(["patient", "image"]),
    kind=st.sampled_from(["secure", "float"]),
    steps=st.integers(1, 4),
    proximal=st.sampled_from([0.0, 0.01, 1.0]),
    alike=st.booleans(),
    seed=st.integers(0, 2**20),
)
def test_honest_full_batch_steps_are_within_their_bound(noise, unit, kind, steps, proximal, alike, seed):
    declaration = declaration_of(unit=unit, noise=kind, local_steps=steps, clipping_norm=0.1)
    event = event_of(declaration, noise=noise, steps=steps, sample_rate=1.0)
    task, rng = task_of(proximal=proximal), np.random.default_rng(seed)
    flat = np.zeros(DIMS + 1, np.float32)
    update = trained(declaration, task, event, rng=rng, alike=alike, flat=flat) - flat
    length, limit = float(np.linalg.norm(update)), bound(declaration, task, event, flat)
    assert length <= limit
    if noise >= 2 or steps == 1:
        assert limit <= WORST * length
    if noise >= 2 or (alike and steps == 1):
        assert limit <= TIGHT * length


@common
@given(
    noise=noises,
    unit=st.sampled_from(["patient", "image"]),
    kind=st.sampled_from(["secure", "float"]),
    optimizer=st.sampled_from(["sgd", "adamw"]),
    rate=st.sampled_from([0.05, 0.3, 1.0]),
    decay=st.sampled_from([0.0, 0.01, 0.5]),
    proximal=st.sampled_from([0.0, 0.1]),
    steps=st.integers(1, 6),
    start=st.sampled_from([0.0, 3.0]),
    alike=st.booleans(),
    seed=st.integers(0, 2**20),
)
def test_honest_sampled_steps_are_within_their_bound(
    noise, unit, kind, optimizer, rate, decay, proximal, steps, start, alike, seed
):
    declaration = declaration_of(mechanism="dp_sgd", unit=unit, noise=kind, local_steps=steps, mean_fraction=0.0)
    event = event_of(declaration, noise=noise, steps=steps, sample_rate=rate)
    learning_rate = 0.02 if optimizer == "adamw" else 5.0
    task = task_of(learning_rate=learning_rate, weight_decay=decay, optimizer=optimizer, proximal=proximal)
    rng = np.random.default_rng(seed)
    flat = (start * rng.standard_normal(DIMS + 1)).astype(np.float32)
    update = trained(declaration, task, event, rng=rng, alike=alike, flat=flat) - flat
    length, limit = float(np.linalg.norm(update)), bound(declaration, task, event, flat)
    assert length <= limit
    # A strong decay at this learning rate turns the parameters round in each step: the bound takes the worst of these.
    if noise >= 2 and decay < 0.5 and decay * start == 0 and rate >= 0.3:
        assert limit <= TIGHT * length


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_larger_head_of_any_kind_is_bounded_too(optimizer):
    declaration = declaration_of(
        mechanism="dp_sgd", local_steps=3, mean_fraction=0.0, model={"head": "mlp", "hidden": 8, "norm": "none"}
    )
    event = event_of(declaration, noise=2.0, steps=3, sample_rate=0.3)
    task = task_of(learning_rate=0.02 if optimizer == "adamw" else 5.0, optimizer=optimizer)
    flat = flatten(build_head(declaration.head, seed=1))
    update = trained(declaration, task, event, rng=np.random.default_rng(1), alike=False, flat=flat) - flat
    length, limit = float(np.linalg.norm(update)), bound(declaration, task, event, flat)
    assert length <= limit <= TIGHT * length


def test_an_optimizer_that_is_kept_reaches_further_and_honest_rounds_stay_within():
    declaration = declaration_of(mechanism="dp_sgd", local_steps=5, mean_fraction=0.0, keep_optimizer=True)
    event = event_of(declaration, noise=2.0, steps=5, sample_rate=0.3)
    state: dict = {}
    flat, rng = np.zeros(DIMS + 1, np.float32), np.random.default_rng(2)
    limits = []
    for index in range(1, 9):
        task = task_of(round_index=index, learning_rate=0.02, optimizer="adamw")
        new = trained(declaration, task, event, rng=rng, alike=False, flat=flat, state=state)
        limits.append(bound(declaration, task, event, flat))
        assert np.linalg.norm(new - flat) <= limits[-1]
        flat = new
    assert limits == sorted(limits)


@common
@given(seed=st.integers(0, 2**20), gap=st.floats(0.0, 6.0))
def test_no_sequence_of_gradients_moves_a_coordinate_of_adamw_further_than_its_bound(seed, gap):
    """Growing gradients are the worst case: the last one weighs most in the first moment and least in the second."""
    steps, rng = 12, np.random.default_rng(seed)
    declaration = declaration_of(mechanism="dp_sgd", local_steps=steps, mean_fraction=0.0)
    event = event_of(declaration, noise=1.0, steps=steps, sample_rate=0.3)
    task = task_of(learning_rate=1.0, optimizer="adamw")
    gradients = np.exp(gap * np.arange(steps) / steps) * rng.uniform(0.9, 1.0, steps)
    first = second = moved = 0.0
    for step, gradient in enumerate(gradients, start=1):
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        moved += (first / (1 - 0.9**step)) / math.sqrt(second / (1 - 0.999**step))
    one = np.zeros(1, np.float32)
    assert moved <= bound(declaration, task, event, one)


@pytest.mark.parametrize("steps", [1, 5])
def test_synthetic_images_beside_the_sites_own_are_counted(steps):
    declaration = declaration_of(
        mechanism="dp_sgd",
        local_steps=steps,
        mean_fraction=0.0,
        synthetic_images=30,
        synthetic_sha256="c" * 64,
        augment_weight=3.0,
    )
    event = event_of(declaration, noise=0.0, steps=steps, sample_rate=0.3)
    rng = np.random.default_rng(0)
    features = np.tile(rng.standard_normal(DIMS), (30, 1))
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    public = PublicBatches(features=features.astype(np.float32), labels=np.zeros(30, np.int64), batch_size=10, weight=3.0)
    task, flat = task_of(learning_rate=5.0), np.zeros(DIMS + 1, np.float32)
    update = trained(declaration, task, event, rng=rng, alike=True, flat=flat, public=public)
    without = bound(replace(declaration, synthetic_images=0, augment_weight=0.0), task, event, flat)
    limit = bound(declaration, task, event, flat)
    assert np.linalg.norm(update) <= limit
    assert limit > without
    unbounded = replace(declaration, model=replace(declaration.model, norm="none"))
    assert math.isinf(bound(unbounded, task, event, flat))


def test_bound_of_noise_is_passed_by_one_honest_update_in_a_thousand_million():
    """The bound is the quantile of the norm of normal draws: their mean norm is not far below it, for a closed form."""
    declaration = declaration_of()
    event = event_of(declaration, noise=1e3, steps=1, sample_rate=1.0)
    flat = np.zeros(400, np.float32)
    typical = 100.0 / IMAGES * 1e3 * 0.45 * math.sqrt(400)
    limit = bound(declaration, task_of(), event, flat)
    assert typical * (1 + 4 / math.sqrt(800)) < limit < typical * (1 + 8 / math.sqrt(800))
