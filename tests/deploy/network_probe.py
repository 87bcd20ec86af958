"""One HTTP request over a fresh connection, to the byte as a stranger would send it; as a script, a list of them from stdin."""

from __future__ import annotations

import json
import socket
import ssl
import sys
from contextlib import suppress
from typing import Any


def http(method: str, target: str, *, host: str, headers: dict[str, str] | None = None, body: bytes = b"") -> bytes:
    """The bytes of a request; `target` is sent as it is."""
    lines = {"Host": host, "Connection": "close", "Content-Length": str(len(body)), **(headers or {})}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"{method} {target} HTTP/1.1\r\n{head}\r\n".encode("latin-1") + body


def exchange(address: tuple[str, int], request: bytes, *, ca: str | None, seconds: float = 10.0) -> dict[str, Any]:
    """Status and body of the answer, both empty where none comes; "error" names what stood in the way.

    Args:
      address: host and port.
      request: see `http`.
      ca: file of the authority that the server must prove itself by; None speaks without TLS.
      seconds: for each step.
    """
    answer = b""
    try:
        with socket.create_connection(address, timeout=seconds) as plain:
            line = plain
            if ca is not None:
                line = ssl.create_default_context(cafile=ca).wrap_socket(plain, server_hostname=address[0])
            with line:
                line.sendall(request)
                # A server may close without the last words of TLS.
                with suppress(ConnectionError, ssl.SSLError):
                    while chunk := line.recv(65536):
                        answer += chunk
    except OSError as error:
        return {"status": 0, "head": "", "body": "", "error": type(error).__name__}
    head, _, body = answer.partition(b"\r\n\r\n")
    words = head.split(b" ", 2)
    status = int(words[1]) if len(words) > 1 and words[0].startswith(b"HTTP/") else 0
    return {"status": status, "head": head.decode("latin-1"), "body": body.decode("latin-1"), "error": ""}


if __name__ == "__main__":
    given = json.load(sys.stdin)
    asked = [bytes.fromhex(request) for request in given["requests"]]
    address = (given["host"], given["port"])
    json.dump([exchange(address, request, ca=given["ca"], seconds=given["seconds"]) for request in asked], sys.stdout)
