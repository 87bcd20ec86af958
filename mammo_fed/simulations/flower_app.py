"""The simulation under Flower's own command line: `flwr run .` starts this ServerApp, and Flower starts the hospitals."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Sequence
from typing import Final

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from mammo_fed.common.logs import LOG_NAME, log_to_file
from mammo_fed.common.private_files import write_atomically
from mammo_fed.errors import InvalidSetting
from mammo_fed.federation.run_folder import run_folder_of
from mammo_fed.server.operations.run_folder import CHECKPOINT_NAME
from mammo_fed.server.rounds.run_state import CheckpointFolder
from mammo_fed.server.run import Hooks, run_federation
from mammo_fed.settings.compose import Composed, compose_settings
from mammo_fed.simulations.launch import prepare, requiring_all

__all__ = ["compose_for", "make_app"]

NUM_SITES: Final = "federation.num_sites"
logger = logging.getLogger(__name__)


def make_app() -> ServerApp:
    """A server app that makes the simulated hospitals before it runs their federation.

    Its configuration is two texts: `overrides`, settings as `mammo-fed simulate` takes them, and `run-folder`.
    """
    made = ServerApp()

    @made.main()
    def main(grid: Grid, context: Context) -> None:
        composed = compose_for(str(context.run_config["overrides"]), num_nodes=len(list(grid.get_node_ids())))
        folder = run_folder_of(context)
        prepare(composed.settings, folder, hooks=Hooks())
        write_atomically(folder / "config.yaml", composed.yaml)
        # Flower shows it to those who asked for the run's log.
        logger.warning("run folder %s", folder)
        with log_to_file(folder / LOG_NAME):
            run_federation(
                grid,
                composed.settings,
                folder,
                mode="simulate",
                hooks=requiring_all(Hooks(), composed.settings.federation.num_sites),
                checkpoints=CheckpointFolder(folder / CHECKPOINT_NAME),
            )

    return made


def compose_for(overrides: str, *, num_nodes: int) -> Composed:
    """The settings of a run on Flower's simulation.

    Args:
      overrides: words such as `seed=1 privacy.target_epsilon=2`, quoted as in a shell.
      num_nodes: SuperNodes of the simulation; each is a hospital.

    Raises:
      InvalidSetting: If an override is wrong or asks for another number of hospitals.
    """
    words = shlex.split(overrides)
    if not _names(words, "engine"):
        words.append("engine=ray")
    if not _names(words, NUM_SITES):
        words.append(f"{NUM_SITES}={num_nodes}")
    composed = compose_settings(words)
    if (asked := composed.settings.federation.num_sites) != num_nodes:
        raise InvalidSetting(
            f"{NUM_SITES}={asked} must be {num_nodes}, as many as SuperNodes; give --federation-config num-supernodes={asked}"
        )
    return composed


def _names(words: Sequence[str], key: str) -> bool:
    return any(word.partition("=")[0] == key for word in words)
