"""Ordeals for a real federation, at moments that a seed decides.

Processes are killed, paused and stopped for good; lines are cut, power is lost, disks are full, files are lost or cut to
nothing, a site is revoked, strangers crowd the server's door, proxies are named that are none, and a site's clock is ahead.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from middle_boxes import fake_clock
from real_federation import RealFederation

from mammo_fed.common.supervision import installed_command
from mammo_fed.privacy.ledger.report import show_ledger, verify_ledger

RESUMES = 6


@dataclass
class Ordeal:
    """Lets things happen to a federation until its run has ended.

    Attributes:
      federation: initialised, nothing runs.
      seed: decides what happens and when.
      overrides: of the run.
      longest_cut: seconds for which a line is cut at most.
      disk: folder of a small file system that holds the server's files; None leaves the disk alone.
      site_disks: by site, the small file system that its folder is.
      lasting: whether a site may be stopped or revoked for good.
      limit: seconds for everything.
      story: what happened.
      lost: sites that were stopped or revoked for good.
    """

    federation: RealFederation
    seed: int
    overrides: tuple[str, ...]
    longest_cut: float
    disk: Path | None
    limit: float
    site_disks: Mapping[str, Path] = field(default_factory=dict)
    lasting: bool = False
    story: list[str] = field(default_factory=list)
    lost: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)  # noqa: S311 - an ordeal, not a secret
        self._begun = time.monotonic()
        self._later: list[tuple[float, str, Callable[[], None]]] = []

    def run(self) -> None:
        """Start everything, let it happen, and return when the run has ended well; AssertionError if it does not."""
        self._set_scene()
        for name in self.federation.sites:
            self._start_client(name)
        self.federation.start_server(*self.overrides)
        moment = 0.0
        for _ in range(self._random.randint(2, 4)):
            moment += self._random.uniform(1.0, 22.0)
            self._plan(moment, *self._choose())
        resumes = 0
        while True:
            self._happen()
            assert self._clock() < self.limit, f"not ended in {self.limit:g} s: {self.story}\n{self.federation.tail()}"
            server = self.federation.server
            if server is not None and server.poll() is not None:
                if server.returncode == 0:
                    break
                resumes += 1
                assert resumes <= RESUMES, f"resumed {resumes} times: {self.story}\n{self.federation.tail()}"
                self._note(f"the server ended with {server.returncode}; resumed")
                self._start_server()
            time.sleep(0.2)

    def check(self) -> None:
        """Every ledger verifies, charged each round once, and never says more than the record."""
        record = self.federation.record
        sites = {site.site: site for site in record.privacy.sites}
        rounds = record.privacy.rounds + 1
        for name in self.federation.sites:
            ledger = self.federation.site(name) / "ledger"
            verify_ledger(ledger)
            summary = show_ledger(ledger, delta=record.privacy.delta)
            runs = [run for account in summary.accounts for run in account.runs]
            assert len(runs) == 1, f"{name}: {len(runs)} runs were declared: {self.story}"
            (run,) = runs
            assert run.run_id == record.run_id
            assert run.reserved_rounds <= rounds, self.story
            steps_each = run.declared_steps // rounds
            assert run.reserved_steps == run.reserved_rounds * steps_each, f"{name} charged a round twice: {self.story}"
            assert run.epsilon <= sites[name].epsilon * (1 + 1e-6), f"{name}'s epsilon is under-counted: {self.story}"
            if name in self.lost:
                # One task may have been on its way when the site was lost; it is charged for no other that it never had.
                charged = len(sites[name].events)
                assert charged <= run.reserved_rounds + 1, f"{name} is charged {charged} rounds for nothing: {self.story}"

    @property
    def undisturbed(self) -> bool:
        """Whether every site took part and replied in every round; who could not take the declaration in joins later."""
        record = self.federation.record
        sites = record.privacy.sites
        whole = len(sites) == len(self.federation.sites) and all(site.rounds == record.privacy.rounds + 1 for site in sites)
        return whole and not any(site.unanswered or site.refused or site.missed or site.revoked for site in sites)

    def _choose(self) -> tuple[str, Callable[[], None]]:
        site = self._random.choice(self.federation.sites)
        folder = str(self.federation.site(site))
        kinds: list[tuple[str, Callable[[], None]]] = [
            ("kill the server's app", lambda: self._kill("flwr-serverapp")),
            ("kill the SuperLink", lambda: self._kill("flwr_internals.guard")),
            ("kill the superexec", lambda: self._kill("flwr_internals.superexec")),
            ("power loss of the server", self._power_loss),
            (f"kill the SuperNode of {site}", lambda: self._kill("flwr_internals.supernode", folder)),
            (f"kill the executor of {site}", lambda: self._kill("mammo_fed.client.operations.executor", folder)),
            (f"kill the site-client of {site}", lambda: self._kill_client(site)),
        ]
        kinds += [
            (f"pause all of {site}", lambda: self._pause(site)),
            (f"{site} loses what it keeps of runs", lambda: self._lose_runs(site)),
            (f"the payload at {site} is cut to nothing", lambda: self._cut_payload(site)),
            ("the server's database is damaged", self._damage_database),
            ("the server's secrets are emptied", self._empty_secrets),
            ("a crowd at the server's door", self._crowd),
        ]
        if self.federation.lines:
            kinds.append((f"cut the line of {site}", lambda: self._cut(site)))
        if self.disk is not None:
            kinds.append(("fill the server's disk", lambda: self._fill(self.disk)))
        if site in self.site_disks:
            kinds.append((f"fill the disk of {site}", lambda: self._fill(self.site_disks[site])))
        if self.lasting and not self.lost:
            for what, act in ((f"stop {site} for good", self._stop_for_good), (f"revoke {site}", self._revoke)):
                kinds.append((f"{what}, once rounds go on", lambda what=what, act=act: self._once_begun(what, site, act)))
        return self._random.choice(kinds)

    def _set_scene(self) -> None:
        """What is so from the beginning."""
        if self._random.random() < 0.3:
            self._note("a proxy is named to all processes, and is none")
            names = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy")
            self.federation.environment = dict.fromkeys(names, "http://127.0.0.1:9")
        self._ahead: dict[str, int] = {}
        if shutil.which("gcc") and self._random.random() < 0.3:
            site, seconds = self._random.choice(self.federation.sites), self._random.randint(2, 25)
            self._note(f"the clock of {site} is {seconds} s ahead")
            self._ahead[site] = seconds

    def _start_client(self, site: str) -> None:
        if site in self.lost:
            return
        program: tuple[str, ...] = ()
        if site in self._ahead:
            clock = fake_clock(self.federation.root)
            program = ("env", f"LD_PRELOAD={clock}", f"CLOCK_AHEAD={self._ahead[site]}", installed_command("site-client"))
        self.federation.start_client(site, program=program)

    def _plan(self, moment: float, what: str, act: Callable[[], None]) -> None:
        self._later.append((moment, what, act))

    def _happen(self) -> None:
        now = self._clock()
        due = [event for event in self._later if event[0] <= now]
        self._later = [event for event in self._later if event[0] > now]
        for _, what, act in sorted(due, key=lambda event: event[0]):
            self._note(what)
            act()

    def _kill(self, *words: str) -> None:
        for pid in self.federation.processes(*words):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _power_loss(self) -> None:
        if self.federation.server is None or self.federation.server.poll() is not None:
            return
        self.federation.server.kill()
        for word in ("flwr_internals.guard", "flwr_internals.superexec", "flwr-serverapp"):
            self._kill(word)
        self.federation.server.wait()
        self.federation.server = None
        self._plan(self._clock() + self._random.uniform(0.5, 10.0), "the server is back", self._start_server)

    def _start_server(self) -> None:
        begun = (self.federation.run_folder / "config.yaml").exists()
        self.federation.start_server(*(() if begun else self.overrides), resume=begun)

    def _kill_client(self, site: str) -> None:
        self._end_client(site)
        back = self._clock() + self._random.uniform(0.5, 10.0)
        self._plan(back, f"the site-client of {site} is back", lambda: self._start_client(site))

    def _end_client(self, site: str) -> None:
        self._kill("site-client", "run", str(self.federation.site(site)))
        self.federation.clients[site].kill()
        self.federation.clients[site].wait()
        for word in ("flwr_internals.supernode", "mammo_fed.client.operations.executor"):
            self._kill(word, str(self.federation.site(site)))

    def _once_begun(self, what: str, site: str, act: Callable[[str], None]) -> None:
        """Every site is waited for until the run has begun."""
        try:
            begun = json.loads((self.federation.run_folder / "attendance.json").read_text(encoding="utf-8"))["round"] >= 0
        except (OSError, ValueError):
            begun = False
        if begun:
            self._note(f"{what}, now")
            act(site)
        else:
            self._plan(self._clock() + 2.0, f"not yet: {what}", lambda: self._once_begun(what, site, act))

    def _stop_for_good(self, site: str) -> None:
        self.lost.add(site)
        self._end_client(site)

    def _revoke(self, site: str) -> None:
        self.lost.add(site)
        command = [installed_command("flower-server"), "revoke", str(self.federation.fed), site]
        subprocess.run(command, check=True, capture_output=True)

    def _pause(self, site: str) -> None:
        folder, paused = str(self.federation.site(site)), []
        for pid in self.federation.processes(folder):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
                paused.append(pid)

        def go_on() -> None:
            for pid in paused:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)

        seconds = self._random.uniform(5.0, min(30.0, self.longest_cut))
        self._plan(self._clock() + seconds, f"{site} goes on after {seconds:.0f} s", go_on)

    def _lose_runs(self, site: str) -> None:
        shutil.rmtree(self.federation.site(site) / "private" / "runs", ignore_errors=True)
        self._kill("mammo_fed.client.operations.executor", str(self.federation.site(site)))

    def _cut_payload(self, site: str) -> None:
        for path in (self.federation.site(site) / "private" / "runs").glob("*/payload.npy"):
            path.write_bytes(b"")
        self._kill("mammo_fed.client.operations.executor", str(self.federation.site(site)))

    def _damage_database(self) -> None:
        self._power_loss()
        for path in (self.federation.fed / "state").glob("link*.db"):
            with path.open("r+b") as file:
                file.write(random.Random(self.seed).randbytes(4096))  # noqa: S311 - an ordeal, not a secret

    def _empty_secrets(self) -> None:
        self._power_loss()
        for name in ("superexec.secret", "control.secret"):
            with suppress(FileNotFoundError):
                os.truncate(self.federation.fed / "state" / name, 0)

    def _crowd(self) -> None:
        """Requests that are begun and never ended, and heads without an end."""
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        opened = []
        for number in range(80):
            with suppress(OSError):
                line = context.wrap_socket(socket.create_connection(("127.0.0.1", self.federation.port), timeout=2.0))
                head = b"POST /v1/fleet/pull-messages HTTP/1.1\r\nHost: x\r\n"
                line.sendall(head + (b"X: " + b"y" * 60_000 if number % 4 == 0 else b"Content-Length: 1000000\r\n\r\nhalf"))
                opened.append(line)

        def leave() -> None:
            for line in opened:
                line.close()

        seconds = self._random.uniform(5.0, 20.0)
        self._plan(self._clock() + seconds, f"the crowd leaves after {seconds:.0f} s", leave)

    def _cut(self, site: str) -> None:
        line = self.federation.lines[site]
        line.set("down")
        seconds = self._random.uniform(5.0, self.longest_cut)
        self._plan(self._clock() + seconds, f"the line of {site} is whole after {seconds:.0f} s", lambda: line.set("up"))

    def _fill(self, disk: Path | None) -> None:
        assert disk is not None
        filler = disk / "filler"
        with filler.open("wb") as file:
            try:
                while True:
                    file.write(b"\0" * 4096)
                    file.flush()
            except OSError:
                # What is left in the buffer cannot be written at the end either.
                with suppress(OSError):
                    file.close()
        seconds = self._random.uniform(5.0, min(35.0, 2 * self.longest_cut))
        self._plan(self._clock() + seconds, f"the disk has room after {seconds:.0f} s", lambda: filler.unlink(missing_ok=True))

    def _clock(self) -> float:
        return time.monotonic() - self._begun

    def _note(self, what: str) -> None:
        self.story.append(f"{self._clock():.1f} s: {what}")
