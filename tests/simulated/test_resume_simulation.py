"""A simulation that was killed anywhere goes on in its folder: to the same model, and no site is charged twice."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from safetensors.numpy import load_file

from mammo_fed.client.rounds.app import app
from mammo_fed.errors import InvalidSetting
from mammo_fed.privacy.ledger.report import show_ledger, verify_ledger
from mammo_fed.reporting.record.record import Record, comparable, read_record
from mammo_fed.server.rounds.budget import BudgetView
from mammo_fed.server.run import Hooks
from mammo_fed.settings import Settings
from mammo_fed.settings.compose import compose_settings, settings_yaml
from mammo_fed.simulations.launch import simulate
from mammo_fed.simulations.run_folder import make_run_folder

pytestmark = pytest.mark.timeout(1800)

SETTINGS = ("privacy.noise_seed=3", "federation.num_sites=2", "federation.rounds=3")
PATIENCE = 900
# The simulation of a folder, killed as by a power loss when an event has happened so many times: between any two steps of a
# site and of the server.
KILLED = """
import os, signal, sys
from pathlib import Path
from mammo_fed.client import charging
from mammo_fed.privacy.ledger.ledger import Ledger
from mammo_fed.server.rounds.run_state import CheckpointFolder
from mammo_fed.cli.main import main

where, count = sys.argv[1], int(sys.argv[2])
seen = 0

def counted(owner, name, *, before):
    act = getattr(owner, name)
    def acting(*arguments, **named):
        global seen
        seen += 1
        if before and seen >= count:
            os.kill(os.getpid(), signal.SIGKILL)
        found = act(*arguments, **named)
        if not before and seen >= count:
            os.kill(os.getpid(), signal.SIGKILL)
        return found
    setattr(owner, name, acting)

owner, name = {"declare": (Ledger, "declare"), "reserve": (Ledger, "reserve"), "settle": (Ledger, "settle"),
               "checkpoint": (CheckpointFolder, "write"), "remove": (CheckpointFolder, "remove")}[where.split("-")[1]]
counted(owner, name, before=where.startswith("before"))
sys.exit(main(sys.argv[3:]))
"""
MOMENTS = (
    ("after-declare", 1),
    ("before-checkpoint", 2),
    ("after-reserve", 1),
    ("before-settle", 2),
    ("after-settle", 3),
    ("before-checkpoint", 4),
    ("after-checkpoint", 5),
    ("before-remove", 1),
)


def settings_of(small: Sequence[str], *overrides: str) -> Settings:
    return compose_settings([*small, *SETTINGS, *overrides]).settings


def command(*words: str, first: Sequence[str] = ("-m", "mammo_fed.cli.main")) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *first, *words],
        check=False,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "80"},
    )


def killed(script: Path, moment: tuple[str, int], *words: str) -> None:
    where, count = moment
    done = command(*words, first=(str(script), where, str(count)))
    assert done.returncode == -signal.SIGKILL, done.stderr


def charged(ledgers: Path, record: Record) -> dict[str, list[int]]:
    """Rounds that every site was charged for, run by run; every ledger verifies."""
    found = {}
    for site in record.privacy.sites:
        folder = ledgers / site.site
        folder = folder / "ledger" if (folder / "ledger").is_dir() else folder
        verify_ledger(folder)
        summary = show_ledger(folder, delta=record.privacy.delta)
        found[site.site] = [run.reserved_rounds for account in summary.accounts for run in account.runs]
        for account in summary.accounts:
            for run in account.runs:
                assert run.epsilon == pytest.approx(site.epsilon, rel=1e-9)
    return found


def model_of(folder: Path) -> dict[str, bytes]:
    """Every number of the model, bit by bit."""
    return {name: array.tobytes() for name, array in load_file(folder / "model.safetensors").items()}


def same(one: Record, other: Record) -> None:
    mine, theirs = comparable(one), comparable(other)
    for values in (mine, theirs):
        del values["config_hash"]
    assert mine == theirs


@pytest.fixture(scope="module")
def whole(small, tmp_path_factory) -> Path:
    """A run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    simulate(settings_of(small), folder, hooks=Hooks())
    return folder


@pytest.fixture
def script(tmp_path) -> Path:
    path = tmp_path / "killed.py"
    path.write_text(KILLED, encoding="utf-8")
    return path


class PowerLoss(BaseException):
    """What stands for it in this process; nothing handles it."""


def losing_power_after(round_index: int) -> Hooks:
    def lose(index: int, rounds: int, budget: BudgetView) -> None:
        if index == round_index:
            raise PowerLoss

    return Hooks(round=lose)


