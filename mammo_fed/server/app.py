"""The server's Flower app: unpack the run's settings, run, write."""

from __future__ import annotations

from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from mammo_fed.server.operations.run_folder import CHECKPOINT_NAME
from mammo_fed.server.rounds.run_state import CheckpointFolder
from mammo_fed.server.run import Hooks, run_federation
from mammo_fed.settings import Settings

__all__ = ["app", "make_app"]


def make_app(hooks: Hooks) -> ServerApp:
    """A server app that tells its progress to `hooks`."""
    made = ServerApp()

    @made.main()
    def main(grid: Grid, context: Context) -> None:
        settings = Settings.from_json(str(context.run_config["config-json"]))
        folder, mode = Path(str(context.run_config["run-folder"])), str(context.run_config["mode"])
        # A row of a reproduction starts again in a moment, and there are thousands; what is charged for good does not.
        kept = mode != "reproduce" or settings.privacy.ledger != "run"
        checkpoints = CheckpointFolder(folder / CHECKPOINT_NAME) if kept else None
        run_federation(grid, settings, folder, mode=mode, hooks=hooks, checkpoints=checkpoints)  # type: ignore[arg-type]

    return made


app = make_app(Hooks())
