"""A uvicorn server that looks at who connects before it spends anything on him.

Who has shown a registered key is not turned away for others.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import resource
import socket
import ssl
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

import uvicorn

from mammo_fed.federation.flwr_internals.door.callers import Caller, Callers
from mammo_fed.federation.flwr_internals.door.connection import Connection
from mammo_fed.federation.flwr_internals.door.entrance import Entrance, Listener
from mammo_fed.federation.flwr_internals.door.turned_away import TurnedAway

__all__ = ["DoorServer", "raise_file_limit"]

LOOK_SECONDS: Final = 0.25
# After so many connections what they left is looked for; what the C library keeps goes back every second.
TIDY_CONNECTIONS: Final = 20
TRIM_SECONDS: Final = 1.0
# Descriptors for all that is no connection from outside.
RESERVED_FILES: Final = 640
WANTED_FILES: Final = 8192
LIBC: Final = ctypes.CDLL(None)


def raise_file_limit() -> int:
    """Let this process open as many files as it may, up to 8,192; how many that is."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = WANTED_FILES if hard == resource.RLIM_INFINITY else min(WANTED_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        return wanted
    return wanted if soft == resource.RLIM_INFINITY else soft


class DoorServer(uvicorn.Server):
    """uvicorn's server, behind doors.

    Args:
      config: uvicorn's.
      listeners: where it listens.
    """

    def __init__(self, config: uvicorn.Config, listeners: Sequence[Listener], turned_away: TurnedAway) -> None:
        super().__init__(config)
        self._listeners, self._turned_away = listeners, turned_away
        self._doors: list[Entrance] = []

    def connection(self, caller: Caller, callers: Callers, own: bool) -> Connection:
        """The protocol of a new connection."""
        return Connection(
            caller,
            callers,
            self._turned_away,
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
            door = Entrance(replace(listener, limits=limits), self.config, self.connection, self._turned_away)
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
        trimmed, tidied, kept = loop.time(), 0, False
        # What is there now stays: only what connections leave is looked through.
        gc.collect()
        gc.freeze()
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            now = loop.time()
            for door in self._doors:
                door.look(now)
            self._turned_away.tell()
            come = sum(door.callers.come for door in self._doors)
            if come > tidied + TIDY_CONNECTIONS:
                # A connection and its protocols refer to one another: Python keeps them until much more of it has gathered.
                gc.collect()
                tidied, kept = come, True
            if kept and now > trimmed + TRIM_SECONDS:
                with contextlib.suppress(AttributeError):
                    LIBC.malloc_trim(0)
                trimmed, kept = now, False

    def _failed(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """What went wrong below a connection is counted; anything else is told in full."""
        error = context.get("exception")
        if isinstance(error, OSError | ssl.SSLError):
            self._turned_away.count("that broke")
            return
        loop.default_exception_handler(context)
