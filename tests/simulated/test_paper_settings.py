"""The paper's settings, one small run each, on a made-up clone: random flips, synthetic images, rounds chosen or none."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import load_file
from sklearn.metrics import average_precision_score, roc_auc_score

from mammo_fed.data.cohort import BENIGN
from mammo_fed.data.sources.mammo_dp import read_mammo_dp, read_mammo_dp_synthetic
from mammo_fed.privacy.accounting.pricing import epsilon
from mammo_fed.privacy.events import PrivacyEvent
from mammo_fed.privacy.schedule import plan_schedule

PAPER = (
    "data=mammo_dp",
    "model=pooled",
    "model.weights=none",
    "model.input_size=32",
    "model.hidden=8",
    "privacy=dp_sgd",
    "privacy.noise=float",
    "privacy.unit=image",
    "privacy.accountant=rdp",
    "privacy.delta=1e-4",
    "privacy.clipping_norm=1.0",
    "privacy.mean_fraction=0",
    "privacy.batch_size=6",
    "privacy.optimizer=adamw",
    "privacy.learning_rate=1e-2",
    "privacy.label_smoothing=0.1",
    "privacy.noise_seed=1",
    "synthesis.source=gan",
    "synthesis.use=[whiten]",
    "federation.num_sites=1",
    "federation.rounds=3",
    "federation.local_steps=2",
    "federation.keep_optimizer=true",
)


@pytest.fixture(scope="module")
def run(cli, clone, cache, tmp_path_factory):
    """`run("seed=1")`: a run of the paper's settings with these changes, as (record, folder)."""

    def go(*overrides):
        folder = tmp_path_factory.mktemp("paper") / "run"
        code, out, err = cli(
            "simulate", *PAPER, f"data.root={clone}", f"engine.cache={cache}", *overrides, "--json", f"hydra.run.dir={folder}"
        )
        assert code == 0, err
        return json.loads(out), folder

    return go


@pytest.fixture(scope="module")
def plain(run):
    return run()


def head_of(folder):
    return load_file(folder / "model.safetensors")["head"]


