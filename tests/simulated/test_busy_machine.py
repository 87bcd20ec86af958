"""A simulation's result does not depend on how busy the machine is: sites are waited for, and none is dropped unseen."""

from __future__ import annotations

import io
import time
from dataclasses import replace
from pathlib import Path

import pytest
from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from rich.console import Console

from mammo_fed.client.rounds.app import app
from mammo_fed.errors import RunFailed
from mammo_fed.federation.protocol.messages import read_reply
from mammo_fed.reporting.console import one_line, sweep_table
from mammo_fed.reporting.dropped import dropped_sites, dropped_text
from mammo_fed.reporting.pages.comparison_page import write_comparison_page
from mammo_fed.reporting.record.record import comparable
from mammo_fed.server.run import Hooks
from mammo_fed.settings.compose import compose_settings
from mammo_fed.simulations.launch import simulate

# A wait that is over before any site could be slow: only one that is not kept to leaves every site in.
IMPATIENT = ("federation.round_min_wait=0.05", "federation.round_timeout=0.1", "federation.max_failed_rounds=1")
SETTINGS = ("privacy.noise_seed=3", "federation.num_sites=3", "federation.rounds=2")
SLOW_SECONDS = 0.8


class SlowSite(ClientApp):
    """The installed app; one of its sites takes its time with every answer, as on a machine with much else to do."""

    def __call__(self, message: Message, context: Context) -> Message:
        if context.node_config["partition-id"] == 1:
            time.sleep(SLOW_SECONDS)
        return app(message, context)


class FailingSite(ClientApp):
    """The installed app; one of its sites fails from a round on, and one cannot be reached at all where so asked."""

    def __init__(self, *, first_round: int) -> None:
        super().__init__()
        self._first = first_round

    def __call__(self, message: Message, context: Context) -> Message:
        reply = app(message, context)
        if context.node_config["partition-id"] == 1 and getattr(read_reply(reply.content), "round_index", -1) >= self._first:
            raise MemoryError
        return reply


def run(small: tuple[str, ...], folder: Path, *overrides: str, client_app: ClientApp = app):
    settings = compose_settings([*small, *SETTINGS, *overrides]).settings
    return simulate(settings, folder, hooks=Hooks(), client_app=client_app)


@pytest.mark.parametrize("aggregation", ["none", "masks"])
def test_simulated_sites_are_waited_for_however_long_they_take(small, tmp_path, aggregation):
    secure = f"federation.secure.use={aggregation}"
    quick = run(small, tmp_path / "quick", secure, "engine.workers=3")
    slow = run(small, tmp_path / "slow", secure, *IMPATIENT, "engine.workers=3", client_app=SlowSite())
    assert [site.rounds for site in slow.privacy.sites] == [3, 3, 3]
    assert dropped_sites(slow) == {}
    one, other = comparable(quick), comparable(slow)
    for record in (one, other):
        # The settings differ in how long a round waits, and the hash of the configuration with them.
        del record["config_hash"]
    assert one == other


def test_a_site_that_fails_ends_the_wait_and_is_named_in_every_table(small, tmp_path):
    failing = run(small, tmp_path / "failing", client_app=FailingSite(first_round=1))
    whole = run(small, tmp_path / "whole")
    assert dropped_sites(whole) == {}
    assert dropped_sites(failing) == {"site-2": "no reply, charged: rounds 1-2"}
    assert one_line(failing).endswith("; WITHOUT site-2 (no reply, charged: rounds 1-2)")
    assert "WITHOUT" not in one_line(whole)
    out = io.StringIO()
    Console(file=out, width=100).print(sweep_table([["seed=0"], ["seed=1"]], [whole, failing]))
    assert "site-2 (no reply, charged:" in " ".join(out.getvalue().split())
    page = write_comparison_page(tmp_path / "comparison.html", [whole, failing]).read_text(encoding="utf-8")
    assert "site-2 (no reply, charged: rounds 1-2)" in page


def test_a_site_that_cannot_answer_the_declaration_fails_the_run_and_is_not_left_out_unseen(small, tmp_path):
    with pytest.raises(RunFailed, match=r"1 of federation\.num_sites=3 simulated sites failed at the declaration"):
        run(small, tmp_path / "run", client_app=FailingSite(first_round=-1))


def test_a_site_that_failed_at_the_declaration_is_asked_again_before_any_round_when_the_run_goes_on(small, tmp_path):
    folder, finished = tmp_path / "run", []
    settings = compose_settings([*small, *SETTINGS]).settings
    hooks = Hooks(round=lambda index, *_: finished.append(index))
    for resume in (False, True):
        with pytest.raises(RunFailed, match="simulated sites failed at the declaration"):
            simulate(settings, folder, hooks=hooks, client_app=FailingSite(first_round=-1), resume=resume)
    assert finished == []
    record = simulate(settings, folder, hooks=hooks, resume=True)
    assert [site.rounds for site in record.privacy.sites] == [3, 3, 3]
    assert finished == [0, 1, 2]


def test_many_dropped_sites_are_counted_on_one_line(small, tmp_path):
    record = run(small, tmp_path / "run", client_app=FailingSite(first_round=2))
    dropped = next(site for site in record.privacy.sites if site.unanswered)
    many = tuple(replace(dropped, site=f"site-{number}") for number in range(89))
    line = dropped_text([replace(record, privacy=replace(record.privacy, sites=many))])
    assert line.startswith("WITHOUT site-0 (no reply, charged: round 2), site-1 (")
    assert line.endswith(" and 81 more sites")