def test_resume_after_kills_at_any_moment_gives_the_same_model_and_charges_a_carried_ledger_once(
    small, whole, script, tmp_path
):
    folder, ledgers = tmp_path / "run", tmp_path / "ledgers"
    rng = random.Random(os.environ.get("MAMMO_FED_TEST_SEED", "7"))  # noqa: S311 - moments, not secrets
    moments = [*sorted(rng.sample(range(len(MOMENTS) - 1), 2)), len(MOMENTS) - 1]
    begin = ("simulate", *small, *SETTINGS, f"privacy.ledger={ledgers}", f"hydra.run.dir={folder}")
    for number, moment in enumerate(MOMENTS[index] for index in moments):
        # A process counts from its own beginning: what comes after fewer rounds than before is at most where it was.
        count = moment[1] if number == 0 else 1
        killed(script, (moment[0], count), *(begin if number == 0 else ("simulate", "--resume", str(folder))))
    done = command("simulate", "--resume", str(folder), "--json")
    assert done.returncode == 0, done.stderr
    record = read_record(folder)
    assert json.loads(done.stdout)["run_id"] == record.run_id
    assert model_of(folder) == model_of(whole)
    assert charged(ledgers, record) == {"site-1": [4], "site-2": [4]}
    assert [site.epsilon for site in record.privacy.sites] == [site.epsilon for site in read_record(whole).privacy.sites]
    assert not (folder / "checkpoint").exists()
    again = command("simulate", "--resume", str(folder))
    assert again.returncode == 0, again.stderr
    assert f"{folder} is done: there is nothing to go on with" in " ".join(again.stderr.split("\n"))
    assert charged(ledgers, record) == {"site-1": [4], "site-2": [4]}


@pytest.mark.slow
@pytest.mark.skipif("MAMMO_FED_ALL_MOMENTS" not in os.environ, reason="MAMMO_FED_ALL_MOMENTS is not set: minutes of kills")
@pytest.mark.parametrize("moment", MOMENTS, ids=lambda moment: f"{moment[0]}-{moment[1]}")
def test_resume_after_a_kill_at_every_moment(small, whole, script, tmp_path, moment):
    folder = tmp_path / "run"
    killed(script, moment, "simulate", *small, *SETTINGS, f"hydra.run.dir={folder}")
    done = command("simulate", "--resume", str(folder))
    assert done.returncode == 0, done.stderr
    assert model_of(folder) == model_of(whole)
    same(read_record(folder), read_record(whole))
    assert charged(folder / "sites", read_record(folder)) == {"site-1": [4], "site-2": [4]}


@pytest.mark.parametrize("index", [-1, 0, 2, 3])
def test_resume_in_python_after_a_round_gives_the_same_model_and_record(small, whole, tmp_path, index):
    settings, folder = settings_of(small), tmp_path / "run"
    make_run_folder(folder, configuration=settings_yaml(settings))
    with pytest.raises(PowerLoss):
        simulate(settings, folder, hooks=losing_power_after(index))
    # Sites are found again though an engine may number them anew, and the folder may have moved.
    moved = tmp_path / "moved"
    shutil.move(folder, moved)
    same(simulate(settings, moved, hooks=Hooks(), resume=True), read_record(whole))
    assert model_of(moved) == model_of(whole)
    assert charged(moved / "sites", read_record(moved)) == {"site-1": [4], "site-2": [4]}


def test_resume_of_masked_sums_goes_on_and_leaves_a_round_that_had_begun_as_failed(small, tmp_path):
    masks = ("federation.secure.use=masks", "federation.num_sites=3")
    settings = settings_of(small, *masks)
    simulate(settings, tmp_path / "whole", hooks=Hooks())
    between = tmp_path / "between"
    with pytest.raises(PowerLoss):
        simulate(settings, between, hooks=losing_power_after(1))
    same(simulate(settings, between, hooks=Hooks(), resume=True), read_record(tmp_path / "whole"))
    assert model_of(between) == model_of(tmp_path / "whole")

    class Killed(ClientApp):
        def __call__(self, message: Message, context: Context) -> Message:
            reply = app(message, context)
            if message.metadata.message_type == "train" and context.node_config["partition-id"] == 0 and trained.pop():
                raise PowerLoss
            return reply

    trained = [True, False, False]
    within = tmp_path / "within"
    with pytest.raises(PowerLoss):
        simulate(settings, within, hooks=Hooks(), client_app=Killed())
    record = simulate(settings, within, hooks=Hooks(), resume=True)
    assert record.federation.failed_rounds == (2,)
    assert all(count <= 4 for counts in charged_at_most(within, record).values() for count in counts)


def charged_at_most(folder: Path, record: Record) -> dict[str, list[int]]:
    found = {}
    for site in record.privacy.sites:
        summary = show_ledger(folder / "sites" / site.site / "ledger", delta=record.privacy.delta)
        found[site.site] = [run.reserved_rounds for account in summary.accounts for run in account.runs]
        assert all(run.epsilon <= site.epsilon * (1 + 1e-9) for account in summary.accounts for run in account.runs)
    return found


