"""A network as a file, as one flat array, and as a file again: the same network."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from mammo_fed.errors import DataError
from mammo_fed.models.backbones import BackboneSpec, load_backbone, trainable_copy
from mammo_fed.models.networks import flatten_network, network_spec, read_head, write_flat_network, write_network

SIZE = 32
LITE0 = BackboneSpec(name="tf_efficientnet_lite0", weights="none", tap=4, seed=3)


@pytest.fixture(scope="module")
def patches():
    return torch.rand((4, SIZE, SIZE), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def trained(patches):
    """A network whose tensors, statistics and counters are none of the initialisation's."""
    network = trainable_copy(load_backbone(LITE0, image_size=SIZE), image_size=SIZE)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    network(patches[:, None].expand(-1, 3, -1, -1)).square().mean().backward()
    optimizer.step()
    return network.eval().requires_grad_(False)


@pytest.fixture
def written(trained, tmp_path):
    return write_network(tmp_path / "networks" / "one.safetensors", trained, np.arange(5, dtype=np.float32))


def test_a_written_network_gives_the_outputs_of_the_network(trained, written, patches):
    loaded = load_backbone(network_spec(LITE0, written), image_size=SIZE)
    backbone = replace(load_backbone(LITE0, image_size=SIZE), network=trained)
    torch.testing.assert_close(loaded(patches), backbone(patches))
    assert not torch.allclose(loaded(patches), load_backbone(LITE0, image_size=SIZE)(patches))


def test_a_network_that_travelled_flat_is_the_same_bit_for_bit(written, patches, tmp_path):
    flat = flatten_network(written)
    again = write_flat_network(tmp_path / "site" / "two.safetensors", flat, LITE0, image_size=SIZE)
    sent, received = (load_backbone(network_spec(LITE0, path), image_size=SIZE) for path in (written, again))
    assert received.weights_sha256 == sent.weights_sha256
    torch.testing.assert_close(received(patches), sent(patches), rtol=0, atol=0)
    assert flat.dtype == np.float32
    np.testing.assert_array_equal(flatten_network(again), flat)


def test_counters_of_batches_come_back_as_whole_numbers(written, tmp_path):
    again = write_flat_network(tmp_path / "two.safetensors", flatten_network(written), LITE0, image_size=SIZE)
    state = load_backbone(network_spec(LITE0, again), image_size=SIZE).network.state_dict()
    counters = [tensor for name, tensor in state.items() if name.endswith("num_batches_tracked")]
    assert {(tensor.dtype, int(tensor)) for tensor in counters} == {(torch.int64, 1)}


def test_the_head_stays_beside_the_network_and_out_of_the_flat_array(trained, written):
    np.testing.assert_array_equal(read_head(written), np.arange(5, dtype=np.float32))
    assert len(flatten_network(written)) == sum(tensor.numel() for tensor in trained.state_dict().values())


@pytest.mark.parametrize("change", [-1, 1])
def test_a_flat_array_of_another_length_is_refused_before_anything_is_written(written, tmp_path, change):
    flat = flatten_network(written)
    wrong = flat[:-1] if change < 0 else np.append(flat, np.float32(0))
    target = tmp_path / "site" / "two.safetensors"
    with pytest.raises(DataError, match=rf"the network sent has {len(wrong)} numbers, tf_efficientnet_lite0 has {len(flat)}"):
        write_flat_network(target, wrong, LITE0, image_size=SIZE)
    assert not target.exists()


def test_a_file_is_written_whole_and_leaves_nothing_beside_it(trained, written):
    write_network(written, trained, np.ones(5, np.float32))
    assert [path.name for path in written.parent.iterdir()] == ["one.safetensors"]
    np.testing.assert_array_equal(read_head(written), np.ones(5, np.float32))


def test_a_copy_to_train_shares_nothing_with_the_frozen_network():
    backbone = load_backbone(LITE0, image_size=SIZE)
    copy = trainable_copy(backbone, image_size=SIZE)
    assert copy.training
    assert all(parameter.requires_grad for parameter in copy.parameters())
    before = {name: tensor.clone() for name, tensor in backbone.network.state_dict().items()}
    with torch.no_grad():
        for parameter in copy.parameters():
            parameter.add_(1.0)
    assert all(torch.equal(before[name], tensor) for name, tensor in backbone.network.state_dict().items())
