"""A uvicorn server that looks at who connects before it spends anything on him.

A connection waits without TLS until it has sent something. Handshakes are made a few at a time, in turn by address. Who has
shown a registered key is not turned away for others.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import resource
import socket
import ssl
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

import uvicorn

from mammo_fed.federation.flwr_internals.door.callers import Caller, Callers, State, network_of
from mammo_fed.federation.flwr_internals.door.connection import Connection
from mammo_fed.federation.flwr_internals.door.limits import Limits
from mammo_fed.federation.flwr_internals.door.turned_away import TurnedAway

__all__ = ["DoorServer", "Listener", "raise_file_limit"]

# Connections that are taken from the system in one turn of the loop.
BATCH: Final = 32
BACKLOG: Final = 4096
LOOK_SECONDS: Final = 0.25
# So long a handshake may take while others wait for theirs.
PRESSED_SECONDS: Final = 1.5
HANDSHAKE_RECORD: Final = 22
# The longest record of TLS, with its head.
HELLO_BYTES: Final = 5 + (1 << 14)
# After so many connections what they left is looked for, at most every few seconds.
TIDY_CONNECTIONS: Final = 200
TIDY_SECONDS: Final = 5.0
# Descriptors for all that is no connection from outside.
RESERVED_FILES: Final = 640
WANTED_FILES: Final = 8192
SHUTDOWN_SECONDS: Final = 5.0
LIBC: Final = ctypes.CDLL(None)
RESET: Final = struct.pack("ii", 1, 0)


@dataclass(frozen=True, kw_only=True)
class Listener:
    """A socket that is bound, what its callers may take, and whether they are this server's own processes."""

    sock: socket.socket
    limits: Limits
    own: bool


