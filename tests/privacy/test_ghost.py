"""Ghost clipping against autograd unit by unit, on hostile units, and through the sensitivity gate."""

import numpy as np
import pytest
import torch
from torch import nn

from mammo_fed.audit.gate import HOSTILE, largest_move
from mammo_fed.errors import InvalidSetting
from mammo_fed.models.heads import HeadSpec, build_head, head_loss, load_flat
from mammo_fed.privacy.mechanisms.ghost_clipping import clipped_gradient_sum

DIMS = 7
KINDS = ["linear", "mlp"]


def head_of(kind, *, scale=1.0, seed=3, dims=DIMS):
    spec = HeadSpec(kind=kind, dims=dims, hidden=5)
    head = build_head(spec, seed=0)
    load_flat(head, (np.random.default_rng(seed).standard_normal(spec.num_parameters) * scale).astype(np.float32))
    return head


def images_of(units, *, seed=0, dims=DIMS):
    draws = np.random.default_rng(seed)
    features = draws.standard_normal((len(units), dims)).astype(np.float32)
    labels = draws.integers(0, 2, len(units))
    return torch.from_numpy(features), torch.from_numpy(labels), torch.from_numpy(np.asarray(units, np.int64))


def loss_of(labels):
    return lambda logits: head_loss(logits, labels, label_smoothing=0.1)


def ghost(head, features, labels, units, *, clipping_norm, num_units=None):
    """The clipped sum as one float64 vector."""
    count = (int(units.max()) + 1 if len(units) else 0) if num_units is None else num_units
    gradients = clipped_gradient_sum(head, features, loss_of(labels), units=units, num_units=count, clipping_norm=clipping_norm)
    assert [gradient.shape for gradient in gradients] == [parameter.shape for parameter in head.parameters()]
    return torch.cat([gradient.flatten() for gradient in gradients]).double().numpy()


def by_autograd(head, features, labels, units, *, clipping_norm):
    """The same, one unit at a time in float64; also every unit's norm before the clip."""
    exact = head.double()
    total, norms = 0.0, []
    for unit in torch.unique(units):
        rows = units == unit
        loss = loss_of(labels[rows])(exact(features[rows].double())).sum()
        gradient = torch.cat([part.flatten() for part in torch.autograd.grad(loss, list(exact.parameters()))]).numpy()
        norms.append(np.linalg.norm(gradient))
        if np.isfinite(norms[-1]):
            total = total + gradient * min(1.0, clipping_norm / max(norms[-1], 1e-12))
    head.float()
    return total, np.array(norms)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "units",
    [np.arange(40), np.arange(40) // 4, np.random.default_rng(1).permutation(np.repeat(np.arange(9), np.arange(1, 10)))],
    ids=["image", "patient", "patients of 1 to 9 images, shuffled"],
)
def test_the_clipped_sum_is_that_of_autograd_unit_by_unit(kind, units):
    head, images = head_of(kind), images_of(units)
    _, norms = by_autograd(head, *images, clipping_norm=1.0)
    clipping_norm = float(np.median(norms))
    expected, _ = by_autograd(head, *images, clipping_norm=clipping_norm)
    np.testing.assert_allclose(ghost(head, *images, clipping_norm=clipping_norm), expected, rtol=1e-4, atol=1e-5)
    # Half of the units were clipped and half were not, so both ways were compared.
    assert (norms > clipping_norm).any()
    assert (norms < clipping_norm).any()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("largest", [3, 700])
