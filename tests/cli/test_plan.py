"""`mammo-fed privacy plan`: what a run costs, what its own ledger leaves, and one line for whatever does not fit together."""

from __future__ import annotations

import json
import math
import time

import pytest

from mammo_fed.privacy.accounting.composition import gaussian_epsilon, gaussian_mu
from mammo_fed.privacy.accounting.filters import adaptive_epsilon, as_steps, open_filter
from mammo_fed.privacy.accounting.pricing import epsilon, patient_epsilon
from mammo_fed.privacy.events import PrivacyEvent
from mammo_fed.privacy.ledger.ledger import Budget, Ledger
from mammo_fed.privacy.schedule import plan_schedule

DELTA = 1e-4
SAMPLED = ("--mechanism", "dp_sgd", "--images", "1100")


def release(*, noise: float, steps: int = 1, sample_rate: float = 1.0, unit: str = "patient") -> PrivacyEvent:
    return PrivacyEvent(
        mechanism="gradient",
        noise_multiplier=noise,
        steps=steps,
        sample_rate=sample_rate,
        unit=unit,
        clipping_norm=1.0,
        max_images_per_patient=4,
    )


@pytest.fixture
def plan(cli):
    """`plan("--rounds", 3)`: the plan as JSON."""

    def run(*options: object) -> dict[str, object]:
        code, out, err = cli("privacy", "plan", "--json", *map(str, options))
        assert code == 0, err
        return json.loads(out)

    return run


@pytest.fixture
def table(cli):
    """The plan as people read it, on one line."""

    def run(*options: object) -> str:
        code, out, err = cli("privacy", "plan", *map(str, options))
        assert code == 0, err
        return " ".join(out.split())

    return run


@pytest.fixture
def refused(cli):
    """The one line that a refused plan says."""

    def run(*options: object) -> str:
        code, out, err = cli("privacy", "plan", *map(str, options))
        assert (code, out, len(err.splitlines())) == (2, "", 1), err
        return err

    return run


@pytest.fixture
def ledger(tmp_path):
    """A folder whose account has been charged 4 of 6 by one full-batch run, and another that was declared and never ran."""
    folder = tmp_path / "ledger"
    with Ledger.open(folder, site="north", budget=Budget(max_epsilon=6.0, delta=DELTA), filter="gdp") as opened:
        noise = 1 / gaussian_mu(epsilon=4.0, delta=DELTA)
        opened.declare(run_id="a", schedule=[release(noise=noise)], patients=["p1"])
        opened.reserve(run_id="a", round_index=0, task_hash="t", events=[release(noise=noise)])
        opened.declare(run_id="b", schedule=[release(noise=2 * noise)], patients=["p1"])
    return folder


def test_planner_leaves_what_a_gdp_filter_leaves(plan):
    found = plan("--budget", 6, "--target-epsilon", 4)
    rest = math.sqrt(gaussian_mu(epsilon=6.0, delta=DELTA) ** 2 - gaussian_mu(epsilon=4.0, delta=DELTA) ** 2)
    assert found["refused"] is None
    assert found["left"] == pytest.approx(gaussian_epsilon(mu=rest, delta=DELTA), abs=1e-3)


def test_planner_counts_what_the_ledgers_account_was_charged_by_its_own_filter(plan, ledger):
    found = plan("--budget", 6, "--ledger", ledger, "--target-epsilon", 2)
    squares = gaussian_mu(epsilon=6.0, delta=DELTA) ** 2 - sum(gaussian_mu(epsilon=e, delta=DELTA) ** 2 for e in (4.0, 2.0))
    assert found["left"] == pytest.approx(gaussian_epsilon(mu=math.sqrt(squares), delta=DELTA), abs=1e-3)


def test_planner_says_plainly_that_the_site_would_refuse_the_run_itself(plan, table, ledger):
    options = ("--budget", 6, "--ledger", ledger, "--target-epsilon", 5.5)
    assert "must be at most max_epsilon=6" in plan(*options)["refused"]
    assert "a site with this budget would refuse this run" in table(*options)
    rest = math.sqrt(gaussian_mu(epsilon=6.0, delta=DELTA) ** 2 - gaussian_mu(epsilon=4.0, delta=DELTA) ** 2)
    assert plan(*options)["left"] == pytest.approx(gaussian_epsilon(mu=rest, delta=DELTA), abs=1e-3)
    assert "full-batch steps only" in plan(*SAMPLED, *options)["refused"]


def test_planner_counts_steps_that_were_declared_and_never_run_where_the_filter_charges_them(plan, tmp_path):
    folder, steps = tmp_path / "ledger", release(noise=3.0, steps=40, sample_rate=0.1)
    with Ledger.open(folder, site="north", budget=Budget(max_epsilon=12.0, delta=DELTA), filter="declared") as opened:
        opened.declare(run_id="a", schedule=[steps], patients=["p1"])
        opened.reserve(run_id="a", round_index=0, task_hash="t", events=[release(noise=3.0, sample_rate=0.1)])
    found = plan("--budget", 12, "--ledger", folder, "--rounds", 2, "--noise-multiplier", 10, "--mean-fraction", 0)
    order = open_filter("declared", max_epsilon=12.0, delta=DELTA)
    largest = release(noise=1 / gaussian_mu(epsilon=found["left"], delta=DELTA))
    total = as_steps([steps, release(noise=10.0, steps=2), largest])
    assert adaptive_epsilon(order, total, delta=DELTA) == pytest.approx(12.0, rel=1e-4)


