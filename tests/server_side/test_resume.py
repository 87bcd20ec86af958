"""A run that is interrupted anywhere goes on after its last finished round, to the model and record of one that was not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from safetensors.numpy import load_file

from mammo_fed.client.rounds.app import app
from mammo_fed.data.cache import ArrayCache
from mammo_fed.data.run_cohorts import load_pool
from mammo_fed.errors import InvalidSetting, RunFailed
from mammo_fed.federation.protocol.messages import PRIVACY, read_declaration, read_reply
from mammo_fed.federation.protocol.replies import Update
from mammo_fed.privacy.ledger.report import show_ledger
from mammo_fed.reporting.record.record import Record, read_record
from mammo_fed.server.rounds.budget import BudgetView
from mammo_fed.server.rounds.rounds import Deployment
from mammo_fed.server.rounds.run_state import CheckpointFolder
from mammo_fed.server.run import Hooks, run_federation, share_of
from mammo_fed.settings import Settings
from mammo_fed.settings.compose import compose_settings
from mammo_fed.simulations.in_process import run_in_process
from mammo_fed.simulations.launch import site_file

INJECTED = ("privacy.noise_seed=5", "federation.rounds=2", "federation.num_sites=2", "federation.resend_after=60")
FIRST_NODE = 2


class PowerLoss(RuntimeError):
    """What stands for it."""


class WatchedApp(ClientApp):
    """The real client app; some of its nodes may be away, and what it answered is counted."""

    def __init__(self) -> None:
        super().__init__()
        self.silent: set[tuple[int, int]] = set()
        self.answered: list[tuple[int, int]] = []

    def __call__(self, message: Message, context: Context) -> Message:
        reply = app(message, context)
        if PRIVACY not in reply.content.config_records:
            # A stage of a masked sum; it is no round's reply.
            return reply
        told = read_reply(reply.content)
        which = (message.metadata.dst_node_id, told.round_index if isinstance(told, Update) else -1)
        self.answered.append(which)
        if which in self.silent:
            raise ConnectionError("the line is cut")
        return reply


@dataclass
class Federation:
    """Sites, their ledgers and a server's run folder, over several starts of the server's app."""

    folder: Path
    settings: Settings
    client: WatchedApp = field(default_factory=WatchedApp)
    roster: dict[int, str] = field(default_factory=dict)

    @property
    def record(self) -> Record:
        return read_record(self.folder)

    @property
    def model(self) -> Mapping[str, np.ndarray]:
        return load_file(self.folder / "model.safetensors")

    def start(self, *, hooks: Hooks | None = None, settings: Settings | None = None) -> None:
        deployment = Deployment(checkpoints=CheckpointFolder(self.folder / "checkpoint"), roster=lambda: self.roster)
        made = ServerApp()

        @made.main()
        def main(grid: Grid, context: Context) -> None:
            run_federation(
                grid,
                settings or self.settings,
                self.folder,
                mode="deploy",
                hooks=hooks or Hooks(),
                deployment=deployment,
            )

        config = {"sites-folder": str(self.folder / "sites")}
        sites = self.settings.federation.num_sites
        run_in_process(made, self.client, num_sites=sites, run_config=config, workers=1, wire=True)

    def charged_rounds(self, site: str) -> list[int]:
        summary = show_ledger(self.folder / "sites" / site / "ledger", delta=self.settings.privacy.delta)
        return [run.reserved_rounds for account in summary.accounts for run in account.runs]


@pytest.fixture
def federation(small, cache, tmp_path) -> Callable[..., Federation]:
    """`federation("federation.strategy=FedAdam")`: two sites of a small phantom, and nothing started."""

    def make(*overrides: str, name: str = "run") -> Federation:
        settings = compose_settings([*small, *INJECTED, *overrides]).settings
        store, folder = ArrayCache(cache), tmp_path / name
        pool = load_pool(settings.data, share_of(settings), cache=store)
        (folder / "sites").mkdir(parents=True)
        for index in range(settings.federation.num_sites):
            described = site_file(settings, pool, index, folder=folder, cache=store)
            described.write(folder / "sites" / f"site-{index + 1}.json")
        return Federation(folder, settings)

    return make


def losing_power_after(round_index: int) -> Hooks:
    def lose(index: int, rounds: int, budget: BudgetView) -> None:
        if index == round_index:
            raise PowerLoss

    return Hooks(round=lose)


@pytest.mark.parametrize("strategy", ["FedAvg", "FedAdam", "FedYogi"])
def test_resume_after_every_round_gives_the_undisturbed_model_and_charges_once(federation, strategy):
    whole = federation(f"federation.strategy={strategy}", name="whole")
    whole.start()
    broken = federation(f"federation.strategy={strategy}", name="broken")
    for index in (-1, 0, 1, 2):
        with pytest.raises(PowerLoss):
            broken.start(hooks=losing_power_after(index))
        assert not (broken.folder / "record.json").exists()
    broken.start()
    for name in ("head", "centre"):
        np.testing.assert_array_equal(broken.model[name], whole.model[name])
    for mine, theirs in zip(broken.record.privacy.sites, whole.record.privacy.sites, strict=True):
        assert mine.epsilon_after_round == theirs.epsilon_after_round
        assert mine.unanswered == ()
        assert broken.charged_rounds(mine.site) == [3]
    assert not (broken.folder / "checkpoint").exists()
    # Nobody was asked for a round that had been finished.
    assert sorted(broken.client.answered) == sorted(whole.client.answered)


def test_resume_within_a_round_gets_the_stored_replies(federation):
    whole = federation(name="whole")
    whole.start()
    broken = federation("federation.max_failed_rounds=1", "federation.min_replies=2", name="broken")
    broken.client.silent = {(FIRST_NODE, 1)}
    with pytest.raises(RunFailed, match="round 1: 1 of 2 sites replied with an update in 1 tries"):
        broken.start()
    broken.client.silent = set()
    broken.start()
    np.testing.assert_array_equal(broken.model["head"], whole.model["head"])
    assert broken.client.answered.count((FIRST_NODE, 1)) == 2
    assert broken.charged_rounds("site-1") == broken.charged_rounds("site-2") == [3]
    assert all(site.unanswered == () for site in broken.record.privacy.sites)


def test_resume_with_other_settings_is_refused(federation):
    broken = federation()
    with pytest.raises(PowerLoss):
        broken.start(hooks=losing_power_after(0))
    changed = broken.settings.to_json().replace('"target_epsilon":6.0', '"target_epsilon":3.0')
    other = Settings.from_json(changed)
    with pytest.raises(InvalidSetting, match="not those that the run was declared with"):
        broken.start(settings=other)


def test_resume_before_the_declaration_was_answered_declares_the_same_run(federation):
    broken = federation()
    names = []

    class Told(WatchedApp):
        def __call__(self, message: Message, context: Context) -> Message:
            if message.metadata.message_type.startswith("query"):
                names.append(read_declaration(message)[0].run_id)
            return super().__call__(message, context)

    broken.client = Told()
    with pytest.raises(PowerLoss):
        broken.start(hooks=losing_power_after(-1))
    broken.start()
    assert len(set(names)) == 1
    assert broken.charged_rounds("site-1") == [3]


def test_a_round_that_nobody_answers_stops_the_run_and_is_charged(federation):
    lost = federation("federation.max_failed_rounds=2")
    lost.client.silent = {(FIRST_NODE, 0), (FIRST_NODE + 1, 0)}
    with pytest.raises(RunFailed, match="round 0: 0 of 2 sites replied with an update in 2 tries"):
        lost.start()
    assert lost.client.answered.count((FIRST_NODE, 0)) == 2
    assert lost.charged_rounds("site-1") == [1]


def test_a_site_that_is_lost_in_a_round_is_charged_and_takes_part_in_the_next(federation):
    lossy = federation("federation.max_failed_rounds=1")
    lossy.client.silent = {(FIRST_NODE, 1)}
    lossy.start()
    first, second = lossy.record.privacy.sites
    assert (first.unanswered, second.unanswered) == ((1,), ())
    assert first.epsilon_after_round == second.epsilon_after_round
    assert lossy.charged_rounds("site-1") == [3]


def test_an_answer_in_the_name_of_another_sites_key_is_left_out(federation):
    named = federation("federation.min_nodes=1")
    named.roster = {FIRST_NODE: "site-1", FIRST_NODE + 1: "somebody-else"}
    named.start()
    assert [site.site for site in named.record.privacy.sites] == ["site-1"]


@pytest.mark.parametrize("round_index", [0, 1])
def test_resume_of_a_masked_run_skips_the_round_that_was_begun(federation, round_index):
    masked = federation("federation.secure.use=masks", "federation.num_sites=3", "federation.rounds=3")

    def lose(index: int, rounds: int, budget: BudgetView) -> None:
        if index == round_index - 1:
            # As if the process died after it had noted that the next round begins.
            folder = CheckpointFolder(masked.folder / "checkpoint")
            kept = folder.read()
            assert kept is not None
            folder.write(replace(kept, round_begun=round_index))
            raise PowerLoss

    with pytest.raises(PowerLoss):
        masked.start(hooks=Hooks(round=lose))
    masked.start()
    record = masked.record
    assert record.federation.failed_rounds == (round_index,)
    assert all(round_index in site.unanswered for site in record.privacy.sites)
    assert masked.charged_rounds("site-1") == [3]
