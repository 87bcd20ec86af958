"""Public images beside private ones, views drawn for every step, and an optimizer that goes on from round to round."""

import numpy as np
import pytest
import torch

from mammo_fed.audit.gate import HOSTILE, largest_move, noiseless
from mammo_fed.models.heads import HeadSpec, build_head, flatten, head_loss, load_flat
from mammo_fed.privacy.events import PrivacyEvent
from mammo_fed.privacy.mechanisms.poisson_sgd import PoissonData, PublicBatches, poisson_steps
from mammo_fed.privacy.noise import FloatDraws, GridDraws, operating_system_words

DIMS = 6
NOISES = ["secure", "float"]
KINDS = ["linear", "mlp"]


def silent(noise):
    return noiseless(noise)


def event(*, unit="image", clipping_norm=0.5, steps=1, sample_rate=1.0, multiplier=1.0):
    return PrivacyEvent(
        mechanism="gradient",
        noise_multiplier=multiplier,
        steps=steps,
        sample_rate=sample_rate,
        unit=unit,
        clipping_norm=clipping_norm,
        max_images_per_patient=16,
    )


def quiet_event(noise, **changes):
    return event(multiplier=1.0 if noise == "float" else 0.0, **changes)


def head_of(kind="linear", *, scale=0.0, dims=DIMS):
    spec = HeadSpec(kind=kind, dims=dims, hidden=5)
    head = build_head(spec, seed=0)
    load_flat(head, (np.random.default_rng(3).standard_normal(spec.num_parameters) * scale).astype(np.float32))
    return head


def public_images(*, count=9, weight=1.0, batch_size=4, dims=DIMS, seed=7):
    draws = np.random.default_rng(seed)
    return PublicBatches(
        features=draws.standard_normal((count, dims)).astype(np.float32),
        labels=draws.integers(0, 2, count),
        batch_size=batch_size,
        weight=weight,
    )


def cohort(count=30, *, dims=DIMS, seed=5):
    draws = np.random.default_rng(seed)
    return PoissonData(
        features=draws.standard_normal((count, dims)).astype(np.float32),
        labels=draws.integers(0, 2, count),
        units=np.arange(count),
    )


def no_patients():
    return PoissonData(features=np.zeros((0, DIMS), np.float32), labels=np.zeros(0, np.int64), units=np.zeros(0, np.int64))