@pytest.mark.slow
def test_resume_on_ray_after_a_kill_gives_the_same_model(small, whole, script, tmp_path):
    folder = tmp_path / "run"
    killed(script, ("after-checkpoint", 4), "simulate", *small, *SETTINGS, "engine=ray", f"hydra.run.dir={folder}")
    done = command("simulate", "--resume", str(folder))
    assert done.returncode == 0, done.stderr
    assert charged(folder / "sites", read_record(folder)) == {"site-1": [4], "site-2": [4]}
    one, other = read_record(folder).evaluation["external"], read_record(whole).evaluation["external"]
    assert one.auroc == pytest.approx(other.auroc, abs=1e-4)


def test_resume_of_a_sweep_leaves_what_is_done_goes_on_with_what_broke_off_and_starts_the_rest(small, script, tmp_path):
    base = tmp_path / "sweep"
    runs = ("federation.num_sites=2", "federation.rounds=1", "privacy.noise_seed=3", "seed=0,1,2")
    # Four writes and one removal a run: the second run dies within its rounds.
    killed(script, ("after-checkpoint", 7), "simulate", *small, "-m", *runs, f"hydra.sweep.dir={base}")
    assert [(base / name / "record.json").exists() for name in "012"] == [True, False, False]
    first, broken = (base / "0" / "record.json").read_bytes(), read_checkpoint_id(base / "1")
    done = command("simulate", "--resume", str(base), "--json")
    assert done.returncode == 0, done.stderr
    assert (base / "0" / "record.json").read_bytes() == first
    assert read_record(base / "1").run_id == broken
    assert [record["seeds"]["seed"] for record in json.loads(done.stdout)] == [0, 1, 2]
    assert (base / "comparison.html").exists()
    again = command("simulate", *small, "-m", *runs, f"hydra.sweep.dir={base}")
    assert again.returncode == 2
    assert "already holds a run and its ledgers" in again.stderr


def read_checkpoint_id(folder: Path) -> str:
    (declared,) = {path.parent.name for path in folder.glob("sites/*/runs/*/declaration.json")}
    return declared


def test_resume_says_in_one_line_what_is_amiss(small, cli, tmp_path, whole):
    def refused(*words: str) -> str:
        code, out, err = cli("simulate", *words)
        assert (code, out) == (2, ""), err
        assert err.count("\n") == 1
        return err

    assert "cannot be read" in refused("--resume", str(tmp_path / "nothing"))
    assert "seed=3 must not be given with --resume" in refused("--resume", str(whole), "seed=3")
    settings, folder = settings_of(small), tmp_path / "run"
    make_run_folder(folder, configuration=settings_yaml(settings))
    with pytest.raises(PowerLoss):
        simulate(settings, folder, hooks=losing_power_after(0))
    line = refused(*small, *SETTINGS, f"hydra.run.dir={folder}")
    assert f"go on with it (mammo-fed simulate --resume {folder})" in line
    text = (folder / "config.yaml").read_text(encoding="utf-8")
    (folder / "config.yaml").write_text(text.replace("  strategy: ", "  strategy: FedMedian  # "), encoding="utf-8")
    assert "the settings are not those that the run" in refused("--resume", str(folder))
    (folder / "config.yaml").write_text(text.replace("  strategy: ", "  strategies: "), encoding="utf-8")
    assert "strateg" in refused("--resume", str(folder))
    (folder / "config.yaml").write_text(text, encoding="utf-8")
    state = folder / "checkpoint" / "state.safetensors"
    kept = state.read_bytes()
    state.write_bytes(kept[:100])
    assert "checkpoint" in refused("--resume", str(folder))
    state.write_bytes(kept)
    with pytest.raises(InvalidSetting, match="the settings are not those"):
        simulate(settings_of(small, "federation.fraction=0.5"), folder, hooks=Hooks(), resume=True)
    code, _, err = cli("simulate", "--resume", str(folder))
    assert code == 0, err


@pytest.fixture
def wait() -> Callable[[Callable[[], object]], None]:
    def waiting(condition: Callable[[], object]) -> None:
        limit = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < limit, "waited in vain"
            time.sleep(0.05)

    return waiting


def test_resume_of_a_run_that_still_runs_is_refused(small, cli, tmp_path, start_cli, wait):
    folder = tmp_path / "run"
    process = start_cli("simulate", *small, "federation.num_sites=2", "federation.rounds=100000", f"hydra.run.dir={folder}")
    try:
        wait(lambda: (folder / "checkpoint").exists())
        code, _, err = cli("simulate", "--resume", str(folder))
        assert code == 2, err
        assert f"FOLDER={folder} is in use by another simulation; stop that one first" in err
    finally:
        process.kill()
        process.communicate()
