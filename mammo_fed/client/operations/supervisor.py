"""`site-client run`: a SuperNode and the site's executor, kept alive; a reboot of either side loses nothing."""

from __future__ import annotations

import json
import math
import os
import re
import secrets
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from mammo_fed.client.folder import SiteFolder
from mammo_fed.client.operations.activity_lines import ACTIVITY_NAME, activity_line
from mammo_fed.client.operations.server_line import what_is_wrong
from mammo_fed.common.interruption import stop_signals
from mammo_fed.common.isolation import python_command
from mammo_fed.common.json_lines import LineReader, last_lines, read_object
from mammo_fed.common.private_files import hex_secret, write_private
from mammo_fed.common.supervision import ManagedProcess, Supervisor
from mammo_fed.federation.flwr_internals.environment import PROXY_VARIABLE, flower_environment
from mammo_fed.federation.flwr_internals.health import healthy

__all__ = ["HEALTH_NAME", "serve", "status"]

# In which an executor writes what it does.
HEALTH_NAME: Final = "executor.json"
STATE_NAME: Final = "site-client.json"
TICK_SECONDS: Final = 0.2
HEALTH_SECONDS: Final = 5.0
# Answers that `status` shows.
SHOWN: Final = 5
# Between looks for the server: while the executor waits to be started, and at most while it runs.
LOOK_SECONDS: Final = 0.5
LAST_LOOK_SECONDS: Final = 15.0
LOOK_TIMEOUT_SECONDS: Final = 2.0
# How long a round that has begun may take before a stop does not wait for it any more.
GRACE_SECONDS: Final = 300.0
# A SuperNode looks for answers twice a second, and hands them on.
HAND_OVER_SECONDS: Final = 3.0
LOWEST_PORT: Final = 20_000
PORTS: Final = 12_000
NUMBER: Final = re.compile("[0-9]+")
NODE_MODULE: Final = "mammo_fed.federation.flwr_internals.supernode"


def serve(folder: SiteFolder, *, insecure: bool, console: Console) -> int:
    """Answer the federation's server until asked to stop, and return the exit code.

    The first SIGTERM, SIGHUP or Ctrl-C lets a round that has begun end; the second does not.

    Args:
      folder: the site's; held by the caller.
      insecure: neither encryption nor a key.
      console: told what happens.
    """
    return _SiteClient(folder, insecure=insecure, console=console).run()


def status(folder: SiteFolder) -> dict[str, Any]:
    """What the site's processes are doing: plain values for people and programs."""
    running = folder.held
    found: dict[str, Any] = {"site": folder.file.site, "site_client": "running" if running else "stopped"}
    if running:
        for name in (STATE_NAME, HEALTH_NAME):
            found |= read_object(folder.private / name)
    found["last"] = last_lines(folder.private / ACTIVITY_NAME)[-SHOWN:]
    insecure = bool(found.get("insecure"))
    found["server"] = folder.network.server
    found["server_answers"] = healthy(
        folder.network.server, ca=None if insecure else folder.authority, proxy=folder.network.way
    )
    return found


