"""The adversary who looks at the noise itself: its size and shape, what repeats in it, and who is drawn into samples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from mammo_fed.audit.noise.adversary import FALSE_ALARM, NOISE_CHECKS, audit_noise, judge
from mammo_fed.audit.noise.probe import SITES, Message
from mammo_fed.audit.report import audit_subject
from mammo_fed.audit.subject import Mechanism
from mammo_fed.privacy.noise import GRID_STEPS, FloatDraws, GridDraws, NoiseSource, grid_sigma
from mammo_fed.training.local import release_mean, train_head

Shape = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]


class Shaped(np.random.Generator):
    """A generator whose normal draws have another shape."""

    def __init__(self, bits: np.random.BitGenerator, shape: Shape) -> None:
        super().__init__(bits)
        self._true, self._shape = np.random.Generator(bits), shape

    def standard_normal(self, size=None, dtype=np.float64, **_):
        return np.asarray(self._shape(self._true, size if isinstance(size, tuple) else (size,)), dtype)


class ShapedGrid(GridDraws):
    """Draws on the grid with noise of another shape, in whole steps of it."""

    def release(self, clipped, *, event):
        bits = np.random.Generator(np.random.PCG64(int(self.words(1)[0])))
        total = clipped.on_grid(clipping_norm=event.clipping_norm)
        noise = np.asarray(self.shape(bits, total.shape), np.float64) * grid_sigma(event.noise_multiplier)
        return (total + np.rint(noise)) * (event.clipping_norm / GRID_STEPS)


class ShapedSource(NoiseSource):
    """Noise of another shape in some rounds; samples are sound."""

    shape: Shape
    rounds: tuple[int, ...] | None = None

    def draws(self, mode, *, site, round_index, purpose):
        sound = super().draws(mode, site=site, round_index=round_index, purpose=purpose)
        if purpose != "noise" or (self.rounds is not None and round_index not in self.rounds):
            return sound
        if mode == "float":
            return FloatDraws(generator=Shaped(sound.generator.bit_generator, self.shape))
        shaped = ShapedGrid(words=sound.words)
        object.__setattr__(shaped, "shape", self.shape)
        return shaped


def of_shape(shape: Shape, *, rounds: tuple[int, ...] | None = None) -> Callable[[int], NoiseSource]:
    def source(run: int) -> NoiseSource:
        made = ShapedSource(injected_seed=run)
        object.__setattr__(made, "shape", shape)
        object.__setattr__(made, "rounds", rounds)
        return made

    return source


def capped_at(most: float) -> Shape:
    """Normal noise that is drawn again wherever it lies beyond `most` standard deviations."""

    def draw(rng, size):
        noise = rng.standard_normal(size)
        while (beyond := np.abs(noise) > most).any():
            noise[beyond] = rng.standard_normal(int(beyond.sum()))
        return noise

    return draw


def clamped_at(most: float) -> Shape:
    return lambda rng, size: np.clip(rng.standard_normal(size), -most, most)


def blocks_of(length: int) -> Shape:
    """One draw for every block of so many entries."""
    return lambda rng, size: np.repeat(rng.standard_normal(int(np.prod(size))), length)[: int(np.prod(size))].reshape(size)


def period_of(length: int) -> Shape:
    return lambda rng, size: np.resize(rng.standard_normal(length), size)


def low_rank(rng, size):
    """Noise in half of all directions, as long as it should be."""
    basis = np.linalg.qr(np.random.default_rng(0).standard_normal((size[0], size[0])))[0][:, : size[0] // 2]
    return basis @ rng.standard_normal(basis.shape[1]) * np.sqrt(2)


def on_a_sphere(rng, size):
    noise = rng.standard_normal(size)
    return noise * np.sqrt(noise.size) / np.linalg.norm(noise)


def of_changing_size(rng, size):
    """Half of all messages with little noise, the others with more: right on average."""
    return rng.standard_normal(size) * (0.5 if rng.random() < 0.5 else np.sqrt(1.75))


CAPPED = {
    "capped at 2.5 sigma": capped_at(2.5),
    "clamped at 2.5 sigma": clamped_at(2.5),
    "capped at 3 sigma": capped_at(3.0),
    "uniform of equal variance": lambda rng, size: rng.uniform(-np.sqrt(3), np.sqrt(3), size),
    "laplace of equal variance": lambda rng, size: rng.laplace(scale=np.sqrt(0.5), size=size),
    "three values": lambda rng, size: rng.choice([-np.sqrt(3), 0.0, np.sqrt(3)], size, p=[1 / 6, 2 / 3, 1 / 6]),
    "a sum of four uniforms": lambda rng, size: (rng.uniform(-1, 1, (4, *size)).sum(axis=0)) * np.sqrt(0.75),
    "a hundredth missing": lambda rng, size: rng.standard_normal(size) * (rng.random(size) > 0.01),
    "folded to one side": lambda rng, size: np.abs(rng.standard_normal(size)),
    "on a sphere": on_a_sphere,
    "of changing size": of_changing_size,
    "in half of the directions": low_rank,
    "smaller by the root of 2": lambda rng, size: rng.standard_normal(size) / np.sqrt(2),
    "ten percent too small": lambda rng, size: 0.9 * rng.standard_normal(size),
    "one draw for a block of entries": blocks_of(4),
    "of period eight": period_of(8),
    "its second half the first turned round": lambda rng, size: np.resize(
        np.multiply.outer([1.0, -1.0], rng.standard_normal((size[0] + 1) // 2)).ravel(), size
    ),
    "in half precision": lambda rng, size: rng.standard_normal(size).astype(np.float16),
    "in steps of a hundredth": lambda rng, size: np.round(rng.standard_normal(size), 2),
    "none": lambda _, size: np.zeros(size),
}


def failed(subject, *, runs=120, **parts) -> set[str]:
    result = audit_noise(
        subject, runs=runs, mechanism=Mechanism(**{"sources": lambda run: NoiseSource(injected_seed=run), **parts})
    )
    return {check.name for check in result.checks if check.failed}


@pytest.mark.parametrize("fault", CAPPED)
def test_noise_capped_or_otherwise_misshapen_fails_the_audit(make_subject, fault):
    # Every other fault in floating point; all are of the noise alone, whatever the arithmetic of sums.
    mode = "float" if list(CAPPED).index(fault) % 2 else "secure"
    report = audit_subject(
        make_subject(noise=mode),
        run_id="r",
        trials=80,
        canaries=(),
        seed=0,
        mechanism=Mechanism(sources=of_shape(CAPPED[fault])),
    )
    assert not report.passed
    assert all("the noise fails the check of its" in found for found in report.faults)


@pytest.mark.parametrize("rounds", [(0,), (4,)], ids=str)
@pytest.mark.parametrize("fault", ["capped at 2.5 sigma", "none", "smaller by the root of 2"])
def test_noise_capped_or_missing_in_one_round_alone_fails_the_audit(make_subject, fault, rounds):
    assert failed(make_subject(), sources=of_shape(CAPPED[fault], rounds=rounds))


@pytest.mark.parametrize("site", [{"sample_rate": 0.25}, {"sample_rate": 0.25, "kind": "mlp"}, {"local_steps": 2}], ids=str)
def test_noise_capped_at_2_5_sigma_fails_the_audit_of_sampled_and_of_several_steps(make_subject, site):
    assert failed(make_subject(rounds=2, **site), runs=40, sources=of_shape(CAPPED["capped at 2.5 sigma"]))


@pytest.mark.slow
def test_noise_capped_at_4_sigma_fails_the_default_audit(make_subject):
    assert "support" in failed(make_subject(), runs=1500, sources=of_shape(capped_at(4.0)))


class SharedSource(NoiseSource):
    """Forgets some of what noise must depend on."""

    forgets: frozenset[str] = frozenset()

    def draws(self, mode, *, site, round_index, purpose):
        return super().draws(
            mode,
            site="all" if "site" in self.forgets else site,
            round_index=1 if "round" in self.forgets else round_index,
            purpose="all" if "purpose" in self.forgets else purpose,
        )


def forgetful(*what: str, runs: int = 1 << 40) -> Callable[[int], NoiseSource]:
    def source(run: int) -> NoiseSource:
        made = SharedSource(injected_seed=run % runs)
        object.__setattr__(made, "forgets", frozenset(what))
        return made

    return source


@pytest.mark.parametrize("mode", ["secure", "float"])
@pytest.mark.parametrize(
    "source",
    [
        pytest.param(forgetful("site"), id="two sites"),
        pytest.param(forgetful("round"), id="all rounds"),
        pytest.param(forgetful(runs=1), id="all runs"),
        pytest.param(forgetful(runs=37), id="every 37th run"),
    ],
)
def test_relation_between_the_noise_of_two_messages_fails_the_audit(make_subject, source, mode):
    assert failed(make_subject(noise=mode), sources=source)


def mixed_with_last(weight: float) -> dict[str, Callable[..., np.ndarray]]:
    """A site's code whose noise holds a part of the noise of its last message, as a generator with a short memory."""
    last = {}

    def answered(site, *args, **rest):
        steps = args[0] if args else np.float32(0)
        reply = train_head(site, *args, **rest) if args else release_mean(site, **rest)
        noise = reply - steps
        if args and "noise" in last:
            reply = steps + np.float32(np.sqrt(1 - weight**2)) * noise + np.float32(weight) * last["noise"]
        if args:
            last["noise"] = noise
        return reply

    return {"train": answered}


