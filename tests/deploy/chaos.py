"""Ordeals for a real federation: kills, cut lines, power loss and a full disk, at moments that a seed decides."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from real_federation import RealFederation

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
      limit: seconds for everything.
      story: what happened.
    """

    federation: RealFederation
    seed: int
    overrides: tuple[str, ...]
    longest_cut: float
    disk: Path | None
    limit: float
    story: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)  # noqa: S311 - an ordeal, not a secret
        self._begun = time.monotonic()
        self._later: list[tuple[float, str, Callable[[], None]]] = []

    def run(self) -> None:
        """Start everything, let it happen, and return when the run has ended well; AssertionError if it does not."""
        for name in self.federation.sites:
            self.federation.start_client(name)
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

    @property
    def undisturbed(self) -> bool:
        """Whether every site took part and replied in every round."""
        sites = self.federation.record.privacy.sites
        return len(sites) == len(self.federation.sites) and not any(site.unanswered or site.refused for site in sites)

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
        if self.federation.lines:
            kinds.append((f"cut the line of {site}", lambda: self._cut(site)))
        if self.disk is not None:
            kinds.append(("fill the server's disk", self._fill))
        return self._random.choice(kinds)

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
        self._kill("site-client", "run", str(self.federation.site(site)))
        self.federation.clients[site].kill()
        self.federation.clients[site].wait()
        back = self._clock() + self._random.uniform(0.5, 10.0)
        self._plan(back, f"the site-client of {site} is back", lambda: self.federation.start_client(site))

    def _cut(self, site: str) -> None:
        line = self.federation.lines[site]
        line.set("down")
        seconds = self._random.uniform(5.0, self.longest_cut)
        self._plan(self._clock() + seconds, f"the line of {site} is whole after {seconds:.0f} s", lambda: line.set("up"))

    def _fill(self) -> None:
        assert self.disk is not None
        filler = self.disk / "filler"
        with filler.open("wb") as file:
            try:
                while True:
                    file.write(b"\0" * 4096)
                    file.flush()
            except OSError:
                # What is left in the buffer cannot be written at the end either.
                with suppress(OSError):
                    file.close()
        seconds = self._random.uniform(5.0, 20.0)
        self._plan(self._clock() + seconds, f"the disk has room after {seconds:.0f} s", lambda: filler.unlink(missing_ok=True))

    def _clock(self) -> float:
        return time.monotonic() - self._begun

    def _note(self, what: str) -> None:
        self.story.append(f"{self._clock():.1f} s: {what}")
