"""The malignancy-conditioned GAN: a generator and a discriminator of masses, both told the class."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm
from torch.nn.utils.parametrize import is_parametrized

from mammo_fed.errors import InvalidSetting

__all__ = ["Discriminator", "Generator", "GeneratorNorm", "McganSpec", "Upsampling", "from_range", "initialised", "to_range"]

Network = TypeVar("Network", bound=nn.Module)
Upsampling = Literal["transposed", "resize"]
GeneratorNorm = Literal["batch", "instance", "none"]
SLOPE: Final = 0.2
SEED_SIDE: Final = 4
SIZES: Final = (32, 64, 128, 256)
CLASSES: Final = 2
# DCGAN's initialisation (arXiv:1511.06434).
WEIGHT_STD: Final = 0.02


@dataclass(frozen=True, kw_only=True)
class McganSpec:
    """Shape of both networks.

    Attributes:
      image_size: side in pixels, of 32, 64, 128, 256.
      channels: of the widest map (the generator's last, the discriminator's first); each halving of the side doubles them.
      latent: numbers drawn for an image.
      embedding: numbers that represent a class.
      upsampling: "transposed" convolutions, as the paper's; or "resize": nearest neighbour and a convolution, which leaves no
        checkerboard.
      generator_norm: "batch" is possible there: the generator never sees a patient's image.
      discriminator_norm: "instance" or "none"; a batch's statistics would let one patient change another's gradient.
      spectral: whether the discriminator's convolutions have spectral norm 1 (arXiv:1802.05957).
      projection: whether the class also weighs the last map (arXiv:1802.05637), beside its plane at the input.
    """

    image_size: int
    channels: int
    latent: int
    embedding: int
    upsampling: Upsampling
    generator_norm: GeneratorNorm
    discriminator_norm: Literal["instance", "none"]
    spectral: bool
    projection: bool

    def __post_init__(self) -> None:
        if self.image_size not in SIZES:
            raise InvalidSetting(f"gan.image_size={self.image_size} must be one of {SIZES}")
        for name in ("channels", "latent", "embedding"):
            if getattr(self, name) < 1:
                raise InvalidSetting(f"gan.{name}={getattr(self, name)} must be at least 1")

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels from the finest map to the coarsest."""
        return tuple(self.channels << depth for depth in range((self.image_size // SEED_SIDE).bit_length() - 1))


class Generator(nn.Module):
    """Random numbers and a class to images in [-1, 1].

    Source: arXiv:2407.12669 (MCGAN), after DCGAN, arXiv:1511.06434.
    """

    def __init__(self, spec: McganSpec) -> None:
        super().__init__()
        self.spec = spec
        self.classes = nn.Sequential(
            nn.Embedding(CLASSES, spec.embedding), nn.Linear(spec.embedding, spec.latent), nn.LeakyReLU(SLOPE)
        )
        coarse = spec.widths[::-1]
        layers: list[nn.Module] = [
            nn.ConvTranspose2d(2 * spec.latent, coarse[0], SEED_SIDE, bias=spec.generator_norm == "none"),
            *_normalised(spec.generator_norm, coarse[0]),
            nn.ReLU(),
        ]
        for width, narrower in itertools.pairwise(coarse):
            layers += [
                *_doubled(spec.upsampling, width, narrower, bias=spec.generator_norm == "none"),
                *_normalised(spec.generator_norm, narrower),
                nn.ReLU(),
            ]
        layers += [*_doubled(spec.upsampling, coarse[-1], 1, bias=True), nn.Tanh()]
        self.layers = nn.Sequential(*layers)

    def forward(self, latent: Tensor, labels: Tensor) -> Tensor:
        """Images, float32 in [-1, 1], shape (batch, 1, side, side), from (batch, latent) normal numbers and (batch,) labels."""
        joined = torch.cat([latent, self.classes(labels)], dim=1)
        images: Tensor = self.layers(joined[:, :, None, None])
        return images


class Discriminator(nn.Module):
    """Images in [-1, 1] and their class to a logit that is high for real ones.

    Guarantee: no layer mixes the images of a batch: an image's logit is a function of that image, its label and the weights;
    and a pass changes nothing (used in evaluation mode, which only spectral norms tell from training).
    Source: arXiv:2407.12669: the class as a plane beside the image, 6 x 6 convolutions of stride 2.
    """

    def __init__(self, spec: McganSpec) -> None:
        super().__init__()
        self.spec = spec
        side = spec.image_size
        self.classes = nn.Sequential(
            nn.Embedding(CLASSES, spec.embedding), nn.Linear(spec.embedding, side * side), nn.LeakyReLU(SLOPE)
        )
        layers: list[nn.Module] = []
        before = 2
        for depth, width in enumerate(spec.widths):
            normalised = spec.discriminator_norm == "instance" and depth > 0
            layers += [
                _spectral(nn.Conv2d(before, width, 6, stride=2, padding=2, bias=not normalised), spec),
                *([nn.InstanceNorm2d(width, affine=True)] if normalised else []),
                nn.LeakyReLU(SLOPE),
            ]
            before = width
        self.layers = nn.Sequential(*layers)
        self.judge = _spectral(nn.Conv2d(before, 1, SEED_SIDE), spec)
        self.projected = nn.Embedding(CLASSES, before) if spec.projection else None

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """Logits, shape (batch,), of images (batch, 1, side, side) with labels (batch,)."""
        plane = self.classes(labels).view(-1, 1, *images.shape[2:])
        maps = self.layers(torch.cat([images, plane], dim=1))
        logits: Tensor = self.judge(maps).flatten()
        if self.projected is not None:
            logits = logits + (self.projected(labels) * maps.mean(dim=(2, 3))).sum(dim=1)
        return logits

    def follow_norms(self) -> None:
        """One power iteration of the spectral norms, where there are any; it looks at weights alone.

        Called once a step. Left to the forward passes, as in training mode, their number (how many patients took part) would
        show in the weights.
        """
        for layer in self.modules():
            if is_parametrized(layer):
                layer.train()
                _ = layer.weight
                layer.eval()


def to_range(pixels: Tensor) -> Tensor:
    """Pixels in [0, 1] to the generator's range [-1, 1], by public constants."""
    return pixels * 2 - 1


def from_range(images: Tensor) -> Tensor:
    """The generator's range [-1, 1] to pixels in [0, 1]."""
    return ((images + 1) / 2).clamp(0, 1)


def initialised(module: Network, *, seed: int) -> Network:
    """DCGAN's initial weights, drawn from `seed`; changes `module` and returns it."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in module.modules():
            if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
                # Behind spectral normalisation lies the weight that is trained.
                weight: Any = layer.parametrizations["weight"].original if is_parametrized(layer) else layer.weight  # type: ignore[index,union-attr]
                weight.normal_(0.0, WEIGHT_STD, generator=generator)
                if layer.bias is not None:
                    layer.bias.zero_()
            elif isinstance(layer, nn.Embedding):
                layer.weight.normal_(0.0, 1.0, generator=generator)
            elif isinstance(layer, nn.BatchNorm2d):
                layer.weight.normal_(1.0, WEIGHT_STD, generator=generator)
    return module


def _doubled(how: Upsampling, width: int, narrower: int, *, bias: bool) -> list[nn.Module]:
    if how == "transposed":
        return [nn.ConvTranspose2d(width, narrower, 4, stride=2, padding=1, bias=bias)]
    return [nn.Upsample(scale_factor=2, mode="nearest"), nn.Conv2d(width, narrower, 3, padding=1, bias=bias)]


def _normalised(kind: GeneratorNorm, width: int) -> list[nn.Module]:
    if kind == "batch":
        return [nn.BatchNorm2d(width)]
    return [nn.InstanceNorm2d(width, affine=True)] if kind == "instance" else []


def _spectral(layer: nn.Conv2d, spec: McganSpec) -> nn.Module:
    return spectral_norm(layer) if spec.spectral else layer
