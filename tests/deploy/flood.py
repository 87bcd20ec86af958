"""Connections and bytes thrown at a server from many addresses of one machine; a script without any package, plan on stdin.

Prints one line of JSON for each kind of flood: how many connections were opened, and how many bytes the system took.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import selectors
import socket
import ssl
import struct
import sys
import threading
import time
from typing import Any

CHUNK = b"x" * (1 << 18)
RESET = struct.pack("ii", 1, 0)


class Flood:
    """What is thrown, and how much of it was taken.

    Args:
      plan: "host", "port", "tls", "sources" (addresses of this machine), "seconds" for each kind.
    """

    def __init__(self, plan: dict[str, Any]) -> None:
        self._address = (plan["host"], plan["port"])
        self._tls, self._seconds = plan["tls"], plan["seconds"]
        self._sources = itertools.cycle(plan["sources"])
        self._lock = threading.Lock()
        self.connections, self.sent = 0, 0
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._context.check_hostname, self._context.verify_mode = False, ssl.CERT_NONE

    def _over(self, connections: int, size: int) -> bool:
        return self.connections >= connections or self.sent >= size or time.monotonic() > self._deadline

    def run(self, kind: str, *, connections: int, size: int = 1 << 62) -> dict[str, Any]:
        """One kind of flood, until so many connections were opened, or so many bytes taken, or the time is over."""
        self.connections, self.sent = 0, 0
        begun = time.monotonic()
        self._deadline = begun + self._seconds
        if kind in ("silent", "half hello"):
            self._hold(b"" if kind == "silent" else b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", connections)
        else:
            threads = [threading.Thread(target=self._pour, args=(kind, connections, size)) for _ in range(16)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        return {"kind": kind, "connections": self.connections, "bytes": self.sent, "seconds": time.monotonic() - begun}

    def _hold(self, said: bytes, connections: int) -> None:
        """Open as many as asked for and keep them all; nothing is said after `said`."""
        held, selector = [], selectors.DefaultSelector()
        while not self._over(connections, 1 << 62):
            line = socket.socket()
            line.setblocking(False)
            with contextlib.suppress(OSError):
                line.bind((next(self._sources), 0))
            line.connect_ex(self._address)
            held.append(line)
            selector.register(line, selectors.EVENT_WRITE)
            self.connections += 1
            if len(held) % 64 == 0:
                self._say(selector, said)
        until = min(self._deadline, time.monotonic() + 5.0)
        while time.monotonic() < until:
            self._say(selector, said)
            time.sleep(0.05)
        for line in held:
            line.close()

    def _say(self, selector: selectors.BaseSelector, said: bytes) -> None:
        for key, _ in selector.select(0):
            selector.unregister(key.fileobj)
            with contextlib.suppress(OSError):
                self.sent += key.fileobj.send(said) if said else 0  # type: ignore[union-attr]

    def _pour(self, kind: str, connections: int, size: int) -> None:
        while not self._over(connections, size):
            with self._lock:
                source = next(self._sources)
                self.connections += 1
            with contextlib.suppress(OSError, ValueError):
                self._pour_one(kind, source)

    def _pour_one(self, kind: str, source: str) -> None:
        with socket.create_connection(self._address, timeout=5.0, source_address=(source, 0)) as plain:
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            line = self._context.wrap_socket(plain) if self._tls and kind != "plain bytes" else plain
            line.settimeout(5.0)
            begin, again = {
                "plain bytes": (b"x", CHUNK),
                "one header": (b"GET /health HTTP/1.1\r\nA: ", CHUNK),
                "many headers": (b"GET /health HTTP/1.1\r\n", b"a: b\r\n" * (1 << 15)),
                "body": (b"POST /v1/fleet/push-object HTTP/1.1\r\nContent-Length: 1000000000\r\n\r\n", CHUNK),
                "chunks": (b"POST /health HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n" * (1 << 15)),
                "pipelined": (b"", b"GET /health HTTP/1.1\r\n\r\n" * (1 << 13)),
                "half request": (b"GET /health HTTP/1.1\r\nA: b\r\n", b""),
            }[kind]
            line.sendall(begin)
            self.sent += len(begin)
            if not again:
                line.recv(1)
            while time.monotonic() < self._deadline:
                self.sent += line.send(again)


if __name__ == "__main__":
    given = json.load(sys.stdin)
    flood = Flood(given)
    for step in given["steps"]:
        sys.stdout.write(json.dumps(flood.run(**step)) + "\n")
        sys.stdout.flush()
