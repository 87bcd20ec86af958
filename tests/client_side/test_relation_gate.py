"""The neighbouring relation from the pixels on: a whole site answers, with the same noise, for cohorts that are neighbours.

The noise cancels in the difference of two answers, so that what is left is how far one unit moved the clipped sum.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from mammo_fed.audit.gate import PIXEL_KINDS, largest_pixel_move, noiseless, pixel_cases
from mammo_fed.client.rounds import site as site_module
from mammo_fed.client.rounds.site import Site
from mammo_fed.data.cache import ArrayCache
from mammo_fed.data.cohort import Cohort, fingerprint
from mammo_fed.data.run_cohorts import Pool
from mammo_fed.federation.protocol.replies import Accepted
from mammo_fed.federation.protocol.task import RoundTask
from mammo_fed.federation.public_start import make_public_start
from mammo_fed.models.classifier import extractor_spec
from mammo_fed.models.features import Extractor
from mammo_fed.privacy.mechanisms.unit_descent import UnitGradient
from mammo_fed.privacy.noise import GRID_STEPS
from mammo_fed.server.run import declare_run
from mammo_fed.settings.compose import compose_settings
from mammo_fed.simulations.launch import site_file
from mammo_fed.training.local import gradient_share, mean_share

# What two declarations differ in whoever is in the cohort.
OF_THE_MOMENT = ("fingerprint", "ledger_head", "cap_since")
UNITS = ("patient", "image")
# Little noise, injected, and a batch as large as the cohort: whatever is left is what the units contributed.
COMMON = ("federation.num_sites=1", "federation.rounds=1", "federation.local_steps=1", "privacy.target_epsilon=5000")
POISSON = ("privacy=dp_sgd", "privacy.optimizer=sgd", "privacy.batch_size=64")
MECHANISMS = {
    "dp_gd": ("privacy.noise=secure",),
    "dp_gd float": ("privacy.noise=float",),
    "dp_gd not normalised": ("privacy.noise=secure", "model.norm=none"),
    "dp_gd of flips": ("privacy.noise=secure", "model.flips=average"),
    "dp_sgd": (*POISSON, "privacy.noise=secure"),
    "dp_sgd float": (*POISSON, "privacy.noise=float"),
    "dp_sgd mlp": (*POISSON, "privacy.noise=secure", "model.head=mlp", "model.hidden=4"),
    "dp_sgd mlp float": (*POISSON, "privacy.noise=float", "model.head=mlp", "model.hidden=4"),
    "dp_sgd of views": (*POISSON, "privacy.noise=secure", "model.flips=random", "privacy.mean_fraction=0"),
    "dp_sgd of views float": (*POISSON, "privacy.noise=float", "model.flips=random", "privacy.mean_fraction=0"),
    "dp_sgd beside synthetic images": (*POISSON, "privacy.noise=secure", "synthesis.use=[whiten,augment]"),
    "dp_sgd mixed with synthetic images": (
        *(*POISSON, "privacy.noise=secure", "synthesis.use=[whiten,augment]", "synthesis.sampler=mixed"),
        "privacy.batch_size=256",
    ),
}


class Bench:
    """A site whose cohort is exchanged while its policy, which says all its sizes, stays."""

    def __init__(self, small, cache, folder, monkeypatch, unit: str, *overrides: str) -> None:
        seed = "privacy.noise_seed=7"
        self.settings = compose_settings([*small, *COMMON, *overrides, f"privacy.unit={unit}", seed]).settings
        store = ArrayCache(cache)
        extractor = Extractor(extractor_spec(self.settings.model, seed=0), cache=store)
        start = make_public_start(self.settings, extractor, cache=store)
        self.declaration, self.payload = declare_run(self.settings, extractor, start, run_id="run1"), start.payload.flatten()
        self._folder, self._patch, self._count = folder, monkeypatch, 0
        self._answers: dict[tuple[int, str], np.ndarray] = {}
        ordinary = next(pixel_cases(unit=unit)).cohort
        self._file = site_file(self.settings, _pool(ordinary), 0, folder=folder, cache=store)
        # As a hospital would: sizes that its policy declares, whoever is there.
        self._file = replace(self._file, policy=replace(self._file.policy, max_epsilon=1e9))
        self.images = self._file.policy.public_images
        count = self.declaration.head.num_parameters
        self.parameters = (0.3 * np.random.default_rng(3).standard_normal(count)).astype(np.float32)
        self.feature_mean = np.full(self.declaration.dims, 0.05, np.float32)

    def bring(self, name: str, gradient: UnitGradient) -> None:
        """Let the run take its gradients from another distribution's mechanism, as if it were installed and allowed."""
        self._patch.setattr(site_module, "unit_gradient", lambda *_, **__: gradient)
        self._patch.setattr(site_module, "check_declaration", lambda *_, **__: None)
        self.declaration = replace(self.declaration, mechanism=name)

    def site(self, cohort: Cohort) -> Site:
        """The site, holding `cohort`, which has accepted the run."""
        site = self._holding(cohort)
        site.declare(self.declaration, self.payload)
        return site

    def accepted(self, cohort: Cohort) -> Accepted:
        """What such a site answers to the run's declaration."""
        return self._holding(cohort).declare(self.declaration, self.payload)

    def _holding(self, cohort: Cohort) -> Site:
        self._count += 1
        folder = self._folder / str(self._count)
        self._patch.setattr(site_module, "load_pool", lambda *_, **__: _pool(cohort))
        return Site(replace(self._file, folder=str(folder), ledger=str(folder / "ledger")))

    def mean(self, cohort: Cohort) -> np.ndarray:
        """What the site sends as its mean, as a sum."""
        nothing = np.zeros(self.declaration.dims, np.float32)
        return self._answer(cohort, 0, nothing, nothing) * self.images

    def step(self, cohort: Cohort) -> np.ndarray:
        """What one step of training moves at the site, as a sum of gradients."""
        sent = self._answer(cohort, 1, self.feature_mean, self.parameters)
        denominator = self.images + self.declaration.mixed_images
        return (self.parameters.astype(np.float64) - sent) * denominator / self.rate

    # Large, so that what a float32 holds of the step's end is the step.
    rate = 1000.0

    def _answer(self, cohort: Cohort, index: int, feature_mean: np.ndarray, arrays: np.ndarray) -> np.ndarray:
        # Cases share their neighbours, and one cohort has one answer.
        key = (index, fingerprint(cohort, key=None))
        if key in self._answers:
            return self._answers[key]
        task = RoundTask(
            run_id="run1",
            round_index=index,
            kind="train" if index else "mean",
            learning_rate=self.rate,
            weight_decay=0.0,
            optimizer="sgd",
            label_smoothing=0.0,
            proximal=0.0,
        )
        sent = self.site(cohort).round(task, feature_mean, arrays).parameters
        self._answers[key] = sent.astype(np.float64)
        return self._answers[key]


