"""Where a simulated run lies, as its server and its hospitals both read it from what Flower tells them."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from flwr.app import Context

__all__ = ["SITES_NAME", "run_folder_of"]

SITES_NAME: Final = "sites"
RUNS: Final = Path("runs")


def run_folder_of(context: Context) -> Path:
    """The folder that the run's configuration names as `run-folder`; by default one below runs/ with the run's number."""
    given = str(context.run_config.get("run-folder", ""))
    return (Path(given).expanduser() if given else RUNS / f"flower-{context.run_id}").resolve()
