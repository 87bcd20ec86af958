"""Pooling under a window: weights that turn with their patch, roots that square back, images that stay apart."""

import math

import numpy as np
import pytest
import torch

from mammo_fed.errors import InvalidSetting
from mammo_fed.models.pooling import NO_WINDOW, Window, pool_views, turned

POOLINGS = ["mean", "mean_std", "covariance", "sqrt_covariance"]
LOW = Window(sigma=0.6, down=0.3)
CENTRED = Window(sigma=0.5, down=0.0)


@pytest.fixture(scope="module")
def squares():
    """Three patches of four channels: maps as a network that changes nothing would give them."""
    return torch.rand((3, 4, 7, 7), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def network():
    """A network that tells up from down and left from right."""
    weights = torch.randn((6, 4, 3, 3), generator=torch.Generator().manual_seed(1))
    return lambda patches: torch.relu(torch.nn.functional.conv2d(patches, weights, padding=1))


def described(patches, pooling, window, *, views, average=True, network=lambda patches: patches):
    """Descriptors of patches (images, channels, side, side) in their first `views` views."""
    maps = torch.stack([network(view).flatten(2) for view in turned(patches)[:views]])
    return pool_views(maps, pooling, window, average=average)


def symmetric(upper, channels):
    """Upper triangles (images, entries) as symmetric matrices."""
    matrices = torch.zeros(len(upper), channels, channels)
    rows, columns = torch.triu_indices(channels, channels)
    matrices[:, rows, columns] = upper
    matrices[:, columns, rows] = upper
    return matrices


@pytest.mark.parametrize("side", [1, 2, 4, 7, 14])
@pytest.mark.parametrize("window", [NO_WINDOW, LOW, CENTRED, Window(sigma=0.1, down=-1.0), Window(sigma=100.0, down=1.0)])
def test_the_weights_of_a_window_sum_to_one(window, side):
    weights = window.weights(side)
    assert weights.shape == (side, side)
    assert (weights >= 0).all()
    assert float(weights.sum()) == pytest.approx(1.0, abs=1e-6)


def test_a_window_weighs_what_is_below_the_middle_most_and_left_as_right():
    weights = LOW.weights(8)
    assert weights[4:].sum() > 0.6
    torch.testing.assert_close(weights, weights.flip(-1))
    assert not torch.allclose(weights, weights.flip(-2))


def test_a_window_without_end_counts_all_positions_alike():
    torch.testing.assert_close(NO_WINDOW.weights(5), torch.full((5, 5), 1 / 25))


@pytest.mark.parametrize(
    ("sigma", "down"), [(0.0, 0.0), (0.09, 0.0), (-1.0, 0.0), (math.nan, 0.0), (0.5, 1.1), (0.5, math.nan)]
)
def test_a_window_out_of_range_is_named(sigma, down):
    with pytest.raises(InvalidSetting, match=r"model\.window=.* must be at least 0\.1 and model\.window_down=.* in \[-1, 1\]"):
        Window(sigma=sigma, down=down)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_the_window_turns_with_its_patch_so_that_every_view_weighs_the_same_pixels(squares, pooling):
    each = described(squares, pooling, LOW, views=8, average=False)
    assert each.shape[:2] == (3, 8)
    torch.testing.assert_close(each, each[:, :1].expand_as(each), rtol=1e-4, atol=1e-5)
    # The window matters: where it counts all positions alike, the descriptor is another.
    assert not torch.allclose(each, described(squares, pooling, NO_WINDOW, views=8, average=False), atol=1e-3)


@pytest.mark.parametrize("window", [NO_WINDOW, CENTRED])
@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("views", [4, 8])
def test_a_turned_patch_has_the_descriptor_of_the_patch_when_views_are_averaged(squares, network, pooling, views, window):
    straight = described(squares, pooling, window, views=views, network=network)
    for view in turned(squares)[1:views]:
        turned_too = described(view, pooling, window, views=views, network=network)
        torch.testing.assert_close(turned_too, straight, rtol=1e-3, atol=1e-4)
    one_view = described(squares, pooling, window, views=1, network=network)
    assert not torch.allclose(one_view, straight, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_mirrored_patch_has_the_same_descriptor_also_under_a_low_window(squares, network, pooling):
    straight, mirrored, upside_down = (
        described(patch, pooling, LOW, views=4, network=network) for patch in (squares, squares.flip(-1), squares.flip(-2))
    )
    torch.testing.assert_close(mirrored, straight, rtol=1e-3, atol=1e-4)
    # Upside down the lesion is where the window does not look.
    assert not torch.allclose(upside_down, straight, rtol=1e-3, atol=1e-4)


def test_the_eight_views_of_a_square_are_different_and_are_its_whole_group():
    square = torch.arange(9.0).view(3, 3)
    views = {tuple(view.flatten().tolist()) for view in turned(square)}
    assert len(views) == 8
    for view in turned(square):
        assert {tuple(again.flatten().tolist()) for again in turned(view)} == views


@pytest.mark.parametrize("window", [NO_WINDOW, LOW])
@pytest.mark.parametrize("views", [1, 4, 8])
def test_the_root_of_the_covariance_squares_to_the_covariance(squares, network, window, views):
    covariance = symmetric(described(squares, "covariance", window, views=views, network=network), 6)
    root = symmetric(described(squares, "sqrt_covariance", window, views=views, network=network), 6)
    torch.testing.assert_close(root @ root, covariance, rtol=1e-4, atol=1e-5)
    assert (torch.linalg.eigvalsh(root.double()) > -1e-6).all()


def test_a_covariance_is_that_of_numpy_with_the_window_as_weights(squares):
    for window in (NO_WINDOW, LOW):
        got = symmetric(described(squares, "covariance", window, views=1), 4)
        for image, matrix in zip(squares, got, strict=True):
            weights = window.weights(7).flatten().double().numpy()
            expected = np.cov(image.flatten(1).double().numpy(), aweights=weights, bias=True)
            np.testing.assert_allclose(matrix.numpy(), expected, atol=1e-6)


def test_mean_and_standard_deviation_are_those_of_numpy(squares):
    got = described(squares, "mean_std", NO_WINDOW, views=1).numpy()
    flat = squares.flatten(2).double().numpy()
    np.testing.assert_allclose(got, np.concatenate([flat.mean(2), flat.std(2)], axis=1), atol=1e-6)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("average", [True, False])
def test_an_image_that_is_not_finite_leaves_the_others_as_they_are(squares, pooling, average, bad):
    broken = squares.clone()
    broken[1, 2, 3, 3] = bad
    before, after = (described(patches, pooling, LOW, views=4, average=average) for patches in (squares, broken))
    torch.testing.assert_close(after[[0, 2]], before[[0, 2]], rtol=0, atol=0)
    assert not torch.isfinite(after[1]).all()


def test_a_map_of_one_position_is_its_own_mean():
    maps = torch.rand((1, 2, 5, 1), generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(pool_views(maps, "mean", LOW, average=True), maps[0, :, :, 0])
