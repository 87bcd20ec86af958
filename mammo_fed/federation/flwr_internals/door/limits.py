"""What one caller, and all of them together, may take of a server."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Final

__all__ = [
    "BODY_BYTES",
    "CONNECTIONS_PER_ADDRESS",
    "HEAD_BYTES",
    "HEAD_FIELDS",
    "LARGE_BODY_BYTES",
    "MESSAGE_BYTES",
    "MESSAGE_OBJECTS",
    "OBJECT_BYTES",
    "OWN_BODY_BYTES",
    "TREE_BYTES",
    "Limits",
]

# Connections of one address, unless the federation's folder says otherwise.
CONNECTIONS_PER_ADDRESS: Final = 100
# A request's line, header fields and whatever else is not its body. A site's are below 2 kB.
HEAD_BYTES: Final = 32 << 10
HEAD_FIELDS: Final = 64
# A heartbeat, or a question for work: below 1 kB.
BODY_BYTES: Final = 64 << 10
# The names of all parts of a message; a network of 500 MB has 100 of them.
TREE_BYTES: Final = 1 << 20
# A part of a message: Flower cuts arrays into pieces of 5 MiB.
OBJECT_BYTES: Final = 6 << 20
# What this server's own processes send, when they start a run or end one.
OWN_BODY_BYTES: Final = 32 << 20
# A body above this is large: a site may send two of them at a time, as Flower's SuperNode does.
LARGE_BODY_BYTES: Final = 256 << 10
# An answer of a site to one message, all parts together, and how many there may be.
MESSAGE_BYTES: Final = 1 << 30
MESSAGE_OBJECTS: Final = 4096


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits of one listening socket.

    Attributes:
      per_address: connections of one address (of IPv6: of one /64 network) at a time, >= 1.
      waiting: connections that have sent nothing yet, of all addresses; they cost a descriptor each.
      handshakes: TLS handshakes in progress.
      strangers: open connections that have shown no registered key; each costs a TLS buffer of 256 kB at the most, and more.
      per_site: connections and requests in progress of one registered key.
      first_byte_seconds: until a connection has to send something.
      handshake_seconds: for a TLS handshake.
      head_seconds: until a request's header fields must be complete.
      stall_seconds: without a byte in either direction while one is due.
      idle_seconds: between two requests of a stranger.
      site_idle_seconds: between two requests of a registered site; longer than its own side keeps a connection.
    """

    per_address: int = CONNECTIONS_PER_ADDRESS
    waiting: int = 1024
    handshakes: int = 32
    strangers: int = 64
    per_site: int = 32
    first_byte_seconds: float = 10.0
    handshake_seconds: float = 10.0
    head_seconds: float = 10.0
    stall_seconds: float = 30.0
    idle_seconds: float = 5.0
    site_idle_seconds: float = 75.0

    def to_json(self) -> str:
        """For the environment of the process that listens."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Limits:
        """Inverse of `to_json`."""
        return cls(**json.loads(text))
