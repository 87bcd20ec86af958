"""One charge pays for one generator: of two copies of a training's folder one goes on, however and whenever it was copied."""

from __future__ import annotations

import io
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

from mammo_fed.cli.main import main
from mammo_fed.client.generator import custody
from mammo_fed.client.generator.export import sample_set
from mammo_fed.client.generator.training import start_training
from mammo_fed.client.generator.training_folder import read_training
from mammo_fed.errors import DataError, LedgerError
from mammo_fed.privacy.ledger.ledger import Budget, Ledger
from mammo_fed.privacy.ledger.report import export_ledger
from mammo_fed.settings.compose import read_composed_gan
from mammo_fed.synthesis import checkpoints
from mammo_fed.synthesis.checkpoints import checkpoint_path, checkpoint_steps
from mammo_fed.synthesis.training import read_losses

EPSILON = "privacy.target_epsilon=6"


class Stopped(Exception):
    pass


class Killed(BaseException):
    """As SIGKILL: nothing that the program would do on its way out is done."""


def stop_at(step):
    def told(done, steps, losses):
        if done == step:
            raise Stopped

    return told


@pytest.fixture
def settings(gan_settings):
    return gan_settings(EPSILON)


@pytest.fixture
def stopped(settings, tmp_path):
    """A training of six steps that was interrupted at step 3 and has a checkpoint of step 2."""
    with pytest.raises(Stopped):
        start_training(settings, tmp_path / "run", progress=stop_at(3))
    return tmp_path / "run"


def copy(folder, name):
    return Path(shutil.copytree(folder, folder.with_name(name)))


def go_on(settings, folder, *, until=None):
    """Resume a training, to its end or until a step."""
    if until is None:
        return start_training(settings, folder)
    with pytest.raises(Stopped):
        start_training(settings, folder, progress=stop_at(until))
    return None


def shown(folder):
    """Everything that people can look at of a training's progress."""
    pictures = sorted(path.name for path in (folder / "samples").iterdir())
    return [one.step for one in read_losses(folder)], pictures, checkpoint_steps(folder)


def draw(settings, folder, *, step=None):
    return sample_set(settings, folder, folder.with_name(f"{folder.name}-set-{step}"), count=4, seed=0, step=step)


@pytest.mark.parametrize("until", [3, 5, None])
def test_resume_twice_is_refused_to_the_second_copy_of_a_folder(settings, stopped, until):
    """However far the first one went: to no further checkpoint, to another one, or to the end."""
    other = copy(stopped, "copy")
    before = shown(other)
    go_on(settings, stopped, until=until)
    with pytest.raises(LedgerError):
        start_training(settings, other)
    assert shown(other) == before
    with pytest.raises((LedgerError, DataError)):
        draw(settings, other)
    go_on(settings, stopped)
    assert draw(settings, stopped).kind == "dp"
    with pytest.raises((LedgerError, DataError)):
        draw(settings, other)


def test_resume_twice_is_refused_to_the_original_where_the_copy_was_first(settings, stopped):
    other = copy(stopped, "copy")
    go_on(settings, other)
    with pytest.raises(LedgerError, match="went on in another copy"):
        start_training(settings, stopped)
    assert draw(settings, other).kind == "dp"


def test_resume_twice_is_refused_where_the_original_never_stopped(settings, tmp_path):
    """A copy that is made while it trains, and resumed before or after the original has made its next checkpoint."""
    other = tmp_path / "copy"

    def copy_at_three(done, steps, losses):
        if done == 3:
            shutil.copytree(tmp_path / "run", other)

    start_training(settings, tmp_path / "run", progress=copy_at_three)
    with pytest.raises(LedgerError):
        start_training(settings, other)
    assert checkpoint_steps(other) == [2]


@pytest.mark.parametrize("at", [3, 5, 6])
def test_resume_twice_stops_the_running_original_before_it_shows_more(settings, tmp_path, at):
    """Its copy is resumed while it trains: it neither writes its next checkpoint nor settles."""
    run, other = tmp_path / "run", tmp_path / "copy"

    def resume_the_copy(done, steps, losses):
        if done == at:
            shutil.copytree(run, other, ignore=shutil.ignore_patterns(".lock"))
            go_on(settings, other, until=None)

    with pytest.raises(LedgerError, match="went on in another copy"):
        start_training(settings, run, progress=resume_the_copy)
    held = at - at % 2
    assert shown(run)[2] == list(range(2, held + 1, 2))
    assert draw(settings, other).kind == "dp"


def test_resume_twice_of_a_ledger_that_was_put_back_is_refused(settings, stopped):
    """A backup of the folder that is restored over what was done since is a copy."""
    backup = copy(stopped, "backup")
    go_on(settings, stopped, until=5)
    shutil.rmtree(stopped)
    backup.rename(stopped)
    with pytest.raises(LedgerError, match="went on in another copy"):
        start_training(settings, stopped)


