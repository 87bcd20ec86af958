"""Who is connected: how many of each address, in which state, and who has to go when there is no room."""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from mammo_fed.federation.flwr_internals.door.limits import Limits

__all__ = ["Caller", "Callers", "State", "network_of"]

# So long a TLS handshake is left alone, whoever else waits.
FRESH_SECONDS = 1.0


class State(IntEnum):
    """How far a connection has come."""

    WAITING = 0
    READY = 1
    HANDSHAKE = 2
    STRANGER = 3
    SITE = 4


def _never() -> bool:
    return False


@dataclass(eq=False)
class Caller:
    """One connection.

    Attributes:
      address: for people.
      network: by which it is counted.
      since: when it came into its state, on the loop's clock.
      drop: ends it at once; set by who opened it.
      busy: whether a request of it is being answered.
    """

    address: str
    network: str
    since: float
    drop: Callable[[], None]
    state: State = State.WAITING
    key: bytes = b""
    busy: Callable[[], bool] = _never
    line: Any = None


class Callers:
    """All connections of one listening socket.

    Args:
      limits: of the socket.

    Attributes:
      come: how many have been let in so far.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits, self.come = limits, 0
        # In the order in which they came, so that the first found is the oldest.
        self._all: dict[Caller, None] = {}
        self._states: Counter[State] = Counter()
        self._networks: dict[str, dict[Caller, None]] = {}
        self._keys: Counter[bytes] = Counter()
        # Networks by their last handshake, of those that are here: who had one goes behind the others.
        self._served: dict[str, int] = {}
        self._turn = 0

    def all(self) -> tuple[Caller, ...]:
        """Every connection, the oldest first."""
        return tuple(self._all)

    def __len__(self) -> int:
        return len(self._all)

    def number(self, state: State) -> int:
        """Of connections in a state."""
        return self._states[state]

    def admit(self, caller: Caller, now: float) -> str:
        """Let a new connection in, dropping another where there is no room; the reason why it was not let in, or ""."""
        own = self._networks.get(caller.network, {})
        if len(own) >= self.limits.per_address and not self._make_room(own, now):
            return "beyond what one address may have"
        waiting = self._states[State.WAITING] + self._states[State.READY]
        if waiting >= self.limits.waiting and not self._make_room(self._busiest(State.WAITING, State.READY), now):
            return "beyond what may wait"
        self.come += 1
        self._all[caller] = None
        self._networks.setdefault(caller.network, {})[caller] = None
        self._states[caller.state] += 1
        return ""

    def move(self, caller: Caller, state: State, now: float) -> None:
        """Note how far a connection has come; strangers beyond their number have to go."""
        if caller not in self._all:
            return
        self._states[caller.state] -= 1
        caller.state, caller.since = state, now
        self._states[state] += 1
        if state == State.STRANGER and self._states[state] > self.limits.strangers:
            others = {other: None for other in self._busiest(State.STRANGER) if other is not caller}
            if not self._make_room(others, now):
                caller.drop()

    def is_site(self, caller: Caller, key: bytes, now: float) -> bool:
        """Note that a connection has shown a registered key; False where that key has too many."""
        if caller.state == State.SITE or caller not in self._all:
            return True
        if self._keys[key] >= self.limits.per_site:
            return False
        caller.key = key
        self._keys[key] += 1
        self.move(caller, State.SITE, now)
        return True

    def leave(self, caller: Caller) -> None:
        """A connection has ended; it may be told twice."""
        if caller not in self._all:
            return
        del self._all[caller]
        self._states[caller.state] -= 1
        own = self._networks[caller.network]
        del own[caller]
        if not own:
            del self._networks[caller.network]
            self._served.pop(caller.network, None)
        if caller.state == State.SITE:
            self._keys[caller.key] -= 1
            self._keys += Counter()
        # It refers to who refers to it.
        caller.line, caller.busy = None, _never

    def next_ready(self) -> Caller | None:
        """Whose handshake comes next: one of the network whose last one is the longest ago, in the order in which they came."""
        if self._states[State.HANDSHAKE] >= self.limits.handshakes or not self._states[State.READY]:
            return None
        for network in sorted(self._networks, key=lambda network: self._served.get(network, 0)):
            found = next((caller for caller in self._networks[network] if caller.state == State.READY), None)
            if found is not None:
                self._turn += 1
                self._served[network] = self._turn
                return found
        return None

    def _busiest(self, *states: State) -> dict[Caller, None]:
        """The connections of the network that has the most in these states."""
        return max(self._networks.values(), key=lambda own: sum(caller.state in states for caller in own), default={})

    def _make_room(self, among: Iterable[Caller], now: float) -> bool:
        """Drop the one that has been in its state for the longest; sites, requests in progress and fresh handshakes stay."""
        found: Caller | None = None
        for caller in among:
            fresh = caller.state == State.HANDSHAKE and now < caller.since + FRESH_SECONDS
            if caller.state == State.SITE or fresh or caller.busy():
                continue
            if found is None or caller.since < found.since:
                found = caller
        if found is None:
            return False
        found.drop()
        return True


def network_of(address: str) -> str:
    """What one caller has of the network: an address of IPv4, or a /64 of IPv6, of which everybody has as many as he likes.

    >>> network_of("2001:db8::17")
    '2001:db8::/64'
    >>> network_of("::ffff:192.0.2.1")
    '192.0.2.1'
    """
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(found, ipaddress.IPv4Address):
        return str(found)
    if found.ipv4_mapped is not None:
        return str(found.ipv4_mapped)
    return str(ipaddress.ip_network((found, 64), strict=False))
