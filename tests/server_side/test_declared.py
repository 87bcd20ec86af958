"""What the server makes of a site's declared schedule: it prices it itself, and keeps out who declares another."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import get_args

import pytest
from declarations import declared, usual_model

from mammo_fed.federation.protocol.reasons import RejectionReason
from mammo_fed.federation.protocol.replies import Accepted
from mammo_fed.federation.protocol.site_schedule import plan_for_site
from mammo_fed.federation.protocol.task import Declaration
from mammo_fed.reporting.record.statements import REJECTIONS, warning_sentences
from mammo_fed.server.rounds.budget import EXCLUDED, BudgetView
from mammo_fed.server.rounds.reply_checks import declaration_fault

IMAGES, PATIENTS = 200, 110


def declaration_of(**changed: object) -> Declaration:
    usual = {"model": replace(usual_model(), flips="none"), "dims": 20, "clipping_norm": 0.45, "batch_size": 20, "rounds": 4}
    return declared(**{**usual, **changed})


def answer(declaration: Declaration) -> Accepted:
    plan = plan_for_site(declaration, public_images=IMAGES, max_images_per_patient=4)
    return Accepted(
        site="north",
        run_id="run1",
        events=plan.events(),
        epsilon=0.0,
        epsilon_account=0.0,
        patient_epsilon_account=0.0,
        budget_left=6.0,
        ledger_head="",
        public_images=IMAGES,
        public_patients=PATIENTS,
    )


def fault(declaration: Declaration, reply: Accepted) -> str:
    found = declaration_fault(declaration, reply)
    return "" if found is None else found.reason


def changed(reply: Accepted, **fields: object) -> Accepted:
    return replace(reply, events=tuple(replace(event, **fields) for event in reply.events))


HONEST = [
    {},
    {"unit": "image"},
    {"target_epsilon": 0.5},
    {"target_epsilon": math.inf},
    {"mean_fraction": 0.0},
    {"mechanism": "dp_sgd", "local_steps": 5},
    {"mechanism": "dp_sgd", "accountant": "rdp", "mean_fraction": 0.0},
    {"mechanism": "dp_sgd", "accountant": "prv", "mean_fraction": 0.0},
    {"mechanism": "dp_sgd", "synthetic_images": 50, "synthetic_sha256": "c" * 64, "sampler": "mixed"},
]


@pytest.mark.parametrize("settings", HONEST, ids=str)
def test_what_an_honest_site_plans_is_taken(settings):
    declaration = declaration_of(**settings)
    assert fault(declaration, answer(declaration)) == ""


@pytest.mark.parametrize("mechanism", ["dp_gd", "dp_sgd"])
@pytest.mark.parametrize("factor", [0.0, 0.5, 0.99, 1.1, 10.0])
def test_noise_that_is_not_what_the_target_takes_is_noticed_either_way(mechanism, factor):
    declaration = declaration_of(mechanism=mechanism)
    reply = answer(declaration)
    events = tuple(replace(event, noise_multiplier=factor * event.noise_multiplier) for event in reply.events)
    assert fault(declaration, replace(reply, events=events)) == "noise"


def test_another_unit_is_noticed():
    declaration = declaration_of()
    assert fault(declaration, changed(answer(declaration), unit="image")) == "unit"


def test_another_clipping_norm_is_noticed():
    declaration = declaration_of()
    assert fault(declaration, changed(answer(declaration), clipping_norm=3.0)) == "clipping"


def test_another_sampling_rate_than_the_public_size_gives_is_noticed():
    declaration = declaration_of(mechanism="dp_sgd", mean_fraction=0.0)
    assert fault(declaration, changed(answer(declaration), sample_rate=0.01)) == "sampling"
    assert fault(declaration, replace(answer(declaration), public_images=10 * IMAGES)) == "sampling"
    full = declaration_of()
    assert fault(full, changed(answer(full), sample_rate=0.5)) == "sampling"


def test_releases_that_were_not_asked_for_are_noticed():
    declaration = declaration_of()
    reply = answer(declaration)
    for events in ((), reply.events[1:], reply.events * 2, tuple(event.repeated(2) for event in reply.events)):
        assert fault(declaration, replace(reply, events=events)) == "schedule"
    shared = changed(reply, noise_shares=3)
    assert fault(declaration, shared) == "schedule"


def test_a_site_that_is_excluded_takes_no_part_and_is_remembered_with_the_reason():
    declaration = declaration_of()
    view = BudgetView(delta=1e-4, accountant="pld")
    view.exclude(answer(declaration), reason="noise")
    assert view.active == ()
    assert view.sites["north"].reason == EXCLUDED
    again = BudgetView(delta=1e-4, accountant="pld")
    again.restore(view.as_dict())
    assert again.sites["north"].rejected == [(-1, "noise")]


def test_a_report_says_why_a_site_was_kept_out_and_which_rounds_were_left_out():
    found = warning_sentences(
        site="north", mismatches=[], unanswered=[], rejected=[(-1, "noise"), (2, "norm"), (3, "norm"), (3, "task")]
    )
    assert len(found) == 3
    assert "north: it was kept out of the run: the noise" in found[0] + found[1] + found[2]
    assert any("in rounds 2, 3: the update was longer" in sentence for sentence in found)


def test_every_reason_has_its_words():
    assert set(REJECTIONS) == set(get_args(RejectionReason))
