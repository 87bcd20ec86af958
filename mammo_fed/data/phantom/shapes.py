"""Shape of a phantom mass: contour, projected thickness and spicules, each following the suspicion through a trait."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

__all__ = ["Image", "MassOutline", "draw_outline", "profile", "spicules", "visible_trait"]

Image = NDArray[np.float32]

TRAIT_NOISE: Final = 0.25
HARMONICS: Final = np.arange(2, 14)
# A Gaussian ray thinner than this falls between pixel centres and breaks into dots.
THINNEST_RAY_PX: Final = 0.35


@dataclass(frozen=True, kw_only=True, eq=False)
class MassOutline:
    """Where a mass lies and what contour it has; radii are in the mass's own frame, whose circles are ellipses in the image.

    Attributes:
      centre_px: row and column of the centre.
      radius_px: mean radius R, in (0, image size / 2).
      axis_ratio: long axis over short axis where above 1, else the reverse.
      orientation: angle of the frame in the image, radians.
      amplitudes: float64, shape (12,): deviation from the circle by harmonic 2 to 13, as a fraction of R.
      phases: float64, shape (12,): radians.
    """

    centre_px: tuple[float, float]
    radius_px: float
    axis_ratio: float
    orientation: float
    amplitudes: NDArray[np.float64]
    phases: NDArray[np.float64]

    def radius_at(self, angles: NDArray[np.float64]) -> NDArray[np.float64]:
        """Contour radius in pixels at `angles` (radians, any shape), same shape; between .6 and 1.6 times `radius_px`."""
        waves = np.cos(np.asarray(angles)[..., None] * HARMONICS + self.phases) @ self.amplitudes
        radii: NDArray[np.float64] = self.radius_px * np.clip(1.0 + waves, 0.6, 1.6)
        return radii

    def polar(self, image_size: int) -> tuple[Image, Image, Image]:
        """Where every pixel lies in the mass's frame.

        Returns:
          Distance from the centre in pixels, angle in radians, contour radius there in pixels; each float32, (size, size).
        """
        rows, columns = np.ogrid[:image_size, :image_size]
        down = (rows - self.centre_px[0]).astype(np.float32)
        right = (columns - self.centre_px[1]).astype(np.float32)
        cos, sin, stretch = np.cos(self.orientation), np.sin(self.orientation), math.sqrt(self.axis_ratio)
        along = (right * np.float32(cos) + down * np.float32(sin)) / np.float32(stretch)
        across = (down * np.float32(cos) - right * np.float32(sin)) * np.float32(stretch)
        angle = np.arctan2(across, along)
        table = self.radius_at(np.linspace(-np.pi, np.pi, 2049)).astype(np.float32)
        contour = table[np.rint((angle + np.float32(np.pi)) * np.float32(2048 / (2 * np.pi))).astype(np.int32)]
        return np.hypot(along, across), angle, contour


def visible_trait(suspicion: float, rng: np.random.Generator) -> float:
    """One visible trait in (0, 1): the suspicion seen through noise of its own."""
    return float(expit(suspicion + TRAIT_NOISE * rng.standard_normal()))


def draw_outline(*, suspicion: float, image_size: int, rng: np.random.Generator) -> MassOutline:
    """Place and contour of one mass: benign ones smooth and round, malignant ones larger and irregular.

    Args:
      suspicion: latent suspicion of the mass.
      image_size: height and width of the patch in pixels.
      rng: generator to draw from.

    Source: radial Fourier contours as in de Sisternes et al., 2015.
    """
    size_trait, contour_trait = visible_trait(suspicion, rng), visible_trait(suspicion, rng)
    radius = 0.24 * math.exp(rng.normal(0.0, 0.22)) * (1 + 0.25 * (size_trait - 0.5))
    roughness = 0.02 + 0.22 * contour_trait
    falloff = HARMONICS ** -(2.0 - 0.9 * contour_trait)
    row, column = (image_size - 1) / 2 + 0.03 * image_size * rng.standard_normal(2)
    return MassOutline(
        centre_px=(float(row), float(column)),
        radius_px=image_size * min(max(radius, 0.12), 0.38),
        axis_ratio=math.exp(rng.normal(0.0, 0.15)),
        orientation=rng.uniform(0.0, math.pi),
        amplitudes=2 * roughness * falloff * rng.standard_normal(len(HARMONICS)),
        phases=rng.uniform(0.0, 2 * math.pi, len(HARMONICS)),
    )


def profile(distance: Image, contour: Image, edge_px: float) -> Image:
    """Projected thickness of the mass, in [0, 1]: half an ellipsoid that ends in a logistic edge of width `edge_px`."""
    thickness = np.sqrt(np.maximum(1.0 - (distance / (np.float32(1.15) * contour)) ** 2, np.float32(0.0)))
    ending: Image = thickness * expit((contour - distance) / np.float32(edge_px))
    return ending


def spicules(distance: Image, angle: Image, *, outline: MassOutline, trait: float, rng: np.random.Generator) -> Image:
    """Sum of curved, tapering rays that leave the contour: float32, shape (size, size), in units of one full ray."""
    rays = np.zeros_like(distance)
    radius = outline.radius_px
    for _ in range(rng.poisson(0.5 + 22.0 * trait**2)):
        direction, bend = rng.uniform(-math.pi, math.pi), rng.normal(0.0, 0.25)
        length, width = radius * rng.uniform(0.4, 1.4), radius * rng.uniform(0.015, 0.04)
        amplitude = rng.uniform(0.3, 0.9)
        start = 0.85 * float(outline.radius_at(np.array(direction)))
        progress = (distance - np.float32(start)) / np.float32(length)
        # The bend grows with the distance travelled, in radians at the tip; angles wrap at +-pi.
        turned = angle - np.float32(direction) - np.float32(bend) * progress
        turned -= np.float32(2 * math.pi) * np.rint(turned / np.float32(2 * math.pi))
        lateral = np.abs(distance * turned)
        near = (lateral < 4 * max(width, THINNEST_RAY_PX)) & (progress > 0) & (progress < 1)
        left = 1.0 - progress[near]
        thickness = np.maximum(width * left, THINNEST_RAY_PX)
        rays[near] += amplitude * np.sqrt(left) * np.exp(-0.5 * (lateral[near] / thickness) ** 2)
    return rays
