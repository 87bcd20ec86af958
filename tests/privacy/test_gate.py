"""The sensitivity gate over every mechanism, head and unit, and the faults that it must catch."""

import warnings

import numpy as np
import pytest
import torch

from mammo_fed.audit.gate import HOSTILE, largest_move, noiseless
from mammo_fed.models.heads import HeadSpec, build_head, flatten, head_loss, load_flat
from mammo_fed.models.whitening import centre_and_normalise
from mammo_fed.privacy.events import PrivacyEvent
from mammo_fed.privacy.mechanisms.full_batch import (
    LogisticData,
    clipped_logistic_sum,
    private_descent,
    private_mean,
    unit_gradients,
)
from mammo_fed.privacy.mechanisms.poisson_sgd import PoissonData, poisson_steps
from mammo_fed.privacy.noise import GRID_STEPS, FloatDraws, grid_sum

DIMS = 6
SLACK = 1 + 1e-5
UNITS = ["patient", "image"]
NOISES = ["secure", "float"]


def silent(noise):
    """Draws that add nothing: in floating point by their own silence, on the grid together with a multiplier of zero."""
    return noiseless(noise)


def event(*, mechanism="gradient", unit="patient", clipping_norm=0.5, noise="float"):
    return PrivacyEvent(
        mechanism=mechanism,
        noise_multiplier=1.0 if noise == "float" else 0.0,
        steps=1,
        sample_rate=1.0,
        unit=unit,
        clipping_norm=clipping_norm,
        max_images_per_patient=16,
    )


def start_of(spec, scale):
    return (np.random.default_rng(3).standard_normal(spec.num_parameters) * scale).astype(np.float32)


def descent(unit, clipping_norm, scale, noise="float"):
    spec = HeadSpec(kind="linear", dims=DIMS)
    start = start_of(spec, scale)

    def release(features, labels, units):
        data = LogisticData.build(features, labels, units, bias_scale=spec.bias_scale)
        moved = private_descent(
            data,
            start,
            event=event(unit=unit, clipping_norm=clipping_norm, noise=noise),
            public_images=1,
            learning_rate=1.0,
            proximal=0.0,
            noise=silent(noise),
        )
        return start - moved

    return release


def poisson(unit, clipping_norm, scale, kind, noise="float"):
    spec = HeadSpec(kind=kind, dims=DIMS, hidden=5)
    start = start_of(spec, scale)

    def release(features, labels, units):
        head = build_head(spec, seed=0)
        load_flat(head, start)
        poisson_steps(
            head,
            PoissonData(features=features, labels=labels, units=units),
            loss=lambda logits, truth: head_loss(logits, truth, label_smoothing=0.1),
            event=event(unit=unit, clipping_norm=clipping_norm, noise=noise),
            public_images=1,
            learning_rate=1.0,
            weight_decay=0.0,
            optimizer="sgd",
            proximal=0.0,
            noise=silent(noise),
            sampling=FloatDraws(generator=np.random.default_rng(0)),
        )
        return start - flatten(head)

    return release


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("scale", [0.0, 5.0])
@pytest.mark.parametrize("mechanism", ["mean", "descent", "poisson linear", "poisson mlp"])
def test_gate_no_unit_moves_a_release_by_more_than_its_clipping_norm(mechanism, scale, unit, noise):
    clipping_norm = 0.5
    if mechanism == "mean":

        def release(features, _, units):
            charged = event(mechanism="mean", unit=unit, clipping_norm=clipping_norm, noise=noise)
            return private_mean(features, units, event=charged, public_images=1, noise=silent(noise))

    elif mechanism == "descent":
        release = descent(unit, clipping_norm, scale, noise)
    else:
        release = poisson(unit, clipping_norm, scale, mechanism.split()[1], noise)
    moves = largest_move(release, dims=DIMS, unit=unit)
    assert set(moves) == set(HOSTILE)
    assert max(moves.values()) <= clipping_norm * SLACK, moves
    assert moves["huge"] > 0.9 * clipping_norm, "a unit that saturates the clip must really reach it, or the gate tests nothing"


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("scale", [0.0, 5.0, 3e38, np.inf, np.nan])
def test_gate_on_the_grid_a_unit_moves_the_sum_within_the_clip_and_not_by_one_step_more(scale, unit):
    spec = HeadSpec(kind="linear", dims=DIMS)
    with np.errstate(all="ignore"):
        start = start_of(spec, scale)

    def release(features, labels, units):
        data = LogisticData.build(features, labels, units, bias_scale=spec.bias_scale)
        total = sum(grid_sum(block, clipping_norm=0.5) for block in unit_gradients(data, start))
        assert total.dtype == np.int64
        return total

    # No slack: the sums are integers below 2^53, so float64 holds them and their differences exactly.
    assert max(largest_move(release, dims=DIMS, unit=unit).values()) <= GRID_STEPS


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("unit", UNITS)
def test_gate_holds_behind_the_centre_and_the_renormalisation(unit, noise):
    inner = descent(unit, 0.3, 1.0, noise)
    feature_mean = np.full(DIMS, 0.2, np.float32)
    moves = largest_move(
        lambda features, labels, units: inner(centre_and_normalise(features, feature_mean), labels, units), dims=DIMS, unit=unit
    )
    assert max(moves.values()) <= 0.3 * SLACK, moves


def test_gate_catches_a_missing_clip():
    spec = HeadSpec(kind="linear", dims=DIMS)
    start = start_of(spec, 0.0)

    def unclipped(features, labels, units):
        data = LogisticData.build(features, labels, units, bias_scale=spec.bias_scale)
        return clipped_logistic_sum(data, start, clipping_norm=1e12)

    assert largest_move(unclipped, dims=DIMS, unit="patient")["huge"] > 1.0


