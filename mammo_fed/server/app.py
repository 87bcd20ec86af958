"""The server's Flower app: unpack the run's settings, run, write."""

from __future__ import annotations

from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from mammo_fed.server.run import Hooks, run_federation
from mammo_fed.settings import Settings

__all__ = ["app", "make_app"]


def make_app(hooks: Hooks) -> ServerApp:
    """A server app that tells its progress to `hooks`."""
    made = ServerApp()

    @made.main()
    def main(grid: Grid, context: Context) -> None:
        settings = Settings.from_json(str(context.run_config["config-json"]))
        mode = str(context.run_config["mode"])
        run_federation(grid, settings, Path(str(context.run_config["run-folder"])), mode=mode, hooks=hooks)  # type: ignore[arg-type]

    return made


app = make_app(Hooks())