def take(head, data, *, event, noise, sampling, optimizer="sgd", learning_rate=1.0, public_images=1, **more):
    poisson_steps(
        head,
        data,
        loss=lambda logits, truth: head_loss(logits, truth, label_smoothing=0.1),
        event=event,
        public_images=public_images,
        learning_rate=learning_rate,
        weight_decay=0.0,
        optimizer=optimizer,
        proximal=0.0,
        noise=noise,
        sampling=sampling,
        **more,
    )
    return flatten(head)


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("unit", ["image", "patient"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scale", [0.0, 5.0])
def test_gate_public_images_add_no_sensitivity(noise, unit, kind, scale):
    def release(features, labels, units):
        head = head_of(kind, scale=scale)
        start = flatten(head)
        data = PoissonData(features=features, labels=labels, units=units)
        # The draws of public rows are the same for neighbours: they come from a generator of their own.
        return start - take(
            head,
            data,
            event=quiet_event(noise, unit=unit),
            noise=silent(noise),
            sampling=FloatDraws(generator=np.random.default_rng(0)),
            public=public_images(weight=3.0),
        )

    moves = largest_move(release, dims=DIMS, unit=unit)
    assert set(moves) == set(HOSTILE)
    # Weights are near 10 and in float32: the difference of two of them is rounded.
    assert max(moves.values()) <= 0.5 * (1 + 1e-5), moves
    assert moves["huge"] > 0.9 * 0.5


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("weight", [0.0, 0.5, 2.0])
def test_without_patients_a_step_is_the_weighted_mean_gradient_of_a_public_batch(noise, kind, weight):
    public, head = public_images(weight=weight), head_of(kind, scale=0.3)
    start = flatten(head)
    moved = take(
        head,
        no_patients(),
        event=quiet_event(noise),
        noise=silent(noise),
        sampling=FloatDraws(generator=np.random.default_rng(2)),
        public=public,
    )
    rows = np.random.default_rng(2).integers(len(public.labels), size=public.batch_size)
    fresh = head_of(kind, scale=0.3)
    loss = head_loss(fresh(torch.from_numpy(public.features[rows])), torch.from_numpy(public.labels[rows]), label_smoothing=0.1)
    loss.mean().backward()
    gradient = torch.cat([parameter.grad.flatten() for parameter in fresh.parameters()]).numpy()
    np.testing.assert_allclose(start - moved, weight * gradient, atol=1e-5)
    assert np.abs(gradient).max() > 0.05


@pytest.mark.parametrize("noise", NOISES)
def test_the_noise_does_not_depend_on_the_weight_of_public_images(noise):
    def drawn(public):
        draws = (
            FloatDraws(generator=np.random.default_rng(1))
            if noise == "float"
            else GridDraws(words=lambda count: words.integers(2**64, size=count, dtype=np.uint64))
        )
        return take(
            head_of(),
            no_patients(),
            event=event(multiplier=2.0),
            noise=draws,
            sampling=FloatDraws(generator=np.random.default_rng(2)),
            public=public,
        )

    released = []
    for weight in (0.0, 1.0, 2.0):
        words = np.random.default_rng(1)
        released.append(drawn(public_images(weight=weight)))
    # Without patients a step is noise and public gradient, which is the same but for its weight.
    np.testing.assert_allclose(released[1] - released[0], released[2] - released[1], atol=1e-5)
    assert np.abs(released[0]).max() > 0.1


def seen_views(noise, *, images, views, seed):
    """Which view of each image a step has used, read off a head of one weight for each view of each image; -1 for none."""
    dims = images * views
    features = np.zeros((images, views, dims), np.float32)
    for image in range(images):
        features[image, np.arange(views), image * views + np.arange(views)] = 1.0
    data = PoissonData(features=features, labels=np.ones(images, np.int64), units=np.arange(images))
    moved = take(
        head_of(dims=dims),
        data,
        event=quiet_event(noise, clipping_norm=10.0, sample_rate=0.5),
        noise=silent(noise),
        sampling=FloatDraws(generator=np.random.default_rng(seed))
        if noise == "float"
        else GridDraws(words=operating_system_words),
    )
    used = np.abs(moved[:dims].reshape(images, views)) > 1e-3
    assert used.sum(1).max() <= 1
    return np.where(used.any(1), used.argmax(1), -1)


@pytest.mark.parametrize("noise", NOISES)
def test_every_image_that_takes_part_is_seen_in_one_view_drawn_evenly(noise):
    seen = np.concatenate([seen_views(noise, images=50, views=4, seed=seed) for seed in range(8)])
    taken = seen[seen >= 0]
    # 400 images, half of them taken, a quarter of these in each view: five standard deviations.
    assert abs(len(taken) - 200) < 5 * np.sqrt(100)
    assert (np.abs(np.bincount(taken, minlength=4) / len(taken) - 0.25) < 5 * np.sqrt(0.1875 / len(taken))).all()


def test_views_that_are_alike_give_the_steps_of_one_view():
    data = cohort()
    stacked = PoissonData(features=np.repeat(data.features[:, None], 4, axis=1), labels=data.labels, units=data.units)
    flats = [
        take(
            head_of(scale=0.3),
            one,
            event=event(steps=1),
            noise=noiseless("float"),
            sampling=FloatDraws(generator=np.random.default_rng(0)),
            public_images=30,
        )
        for one in (data, stacked)
    ]
    np.testing.assert_array_equal(*flats)


def rounds(lengths, *, optimizer, state, kind="mlp", rates=None, sampling=11):
    """A head trained in rounds of `lengths` steps, with one generator for noise and one for sampling throughout."""
    head, data = head_of(kind, scale=0.3), cohort()
    noise, draws = FloatDraws(generator=np.random.default_rng(10)), FloatDraws(generator=np.random.default_rng(sampling))
    for steps, rate in zip(lengths, rates or [0.05] * len(lengths), strict=True):
        take(
            head,
            data,
            event=event(steps=steps, sample_rate=0.4),
            noise=noise,
            sampling=draws,
            optimizer=optimizer,
            learning_rate=rate,
            public_images=30,
            public=public_images(),
            state=state,
        )
    return flatten(head)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_an_optimizer_that_is_kept_gives_the_steps_of_one_long_run(optimizer):
    np.testing.assert_array_equal(
        rounds([2, 1, 3], optimizer=optimizer, state={}), rounds([6], optimizer=optimizer, state=None)
    )


def test_an_optimizer_that_starts_afresh_does_not():
    assert not np.allclose(rounds([2, 1, 3], optimizer="adamw", state=None), rounds([6], optimizer="adamw", state=None))


def test_a_kept_optimizer_takes_the_learning_rate_of_its_round():
    # With a rate of next to nothing the second round leaves the head where it was.
    first = rounds([2], optimizer="adamw", state={})
    both = rounds([2, 3], optimizer="adamw", state={}, rates=[0.05, 1e-12])
    np.testing.assert_allclose(both, first, atol=1e-8)


def test_what_is_kept_holds_moments_and_no_images():
    state = {}
    rounds([2], optimizer="adamw", state=state)
    tensors = [value for moments in state["optimizer"].values() for value in moments.values()]
    sizes = {tuple(parameter.shape) for parameter in head_of("mlp").parameters()} | {()}
    assert {tuple(tensor.shape) for tensor in tensors} <= sizes
