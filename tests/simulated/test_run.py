"""Whole federations of a few patches: what a run writes, what it guarantees, and how it goes on when sites refuse."""

from __future__ import annotations

import json
import math
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from mammo_fed.data.cohort import MALIGNANT
from mammo_fed.privacy.accounting.composition import gaussian_epsilon, gaussian_mu
from mammo_fed.privacy.accounting.pricing import epsilon, patient_epsilon
from mammo_fed.privacy.events import PrivacyEvent
from mammo_fed.privacy.ledger.ledger import Budget, Ledger
from mammo_fed.privacy.ledger.report import export_ledger
from mammo_fed.reporting.record.record import comparable
from mammo_fed.settings import Settings
from mammo_fed.training.evaluation import evaluate_scores

STRATEGIES = ("FedAvg", "FedProx", "FedAdam", "FedYogi", "FedMedian", "FedTrimmedAvg", "Krum")
INJECTED = "privacy.noise_seed=3"
SECTIONS = {
    "schema_version": (),
    "run_id": (),
    "mode": (),
    "config_hash": (),
    "seeds": (),
    "versions": (),
    "started": (),
    "finished": (),
    "seconds": ("features", "training", "evaluation", "total"),
    "data": ("source", "fingerprint", "sites"),
    "model": ("backbone", "weights_sha256", "scope", "parameters_trained"),
    "synthesis": ("use", "source", "sha256", "provenance"),
    "privacy": ("unit", "delta", "accountant", "target_epsilon", "sites", "guarantee", "not_covered"),
    "evaluation": ("test", "external"),
    "federation": ("strategy", "rounds", "sites", "bytes_up", "bytes_down", "seconds_per_round"),
}
OF_A_SITE = {
    "site",
    "epsilon",
    "epsilon_account",
    "epsilon_after_round",
    "patient_epsilon",
    "mechanism",
    "budget_left",
    "rounds",
    "refused",
    "patient_epsilon_account",
    "cap_epsilon",
    "cap_delta",
    "mismatches",
    "unanswered",
    "rejected",
    "ledger_head",
}


@pytest.fixture(scope="module")
def plain(succeed):
    """A run with nothing but the small defaults."""
    return succeed()


@pytest.fixture(scope="module")
def again(succeed):
    """The same settings once more, as JSON."""
    return succeed("--json")


@pytest.fixture(scope="module")
def injected(succeed):
    """A run whose noise can be drawn again."""
    return succeed(INJECTED)


@pytest.fixture(scope="module")
def train(succeed, training):
    """`train("seed=1")`: a run that scores nothing."""
    return lambda *overrides: succeed(*training, *overrides)


@pytest.fixture(scope="module")
def private(succeed, table):
    """A run on a table that is not declared public."""
    return succeed("data=csv", f"data.root={table.path}", "federation.num_sites=2")


@pytest.fixture(scope="module")
def published(succeed, table):
    """The same, with metrics of its validation patients."""
    return succeed("data=csv", f"data.root={table.path}", "federation.num_sites=2", "data.publish_metrics=true")


def spent(run, site: str, *, ledger: Path | None = None) -> tuple[PrivacyEvent, ...]:
    """What a site's own ledger says that this run has spent."""
    path = ledger or run.folder / "sites" / site / "ledger"
    with Ledger.open(path, site=site, budget=Budget(max_epsilon=math.inf, delta=1e-4), filter="gdp") as opened:
        return opened.events(run_id=run.record.run_id)


def assert_within_budget(run) -> None:
    """Every site's epsilon is that of its own ledger's events, and at most the target."""
    record = run.record
    assert record.privacy.sites
    for site in record.privacy.sites:
        events = spent(run, site.site)
        assert site.events == events
        assert site.epsilon == epsilon(events, delta=record.privacy.delta, accountant="pld")
        assert site.epsilon <= record.privacy.target_epsilon
        assert site.rounds == len(site.epsilon_after_round) == len(events)
        assert list(site.epsilon_after_round) == sorted(site.epsilon_after_round)


