"""A SuperLink behind a guard: `python -m mammo_fed.federation.flwr_internals.guard`, with a SuperLink's own options.

Flower serves sites, coordinators and its own processes on one port, and asks a coordinator for nothing: a stranger could start
runs. The guard answers 404 to everything but the sites' side and the health check unless it comes from this machine, and asks
for the server's secret where a run can be started, stopped or looked at. On the sites' side it reads nothing from those who
have no registered key, and nothing twice.
"""

from __future__ import annotations

import hmac
import ipaddress
import os
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any, Final

import flwr.superlink.main as superlink
import uvicorn
from flwr.server.superlink.linkstate import LinkState
from flwr.supercore.constant import NodeStatus
from flwr.supercore.corestate import sql_corestate
from flwr.superlink.cli import flower_superlink
from starlette.concurrency import run_in_threadpool

from mammo_fed.federation.flwr_internals.control import CONTROL_HEADER
from mammo_fed.federation.flwr_internals.door.bodies import Bodies, Parked
from mammo_fed.federation.flwr_internals.door.start import serve
from mammo_fed.federation.flwr_internals.proof import Objection, Proofs, answer_in_own_name_only, take_clocks_ahead
from mammo_fed.federation.identity.clocks import CLOCKS_NAME, WrongClocks

__all__ = ["CONTROL_FILE_VARIABLE", "Guard", "give_time_to_start", "let_push_again", "let_return", "main"]

CONTROL_FILE_VARIABLE: Final = "MAMMO_FED_CONTROL_SECRET_FILE"
SITES_SIDE: Final = ("/v1/fleet/",)
HEALTH: Final = "/health"
OWN_PROCESSES: Final = "/v1/runtime/"
# For TLS 1.2; uvicorn's own choice offers nothing but CBC with SHA-1 there. TLS 1.3 has no others.
# Until the server's app must first have been heard of.
START_SECONDS: Final = 300
CIPHERS: Final = "ECDHE+AESGCM:ECDHE+CHACHA20"
# Pieces of messages, of at most 5 MiB each, that are remembered as stored.
PIECES: Final = 10_000
NOT_THERE: Final = Objection(status=404)

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class Guard:
    """ASGI middleware: who may see what.

    Args:
      app: what is guarded.
      secret: asked for on the control side.
      proofs: asked for on the sites' side; None where sites come without keys.
    """

    def __init__(self, app: App, *, secret: str, proofs: Proofs | None) -> None:
        self._app, self._secret, self._proofs = app, secret, proofs

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI's interface."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1000})
            return
        objection = await self._objection(scope) if scope["type"] == "http" else None
        if objection is None:
            await self._app(scope, receive, send)
            return
        # Nothing of the body has been read: the connection is of no more use.
        headers = [(b"content-length", b"0"), (b"connection", b"close"), *objection.headers]
        await send({"type": "http.response.start", "status": objection.status, "headers": headers})
        await send({"type": "http.response.body", "body": b""})

    async def _objection(self, scope: Scope) -> Objection | None:
        """Why a request goes no further; None lets it pass."""
        path = str(scope["path"])
        if path == HEALTH:
            return None
        if path.startswith(SITES_SIDE):
            return None if self._proofs is None else await run_in_threadpool(self._proofs.objection, dict(scope["headers"]))
        if not _is_local(scope):
            return NOT_THERE
        # Flower's own processes prove themselves with tokens; everybody else on this machine needs the server's secret.
        return None if path.startswith(OWN_PROCESSES) or self._knows_secret(scope) else NOT_THERE

    def _knows_secret(self, scope: Scope) -> bool:
        given = dict(scope["headers"]).get(CONTROL_HEADER.encode(), b"")
        return hmac.compare_digest(given, self._secret.encode())


def _is_local(scope: Scope) -> bool:
    try:
        address = ipaddress.ip_address((scope.get("client") or ("",))[0])
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback


def let_return(state: LinkState) -> None:
    """From now on a node that was counted as present when this SuperLink started, and has not been heard since, may come again.

    A site that stops after the server cannot say good-bye; Flower would turn it away until its last heartbeat has expired.
    """
    present = {node.node_id: node.online_until for node in state.get_node_info(statuses=[NodeStatus.ONLINE])}
    activate = state.activate_node

    def activate_again(node_id: int, heartbeat_interval: float) -> bool:
        last = present.pop(node_id, None)
        if last is not None and any(node.online_until == last for node in state.get_node_info(node_ids=[node_id])):
            state.deactivate_node(node_id)
        return activate(node_id, heartbeat_interval)

    named: Any = state
    named.activate_node = activate_again


def let_push_again(state: LinkState) -> None:
    """From now on a piece of a message that comes a second time, because the answer to the first was lost, counts as stored.

    Flower takes each piece once. A site whose line broke before it heard so would give up the whole message. Only who was given
    the secret number of a push is told that a piece of it is there.
    """
    store, stored = state.store_object, dict[tuple[str, str], None]()

    def store_again(run_id: int, session_id: str, object_id: str, object_content: bytes) -> bool:
        piece = (session_id, object_id)
        if store(run_id, session_id, object_id, object_content):
            stored[piece] = None
            while len(stored) > PIECES:
                # The oldest; another thread may have been faster.
                stored.pop(next(iter(stored)), None)
            return True
        return bool(session_id) and piece in stored

    named: Any = state
    named.store_object = store_again


def give_time_to_start() -> None:
    """From now on the server's app has START_SECONDS to start: on a busy machine its libraries take more than Flower's 30 s.

    Flower forgets the token of a task whose process has not been heard of in that time, and turns the process away for good.
    That an app has died is seen by its supervisor, from its process.
    """
    named: Any = sql_corestate
    named.HEARTBEAT_DEFAULT_INTERVAL = START_SECONDS


def main() -> None:
    """Run a guarded SuperLink; the secret is read from the file that the environment names."""
    # Its database holds what sites sent.
    os.umask(0o077)
    secret_file = Path(os.environ[CONTROL_FILE_VARIABLE])
    secret = secret_file.read_text(encoding="ascii").strip()
    wrong_clocks = WrongClocks(secret_file.with_name(CLOCKS_NAME))
    make = superlink.create_app

    def guarded(*arguments: Any, **named: Any) -> Any:
        made = make(*arguments, **named)
        links = made.state.linkstate_factory
        proofs = Proofs(lambda key: links.state().get_node_id_by_public_key(key) is not None, on_wrong_clock=wrong_clocks.note)
        let_return(links.state())
        let_push_again(links.state())
        with_keys = made.state.enable_supernode_auth
        # What is added last is asked first.
        made.add_middleware(Bodies, with_keys=with_keys)
        made.add_middleware(Guard, secret=secret, proofs=proofs if with_keys else None)
        return made

    def served(app: Any, **named: Any) -> None:
        serve(app, **named, ssl_ciphers=CIPHERS)

    give_time_to_start()
    Parked().install()
    answer_in_own_name_only()
    take_clocks_ahead()
    superlink.create_app, uvicorn.run = guarded, served
    flower_superlink()


if __name__ == "__main__":
    main()
