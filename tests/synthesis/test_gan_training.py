"""A generator's training: the same twice, exactly resumed, and never showing what no checkpoint holds."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from mammo_fed.cli.main import main
from mammo_fed.client.generator.export import sample_set
from mammo_fed.client.generator.training import start_training
from mammo_fed.client.generator.training_folder import read_training
from mammo_fed.errors import DataError, InvalidSetting, LedgerError, PolicyRefused
from mammo_fed.privacy.accounting.pricing import epsilon
from mammo_fed.privacy.ledger.ledger import Budget, Ledger
from mammo_fed.synthesis import scalars
from mammo_fed.synthesis.adversarial import Adversaries
from mammo_fed.synthesis.checkpoints import checkpoint_path, checkpoint_steps, read_checkpoint, write_checkpoint
from mammo_fed.synthesis.mcgan import Generator
from mammo_fed.synthesis.sampling import draw_images, weights_sha256
from mammo_fed.synthesis.training import read_losses


class Stopped(Exception):
    pass


def stop_at(step):
    def told(done, steps, losses):
        if done == step:
            raise Stopped

    return told


def generator_hash(settings, folder):
    adversaries = Adversaries(settings.gan, seed=0)
    read_checkpoint(folder, checkpoint_steps(folder)[-1], adversaries, settings_sha256=settings.sha256())
    return weights_sha256(adversaries.average)


@pytest.mark.parametrize(
    "overrides",
    [
        ("gan.loss=bce",),
        ("gan.loss=lsgan", "gan.spectral=true", "gan.discriminator_norm=none", "gan.upsampling=transposed"),
        ("gan.loss=wgan_gp", "gan.discriminator_steps=2", "gan.generator_norm=instance"),
        ("gan.projection=true", "gan.mismatch=0.2", "gan.generator_norm=none", "gan.precision=bfloat16"),
        ("privacy.target_epsilon=6", "privacy.noise_seed=3"),
        ("privacy.target_epsilon=6", "privacy.noise_seed=3", "privacy.noise=float", "privacy.unit=image"),
    ],
)
def test_gan_resume_after_an_interrupt_gives_the_same_losses_and_weights(gan_settings, tmp_path, overrides):
    settings = gan_settings(*overrides)
    start_training(settings, tmp_path / "whole")
    for step in (1, 3, 5):
        with pytest.raises(Stopped):
            start_training(settings, tmp_path / "stopped", progress=stop_at(step))
    start_training(settings, tmp_path / "stopped")
    assert read_losses(tmp_path / "stopped") == read_losses(tmp_path / "whole")
    assert len(read_losses(tmp_path / "whole")) == 6
    assert generator_hash(settings, tmp_path / "stopped") == generator_hash(settings, tmp_path / "whole")


def test_gan_another_seed_gives_another_generator(gan_settings, tmp_path):
    for seed in (0, 1):
        start_training(gan_settings(f"seed={seed}"), tmp_path / str(seed))
    assert generator_hash(gan_settings(), tmp_path / "0") != generator_hash(gan_settings("seed=1"), tmp_path / "1")


def test_gan_shows_nothing_that_no_checkpoint_holds(gan_settings, tmp_path):
    with pytest.raises(Stopped):
        start_training(gan_settings("privacy.target_epsilon=6"), tmp_path / "run", progress=stop_at(5))
    assert checkpoint_steps(tmp_path / "run") == [2, 4]
    assert [one.step for one in read_losses(tmp_path / "run")] == [1, 2, 3, 4]
    assert all(one.real is None for one in read_losses(tmp_path / "run"))
    shown = sorted(path.name for path in (tmp_path / "run" / "samples").iterdir())
    assert shown == ["step_00000002.png", "step_00000004.png"]
    assert "step_00000005" not in str(list((tmp_path / "run").rglob("*")))


def test_gan_samples_grid_is_there_to_look_at_and_no_scalars_that_nobody_asked_for(gan_settings, tmp_path):
    start_training(gan_settings(), tmp_path / "run")
    grid = np.asarray(Image.open(tmp_path / "run" / "samples" / "step_00000006.png"))
    assert grid.shape[1] >= 2 * 32
    assert not (tmp_path / "run" / "tensorboard").exists()
    assert {path.stat().st_mode & 0o077 for path in (tmp_path / "run").glob("*.*")} == {0}


def test_gan_scalars_for_tensorboard_hold_what_checkpoints_hold_where_they_are_asked_for(gan_settings, tmp_path):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with pytest.raises(Stopped):
        start_training(gan_settings(), tmp_path / "run", progress=stop_at(5), tensorboard=True)
    events = event_accumulator.EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("loss/generator")] == [1, 2, 3, 4]


@pytest.fixture
def without_tensorboard(monkeypatch):
    """TensorBoard is not installed, as after `pip install mammo-fed`."""
    monkeypatch.setattr(scalars, "find_spec", lambda name: None)


def test_gan_scalars_that_are_asked_for_without_tensorboard_are_refused_before_anything(
    gan_settings, tmp_path, without_tensorboard
):
    with pytest.raises(InvalidSetting, match=r"mammo-fed\[tensorboard\]"):
        start_training(gan_settings(), tmp_path / "run", tensorboard=True)
    assert not (tmp_path / "run").exists()


def test_gan_train_says_in_one_line_that_tensorboard_is_absent_and_trains(tiny, tmp_path, without_tensorboard, capsys):
    assert main(["gan", "train", *tiny, f"hydra.run.dir={tmp_path / 'run'}", "--tensorboard"]) == 0
    told = [line for line in capsys.readouterr().err.splitlines() if "ensorBoard" in line]
    assert len(told) == 1
    assert "mammo-fed[tensorboard]" in told[0]
    assert [one.step for one in read_losses(tmp_path / "run")] == [1, 2, 3, 4, 5, 6]


def test_gan_old_checkpoints_are_removed(gan_settings, tmp_path):
    start_training(gan_settings("gan.checkpoint_every=1", "gan.keep_checkpoints=2"), tmp_path / "run")
    assert checkpoint_steps(tmp_path / "run") == [5, 6]


def test_gan_ledger_is_charged_once_over_interruptions(gan_settings, tmp_path):
    """Declared, reserved, given again after each interrupt, and settled with the generator's hash."""
    settings = gan_settings("privacy.target_epsilon=3", "privacy.delta=1e-3")
    with pytest.raises(Stopped):
        start_training(settings, tmp_path / "run", progress=stop_at(3))
    start_training(settings, tmp_path / "run")
    start_training(settings, tmp_path / "run")
    training = read_training(tmp_path / "run")
    budget = Budget(max_epsilon=3.0, delta=1e-3)
    with Ledger.open(tmp_path / "run" / "ledger", site="donor", budget=budget, filter="declared") as ledger:
        assert ledger.events() == training.events
        kinds = [entry.kind for entry in ledger.entries()]
        assert (kinds.count("declared"), kinds.count("reserved"), kinds.count("settled")) == (1, 1, 1)
        reply = ledger.stored_reply(run_id=training.run_id, round_index=0, task_hash=settings.sha256())
        assert ledger.epsilon(accountant="pld") <= 3.0
    assert json.loads(reply)["generator_sha256"] == generator_hash(settings, tmp_path / "run")
    (event,) = training.events
    assert event.steps == 6
    assert 2.999 < epsilon((event,), delta=1e-3, accountant="pld") <= 3.0


