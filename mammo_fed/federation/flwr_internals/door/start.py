"""From a uvicorn command to a server behind doors: sockets and limits come from the process that started this one."""

from __future__ import annotations

import json
import logging
import os
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import uvicorn

from mammo_fed.federation.flwr_internals.door.entrance import Listener
from mammo_fed.federation.flwr_internals.door.limits import Limits
from mammo_fed.federation.flwr_internals.door.server import DoorServer
from mammo_fed.federation.flwr_internals.door.turned_away import OftenSaid, TurnedAway

__all__ = ["serve"]

SOCKETS_VARIABLE: Final = "MAMMO_FED_DOOR"
STARTUP_FAILURE: Final = 3
GRACE_SECONDS: Final = 2
# Whose lines strangers can cause.
LOGGERS: Final = ("uvicorn.access", "uvicorn.error", "asyncio", "flwr")


@dataclass(frozen=True, kw_only=True)
class _Given:
    """What the environment says: descriptors of bound sockets, and what one address may have."""

    public: int
    own: int
    per_address: int


def serve(app: Any, *, host: str, port: int, **named: Any) -> None:
    """In place of `uvicorn.run`: serve an app behind doors until asked to stop.

    Args:
      app: ASGI.
      host, port: for the log; the sockets are bound already.
      named: uvicorn's own arguments.
    """
    given = _Given(**json.loads(os.environ[SOCKETS_VARIABLE]))
    own = replace(Limits(), per_address=256, strangers=256, waiting=256)
    listeners = (
        Listener(sock=socket.socket(fileno=given.own), limits=own, own=True),
        Listener(sock=socket.socket(fileno=given.public), limits=Limits(per_address=given.per_address), own=False),
    )
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        **{key: value for key, value in named.items() if key not in ("reload", "workers")},
        ws="none",
        server_header=False,
        # Whoever connects is where the connection comes from, whatever its headers say.
        proxy_headers=False,
        timeout_graceful_shutdown=GRACE_SECONDS,
    )
    _serve(config, listeners)


def _serve(config: uvicorn.Config, listeners: Sequence[Listener]) -> None:
    turned_away = TurnedAway()
    for name in LOGGERS:
        logging.getLogger(name).addFilter(OftenSaid(turned_away))
    server = DoorServer(config, listeners, turned_away)
    server.run()
    if not server.started:
        sys.exit(STARTUP_FAILURE)
