"""The simulations that run as they are: each says what it is for, asks for settings that there are, and runs at small size."""

from __future__ import annotations

import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from mammo_fed.cli.main import main
from mammo_fed.reporting.record.record import read_record
from mammo_fed.settings.compose import compose_settings

FOLDER = Path(__file__).parents[2] / "simulations"
SCRIPTS = sorted(FOLDER.glob("*.sh"))
ON_PHANTOMS = {path.stem: path for path in SCRIPTS if path.stem != "paper"}

# Enough patients and little enough noise for a direction to show.
LEARNING = ("data.images_train=400", "federation.rounds=6", "privacy.target_epsilon=200", "privacy.noise_seed=1")


def command_of(script: Path) -> list[str]:
    """The words of the command that a script runs, without what its caller adds."""
    (line,) = re.findall(r'^exec (.*) "\$@"$', script.read_text().replace("\\\n", ""), re.MULTILINE)
    return shlex.split(line)


def test_every_script_says_in_one_line_what_it_is_for():
    assert len(SCRIPTS) >= 5
    for script in SCRIPTS:
        first, purpose, *_ = script.read_text().splitlines()
        assert first == "#!/bin/sh"
        assert re.fullmatch(r"# [A-Z].*[.)]", purpose), script
        assert os.access(script, os.X_OK)


@pytest.mark.parametrize("script", ON_PHANTOMS.values(), ids=ON_PHANTOMS)
def test_settings_of_a_script_are_settings_that_there_are(script):
    program, command, *overrides = command_of(script)
    assert (program, command) == ("mammo-fed", "simulate")
    compose_settings(overrides)


def test_paper_asks_for_rows_that_there_are(capsys):
    _, command, *overrides = command_of(FOLDER / "paper.sh")
    assert main([command, *overrides, "--list"]) == 0
    assert "dbr156" in capsys.readouterr().out


def test_hostile_hospitals_give_a_table_that_goes_on_where_it_was_stopped(small, tmp_path, capsys):
    script = runpy.run_path(str(FOLDER / "hostile.py"))
    arguments = [str(tmp_path), "--seeds", "1", "--attacks", "label flip,false weight", *small, *LEARNING]
    script["main"](arguments)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == [
        "| nobody hostile, against FedAvg",
        "| label flip",
        "| false weight",
    ]
    assert all(len(line.split(" | ")) == 1 + len(script["COLUMNS"]) for line in lines[2:])
    folders = sorted(path.parent for path in tmp_path.rglob("record.json"))
    runs = {folder.name: read_record(folder) for folder in folders}
    # Two columns are of the same strategy: what differs is how it was asked for.
    assert {runs[f"{how}-1-of-4-false-weight-1"].federation.strategy for how in ("robust", "default")} == {"FedAgree"}
    for name, record in runs.items():
        named = [weight.site for weight in record.federation.weights if weight.outsized]
        assert named == (["site-4"] if name.endswith("1-of-4-false-weight-1") else named if "2-of-5" in name else [])
    (folders[0] / "record.json").unlink()
    script["main"](arguments)
    assert capsys.readouterr().out.splitlines() == lines
    again = {folder.name: read_record(folder).run_id for folder in folders}
    assert [name for name, record in runs.items() if record.run_id != again[name]] == [folders[0].name]


@pytest.mark.slow
@pytest.mark.parametrize("script", ON_PHANTOMS.values(), ids=ON_PHANTOMS)
def test_script_runs_at_small_size(script, small, tmp_path):
    fewer = (
        ("federation.num_sites=12", "data.images_train=288", "data.images_test=96") if script.stem == "thousand_sites" else ()
    )
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        [script, *small, *fewer, f"hydra.run.dir={tmp_path / 'run'}"],
        cwd=tmp_path,
        env={**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert read_record(tmp_path / "run").privacy.sites