@pytest.mark.parametrize("lost", ["ledger", "lease.json", "checkpoints"])
def test_resume_twice_is_refused_where_a_part_of_the_folder_is_gone(settings, stopped, lost):
    """A new ledger, or steps taken again that a checkpoint had shown, would be a second training for one charge."""
    path = stopped / lost
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(LedgerError):
        start_training(settings, stopped)


def test_resume_twice_from_an_older_checkpoint_of_the_same_folder_is_refused(settings, tmp_path):
    go_on(settings, tmp_path / "run", until=5)
    checkpoint_path(tmp_path / "run", 4).unlink()
    with pytest.raises(LedgerError, match="step 4"):
        start_training(settings, tmp_path / "run")


def test_resume_twice_in_turn_is_one_training(settings, stopped):
    """What is honest goes on: an interrupt, a move of the folder, a backup put back before anything newer was done."""
    go_on(settings, stopped, until=3)
    moved = stopped.rename(stopped.with_name("moved"))
    go_on(settings, moved, until=5)
    backup = copy(moved, "backup")
    shutil.rmtree(moved)
    backup.rename(moved)
    go_on(settings, moved)
    assert draw(settings, moved).generator.chosen == "last"
    kinds = [entry.kind for entry in export_ledger(moved / "ledger")]
    assert (kinds.count("declared"), kinds.count("reserved"), kinds.count("settled")) == (1, 1, 1)


def test_resume_twice_of_a_finished_training_is_harmless_in_every_copy(settings, tmp_path):
    go_on(settings, tmp_path / "run")
    other = copy(tmp_path / "run", "copy")
    for folder in (tmp_path / "run", other, tmp_path / "run"):
        start_training(settings, folder)
    assert draw(settings, other).generator.sha256 == draw(settings, tmp_path / "run").generator.sha256


PLACES = [
    (custody.TrainingLease, "_write"),
    (custody, "_advance"),
    (Ledger, "checkpoint"),
    (Ledger, "reserve"),
    (Ledger, "settle"),
    (checkpoints, "_publish"),
]


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(("where", "name"), PLACES, ids=[name for _, name in PLACES])
@pytest.mark.parametrize("times", [1, *(pytest.param(number, marks=pytest.mark.slow) for number in (2, 3))])
def test_resume_twice_an_honest_folder_goes_on_wherever_it_was_killed(
    settings, tmp_path, monkeypatch, where, name, after, times
):
    """Killed before or after each durable step of marks and checkpoints, copied, and resumed: one of the two goes on."""
    real, calls = getattr(where, name), []

    def killed(*given, **named):
        calls.append(name)
        if len(calls) == times:
            if after:
                real(*given, **named)
            raise Killed
        return real(*given, **named)

    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(where, name, killed)
        try:
            start_training(settings, run)
        except Killed:
            pass
        else:
            assert len(calls) < times
    other = copy(run, "copy")
    start_training(settings, run)
    assert draw(settings, run).kind == "dp"
    ended = [entry.kind for entry in export_ledger(other / "ledger")].count("settled")
    if ended:
        start_training(settings, other)
        assert draw(settings, other).generator.sha256 == draw(settings, run, step=6).generator.sha256
    else:
        with pytest.raises(LedgerError):
            start_training(settings, other)
    assert not list(run.rglob("*.draft"))


def test_resume_twice_settle_failure_leaves_one_generator(settings, tmp_path, monkeypatch):
    """The ledger fails at the end; of two copies of what is there then, one settles, and it is the same generator."""
    run = tmp_path / "run"

    def full(*_):
        raise LedgerError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "settle", full)
        with pytest.raises(LedgerError, match="the disk is full"):
            start_training(settings, run)
    with pytest.raises(LedgerError, match="settled no generator"):
        draw(settings, run)
    other = copy(run, "copy")
    start_training(settings, run)
    with pytest.raises(LedgerError):
        start_training(settings, other)
    with pytest.raises(LedgerError):
        draw(settings, other)
    assert draw(settings, run).kind == "dp"


def test_resume_twice_settle_failure_of_a_mark_shows_nothing(settings, tmp_path, monkeypatch):
    run, calls = tmp_path / "run", []

    def full(self, **named):
        calls.append(1)
        if len(calls) == 2:
            raise LedgerError("the disk is full")
        return checkpoint(self, **named)

    checkpoint = Ledger.checkpoint
    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "checkpoint", full)
        with pytest.raises(LedgerError, match="the disk is full"):
            start_training(settings, run)
    assert shown(run) == ([1, 2], ["step_00000002.png"], [2])
    start_training(settings, run)
    assert not list(run.rglob("*.draft"))