def test_gan_settle_failure_leaves_the_reservation_to_the_same_generator(gan_settings, tmp_path, monkeypatch):
    settings = gan_settings("privacy.target_epsilon=3", "privacy.delta=1e-3")

    def refuse(*_):
        raise LedgerError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "settle", refuse)
        with pytest.raises(LedgerError, match="the disk is full"):
            start_training(settings, tmp_path / "run")
    trained = generator_hash(settings, tmp_path / "run")
    start_training(settings, tmp_path / "run")
    assert generator_hash(settings, tmp_path / "run") == trained
    budget = Budget(max_epsilon=3.0, delta=1e-3)
    with Ledger.open(tmp_path / "run" / "ledger", site="donor", budget=budget, filter="declared") as ledger:
        kinds = [entry.kind for entry in ledger.entries() if entry.kind not in ("enrolled", "checkpoint")]
    assert kinds == ["opened", "declared", "reserved", "resumed", "settled"]


def test_gan_ledger_pays_for_one_generator_only(gan_settings, tmp_path):
    """Training again from an older checkpoint, after the end, would be a second generator for one charge."""
    settings = gan_settings("privacy.target_epsilon=3")
    start_training(settings, tmp_path / "run")
    adversaries = Adversaries(settings.gan, seed=9)
    adversaries.step = settings.gan.steps
    write_checkpoint(tmp_path / "run", adversaries, read_losses(tmp_path / "run"), settings_sha256=settings.sha256())
    with pytest.raises(LedgerError, match="paid for"):
        start_training(settings, tmp_path / "run")