def test_relation_of_noise_to_the_message_before_fails_the_audit_where_a_fifth_is_kept(make_subject):
    assert failed(make_subject(rounds=8), **mixed_with_last(0.2)) & {"rounds", "sites", "copies"}


def sampled(rewrite) -> dict[str, Callable[..., np.ndarray]]:
    """A site's code whose Poisson sampler is replaced: `rewrite(draws, units, rate)` gives who takes part."""

    def train(site, flat, *, sampling, **rest):
        class Sampler:
            def poisson_sample(self, num_units, *, sample_rate):
                return np.sort(rewrite(sampling, num_units, sample_rate))

            def integers(self, bound, *, size):
                return sampling.integers(bound, size=size)

        return train_head(site, flat, sampling=Sampler(), **rest)

    return {"train": train}


def test_sampling_relation_rate_doubled_fails_the_audit(make_subject):
    doubled = sampled(lambda draws, units, rate: draws.poisson_sample(units, sample_rate=2 * rate))
    assert failed(make_subject(rounds=2, sample_rate=0.25), runs=60, **doubled) >= {"sampling rate"}


def test_sampling_relation_of_one_coin_for_all_patients_fails_the_audit(make_subject):
    def crowd(draws, units, rate):
        return np.arange(units) if draws.poisson_sample(1, sample_rate=rate).size else np.zeros(0, np.int64)

    assert "crowds" in failed(make_subject(rounds=2, sample_rate=0.25), runs=60, **sampled(crowd))