def scores_of(folder):
    with np.load(folder / "scores.npz", allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def assert_private(record, *, sites):
    """Every site of the record answered every round, and its epsilon is at most the target and not nothing."""
    privacy = record["privacy"]
    assert [site["refused"] for site in privacy["sites"]] == [False] * sites
    for site in privacy["sites"]:
        assert 0.5 * privacy["target_epsilon"] < site["epsilon"] <= privacy["target_epsilon"]
        assert site["rounds"] == 3


@pytest.mark.parametrize("sites", [1, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "changes",
    [
        (),
        ("synthesis.use=[whiten,augment]",),
        ("synthesis.use=[whiten,augment]", "synthesis.sampler=mixed"),
        ("synthesis.use=[whiten,pretrain]", "synthesis.pretrain_scope=network"),
        ("federation.release=best_val", "federation.keep_optimizer=false"),
        ("privacy.noise=secure", "synthesis.use=[whiten,augment]"),
        ("privacy.unit=patient", "federation.strategy=FedProx", "federation.proximal_mu=0.1"),
    ],
    ids=["real", "separate", "mixed", "network", "best_val", "secure", "patient"],
)
def test_the_paper_s_settings_run_within_their_budget(run, changes, sites):
    record, folder = run(*changes, f"federation.num_sites={sites}")
    assert_private(record, sites=sites)
    assert set(record["evaluation"]) == {"val", "test", "external"}
    assert np.isfinite(head_of(folder)).all()


def test_two_sites_train_with_generated_images_beside_their_patients(run):
    record, folder = run("synthesis.use=[whiten,augment]", "federation.num_sites=2")
    assert_private(record, sites=2)
    assert not np.array_equal(head_of(folder), head_of(run("synthesis.use=[whiten,augment]")[1]))


def test_scores_are_kept_with_labels_patients_and_images(plain, clone):
    record, folder = plain
    scores = scores_of(folder)
    for name in ("val", "test", "external"):
        cohort = read_mammo_dp(clone, split=name)
        np.testing.assert_array_equal(scores[f"{name}/label"], cohort.labels)
        np.testing.assert_array_equal(scores[f"{name}/patient"], cohort.patients)
        np.testing.assert_array_equal(scores[f"{name}/image"], cohort.images)
        assert record["evaluation"][name]["auroc"] == pytest.approx(roc_auc_score(cohort.labels, scores[f"{name}/score"]))


def test_a_run_with_injected_noise_is_the_same_run_again(plain, run):
    again = run()
    np.testing.assert_array_equal(head_of(plain[1]), head_of(again[1]))


@pytest.mark.parametrize(
    "change",
    [
        "model.flips=none",
        "federation.keep_optimizer=false",
        "synthesis.use=[whiten,augment]",
        "seed=1",
        "privacy.noise_seed=2",
    ],
)
def test_every_setting_moves_the_model(plain, run, change):
    assert not np.allclose(head_of(plain[1]), head_of(run(change)[1]), atol=1e-6)


def test_separate_and_mixed_sampling_and_no_weight_are_three_different_trainings(plain, run):
    augmented = "synthesis.use=[whiten,augment]"
    separate, mixed, weightless = (
        head_of(run(augmented, *more)[1]) for more in ((), ("synthesis.sampler=mixed",), ("synthesis.augment_weight=0",))
    )
    assert not np.allclose(separate, mixed, atol=1e-6)
    assert not np.allclose(separate, weightless, atol=1e-6)


def test_mixed_sampling_is_charged_at_the_rate_of_the_patients_and_the_generated_images_together(plain, run, clone):
    own, generated = len(read_mammo_dp(clone, split="train")), len(read_mammo_dp_synthetic(clone))
    mixed, _ = run("synthesis.use=[whiten,augment]", "synthesis.sampler=mixed")
    for record, images in ((plain[0], own), (mixed, own + generated)):
        step = plan_schedule(
            unit="image",
            target_epsilon=record["privacy"]["target_epsilon"],
            delta=1e-4,
            accountant="rdp",
            rounds=3,
            local_steps=2,
            sample_rate=6 / images,
            mean_fraction=0.0,
            clipping_norm=1.0,
            mean_clipping_norm=1.0,
            max_images_per_patient=8,
        ).step_event
        (site,) = record["privacy"]["sites"]
        spent = PrivacyEvent(
            mechanism="gradient",
            noise_multiplier=step.noise_multiplier,
            steps=6,
            sample_rate=6 / images,
            unit="image",
            clipping_norm=1.0,
            max_images_per_patient=8,
        )
        assert site["epsilon"] == pytest.approx(epsilon([spent], delta=1e-4, accountant="rdp"), rel=1e-6)


@pytest.mark.slow
def test_the_chosen_round_is_the_best_on_val_among_those_near_the_target(run):
    record, folder = run(
        "federation.release=best_val", "privacy.target_epsilon=inf", "federation.rounds=5", "privacy.learning_rate=0.1"
    )
    scores = scores_of(folder)
    chosen = average_precision_score(scores["val/label"] == BENIGN, 1 - scores["val/score"])
    single = []
    for rounds in range(1, 6):
        _, other = run(
            "federation.tail=0.01", "privacy.target_epsilon=inf", f"federation.rounds={rounds}", "privacy.learning_rate=0.1"
        )
        found = scores_of(other)
        single.append(average_precision_score(found["val/label"] == BENIGN, 1 - found["val/score"]))
    assert chosen == pytest.approx(max(single))
    assert "val" in " ".join(record["privacy"]["not_covered"])


def test_choosing_a_round_needs_validation_patients(cli, make_clone, cache, tmp_path):
    root = make_clone("train", "test")
    code, _, err = cli(
        "simulate",
        *PAPER,
        f"data.root={root}",
        f"engine.cache={cache}",
        "federation.release=best_val",
        f"hydra.run.dir={tmp_path / 'run'}",
    )
    assert code == 2
    assert "federation.release=best_val needs validation patients" in err
    assert not (tmp_path / "run" / "record.json").exists()


def test_no_rounds_ask_no_site_for_anything_and_release_the_pretrained_start(run):
    pretrained = ("synthesis.use=[whiten,pretrain]", "synthesis.pretrain_scope=network")
    record, folder = run(*pretrained, "federation.rounds=0")
    assert record["privacy"]["sites"] == []
    assert record["federation"]["bytes_up"] == record["federation"]["bytes_down"] == 0
    trained = run(*pretrained)[1]
    assert not np.allclose(head_of(folder), head_of(trained), atol=1e-6)
    # The start is what the network was pretrained with, and the same for every seed of the noise.
    np.testing.assert_array_equal(head_of(folder), head_of(run(*pretrained, "federation.rounds=0", "privacy.noise_seed=2")[1]))


def test_a_head_that_is_not_kept_starts_afresh_on_the_pretrained_network(run):
    pretrained = ("synthesis.use=[whiten,pretrain]", "synthesis.pretrain_scope=network", "federation.rounds=0")
    kept, fresh, untrained = run(*pretrained), run(*pretrained, "synthesis.keep_head=false"), run("federation.rounds=0")
    np.testing.assert_array_equal(head_of(fresh[1]), head_of(untrained[1]))
    assert not np.allclose(head_of(kept[1]), head_of(fresh[1]), atol=1e-6)
    weights = {name: one[0]["model"]["weights_sha256"] for name, one in (("kept", kept), ("fresh", fresh), ("none", untrained))}
    assert weights["kept"] == weights["fresh"] != weights["none"]


def test_a_pretrained_network_scores_images_from_the_run_folder_alone(run, cli, clone):
    _, folder = run("synthesis.use=[whiten,pretrain]", "synthesis.pretrain_scope=network")
    paths = sorted((clone / "dataset16062024/cbis-ddsm/test").rglob("*.png"))
    code, out, err = cli("predict", folder, *paths, "--json")
    assert code == 0, err
    predicted = json.loads(out)
    scores = scores_of(folder)
    expected = dict(zip(scores["test/image"].tolist(), scores["test/score"].tolist(), strict=True))
    assert len(predicted) == len(expected)
    np.testing.assert_allclose(sorted(predicted.values()), sorted(expected.values()), atol=1e-5)


def test_training_on_the_generated_images_alone_draws_from_no_patient(run, clone):
    record, _ = run("data.train=synthetic")
    assert_private(record, sites=1)
    assert [site["images"] for site in record["data"]["sites"]] == [len(read_mammo_dp_synthetic(clone))]