def test_a_run_leaves_record_model_page_log_and_configuration(plain):
    left = {path.name for path in plain.folder.iterdir()}
    assert left == {
        "record.json",
        "model.safetensors",
        "report.html",
        "statement.html",
        "run.log",
        "config.yaml",
        "sites",
        "scores.npz",
    }
    assert f"report:    {plain.folder / 'report.html'}" in plain.err


def test_the_record_has_the_sections_that_others_rely_on(plain):
    values = json.loads((plain.folder / "record.json").read_text(encoding="utf-8"))
    for section, keys in SECTIONS.items():
        assert section in values
        assert set(keys) <= set(values[section]) if keys else True
    assert (values["schema_version"], values["mode"]) == (1, "simulate")
    assert len(values["privacy"]["sites"]) == len(values["data"]["sites"]) == 4
    for site in values["privacy"]["sites"]:
        assert set(site) >= OF_A_SITE
    assert set(values["evaluation"]["test"]) >= {
        "n_patients",
        "n_images",
        "auroc",
        "auroc_ci",
        "auprc_benign",
        "auprc_malignant",
    }


def test_every_site_spends_what_its_ledger_says_and_at_most_the_target(plain):
    assert_within_budget(plain)
    assert {site.rounds for site in plain.sites} == {4}


def test_a_full_batch_run_costs_what_the_exact_gaussian_accountant_says(plain):
    for site in plain.sites:
        exact = epsilon(spent(plain, site.site), delta=1e-4, accountant="gdp")
        assert site.epsilon == pytest.approx(exact, rel=1e-4)
        assert exact <= plain.record.privacy.target_epsilon * (1 + 1e-6)


def test_system_noise_gives_the_guarantee_in_words(plain):
    privacy = plain.record.privacy
    assert privacy.noise == "operating system"
    assert privacy.guaranteed
    assert privacy.guarantee.startswith("Each patient's data (all images) is protected with (epsilon=6, delta=1e-04)")


def test_seed_and_noise_seed_make_two_runs_alike_to_the_last_bit(succeed, injected):
    repeated = succeed(INJECTED, "engine.workers=1")
    assert comparable(repeated.record) == comparable(injected.record)
    assert repeated.record.run_id != injected.record.run_id
    assert repeated.model.keys() == injected.model.keys()
    for name, array in injected.model.items():
        np.testing.assert_array_equal(repeated.model[name], array)


def test_another_noise_seed_gives_another_model(succeed, injected):
    other = succeed("privacy.noise_seed=4")
    assert not np.array_equal(other.model["head"], injected.model["head"])
    assert not np.array_equal(other.model["centre"], injected.model["centre"])


def test_system_noise_never_repeats_and_seed_does_not_change_that(plain, again):
    assert not np.array_equal(again.model["head"], plain.model["head"])
    assert not np.array_equal(again.model["centre"], plain.model["centre"])
    np.testing.assert_array_equal(again.model["whitening.components"], plain.model["whitening.components"])


def test_injected_noise_voids_the_guarantee_in_words(injected):
    privacy = injected.record.privacy
    assert not privacy.guaranteed
    assert privacy.guarantee.startswith("None: noise was injected with privacy.noise_seed=3")
    assert injected.record.seeds == {"seed": 0, "privacy.noise_seed": 3}


def test_a_run_without_noise_says_that_it_guarantees_nothing(train):
    run = train("privacy.target_epsilon=inf")
    assert run.record.privacy.guarantee.startswith("None: no noise was added")
    assert not run.record.privacy.guaranteed
    assert {site.epsilon for site in run.sites} == {math.inf}


def test_real_serialisation_and_more_workers_change_nothing(succeed, injected):
    wired = succeed(INJECTED, "engine.wire=true", "engine.workers=4")
    assert wired.same_model(injected)
    assert comparable(wired.record) == comparable(injected.record)


