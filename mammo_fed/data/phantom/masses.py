"""A procedural breast-mass phantom: no patient data in it, and a ceiling on what any classifier can reach.

One latent number, the suspicion, decides how malignant a mass looks: s ~ N((2 y - 1) d' / 2, 1) with y = 1 for malignant. Every
visible trait sees it through noise of its own, q = sigmoid(s + N(0, TRAIT_NOISE)), and nothing else depends on the label.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage
from scipy.special import ndtr

from mammo_fed.data.cohort import BENIGN, MALIGNANT
from mammo_fed.data.phantom.shapes import Image, draw_outline, profile, spicules, visible_trait
from mammo_fed.errors import InvalidSetting

__all__ = [
    "EXTERNAL_STYLE",
    "HOSPITALS",
    "PhantomStyle",
    "any_style",
    "auroc_ceiling",
    "develop",
    "draw_mass",
    "draw_suspicion",
    "draw_texture",
    "site_style",
]

# The texture is drawn on a larger periodic canvas: at the size of the patch, opposite edges would match.
CANVAS_FACTOR: Final = 2
SMALLEST_IMAGE: Final = 32
LARGEST_IMAGE: Final = 1024


@dataclass(frozen=True, kw_only=True)
class PhantomStyle:
    """How one site's images look, whatever the mass.

    Attributes:
      beta_mean: mean exponent of the texture's 1/f^beta power spectrum, in [0, 6]; higher is smoother.
      beta_sd: standard deviation of that exponent from image to image, in [0, 2].
      blur_px: blur added to every image's own U(.4, .8), standard deviation in pixels, in [0, 10].
      gain: factor on the image's contrast around its mean, in (0, 5].
      gamma: exponent on the final intensity, in [0.2, 5]; above 1 darkens.
      prevalence: fraction of patients with a malignant mass, in (0, 1).
      noise: white noise after the blur, in standard deviations of the texture, in [0, 1].
    """

    beta_mean: float = 2.6
    beta_sd: float = 0.3
    blur_px: float = 0.0
    gain: float = 1.0
    gamma: float = 1.0
    prevalence: float = 0.5
    noise: float = 0.04

    def __post_init__(self) -> None:
        rules = {
            "beta_mean": (0 <= self.beta_mean <= 6, "in [0, 6]"),
            "beta_sd": (0 <= self.beta_sd <= 2, "in [0, 2]"),
            "blur_px": (0 <= self.blur_px <= 10, "in [0, 10] pixels"),
            "gain": (0 < self.gain <= 5, "in (0, 5]"),
            "gamma": (0.2 <= self.gamma <= 5, "in [0.2, 5]"),
            "prevalence": (0 < self.prevalence < 1, "in (0, 1)"),
            "noise": (0 <= self.noise <= 1, "in [0, 1]"),
        }
        for name, (holds, rule) in rules.items():
            if not holds:
                raise InvalidSetting(f"{name}={getattr(self, name)} must be {rule}; check the phantom style")


# Relative size and style of each hospital.
HOSPITALS: Final[tuple[tuple[int, PhantomStyle], ...]] = (
    (40, PhantomStyle(beta_mean=2.6, prevalence=0.45)),
    (30, PhantomStyle(beta_mean=2.3, blur_px=0.2, gain=1.2, gamma=0.85, prevalence=0.4)),
    (20, PhantomStyle(beta_mean=2.9, blur_px=0.5, gain=0.85, gamma=1.2, prevalence=0.6)),
    (10, PhantomStyle(beta_mean=2.45, blur_px=0.8, gain=1.05, gamma=1.35, prevalence=0.5)),
)
# Rough, blurred, flat and dark: outside what the hospitals train on, inside what `any_style` covers.
EXTERNAL_STYLE: Final = PhantomStyle(beta_mean=2.0, blur_px=1.0, gain=0.75, gamma=1.5, prevalence=0.35, noise=0.12)


def site_style(number: int) -> PhantomStyle:
    """Style of hospital `number`, counted from 0; the first four are distinct and later ones vary them slightly."""
    cycle, kind = divmod(number, len(HOSPITALS))
    base = HOSPITALS[kind][1]
    # Multiples of the golden ratio fill [-.5, .5) evenly however many hospitals there are; the first cycle is left as it is.
    shift = math.fmod(cycle * (math.sqrt(5) - 1) / 2 + 0.5, 1.0) - 0.5
    return replace(
        base,
        beta_mean=base.beta_mean + 0.3 * shift,
        gain=base.gain * (1 + 0.2 * shift),
        gamma=base.gamma * (1 - 0.2 * shift),
        prevalence=base.prevalence + 0.1 * shift,
    )


def any_style(rng: np.random.Generator) -> PhantomStyle:
    """A style drawn from a range that covers every hospital and the external one; the prevalence stays one half."""
    return PhantomStyle(
        beta_mean=rng.uniform(1.9, 3.1),
        blur_px=rng.uniform(0.0, 1.1),
        gain=math.exp(rng.uniform(math.log(0.7), math.log(1.3))),
        gamma=math.exp(rng.uniform(math.log(0.8), math.log(1.6))),
        noise=rng.uniform(0.03, 0.13),
    )


def auroc_ceiling(d_prime: float) -> float:
    """Highest expected AUROC of any classifier on masses of one style: Phi(d' / sqrt 2), the latent's own.

    Source: signal detection theory; Green and Swets, 1966.
    """
    return float(ndtr(d_prime / math.sqrt(2.0)))


def draw_suspicion(labels: NDArray[np.int64], *, d_prime: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """Latent suspicion N((2 y - 1) d' / 2, 1) of one mass per label.

    Args:
      labels: int, shape (masses,): MALIGNANT or BENIGN.
      d_prime: distance between the classes in standard deviations, in [0, 10].
      rng: generator to draw from.

    Returns:
      float64, shape (masses,).

    Raises:
      InvalidSetting: If `d_prime` is out of its range.
    """
    if not 0 <= d_prime <= 10:
        raise InvalidSetting(f"d_prime={d_prime} must be in [0, 10]; check data.d_prime")
    return (2 * np.asarray(labels) - 1) * (d_prime / 2) + rng.standard_normal(np.shape(labels))


def draw_texture(*, style: PhantomStyle, image_size: int, rng: np.random.Generator) -> Image:
    """Breast-like background: noise of unit variance with a power spectrum 1/f^beta, plus a linear ramp.

    Returns:
      float32, shape (image_size, image_size), in standard deviations of the texture.

    Source: 1/f^3 breast texture, Burgess et al., 2001; statistical backgrounds, Bochud, Abbey and Eckstein, 1999.
    """
    beta = rng.normal(style.beta_mean, style.beta_sd)
    stretch = math.exp(rng.normal(0.0, 0.35) / 2)
    angle = rng.uniform(0.0, math.pi)
    vertical, horizontal = _frequencies(CANVAS_FACTOR * image_size)
    along = (horizontal * np.float32(math.cos(angle)) + vertical * np.float32(math.sin(angle))) * np.float32(stretch)
    across = (vertical * np.float32(math.cos(angle)) - horizontal * np.float32(math.sin(angle))) / np.float32(stretch)
    power = along * along + across * across
    power[0, 0] = 1.0
    white = rng.standard_normal((CANVAS_FACTOR * image_size,) * 2, dtype=np.float32)
    # The amplitude is the root of the power and `power` is a squared frequency: f^(-beta / 2) = (f^2)^(-beta / 4).
    spectrum = fft.rfft2(white) * power ** np.float32(-beta / 4)
    spectrum[0, 0] = 0.0
    patch = fft.irfft2(spectrum, s=white.shape)[:image_size, :image_size]
    texture = (patch - patch.mean()) / patch.std()
    ramp = np.linspace(-1.0, 1.0, image_size, dtype=np.float32)
    slopes = rng.normal(0.0, 0.6, 2).astype(np.float32)
    summed: Image = texture + slopes[0] * ramp[:, None] + slopes[1] * ramp
    return summed


def develop(scene: Image, *, brightness: float, style: PhantomStyle, rng: np.random.Generator) -> Image:
    """What the detector and the site's processing make of a scene: blur, noise, gain, brightness, clipping, gamma.

    Args:
      scene: float32, shape (size, size), in standard deviations of the texture.
      brightness: shift of the mean intensity from one half.
      style: how the site's images look.
      rng: generator to draw from.

    Returns:
      float32, shape (size, size), in [0, 1].
    """
    blurred = ndimage.gaussian_filter(scene, rng.uniform(0.4, 0.8) + style.blur_px)
    noisy = blurred + np.float32(style.noise) * rng.standard_normal(scene.shape, dtype=np.float32)
    exposed = np.float32(0.5 + brightness) + np.float32(0.07 * style.gain) * (noisy - noisy.mean())
    developed: Image = np.clip(exposed, np.float32(0.0), np.float32(1.0)) ** np.float32(style.gamma)
    return developed


def draw_mass(label: int, *, suspicion: float, style: PhantomStyle, image_size: int = 128, rng: np.random.Generator) -> Image:
    """One mass patch in its background.

    Args:
      label: MALIGNANT or BENIGN; checked only. The drawing sees `suspicion` alone, which is what makes the ceiling hold.
      suspicion: latent suspicion of the mass, from `draw_suspicion`; views of one patient share it.
      style: how the site's images look.
      image_size: height and width in pixels, in [32, 1024].
      rng: generator to draw everything else from.

    Returns:
      float32, shape (image_size, image_size), in [0, 1].

    Raises:
      InvalidSetting: If the label is unknown, the suspicion not finite or the size out of its range.
    """
    if label not in (BENIGN, MALIGNANT):
        raise InvalidSetting(f"label={label} must be 1 (malignant) or 0 (benign); check the label column")
    if not math.isfinite(suspicion):
        raise InvalidSetting(f"suspicion={suspicion} must be a finite number; draw it with draw_suspicion")
    if not SMALLEST_IMAGE <= image_size <= LARGEST_IMAGE:
        raise InvalidSetting(f"image_size={image_size} must be in [{SMALLEST_IMAGE}, {LARGEST_IMAGE}]; check data.image_size")
    image = draw_texture(style=style, image_size=image_size, rng=rng)
    outline = draw_outline(suspicion=suspicion, image_size=image_size, rng=rng)
    distance, angle, contour = outline.polar(image_size)
    contrast = 2.2 * math.exp(rng.normal(0.0, 0.3)) * (1 + 0.6 * (visible_trait(suspicion, rng) - 0.5))
    contrast = min(max(contrast, 0.4), 4.0)
    edge = outline.radius_px * (0.02 + 0.20 * visible_trait(suspicion, rng))
    image += np.float32(1.4 * contrast) * profile(distance, contour, edge)
    rays = spicules(distance, angle, outline=outline, trait=visible_trait(suspicion, rng), rng=rng)
    image += np.float32(0.55 * contrast) * np.minimum(rays, np.float32(1.0))
    brightness = rng.normal(0.0, 0.08) + 0.06 * (visible_trait(suspicion, rng) - 0.5)
    return develop(image, brightness=brightness, style=style, rng=rng)


@functools.lru_cache(maxsize=8)
def _frequencies(canvas: int) -> tuple[Image, Image]:
    """Vertical (canvas, 1) and horizontal (1, canvas // 2 + 1) frequencies in cycles per canvas, read-only."""
    vertical = (np.fft.fftfreq(canvas) * canvas).astype(np.float32)[:, None]
    horizontal = (np.fft.rfftfreq(canvas) * canvas).astype(np.float32)[None, :]
    vertical.flags.writeable = horizontal.flags.writeable = False
    return vertical, horizontal
