"""After a run a site gives its memory back, and neither side keeps what nobody needs; the next run finds all in order."""

from __future__ import annotations

import re
import sqlite3
import time
from contextlib import closing

import pytest
from real_federation import SMALL_RUN, real_federation

from mammo_fed.privacy.ledger.report import verify_ledger

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]
PATIENCE = 900
INJECTED = ("privacy.noise_seed=5", "federation.rounds=1", "federation.num_sites=2", "privacy.target_epsilon=1")


def wait_until(condition, federation) -> None:
    limit = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < limit, f"waited in vain:\n{federation.tail()}"
        time.sleep(0.2)


def rows(database, table: str) -> int:
    with closing(sqlite3.connect(database)) as opened:
        return opened.execute(f"SELECT COUNT(*) FROM {table}").fetchone()[0]  # noqa: S608 - a name of this file


def test_deploy_leftovers_of_a_run_are_removed_and_an_idle_executor_ends_until_the_next_run(tmp_path, cache):
    with real_federation(tmp_path, num_sites=2, cache=cache) as federation:
        for name in federation.sites:
            about = federation.site(name) / "site.toml"
            about.write_text(re.sub(r"(?m)^executor_idle_minutes = .*$", "executor_idle_minutes = 0.05", about.read_text()))
            federation.start_client(name)
        federation.start_server(*SMALL_RUN, *INJECTED)
        assert federation.wait(PATIENCE) == 0, federation.tail()
        first = federation.record
        wait_until(lambda: not federation.processes("mammo_fed.client.operations.executor"), federation)
        assert federation.processes("flwr_internals.supernode")
        (link,) = (federation.fed / "state").glob("link*.db")
        assert (rows(link, "run"), rows(link, "message_ins"), rows(link, "objects")) == (0, 0, 0)
        assert rows(link, "node") == 2
        assert not (wal := link.with_name(f"{link.name}-wal")).exists() or wal.stat().st_size == 0
        for name in federation.sites:
            runs = federation.site(name) / "private" / "runs"
            assert [path.name for path in runs.glob("*/*")] == ["declaration.json"]
            verify_ledger(federation.site(name) / "ledger")
        (federation.run_folder).rename(tmp_path / "first")

        federation.start_server(*SMALL_RUN, *INJECTED)
        assert federation.wait(PATIENCE) == 0, federation.tail()
        assert [site.rounds for site in federation.record.privacy.sites] == [site.rounds for site in first.privacy.sites]
        assert not any(site.unanswered for site in federation.record.privacy.sites)