@pytest.fixture(scope="module")
def by_strategy(train):
    """One run for each of Flower's strategies, with the same noise."""
    return {strategy: train(INJECTED, f"federation.strategy={strategy}") for strategy in STRATEGIES}


@pytest.fixture(scope="module")
def averaged(by_strategy):
    """The run that others are held against: FedAvg, and noise that can be drawn again."""
    return by_strategy["FedAvg"]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_completes_within_budget(by_strategy, strategy):
    run = by_strategy[strategy]
    assert run.record.federation.strategy == strategy
    assert_within_budget(run)
    assert all(np.isfinite(array).all() and array.dtype == np.float32 for array in run.model.values())


def test_strategies_differ_in_what_they_make_of_the_same_replies(by_strategy):
    # FedProx without a proximal term is FedAvg.
    assert by_strategy["FedProx"].same_model(by_strategy["FedAvg"])
    heads = [run.model["head"] for strategy, run in by_strategy.items() if strategy != "FedProx"]
    assert all(not np.allclose(one, other) for row, one in enumerate(heads) for other in heads[:row])


@pytest.mark.parametrize("mechanism", ["dp_gd", pytest.param("dp_sgd", marks=pytest.mark.slow)])
def test_the_proximal_term_holds_sites_back_and_never_turns_them_round(train, mechanism):
    one_step = ("federation.rounds=1", "federation.local_steps=1", "engine.workers=1")
    settings = (INJECTED, f"privacy={mechanism}", "synthesis.use=[whiten]", *one_step)
    free = train(*settings).model["head"]
    held = train(*settings, "federation.strategy=FedProx", "federation.proximal_mu=0.1").model["head"]
    # Both start from zeros and see the same gradient and noise.
    assert 0 < held @ free <= free @ free


def test_several_local_steps_are_charged_each(train):
    run = train("federation.local_steps=3")
    assert_within_budget(run)
    assert run.record.privacy.local_steps == 3
    steps = [event.steps for event in spent(run, "site-1") if event.mechanism == "gradient"]
    assert steps == [3, 3, 3]


def test_partial_participation_charges_a_site_for_its_own_rounds_only(train):
    run = train("federation.fraction=0.5", "federation.rounds=5")
    assert_within_budget(run)
    rounds = [site.rounds for site in run.sites]
    # Two of four sites in each of five rounds, and all of them in the private mean.
    assert sum(rounds) == 4 + 5 * 2
    assert len(set(rounds)) > 1
    price = {site.rounds: site.epsilon for site in run.sites}
    assert [price[count] for count in sorted(price)] == sorted(price.values())


def test_a_site_with_a_smaller_budget_says_so_and_the_others_go_on_without_it(train, averaged):
    run = train(INJECTED, "federation.site_budgets=[6,6,6,1]")
    *others, refusing = run.sites
    assert (refusing.site, refusing.refused, refusing.rounds, refusing.epsilon) == ("site-4", True, 0, 0.0)
    assert all((site.refused, site.rounds) == (False, 4) for site in others)
    assert "3 of 4 sites take part" in run.err
    assert "site-4 does not train: budget" in run.err
    assert spent(run, "site-4") == ()
    # The others draw the same noise as with it: what differs is what it would have said.
    assert not np.allclose(run.model["head"], averaged.model["head"])


def test_a_run_that_every_site_refuses_ends_with_3_and_leaves_no_result(simulate):
    run = simulate("federation.site_budgets=[1,1,1,1]")
    assert (run.code, run.out) == (3, "")
    assert "error: every site refuses the run (site-1: budget, site-2: budget, site-3: budget, site-4: budget)" in run.err
    assert not {path.name for path in run.folder.iterdir()} & {"record.json", "report.html", "model.safetensors"}


