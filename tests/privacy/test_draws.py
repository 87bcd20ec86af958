"""What every kind of draws must do, whatever mechanism asks: a suite that another kind would have to pass too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from mammo_fed.privacy.events import PrivacyEvent
from mammo_fed.privacy.noise import ClippedSum, Draws, NoiseSource, clip_factors, grid_sum

KINDS = ("secure", "float")
CLIP = 0.5


def draws(kind: str, *, seed: int | None = None, purpose: str = "noise") -> Draws:
    return NoiseSource(injected_seed=seed).draws(kind, site="site-1", round_index=1, purpose=purpose)


def event(noise_multiplier: float) -> PrivacyEvent:
    return PrivacyEvent(
        mechanism="gradient",
        noise_multiplier=noise_multiplier,
        steps=1,
        sample_rate=1.0,
        unit="patient",
        clipping_norm=CLIP,
        max_images_per_patient=1,
    )


@dataclass(frozen=True)
class Sum:
    """The sum of some rows, in both arithmetics: all that a mechanism from elsewhere has to bring."""

    rows: NDArray[np.float64]

    def on_grid(self, *, clipping_norm: float) -> NDArray[np.int64]:
        return grid_sum(self.rows, clipping_norm=clipping_norm)

    def in_floating_point(self, *, event: PrivacyEvent, noise: np.random.Generator) -> NDArray[np.floating[Any]]:
        factors = clip_factors(np.linalg.norm(self.rows, axis=1), clipping_norm=event.clipping_norm)
        return factors @ self.rows + event.noise_multiplier * event.clipping_norm * noise.standard_normal(self.rows.shape[1])


ROWS: ClippedSum = Sum(np.array([[3.0, 4.0, 0.0], [0.0, 0.1, 0.2]]))


@pytest.mark.parametrize("kind", KINDS)
def test_without_noise_a_release_is_the_clipped_sum(kind):
    released = draws(kind).release(ROWS, event=event(0.0))
    np.testing.assert_allclose(released, [0.3, 0.5, 0.2], atol=2e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_noise_has_the_promised_scale(kind):
    wide = Sum(np.zeros((1, 40_000)))
    released = draws(kind, seed=3).release(wide, event=event(2.0))
    assert released.std() == pytest.approx(2.0 * CLIP, rel=0.02)
    assert abs(released.mean()) < 5 * 2.0 * CLIP / 200


@pytest.mark.parametrize("kind", KINDS)
def test_injected_draws_repeat_and_no_release_of_one_object_repeats_another(kind):
    one, other = draws(kind, seed=3), draws(kind, seed=3)
    first, second = (one.release(ROWS, event=event(1.0)) for _ in range(2))
    np.testing.assert_array_equal(first, other.release(ROWS, event=event(1.0)))
    assert (first != second).all()


@pytest.mark.parametrize("kind", KINDS)
@given(num_units=st.integers(0, 200), sample_rate=st.floats(1e-9, 1.0))
def test_a_poisson_sample_is_ascending_and_of_known_units(kind, num_units, sample_rate):
    sample = draws(kind).poisson_sample(num_units, sample_rate=sample_rate)
    assert (np.diff(sample) > 0).all()
    assert set(sample.tolist()) <= set(range(num_units))
    if sample_rate == 1.0:
        assert len(sample) == num_units


@pytest.mark.parametrize("kind", KINDS)
def test_a_poisson_sample_has_its_rate_and_takes_units_independently(kind):
    taken = np.zeros((4_000, 20), bool)
    source = draws(kind, seed=5, purpose="sampling")
    for row in taken:
        row[source.poisson_sample(20, sample_rate=0.3)] = True
    assert taken.mean() == pytest.approx(0.3, abs=0.01)
    # A size that is binomial: neither fixed nor all or nothing.
    assert taken.sum(1).var() == pytest.approx(20 * 0.3 * 0.7, rel=0.15)


@pytest.mark.parametrize("kind", KINDS)
def test_integers_are_below_their_bound_and_even(kind):
    drawn = draws(kind, seed=7).integers(4, size=8_000)
    assert drawn.dtype == np.int64
    assert np.bincount(drawn, minlength=4) == pytest.approx(2_000, abs=200)
    assert len(draws(kind).integers(4, size=0)) == 0
