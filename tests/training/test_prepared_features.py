"""Features are prepared once per feature mean: the same bits as when prepared each time, whatever mean a server sends."""

from __future__ import annotations

import pickle
import threading
from dataclasses import replace

import numpy as np
import pytest

import mammo_fed.training.local
from mammo_fed.models.heads import HeadSpec
from mammo_fed.privacy.events import PrivacyEvent
from mammo_fed.privacy.noise import NoiseSource
from mammo_fed.training.local import KeepLast, LocalSteps, SiteFeatures, gradient_share, train_head

IMAGES, DIMS = 60, 8
HEAD = HeadSpec(kind="linear", dims=DIMS)
STEPS = LocalSteps(learning_rate=0.5, weight_decay=0.0, optimizer="sgd", label_smoothing=0.0, proximal=0.1)
EVENT = PrivacyEvent(
    mechanism="gradient",
    noise_multiplier=0.5,
    steps=2,
    sample_rate=1.0,
    unit="patient",
    clipping_norm=0.5,
    max_images_per_patient=9,
)
MEANS = [np.full(DIMS, value, np.float32) for value in (0.0, 0.2, -0.3)]


def site(*, views: int = 0) -> SiteFeatures:
    rng = np.random.default_rng(0)
    shape = (IMAGES, views, DIMS) if views else (IMAGES, DIMS)
    return SiteFeatures(
        features=rng.standard_normal(shape).astype(np.float32),
        labels=rng.integers(0, 2, IMAGES),
        units=rng.integers(0, 20, IMAGES),
        public_images=IMAGES,
    )


def update(data, feature_mean, *, closed_form=True, noise="float", normalize=True, head=HEAD):
    source = NoiseSource(injected_seed=5)
    event = EVENT if closed_form else replace(EVENT, sample_rate=0.4)
    return train_head(
        data,
        np.full(head.num_parameters, 0.1, np.float32),
        head=head,
        feature_mean=feature_mean,
        steps=STEPS,
        event=event,
        closed_form=closed_form,
        noise=source.draws(noise, site="site-1", round_index=1, purpose="noise"),
        sampling=source.draws(noise, site="site-1", round_index=1, purpose="sampling"),
        normalize=normalize,
    )


@pytest.fixture
def preparations(monkeypatch):
    """The feature means for which features were prepared, in order."""
    made = []
    real = mammo_fed.training.local.centre_and_normalise

    def counted(features, feature_mean, *, normalize=True):
        made.append(feature_mean.copy())
        return real(features, feature_mean, normalize=normalize)

    monkeypatch.setattr(mammo_fed.training.local, "centre_and_normalise", counted)
    return made


@pytest.mark.parametrize("noise", ["float", "secure"])
@pytest.mark.parametrize("closed_form", [True, False])
def test_rounds_prepare_the_features_once(preparations, closed_form, noise):
    data = site()
    first = update(data, MEANS[1], closed_form=closed_form, noise=noise)
    later = update(data, MEANS[1].copy(), closed_form=closed_form, noise=noise)
    fresh = update(site(), MEANS[1], closed_form=closed_form, noise=noise)
    assert len(preparations) == 2
    assert first.tobytes() == later.tobytes() == fresh.tobytes()


@pytest.mark.parametrize("closed_form", [True, False])
def test_a_server_that_sends_another_mean_in_each_round_gets_what_it_asked_for(closed_form):
    data = site()
    for feature_mean in [*MEANS, *reversed(MEANS), MEANS[0]]:
        for normalize in (True, False):
            found = update(data, feature_mean, closed_form=closed_form, normalize=normalize)
            assert found.tobytes() == update(site(), feature_mean, closed_form=closed_form, normalize=normalize).tobytes()


def test_a_mean_that_is_changed_in_place_is_another_mean():
    data, feature_mean = site(), MEANS[1].copy()
    update(data, feature_mean)
    feature_mean[0] = 0.5
    assert update(data, feature_mean).tobytes() == update(site(), feature_mean).tobytes()


def test_views_and_other_heads_are_prepared_for_themselves():
    mlp, views = HeadSpec(kind="mlp", dims=DIMS, hidden=4), site(views=3)
    for _ in range(2):
        assert (
            update(views, MEANS[1], closed_form=False, head=mlp).tobytes()
            == update(site(views=3), MEANS[1], closed_form=False, head=mlp).tobytes()
        )
    data = site()
    for head in (HEAD, replace(HEAD, bias_scale=0.7), HEAD):
        assert update(data, MEANS[1], head=head).tobytes() == update(site(), MEANS[1], head=head).tobytes()


def test_a_part_of_a_masked_sum_uses_what_a_plain_round_prepared(preparations):
    data, noise = site(), NoiseSource(injected_seed=5)
    update(data, MEANS[1])
    event = replace(EVENT, steps=1, noise_shares=2)

    def part(of):
        draws = noise.draws("secure", site="site-1", round_index=2, purpose="noise")
        start = np.zeros(HEAD.num_parameters, np.float32)
        return gradient_share(of, start, head=HEAD, feature_mean=MEANS[1], event=event, noise=draws)

    mine = part(data)
    assert len(preparations) == 1
    assert mine.tobytes() == part(site()).tobytes()


def test_what_was_prepared_goes_neither_into_a_copy_with_other_data_nor_to_another_process():
    data = site()
    update(data, MEANS[1])
    other = replace(data, features=-data.features)
    assert update(other, MEANS[1]).tobytes() != update(data, MEANS[1]).tobytes()
    sent = pickle.dumps(data)
    assert len(sent) < 1.5 * len(pickle.dumps(site()))
    assert update(pickle.loads(sent), MEANS[1]).tobytes() == update(data, MEANS[1]).tobytes()  # noqa: S301 - made here


def test_one_value_is_kept_and_the_old_one_dropped_before_the_new_is_made():
    class Big:
        alive = 0

        def __init__(self):
            Big.alive += 1

        def __del__(self):
            Big.alive -= 1

    kept: KeepLast[Big] = KeepLast()
    most = []

    def make():
        most.append(Big.alive)
        return Big()

    for key in range(5):
        kept.get(key, make)
    assert (most, Big.alive) == ([0] * 5, 1)


def test_a_value_that_could_not_be_made_is_asked_for_again():
    kept: KeepLast[int] = KeepLast()
    with pytest.raises(ZeroDivisionError):
        kept.get("key", lambda: 1 // 0)
    assert kept.get("key", lambda: 7) == 7


def test_threads_with_different_means_each_get_their_own():
    data, wrong = site(), []
    expected = [update(site(), feature_mean).tobytes() for feature_mean in MEANS]

    def ask(number):
        wrong.extend(1 for _ in range(30) if update(data, MEANS[number]).tobytes() != expected[number])

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(len(MEANS))]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert wrong == []