class _SiteClient:
    def __init__(self, folder: SiteFolder, *, insecure: bool, console: Console) -> None:
        self._folder, self._insecure, self._console = folder, insecure, console
        self._asked = 0
        self._reported = 0.0
        self._activity = LineReader(folder.private / ACTIVITY_NAME, seen=True)
        secret = folder.private / "superexec.secret"
        if hex_secret(secret)[1]:
            self._say(f"{secret} was damaged; there is a new one")
        port = folder.network.executor_port
        self._node, self._executor = self._processes(
            secret, _free_port(other_than=folder.network.port) if port == "auto" else port
        )
        # It takes memory and processor time that nobody needs before there is a server.
        self._executor.due, self._look, self._last_seen = math.inf, 0.0, 0.0
        self._idle = 60.0 * folder.network.executor_idle_minutes
        self._wrong = ""
        self._supervisor = Supervisor((self._node, self._executor), on_death=self._report_death)

    def run(self) -> int:
        with stop_signals(self._ask_to_stop):
            self._say(f"{self._folder.file.site} answers {self._folder.network.server}; logs in {self._folder.private}")
            try:
                while not self._asked:
                    self._look_for_server()
                    self._supervisor.tick()
                    self._show_activity()
                    self._report()
                    time.sleep(TICK_SECONDS)
                self._finish()
                self._show_activity()
            finally:
                self._supervisor.end(seconds=5.0)
        return 0

    def _show_activity(self) -> None:
        with suppress(OSError):
            for found in self._activity.read():
                self._say(activity_line(found))

    def _look_for_server(self) -> None:
        """Start the executor where there is a server; end it where there has been none for long, as after a run."""
        now, absent = time.monotonic(), math.isinf(self._executor.due)
        if now < self._look:
            return
        wrong = what_is_wrong(self._folder, insecure=self._insecure, seconds=LOOK_TIMEOUT_SECONDS)
        if not wrong:
            self._last_seen = time.monotonic()
            if absent:
                self._executor.due = 0.0
        elif not absent and now - self._last_seen > self._idle and not self._in_use():
            self._executor.end(seconds=GRACE_SECONDS)
            self._executor.due = math.inf
            (self._folder.private / HEALTH_NAME).unlink(missing_ok=True)
            self._say("no server and no task for a while: the executor has ended, and is started again when the server is back")
        if absent and wrong and (kind := NUMBER.sub("", wrong)) != self._wrong:
            # Said again only when it is another reason: the difference of two clocks moves.
            self._say(f"waiting for the server: {wrong}")
            self._wrong = kind
        look = LOOK_SECONDS if math.isinf(self._executor.due) else min(LAST_LOOK_SECONDS, self._idle / 4)
        self._look = time.monotonic() + look

    def _in_use(self) -> bool:
        """Whether the executor has a task, or something in its memory alone that a later round takes up."""
        health = self._health()
        return health.get("busy_since") is not None or bool(health.get("holds_state"))

    def _finish(self) -> None:
        """Let the executor end what it has begun, and the SuperNode hand it on."""
        process = self._executor.process
        if process is None or not self._executor.running:
            return
        busy = self._busy_since() is not None
        if busy:
            self._say("a round has begun; it is finished first (again Ctrl-C: at once; it is then charged and repeated)")
        process.terminate()
        deadline = time.monotonic() + GRACE_SECONDS
        while self._asked < 2 and self._executor.running and time.monotonic() < deadline:
            time.sleep(TICK_SECONDS)
        if busy and self._asked < 2:
            time.sleep(HAND_OVER_SECONDS)

    def _report_death(self, ended: ManagedProcess, wait: float) -> None:
        self._say(f"the {ended.name} has ended; it is started again in {wait:.1f} s ({ended.log})")
        if ended is self._node and ended.deaths in (1, 5):
            wrong = what_is_wrong(self._folder, insecure=self._insecure, seconds=LOOK_TIMEOUT_SECONDS)
            self._say(wrong or "the server is there; if it ends again: has its coordinator registered this site's present key?")
        begun = self._busy_since() if ended is self._executor else None
        if begun is not None and self._node.running and begun > time.time() - (time.monotonic() - self._node.started):
            # The SuperNode would wait for the answer of the dead: a new one asks the server again.
            self._node.end(seconds=5.0)
        if ended is self._executor:
            (self._folder.private / HEALTH_NAME).unlink(missing_ok=True)

    def _busy_since(self) -> float | None:
        found: float | None = self._health().get("busy_since")
        return found

    def _health(self) -> dict[str, Any]:
        return read_object(self._folder.private / HEALTH_NAME)

    def _report(self) -> None:
        if time.monotonic() < self._reported + HEALTH_SECONDS and self._reported:
            return
        self._reported = time.monotonic()
        values = {
            "pid": os.getpid(),
            "insecure": self._insecure,
            "supernode": "running" if self._node.running else "starting",
            "executor": "running" if self._executor.running else "waiting" if math.isinf(self._executor.due) else "starting",
            "supernode_deaths": self._node.deaths,
            "executor_deaths": self._executor.deaths,
        }
        with suppress(OSError):
            write_private(self._folder.private / STATE_NAME, json.dumps(values).encode())

    def _processes(self, secret: Path, port: int) -> tuple[ManagedProcess, ManagedProcess]:
        folder, state = self._folder, self._folder.private
        environment = flower_environment(state / "flwr")
        node_only = {PROXY_VARIABLE: folder.network.way} if folder.network.way else {}
        node = python_command(NODE_MODULE, "--superlink", folder.network.server)
        node += ["--host", "127.0.0.1", "--port", str(port)]
        node += ["--isolation", "process", "--superexec-auth-secret-file", str(secret)]
        if self._insecure:
            node += ["--insecure"]
        else:
            node += ["--root-certificates", str(folder.authority), "--auth-supernode-private-key", str(folder.key)]
        executor = python_command("mammo_fed.client.operations.executor", "--address", f"127.0.0.1:{port}")
        executor += ["--secret-file", str(secret), "--site-file", str(folder.site_file), "--state", str(state)]
        executor += ["--parent-pid", str(os.getpid())]
        return (
            ManagedProcess(
                name="SuperNode", command=node, log=state / "supernode.log", environment={**environment, **node_only}
            ),
            ManagedProcess(name="executor", command=executor, log=state / "executor.log", environment=environment),
        )

    def _ask_to_stop(self, *_: object) -> None:
        self._asked += 1

    def _say(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


def _free_port(*, other_than: int) -> int:
    """A port that nobody listens on, below those of outgoing connections: it stays free while a SuperNode is started again.

    Args:
      other_than: the server's, which may be on this machine too and not be there yet.
    """
    while True:
        port = LOWEST_PORT + secrets.randbelow(PORTS)
        if port == other_than:
            continue
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
