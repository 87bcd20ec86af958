"""The server's Flower app between real machines: its run lies in a folder, where it reports what happens and how it ends."""

from __future__ import annotations

import json
import logging
import os
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from mammo_fed.common.logs import LOG_NAME, log_to_file
from mammo_fed.common.private_files import write_private
from mammo_fed.errors import MammoFedError, RunFailed
from mammo_fed.server.operations.events import EventLog, WarningEvents
from mammo_fed.server.operations.run_folder import (
    ATTENDANCE_NAME,
    CHECKPOINT_NAME,
    EVENTS_NAME,
    LINK_VARIABLE,
    MOST_IMAGES_NAME,
    OUTCOME_NAME,
    PID_NAME,
    PLAN_NAME,
    PROGRESS_NAME,
    ROSTER_NAME,
    RUN_VARIABLE,
    SETTINGS_NAME,
)
from mammo_fed.server.plan import ask_sites
from mammo_fed.server.results.progress_lines import round_lines
from mammo_fed.server.rounds.budget import BudgetView
from mammo_fed.server.rounds.rounds import Deployment
from mammo_fed.server.rounds.run_state import CheckpointFolder
from mammo_fed.server.run import Hooks, run_federation
from mammo_fed.settings import Settings

__all__ = ["app"]

logger = logging.getLogger("mammo_fed.run")
ROSTER_SECONDS: Final = 30.0
ROSTER_PAUSE_SECONDS: Final = 0.2
app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:  # noqa: ARG001 - the bundle that came with it says nothing
    """Run, or go on with, the run in the folder that the environment names."""
    folder = Path(os.environ[RUN_VARIABLE])
    write_private(folder / PID_NAME, f"{os.getpid()}\n".encode())
    events = EventLog(folder / EVENTS_NAME)
    with log_to_file(folder / LOG_NAME), _warnings_to(events):
        logger.info("the server's app starts")
        events.write("started", ["the server's app starts"])
        try:
            outcome = {"exit_code": _run(grid, folder, events), "message": ""}
        except MammoFedError as error:
            logger.error("%s", error)
            outcome = {"exit_code": error.exit_code, "message": str(error)}
        except Exception as error:  # noqa: BLE001 - the supervisor must hear of it; Flower would only mark the run as failed
            logger.error("%s", traceback.format_exc())
            outcome = {"exit_code": RunFailed.exit_code, "message": f"internal failure: {type(error).__name__}: {error}"}
        write_private(folder / OUTCOME_NAME, json.dumps(outcome).encode())


def _run(grid: Grid, folder: Path, events: EventLog) -> int:
    """Do what the folder asks for; the exit code."""
    settings = Settings.from_json((folder / SETTINGS_NAME).read_text(encoding="utf-8"))
    hooks = Hooks(
        features=lambda name, done, total: _features(folder, events, name, done, total),
        round=lambda index, rounds, budget: _round(folder, events, index, rounds, budget),
    )
    roster, link = folder / ROSTER_NAME, os.environ.get(LINK_VARIABLE)
    database = Path(link) if link else None
    if (folder / PLAN_NAME).exists():
        wait = float(json.loads((folder / PLAN_NAME).read_text(encoding="utf-8"))["wait"])
        plan = ask_sites(
            grid, settings, roster=lambda: read_roster(roster), wait=wait, database=database, progress=hooks.features
        )
        write_private(folder / PLAN_NAME, json.dumps({"wait": wait, **plan.as_dict()}).encode())
        return plan.exit_code
    deployment = Deployment(
        checkpoints=CheckpointFolder(folder / CHECKPOINT_NAME),
        roster=lambda: read_roster(roster),
        most_images=lambda: read_most_images(folder / MOST_IMAGES_NAME),
        attendance=folder / ATTENDANCE_NAME,
        database=database,
    )
    run_federation(grid, settings, folder, mode="deploy", hooks=hooks, deployment=deployment)
    return 0


def read_roster(path: Path) -> Mapping[int, str]:
    """The registered sites' names by node; empty where sites come without keys.

    Raises:
      RunFailed: If the file is damaged and stays so: without it anybody could answer in the name of a site.
    """
    return _table(path, key=int, value=str)


def read_most_images(path: Path) -> Mapping[str, int]:
    """What registered sites may declare at most, by name; empty where nobody has a limit.

    Raises:
      RunFailed: If the file is damaged and stays so: without it a site might weigh anything.
    """
    return _table(path, key=str, value=int)


def _table(path: Path, *, key: Callable[[Any], Any], value: Callable[[Any], Any]) -> Mapping[Any, Any]:
    """A table that the server's own process keeps in a file; empty where there is none."""
    deadline = time.monotonic() + ROSTER_SECONDS
    while True:
        try:
            return {key(name): value(found) for name, found in json.loads(path.read_text(encoding="utf-8")).items()}
        except FileNotFoundError:
            return {}
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            # The server's own process writes it again when it sees that.
            if time.monotonic() > deadline:
                raise RunFailed(f"{path} is damaged; start the server again with --resume, which makes a new one") from error
            time.sleep(ROSTER_PAUSE_SECONDS)


@contextmanager
def _warnings_to(events: EventLog) -> Iterator[None]:
    handler, packages = WarningEvents(events), logging.getLogger("mammo_fed")
    packages.addHandler(handler)
    try:
        yield
    finally:
        packages.removeHandler(handler)


def _features(folder: Path, events: EventLog, name: str, done: int, total: int) -> None:
    if done == total:
        line = f"features of {total} images ({name})"
        logger.info("%s", line)
        events.write("features", [line], set=name, images=total)
    _progress(folder, {"phase": "features", "set": name, "done": done, "total": total})


def _round(folder: Path, events: EventLog, index: int, rounds: int, budget: BudgetView) -> None:
    lines = round_lines(index, rounds, budget)
    for line in lines:
        logger.info("%s", line)
    sites = [
        {
            "site": name,
            "epsilon": site.epsilon,
            "reason": site.reason,
            "rounds": site.rounds,
            "unanswered": len(site.unanswered),
            "missed": len(site.missed),
            "mismatches": len(site.mismatches),
        }
        for name, site in budget.sites.items()
    ]
    events.write("round", lines, round=index, rounds=rounds, sites=sites)
    _progress(folder, {"phase": "rounds", "round": index, "rounds": rounds, "sites": sites})


def _progress(folder: Path, values: Mapping[str, object]) -> None:
    try:
        write_private(folder / PROGRESS_NAME, json.dumps(values).encode())
    except OSError as error:
        logger.warning("progress cannot be written (%s)", error.strerror)