def test_gate_catches_per_image_clipping_under_a_patient_claim():
    per_image = descent("image", 0.3, 0.0)

    def wrong(features, labels, units):
        return per_image(features, labels, np.arange(len(units), dtype=np.int64))

    assert largest_move(wrong, dims=DIMS, unit="patient")["many_images"] > 0.3 * 2


def test_gate_catches_the_nan_that_plain_opacus_lets_through():
    from opacus import GradSampleModule
    from opacus.optimizers import DPOptimizer

    def plain(features, labels, units):
        """Opacus by itself: nothing between an image's gradient and its clip."""
        head = torch.nn.Linear(DIMS, 2)
        torch.nn.init.zeros_(head.weight)
        torch.nn.init.zeros_(head.bias)
        wrapped = GradSampleModule(head, loss_reduction="sum")
        optimizer = DPOptimizer(
            torch.optim.SGD(wrapped.parameters(), lr=1.0),
            noise_multiplier=0.0,
            max_grad_norm=0.5,
            expected_batch_size=None,
            loss_reduction="sum",
        )
        logits = wrapped(torch.from_numpy(features).requires_grad_())
        head_loss(logits, torch.from_numpy(labels), label_smoothing=0.0).sum().backward()
        optimizer.step()
        return flatten(head)

    moves = largest_move(plain, dims=DIMS, unit="image")
    assert moves["huge"] > 0.9 * 0.5
    assert np.isnan(moves["nan"])


def test_gate_no_image_changes_another_image_s_descriptor():
    from mammo_fed.models.backbones import BackboneSpec
    from mammo_fed.models.features import Extractor, ExtractorSpec

    rng = np.random.default_rng(0)
    patches = rng.random((6, 64, 64), dtype=np.float32)
    changed = patches.copy()
    changed[3] = np.nan
    for name, taps, pooling, flips in (
        ("tf_efficientnet_lite0", (3,), "covariance", "average"),
        ("tf_efficientnet_lite0", (3,), "mean_std", "average"),
        ("tf_efficientnet_lite0", (3,), "sqrt_covariance", "average"),
        ("tf_efficientnet_lite2", (3, 2), "sqrt_covariance", "dihedral"),
        ("tf_efficientnet_lite0", (4,), "mean", "random"),
        ("swin_tiny_patch4_window7_224", (None,), "mean", "average"),
        ("swin_tiny_patch4_window7_224", (None,), "mean", "random"),
    ):
        backbones = tuple(BackboneSpec(name=name, weights="none", tap=tap) for tap in taps)
        spec = ExtractorSpec(backbones=backbones, pooling=pooling, input_size=64, flips=flips)
        extractor = Extractor(spec, cache=None)  # type: ignore[arg-type]
        with torch.random.fork_rng():
            before, after = (extractor.compute(images, flips=flips) for images in (patches, changed))
        others = np.arange(6) != 3
        for one, other in zip(before, after, strict=True):
            np.testing.assert_allclose(one[others], other[others], rtol=1e-4, atol=1e-5, err_msg=name)
            assert np.isnan(other[3]).any()


def test_gate_catches_the_window_attention_fault_of_plain_opacus():
    from opacus import GradSampleModule
    from timm.models.swin_transformer import SwinTransformer

    torch.manual_seed(0)
    network = SwinTransformer(
        img_size=56, patch_size=4, embed_dim=12, depths=(1,), num_heads=(1,), window_size=7, num_classes=2, drop_path_rate=0.0
    )
    for name, parameter in network.named_parameters():
        parameter.requires_grad_("attn.qkv" in name)
    wrapped = GradSampleModule(network, strict=False, loss_reduction="sum")
    image, clipping_norm = torch.rand(1, 3, 56, 56), 1e-6
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Full backward hook is firing")
        torch.nn.functional.cross_entropy(wrapped(image), torch.tensor([1]), reduction="sum").backward()
    gradients = [parameter.grad_sample.flatten(1) for parameter in network.parameters() if parameter.requires_grad]
    # What Opacus takes for examples are windows: the one image has four of them, and each is clipped by itself.
    norms = torch.stack([gradient.norm(dim=1) for gradient in gradients]).norm(dim=0)
    assert len(norms) == 4
    factors = (clipping_norm / norms).clamp(max=1.0)
    released = torch.cat([factors @ gradient for gradient in gradients])
    assert released.norm() > 1.5 * clipping_norm


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("hostile", [3e38, np.inf, np.nan])
def test_gate_holds_for_weights_that_a_hostile_server_chose_to_single_out_a_patient(hostile, unit):
    weights = np.zeros(DIMS + 1, np.float32)
    weights[0], weights[1] = hostile, -hostile

    def release(features, labels, units):
        # A patient whose first two features are zero is the only one with finite logits, and the other way round.
        features = features.copy()
        features[0, :2] = 0.0
        return clipped_logistic_sum(LogisticData.build(features, labels, units, bias_scale=0.2), weights, clipping_norm=0.5)

    moves = largest_move(release, dims=DIMS, unit=unit)
    assert max(moves.values()) <= 0.5 * SLACK, moves


@pytest.mark.parametrize("bias_scale", [0.2, 10.0])
def test_gate_holds_where_a_patient_s_images_cancel_and_the_clip_is_small(bias_scale):
    def release(features, labels, units):
        data = LogisticData.build(features, labels, units, bias_scale=bias_scale)
        return clipped_logistic_sum(data, np.zeros(DIMS + 1, np.float32), clipping_norm=1e-3)

    moves = largest_move(release, dims=DIMS, unit="patient")
    # What is left is the rounding of the whole sum in float32, a few units in its last place.
    assert max(moves.values()) <= 1e-3 * 1.002, moves
