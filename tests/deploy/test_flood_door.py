"""Floods thrown at a server's door from another machine's addresses while a run is in progress: it goes on.

By default 2,500 connections and 1 GB; `make flood` throws 12,000 and 10 GB, and prints what was measured.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import flood
import network_probe
import pytest
from real_federation import SMALL_RUN, Line, RealFederation, can_cut_lines, real_federation

pytestmark = pytest.mark.slow

WHOLE = bool(os.environ.get("MAMMO_FED_FLOOD"))
MIB = 1 << 20
GROWTH_MIB = 64
ADDRESSES = 40
ROUNDS = 400 if WHOLE else 24
# On a machine that does something else too an answer takes longer; whoever runs the whole flood has it for itself.
ANSWER_SECONDS = 2.0 if WHOLE else 15.0
SMALL_STEPS = [
    {"kind": "silent", "connections": 1500},
    {"kind": "half hello", "connections": 500},
    {"kind": "half request", "connections": 60},
    {"kind": "one header", "connections": 10**9, "size": 100 * MIB},
    {"kind": "many headers", "connections": 10**9, "size": 50 * MIB},
    {"kind": "pipelined", "connections": 10**9, "size": 50 * MIB},
    {"kind": "chunks", "connections": 10**9, "size": 50 * MIB},
    {"kind": "body", "connections": 10**9, "size": 100 * MIB},
    {"kind": "plain bytes", "connections": 10**9, "size": 650 * MIB},
]
WHOLE_STEPS = [
    {"kind": "silent", "connections": 8000},
    {"kind": "half hello", "connections": 2000},
    {"kind": "half request", "connections": 1000},
    {"kind": "one header", "connections": 10**9, "size": 1000 * MIB},
    {"kind": "many headers", "connections": 10**9, "size": 500 * MIB},
    {"kind": "pipelined", "connections": 10**9, "size": 500 * MIB},
    {"kind": "chunks", "connections": 10**9, "size": 500 * MIB},
    {"kind": "body", "connections": 10**9, "size": 1000 * MIB},
    {"kind": "plain bytes", "connections": 10**9, "size": 6700 * MIB},
]


class Flooder:
    """A machine of its own with many addresses.

    Args:
      federation: whose server is flooded; its networks are claimed.
    """

    def __init__(self, federation: RealFederation) -> None:
        first = next(iter(federation.lines.values()))
        self.network = first.network.rpartition(".")[0]
        self.line = Line(name=f"{first.name[:-1]}f", network=f"{self.network}.200")
        self.port = federation.port

    def make(self) -> None:
        self.line.make()
        ip = ["ip", "-n", self.line.name]
        for number in range(1, ADDRESSES + 1):
            subprocess.run([*ip, "addr", "add", f"{self.network}.201.{number}/32", "dev", "lo"], check=True)
        subprocess.run(["ip", "route", "add", f"{self.network}.201.0/24", "via", f"{self.network}.200.2"], check=True)

    def throw(self, steps: list[dict[str, object]], *, seconds: float) -> list[dict[str, float]]:
        """Throw all of it, one kind after the other, `seconds` each at the most."""
        sources = [f"{self.network}.200.2"] * ADDRESSES + [f"{self.network}.201.{number}" for number in range(1, ADDRESSES + 1)]
        plan = {"host": self.line.here, "port": self.port, "tls": True, "sources": sources, "seconds": seconds, "steps": steps}
        command = ["ip", "netns", "exec", self.line.name, sys.executable, flood.__file__]
        done = subprocess.run(command, input=json.dumps(plan), capture_output=True, text=True, check=True, timeout=1800)
        return [json.loads(line) for line in done.stdout.splitlines()]


class Watch(threading.Thread):
    """Asks for the server's health every second and reads the memory of every process, until it is told to stop."""

    def __init__(self, federation: RealFederation) -> None:
        super().__init__(daemon=True)
        self._federation, self._over = federation, threading.Event()
        self.before = self._memory()
        self.peak = dict(self.before)
        self.answers: list[float] = []
        self.refused = 0

    def run(self) -> None:
        request = network_probe.http("GET", "/health", host="x")
        ca = str(self._federation.fed / "tls" / "ca.crt")
        while not self._over.wait(0.5):
            begun = time.monotonic()
            answer = network_probe.exchange(("127.0.0.1", self._federation.port), request, ca=ca, seconds=30.0)
            self.answers.append(time.monotonic() - begun)
            self.refused += answer["status"] != 200
            for key, size in self._memory().items():
                self.peak[key] = max(size, self.peak.get(key, 0))

    def stop(self) -> None:
        self._over.set()
        self.join()

    def growth(self) -> dict[str, tuple[float, float]]:
        """MiB before and at the peak, by process."""
        return {str(key): (size / 1024, self.peak[key] / 1024) for key, size in self.before.items()}

    def _memory(self) -> dict[tuple[int, str], int]:
        found = {}
        for pid in self._federation.processes(""):
            try:
                status = Path(f"/proc/{pid}/status").read_text()
                command = Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
            except OSError:
                continue
            if (size := re.search(r"VmRSS:\s+(\d+)", status)) is not None:
                found[pid, name_of(command)] = int(size[1])
        return found


