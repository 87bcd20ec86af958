"""The environment in which Flower's own processes run: nothing is reported, looked up or installed."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Final

from mammo_fed.common.proxies import without_proxies

__all__ = ["PROXY_VARIABLE", "flower_environment"]

# Of a SuperNode's own process: the URL of the proxy through which it reaches the server.
PROXY_VARIABLE: Final = "MAMMO_FED_PROXY"


def flower_environment(home: Path) -> dict[str, str]:
    """Variables for a process of Flower's that keeps its own files in `home`."""
    commands = str(Path(sys.executable).parent)
    return {
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.5",
        "PYTHONUNBUFFERED": "1",
        # Flower finds its own commands by name.
        "PATH": os.pathsep.join([commands, os.environ.get("PATH", os.defpath)]),
        # Whoever connects is where the connection comes from, whatever its headers or this machine's settings say.
        "FORWARDED_ALLOW_IPS": "127.0.0.1",
        "WEB_CONCURRENCY": "1",
        **without_proxies(),
    }
