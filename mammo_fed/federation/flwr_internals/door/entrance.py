"""Where connections come in: one waits without TLS until it has sent a whole greeting, and handshakes are made in turn."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

import uvicorn

from mammo_fed.federation.flwr_internals.door.callers import Caller, Callers, State, network_of
from mammo_fed.federation.flwr_internals.door.connection import Connection
from mammo_fed.federation.flwr_internals.door.limits import Limits
from mammo_fed.federation.flwr_internals.door.turned_away import TurnedAway

__all__ = ["Entrance", "Listener"]

# Connections that are taken from the system in one turn of the loop.
BATCH: Final = 32
BACKLOG: Final = 4096
SHUTDOWN_SECONDS: Final = 5.0
# So long a handshake may take while others wait for theirs.
PRESSED_SECONDS: Final = 1.5
HANDSHAKE_RECORD: Final = 22
# The longest record of TLS, with its head.
HELLO_BYTES: Final = 5 + (1 << 14)
RESET: Final = struct.pack("ii", 1, 0)

Protocol = Callable[[Caller, Callers, bool], Connection]


@dataclass(frozen=True, kw_only=True)
class Listener:
    """A socket that is bound, what its callers may take, and whether they are this server's own processes."""

    sock: socket.socket
    limits: Limits
    own: bool


class Entrance:
    """Takes the connections of one listener.

    Args:
      listener: whose.
      config: uvicorn's.
      protocol: makes the protocol of a new connection.
      turned_away: told who was not let in.
    """

    def __init__(self, listener: Listener, config: uvicorn.Config, protocol: Protocol, turned_away: TurnedAway) -> None:
        self._listener, self._ssl, self._turned_away = listener, config.ssl, turned_away
        self._protocol = protocol
        self.callers = Callers(listener.limits)
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._ready: dict[Caller, socket.socket] = {}

    def open(self) -> None:
        """Begin to take connections."""
        sock = self._listener.sock
        sock.setblocking(False)
        sock.listen(BACKLOG)
        self._loop.add_reader(sock, self._accept)

    def close(self) -> None:
        """Take no more, and drop those who have not come far."""
        self._loop.remove_reader(self._listener.sock)
        for caller in self.callers.all():
            if caller.state < State.STRANGER:
                caller.drop()

    def look(self, now: float) -> None:
        """End what is overdue."""
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
        encrypted = self._ssl is not None
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
        context: ssl.SSLContext | None = self._ssl
        times = {}
        if context is not None:
            times = {
                "ssl_handshake_timeout": self._listener.limits.handshake_seconds,
                "ssl_shutdown_timeout": SHUTDOWN_SECONDS,
            }
        try:
            await self._loop.connect_accepted_socket(
                lambda: self._protocol(caller, self.callers, self._listener.own),
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
