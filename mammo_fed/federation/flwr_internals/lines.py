"""The HTTP clients that Flower makes in this process: they use the proxy that a setting names, and none of the environment's.

Flower leaves httpx to read http_proxy and its like, even for lines to this machine; a proxy of another kind than HTTP ends the
process. It also takes a proxy that cannot reach the server for an error that no new attempt can help.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Final

import httpx
from flwr.supercore.protobuf import client as flowers_clients

from mammo_fed.federation.identity.clocks import REFUSED_FOR_CLOCK, REFUSED_HEADER

__all__ = ["make_direct_lines", "make_lines_through"]

logger = logging.getLogger(__name__)

DIRECT: Final[str | None] = None


def make_direct_lines() -> None:
    """From now on every client that Flower makes in this process connects directly."""
    _replace(DIRECT)


def make_lines_through(proxy: str, *, on_trouble: Callable[[str], None] = logger.warning) -> None:
    """From now on every client that Flower makes in this process goes through a proxy.

    Args:
      proxy: URL of an HTTP proxy, with user and password where it asks for them.
      on_trouble: told when the proxy refuses, without the URL.
    """
    _replace(proxy, on_trouble)


def _replace(proxy: str | None, on_trouble: Callable[[str], None] = logger.warning) -> None:
    names: Any = flowers_clients
    names.httpx = _Httpx(proxy, on_trouble)


class _Httpx:
    """Stands for the module `httpx` where Flower makes its clients."""

    def __init__(self, proxy: str | None, on_trouble: Callable[[str], None]) -> None:
        self._proxy, self._on_trouble = proxy, on_trouble

    def Client(self, **arguments: Any) -> httpx.Client:  # noqa: N802 - the name in httpx
        """A client of this process."""
        return _Client(**arguments, trust_env=False, proxy=self._proxy, on_trouble=self._on_trouble)

    def __getattr__(self, name: str) -> Any:
        return getattr(httpx, name)


class _Client(httpx.Client):
    def __init__(self, *, on_trouble: Callable[[str], None], **arguments: Any) -> None:
        self._on_trouble, self._said = on_trouble, ""
        super().__init__(**arguments)

    def send(self, request: httpx.Request, **arguments: Any) -> httpx.Response:
        """Flower tries again where a connection fails, and must do so where a proxy could not make one."""
        try:
            response = super().send(request, **arguments)
        except httpx.ProxyError as error:
            self._say(f"the proxy does not connect to the server ({error})")
            raise httpx.ConnectError(f"the proxy does not connect: {error}", request=request) from error
        if response.headers.get(REFUSED_HEADER) == REFUSED_FOR_CLOCK:
            self._say("the server refuses this site for its clock: it is too far from the server's")
        return response

    def _say(self, line: str) -> None:
        """Once in a row: Flower tries again and again."""
        if line != self._said:
            self._on_trouble(line)
        self._said = line