def test_a_ledger_of_its_own_carries_over_from_run_to_run(simulate, train, training, tmp_path):
    ledgers = tmp_path / "ledgers"
    settings = (f"privacy.ledger={ledgers}", "federation.site_budgets=[6,6,6,6]")
    first = train(*settings, "privacy.target_epsilon=4.5")
    assert "over all runs in the site's ledger" in first.record.privacy.guarantee
    same = simulate(*training, *settings, "privacy.target_epsilon=4.5")
    assert same.code == 3
    assert "site-1: budget" in same.err
    half = train(*settings, "privacy.target_epsilon=2.25")
    for site, before in zip(half.sites, first.sites, strict=True):
        events = [event for run in (first, half) for event in spent(run, site.site, ledger=ledgers / site.site)]
        assert before.epsilon == before.epsilon_account <= 4.5
        assert site.epsilon <= 2.25
        assert before.epsilon < site.epsilon_account == epsilon(events, delta=1e-4, accountant="pld") <= 6
        squares = gaussian_mu(epsilon=6.0, delta=1e-4) ** 2 - gaussian_mu(epsilon=site.epsilon_account, delta=1e-4) ** 2
        assert site.budget_left == pytest.approx(gaussian_epsilon(mu=math.sqrt(squares), delta=1e-4), rel=1e-3)
    assert "(epsilon=6, delta=1e-04)" in half.record.privacy.guarantee
    shown = math.ceil(max(site.epsilon_account for site in half.sites) * 100 - 1e-6) / 100
    assert f"schedule cost so far: epsilon {shown:g}" in half.record.privacy.guarantee
    assert {(site.cap_epsilon, site.cap_delta) for site in half.sites} == {(6.0, 1e-4)}


def test_a_ledger_of_images_that_carries_over_names_what_a_patient_paid_in_all_runs(train, cli, tmp_path):
    ledgers = tmp_path / "ledgers"
    settings = (f"privacy.ledger={ledgers}", "federation.site_budgets=[6,6,6,6]", "privacy.unit=image")
    first, second = (train(*settings, f"privacy.target_epsilon={target}") for target in (4, 2.25))
    for site, before in zip(second.sites, first.sites, strict=True):
        events = [event for run in (first, second) for event in spent(run, site.site, ledger=ledgers / site.site)]
        assert site.patient_epsilon_account == patient_epsilon(events, delta=1e-4, accountant="pld")
        assert site.patient_epsilon_account > max(before.patient_epsilon, site.patient_epsilon, site.epsilon_account)
    shown = math.ceil(max(site.patient_epsilon_account for site in second.sites) * 100 - 1e-6) / 100
    assert f"no cap is set, and the schedule cost so far is epsilon {shown:g}" in second.record.privacy.guarantee
    code, out, _ = cli("privacy", "show", str(ledgers / "site-1"))
    assert code == 0
    assert "a patient with the largest allowed number of images has paid" in " ".join(out.split())


def test_a_ledger_that_carries_over_keeps_the_first_runs_target_as_its_cap(train, simulate, training, tmp_path):
    settings = (f"privacy.ledger={tmp_path / 'ledgers'}",)
    first = train(*settings, "privacy.target_epsilon=4")
    assert {site.cap_epsilon for site in first.sites} == {4.0}
    ledger = export_ledger(tmp_path / "ledgers" / "site-1")
    assert [site.cap_since for site in first.sites if site.site == "site-1"] == [ledger[1].at]
    assert f"by the cap that the ledger enforces (since {ledger[1].at[:10]}" in first.record.privacy.guarantee
    assert any("Whether a site refuses a run" in sentence for sentence in first.record.privacy.not_covered)
    more = simulate(*training, *settings, "privacy.target_epsilon=6")
    assert (more.code, "site-1: budget" in more.err) == (3, True)
    looser = simulate(*training, *settings, "privacy.target_epsilon=1", "federation.site_budgets=[4,4,4,5]")
    assert looser.code == 3
    assert "federation.site_budgets=[4.0, 4.0, 4.0, 5.0] must not loosen the caps [4.0, 4.0, 4.0, 4.0]" in looser.err
    assert not (looser.folder / "record.json").exists()
    other_delta = simulate(*training, *settings, "privacy.target_epsilon=1", "privacy.delta=1e-3")
    assert (other_delta.code, "privacy.delta=0.001 must be 0.0001, as in the first run" in other_delta.err) == (3, True)


