"""Flower's Ray simulation gives what the in-process engine gives, with every site in a process of its own."""

from __future__ import annotations

import pytest

from mammo_fed.reporting.record.record import comparable

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture
def on_ray(start_cli, small, tmp_path):
    """`on_ray("seed=1")`: exit code, standard error and folder of a run with engine=ray."""

    def run(*overrides: str):
        process = start_cli("simulate", *small, *overrides, "engine=ray", f"hydra.run.dir={tmp_path / 'ray'}")
        _, err = process.communicate(timeout=240)
        return process.returncode, err, tmp_path / "ray"

    return run


def test_ray_and_in_process_give_the_same_model_and_record(on_ray, succeed):
    settings = ("privacy.noise_seed=3", "federation.num_sites=2", "federation.rounds=2")
    here = succeed(*settings)
    code, err, folder = on_ray(*settings)
    assert code == 0, err
    there = type(here)(code, "", err, folder)
    assert there.same_model(here, tolerance=1e-5)
    one, other = comparable(there.record), comparable(here.record)
    # Scores may differ by rounding where a process has another number of threads.
    for name, metrics in one.pop("evaluation").items():
        assert metrics["brier"] == pytest.approx(other["evaluation"][name]["brier"], abs=1e-4)
    del other["evaluation"]
    assert one == other


def test_what_the_server_raises_on_ray_is_the_one_line_and_the_exit_code(on_ray):
    code, err, folder = on_ray("federation.num_sites=2", "federation.site_budgets=[1,1]")
    assert code == 3, err
    *_, last = err.splitlines()
    assert last.startswith("error: every site refuses the run (site-1: budget, site-2: budget)")
    assert not (folder / "record.json").exists()
