"""flower-server listen: the guarded SuperLink without a run, so that sites can connect and check their way to it."""

from __future__ import annotations

import argparse
import time
from typing import Final

from rich.console import Console

from mammo_fed.common.command_line import say
from mammo_fed.common.supervision import ManagedProcess
from mammo_fed.server.operations.commands.run import server_page, warn_of_door
from mammo_fed.server.operations.folder import FederationFolder
from mammo_fed.server.operations.supervisor import Server, stopping

__all__ = ["listen"]

LOOK_SECONDS: Final = 0.5
FOLDER: Final = "listening"


def listen(options: argparse.Namespace, console: Console) -> int:
    """Listen until stopped, giving way to every run; the exit code.

    Raises:
      InvalidSetting: If another listener has the folder.
      RunFailed: If the SuperLink does not start.
    """
    folder = FederationFolder.open(options.folder)
    warn_of_door(folder, console, insecure=options.insecure)
    (folder.state / FOLDER).mkdir(mode=0o700, exist_ok=True)
    with stopping() as stopped, server_page(folder, options.metrics_port):
        while not stopped:
            with folder.hold_between_runs():
                listener = _Listener(folder, run_folder=folder.state / FOLDER, insecure=options.insecure, console=console)
                listener.listen()
                try:
                    listener.prepare_processes()
                    listener.run(stopped)
                finally:
                    listener.stop_listening()
            if not stopped:
                say(console, "a run or a plan begins; sites may connect to it, and to this listener again when it has ended")
            while folder.run_wants_folder and not stopped:
                time.sleep(LOOK_SECONDS)
    return 0


class _Listener(Server):
    """The server's processes but for those of a run, until one is wanted."""

    _look = 0.0

    def _purpose(self) -> str:
        return "there is no run; sites may connect"

    def _processes(self) -> tuple[ManagedProcess, ...]:
        return super()._processes()[:1]

    def _step(self) -> int | None:
        if not self._insecure and self._supervisor.processes[0].running:
            self._authorizer.check()
        if time.monotonic() < self._look:
            return None
        self._look = time.monotonic() + LOOK_SECONDS
        return 0 if self._folder.run_wants_folder else None

    def _show_events(self) -> None:
        """Nothing: no run tells any."""

    def _interrupted(self) -> int:
        self._say("stopped listening")
        return 0
