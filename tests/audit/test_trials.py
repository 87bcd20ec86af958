"""Many runs of a site, with and without a canary: what is said of them, and that it holds."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from mammo_fed.audit.report import audit_subject
from mammo_fed.audit.subject import Mechanism
from mammo_fed.audit.trials import audit_canary
from mammo_fed.errors import InvalidSetting


@pytest.mark.parametrize("unit", ["patient", "image"])
@pytest.mark.parametrize("kind", ["gradient", "mislabelled", "blank"])
def test_no_bound_of_a_sound_site_passes_its_claim(make_subject, seeded, kind, unit):
    subject = make_subject(unit=unit)
    found = audit_canary(subject, kind, trials=120, seed=1, mechanism=seeded())
    assert not found.rejected
    assert 0 <= found.epsilon_lower < subject.claim.epsilon
    assert 0 <= found.epsilon_assumption_free < subject.claim.epsilon
    assert found.mu_lower < subject.claim.mu
    assert (found.trials, found.held_out) == (120, 60)


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_a_sampled_claim_is_held_against_its_own_curve(make_subject, seeded, kind):
    subject = make_subject(sample_rate=0.5, rounds=1, kind=kind)
    # A hundred runs are too few: by chance alone their bound is 0 in one of several noise streams.
    found = audit_canary(subject, "gradient", trials=400, seed=0, mechanism=seeded())
    assert found.mu_lower is None
    assert not found.rejected
    assert 0 < found.epsilon_lower < subject.claim.epsilon


def test_several_local_steps_hide_nothing_from_the_saturating_server(make_subject, seeded):
    subject = make_subject(rounds=2, local_steps=4)
    found = audit_canary(subject, "gradient", trials=300, seed=0, mechanism=seeded())
    assert found.epsilon_lower > subject.claim.epsilon / 2


def test_more_runs_give_a_closer_bound(make_subject, seeded):
    subject = make_subject(rounds=1)
    few, many = (audit_canary(subject, "gradient", trials=n, seed=0, mechanism=seeded()) for n in (60, 600))
    assert few.epsilon_lower < many.epsilon_lower < subject.claim.epsilon


def test_a_message_that_is_not_finite_refutes_the_claim(make_subject, seeded):
    """A patient whose images make a reply NaN is visible to everybody, noise or not."""

    def leaking(site, *, event, noise):
        held_out = len(site.features) > 14
        return np.full(site.features.shape[1], np.nan if held_out else 0.0, np.float32)

    found = audit_canary(make_subject(), "gradient", trials=100, seed=0, mechanism=seeded(mean=leaking))
    assert found.rejected


def test_too_few_runs_are_refused(make_subject):
    with pytest.raises(InvalidSetting, match=r"trials=19 must be at least 20; check --trials"):
        audit_canary(make_subject(), "gradient", trials=19, seed=0)


def test_a_report_is_strict_json_and_names_every_fault(make_subject, seeded):
    subject = make_subject(rounds=1)
    report = audit_subject(subject, run_id="abc", trials=40, seed=0, mechanism=seeded())
    values = json.loads(json.dumps(report.as_dict(), allow_nan=False))
    assert values["passed"] is True
    assert values["faults"] == []
    assert (values["run_id"], values["site"], values["messages"]) == ("abc", "site-1", 2)
    assert [found["canary"] for found in values["canaries"]] == ["gradient", "mislabelled", "blank"]
    bad = replace(
        report,
        epsilon=report.priced / 2,
        sensitivity={"gradient": 3.0, "mean": math.nan},
        canaries=(replace(report.canaries[0], rejected=True),),
    )
    assert not bad.passed
    assert len(bad.faults) == 4


def test_a_few_runs_are_given_to_every_canary_alike(make_subject, seeded):
    report = audit_subject(make_subject(rounds=1, dims=18), run_id="r", trials=60, seed=0, mechanism=seeded())
    assert [found.trials for found in report.canaries] == [60, 60, 60]


@pytest.mark.slow
def test_two_processes_do_all_the_runs(make_subject):
    told = []
    found = audit_canary(
        make_subject(rounds=1),
        "gradient",
        trials=150,
        seed=0,
        mechanism=Mechanism(),
        jobs=2,
        progress=lambda what, done, total: told.append((what, done, total)),
    )
    assert found.trials == 150
    assert not found.rejected
    assert told[-1] == ("canary: gradient", 225, 225)
    assert [done for _, done, _ in told] == sorted({done for _, done, _ in told})
