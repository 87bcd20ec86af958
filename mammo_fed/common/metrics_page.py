"""A page of figures for Prometheus (text format 0.0.4) on this machine's own address, and nothing else.

Every user of the machine can read it: it holds what is public or declared. A browser that is led here by a name of a stranger's
(DNS rebinding) gets nothing, for the page answers to the machine's own names only.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from socketserver import ThreadingMixIn
from typing import Any, Final
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from mammo_fed.errors import InvalidSetting

__all__ = ["Figure", "metrics_page"]

PATH: Final = "/metrics"
OWN_NAMES: Final = frozenset({"127.0.0.1", "localhost"})
TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

StartResponse = Callable[[str, list[tuple[str, str]]], Any]


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One gauge: its name without the prefix `mammo_fed_`, what it says with its unit, and its values by their labels."""

    name: str
    text: str
    labels: tuple[str, ...] = ()
    values: Mapping[tuple[str, ...], float]


def metrics_page(port: int | None, figures: Callable[[], Iterable[Figure]]) -> AbstractContextManager[None]:
    """Serve http://127.0.0.1:PORT/metrics while the block runs; None serves nothing.

    Args:
      port: to listen on, 1 to 65535.
      figures: called at each look; whatever it raises is answered with 503.

    Raises:
      InvalidSetting: If the port is none, or is taken.
    """
    return nullcontext() if port is None else _served(port, figures)


@contextmanager
def _served(port: int, figures: Callable[[], Iterable[Figure]]) -> Iterator[None]:
    if not 1 <= port <= 65535:
        raise InvalidSetting(f"--metrics-port={port} must be from 1 to 65535")
    try:
        server = make_server("127.0.0.1", port, _application(figures), server_class=_Threads, handler_class=_Silent)
    except OSError as error:
        raise InvalidSetting(f"--metrics-port={port} cannot be listened on ({error.strerror}); choose another") from error
    thread = threading.Thread(target=server.serve_forever, name="metrics", daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Threads(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    # Callers that wait for their turn: beyond Python's 5 the system has each of them try again seconds later.
    request_queue_size = 128

    def handle_error(self, *_: object) -> None:
        """Nothing: whoever hangs up or says nothing would leave a traceback on the console of a run."""


class _Silent(WSGIRequestHandler):
    # A connection that says nothing must not keep others out for ever.
    timeout = 5.0

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: a look every few seconds is no news."""


def _application(figures: Callable[[], Iterable[Figure]]) -> Callable[[dict[str, Any], StartResponse], list[bytes]]:
    def answer(environ: dict[str, Any], start: StartResponse) -> list[bytes]:
        if (status := _objection(environ)) is not None:
            return _plain(start, status, b"")
        try:
            content = _text(figures())
        except Exception:  # noqa: BLE001 - a look at a folder that changes must not end the server; the next one may be well
            return _plain(start, "503 Service Unavailable", b"")
        return _plain(start, "200 OK", content, kind=TYPE)

    return answer


def _objection(environ: Mapping[str, Any]) -> str | None:
    host = str(environ.get("HTTP_HOST", "")).rpartition(":")[0] or str(environ.get("HTTP_HOST", ""))
    if host.lower() not in OWN_NAMES:
        return "421 Misdirected Request"
    if environ.get("PATH_INFO") != PATH:
        return "404 Not Found"
    return None if environ.get("REQUEST_METHOD") == "GET" else "405 Method Not Allowed"


def _plain(start: StartResponse, status: str, content: bytes, *, kind: str = "text/plain") -> list[bytes]:
    start(status, [("Content-Type", kind), ("Content-Length", str(len(content))), ("X-Content-Type-Options", "nosniff")])
    return [content]


def _text(figures: Iterable[Figure]) -> bytes:
    # Late: nobody who serves no page should wait for it.
    from prometheus_client import CollectorRegistry, Gauge, generate_latest

    registry = CollectorRegistry()
    for figure in figures:
        gauge = Gauge(f"mammo_fed_{figure.name}", figure.text, figure.labels, registry=registry)
        for labels, value in figure.values.items():
            (gauge.labels(*labels) if labels else gauge).set(value)
    return generate_latest(registry)