def _pool(cohort: Cohort) -> Pool:
    key = None if cohort.public else b"the key of a site"
    return Pool(cohort=cohort, rows=(np.arange(len(cohort)),), fingerprint=fingerprint(cohort, key=key))


@pytest.fixture
def bench(small, cache, tmp_path, monkeypatch) -> Callable[..., Bench]:
    return lambda unit, *overrides: Bench(small, cache, tmp_path, monkeypatch, unit, *overrides)


def check(moves: dict[str, float], clipping_norm: float, *, images: bool = False) -> None:
    """One unit moves a release by one clip at most, and one that shows nothing by nothing at all."""
    slack = clipping_norm * 2e-4
    assert set(moves) == set(PIXEL_KINDS)
    assert max(moves.values()) <= clipping_norm + slack, moves
    nothing = ("black", "negative_zero", "nan", *(("one_black", "one_nan", "infinite") if images else ()))
    assert max(moves[kind] for kind in nothing) <= slack, moves
    assert moves["ordinary"] > 0.4 * clipping_norm, "units far from the clip test nothing"
    assert moves["faint"] > 0.05 * clipping_norm, "only what is black all over shows nothing"


@pytest.mark.parametrize(
    ("mechanism", "unit"),
    [
        *((mechanism, "patient") for mechanism in MECHANISMS),
        *((mechanism, "image") for mechanism in ("dp_gd", "dp_gd float", "dp_sgd mlp", "dp_sgd of views float")),
    ],
)
def test_relation_holds_from_the_pixels_on_in_a_step_of_every_mechanism(bench, mechanism, unit):
    at = bench(unit, *MECHANISMS[mechanism])
    check(largest_pixel_move(at.step, unit=unit), at.declaration.clipping_norm, images=unit == "image")


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("mechanism", ["dp_gd", "dp_gd float"])
def test_relation_holds_from_the_pixels_on_in_the_mean(bench, mechanism, unit):
    at = bench(unit, *MECHANISMS[mechanism])
    check(largest_pixel_move(at.mean, unit=unit), at.declaration.mean_clipping_norm, images=unit == "image")


