"""Real processes over TLS: what a hostile site sends ends no run, nor its resumption; nor do files that a disk damaged."""

from __future__ import annotations

import secrets
import signal
import time
from collections.abc import Callable

import pytest
from hostile_site import ATTACKS, site_client
from real_federation import SMALL_RUN, RealFederation, real_federation

ROUNDS = len(ATTACKS)


def wait_until(condition: Callable[[], object], federation: RealFederation) -> None:
    limit = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < limit, f"waited in vain:\n{federation.tail()}"
        time.sleep(0.2)


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_hostile_replies_are_left_out_and_named_also_after_the_servers_files_were_damaged(tmp_path, cache):
    with real_federation(tmp_path, num_sites=3, cache=cache) as federation:
        federation.start_client("site-1")
        federation.start_client("site-2", program=site_client(tmp_path, "train"))
        federation.start_client("site-3", program=site_client(tmp_path, "declaration"))
        federation.start_server(*SMALL_RUN, "federation.num_sites=3", f"federation.rounds={ROUNDS}")
        federation.wait_for(f"round 2/{ROUNDS}", seconds=600)
        assert federation.server is not None
        federation.server.send_signal(signal.SIGKILL)
        federation.server.wait(60)
        state = federation.fed / "state"
        wait_until(lambda: not federation.processes("flwr_internals.guard"), federation)
        damaged = secrets.token_bytes(100_000)
        (database,) = state.glob("link*.db")
        for path in state.glob(f"{database.name}-*"):
            path.unlink()
        database.write_bytes(damaged)
        for name in ("superexec.secret", "control.secret"):
            (state / name).write_bytes(b"")
        federation.clients["site-1"].terminate()
        federation.clients["site-1"].wait(400)
        (federation.site("site-1") / "private" / "superexec.secret").write_bytes(b"")
        federation.start_client("site-1")
        federation.start_server(resume=True)
        assert federation.wait(900) == 0, federation.tail()
        said, record = federation.said(), federation.record
        assert "the SuperLink's database was damaged (file is not a database) and is now" in said
        assert [path.read_bytes() for path in state.glob("link*.db.damaged-*")] == [damaged]
        assert said.count("was damaged, and is written anew") == 2
        assert "was damaged; there is a new one" in federation.said("site-1.out")
        assert "Traceback" not in said
        sites = {site.site: site for site in record.privacy.sites}
        assert sites["site-1"].rejected == ()
        left_out = {(item.round, item.reason) for item in sites["site-2"].rejected}
        assert left_out >= {(index, "unreadable") for index in range(1, ROUNDS + 1)}
        assert [(item.round, item.reason) for item in sites["site-3"].rejected] == [(-1, "unreadable")]
        assert not any("Traceback" in path.read_text() for path in federation.run_folder.glob("*.log"))
