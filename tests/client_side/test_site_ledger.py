"""A site and its ledger over several runs: which account and filter it charges, and what it remembers of its own."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mammo_fed.client.policy import SiteFile, read_site_file
from mammo_fed.client.rounds.site import Site
from mammo_fed.data.cache import ArrayCache
from mammo_fed.data.run_cohorts import load_pool
from mammo_fed.errors import InvalidSetting, LedgerError, PolicyRefused
from mammo_fed.federation.protocol.replies import Update
from mammo_fed.federation.protocol.task import Declaration, RoundTask
from mammo_fed.federation.public_start import make_public_start
from mammo_fed.models.classifier import extractor_spec
from mammo_fed.models.features import Extractor
from mammo_fed.privacy.accounting.pricing import patient_epsilon
from mammo_fed.privacy.ledger.report import show_ledger
from mammo_fed.server.run import declare_run, share_of
from mammo_fed.settings.compose import compose_settings
from mammo_fed.simulations.launch import site_file

DIMS = 20


@pytest.fixture(scope="module")
def asked(small, cache):
    """A declaration for one of four hospitals, what comes with it, and the hospital's file as a function of its folder."""
    settings, store = compose_settings([*small]).settings, ArrayCache(cache)
    extractor = Extractor(extractor_spec(settings.model, seed=0), cache=store)
    start = make_public_start(settings, extractor, cache=store)
    pool = load_pool(settings.data, share_of(settings), cache=store)
    declaration = declare_run(settings, extractor, start, run_id="run1")
    return declaration, start.payload.flatten(), lambda folder: site_file(settings, pool, 2, folder=folder, cache=store)


@pytest.fixture
def declaration(asked) -> Declaration:
    """Half of the site's budget."""
    return replace(asked[0], target_epsilon=2.0)


@pytest.fixture
def payload(asked) -> np.ndarray:
    return asked[1]


@pytest.fixture
def described(asked, tmp_path) -> SiteFile:
    return asked[2](tmp_path)


def site_with(described: SiteFile, **policy: object) -> Site:
    return Site(replace(described, policy=replace(described.policy, **policy)))


def sampled(declaration: Declaration, run_id: str) -> Declaration:
    return replace(declaration, run_id=run_id, mechanism="dp_sgd", batch_size=8)


def mean(site: Site, run_id: str) -> Update:
    task = RoundTask(
        run_id=run_id,
        round_index=0,
        kind="mean",
        learning_rate=20.0,
        weight_decay=0.0,
        optimizer="sgd",
        label_smoothing=0.0,
        proximal=0.0,
    )
    return site.round(task, np.zeros(DIMS, np.float32), np.zeros(DIMS, np.float32))


def accounts(described: SiteFile) -> list[tuple[tuple[str, ...], str]]:
    shown = show_ledger(Path(described.ledger), delta=1e-4).accounts
    return [(account.names, account.filter) for account in shown]


def test_filter_auto_opens_gdp_for_full_batches_and_refuses_sampled_runs_later_saying_what_to_set(
    described, declaration, payload
):
    site = Site(described)
    site.declare(declaration, payload)
    with pytest.raises(PolicyRefused, match="sets filter=rdp or declared in its policy before its account opens"):
        site.declare(sampled(declaration, "run2"), payload)
    assert accounts(described) == [(("default",), "gdp")]


def test_filter_auto_keeps_what_a_sampled_run_opened(described, declaration, payload):
    site = Site(described)
    site.declare(sampled(declaration, "run1"), payload)
    site.declare(replace(declaration, run_id="run2"), payload)
    assert accounts(described) == [(("default",), "declared")]


def test_filter_rdp_chosen_beforehand_takes_full_batches_and_sampled_runs(described, declaration, payload):
    site = site_with(described, filter="rdp")
    for asked in (declaration, sampled(declaration, "run2")):
        site.declare(asked, payload)
        mean(site, asked.run_id)
    assert accounts(described) == [(("default",), "rdp")]


def test_filter_of_an_open_account_is_not_changed_by_the_policy(described, declaration, payload):
    Site(described).declare(declaration, payload)
    with pytest.raises(PolicyRefused, match=r"filter=rdp must be the filter that the account opened with \(gdp\)"):
        site_with(described, filter="rdp").declare(replace(declaration, run_id="run2"), payload)