def test_gan_private_trainings_never_share_noise(gan_settings, tmp_path):
    settings = gan_settings("privacy.target_epsilon=6")
    for name in ("one", "other"):
        start_training(settings, tmp_path / name)
    assert generator_hash(settings, tmp_path / "one") != generator_hash(settings, tmp_path / "other")


def test_gan_resume_refuses_other_settings_and_other_patients(gan_settings, tmp_path):
    start_training(gan_settings(), tmp_path / "run")
    with pytest.raises(InvalidSetting, match="other settings"):
        start_training(gan_settings("gan.steps=8"), tmp_path / "run")
    values = json.loads((tmp_path / "run" / "training.json").read_text())
    (tmp_path / "run" / "training.json").write_text(json.dumps({**values, "cohort": "0" * 64}))
    with pytest.raises(DataError, match="not those"):
        start_training(gan_settings(), tmp_path / "run")


def test_gan_resume_refuses_a_damaged_checkpoint(gan_settings, tmp_path):
    settings = gan_settings("gan.keep_checkpoints=1")
    with pytest.raises(Stopped):
        start_training(settings, tmp_path / "run", progress=stop_at(3))
    path = checkpoint_path(tmp_path / "run", 2)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match="cannot be read"):
        start_training(settings, tmp_path / "run")


def test_gan_sets_hash_identically_twice_with_one_seed(gan_settings, tmp_path):
    settings = gan_settings()
    hashes = set()
    for name in ("one", "other"):
        start_training(settings, tmp_path / name)
        hashes.add(sample_set(settings, tmp_path / name, tmp_path / f"{name}-set", count=10, seed=4).sha256)
    assert len(hashes) == 1
    assert sample_set(settings, tmp_path / "one", tmp_path / "again", count=10, seed=5).sha256 not in hashes


def test_gan_set_of_an_unfinished_or_another_step_says_so(gan_settings, tmp_path):
    settings = gan_settings()
    with pytest.raises(Stopped):
        start_training(settings, tmp_path / "run", progress=stop_at(5))
    with pytest.raises(DataError, match=r"step 4 of 6.*--resume"):
        sample_set(settings, tmp_path / "run", tmp_path / "set", count=4, seed=0)
    start_training(settings, tmp_path / "run")
    assert sample_set(settings, tmp_path / "run", tmp_path / "last", count=4, seed=0).generator.chosen == "last"
    chosen = sample_set(settings, tmp_path / "run", tmp_path / "other", count=4, seed=0, step=4).generator
    assert (chosen.chosen, chosen.step) == ("by request", 4)


def test_gan_images_do_not_depend_on_how_many_are_drawn(gan_settings):
    generator = Adversaries(gan_settings().gan, seed=0).average
    many, labels = draw_images(generator, count=150, seed=1)
    few, _ = draw_images(generator, count=70, seed=1)
    np.testing.assert_allclose(many[:70], few, atol=1.01 / 255)
    assert labels.tolist()[:4] == [0, 1, 0, 1]
    assert many.min() >= 0
    assert many.max() <= 1


@pytest.mark.parametrize("size", [32, 64, 128])
@pytest.mark.parametrize("upsampling", ["transposed", "resize"])
def test_gan_networks_have_the_shape_that_was_asked_for(gan_settings, size, upsampling):
    settings = gan_settings(f"gan.image_size={size}", f"gan.upsampling={upsampling}", "gan.channels=2")
    adversaries = Adversaries(settings.gan, seed=0)
    images = adversaries.generator(torch.randn(3, 8), torch.tensor([0, 1, 1]))
    assert images.shape == (3, 1, size, size)
    assert images.abs().max() <= 1
    assert adversaries.discriminator(images, torch.tensor([0, 1, 1])).shape == (3,)