def name_of(command: str) -> str:
    words = ("guard", "superexec", "flwr-serverapp", "flower-server", "supernode", "executor", "site-client")
    return next((word for word in words if word in command), command[:40])


@pytest.fixture(scope="module")
def running(cache, tmp_path_factory) -> Iterator[RealFederation]:
    """A run in progress, two of its rounds done."""
    if not can_cut_lines():
        pytest.skip("needs root and `ip netns` to make a network namespace")
    with real_federation(tmp_path_factory.mktemp("flood"), num_sites=1, cache=cache, lines=True) as federation:
        federation.start_server(*SMALL_RUN, f"federation.rounds={ROUNDS}", "federation.num_sites=1")
        federation.start_client("site-1")
        federation.wait_for(f"round 2/{ROUNDS}", seconds=600)
        yield federation


def test_door_no_command_line_shows_a_secret(running):
    shown = [Path(f"/proc/{pid}/cmdline").read_bytes().decode() for pid in running.processes("")]
    assert any("flwr-serverapp" in command for command in shown)
    secrets = [path.read_text().strip() for path in (running.fed / "state").glob("*.secret")]
    secrets += [path.read_text().strip() for path in (running.site("site-1") / "private").glob("*.secret")]
    assert len(secrets) >= 3
    for command in shown:
        assert not re.search(r"[0-9a-f]{32}", command), command
        assert not any(secret in command for secret in secrets)
        assert "--token\0" not in command


def test_door_no_file_of_the_server_or_a_site_is_open_to_others(running):
    for folder in (running.fed, running.site("site-1")):
        assert folder.stat().st_mode & 0o077 == 0
        secret = [path for path in folder.rglob("*") if path.suffix in {".key", ".secret", ".db"}]
        assert len(secret) >= 2
        assert [path for path in secret if path.stat().st_mode & 0o077] == []


def test_flood_at_the_door_leaves_memory_health_and_the_run_alone(running):
    flooder = Flooder(running)
    watch, begun = Watch(running), time.monotonic()
    first, said_before = rounds(running), len(told(running))
    try:
        flooder.make()
        watch.start()
        thrown = flooder.throw(WHOLE_STEPS if WHOLE else SMALL_STEPS, seconds=60 if WHOLE else 10)
        during = rounds(running)
    finally:
        watch.stop()
        flooder.line.remove()
    sys.stdout.write(table(thrown, watch) + f"rounds {first} to {during} of {ROUNDS}\n")

    assert sum(step["connections"] for step in thrown) >= (10_000 if WHOLE else 2000)
    if WHOLE:
        assert sum(step["bytes"] for step in thrown) >= 10_000_000_000
    assert {name: grown for name, grown in watch.growth().items() if grown[1] - grown[0] > GROWTH_MIB} == {}
    assert watch.refused == 0
    assert len(watch.answers) >= 3
    assert max(watch.answers) <= ANSWER_SECONDS
    assert during > first
    # One line a minute, whatever the number of those who were turned away: the first of a short flood may be a minute late.
    until = time.monotonic() + 90
    while len(told(running)) == said_before and time.monotonic() < until:
        time.sleep(0.5)
    assert 1 <= len(told(running)) - said_before <= 2 + (time.monotonic() - begun) / 55


def table(thrown: list[dict[str, float]], watch: Watch) -> str:
    """What was thrown and what it did, for people."""
    lines = [
        f"{step['kind']:14} {step['connections']:7,.0f} connections {step['bytes'] / MIB:9,.1f} MiB {step['seconds']:6.1f} s"
        for step in thrown
    ]
    lines += [f"{name:40} {before:7.1f} MiB, at the peak {peak:7.1f} MiB" for name, (before, peak) in watch.growth().items()]
    lines.append(f"health: {len(watch.answers)} answers, {watch.refused} refused, slowest {max(watch.answers):.2f} s")
    return "\n" + "\n".join(lines) + "\n"


def told(federation: RealFederation) -> list[str]:
    """What the server's log says of those who were turned away."""
    text = (federation.fed / "state" / "superlink.log").read_text()
    return [line for line in text.splitlines() if "turned away" in line]


def rounds(federation: RealFederation) -> int:
    """The last round that the server's console tells of."""
    return int(re.findall(rf"round (\d+)/{ROUNDS}", federation.said())[-1])
