"""Cached flips give the DP-SGD of the slow path, which runs the frozen network in every step on the flipped pixels it drew."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from opacus import GradSampleModule
from opacus.optimizers import DPOptimizer

from mammo_fed.audit.gate import noiseless
from mammo_fed.data.cache import ArrayCache
from mammo_fed.models.backbones import Backbone, BackboneSpec
from mammo_fed.models.features import Extractor, ExtractorSpec
from mammo_fed.models.heads import HeadSpec, build_head, flatten, head_loss, load_flat
from mammo_fed.privacy.events import PrivacyEvent
from mammo_fed.privacy.mechanisms.poisson_sgd import PoissonData, poisson_steps
from mammo_fed.privacy.noise import FloatDraws, GridDraws

NETWORK = BackboneSpec(name="tf_efficientnet_lite0", weights="none", tap=4)
SIZE, IMAGES, DIMS, SEED = 64, 24, 320, 11
# Patient p has p + 1 images, the last one what is left: units of one image and of many.
PATIENTS = np.repeat(np.arange(7), [1, 2, 3, 4, 5, 6, 3])
# A flip is its own inverse; the order is that of the cached views.
AXES = ((), (-1,), (-2,), (-1, -2))
KEEPS_ALL, CLIPS_ALL = 1e3, 0.1

# Opacus' hooks sit on a head whose input, the frozen network's output, needs no gradient.
pytestmark = pytest.mark.filterwarnings("ignore:Full backward hook is firing:UserWarning")


@dataclass(frozen=True, kw_only=True, eq=False)
class Patches:
    """Patches, what the cache holds of them, and the network for those who do without the cache."""

    pixels: np.ndarray
    labels: np.ndarray
    cached: np.ndarray
    backbone: Backbone

    def features(self, rows, views):
        """What the network makes of some images, each flipped as drawn."""
        flipped = np.stack([np.flip(self.pixels[row], AXES[view]) for row, view in zip(rows, views, strict=True)])
        return self.backbone(torch.from_numpy(flipped)).mean(2).clone()


@pytest.fixture(scope="module")
def patches(tmp_path_factory):
    rng = np.random.default_rng(0)
    pixels = rng.random((IMAGES, SIZE, SIZE), dtype=np.float32)
    spec = ExtractorSpec(backbones=(NETWORK,), pooling="mean", input_size=SIZE, flips="random")
    extractor = Extractor(spec, cache=ArrayCache(tmp_path_factory.mktemp("cache")))
    (cached,) = extractor.blocks(pixels, fingerprint="ab" * 32)
    return Patches(pixels=pixels, labels=rng.integers(0, 2, IMAGES), cached=np.array(cached), backbone=extractor.backbones[0])


@dataclass(frozen=True, kw_only=True, eq=False)
class Setting:
    """A head, a unit and a clipping norm; both paths take the same steps from the same start."""

    kind: str = "mlp"
    unit: str = "image"
    clipping_norm: float = CLIPS_ALL
    steps: int = 1
    sample_rate: float = 0.4
    label_smoothing: float = 0.1
    optimizer: str = "sgd"
    learning_rate: float = 1.0

    @property
    def units(self):
        return np.arange(IMAGES) if self.unit == "image" else PATIENTS

    @property
    def batch(self):
        """Expected images in a batch."""
        return self.sample_rate * IMAGES

    @property
    def charged(self):
        return PrivacyEvent(
            mechanism="gradient",
            noise_multiplier=0.0,
            steps=self.steps,
            sample_rate=self.sample_rate,
            unit=self.unit,
            clipping_norm=self.clipping_norm,
            max_images_per_patient=16,
        )

    def head(self):
        """The same head at every call, not at zero."""
        head = build_head(HeadSpec(kind=self.kind, dims=DIMS, hidden=16), seed=3)
        start = flatten(head)
        load_flat(head, start + np.random.default_rng(4).normal(0, 0.05, len(start)).astype(np.float32))
        return head

    def loss(self, logits, labels):
        return head_loss(logits, labels, label_smoothing=self.label_smoothing)

    def inner(self, head):
        """The optimizer under the private one, as the paper has it."""
        if self.optimizer == "sgd":
            return torch.optim.SGD(head.parameters(), lr=self.learning_rate)
        return torch.optim.AdamW(head.parameters(), lr=self.learning_rate, weight_decay=1e-8)


def sampling_of(noise):
    """Sampling draws of either kind, the same at every call."""
    return (
        FloatDraws(generator=np.random.default_rng(SEED))
        if noise == "float"
        else GridDraws(words=np.random.PCG64DXSM(SEED).random_raw)
    )


def draw(setting, sampling):
    """Rows and views of one step, drawn as poisson_steps draws them: units first, then a view for each of their images."""
    num_units = int(setting.units.max()) + 1
    taken = sampling.poisson_sample(num_units, sample_rate=setting.sample_rate)
    rows = np.flatnonzero(np.isin(setting.units, taken))
    return rows, sampling.integers(4, size=len(rows))


def fast(setting, patches, noise="float", features=None):
    """The head after our steps, and the gradient of the last of them."""
    head = setting.head()
    poisson_steps(
        head,
        PoissonData(features=patches.cached if features is None else features, labels=patches.labels, units=setting.units),
        loss=setting.loss,
        event=setting.charged,
        public_images=IMAGES,
        learning_rate=setting.learning_rate,
        weight_decay=1e-8 if setting.optimizer == "adamw" else 0.0,
        optimizer=setting.optimizer,
        proximal=0.0,
        noise=noiseless(noise),
        sampling=sampling_of(noise),
    )
    return head, np.concatenate([parameter.grad.numpy().ravel() for parameter in head.parameters()])


def slow(setting, patches, noise="float"):
    """The same through Opacus' hooks and optimizer, with the network in every step."""
    head, sampling = setting.head(), sampling_of(noise)
    hooked = GradSampleModule(head)
    private = DPOptimizer(
        setting.inner(hooked), noise_multiplier=0.0, max_grad_norm=setting.clipping_norm, expected_batch_size=setting.batch
    )
    for _ in range(setting.steps):
        rows, views = draw(setting, sampling)
        private.zero_grad()
        setting.loss(hooked(patches.features(rows, views)), torch.from_numpy(patches.labels[rows])).mean().backward()
        private.step()
    return head, np.concatenate([parameter.grad.numpy().ravel() for parameter in head.parameters()])