@pytest.mark.parametrize("change", ["federation.num_sites=3", "seed=1", "federation.partition=size"])
def test_a_ledger_that_carries_over_refuses_another_division_of_its_patients(simulate, table, tmp_path, change):
    settings = ("data=csv", f"data.root={table.path}", f"privacy.ledger={tmp_path / 'ledgers'}", "privacy.target_epsilon=2")
    first = simulate(*settings, "federation.num_sites=2")
    assert first.code == 0, first.err
    # The table's cohort is not public: what its accounts cost stays at the sites.
    assert {(site.epsilon_account, site.budget_left, site.account_published) for site in first.sites} == {(None, None, False)}
    assert "schedule cost" not in first.record.privacy.guarantee
    other = simulate(*settings, "federation.num_sites=2", change)
    assert other.code == 3
    assert "belongs to another division of patients over sites" in other.err
    assert not (other.folder / "sites").exists()


def test_a_fresh_ledger_for_every_run_is_the_default(plain, again):
    assert [site.epsilon_account for site in again.sites] == [site.epsilon for site in plain.sites]


def test_injected_noise_is_refused_on_a_cohort_that_is_not_public(simulate, table):
    run = simulate("data=csv", f"data.root={table.path}", "federation.num_sites=2", INJECTED)
    assert run.code == 3
    assert "error: every site refuses the run (site-1: policy, site-2: policy)" in run.err
    assert not (run.folder / "record.json").exists()


def test_training_without_noise_is_refused_on_a_cohort_that_is_not_public(simulate, table):
    run = simulate("data=csv", f"data.root={table.path}", "federation.num_sites=2", "privacy.target_epsilon=inf")
    assert run.code == 3
    assert "site-1: policy" in run.err


def test_a_table_runs_from_end_to_end_and_is_scored_on_its_own_split(published, phantom):
    assert_within_budget(published)
    record = published.record
    assert record.data.source == "csv"
    assert sum(site.images for site in record.data.sites) == sum(len(site) for site in phantom.sites)
    assert set(record.evaluation) == {"val"}
    assert record.evaluation["val"].n_images == len(phantom.external)
    assert record.evaluation["val"].auroc is not None


def test_metrics_of_patients_who_are_not_public_are_withheld_unless_asked_for(private):
    metrics = private.record.evaluation["val"]
    assert (metrics.auroc, metrics.auroc_ci, metrics.auprc_malignant, metrics.brier) == (None, None, None, None)
    assert "withheld" in (private.folder / "report.html").read_text(encoding="utf-8")


def test_a_cohort_that_is_not_public_shows_neither_balance_nor_hash(private, published):
    assert [site.malignant_fraction for site in private.record.data.sites] == [None, None]
    assert published.record.data.fingerprint != private.record.data.fingerprint


def test_a_table_declared_public_shows_its_balance(succeed, table, phantom):
    run = succeed("data=csv", f"data.root={table.path}", "federation.num_sites=1", "data.public=true")
    labels = np.concatenate([site.labels for site in phantom.sites])
    assert run.record.data.sites[0].malignant_fraction == pytest.approx(labels.mean())


def test_nothing_in_a_run_folder_names_a_patient_or_an_image(private, simulate, table):
    refusing = simulate("data=csv", f"data.root={table.path}", "federation.num_sites=2", INJECTED)
    for run in (private, refusing):
        for path in run.folder.rglob("*"):
            content = path.read_bytes() if path.is_file() else str(path.relative_to(run.folder)).encode()
            assert [name for name in table.planted if name.encode() in content] == [], path
        assert [name for name in table.planted if name in run.err or name in run.out] == []


