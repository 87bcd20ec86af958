"""What a request may bring along, and what a site may leave at the server: looked at before any of it is read."""

from __future__ import annotations

import asyncio
import binascii
import threading
from base64 import b64decode
from collections import OrderedDict
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final, TypeVar

from fastapi import HTTPException
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
from flwr.superlink.servicer.fleet import fleet_handlers

from mammo_fed.federation.flwr_internals.door.connection import DOOR, Connection
from mammo_fed.federation.flwr_internals.door.limits import (
    BODY_BYTES,
    LARGE_BODY_BYTES,
    MESSAGE_BYTES,
    MESSAGE_OBJECTS,
    OBJECT_BYTES,
    OWN_BODY_BYTES,
    TREE_BYTES,
)

__all__ = ["Bodies", "Parked"]

SITES_SIDE: Final = "/v1/fleet/"
LENGTH_REQUIRED: Final = 411
TOO_LARGE: Final = 413
TOO_MANY: Final = 429
UNAVAILABLE: Final = 503
LARGE_AT_A_TIME: Final = 2
# Below the 30 s after which Flower's client gives up.
TURN_SECONDS: Final = 25.0
# Answers of which it is remembered how much came.
REMEMBERED: Final = 4096
# How often all parts of an answer may be announced: a site that starts again says the same once more.
ANNOUNCED: Final = 4

Key = TypeVar("Key")
Value = TypeVar("Value")
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class Bodies:
    """ASGI middleware within the guard: bodies of a known and bounded length, two large ones of a site at a time.

    Args:
      app: what reads them.
      with_keys: whether the guard lets sites in by their keys only.
    """

    def __init__(self, app: App, *, with_keys: bool) -> None:
        self._app, self._with_keys = app, with_keys
        self._turns: dict[bytes, asyncio.Semaphore] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI's interface."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        connection: Connection | None = scope.get("extensions", {}).get(DOOR)
        own = connection is not None and connection.own
        length = headers.get(b"content-length", b"0")
        key = self._key(scope, headers)
        if b"transfer-encoding" in headers or not length.isdigit():
            await _refuse(send, LENGTH_REQUIRED)
        elif int(length) > _limit(str(scope["path"]), own=own):
            await _refuse(send, TOO_LARGE)
        elif key is not None and connection is not None and not connection.is_site(key):
            await _refuse(send, TOO_MANY)
        elif key is None or int(length) <= LARGE_BODY_BYTES:
            await self._app(scope, receive, send)
        else:
            await self._in_turn(key, scope, receive, send)

    async def _in_turn(self, key: bytes, scope: Scope, receive: Receive, send: Send) -> None:
        turns = self._turns.setdefault(key, asyncio.Semaphore(LARGE_AT_A_TIME))
        try:
            await asyncio.wait_for(turns.acquire(), TURN_SECONDS)
        except TimeoutError:
            await _refuse(send, UNAVAILABLE)
            return
        try:
            await self._app(scope, receive, send)
        finally:
            turns.release()

    def _key(self, scope: Scope, headers: dict[bytes, bytes]) -> bytes | None:
        """The key that the guard has accepted for this request, as bytes: its spelling is the caller's."""
        if not self._with_keys or not str(scope["path"]).startswith(SITES_SIDE):
            return None
        try:
            return b64decode(headers[FLEET_HTTP_PUBLIC_KEY_HEADER.encode()], validate=True)
        except (KeyError, binascii.Error):
            return None


def _limit(path: str, *, own: bool) -> int:
    if path.endswith("/push-object"):
        return OBJECT_BYTES
    if path.endswith("/push-messages"):
        return TREE_BYTES
    return OWN_BODY_BYTES if own else BODY_BYTES


async def _refuse(send: Send, status: int) -> None:
    # Nothing of the body has been read: the connection is of no more use.
    headers = [(b"content-length", b"0"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b""})


class Parked:
    """Bounds what one answer of a site leaves at this server; safe to use from several threads.

    Args:
      most_bytes: of all its parts.
      most_objects: parts.
    """

    def __init__(self, *, most_bytes: int = MESSAGE_BYTES, most_objects: int = MESSAGE_OBJECTS) -> None:
        self._most_bytes, self._most_objects = most_bytes, most_objects
        self._sessions: OrderedDict[str, tuple[int, str]] = OrderedDict()
        self._bytes: OrderedDict[tuple[int, str], int] = OrderedDict()
        self._objects: OrderedDict[tuple[int, str], int] = OrderedDict()
        self._lock = threading.Lock()

    def install(self) -> None:
        """From now on sites' answers are bounded in this process."""
        push_messages, push_object = fleet_handlers.push_messages, fleet_handlers.push_object

        def messages(request: Any, state: Any) -> Any:
            self._announce(request)
            response = push_messages(request=request, state=state)
            with self._lock:
                answer = (request.node.node_id, request.messages_list[0].metadata.reply_to_message_id)
                _remember(self._sessions, response.session_id, answer)
            return response

        def part(request: Any, state: Any) -> Any:
            self._store(request)
            return push_object(request=request, state=state)

        fleet_handlers.push_messages, fleet_handlers.push_object = messages, part

    def _announce(self, request: Any) -> None:
        if len(request.messages_list) != 1 or len(request.message_object_trees) != 1:
            raise HTTPException(400)
        count = sum(1 for _ in iterate_object_tree(request.message_object_trees[0]))
        answer = (request.node.node_id, request.messages_list[0].metadata.reply_to_message_id)
        with self._lock:
            announced = self._objects.get(answer, 0) + count
            if count > self._most_objects or announced > ANNOUNCED * self._most_objects:
                raise HTTPException(TOO_LARGE)
            _remember(self._objects, answer, announced)

    def _store(self, request: Any) -> None:
        # After a restart of this process a session that goes on is counted by itself.
        with self._lock:
            answer = self._sessions.get(request.session_id, (request.node.node_id, request.session_id))
            came = self._bytes.get(answer, 0) + len(request.object_content)
            if came > self._most_bytes:
                raise HTTPException(TOO_LARGE)
            _remember(self._bytes, answer, came)


def _remember(where: OrderedDict[Key, Value], key: Key, value: Value) -> None:
    where[key] = value
    where.move_to_end(key)
    if len(where) > REMEMBERED:
        where.popitem(last=False)