def test_gan_networks_of_the_paper_have_its_widths():
    from mammo_fed.settings.compose import compose_gan
    from mammo_fed.synthesis.adversarial import mcgan_spec

    spec = mcgan_spec(compose_gan(["gan=mcgan_paper"]).settings.gan)
    assert spec.widths == (64, 128, 256, 512, 1024)
    assert spec.upsampling == "transposed"
    with torch.device("meta"):
        kernels = [tuple(layer.weight.shape) for layer in Generator(spec).layers if isinstance(layer, torch.nn.ConvTranspose2d)]
    assert [shape[1] for shape in kernels] == [1024, 512, 256, 128, 64, 1]


def test_gan_the_128_pixel_networks_take_a_step(images, tmp_path):
    """The paper's widths, on a processor: a batch of two."""
    from mammo_fed.settings.compose import compose_gan
    from mammo_fed.synthesis.real_gradients import RealImages, plain_gradients

    settings = compose_gan(["gan=mcgan_128", "gan.batch_size=2"]).settings
    real = RealImages(
        images=torch.from_numpy(images(2, side=128))[:, None] * 2 - 1,
        labels=torch.arange(2),
        units=np.arange(2),
        present=np.ones(2, bool),
    )
    losses = Adversaries(settings.gan, seed=0).advance(plain_gradients(real, batch_size=2))
    assert np.isfinite([losses.generator, losses.fake, losses.real]).all()


@pytest.mark.parametrize(
    ("overrides", "word"),
    [
        (("privacy.target_epsilon=inf",), "target_epsilon=inf"),
        (("privacy.target_epsilon=6", "privacy.noise_seed=1"), "noise_seed"),
        (("privacy.target_epsilon=6", "privacy.noise=float"), "noise=float"),
    ],
)
def test_gan_policy_of_patients_who_are_not_public(gan_settings, overrides, word, images):
    from mammo_fed.client.generator.cohort import check_policy
    from mammo_fed.data.cohort import Cohort

    names = np.array([f"i{row}" for row in range(4)])
    cohort = Cohort(
        name="c",
        pixels=images(4),
        labels=np.arange(4) % 2,
        patients=names,
        images=names,
        views=np.full(4, "", dtype=np.str_),
        splits=np.full(4, "train"),
        public=False,
    )
    with pytest.raises(PolicyRefused, match=word):
        check_policy(gan_settings(*overrides), None, cohort)
    check_policy(gan_settings("privacy.target_epsilon=6"), None, cohort)
    check_policy(gan_settings(*overrides), None, replace(cohort, public=True))


@pytest.mark.slow
def test_gan_resume_after_kill_9_is_exact(tiny, tmp_path):
    """Three trainings as processes of their own: one whole, one killed twice without warning and resumed."""
    command = [sys.executable, "-m", "mammo_fed.cli.main", "gan", "train"]
    steps = ("gan.steps=60", "gan.checkpoint_every=7")
    subprocess.run([*command, *tiny, *steps, f"hydra.run.dir={tmp_path / 'whole'}"], check=True, capture_output=True)
    first = [*command, *tiny, *steps, f"hydra.run.dir={tmp_path / 'killed'}"]
    for again in (first, [*command, "--resume", str(tmp_path / "killed")]):
        reached = checkpoint_steps(tmp_path / "killed")
        process = subprocess.Popen(again, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while len(checkpoint_steps(tmp_path / "killed")) == 0 or checkpoint_steps(tmp_path / "killed")[-1:] == reached[-1:]:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run([*command, "--resume", str(tmp_path / "killed")], check=True, capture_output=True)
    assert (tmp_path / "killed" / "losses.csv").read_bytes() == (tmp_path / "whole" / "losses.csv").read_bytes()
    one, other = (load_file(checkpoint_path(tmp_path / name, 60)) for name in ("killed", "whole"))
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name].nan_to_num(), other[name].nan_to_num())] == []