def test_sampling_relation_of_everybody_at_once_fails_the_audit(make_subject):
    everybody = sampled(lambda draws, units, rate: np.arange(units))
    assert "sampling rate" in failed(make_subject(rounds=2, sample_rate=0.25), runs=40, **everybody)


def big(make_subject):
    """A site of many patients, whose samples are large beside the noise."""
    return make_subject(rounds=2, sample_rate=0.25, patients=200, dims=8, target=20.0)


def of_one_size(draws, units, rate):
    return np.argsort(draws.generator.random(units))[: round(units * rate)]


def test_sampling_relation_of_batches_of_one_size_fails_the_audit_of_a_large_site(make_subject):
    assert "sample sizes" in failed(big(make_subject), runs=30, **sampled(of_one_size))


def test_sampling_relation_of_the_same_sample_in_every_round_fails_the_audit_of_a_large_site(make_subject):
    class Reseeded(NoiseSource):
        def draws(self, mode, *, site, round_index, purpose):
            index = 1 if purpose == "sampling" else round_index
            return super().draws(mode, site=site, round_index=index, purpose=purpose)

    assert failed(big(make_subject), runs=60, sources=lambda run: Reseeded(injected_seed=run)) == {"samples"}


def test_grid_relation_is_told_from_floating_point_where_secure_noise_is_claimed(make_subject):
    subject = make_subject(noise="secure")

    class Float(NoiseSource):
        def draws(self, mode, *, site, round_index, purpose):
            return super().draws("float", site=site, round_index=round_index, purpose=purpose)

    assert failed(subject, runs=400, sources=lambda run: Float(injected_seed=run)) == {"grid"}


