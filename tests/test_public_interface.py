"""What `import mammo_fed` offers, and what it costs."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

import mammo_fed
from mammo_fed.cli.main import main
from mammo_fed.errors import DataError, InvalidSetting, PrivacyRefused
from mammo_fed.privacy.accounting.composition import gaussian_epsilon
from mammo_fed.settings.compose import compose_settings, read_composed, settings_yaml

HEAVY = ("torch", "flwr", "numpy", "scipy", "opacus", "hydra", "matplotlib", "sklearn", "rich")
EVENT = mammo_fed.PrivacyEvent(
    mechanism="mean",
    noise_multiplier=5.0,
    steps=1,
    sample_rate=1.0,
    unit="patient",
    clipping_norm=1.0,
    max_images_per_patient=4,
)


def test_each_public_name_is_there_and_nothing_else_is_listed():
    assert sorted(set(mammo_fed.__all__)) == mammo_fed.__all__
    assert all(hasattr(mammo_fed, name) for name in mammo_fed.__all__)
    assert set(mammo_fed.__all__) <= set(dir(mammo_fed))
    with pytest.raises(AttributeError, match="no attribute 'simulat'"):
        mammo_fed.simulat  # noqa: B018


@pytest.mark.parametrize("name", [name for name in mammo_fed.__all__ if name != "__version__"])
def test_each_public_name_has_an_example_in_its_docstring(name):
    assert ">>> " in (getattr(mammo_fed, name).__doc__ or "")


def test_importing_the_package_loads_no_library():
    code = f"import json, sys, mammo_fed; print(json.dumps([name for name in {HEAVY!r} if name in sys.modules]))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(found.stdout) == []


def test_type_checkers_see_the_same_names_as_the_interpreter():
    tree = Path(mammo_fed.__file__).read_text(encoding="utf-8")
    typed = tree.partition("if TYPE_CHECKING:")[2].partition("__all__")[0]
    for name, home in mammo_fed._HOMES.items():
        assert f"from {home} import" in typed, home
        assert name in typed
    assert {*mammo_fed._HOMES, "__version__"} == set(mammo_fed.__all__)


def test_a_run_from_python_is_the_run_of_the_command_line(small, tmp_path):
    overrides = [*small, "privacy.noise_seed=5", "federation.rounds=1"]
    record = mammo_fed.simulate(mammo_fed.compose_settings(overrides), tmp_path / "python")
    assert main(["simulate", *overrides, "--json", f"hydra.run.dir={tmp_path / 'line'}"]) == 0
    mine, theirs = (load_file(tmp_path / run / "model.safetensors") for run in ("python", "line"))
    assert all(mine[name].tobytes() == theirs[name].tobytes() for name in {*mine, *theirs})
    assert [site.epsilon for site in record.privacy.sites] == [
        site.epsilon for site in mammo_fed.read_record(tmp_path / "line").privacy.sites
    ]
    names = [{path.name for path in (tmp_path / run).iterdir()} for run in ("python", "line")]
    assert names[0] == names[1]
    with pytest.raises(InvalidSetting, match="already holds a run"):
        mammo_fed.simulate(mammo_fed.compose_settings(overrides), tmp_path / "python")


def test_settings_written_into_a_run_folder_are_read_back(tmp_path):
    settings = mammo_fed.compose_settings(["privacy.target_epsilon=inf", "federation.site_budgets=[inf,1,2,3]"])
    (tmp_path / "config.yaml").write_text(settings_yaml(settings), encoding="utf-8")
    assert (
        read_composed(tmp_path).settings
        == settings
        == compose_settings(["privacy.target_epsilon=inf", "federation.site_budgets=[inf,1,2,3]"]).settings
    )


def test_a_run_without_a_folder_leaves_nothing(small, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    mammo_fed.simulate(mammo_fed.compose_settings([*small, "federation.rounds=1"]))
    assert list(tmp_path.iterdir()) == []


def test_a_run_on_patients_without_a_folder_is_refused_before_anything_is_read(tmp_path):
    settings = mammo_fed.compose_settings(["data=csv", f"data.root={tmp_path / 'absent.csv'}", "data.public=false"])
    with pytest.raises(InvalidSetting, match="lose the ledgers of patients"):
        mammo_fed.simulate(settings)


def test_a_plan_is_that_of_the_command_line(capsys):
    assert main(["privacy", "plan", "--target-epsilon", "3", "--delta", "1e-5", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    found = mammo_fed.plan(target_epsilon=3.0, delta=1e-5)
    assert found.noise_multiplier == shown["noise_multiplier"]
    assert found.mean_noise_multiplier == shown["mean_noise_multiplier"]
    assert list(found.epsilon_after_round) == shown["epsilon_after_round"]


@pytest.mark.parametrize("mechanism", ["dp_gd", "dp_sgd"])
def test_a_plan_never_costs_more_than_its_target(mechanism):
    found = mammo_fed.plan(target_epsilon=1.5, delta=1e-5, mechanism=mechanism, images=500)
    assert mammo_fed.epsilon(found.events, delta=1e-5, accountant="pld") == found.epsilon <= 1.5


def test_a_sampled_plan_needs_the_number_of_images():
    with pytest.raises(InvalidSetting, match="images=None must be"):
        mammo_fed.plan(target_epsilon=1.5, delta=1e-5, mechanism="dp_sgd")


@pytest.mark.parametrize("bad", [{"rounds": 0}, {"local_steps": 0}, {"delta": 1.0}, {"target_epsilon": 0.0}])
def test_a_plan_refuses_what_is_out_of_range(bad):
    with pytest.raises(InvalidSetting, match=rf"{next(iter(bad)).removeprefix('local_')}=.* must be"):
        mammo_fed.plan(**{"target_epsilon": 1.0, "delta": 1e-5, **bad})


def test_each_charge_counts_and_is_durable_and_a_refused_one_costs_nothing(tmp_path):
    with mammo_fed.open_ledger(tmp_path / "ledger", max_epsilon=2.0, delta=1e-5, filter="gdp") as ledger:
        left = [mammo_fed.charge(ledger, [EVENT], patients=["A"]) for _ in range(2)]
        assert 2.0 > left[0] > left[1]
        with pytest.raises(PrivacyRefused):
            mammo_fed.charge(ledger, [EVENT.repeated(50)], patients=["A"])
    with mammo_fed.open_ledger(tmp_path / "ledger", max_epsilon=2.0, delta=1e-5) as again:
        assert again.budget_left() == left[1]
        assert again.events() == (EVENT, EVENT)
        again.verify()


def test_a_ledger_is_shown_at_the_delta_of_its_own_budget(tmp_path, capsys):
    with mammo_fed.open_ledger(tmp_path / "ledger", max_epsilon=2.0, delta=1e-5, filter="gdp") as ledger:
        mammo_fed.charge(ledger, [EVENT], patients=["A"])
    assert main(["privacy", "show", str(tmp_path / "ledger"), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["delta"] == 1e-5
    # One release of N(1, 5^2) against N(0, 5^2).
    assert shown["accounts"][0]["charged"] == pytest.approx(gaussian_epsilon(mu=1 / 5, delta=1e-5), rel=1e-4)


@pytest.mark.parametrize("patients", ["P01", [], [1, 2], ["A", None]], ids=str)
def test_a_charge_refuses_patients_that_are_no_list_of_identifiers(patients, tmp_path):
    with mammo_fed.open_ledger(tmp_path / "ledger", max_epsilon=2.0, delta=1e-5, filter="gdp") as ledger:
        with pytest.raises(InvalidSetting, match="patients must be a list of identifiers"):
            mammo_fed.charge(ledger, [EVENT], patients=patients)
        assert ledger.events() == ()


@pytest.mark.parametrize("steps", [True, 1.5, 0, "2"], ids=repr)
def test_an_event_of_no_whole_number_of_steps_cannot_exist(steps):
    with pytest.raises(InvalidSetting, match="must be a whole number of at least 1"):
        replace(EVENT, steps=steps)


def test_a_charge_of_sampled_events_needs_a_filter_that_takes_them(tmp_path):
    sampled = replace(EVENT, mechanism="gradient", sample_rate=0.1)
    with (
        mammo_fed.open_ledger(tmp_path / "gdp", max_epsilon=2.0, delta=1e-5, filter="gdp") as ledger,
        pytest.raises(PrivacyRefused),
    ):
        mammo_fed.charge(ledger, [sampled], patients=["A"])
    with mammo_fed.open_ledger(tmp_path / "rdp", max_epsilon=2.0, delta=1e-5) as ledger:
        assert mammo_fed.charge(ledger, [sampled], patients=["A"]) < 2.0


@pytest.mark.parametrize(
    ("images", "complaint"),
    [
        (np.zeros((2, 8, 9)), "shape"),
        (np.zeros((8, 8)), "shape"),
        (np.zeros((0, 8, 8)), "at least one"),
        (np.zeros((1, 8, 8), np.uint8), "floats"),
        (np.full((1, 8, 8), 255.0), "scale them"),
        (np.full((1, 8, 8), np.nan), "finite"),
    ],
)
def test_images_that_are_not_patches_are_refused(images, complaint, small, tmp_path_factory, finished_model):
    with pytest.raises(DataError, match=complaint):
        finished_model.score(images)


@pytest.fixture(scope="module")
def finished_model(small, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "run"
    mammo_fed.simulate(mammo_fed.compose_settings([*small, "federation.rounds=1"]), folder)
    return mammo_fed.load_model(folder)


def test_arrays_and_files_get_the_same_scores(finished_model, phantom, tmp_path):
    from PIL import Image

    grey = np.round(phantom.external.pixels[:3] * 255).astype(np.uint8)
    paths = [tmp_path / f"{number}.png" for number in range(3)]
    for path, pixels in zip(paths, grey, strict=True):
        Image.fromarray(pixels).save(path)
    scores = finished_model.score((grey / 255).astype(np.float32))
    np.testing.assert_array_equal(scores, finished_model.score(paths))
    assert scores.shape == (3,)