def test_planner_with_a_noise_includes_the_private_mean_as_a_run_does(plan):
    target = plan("--target-epsilon", 6)
    found = plan("--noise-multiplier", target["noise_multiplier"], "--rounds", target["rounds"])
    assert found["mean_noise_multiplier"] == pytest.approx(target["mean_noise_multiplier"])
    assert found["epsilon"] == pytest.approx(6.0)
    without = plan("--noise-multiplier", target["noise_multiplier"], "--rounds", target["rounds"], "--mean-fraction", 0)
    assert without["mean_noise_multiplier"] is None
    assert without["epsilon"] < found["epsilon"]


def test_planner_echoes_a_noise_as_it_was_given(table):
    assert "5.12345678 (as given)" in table("--noise-multiplier", "5.12345678", "--rounds", 3)


def test_planner_prices_a_patient_of_sampled_images_by_pld_and_says_so(plan, table):
    options = (*SAMPLED, "--unit", "image", "--accountant", "rdp", "--rounds", 1, "--local-steps", 5, "--target-epsilon", 1)
    found = plan(*options)
    schedule = plan_schedule(
        unit="image",
        target_epsilon=1.0,
        delta=DELTA,
        accountant="rdp",
        rounds=1,
        local_steps=5,
        sample_rate=128 / 1100,
        mean_fraction=0.1,
        clipping_norm=1.0,
        max_images_per_patient=2,
    )
    assert found["epsilon_of_patient_with_images"]["2"] == patient_epsilon(schedule.events(), delta=DELTA, accountant="pld")
    assert (found["accountant"], found["accountant_of_patient"]) == ("rdp", "pld")
    assert "a patient with k images (by pld)" in table(*options)


def test_planner_marks_a_loose_bound_as_such(plan, table):
    options = ("--noise-multiplier", 0.01, "--rounds", 3)
    assert plan(*options)["coarse"] is True
    assert "at most 33341.1908 for one patient" in table(*options)
    assert plan("--rounds", 3)["coarse"] is False


@pytest.mark.parametrize("sampled", [(), SAMPLED])
def test_planner_answers_absurd_sizes_in_seconds(plan, refused, sampled):
    started = time.process_time()
    found = plan(*sampled, "--rounds", 100_000, "--local-steps", 10)
    assert found["rounds_shown"][-1] == 100_000
    assert len(found["epsilon_after_round"]) == len(found["rounds_shown"]) < 100
    assert found["epsilon_after_round"] == sorted(found["epsilon_after_round"])
    assert "--rounds=1000000000 times --local-steps=" in refused(*sampled, "--rounds", 10**9)
    assert time.process_time() - started < 60


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--rounds", 0), "--rounds=0 must be at least 1"),
        (("--local-steps", 0), "--local-steps=0 must be at least 1"),
        (("--delta", 2), "--delta=2.0 must be above 0 and below 1"),
        (("--target-epsilon", 0), "--target-epsilon=0.0 must be above 0"),
        (("--target-epsilon", "nan"), "--target-epsilon=nan must be above 0"),
        (("--mean-fraction", 1), "--mean-fraction=1.0 must be at least 0 and below 1"),
        (("--noise-multiplier", 0, "--rounds", 3), "--noise-multiplier=0.0 must be a finite number above 0"),
        (("--noise-multiplier", 3), "--rounds must be given with --noise-multiplier"),
        (("--mean-noise-multiplier", 3), "--mean-noise-multiplier=3.0 has no effect here: it goes with --noise-multiplier"),
        (("--images", 3), "--images=3 has no effect here: it goes with --mechanism dp_sgd"),
        (("--batch-size", 3), "--batch-size=3 has no effect here"),
        (("--filter", "gdp"), "--filter=gdp has no effect here: it goes with --budget"),
        (("--mechanism", "dp_sgd"), "--images must be given with --mechanism dp_sgd"),
        ((*SAMPLED, "--accountant", "gdp"), "--accountant=gdp must be pld, rdp or prv"),
        ((*SAMPLED, "--noise-multiplier", 2, "--rounds", 3), "--mean-noise-multiplier must be given"),
        (("--budget", -1), "--budget=-1.0 must be at least 0"),
        (("--plot", "/proc/nowhere/plot.svg"), "--plot=/proc/nowhere/plot.svg cannot be written"),
        (("--budget", 3, "--ledger", "/nowhere"), "--ledger=/nowhere must be a ledger's folder"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, tuple) else "",
)
def test_planner_names_the_option_that_does_not_fit(refused, options, said):
    assert said in refused(*options)


def test_planner_names_the_options_that_clash_with_the_ledger(refused, ledger):
    there = ("--ledger", ledger)
    assert "has no effect here: it goes with --budget" in refused(*there)
    assert "--unit=image must be patient, the unit of the account" in refused(*there, "--budget", 6, "--unit", "image")
    assert "--delta=0.001 must be 0.0001, the delta of the account" in refused(*there, "--budget", 6, "--delta", 1e-3)
    assert "--account=other must be one of the ledger's: default" in refused(*there, "--budget", 6, "--account", "other")


def test_planner_ends_at_the_price_of_the_whole_run(plan):
    found = plan("--rounds", 7, "--target-epsilon", 3)
    assert found["rounds_shown"] == list(range(8))
    mean = release(noise=found["mean_noise_multiplier"])
    steps = release(noise=found["noise_multiplier"], steps=7)
    assert found["epsilon_after_round"][-1] == found["epsilon"] == epsilon([mean, steps], delta=DELTA, accountant="pld")