def test_a_site_of_one_class_trains_and_only_its_own_log_tells(succeed, make_table, phantom, tmp_path):
    both = phantom.sites[0]
    one = replace(both, labels=np.full_like(both.labels, MALIGNANT))
    told, logs = [], []
    for name, cohort in (("both", both), ("one", one)):
        table = make_table(tmp_path / name, [("train", cohort), ("val", phantom.external)])
        run = succeed("data=csv", f"data.root={table.path}", "federation.num_sites=1")
        record = comparable(run.record)
        # What the two must differ in: where the table is, a random identifier, and what was learnt.
        for changing in ("config_hash", "evaluation"):
            del record[changing]
        del record["data"]["fingerprint"]
        lines = [line.replace(str(run.folder), "") for line in run.err.splitlines() if not line.startswith("features of ")]
        told.append((record, lines))
        logs.append("all training labels are of one class" in (run.folder / "run.log").read_text(encoding="utf-8"))
        assert "one class" not in (run.folder / "report.html").read_text(encoding="utf-8")
    assert told[0] == told[1]
    assert logs == [False, True]


def test_one_site_holds_everybody(succeed, plain):
    run = succeed("federation.num_sites=1")
    assert_within_budget(run)
    assert run.record.data.sites[0].images == sum(site.images for site in plain.record.data.sites) == 96
    assert run.record.federation.sites == 1


@pytest.mark.parametrize(
    ("head", "unit"),
    [
        ("linear", "patient"),
        ("mlp", "image"),
        pytest.param("linear", "image", marks=pytest.mark.slow),
        pytest.param("mlp", "patient", marks=pytest.mark.slow),
    ],
)
def test_poisson_training_takes_any_head_and_unit_within_budget(train, head, unit):
    settings = ("privacy=dp_sgd", f"model.head={head}", "model.hidden=4", "federation.num_sites=2", "engine.workers=1")
    run = train(*settings, f"privacy.unit={unit}", "privacy.batch_size=8", "federation.local_steps=2", "federation.rounds=2")
    assert run.record.privacy.unit == unit
    assert run.record.model.parameters_trained == {"linear": 21, "mlp": 20 * 4 + 4 + 4 * 2 + 2}[head]
    for site, of in zip(run.sites, run.record.data.sites, strict=True):
        path = run.folder / "sites" / site.site / "ledger"
        with Ledger.open(path, site=site.site, budget=Budget(max_epsilon=6, delta=1e-4), filter="declared") as ledger:
            events = ledger.events(run_id=run.record.run_id)
        assert {event.sample_rate for event in events if event.mechanism == "gradient"} == {8 / of.images}
        assert site.epsilon == epsilon(events, delta=1e-4, accountant="pld") <= 6


def test_a_guarantee_for_images_prices_the_patient_too(train):
    run = train("privacy.unit=image", "privacy.max_images_per_patient=2")
    for site in run.sites:
        assert site.patient_epsilon == patient_epsilon(spent(run, site.site), delta=1e-4, accountant="pld")
        assert site.patient_epsilon > site.epsilon
    assert "Each image, not each patient, is protected" in run.record.privacy.guarantee
    assert "for a patient with 2 images epsilon is " in run.record.privacy.guarantee


def test_no_patient_has_more_images_than_allowed(succeed, plain):
    run = succeed("privacy.max_images_per_patient=1")
    for site, before in zip(run.record.data.sites, plain.record.data.sites, strict=True):
        assert site.images == site.patients == before.patients
    assert_within_budget(run)


def test_pretraining_changes_where_sites_start_and_the_record_says_so(train, averaged):
    fresh = train(INJECTED, "synthesis.use=[whiten]", "federation.strategy=FedAvg")
    assert fresh.record.synthesis.use == ("whiten",)
    assert averaged.record.synthesis.use == ("whiten", "pretrain")
    np.testing.assert_array_equal(fresh.model["whitening.components"], averaged.model["whitening.components"])
    np.testing.assert_array_equal(fresh.model["centre"], averaged.model["centre"])
    assert not np.array_equal(fresh.model["head"], averaged.model["head"])


