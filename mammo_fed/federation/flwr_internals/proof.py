"""What a site proves itself with, looked at before anything else of its request: a registered key, a fresh signature, once.

Flower lets a SuperNode sign the time, and nothing else, and takes such a signature for five minutes. Here it is good for one
request; and who has no registered key cannot make the server read a body.

Flower takes a signature of a clock that is up to five minutes behind the server's, and of one that is five seconds ahead. Here
both may be `CLOCK_TOLERANCE_SECONDS` off. A registered site whose clock is further off is refused like everybody, but is told
so, and so is the coordinator; whoever cannot sign with a registered key learns no more than that.
"""

from __future__ import annotations

import binascii
import hashlib
import threading
import time
from base64 import b64decode
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from fastapi import HTTPException
from flwr.common.constant import TIMESTAMP_HEADER
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER
from flwr.supercore.date import now
from flwr.supercore.primitives.asymmetric import bytes_to_public_key, verify_signature
from flwr.superlink.routers.fleet import node_auth
from flwr.superlink.servicer.fleet import fleet_handlers

from mammo_fed.federation.identity.clocks import CLOCK_TOLERANCE_SECONDS, REFUSED_FOR_CLOCK, REFUSED_HEADER

__all__ = ["Objection", "Proofs", "answer_in_own_name_only", "take_clocks_ahead"]

UNAUTHORIZED: Final = 401
# A signature of a clock that is ahead is fresh for longest: until the server's time has passed it by as much again.
REMEMBERED_SECONDS: Final = 2 * CLOCK_TOLERANCE_SECONDS + 10.0


@dataclass(frozen=True, kw_only=True)
class Objection:
    """Why a request goes no further.

    Attributes:
      status: of HTTP.
      headers: for who has signed with a registered key, the reason; empty for everybody else.
    """

    status: int = UNAUTHORIZED
    headers: tuple[tuple[bytes, bytes], ...] = ()


STRANGER: Final = Objection()
WRONG_CLOCK: Final = Objection(headers=((REFUSED_HEADER.encode(), REFUSED_FOR_CLOCK.encode()),))


class Proofs:
    """Remembers what has been proved; safe to use from several threads.

    Args:
      is_registered: whether a public key, as Flower writes it, belongs to a site that may come in.
      clock: the time, with its zone.
      passed: seconds that only grow, whatever the clock is set to: by them proofs are forgotten.
      on_wrong_clock: called with the public key of a registered site, and how many seconds its clock is ahead of `clock`
        (negative: behind), for each of its requests that is refused for that alone.
    """

    def __init__(
        self,
        is_registered: Callable[[bytes], bool],
        *,
        clock: Callable[[], datetime] = now,
        passed: Callable[[], float] = time.monotonic,
        on_wrong_clock: Callable[[bytes, float], None] = lambda _key, _seconds: None,
    ) -> None:
        self._is_registered, self._clock, self._passed = is_registered, clock, passed
        self._on_wrong_clock = on_wrong_clock
        self._seen: set[bytes] = set()
        self._order: deque[tuple[float, bytes]] = deque()
        self._lock = threading.Lock()

    def objection(self, headers: Mapping[bytes, bytes]) -> Objection | None:
        """None for a request with these headers from a registered site, for the first time; else why it goes no further."""
        try:
            key = b64decode(headers[FLEET_HTTP_PUBLIC_KEY_HEADER.encode()], validate=True)
            signature = b64decode(headers[FLEET_HTTP_SIGNATURE_HEADER.encode()], validate=True)
            stamp = headers[TIMESTAMP_HEADER.encode()]
            signed = datetime.fromisoformat(stamp.decode("ascii"))
            ahead = (signed - self._clock()).total_seconds()
            if not (self._is_registered(key) and verify_signature(bytes_to_public_key(key), stamp, signature)):
                return STRANGER
        except (KeyError, ValueError, TypeError, AttributeError, OverflowError, binascii.Error):
            return STRANGER
        if abs(ahead) >= CLOCK_TOLERANCE_SECONDS:
            self._on_wrong_clock(key, ahead)
            return WRONG_CLOCK
        # By key and time, not by signature: anybody can turn an ECDSA signature into a second one of the same text.
        return None if self._first(hashlib.sha256(key + stamp).digest()) else STRANGER

    def _first(self, proof: bytes) -> bool:
        moment = self._passed()
        with self._lock:
            while self._order and moment - self._order[0][0] > REMEMBERED_SECONDS:
                self._seen.discard(self._order.popleft()[1])
            if proof in self._seen:
                return False
            self._seen.add(proof)
            self._order.append((moment, proof))
        return True


def take_clocks_ahead() -> None:
    """In this process: Flower's own look at a signature, which comes after `Proofs`, allows clocks as much as that does."""
    names: Any = node_auth
    # It asks for -SYSTEM < age < TIMESTAMP + SYSTEM.
    names.SYSTEM_TIME_TOLERANCE, names.TIMESTAMP_TOLERANCE = CLOCK_TOLERANCE_SECONDS, 0.0


def answer_in_own_name_only() -> None:
    """In this process: a site's reply must name the node that has proved itself; Flower compares the two nowhere."""
    push = fleet_handlers.push_messages

    def checked(request: Any, state: Any) -> Any:
        if any(message.metadata.src_node_id != request.node.node_id for message in request.messages_list):
            raise HTTPException(403)
        return push(request=request, state=state)

    fleet_handlers.push_messages = checked
