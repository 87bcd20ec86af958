"""Whether a site would take a run is answered from its policy and ledger, charged nothing, and tells no more than declaring."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from declarations import declared
from flwr.app import ConfigRecord, RecordDict

from mammo_fed.client.policy import SiteFile
from mammo_fed.client.rounds.planned import MOST_A_DAY, check_planned, plan_refused
from mammo_fed.errors import (
    DataError,
    InvalidSetting,
    LedgerError,
    MammoFedError,
    PolicyRefused,
    PrivacyRefused,
    VersionMismatch,
)
from mammo_fed.federation.protocol.plan_messages import (
    PlanAnswer,
    pack_plan,
    pack_plan_answer,
    read_plan,
    read_plan_answer,
)
from mammo_fed.federation.protocol.site_schedule import plan_for_site
from mammo_fed.federation.protocol.task import Declaration
from mammo_fed.privacy.ledger.ledger import Budget, Ledger
from mammo_fed.server.run import share_of
from mammo_fed.settings.compose import compose_settings
from mammo_fed.simulations.launch import site_file


@pytest.fixture(scope="module")
def settings(small):
    return compose_settings([*small]).settings


@pytest.fixture
def site(settings, tmp_path, cache) -> SiteFile:
    from mammo_fed.data.cache import ArrayCache
    from mammo_fed.data.run_cohorts import load_pool

    store = ArrayCache(cache)
    pool = load_pool(settings.data, share_of(settings), cache=store)
    file = site_file(settings, pool, 0, folder=tmp_path / "site", cache=store)
    return replace(file, policy=replace(file.policy, max_epsilon=6.0, public_account=False))


@pytest.fixture(scope="module")
def declaration(settings) -> Declaration:
    return declared(run_id="planned", model=settings.model, delta=settings.privacy.delta, target_epsilon=3.0, rounds=3)


def charge(site: SiteFile, declaration: Declaration) -> None:
    """All of a run, in the site's ledger."""
    policy = site.policy
    events = plan_for_site(
        declaration, public_images=policy.public_images, max_images_per_patient=policy.max_images_per_patient
    ).events()
    budget = Budget(max_epsilon=policy.max_epsilon, delta=policy.delta)
    with Ledger.open(Path(site.ledger), site=site.site, budget=budget, filter="gdp") as ledger:
        ledger.declare(run_id="before", schedule=events, patients=["A"], account=policy.account)
        ledger.settle(ledger.reserve(run_id="before", round_index=0, task_hash="t", events=events), b"")


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())} if folder.exists() else {}


def answer(site: SiteFile, declaration: Declaration) -> PlanAnswer:
    try:
        check_planned(site, declaration, public=False)
    except MammoFedError as error:
        return plan_refused(site, error)
    return PlanAnswer(site=site.site)


def test_plan_is_answered_by_a_site_without_a_ledger_and_makes_none(site, declaration):
    assert answer(site, declaration).reason is None
    assert answer(site, replace(declaration, target_epsilon=6.5)).reason == "budget"
    assert answer(site, replace(declaration, noise="float")).reason == "policy"
    assert content(Path(site.ledger)) == {}


def test_plan_leaves_the_ledger_as_it_is_and_says_yes_to_what_fits(site, declaration):
    charge(site, declaration)
    before = content(Path(site.ledger))
    told = [answer(site, replace(declaration, target_epsilon=target)).reason for target in (1.0, 4.7, 4.85, 6.0)]
    assert told == [None, None, "budget", "budget"]
    assert content(Path(site.ledger)) == before


def test_plan_tells_what_fits_where_the_account_is_published_only(site, declaration):
    charge(site, declaration)
    much = replace(declaration, target_epsilon=6.0)
    assert answer(site, much).fits is None
    loose = replace(site, policy=replace(site.policy, public_account=True))
    fits = answer(loose, much).fits
    assert fits is not None
    assert answer(loose, replace(declaration, target_epsilon=fits)).reason is None
    # The site's own people read it in any case.
    with pytest.raises(PrivacyRefused, match=f"fits with privacy.target_epsilon={fits:g} or less"):
        check_planned(site, much, public=False)


def test_plan_does_not_depend_on_who_is_in_another_account(site, declaration):
    """A declaration would merge the accounts where a patient is in both; a plan looks at no patient."""
    budget = Budget(max_epsilon=6.0, delta=site.policy.delta)
    events = plan_for_site(declaration, public_images=site.policy.public_images, max_images_per_patient=16).events()
    with Ledger.open(Path(site.ledger), site=site.site, budget=budget, filter="gdp") as ledger:
        ledger.declare(run_id="other", schedule=events, patients=["A"], account="other-study")
        ledger.settle(ledger.reserve(run_id="other", round_index=0, task_hash="t", events=events), b"")
    assert answer(site, replace(declaration, target_epsilon=5.9)).reason is None


def test_plan_is_refused_where_the_policy_allows_none_and_after_so_many_in_a_day(site, declaration):
    strict = replace(site, policy=replace(site.policy, allow_plans=False))
    with pytest.raises(PolicyRefused, match="allow_plans is false"):
        check_planned(strict, declaration, public=False)
    told = [answer(site, declaration).reason for _ in range(MOST_A_DAY + 2)]
    assert told == [None] * MOST_A_DAY + ["policy"] * 2


def test_plan_of_a_ledger_that_is_gone_is_refused(site, declaration):
    Path(site.folder).mkdir(parents=True, exist_ok=True)
    (Path(site.folder) / "ledger-head").write_text("1:00\n")
    with pytest.raises(LedgerError, match="its ledger is gone"):
        check_planned(site, declaration, public=False)
    assert content(Path(site.ledger)) == {}


def test_plan_messages_come_back_as_they_were(declaration):
    assert read_plan(pack_plan(declaration)) == declaration
    for told in (PlanAnswer(site="a"), PlanAnswer(site="a", reason="budget", fits=4.7)):
        assert read_plan_answer(pack_plan_answer(told)) == told


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"site": "a"',
        '{"site": "../a", "reason": null, "fits": null}',
        '{"site": "a", "reason": "patients", "fits": null}',
        '{"site": "a", "reason": null, "fits": -1.0}',
        '{"site": "a", "reason": null, "fits": NaN}',
        '{"site": "a", "reason": null, "fits": 1e999}',
        '{"site": "a", "reason": null, "fits": "4"}',
        '{"site": "a", "patients": ["x"]}',
        "[" * 100_000,
        '{"site": "' + "a" * 200_000 + '"}',
    ],
)
def test_plan_answer_of_a_hostile_site_is_no_answer(text):
    message = pack_plan_answer(PlanAnswer(site="a"))
    message["plan"] = ConfigRecord({"json": text})
    with pytest.raises(DataError):
        read_plan_answer(message)


def test_plan_messages_with_more_or_of_another_version_are_refused(declaration):
    more = pack_plan(declaration)
    more["beside"] = ConfigRecord({"x": 1})
    with pytest.raises(DataError, match="alone"):
        read_plan(more)
    other = pack_plan(declaration)
    other["protocol"] = ConfigRecord({"version": 99})
    with pytest.raises(VersionMismatch):
        read_plan(other)
    with pytest.raises((DataError, InvalidSetting, VersionMismatch)):
        read_plan(RecordDict({"plan": ConfigRecord({"json": 7})}))
