"""One connection's HTTP: a head of bounded size and time, one request at a time, and no waiting for who does not move."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from typing import Any, Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from mammo_fed.federation.flwr_internals.door.callers import Caller, Callers, State
from mammo_fed.federation.flwr_internals.door.limits import HEAD_BYTES, HEAD_FIELDS, OBJECT_BYTES
from mammo_fed.federation.flwr_internals.door.turned_away import TurnedAway

__all__ = ["DOOR", "Connection"]

# Under which a request finds its connection in the scope's extensions.
DOOR: Final = "mammo_fed.door"
# A body may take so long at the least, and one more second for so many bytes of it.
BODY_SECONDS: Final = 60.0
BODY_BYTES_PER_SECOND: Final = 8 << 10
# A body above this is read when it is asked for.
UNASKED_BYTES: Final = 32 << 10
# So long a refusal may take to reach who has sent a body that is not read.
CLOSING_SECONDS: Final = 0.25


class _Refused(Exception):
    """What httptools is stopped with."""


class Connection(HttpToolsProtocol):
    """uvicorn's protocol, with limits.

    Args:
      caller: who it is.
      callers: whom it is counted with.
      turned_away: told what went wrong.
      own: whether it came over the socket of this server's own processes.
      named: uvicorn's own arguments.
    """

    def __init__(self, caller: Caller, callers: Callers, turned_away: TurnedAway, *, own: bool, **named: Any) -> None:
        super().__init__(**named)
        self.caller, self.callers, self.own = caller, callers, own
        self._turned_away = turned_away
        self._limits = callers.limits
        self.timeout_keep_alive = int(self._limits.site_idle_seconds if own else self._limits.idle_seconds)
        self._in_head, self._head_since = True, self.loop.time()
        # Bytes of the present request that are no body; the parser keeps them all.
        self._overhead, self._fields = 0, 0
        self._begun, self._heard = 0.0, self.loop.time()
        self._unsent, self._unsent_since = 0, 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Flow control begins where the handshake has ended."""
        made: Any = transport
        super().connection_made(made)
        self._head_since = self._heard = self.loop.time()
        self.caller.line, self.caller.busy, self.caller.drop = self, self._busy, self.abort
        self.callers.move(self.caller, State.STRANGER, self.loop.time())

    def connection_lost(self, exc: Exception | None) -> None:
        """The place is free again."""
        self.callers.leave(self.caller)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Count before and after what the parser takes."""
        if self.transport.is_closing():
            return
        self._heard = self.loop.time()
        if not self._in_head and not self._busy():
            self._in_head, self._head_since, self._overhead, self._fields = True, self._heard, 0, 0
        self._overhead += len(data)
        super().data_received(data)
        if self._overhead > HEAD_BYTES and not self.transport.is_closing():
            self.turn_away("with a head that is too long")

    def on_message_begin(self) -> None:
        """One request, and the next: more sent ahead would have to be kept.

        A client sends its next when it has an answer whole, which may be before the app has said that this was all.
        """
        if self.pipeline:
            self.turn_away("sent ahead of answers")
            raise _Refused
        self._in_head, self._head_since, self._fields = True, self.loop.time(), 0
        super().on_message_begin()
        scope: Any = self.scope
        scope["extensions"] = {DOOR: self}

    def on_url(self, url: bytes) -> None:
        """A part of the address."""
        super().on_url(url)
        self._check_head(len(self.url))

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header field, or one after a body."""
        self._fields += 1
        self._check_head(len(name) + len(value))
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The head has come; nothing else than HTTP is spoken here."""
        if self.parser.should_upgrade():
            raise _Refused
        self._in_head, self._begun = False, self.loop.time()
        super().on_headers_complete()
        if self._announced() > UNASKED_BYTES:
            # Nothing of it is read until the app asks: most are refused for what their heads say.
            self.flow.pause_reading()

    def on_body(self, body: bytes) -> None:
        """A part of the body."""
        self._overhead -= len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """What comes now is of another request."""
        self._overhead = 0
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Who still sends what nobody reads is not waited for."""
        super().on_response_complete()
        # It may be the next that is at its beginning here.
        if self.cycle.response_complete and self.cycle.more_body:
            self.flow.pause_reading()
            self.transport.close()
            self.loop.call_later(CLOSING_SECONDS, self.abort)

    def send_400_response(self, msg: str) -> None:
        """Only where somebody may still listen."""
        if not self.transport.is_closing():
            super().send_400_response(msg)

    def timeout_keep_alive_handler(self) -> None:
        """An answer that is still on its way is no idle connection."""
        if not self.transport.is_closing() and self.transport.get_write_buffer_size():
            self.timeout_keep_alive_task = self.loop.call_later(1.0, self.timeout_keep_alive_handler)
            return
        super().timeout_keep_alive_handler()

    def is_site(self, key: bytes) -> bool:
        """A registered key has been shown; False where it has too many connections."""
        if not self.callers.is_site(self.caller, key, self.loop.time()):
            return False
        self.timeout_keep_alive = int(self._limits.site_idle_seconds)
        return True

    def look(self, now: float) -> None:
        """End the connection where something is overdue."""
        limits = self._limits
        if self._in_head and not self._busy():
            if now > self._head_since + limits.head_seconds and not self._resting():
                self.turn_away("with a head that did not come")
        elif self._busy() and self.cycle.more_body and not self.flow.read_paused:
            due = self._begun + BODY_SECONDS + min(self._announced(), OBJECT_BYTES) / BODY_BYTES_PER_SECOND
            slow = now > due
            if slow or now > self._heard + limits.stall_seconds:
                self.turn_away("with a body that did not come")
        unsent = self.transport.get_write_buffer_size()
        if unsent == 0 or self._unsent == 0 or unsent < self._unsent:
            self._unsent_since = now
        elif now > self._unsent_since + limits.stall_seconds:
            self.turn_away("that did not take its answer")
        self._unsent = unsent

    def turn_away(self, reason: str) -> None:
        """End the connection at once, and count why."""
        self._turned_away.count(reason, self.caller.address)
        self.abort()

    def abort(self) -> None:
        """End the connection at once."""
        self.callers.leave(self.caller)
        with contextlib.suppress(RuntimeError, OSError):
            self.transport.abort()

    def _busy(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _resting(self) -> bool:
        """Between two requests, where uvicorn's own time runs."""
        return self.timeout_keep_alive_task is not None

    def _announced(self) -> int:
        """The length of the body; of one whose end is not announced, the most that there is."""
        headers = dict(self.headers)
        found = headers.get(b"content-length", b"0")
        if b"transfer-encoding" in headers:
            return sys.maxsize
        return int(found) if found.isdigit() else 0

    def _check_head(self, size: int) -> None:
        if self._fields > HEAD_FIELDS or size > HEAD_BYTES:
            self.turn_away("with a head that is too long")
            raise _Refused
