"""Every site in a process of its own: Flower's simulation on Ray, with the same two apps."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Mapping
from typing import Any, Final

import ray
from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.simulation import run_simulation

from mammo_fed.errors import RunFailed

__all__ = ["run_on_ray"]

START_SECONDS: Final = 120.0


class _ConfiguredClientApp(ClientApp):
    """The installed client app with the run's configuration, which Flower's Python entry point does not pass on."""

    def __init__(self, run_config: Mapping[str, Any]) -> None:
        super().__init__()
        self._configuration = dict(run_config)

    def __call__(self, message: Message, context: Context) -> Message:
        # Imported where it runs: the app itself need not travel between processes.
        from mammo_fed.client.rounds.app import app

        # A context of our own: Flower refuses a reply whose context has another configuration than before.
        configured = Context(
            run_id=context.run_id,
            node_id=context.node_id,
            node_config=context.node_config,
            state=context.state,
            run_config={**context.run_config, **self._configuration},
        )
        return app(message, configured)


def run_on_ray(server_app: ServerApp, *, num_sites: int, run_config: Mapping[str, Any], workers: int) -> None:
    """Run the server app here and every site in a Ray actor; whatever the server app raises is raised here."""
    configured = ServerApp()

    @configured.main()
    def main(grid: Grid, context: Context) -> None:
        _wait_for_ray()
        context.run_config = {**context.run_config, **run_config}
        server_app(grid, context)

    # Ray's own wish for its next version, given now so that it need not warn.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    backend = {
        "init_args": {"num_cpus": workers, "include_dashboard": False, "logging_level": "error", "log_to_driver": False},
        "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
    }
    with warnings.catch_warnings():
        # Flower deprecates this entry point for its command line, which would install packages and run bundled code.
        warnings.simplefilter("ignore")
        run_simulation(configured, _ConfiguredClientApp(run_config), num_sites, "ray", backend)  # type: ignore[arg-type]


def _wait_for_ray() -> None:
    """Hold the server app back until Ray has started its processes.

    Flower starts Ray while the server app already runs in a thread; a fork while that thread multiplies matrices deadlocks in
    the fork handlers of the linear algebra library.
    """
    deadline = time.monotonic() + START_SECONDS
    while not ray.is_initialized():
        if time.monotonic() > deadline:
            raise RunFailed(f"Ray did not start within {START_SECONDS:g} s; use engine=in_process")
        time.sleep(0.05)
