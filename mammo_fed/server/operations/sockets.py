"""The sockets that a server listens on: one for the network, one for its own processes on this machine."""

from __future__ import annotations

import errno
import ipaddress
import socket
import time
from typing import Final

from mammo_fed.errors import InvalidSetting, RunFailed

__all__ = ["bind_own", "bind_public", "check_bind"]

# How long a port may still be held by a server that has just ended.
TAKEN_SECONDS: Final = 10.0
LOOPBACKS: Final = ("127.0.0.1", "::1")


def check_bind(address: str) -> None:
    """Raise InvalidSetting unless a server on this machine can listen on an address.

    Args:
      address: of IPv4 or IPv6; `0.0.0.0` is all of IPv4, `::` all of both.
    """
    try:
        found = ipaddress.ip_address(address)
    except ValueError as error:
        raise InvalidSetting(
            f"--bind={address} must be an address of this machine, without brackets and port; 0.0.0.0 is all of IPv4, :: is all"
        ) from error
    if found.is_multicast or address == "255.255.255.255":
        raise InvalidSetting(
            f"--bind={address} is no address that anybody can connect to; give one of this machine, or 0.0.0.0"
        )
    try:
        _bound(address, 0).close()
    except OSError as error:
        raise InvalidSetting(
            f"--bind={address} must be an address of this machine ({error.strerror}); `ip addr` lists them, 0.0.0.0 is all of "
            "IPv4, :: is all"
        ) from error


def bind_public(address: str, port: int) -> socket.socket:
    """The socket that sites reach.

    Raises:
      RunFailed: If somebody else has the port, or this process may not have it.
      InvalidSetting: If the address is not of this machine.
    """
    deadline = time.monotonic() + TAKEN_SECONDS
    while True:
        try:
            return _bound(address, port)
        except OSError as error:
            if error.errno == errno.EADDRINUSE and time.monotonic() < deadline:
                time.sleep(TAKEN_SECONDS / 40)
                continue
            if error.errno == errno.EADDRNOTAVAIL:
                check_bind(address)
            raise RunFailed(
                f"the SuperLink cannot listen at {address}, port {port} ({error.strerror}); is it free, and may this user have "
                "it? `flower-server init --port` takes another"
            ) from error


def bind_own() -> socket.socket:
    """The socket that the server's own processes reach, at a free port of the loopback.

    Raises:
      RunFailed: If this machine has no loopback.
    """
    for address in LOOPBACKS:
        try:
            return _bound(address, 0)
        except OSError:
            continue
    raise RunFailed("this machine has no loopback, on which the server's own processes talk; `ip link set lo up`")


def _bound(address: str, port: int) -> socket.socket:
    family, kind, protocol, _, where = socket.getaddrinfo(
        address, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE | socket.AI_NUMERICHOST
    )[0]
    made = socket.socket(family, kind, protocol)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            # `::` takes callers of IPv4 too, whatever this machine's setting is.
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        made.bind(where)
        # From now on nobody else can have it, and callers wait while the process that answers is started again.
        made.listen(128)
    except OSError:
        made.close()
        raise
    return made