def test_more_images_than_one_block_holds_give_the_same_sum(kind, largest):
    # 700 images of one unit are more than a block of Gram matrices: units are never parted.
    sizes = [largest, *np.random.default_rng(2).integers(1, 6, 400).tolist(), largest]
    units = np.random.default_rng(4).permutation(np.repeat(np.arange(len(sizes)), sizes))
    head, images = head_of(kind), images_of(units)
    expected, _ = by_autograd(head, *images, clipping_norm=0.8)
    np.testing.assert_allclose(ghost(head, *images, clipping_norm=0.8), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_a_unit_without_a_clip_is_left_as_it_is(kind):
    head, images = head_of(kind), images_of(np.arange(12) // 3)
    expected, norms = by_autograd(head, *images, clipping_norm=1e6)
    assert norms.max() < 1e6
    np.testing.assert_allclose(ghost(head, *images, clipping_norm=1e6), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("grouped", [False, True])
def test_a_unit_that_is_not_finite_contributes_nothing_and_the_others_stay(kind, bad, grouped):
    units = np.arange(12) // 3 if grouped else np.arange(12)
    head, (features, labels, units) = head_of(kind), images_of(units)
    features[4, 2] = bad
    others = units != units[4]
    alone = ghost(
        head, features[others], labels[others], torch.unique(units[others], return_inverse=True)[1], clipping_norm=0.5
    )
    np.testing.assert_allclose(ghost(head, features, labels, units, clipping_norm=0.5), alone, rtol=1e-5, atol=1e-6)
    assert np.abs(alone).max() > 0.1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [1e3, 1e10, 1e19, 1e30, 3e38])
@pytest.mark.parametrize("clipping_norm", [1e-3, 1.0])
@pytest.mark.parametrize("images", [1, 3])
def test_one_unit_of_huge_images_stays_within_its_clip(kind, size, clipping_norm, images):
    for scale in (0.0, 1e-20, 1.0):
        head, (features, labels, units) = head_of(kind, scale=scale), images_of(np.zeros(images, int))
        moved = ghost(head, features.sign() * size, labels, units, clipping_norm=clipping_norm)
        assert np.linalg.norm(moved) <= clipping_norm * (1 + 1e-6)


def test_huge_images_at_zero_weights_reach_the_clip():
    head, (features, labels, units) = head_of("linear", scale=0.0), images_of([0])
    np.testing.assert_allclose(np.linalg.norm(ghost(head, features * 1e10, labels, units, clipping_norm=0.5)), 0.5, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("images", [2, 12, 64])
@pytest.mark.parametrize("size", [1.0, 1e6])
@pytest.mark.parametrize("apart", [0.0, 1e-7, 1e-5, 1e-2])
def test_a_unit_whose_images_nearly_cancel_stays_within_its_clip(kind, images, size, apart):
    # Pairs of nearly the same image under both labels: the true norm is far below the lengths of the addends.
    draws = np.random.default_rng(images)
    half = np.repeat(draws.standard_normal((images // 2, DIMS)), 2, axis=0)
    features = torch.from_numpy(((half + apart * draws.standard_normal(half.shape)) * size).astype(np.float32))
    labels, units = torch.arange(images) % 2, torch.zeros(images, dtype=torch.int64)
    for scale in (0.0, 0.1):
        for clipping_norm in (1e-3, 1.0):
            moved = ghost(head_of(kind, scale=scale), features, labels, units, clipping_norm=clipping_norm)
            assert np.linalg.norm(moved) <= clipping_norm * (1 + 1e-6)


def gated(head, clipping_norm):
    def release(features, labels, units):
        return ghost(
            head, torch.from_numpy(features), torch.from_numpy(labels), torch.from_numpy(units), clipping_norm=clipping_norm
        )

    return release


def present(release):
    """As the steps do: an image of zeros gives nothing, not even to a bias."""
    return lambda features, labels, units: release(
        *(part[np.any(features != 0, axis=1)] for part in (features, labels)), dense(units, features)
    )


def dense(units, features):
    return np.unique(units[np.any(features != 0, axis=1)], return_inverse=True)[1].astype(np.int64)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("unit", ["image", "patient"])
@pytest.mark.parametrize("scale", [0.0, 0.5, 5.0])
def test_gate_no_unit_moves_the_clipped_sum_by_more_than_its_clip(kind, unit, scale):
    moves = largest_move(present(gated(head_of(kind, scale=scale), 0.5)), dims=DIMS, unit=unit)
    assert set(moves) == set(HOSTILE)
    assert max(moves.values()) <= 0.5 * (1 + 1e-5), moves
    assert moves["ordinary"] > 0


def test_an_empty_batch_gives_zeros_of_the_parameters_shapes():
    for kind in KINDS:
        moved = ghost(head_of(kind), *images_of(np.zeros(0, int)), clipping_norm=1.0)
        assert len(moved) > 0
        assert not moved.any()


def test_units_without_images_change_nothing():
    # Three images, three numbers of units, but two images are of one unit.
    head, images = head_of("linear"), images_of([0, 2, 2])
    expected, _ = by_autograd(head, *images, clipping_norm=0.3)
    np.testing.assert_allclose(ghost(head, *images, clipping_norm=0.3), expected, rtol=1e-4, atol=1e-5)


def test_gradients_of_the_parameters_are_not_left_behind():
    head, images = head_of("mlp"), images_of(np.arange(6))
    ghost(head, *images, clipping_norm=1.0)
    assert all(parameter.grad is None for parameter in head.parameters())
    assert not any(module._forward_hooks for module in head.modules())


class Scaled(nn.Module):
    """A Linear layer and a parameter beside it."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(DIMS, 1)
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, features):
        return self.layer(features) * self.scale


@pytest.mark.parametrize(
    "head",
    [
        nn.Sequential(nn.LayerNorm(DIMS), nn.Linear(DIMS, 1)),
        nn.Sequential(nn.Linear(DIMS, 4), nn.PReLU(), nn.Linear(4, 1)),
        Scaled(),
    ],
    ids=["LayerNorm", "PReLU", "a parameter of its own"],
)
def test_a_head_with_other_parameters_than_linear_layers_is_refused(head):
    with pytest.raises(InvalidSetting, match=r"must be made of Linear layers and activations; check model\.head"):
        ghost(head, *images_of(np.arange(4)), clipping_norm=1.0)


def test_a_linear_layer_that_is_used_twice_is_refused():
    layer = nn.Linear(DIMS, DIMS)
    with pytest.raises((InvalidSetting, ValueError)):
        ghost(nn.Sequential(layer, nn.Tanh(), layer), *images_of(np.arange(4)), clipping_norm=1.0)
