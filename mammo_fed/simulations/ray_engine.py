"""Every site in a process of its own: Flower's simulation on Ray, with the same two apps."""

from __future__ import annotations

import logging
import os
import sys
import threading
import warnings
from collections.abc import Callable, Mapping
from typing import Any, Final

import ray
from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.simulation import run_simulation
from ray.job_config import JobConfig

from mammo_fed.common.interruption import received
from mammo_fed.common.isolation import absolute_entries, isolate_children
from mammo_fed.errors import RunFailed

__all__ = ["run_on_ray"]

JOIN_SECONDS: Final = 0.5


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


class _IsolatedJob(JobConfig):
    """A job whose workers import nothing from the current folder."""

    def _runtime_env_has_working_dir(self) -> bool:
        # Ray asks this for one purpose only: "no" puts the current folder first on the path of every worker.
        return True


def run_on_ray(server_app: ServerApp, *, num_sites: int, run_config: Mapping[str, Any], workers: int) -> None:
    """Run the server app here and every site in a Ray actor; whatever the server app raises is raised here.

    Raises:
      RunFailed: If Ray does not start.
    """
    configured, stopped = ServerApp(), threading.Event()

    @configured.main()
    def main(grid: Grid, context: Context) -> None:
        context.run_config = {**context.run_config, **run_config}
        _stop_with(grid, stopped)
        server_app(grid, context)

    def simulate() -> None:
        backend = {"client_resources": {"num_cpus": 1, "num_gpus": 0.0}}
        run_simulation(configured, _ConfiguredClientApp(run_config), num_sites, "ray", backend)  # type: ignore[arg-type]

    with warnings.catch_warnings():
        # Flower deprecates this entry point for its command line, which would install packages and run bundled code.
        warnings.simplefilter("ignore")
        _start_ray(workers)
        logging.getLogger("flwr").addFilter(_not_interrupted)
        try:
            _in_a_thread(simulate)
        finally:
            stopped.set()
            ray.shutdown()


def _in_a_thread(work: Callable[[], None]) -> None:
    """Run `work`, and raise here what it raises; an interrupt leaves it where it is.

    Flower's engine answers none before its server app has ended.
    """
    raised: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - raised where it is waited for
            raised.append(error)

    thread = threading.Thread(target=run, name="simulation", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(JOIN_SECONDS)
    if raised:
        raise raised[0]


def _not_interrupted(_: logging.LogRecord) -> bool:
    """Once a signal has come, Flower's engine tells of every actor that is ended below it, as of a fault."""
    return not received()


def _stop_with(grid: Grid, stopped: threading.Event) -> None:
    """From now on the grid hands on nothing once `stopped` is set: its server app ends, and asks no site any more."""
    ask: Any = grid
    for name in ("get_node_ids", "push_messages", "pull_messages"):
        setattr(ask, name, _unless(stopped, getattr(ask, name)))


def _unless(stopped: threading.Event, act: Callable[..., Any]) -> Callable[..., Any]:
    def acting(*arguments: Any, **named: Any) -> Any:
        if stopped.is_set():
            raise RunFailed("the simulation was interrupted")
        return act(*arguments, **named)

    return acting


def _start_ray(workers: int) -> None:
    """Start Ray before Flower would.

    Flower starts Ray while the server app already runs in a thread, and a fork while that thread multiplies matrices deadlocks
    in the fork handlers of the linear algebra library. It takes a Ray that is there.
    """
    isolate_children()
    # Ray's own wish for its next version, given now so that it need not warn.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # Where this process finds its modules, the workers find them.
    path = absolute_entries(os.pathsep.join(sys.path))
    try:
        ray.init(
            num_cpus=workers,
            include_dashboard=False,
            logging_level=logging.ERROR,
            log_to_driver=False,
            job_config=_IsolatedJob(),
            runtime_env={"env_vars": {"PYTHONPATH": path}},
        )
    except (OSError, RuntimeError, ValueError, TimeoutError) as error:
        raise RunFailed(f"Ray does not start ({type(error).__name__}: {error}); use engine=in_process") from error
