"""Adversarial training: one generator step at a time, every public draw a function of seed and step."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn

from mammo_fed.settings.gan import McganSettings
from mammo_fed.synthesis.augmentation import augmented, draws_for
from mammo_fed.synthesis.losses import discriminator_loss, generator_loss, gradient_penalty
from mammo_fed.synthesis.mcgan import Discriminator, Generator, McganSpec, initialised

__all__ = ["Adversaries", "Losses", "RealGradient", "public_generator", "real_loss"]

NORM_FLOOR: Final = 1e-12


@dataclass(frozen=True, kw_only=True)
class RealGradient:
    """The real images' part of the discriminator's gradient.

    Attributes:
      step: from the networks and the number of the discriminator step to that gradient, and the mean loss of real images: None
        where it must not be shown.
      clipping_norm: largest norm of a unit's part, or None where nothing is clipped. Generated images are then clipped alike,
        so that the discriminator does not hear of them only.
    """

    step: Callable[[Adversaries, int], tuple[list[Tensor], float | None]]
    clipping_norm: float | None


@dataclass(frozen=True, kw_only=True)
class Losses:
    """Of one generator step; `real` is None under privacy, for it is a function of patients that no event pays for."""

    step: int
    generator: float
    fake: float
    real: float | None


class Adversaries:
    """Both networks, their optimizers and the generator's moving average.

    What is drawn in a step is a function of `seed`, the step's number and the purpose, and its amount of public constants: how
    many patients took part in a step changes no other draw.
    """

    def __init__(self, settings: McganSettings, *, seed: int) -> None:
        self.settings, self.seed = settings, seed
        spec = mcgan_spec(settings)
        self.spec = spec
        with torch.random.fork_rng(devices=[]):
            # Spectral norm draws the start of its power iteration.
            torch.manual_seed(_number(seed, 0, "start"))
            self.generator = initialised(Generator(spec), seed=_number(seed, 0, "generator"))
            self.discriminator = initialised(Discriminator(spec), seed=_number(seed, 0, "discriminator"))
            self.average = Generator(spec).requires_grad_(False)
        # Draws are made on the processor, so that they are the same wherever the networks are.
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        for network in (self.generator, self.discriminator, self.average):
            network.to(self.device)
        self.discriminator.eval()
        self.average.load_state_dict(self.generator.state_dict())
        for module in (self.generator, self.discriminator, self.average):
            # Convolutions on a processor are faster so; no number changes but by rounding.
            module.to(memory_format=torch.channels_last)
        betas = (settings.beta1, settings.beta2)
        self.of_generator = torch.optim.Adam(self.generator.parameters(), lr=settings.generator_rate, betas=betas)
        self.of_discriminator = torch.optim.Adam(self.discriminator.parameters(), lr=settings.discriminator_rate, betas=betas)
        self.step = 0

    def advance(self, real: RealGradient) -> Losses:
        """One step of the generator and those of the discriminator before it."""
        half = self.settings.precision == "bfloat16"
        # Without its cache, which would keep weights from before the discriminator's step.
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=half, cache_enabled=False):
            return self._advance(real)

    def _advance(self, real: RealGradient) -> Losses:
        settings = self.settings
        fake_loss, real_mean = 0.0, None
        for number in range(self.step * settings.discriminator_steps, (self.step + 1) * settings.discriminator_steps):
            self.discriminator.follow_norms()
            gradients, real_mean = real.step(self, number)
            fakes, fake_loss = self._fake_gradients(number, clipping_norm=real.clipping_norm)
            for parameter, own, beside in zip(self.discriminator.parameters(), gradients, fakes, strict=True):
                parameter.grad = own + beside
            self.of_discriminator.step()
        generator = self._generator_step()
        self._follow()
        self.step += 1
        return Losses(step=self.step, generator=generator, fake=fake_loss, real=real_mean)

    def generated(self, count: int, number: int, purpose: str) -> tuple[Tensor, Tensor, Tensor]:
        """Generated images without a gradient, as many of each class, their labels, and numbers for their augmentation."""
        latent, labels, draws = self.latent(count, number, purpose)
        with torch.no_grad():
            return self.generator(latent, labels), labels, draws

    def latent(self, count: int, number: int, purpose: str) -> tuple[Tensor, Tensor, Tensor]:
        """Latent numbers, alternating labels and augmentation numbers, all public."""
        draw = public_generator(self.seed, number, purpose)
        latent = torch.randn(count, self.spec.latent, generator=draw)
        draws = draws_for(count, draw)
        return latent.to(self.device), torch.arange(count, device=self.device) % 2, draws.to(self.device)

    def _fake_gradients(self, number: int, *, clipping_norm: float | None) -> tuple[list[Tensor], float]:
        """Mean gradient and loss of generated images, each clipped if there is a norm; no real image is in it."""
        settings, parameters = self.settings, list(self.discriminator.parameters())
        images, labels, draws = self.generated(settings.batch_size, number, "fake")
        seen = augmented(images, settings.augment, draws)
        losses = discriminator_loss(
            self.discriminator(seen, labels), real=False, loss=settings.loss, smoothing=settings.smoothing
        )
        if clipping_norm is None:
            return gradients_of(losses.mean(), parameters), float(losses.mean().detach())
        total = [torch.zeros_like(parameter) for parameter in parameters]
        for row in range(len(seen)):
            logit = self.discriminator(seen[row : row + 1], labels[row : row + 1])
            loss = discriminator_loss(logit, real=False, loss=settings.loss, smoothing=settings.smoothing).sum()
            own = gradients_of(loss, parameters)
            norm = float(torch.stack([part.norm() for part in own]).norm())
            factor = min(1.0, clipping_norm / max(norm, NORM_FLOOR)) / len(seen)
            for part, one in zip(total, own, strict=True):
                part += one * factor
        return total, float(losses.mean().detach())

    def _generator_step(self) -> float:
        settings = self.settings
        latent, labels, draws = self.latent(settings.batch_size, self.step, "generator")
        self.of_generator.zero_grad()
        self.discriminator.requires_grad_(False)
        logits = self.discriminator(augmented(self.generator(latent, labels), settings.augment, draws), labels)
        loss = generator_loss(logits, loss=settings.loss)
        loss.backward()  # type: ignore[no-untyped-call]
        self.discriminator.requires_grad_(True)
        self.of_generator.step()
        return float(loss.detach())

    def _follow(self) -> None:
        """Move the average towards the generator; buffers, such as batch statistics of generated images, are copied."""
        # Early on the average would be mostly the initial weights.
        keep = min(self.settings.ema, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for mine, its in zip(self.average.parameters(), self.generator.parameters(), strict=True):
                mine.lerp_(its, 1 - keep)
            for kept, new in zip(self.average.buffers(), self.generator.buffers(), strict=True):
                kept.copy_(new)


def real_loss(adversaries: Adversaries, images: Tensor, labels: Tensor, *, number: int, purpose: str) -> Tensor:
    """The real-dependent terms of the discriminator's loss for some real images, shape (images,).

    Each is a function of that image, its label, the weights and public draws: which those are depends on `number`, `purpose`
    and the image's place in `images` alone.

    Args:
      adversaries: both networks.
      images: (images, 1, side, side) in [-1, 1].
      labels: (images,).
      number: of the discriminator step.
      purpose: names the draws; under privacy it names the unit.
    """
    settings, discriminator = adversaries.settings, adversaries.discriminator
    draw = public_generator(adversaries.seed, number, purpose)
    images, labels = images.to(adversaries.device), labels.to(adversaries.device)
    draws = draws_for(len(images), draw).to(adversaries.device)
    if settings.mirror:
        mirrored = (torch.rand(len(images), generator=draw) < 0.5).to(adversaries.device)
        images = torch.where(mirrored[:, None, None, None], images.flip(-1), images)
    seen = augmented(images, settings.augment, draws)
    loss = discriminator_loss(discriminator(seen, labels), real=True, loss=settings.loss, smoothing=settings.smoothing)
    if settings.mismatch > 0:
        wrong = discriminator(seen, 1 - labels)
        loss = loss + settings.mismatch * discriminator_loss(
            wrong, real=False, loss=settings.loss, smoothing=settings.smoothing
        )
    if settings.loss == "wgan_gp" and settings.gradient_penalty > 0:
        latent = torch.randn(len(images), adversaries.spec.latent, generator=draw).to(adversaries.device)
        mix = torch.rand(len(images), generator=draw).to(adversaries.device)
        with torch.no_grad():
            # In evaluation mode: batch statistics must not depend on how many images a patient has.
            adversaries.generator.eval()
            partners = adversaries.generator(latent, labels)
            adversaries.generator.train()
        partners = augmented(partners, settings.augment, draws)
        loss = loss + settings.gradient_penalty * gradient_penalty(discriminator, seen, partners, labels, mix)
    return loss


def mcgan_spec(settings: McganSettings) -> McganSpec:
    """The shape of the networks that settings describe."""
    return McganSpec(
        image_size=settings.image_size,
        channels=settings.channels,
        latent=settings.latent,
        embedding=settings.embedding,
        upsampling=settings.upsampling,
        generator_norm=settings.generator_norm,
        discriminator_norm=settings.discriminator_norm,
        spectral=settings.spectral,
        projection=settings.projection,
    )


def public_generator(seed: int, number: int, purpose: str) -> torch.Generator:
    """Random numbers that are a function of seed, number and purpose: resuming needs no generator's state."""
    return torch.Generator().manual_seed(_number(seed, number, purpose))


def gradients_of(loss: Tensor, parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    """Gradients of `loss`, zeros for what it does not depend on."""
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    return [torch.zeros_like(its) if one is None else one for its, one in zip(parameters, found, strict=True)]


def _number(seed: int, number: int, purpose: str) -> int:
    text = f"{seed}/{number}/{purpose}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1