def raise_file_limit() -> int:
    """Let this process open as many files as it may, up to 8,192; how many that is."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = WANTED_FILES if hard == resource.RLIM_INFINITY else min(WANTED_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        return wanted
    return wanted if soft == resource.RLIM_INFINITY else soft


class _Door:
    """Takes the connections of one listener.

    Args:
      listener: whose.
      server: for whom.
      turned_away: told who was not let in.
    """

    def __init__(self, listener: Listener, server: DoorServer, turned_away: TurnedAway) -> None:
        self._listener, self._server, self._turned_away = listener, server, turned_away
        self.callers = Callers(listener.limits)
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._ready: dict[Caller, socket.socket] = {}

    def open(self) -> None:
        sock = self._listener.sock
        sock.setblocking(False)
        sock.listen(BACKLOG)
        self._loop.add_reader(sock, self._accept)

    def close(self) -> None:
        self._loop.remove_reader(self._listener.sock)
        for caller in self.callers.all():
            if caller.state < State.STRANGER:
                caller.drop()

    def look(self, now: float) -> None:
        limits = self._listener.limits
        for caller in self.callers.all():
            if caller.state < State.HANDSHAKE and now > caller.since + limits.first_byte_seconds:
                self._turned_away.count("that said nothing", caller.address)
                caller.drop()
            elif caller.line is not None:
                caller.line.look(now)
        if self.callers.number(State.READY):
            # Others wait: who does not go on with his handshake makes room.
            for caller in self.callers.all():
                if caller.state == State.HANDSHAKE and now > caller.since + PRESSED_SECONDS:
                    self._turned_away.count("with a handshake that did not go on", caller.address)
                    caller.drop()
        self._begin_handshakes()

    def _accept(self) -> None:
        for _ in range(BATCH):
            try:
                sock, about = self._listener.sock.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                # No descriptor or memory is left, or the caller has gone.
                self._turned_away.count("for want of resources")
                return
            self._take(sock, str(about[0]))

    def _take(self, sock: socket.socket, address: str) -> None:
        sock.setblocking(False)
        now = self._loop.time()
        caller = Caller(address=address, network=network_of(address), since=now, drop=lambda: None)
        caller.drop = partial(self._drop, caller, sock)
        if reason := self.callers.admit(caller, now):
            self._turned_away.count(reason, address)
            _reset(sock)
            return
        self._loop.add_reader(sock, self._first_byte, caller, sock)

    def _first_byte(self, caller: Caller, sock: socket.socket, asked: int = 1) -> None:
        self._loop.remove_reader(sock)
        try:
            first = sock.recv(HELLO_BYTES, socket.MSG_PEEK)
        except OSError:
            first = b""
        encrypted = self._server.config.ssl is not None
        whole = _record_bytes(first) if encrypted else 1
        if len(first) < asked or (encrypted and first[0] != HANDSHAKE_RECORD):
            if len(first) >= asked:
                self._turned_away.count("without TLS", caller.address)
            caller.drop()
        elif len(first) < whole:
            # Half a greeting gets no TLS: the system tells of the rest, or of the end, when it is there.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, whole)
            self._loop.add_reader(sock, self._first_byte, caller, sock, whole)
        else:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
            self.callers.move(caller, State.READY, self._loop.time())
            self._ready[caller] = sock
            self._begin_handshakes()

    def _begin_handshakes(self) -> None:
        while (caller := self.callers.next_ready()) is not None:
            sock = self._ready.pop(caller)
            self.callers.move(caller, State.HANDSHAKE, self._loop.time())
            task = self._loop.create_task(self._handshake(caller, sock))
            caller.drop = partial(self._drop, caller, sock, task)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _handshake(self, caller: Caller, sock: socket.socket) -> None:
        context: ssl.SSLContext | None = self._server.config.ssl
        times = {}
        if context is not None:
            times = {
                "ssl_handshake_timeout": self._listener.limits.handshake_seconds,
                "ssl_shutdown_timeout": SHUTDOWN_SECONDS,
            }
        try:
            await self._loop.connect_accepted_socket(
                lambda: self._server.connection(caller, self.callers, self._turned_away, own=self._listener.own),
                sock,
                ssl=context,
                **times,
            )
        except (OSError, ssl.SSLError, TimeoutError):
            self._turned_away.count("with a handshake that failed", caller.address)
            _shut(sock)
        except asyncio.CancelledError:
            _shut(sock)
        finally:
            if caller.state == State.HANDSHAKE:
                self.callers.leave(caller)
            self._begin_handshakes()

    def _drop(self, caller: Caller, sock: socket.socket, task: asyncio.Task[None] | None = None) -> None:
        self.callers.leave(caller)
        if task is not None:
            task.cancel()
            return
        self._ready.pop(caller, None)
        with contextlib.suppress(OSError, ValueError):
            self._loop.remove_reader(sock)
        _reset(sock)


class DoorServer(uvicorn.Server):
    """uvicorn's server, behind doors.

    Args:
      config: uvicorn's.
      listeners: where it listens.
    """

    def __init__(self, config: uvicorn.Config, listeners: Sequence[Listener], turned_away: TurnedAway) -> None:
        super().__init__(config)
        self._listeners, self._turned_away = listeners, turned_away
        self._doors: list[_Door] = []

    def connection(self, caller: Caller, callers: Callers, turned_away: TurnedAway, *, own: bool) -> Connection:
        """The protocol of a new connection."""
        return Connection(
            caller,
            callers,
            turned_away,
            own=own,
            config=self.config,
            server_state=self.server_state,
            app_state=self.lifespan.state,
        )

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:  # noqa: ARG002 - uvicorn's interface
        """Begin to take connections."""
        await self.lifespan.startup()
        if self.lifespan.should_exit:
            self.should_exit = True
            return
        self.servers = []
        files = raise_file_limit()
        asyncio.get_running_loop().set_exception_handler(self._failed)
        for listener in self._listeners:
            most = max(64, (files - RESERVED_FILES) // 2)
            limits = replace(listener.limits, waiting=min(listener.limits.waiting, most))
            door = _Door(replace(listener, limits=limits), self, self._turned_away)
            door.open()
            self._doors.append(door)
        self._looking = asyncio.get_running_loop().create_task(self._look())
        self.started = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End, taking no more connections."""
        for door in self._doors:
            door.close()
        await super().shutdown(sockets)
        self._looking.cancel()

    async def _look(self) -> None:
        loop = asyncio.get_running_loop()
        tidied, ended = loop.time(), 0
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            now = loop.time()
            for door in self._doors:
                door.look(now)
            self._turned_away.tell()
            come = sum(door.callers.come for door in self._doors)
            if come > ended + TIDY_CONNECTIONS and now > tidied + TIDY_SECONDS:
                # Python keeps what refers to itself until much more of it has gathered, and the C library what was given back.
                gc.collect()
                with contextlib.suppress(AttributeError):
                    LIBC.malloc_trim(0)
                tidied, ended = loop.time(), come

    def _failed(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """What went wrong below a connection is counted; anything else is told in full."""
        error = context.get("exception")
        if isinstance(error, OSError | ssl.SSLError):
            self._turned_away.count("that broke")
            return
        loop.default_exception_handler(context)


def _record_bytes(first: bytes) -> int:
    """The length of the TLS record that begins so, as far as it can be told."""
    return 5 if len(first) < 5 else min(HELLO_BYTES, 5 + int.from_bytes(first[3:5]))


def _shut(sock: socket.socket) -> None:
    """End a connection whose descriptor the loop closes itself."""
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)


def _reset(sock: socket.socket) -> None:
    """Close without waiting for anything."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    sock.close()