def test_a_folder_of_synthetic_images_is_used_and_called_unknown(train, phantom, tmp_path, make_table):
    made = make_table(tmp_path, [("train", phantom.test)])
    folder = tmp_path / "synthetic"
    folder.mkdir()
    for row, (image, label) in enumerate(zip(made.images, phantom.test.labels.tolist(), strict=True)):
        (tmp_path / image).rename(folder / f"{row}_{'malignant' if label == MALIGNANT else 'benign'}.png")
    run = train("synthesis.source=folder", f"synthesis.root={folder}")
    synthesis = run.record.synthesis
    assert (synthesis.source, synthesis.images, synthesis.provenance.trained_on) == (
        "folder",
        len(phantom.test),
        "unknown data",
    )
    assert math.isinf(synthesis.provenance.epsilon)
    assert "without differential privacy" in run.record.privacy.not_covered[-1]


def test_without_a_share_of_the_budget_the_private_mean_is_skipped(train):
    run = train("privacy.mean_fraction=0")
    assert_within_budget(run)
    assert {site.rounds for site in run.sites} == {3}
    np.testing.assert_array_equal(run.model["centre"], np.zeros(20, np.float32))
    assert "private mean" not in run.err


def test_every_round_prints_what_each_site_has_spent_and_has_left(plain):
    for index in range(1, 4):
        line = next(line for line in plain.err.splitlines() if line.startswith(f"round {index}/3"))
        for site in plain.sites:
            shown = line.split(f"{site.site} ")[1].split(",")[0]
            cost, left = (float(figure) for figure in shown.rstrip(")").split(" (left "))
            # Three decimals, never to the good side.
            assert site.epsilon_after_round[index] <= cost + 1e-8 <= site.epsilon_after_round[index] + 1e-3 + 1e-8
            # What fits beside what was declared, in squares: more than the difference.
            squares = (
                gaussian_mu(epsilon=6.0, delta=1e-4) ** 2
                - gaussian_mu(epsilon=site.epsilon_after_round[index], delta=1e-4) ** 2
            )
            assert left <= gaussian_epsilon(mu=max(squares, 0.0) ** 0.5, delta=1e-4) + 1e-3 if squares > 1e-9 else left <= 0.1


def test_predictions_are_the_scores_that_the_record_was_made_from(published, table, phantom, cli):
    images = [table.path.parent / image for image in table.images[-len(phantom.external) :]]
    code, out, err = cli("predict", str(published.folder), "--json", *map(str, images))
    assert code == 0, err
    scores = json.loads(out)
    assert list(scores) == [str(image) for image in images]
    again = evaluate_scores(list(scores.values()), phantom.external.labels, phantom.external.patients, seed=0)
    recorded = published.record.evaluation["val"]
    assert again.auroc == recorded.auroc
    assert again.brier == pytest.approx(recorded.brier, abs=1e-6)


def test_a_prediction_says_that_it_is_no_diagnosis(private, table, cli):
    code, out, err = cli("predict", str(private.folder), str(table.path.parent / table.images[0]))
    assert code == 0
    assert 0 <= float(out.split()[0]) <= 1
    assert "not a medical device" in err


def test_a_sweep_runs_every_value_and_compares_them(cli, small, tmp_path):
    sweep = tmp_path / "sweep"
    settings = (*small, f"hydra.sweep.dir={sweep}", "privacy.target_epsilon=1,6", "federation.rounds=1")
    code, out, err = cli("simulate", "-m", *settings, "--json")
    assert code == 0, err
    records = json.loads(out)
    assert [record["privacy"]["target_epsilon"] for record in records] == [1.0, 6.0]
    for number, record in enumerate(records):
        assert json.loads((sweep / str(number) / "record.json").read_text(encoding="utf-8")) == record
        assert record["run_id"] in (sweep / "comparison.html").read_text(encoding="utf-8")
    assert f"[2/2] {' '.join(small)}" in err


