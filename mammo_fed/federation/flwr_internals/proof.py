"""What a site proves itself with, looked at before anything else of its request: a registered key, a fresh signature, once.

Flower lets a SuperNode sign the time, and nothing else, and takes such a signature for five minutes. Here it is good for one
request; and who has no registered key cannot make the server read a body.
"""

from __future__ import annotations

import binascii
import hashlib
import threading
from base64 import b64decode
from collections import deque
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, Final

from fastapi import HTTPException
from flwr.common.constant import SYSTEM_TIME_TOLERANCE, TIMESTAMP_HEADER, TIMESTAMP_TOLERANCE
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER
from flwr.supercore.date import now
from flwr.supercore.primitives.asymmetric import bytes_to_public_key, verify_signature
from flwr.superlink.servicer.fleet import fleet_handlers

__all__ = ["Proofs", "answer_in_own_name_only"]

# As long as Flower takes a signature, whose clock may be ahead or behind.
REMEMBERED_SECONDS: Final = TIMESTAMP_TOLERANCE + 3 * SYSTEM_TIME_TOLERANCE


class Proofs:
    """Remembers what has been proved; safe to use from several threads.

    Args:
      is_registered: whether a public key, as Flower writes it, belongs to a site that may come in.
      clock: the time, with its zone.
    """

    def __init__(self, is_registered: Callable[[bytes], bool], *, clock: Callable[[], datetime] = now) -> None:
        self._is_registered, self._clock = is_registered, clock
        self._seen: set[bytes] = set()
        self._order: deque[tuple[datetime, bytes]] = deque()
        self._lock = threading.Lock()

    def accepts(self, headers: Mapping[bytes, bytes]) -> bool:
        """Whether a request with these headers comes from a registered site, and for the first time."""
        try:
            key = b64decode(headers[FLEET_HTTP_PUBLIC_KEY_HEADER.encode()], validate=True)
            signature = b64decode(headers[FLEET_HTTP_SIGNATURE_HEADER.encode()], validate=True)
            stamp = headers[TIMESTAMP_HEADER.encode()]
            signed = datetime.fromisoformat(stamp.decode("ascii"))
            age = (self._clock() - signed).total_seconds()
            if not -SYSTEM_TIME_TOLERANCE < age < TIMESTAMP_TOLERANCE + SYSTEM_TIME_TOLERANCE:
                return False
            if not (self._is_registered(key) and verify_signature(bytes_to_public_key(key), stamp, signature)):
                return False
        except (KeyError, ValueError, TypeError, AttributeError, binascii.Error):
            return False
        # By key and time, not by signature: anybody can turn an ECDSA signature into a second one of the same text.
        return self._first(hashlib.sha256(key + stamp).digest())

    def _first(self, proof: bytes) -> bool:
        moment = self._clock()
        with self._lock:
            while self._order and (moment - self._order[0][0]).total_seconds() > REMEMBERED_SECONDS:
                self._seen.discard(self._order.popleft()[1])
            if proof in self._seen:
                return False
            self._seen.add(proof)
            self._order.append((moment, proof))
        return True


def answer_in_own_name_only() -> None:
    """In this process: a site's reply must name the node that has proved itself; Flower compares the two nowhere."""
    push = fleet_handlers.push_messages

    def checked(request: Any, state: Any) -> Any:
        if any(message.metadata.src_node_id != request.node.node_id for message in request.messages_list):
            raise HTTPException(403)
        return push(request=request, state=state)

    fleet_handlers.push_messages = checked
