"""`flwr run .`: Flower's own command simulates the federation that `mammo-fed simulate` does, and gives its record."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from real_federation import free_port

from mammo_fed.common.supervision import installed_command
from mammo_fed.errors import InvalidSetting
from mammo_fed.federation.flwr_internals.environment import flower_environment
from mammo_fed.reporting.record.record import comparable
from mammo_fed.simulations.flower_app import compose_for

ROOT = Path(__file__).parents[2]


# Flower reads .gitignore by a name that the library has since deprecated.
@pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")
def test_bundle_of_the_checkout_holds_two_small_apps_and_nothing_that_could_hide_the_installed_package():
    from flwr.cli.build import build_fab_from_disk

    with zipfile.ZipFile(io.BytesIO(build_fab_from_disk(ROOT))) as bundle:
        assert set(bundle.namelist()) == {"pyproject.toml", "server/app.py", "client/app.py", ".info/CONTENT"}


def test_hospitals_are_the_supernodes_of_the_simulation_unless_the_overrides_say_otherwise():
    assert compose_for("seed=3", num_nodes=2).settings.federation.num_sites == 2
    settings = compose_for("seed=3 engine=in_process federation.num_sites=4", num_nodes=4).settings
    assert (settings.seed, settings.engine.name, settings.federation.num_sites) == (3, "in_process", 4)
    with pytest.raises(InvalidSetting, match="--federation-config num-supernodes=4"):
        compose_for("federation.num_sites=4", num_nodes=2)


@pytest.fixture
def flwr(tmp_path) -> Iterator[dict[str, str]]:
    """What the local SuperLink of a test needs; everything that was started with it is ended."""
    home = tmp_path / "flwr"
    link, control = free_port(), free_port()
    yield {
        **os.environ,
        **flower_environment(home),
        "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": str(link),
        "FLWR_LOCAL_CONTROL_API_PORT": str(control),
        "OMP_NUM_THREADS": "1",
    }
    # The local SuperLink goes on after the command, for the next one.
    for environment in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            if f"FLWR_HOME={home}".encode() in environment.read_bytes().split(b"\0"):
                os.kill(int(environment.parent.name), signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_flwr_run_gives_the_record_and_the_model_of_simulate(flwr, small, succeed, tmp_path):
    settings = ("privacy.noise_seed=3", "federation.num_sites=2", "federation.rounds=2")
    here = succeed(*settings)
    overrides = " ".join([*small, *settings])
    command = [installed_command("flwr"), "run", ".", "--stream", "--federation-config", "num-supernodes=2"]
    command += ["--run-config", f'overrides="{overrides}" run-folder="{tmp_path / "run"}"']
    done = subprocess.run(command, cwd=ROOT, env=flwr, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr
    said = done.stdout + done.stderr
    assert f"run folder {tmp_path / 'run'}" in said, said
    there = type(here)(0, done.stdout, done.stderr, tmp_path / "run")
    assert there.same_model(here, tolerance=1e-5)
    one, other = comparable(there.record), comparable(here.record)
    assert [site["epsilon"] for site in one["privacy"]["sites"]] == [site["epsilon"] for site in other["privacy"]["sites"]]
    # Scores may differ by rounding where a process has another number of threads.
    for name, metrics in one.pop("evaluation").items():
        assert metrics["brier"] == pytest.approx(other["evaluation"][name]["brier"], abs=1e-4)
    del other["evaluation"]
    assert one == other
    assert {path.name for path in (tmp_path / "run").iterdir()} == {path.name for path in here.folder.iterdir()}