@pytest.mark.slow
def test_grid_relation_coarser_than_said_is_seen(make_subject):
    """A grid of eight steps hides in float32 but for small replies."""

    subject = make_subject(noise="secure")

    class Coarse(GridDraws):
        def release(self, clipped, *, event):
            total = clipped.on_grid(clipping_norm=event.clipping_norm)
            noise = self.gaussian(len(total), sigma=grid_sigma(event.noise_multiplier) // 8) * 8
            return (total + noise) * (event.clipping_norm / GRID_STEPS)

    class Source(NoiseSource):
        def draws(self, mode, *, site, round_index, purpose):
            return Coarse(words=super().draws(mode, site=site, round_index=round_index, purpose=purpose).words)

    assert failed(subject, runs=1500, sources=lambda run: Source(injected_seed=run)) == {"grid"}


@pytest.mark.parametrize("mode", ["secure", "float"])
@pytest.mark.parametrize(
    "site",
    [
        {},
        {"unit": "image"},
        {"rounds": 1, "dims": 2},
        {"local_steps": 5},
        {"mean_fraction": 0.0},
        {"sample_rate": 0.25},
        {"sample_rate": 0.25, "kind": "mlp", "unit": "image"},
        {"sample_rate": 0.5, "local_steps": 3},
        # Many patients in a head whose layers multiply: no weight may move within a round, or their gradients lie in the noise.
        {"sample_rate": 0.25, "local_steps": 4, "kind": "mlp", "patients": 100, "target": 20.0, "dims": 8},
    ],
    ids=str,
)
def test_sound_noise_passes_in_every_relation(make_subject, site, mode):
    subject = make_subject(**({"rounds": 2} | site), noise=mode)
    assert failed(subject, runs=10, sources=lambda _: NoiseSource(injected_seed=None)) == set()


def test_noise_larger_than_declared_is_no_fault_and_its_cap_still_is(make_subject):
    larger = of_shape(lambda rng, size: 1.5 * rng.standard_normal(size))
    assert failed(make_subject(), sources=larger) == set()
    capped = capped_at(2.5)
    assert failed(make_subject(), sources=of_shape(lambda rng, size: 1.5 * capped(rng, size)))


def messages(rng, *, count=3, runs=20, entries=10):
    """Sound noise of a full-batch run, without a mechanism around it."""

    def message(index: int) -> Message:
        return Message(
            round_index=index,
            noise=rng.standard_normal((runs, SITES, entries), dtype=np.float32),
            signal=rng.standard_normal((runs, SITES, 2), dtype=np.float32),
            scale=1.0,
            drawn=0.25 * 40 + rng.binomial(40, 0.25, (runs, SITES)) - 0.25 * 40 + rng.standard_normal((runs, SITES)),
            drawn_noise=1.0,
            draws=40,
            sample_rate=0.25,
            grid_steps=0.0,
        )

    return [message(index) for index in range(count)]


@pytest.mark.parametrize("audits", [50, pytest.param(1000, marks=pytest.mark.slow)])
def test_sound_noise_passes_a_thousand_audits_and_no_check_cries_wolf_in_any_relation(audits):
    """Each check's bound on its chance is a bound: no more audits lie below it than it says."""
    chances = {name: [] for name in NOISE_CHECKS}
    for seed in range(audits):
        result = judge(messages(np.random.default_rng(seed)))
        assert result.faults == ()
        for check in result.checks:
            chances[check.name].append(check.chance)
    for level in (0.3, 0.1, 0.02):
        # The chances hold for all checks together; three standard deviations of the number of audits on top.
        low = {name: sum(one < level for one in found) for name, found in chances.items()}
        assert sum(low.values()) < audits * level + 3 * np.sqrt(audits * level), low


def test_the_false_alarm_of_an_audit_is_shared_by_all_its_checks():
    assert FALSE_ALARM == 1e-6
    result = judge(messages(np.random.default_rng(0)))
    assert [check.name for check in result.checks] == list(NOISE_CHECKS)
    assert all(0 <= check.chance <= 1 for check in result.checks)
    assert result.draws == 3 * 20 * SITES * 10
    # A relation that is certain fails, whatever the number of checks.
    silent = judge([replace(each, noise=0 * each.noise) for each in messages(np.random.default_rng(0))])
    assert {check.name for check in silent.checks if check.failed} >= {"scale", "support", "distribution", "resolution"}
