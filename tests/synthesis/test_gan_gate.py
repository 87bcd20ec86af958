"""The sensitivity gate over a generator's private training: every loss, unit and kind of noise, and faults it must catch."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from mammo_fed.audit.gate import HOSTILE, PIXEL_KINDS, largest_move, largest_pixel_move, noiseless
from mammo_fed.privacy.events import PrivacyEvent
from mammo_fed.privacy.noise import NoiseSource
from mammo_fed.synthesis.adversarial import Adversaries, real_loss
from mammo_fed.synthesis.real_gradients import RealImages, private_gradients, real_images

SIDE = 32
DIMS = SIDE * SIDE
SLACK = 1 + 1e-5
CLIP = 0.5
# A loss of its own for each term that depends on real images.
LOSSES = {
    "bce": ("gan.loss=bce", "gan.mismatch=0"),
    "mismatch": ("gan.loss=bce", "gan.mismatch=0.5", "gan.projection=true"),
    "lsgan": ("gan.loss=lsgan", "gan.spectral=true", "gan.discriminator_norm=none"),
    "wgan_gp": ("gan.loss=wgan_gp", "gan.gradient_penalty=10"),
    "augmented": ("gan.augment=[brightness,contrast,translation,cutout]", "gan.mirror=true"),
    "bfloat16": ("gan.precision=bfloat16",),
}


class Quiet(NoiseSource):
    """Draws that add nothing; everybody takes part."""

    def draws(self, mode, *, site, round_index, purpose):
        return noiseless(mode)


def release_of(settings, unit, mode, *, gradients=private_gradients, pixels=False):
    """The clipped sum of one discriminator step, as a function of images at the network's size, or of a cohort."""

    def release(features, labels, units):
        real = RealImages(
            images=torch.from_numpy(np.array(features)).view(-1, 1, SIDE, SIDE),
            labels=torch.from_numpy(np.array(labels)),
            units=units,
            present=np.any(features != 0, axis=1),
        )
        return summed(real)

    def summed(real):
        event = PrivacyEvent(
            mechanism="gradient",
            noise_multiplier=1.0 if mode == "float" else 0.0,
            steps=1,
            sample_rate=1.0,
            unit=unit,
            clipping_norm=CLIP,
            max_images_per_patient=16,
        )
        step = gradients(real, event=event, public_units=1, noise=Quiet(injected_seed=None), mode=mode)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=settings.gan.precision == "bfloat16"):
            found, shown = step.step(Adversaries(settings.gan, seed=0), 3)
        assert shown is None
        return torch.cat([gradient.flatten() for gradient in found]).numpy()

    def of_cohort(cohort):
        return summed(real_images(cohort, image_size=SIDE, unit=unit))

    return of_cohort if pixels else release


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("unit", ["patient", "image"])
def test_gate_holds_for_every_loss_of_the_discriminator(gan_settings, loss, unit):
    moves = largest_move(release_of(gan_settings(*LOSSES[loss]), unit, "secure"), dims=DIMS, unit=unit)
    assert set(moves) == set(HOSTILE)
    assert max(moves.values()) <= CLIP * SLACK
    assert moves["ordinary"] > 0


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(("unit", "mode"), [("patient", "secure"), ("image", "float")])
def test_relation_holds_from_the_pixels_on_for_every_loss_of_the_discriminator(gan_settings, loss, unit, mode):
    moves = largest_pixel_move(release_of(gan_settings(*LOSSES[loss]), unit, mode, pixels=True), unit=unit)
    assert set(moves) == set(PIXEL_KINDS)
    assert max(moves.values()) <= CLIP * SLACK
    assert max(moves[kind] for kind in ("black", "negative_zero", "nan", "one_nan")) == 0, moves
    assert min(moves["ordinary"], moves["faint"]) > 0


def test_gate_holds_in_floating_point(gan_settings):
    moves = largest_move(release_of(gan_settings("gan.mismatch=0.3"), "patient", "float"), dims=DIMS, unit="patient")
    assert max(moves.values()) <= CLIP * SLACK
    assert moves["ordinary"] > 0


def test_gate_catches_images_clipped_one_by_one(gan_settings):
    def by_image(real, **named):
        return private_gradients(replace(real, units=np.arange(len(real.labels))), **named)

    release = release_of(gan_settings(), "patient", "secure", gradients=by_image)
    assert largest_move(release, dims=DIMS, unit="patient")["many_images"] > CLIP * SLACK