def test_resume_twice_of_a_folder_whose_ledger_an_earlier_version_wrote(settings, tmp_path, monkeypatch):
    """It has no marks: the first copy that goes on leaves one."""
    run = tmp_path / "run"
    with pytest.raises(Stopped):
        start_training(settings, run, progress=stop_at(1))
    training = read_training(run)
    # As it was: reserved without a mark, and nothing remembered.
    shutil.rmtree(run / "ledger")
    (run / "lease.json").unlink()
    (custody.state_root() / "generators" / training.run_id).unlink()
    values = json.loads((run / "training.json").read_text())
    del values["site_folder"]
    (run / "training.json").write_text(json.dumps(values))
    budget = Budget(max_epsilon=6.0, delta=settings.privacy.delta)
    with Ledger.open(run / "ledger", site="donor", budget=budget, filter="declared") as ledger:
        ledger.declare(run_id=training.run_id, schedule=training.events, patients=["p"])
        ledger.reserve(run_id=training.run_id, round_index=0, task_hash=settings.sha256(), events=training.events)
    other = copy(run, "copy")
    go_on(settings, run)
    with pytest.raises(LedgerError, match="went on in another copy"):
        start_training(settings, other)


def test_resume_twice_steps_that_the_ledger_settled_may_be_drawn_from_and_no_others(settings, tmp_path):
    run = tmp_path / "run"
    go_on(settings, run)
    assert draw(settings, run, step=4).generator.chosen == "by request"
    # A checkpoint of the same step from another training: it has the right form, and nobody paid for it here.
    go_on(settings, tmp_path / "other")
    shutil.copy(checkpoint_path(tmp_path / "other", 4), checkpoint_path(run, 4))
    with pytest.raises(LedgerError, match="did not settle"):
        sample_set(settings, run, tmp_path / "set", count=4, seed=0, step=4)
    shutil.copy(checkpoint_path(tmp_path / "other", 6), checkpoint_path(run, 6))
    with pytest.raises(LedgerError, match="paid for"):
        sample_set(settings, run, tmp_path / "set", count=4, seed=0)
    assert not (tmp_path / "set").exists()
    shutil.rmtree(tmp_path / "other" / "ledger")
    with pytest.raises(LedgerError, match="ledger"):
        sample_set(settings, tmp_path / "other", tmp_path / "set", count=4, seed=0)


def test_resume_twice_without_privacy_has_no_ledger_and_no_charge(gan_settings, tmp_path):
    """Two generators of one folder are two draws of nothing: both say that they promise nothing."""
    settings = gan_settings()
    go_on(settings, tmp_path / "run", until=3)
    other = copy(tmp_path / "run", "copy")
    for folder in (tmp_path / "run", other):
        go_on(settings, folder)
        assert draw(settings, folder, step=4).kind == "no_dp"
        assert not (folder / "ledger").exists()


def run_cli(*arguments):
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = main([str(argument) for argument in arguments])
    return code, out.getvalue() + err.getvalue()


def test_resume_twice_on_the_command_line_gives_one_set(tiny, tmp_path):
    """`gan train`, killed after its second checkpoint; copied; resumed in both; drawn from in both."""
    run, other = tmp_path / "run", tmp_path / "copy"
    command = [sys.executable, "-m", "mammo_fed.cli.main", "gan", "train", *tiny, EPSILON, "gan.steps=400"]
    process = subprocess.Popen([*command, f"hydra.run.dir={run}"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        deadline = time.monotonic() + 120
        while len(checkpoint_steps(run)) < 2:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.005)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    shutil.copytree(run, other)
    with pytest.raises(Stopped):
        start_training(read_composed_gan(run).settings, run, progress=stop_at(checkpoint_steps(run)[-1] + 3))
    for refused in (("train", "--resume", other), ("sample", other, "--output", tmp_path / "set", "--step", "2")):
        code, told = run_cli("gan", *refused)
        assert code == 3, told
        assert "went on in another copy" in " ".join(told.split())
    assert not (tmp_path / "set").exists()


def test_resume_twice_tells_no_loss_that_no_checkpoint_holds(gan_settings, tmp_path):
    """Told while it trains: the number of every step, and losses of the newest checkpoint alone."""
    heard = []

    def hear(done, steps, losses):
        heard.append((done, None if losses is None else losses.step))
        if len(heard) in (2, 7):
            raise Stopped

    for _ in range(2):
        with pytest.raises(Stopped):
            start_training(gan_settings(EPSILON, "gan.checkpoint_every=3"), tmp_path / "run", progress=hear)
    assert heard == [(1, None), (2, None), (1, None), (2, None), (3, 3), (4, 3), (5, 3)]


@pytest.mark.parametrize("privacy", [EPSILON, "privacy.target_epsilon=inf"])
def test_resume_twice_console_shows_losses_of_checkpoints_alone(tiny, tmp_path, privacy):
    """A line every hundred steps, where checkpoints come more rarely, and none before the first."""
    run = tmp_path / "run"
    steps = ("gan.steps=250", "gan.checkpoint_every=120")
    code, told = run_cli("gan", "train", *tiny, *steps, privacy, f"hydra.run.dir={run}")
    assert code == 0, told
    losses = {one.step: one for one in read_losses(run)}
    lines = [line for line in told.splitlines() if line.startswith("step ")]
    assert [line.partition(";")[0] for line in lines] == [f"step {step} of 250" for step in (100, 200, 250)]
    assert "generator" not in lines[0]
    assert f"checkpoint 120: generator {losses[120].generator:.3f}" in lines[1]
    assert set(re.findall(r"checkpoint (\d+)", told)) <= {"120", "240", "250"}