def test_a_sweep_takes_every_combination_and_may_be_asked_for_between_settings(cli, small):
    code, out, err = cli("simulate", *small, "seed=0,1", "-m", "privacy.target_epsilon=1,6", "--cfg", "job")
    assert code == 0, err
    asked = [yaml.safe_load(text) for text in out.split("---\n")]
    assert [(job["seed"], job["privacy"]["target_epsilon"]) for job in asked] == [(0, 1), (0, 6), (1, 1), (1, 6)]


def test_json_is_the_record_and_nothing_else_on_standard_output(again):
    assert json.loads(again.out) == again.record.as_dict()
    assert again.err == ""


def test_the_results_table_is_on_standard_output(plain):
    assert "Privacy, unit: patient" in plain.out
    assert "Guarantee: Each patient's data" in plain.out


def test_cfg_prints_the_configuration_and_runs_nothing(simulate):
    run = simulate("privacy.target_epsilon=2", "--cfg", "job")
    assert (run.code, run.err) == (0, "")
    assert "target_epsilon: 2" in run.out
    assert "hydra" not in run.out
    assert not run.folder.exists()


def test_the_configuration_in_the_run_folder_is_the_one_that_the_record_names(plain):
    values = yaml.safe_load((plain.folder / "config.yaml").read_text(encoding="utf-8"))
    assert Settings.from_mapping(values).sha256() == plain.record.config_hash


def test_the_demo_is_a_run_like_any_other(succeed):
    run = succeed(command="demo")
    assert_within_budget(run)
    assert run.record.synthesis.use == ("whiten",)
    assert "no patient's data is involved" in run.err


def test_a_report_shows_a_finished_run_and_compares_several(plain, injected, cli, tmp_path):
    page = tmp_path / "comparison.html"
    code, out, err = cli("report", str(plain.folder), str(injected.folder), "--output", str(page))
    assert code == 0, err
    assert "Privacy, unit: patient" in out
    content = page.read_text(encoding="utf-8")
    assert plain.record.run_id in content
    assert injected.record.run_id in content


def interrupt(process, log: Path, awaited: str) -> tuple[int, str, str]:
    """Send Ctrl-C once the run's log has a line, and wait for the end."""
    deadline = time.monotonic() + 120
    while not (log.exists() and awaited in log.read_text(encoding="utf-8")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "the run never came so far"
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


@pytest.mark.parametrize(
    ("overrides", "awaited"),
    [
        pytest.param(
            ("data.images_train=1200", "engine.cache=CACHE"),
            "features of 1200 training images",
            id="features",
            marks=pytest.mark.slow,
        ),
        pytest.param(("federation.rounds=2000",), "round 1/2000", id="rounds"),
    ],
)
def test_an_interrupted_run_says_one_line_and_leaves_no_result(start_cli, small, tmp_path, overrides, awaited):
    overrides = [override.replace("CACHE", str(tmp_path / "cache")) for override in overrides]
    folder = tmp_path / "run"
    process = start_cli("simulate", *small, "--json", *overrides, f"hydra.run.dir={folder}")
    code, out, err = interrupt(process, folder / "run.log", awaited)
    kept = f"interrupted; finished rounds are kept: mammo-fed simulate --resume {folder}\n"
    assert (code, out, err) == (130, "", kept)
    assert not {path.name for path in folder.iterdir()} & {"record.json", "report.html", "model.safetensors"}
    assert not list(folder.glob(".*"))
    assert not list((tmp_path / "cache").rglob("*.tmp"))


@pytest.mark.parametrize(("noise", "said"), [("float", True), ("secure", False)])
def test_relation_of_a_runs_epsilon_to_floating_point_is_in_its_record(train, noise, said):
    run = train(
        *("privacy=dp_sgd", f"privacy.noise={noise}", "privacy.batch_size=8", "federation.num_sites=2"),
        *("federation.local_steps=2", "federation.rounds=1"),
    )
    assert run.record.privacy.guaranteed
    assert any("privacy.noise=float" in sentence for sentence in run.record.privacy.not_covered) is said
    assert ("in exact arithmetic" in run.record.privacy.guarantee) is said
    assert ("in floating point" in run.record.privacy.mechanism) is said