def slow_by_unit(setting, patches, noise="float"):
    """Norms of the unit gradients of one step and the mean of the clipped ones: autograd, a unit at a time."""
    head = setting.head()
    rows, views = draw(setting, sampling_of(noise))
    total, norms = 0.0, []
    for unit in np.unique(setting.units[rows]):
        own = setting.units[rows] == unit
        losses = setting.loss(head(patches.features(rows[own], views[own])), torch.from_numpy(patches.labels[rows[own]]))
        gradient = torch.cat([part.ravel() for part in torch.autograd.grad(losses.sum(), list(head.parameters()))]).double()
        norms.append(float(gradient.norm()))
        total = total + gradient * min(1.0, setting.clipping_norm / norms[-1])
    return np.array(norms), (total / setting.batch).numpy()


def assert_same(found, expected):
    """Equal to 1e-4: as a whole, and entry by entry against the largest, for small ones are differences of large ones."""
    assert np.abs(expected).max() > 0
    assert np.linalg.norm(found - expected) < 1e-4 * np.linalg.norm(expected)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def test_the_cache_holds_what_the_network_makes_of_the_flipped_pixels(patches):
    for view in range(4):
        live = patches.features(range(IMAGES), [view] * IMAGES).numpy()
        assert_same(patches.cached[:, view], live)
        # Otherwise nothing below could tell one view from another.
        assert np.abs(live - patches.cached[:, (view + 1) % 4]).mean() > 0.1 * np.abs(live).mean()


@pytest.mark.parametrize("clipping_norm", [CLIPS_ALL, KEEPS_ALL])
@pytest.mark.parametrize("kind", ["mlp", "linear"])
def test_cached_flips_give_the_gradient_of_the_network_in_every_step_under_opacus(patches, kind, clipping_norm):
    setting = Setting(kind=kind, clipping_norm=clipping_norm)
    assert_same(fast(setting, patches)[1], slow(setting, patches)[1])


@pytest.mark.parametrize("noise", ["float", "secure"])
@pytest.mark.parametrize("clipping_norm", [CLIPS_ALL, KEEPS_ALL])
@pytest.mark.parametrize("unit", ["image", "patient"])
@pytest.mark.parametrize("kind", ["mlp", "linear"])
def test_cached_flips_give_the_sum_of_unit_gradients_that_autograd_finds_one_by_one(patches, kind, unit, clipping_norm, noise):
    setting = Setting(kind=kind, unit=unit, clipping_norm=clipping_norm)
    norms, expected = slow_by_unit(setting, patches, noise)
    assert len(norms) > 1
    assert (norms > clipping_norm).all() if clipping_norm == CLIPS_ALL else (norms < clipping_norm).all()
    assert_same(fast(setting, patches, noise)[1], expected)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("kind", ["mlp", "linear"])
def test_cached_flips_train_the_head_that_the_network_in_every_step_trains(patches, kind, optimizer):
    # Small steps: where large ones overshoot, rounding grows with every step on either path.
    rate = 0.05 if optimizer == "sgd" else 1e-3
    setting = Setting(kind=kind, clipping_norm=1.0, steps=30, optimizer=optimizer, learning_rate=rate)
    start = flatten(setting.head())
    expected = flatten(slow(setting, patches)[0]) - start
    assert_same(flatten(fast(setting, patches)[0]) - start, expected)


def test_steps_without_flips_would_train_another_head(patches):
    setting = Setting(clipping_norm=1.0, steps=30, learning_rate=0.05)
    start = flatten(setting.head())
    drawn = flatten(fast(setting, patches)[0]) - start
    straight = flatten(fast(setting, patches, features=patches.cached[:, 0])[0]) - start
    assert np.linalg.norm(drawn - straight) > 0.5 * np.linalg.norm(straight)


@pytest.mark.parametrize("noise", ["float", "secure"])
def test_every_step_draws_each_image_one_of_the_four_flips_alike_and_anew(noise):
    images, sampling, parts = 4000, sampling_of(noise), []
    # From a head at zero each image drawn in view v moves weight v, and no other, by the same amount.
    data = PoissonData(
        features=np.tile(np.eye(4, dtype=np.float32), (images, 1, 1)), labels=np.ones(images, int), units=np.arange(images)
    )
    for _ in range(3):
        head = build_head(HeadSpec(kind="linear", dims=4), seed=0)
        poisson_steps(
            head,
            data,
            loss=Setting().loss,
            event=Setting(clipping_norm=KEEPS_ALL, sample_rate=0.5).charged,
            public_images=images,
            learning_rate=1.0,
            weight_decay=0.0,
            optimizer="sgd",
            proximal=0.0,
            noise=noiseless(noise),
            sampling=sampling,
        )
        moved = flatten(head)[:4].astype(np.float64)
        parts.append(moved / moved.sum())
    # Five standard deviations of a share of 2,000 draws.
    np.testing.assert_allclose(parts, 0.25, atol=5 * np.sqrt(0.25 * 0.75 / (images / 2)))
    assert len({tuple(np.round(part, 6)) for part in parts}) == 3
