"""A SuperLink behind a guard: `python -m mammo_fed.federation.flwr_internals.guard`, with a SuperLink's own options.

Flower serves sites, coordinators and its own processes on one port, and asks a coordinator for nothing: a stranger could start
runs. The guard answers 404 to everything but the sites' side and the health check unless it comes from this machine, and asks
for the server's secret where a run can be started, stopped or looked at.
"""

from __future__ import annotations

import hmac
import ipaddress
import os
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any, Final

import flwr.superlink.main as superlink
from flwr.superlink.cli import flower_superlink

from mammo_fed.federation.flwr_internals.control import CONTROL_HEADER

__all__ = ["CONTROL_FILE_VARIABLE", "Guard", "main"]

CONTROL_FILE_VARIABLE: Final = "MAMMO_FED_CONTROL_SECRET_FILE"
SITES_SIDE: Final = ("/v1/fleet/",)
HEALTH: Final = "/health"
OWN_PROCESSES: Final = "/v1/runtime/"

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class Guard:
    """ASGI middleware: who may see what.

    Args:
      app: what is guarded.
      secret: asked for on the control side.
    """

    def __init__(self, app: App, *, secret: str) -> None:
        self._app, self._secret = app, secret

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI's interface."""
        if scope["type"] == "lifespan" or (scope["type"] == "http" and self._allows(scope)):
            await self._app(scope, receive, send)
            return
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1000})
            return
        await send({"type": "http.response.start", "status": 404, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})

    def _allows(self, scope: Scope) -> bool:
        path = str(scope["path"])
        if path == HEALTH or path.startswith(SITES_SIDE):
            return True
        host = (scope.get("client") or ("",))[0]
        try:
            local = ipaddress.ip_address(host).is_loopback
        except ValueError:
            return False
        if not local:
            return False
        # Flower's own processes prove themselves with tokens; everybody else on this machine needs the server's secret.
        return path.startswith(OWN_PROCESSES) or self._knows_secret(scope)

    def _knows_secret(self, scope: Scope) -> bool:
        given = dict(scope["headers"]).get(CONTROL_HEADER.encode(), b"")
        return hmac.compare_digest(given, self._secret.encode())


def main() -> None:
    """Run a guarded SuperLink; the secret is read from the file that the environment names."""
    secret = Path(os.environ[CONTROL_FILE_VARIABLE]).read_text(encoding="ascii").strip()
    make = superlink.create_app

    def guarded(*arguments: Any, **named: Any) -> Any:
        made = make(*arguments, **named)
        made.add_middleware(Guard, secret=secret)
        return made

    superlink.create_app = guarded
    flower_superlink()


if __name__ == "__main__":
    main()