def test_ledger_account_of_the_policy_is_charged_and_reported(described, declaration, payload):
    site = site_with(described, account="study-7")
    accepted = site.declare(declaration, payload)
    reply = mean(site, "run1")
    assert accounts(described) == [(("study-7",), "gdp")]
    assert reply.epsilon_account == reply.epsilon > 0
    assert described.policy.max_epsilon - reply.epsilon < reply.budget_left < described.policy.max_epsilon
    assert (accepted.cap_epsilon, accepted.cap_delta) == (described.policy.max_epsilon, described.policy.delta)


def test_ledger_patient_figure_of_a_reply_is_over_all_runs_of_the_account(described, declaration, payload):
    site, replies = Site(described), []
    for run_id in ("run1", "run2"):
        site.declare(replace(declaration, run_id=run_id, unit="image"), payload)
        replies.append(mean(site, run_id))
    events = [event for reply in replies for event in reply.events]
    assert replies[1].patient_epsilon_account == patient_epsilon(events, delta=1e-4, accountant="pld")
    assert replies[1].patient_epsilon_account > replies[0].patient_epsilon_account > replies[0].epsilon_account


def test_ledger_figures_of_a_reply_are_at_the_declared_delta_where_the_policy_allows_a_larger(described, declaration, payload):
    site = site_with(described, delta=1e-3, max_epsilon=6.0)
    accepted = site.declare(declaration, payload)
    reply = mean(site, "run1")
    assert reply.patient_epsilon_account == patient_epsilon(reply.events, delta=declaration.delta, accountant="pld")
    assert reply.epsilon == reply.patient_epsilon_account
    assert accepted.cap_delta == 1e-3


@pytest.mark.parametrize("left", ["nothing", "an empty folder"])
def test_ledger_that_was_deleted_is_missed_and_no_new_one_is_made(described, declaration, payload, left):
    Site(described).declare(declaration, payload)
    shutil.rmtree(described.ledger)
    if left == "an empty folder":
        Path(described.ledger).mkdir()
    with pytest.raises(LedgerError, match="the site remembers runs, and its ledger is gone"):
        Site(described).declare(replace(declaration, run_id="run2"), payload)
    assert not Path(described.ledger).exists() or not any(Path(described.ledger).iterdir())


def test_ledger_put_back_from_an_older_copy_is_noticed_by_the_site_itself(described, declaration, payload, tmp_path):
    site = Site(described)
    site.declare(declaration, payload)
    shutil.copytree(described.ledger, tmp_path / "copy")
    mean(site, "run1")
    shutil.rmtree(described.ledger)
    shutil.copytree(tmp_path / "copy", described.ledger)
    with pytest.raises(LedgerError, match="does not hold the entry"):
        Site(described).declare(replace(declaration, run_id="run2"), payload)


def test_ledger_head_that_the_site_remembers_may_be_older_than_its_ledger(described, declaration, payload):
    """A crash after the ledger's entry and before the site's note of it."""
    site = Site(described)
    site.declare(declaration, payload)
    note = Path(described.folder) / "ledger-head"
    before = note.read_text()
    mean(site, "run1")
    note.write_text(before)
    assert mean(Site(described), "run1").round_index == 0
    assert note.read_text() != before
    assert note.stat().st_mode & 0o077 == 0


def test_a_site_file_written_before_accounts_and_filters_charges_the_default_account(described, tmp_path):
    values = json.loads(described.write(tmp_path / "site.json").read_text())
    del values["policy"]["account"], values["policy"]["filter"]
    (tmp_path / "old.json").write_text(json.dumps(values))
    assert read_site_file(tmp_path / "old.json") == described
    values["policy"]["filter"] = "pld"
    (tmp_path / "old.json").write_text(json.dumps(values))
    with pytest.raises(InvalidSetting, match=r"policy\.filter='pld' must be one of auto, gdp, rdp, declared"):
        read_site_file(tmp_path / "old.json")


def test_a_policy_without_a_name_for_its_account_is_refused(described):
    with pytest.raises(InvalidSetting, match="account must be 1 to 200 printable characters"):
        replace(described.policy, account="")
