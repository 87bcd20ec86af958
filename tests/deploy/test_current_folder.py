"""Whatever lies in the folder where a command is started: no process of it executes or reads any of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from hostile_folder import HostileFolder, hostile_folder
from real_federation import SMALL_RUN, real_federation

from mammo_fed.common.isolation import isolate_children, isolated_environment, python_command
from mammo_fed.data.dicom.phantom_archive.tree import PhantomTree, write_phantom_tree
from mammo_fed.data.phantom.hospitals import phantom_cohort
from mammo_fed.data.phantom.masses import site_style
from mammo_fed.reporting.record.record import read_record

POOL = """
from mammo_fed.common.isolation import spawned_pool
if __name__ == "__main__":
    with spawned_pool(2) as pool:
        print(pool.submit(abs, -7).result())
"""


@pytest.fixture
def here(tmp_path) -> HostileFolder:
    """A folder full of traps."""
    return hostile_folder(tmp_path)


def test_traps_are_executed_by_a_python_that_has_the_current_folder_on_its_path(here):
    done = subprocess.run([sys.executable, "-m", "selectors"], cwd=here.path, check=False, env={"PATH": os.defpath})
    assert done.returncode == 0
    assert "selectors.py" in here.executed


def test_python_command_finds_the_installation_and_not_the_current_folder(here):
    command = python_command("mammo_fed.cli.main", "--version")
    done = subprocess.run(command, cwd=here.path, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("mammo-fed ")
    assert here.executed == ""


def test_spawned_processes_import_nothing_from_the_current_folder(here):
    # -P for the process itself alone: what it starts has to be isolated by the pool.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    done = subprocess.run(
        [sys.executable, "-P", "-c", POOL], cwd=here.path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == ["7"], done.stderr
    assert here.executed == ""


@pytest.mark.parametrize(
    ("given", "kept"), [(":/opt/x", "/opt/x"), ("", None), (":", None), ("lib:/opt/x:.:/opt/y", "/opt/x:/opt/y")]
)
def test_children_keep_only_absolute_entries_of_pythonpath(monkeypatch, given, kept):
    monkeypatch.setenv("PYTHONPATH", given)
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    assert isolated_environment().get("PYTHONPATH") == kept
    isolate_children()
    assert (os.environ["PYTHONSAFEPATH"], os.environ.get("PYTHONPATH")) == ("1", kept)


def test_settings_come_from_the_installation(here):
    done = here.run("mammo-fed", "simulate", "--cfg", "job")
    assert done.returncode == 0, done.stderr
    assert "seed: 0\n" in done.stdout
    assert here.executed == ""


def test_simulation_and_its_report_take_nothing_from_the_current_folder(here, small, tmp_path, succeed):
    done = here.run("mammo-fed", "simulate", *small, "privacy.noise_seed=2", f"hydra.run.dir={tmp_path / 'run'}")
    assert done.returncode == 0, done.stderr
    assert here.executed == ""
    elsewhere = succeed("privacy.noise_seed=2").folder
    # Another process may add up in another order: all but the last digits are equal.
    mine, theirs = (read_record(folder).evaluation for folder in (tmp_path / "run", elsewhere))
    assert {name: found.auroc for name, found in mine.items()} == pytest.approx(
        {name: found.auroc for name, found in theirs.items()}, abs=1e-2
    )
    figures = [(folder / "report.html").read_text().count("<svg") for folder in (tmp_path / "run", elsewhere)]
    assert figures[0] == figures[1] > 0
    assert "fill: #ff0000" not in (tmp_path / "run" / "report.html").read_text()


def test_ingestion_takes_nothing_from_the_current_folder(here, tmp_path):
    drawn = phantom_cohort(name="tree", num_images=8, style=site_style(0), d_prime=2.4, image_size=32, seed=3, split="train")
    write_phantom_tree(tmp_path / "tree", drawn, tree=PhantomTree(form="csv", rows=160, columns=128))
    done = here.run("mammo-fed", "data", "ingest", tmp_path / "tree", tmp_path / "cohort", "--source", "csv", "--jobs", 2)
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "cohort" / "patches").iterdir())) == 8
    assert here.executed == ""


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_demo_audit_and_simulation_on_ray_take_nothing_from_the_current_folder(here, small, tmp_path):
    done = here.run("mammo-fed", "demo", *small, f"hydra.run.dir={tmp_path / 'demo'}")
    assert done.returncode == 0, done.stderr
    done = here.run("mammo-fed", "audit", tmp_path / "demo", "--trials", 20, "--jobs", 2, "--shadows", 0)
    assert done.returncode == 0, done.stderr
    few = ("federation.num_sites=2", "federation.rounds=1", "engine=ray")
    done = here.run("mammo-fed", "simulate", *small, *few, f"hydra.run.dir={tmp_path / 'ray'}")
    assert done.returncode == 0, done.stderr
    assert here.executed == ""


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_federation_of_real_processes_takes_nothing_from_the_current_folder(here, tmp_path, cache):
    root = tmp_path / "federation"
    root.mkdir()
    with real_federation(root, num_sites=2, cache=cache, current_folder=here.path) as federation:
        for name in federation.sites:
            federation.start_client(name)
        federation.start_server(*SMALL_RUN, "federation.num_sites=2", "federation.rounds=1")
        assert federation.wait(240) == 0, federation.tail()
        # Asked while its processes run; what belongs to no process of them would not be looked at.
        assert len(federation.processes("mammo_fed.client.operations.executor")) == 2
        assert federation.record.federation.rounds == 1
        states = [json.loads(next(federation.site(name).rglob("site-client.json")).read_text()) for name in federation.sites]
        assert [state["executor_deaths"] for state in states] == [0, 0]
    assert here.executed == ""