def test_gate_catches_a_penalty_beside_the_clipping(gan_settings):
    """A term that looks at all real images at once, added to the clipped sum."""

    def beside(real, **named):
        step = private_gradients(real, **named)

        def with_term(adversaries, number):
            gradients, shown = step.step(adversaries, number)
            rows = np.flatnonzero(real.present)
            loss = real_loss(adversaries, real.images[rows], real.labels[rows], number=number, purpose="all").sum()
            own = torch.autograd.grad(loss, list(adversaries.discriminator.parameters()), allow_unused=True)
            return [g if one is None else g + one for g, one in zip(gradients, own, strict=True)], shown

        return replace(step, step=with_term)

    release = release_of(gan_settings(), "patient", "secure", gradients=beside)
    assert not max(largest_move(release, dims=DIMS, unit="patient").values()) <= CLIP * SLACK


def test_gate_no_layer_of_the_discriminator_mixes_a_batch(gan_settings):
    for overrides in LOSSES.values():
        discriminator = Adversaries(gan_settings(*overrides).gan, seed=0).discriminator
        images, labels = torch.randn(6, 1, SIDE, SIDE), torch.arange(6) % 2
        together = discriminator(images, labels)
        alone = torch.cat([discriminator(images[i : i + 1], labels[i : i + 1]) for i in range(6)])
        torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
        others = images.clone()
        others[1:] *= 5
        torch.testing.assert_close(discriminator(others, labels)[0], together[0], rtol=1e-4, atol=1e-5)


def test_gate_a_pass_through_the_discriminator_leaves_no_trace(gan_settings):
    """How many patients took part must not show in the weights, not even through a spectral norm's iteration."""
    for overrides in LOSSES.values():
        discriminator = Adversaries(gan_settings(*overrides).gan, seed=0).discriminator
        before = {name: value.clone() for name, value in discriminator.state_dict().items()}
        discriminator(torch.randn(4, 1, SIDE, SIDE), torch.arange(4) % 2).sum().backward()
        for name, value in discriminator.state_dict().items():
            assert torch.equal(value, before[name]), name


def test_gan_public_draws_do_not_depend_on_who_takes_part(gan_settings, images):
    """What is generated in a step, and what torch draws elsewhere, is the same with all patients and with none."""
    settings = gan_settings("gan.loss=wgan_gp")
    real = RealImages(
        images=torch.from_numpy(images(12))[:, None] * 2 - 1,
        labels=torch.arange(12) % 2,
        units=np.arange(12) // 2,
        present=np.ones(12, bool),
    )
    found = []
    for present in (real.present, ~real.present):
        adversaries = Adversaries(settings.gan, seed=0)
        torch.manual_seed(5)
        event = PrivacyEvent(
            mechanism="gradient",
            noise_multiplier=0.0,
            steps=1,
            sample_rate=1.0,
            unit="patient",
            clipping_norm=1.0,
            max_images_per_patient=2,
        )
        step = private_gradients(
            replace(real, present=present), event=event, public_units=12, noise=Quiet(injected_seed=None), mode="secure"
        )
        step.step(adversaries, 0)
        drawn = adversaries.generated(8, 0, "fake")
        found.append((torch.rand(3), drawn[0], drawn[2], adversaries.generator.state_dict()))
    for one, other in zip(found[0][:3], found[1][:3], strict=True):
        assert torch.equal(one, other)
    for name, value in found[0][3].items():
        assert torch.equal(value, found[1][3][name]), name


def test_gan_losses_of_real_images_are_not_shown_under_privacy(gan_settings, images):
    settings = gan_settings("privacy.target_epsilon=6")
    real = RealImages(
        images=torch.from_numpy(images(4))[:, None], labels=torch.arange(4) % 2, units=np.arange(4), present=np.ones(4, bool)
    )
    event = PrivacyEvent(
        mechanism="gradient",
        noise_multiplier=1.0,
        steps=6,
        sample_rate=0.5,
        unit="patient",
        clipping_norm=1.0,
        max_images_per_patient=2,
    )
    step = private_gradients(real, event=event, public_units=4, noise=NoiseSource(injected_seed=None), mode="secure")
    assert Adversaries(settings.gan, seed=0).advance(step).real is None