@pytest.mark.parametrize("unit", UNITS)
def test_relation_holds_from_the_pixels_on_under_shared_noise_to_the_last_grid_step(bench, unit):
    """In place, where no row of another patient moves, a unit that shows nothing is not there to the last bit."""
    at = bench(unit, "privacy.noise=secure")
    draws = noiseless("secure")
    for case in pixel_cases(unit=unit):
        of_case, of_black = (at.site(cohort)._prepared["run1"] for cohort in (case.cohort, case.black()))
        mean, step = (
            replace(event, noise_multiplier=0.0) for event in (of_case.schedule.mean_event, of_case.schedule.step_event)
        )
        for sums in (
            [mean_share(each.data, event=mean, noise=draws) for each in (of_case, of_black)],
            [
                gradient_share(
                    each.data,
                    at.parameters,
                    head=at.declaration.head,
                    feature_mean=at.feature_mean,
                    event=step,
                    noise=draws,
                )
                for each in (of_case, of_black)
            ],
        ):
            moved = float(np.linalg.norm((sums[0] - sums[1]).astype(np.float64)))
            assert moved <= (0 if case.kind in ("black", "negative_zero", "nan") else GRID_STEPS), case.kind


@pytest.mark.parametrize("noise", ["secure", "float"])
def test_relation_holds_from_the_pixels_on_for_a_gradient_from_outside(bench, monkeypatch, noise):
    def outside(rows: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
        # It would count every image that it is shown, whatever the image shows.
        return (2 * (rows @ weights - labels) + 1) @ rows + 1.0

    at = bench("patient", f"privacy.noise={noise}")
    at.bring("outside", outside)
    check(largest_pixel_move(at.step, unit="patient"), at.declaration.clipping_norm)


@pytest.mark.parametrize("mechanism", ["dp_gd", "dp_gd float", "dp_sgd", "dp_sgd mlp float"])
def test_relation_of_a_cohort_that_is_black_all_over_gives_a_release_of_noise_alone(bench, mechanism):
    at = bench("patient", *MECHANISMS[mechanism])
    ordinary = next(pixel_cases(unit="patient")).cohort
    black = replace(ordinary, pixels=np.zeros_like(ordinary.pixels))
    other = replace(black, labels=1 - black.labels)
    for release in (at.mean, at.step):
        noise = release(black)
        assert np.isfinite(noise).all()
        assert noise.any()
        np.testing.assert_array_equal(noise, release(other))


def test_relation_leaves_a_black_image_in_its_place_of_the_limit_on_images(bench):
    """Were it dropped first, another image would come in: two images would change where one shows nothing."""
    at = bench("image", "privacy.noise=secure", "privacy.max_images_per_patient=1")
    case = next(case for case in pixel_cases(unit="patient") if case.kind == "one_black")
    np.testing.assert_allclose(at.step(case.cohort), at.step(case.black()), atol=1e-4)


@pytest.mark.parametrize("kind", ["black", "one_black", "nan", "infinite"])
def test_relation_shows_in_no_word_of_a_site_whose_patients_are_not_public(bench, kind):
    at = bench("patient", "privacy.noise=secure")
    at.declaration = replace(at.declaration, noise_seed=None)
    case = next(case for case in pixel_cases(unit="patient") if case.kind == kind)
    said = []
    for cohort in (case.cohort, next(pixel_cases(unit="patient")).cohort):
        reply = at.accepted(replace(cohort, public=False))
        said.append({name: value for name, value in vars(reply).items() if name not in OF_THE_MOMENT})
    assert said[0] == said[1]
