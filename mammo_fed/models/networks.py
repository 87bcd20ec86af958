"""A backbone's weights as a file and as one flat array: what whole-network pretraining hands on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save
from torch import Tensor, nn

from mammo_fed.common.private_files import write_atomically
from mammo_fed.errors import DataError
from mammo_fed.models.backbones import BackboneSpec, load_backbone

__all__ = ["HEAD", "flatten_network", "network_spec", "read_head", "write_flat_network", "write_network"]

# Name of the head's flat vector beside the network's tensors.
HEAD = "mammo_fed_head"


def write_network(path: Path, network: nn.Module, head: NDArray[np.float32]) -> Path:
    """Write a network and the head that was trained with it as safetensors, atomically."""
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in network.state_dict().items()}
    return _write(path, {**tensors, HEAD: torch.from_numpy(head)})


def read_head(path: Path) -> NDArray[np.float32]:
    """The flat head of a file that `write_network` wrote."""
    return load_file(path)[HEAD].numpy()


def network_spec(spec: BackboneSpec, path: Path) -> BackboneSpec:
    """`spec` with the weights of a file."""
    return replace(spec, weights="file", weights_file=str(path))


def flatten_network(path: Path) -> NDArray[np.float32]:
    """All tensors of a file but the head, in the order of their names, as one float32 vector.

    Counters (of batches, in normalisation layers) become floats; those of any training are exact below 2^24.
    """
    tensors = load_file(path)
    return np.concatenate([tensors[name].float().flatten().numpy() for name in sorted(tensors) if name != HEAD])


def write_flat_network(path: Path, flat: NDArray[np.float32], spec: BackboneSpec, *, image_size: int) -> Path:
    """Inverse of `flatten_network` for the architecture of `spec`.

    Raises:
      DataError: If the vector has another length than the architecture has numbers.
    """
    shaped = load_backbone(replace(spec, weights="none", weights_file=None), image_size=image_size).network.state_dict()
    needed = sum(tensor.numel() for tensor in shaped.values())
    if flat.shape != (needed,):
        raise DataError(f"the network sent has {len(flat)} numbers, {spec.name} has {needed}; server and site differ")
    tensors: dict[str, Tensor] = {}
    start = 0
    for name in sorted(shaped):
        tensor = shaped[name]
        part = torch.from_numpy(np.array(flat[start : start + tensor.numel()], np.float32))
        tensors[name] = part.view(tensor.shape).to(tensor.dtype)
        start += tensor.numel()
    return _write(path, tensors)


def _write(path: Path, tensors: dict[str, Tensor]) -> Path:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    return write_atomically(path, save({name: tensor.contiguous() for name, tensor in tensors.items()}))
