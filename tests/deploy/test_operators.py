"""What people on both sides see of one federation of real processes: a listener, plans, status, figures, runs and refusals."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from real_federation import SMALL_RUN, RealFederation, free_port, real_federation

from mammo_fed.common.supervision import installed_command

PATIENCE = 900
# An epoch second: what no person should have to read.
EPOCH = re.compile(r"\b1[789]\d{8}\b")


def ledgers(federation: RealFederation) -> dict[str, bytes]:
    """Every byte of all sites' ledgers."""
    return {
        f"{name}/{path.name}": path.read_bytes()
        for name in federation.sites
        for path in sorted((federation.site(name) / "ledger").rglob("*"))
        if path.is_file()
    }


def until(look: Callable[[], bool], what: str, federation: RealFederation) -> None:
    deadline = time.monotonic() + PATIENCE
    while not look():
        assert time.monotonic() < deadline, f"never {what}:\n{federation.tail()}"
        time.sleep(0.3)


def command(federation: RealFederation, name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """A command of the server's that ends by itself."""
    words = [installed_command("flower-server"), name, str(federation.fed), *map(str, arguments)]
    process = federation._spawn(words, log := f"{name}.out")
    start = len(federation.said(log))
    code = process.wait(PATIENCE)
    return subprocess.CompletedProcess(words, code, federation.said(log)[start:])


def with_cap(folder: Path, cap: str) -> None:
    """The site's promise, before its first run."""
    file = folder / "site.toml"
    file.write_text(re.sub(r"(?m)^max_epsilon = .*$", f"max_epsilon = {cap}", file.read_text(encoding="utf-8")))


def page(port: int) -> str:
    return httpx.get(f"http://127.0.0.1:{port}/metrics", trust_env=False).text


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_deploy_people_see_a_federation_from_before_its_first_run_to_a_refusal(tmp_path, cache, client, server):
    with real_federation(tmp_path, num_sites=2, cache=cache) as federation:
        ports = {"server": free_port(), "site-1": free_port()}
        for name in federation.sites:
            with_cap(federation.site(name), "6.0")
        listener = federation._spawn(
            [installed_command("flower-server"), "listen", str(federation.fed), "--metrics-port", str(ports["server"])],
            "listen.out",
        )
        federation.clients["listener"] = listener
        for name in federation.sites:
            more = ("--metrics-port", str(ports[name])) if name in ports else ()
            federation.start_client(name, *more)

        # A listener between runs: sites connect, and their check passes before the first run.
        def status() -> dict:
            return json.loads(server("status", federation.fed, "--json")[1])

        until(lambda: [site["connected"] for site in status()["sites"]] == [True, True], "connected", federation)
        assert status()["server"] == "listening"
        code, out, err = client("check", federation.site("site-1"))
        assert code == 0, (out, err)
        shown = page(ports["server"])
        assert 'mammo_fed_site_connected{site="site-1"} 1.0' in shown
        assert "mammo_fed_run_active 0.0" in shown

        # A plan gives way to nobody's ledger: there is none before and none after.
        asked = command(federation, "plan", *SMALL_RUN, "federation.rounds=2", "privacy.target_epsilon=3", "--json")
        assert asked.returncode == 0, asked.stdout
        assert ledgers(federation) == {}

        # A run takes over from the listener.
        federation.start_server(*SMALL_RUN, "federation.rounds=2", "privacy.target_epsilon=3")
        assert federation.wait(PATIENCE) == 0, federation.tail()
        for name in federation.sites:
            said = federation.said(f"{name}.out")
            assert "round 2 of 2 answered; cost so far 3 of 3; left of 6: a further run of 4.7" in said
        assert "site-1 is connected" in federation.said("listen.out")
        assert not EPOCH.search(federation.said() + federation.said("listen.out"))

        # After 3 of 6 a run of 4.77 fits, and the question leaves every byte of the ledgers as it was.
        before = ledgers(federation)
        assert before
        much = command(federation, "plan", *SMALL_RUN, "federation.rounds=2", "privacy.target_epsilon=5.5", "--json")
        assert much.returncode == 3, much.stdout
        answers = json.loads(much.stdout[much.stdout.index("\n{") if not much.stdout.startswith("{") else 0 :])
        assert [(site["accepts"], site["reason"]) for site in answers["sites"]] == [(False, "budget")] * 2
        fits = answers["sites"][0]["fits"]
        assert 4.7 < fits < 4.8
        assert ledgers(federation) == before
        little = command(federation, "plan", *SMALL_RUN, "federation.rounds=2", f"privacy.target_epsilon={fits}")
        assert little.returncode == 0, little.stdout
        assert "2 of 2 sites would take the run" in little.stdout
        assert ledgers(federation) == before

        # A run that every site refuses for its budget: its site says what fits, and nobody proposes to resume it.
        refused = command(
            federation,
            "run",
            f"hydra.run.dir={tmp_path / 'refused'}",
            *SMALL_RUN,
            "federation.rounds=2",
            "privacy.target_epsilon=5.5",
        )
        assert refused.returncode == 3, refused.stdout
        assert "--resume" not in refused.stdout
        assert "flower-server plan" in refused.stdout
        said = federation.said("site-1.out")
        assert "the run REFUSED (budget)" in said
        assert f"fits with privacy.target_epsilon={fits:g} or less" in said

        # Both sides' pages and status, in the listener's care again.
        until(lambda: status()["server"] == "listening", "listening again", federation)
        shown = page(ports["site-1"])
        assert "mammo_fed_run_epsilon" in shown
        assert 'mammo_fed_process_running{process="executor"} 1.0' in shown
        code, out, _ = client("status", federation.site("site-1"))
        assert code == 0
        assert "last answers:" in out
        assert not EPOCH.search(out)
        code, out, _ = server("status", federation.fed)
        assert "site-2" in out
        assert not EPOCH.search(out)
        listener.send_signal(signal.SIGTERM)
        assert listener.wait(60) == 0, federation.said("listen.out")
