"""A server over TLS that answers how it is, with a clock that the test sets; and a proxy that answers as the test says."""

from __future__ import annotations

import http.server
import select
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from email.utils import formatdate
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from mammo_fed.server.operations.authority import Credentials

__all__ = ["foreign_authorities", "health_server", "proxy_that"]


def foreign_authorities() -> tuple[bytes, Credentials]:
    """A hospital's own root as a certificate, and an intermediate that it has signed and that signs servers."""
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(2)]
    names = [x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"hospital {word}")]) for word in ("root", "issuing authority")]
    made = []
    for index, length in ((0, 1), (1, 0)):
        builder = (
            x509.CertificateBuilder()
            .subject_name(names[index])
            .issuer_name(names[0])
            .public_key(keys[index].public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(datetime.now(UTC) - timedelta(days=1))
            .not_valid_after(datetime.now(UTC) + timedelta(days=99))
            .add_extension(x509.BasicConstraints(ca=True, path_length=length), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(keys[index].public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(keys[0].public_key()), critical=False)
        )
        made.append(builder.sign(keys[0], hashes.SHA256()).public_bytes(Encoding.PEM))
    private = keys[1].private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return made[0], Credentials(certificate=made[1], key=private)


@contextmanager
def health_server(folder: Path, certificate: bytes, key: bytes, *, ahead: float = 0.0) -> Iterator[int]:
    """The port of a healthy server on 127.0.0.2, whose clock is so many seconds ahead."""
    (folder / "shown.pem").write_bytes(certificate + key)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(folder / "shown.pem")

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response_only(200 if self.path == "/health" else 404)
            self.send_header("Date", formatdate(time.time() + ahead, usegmt=True))
            self.send_header("Content-Length", "0")
            self.end_headers()

        def do_POST(self) -> None:
            # A body that is not read resets the line, and the answer may be lost with it.
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send_response_only(501)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            return

    class Server(http.server.ThreadingHTTPServer):
        def handle_error(self, *_: object) -> None:
            return

        def finish_request(self, request: socket.socket, client_address: object) -> None:
            with suppress(OSError), context.wrap_socket(request, server_side=True) as line:
                Handler(line, client_address, self)

    with Server(("127.0.0.2", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def proxy_that(answer: bytes | None) -> Iterator[tuple[int, list[bytes]]]:
    """The port of a proxy that answers every CONNECT with `answer`, or carries it out where None; and what it was asked."""
    asked: list[bytes] = []

    def carry(one: socket.socket, other: socket.socket) -> None:
        while True:
            for ready in select.select([one, other], [], [], 10)[0]:
                if not (content := ready.recv(65536)):
                    return
                (other if ready is one else one).sendall(content)

    def serve(line: socket.socket) -> None:
        with suppress(OSError), line:
            line.settimeout(10)
            head = b""
            while b"\r\n\r\n" not in head:
                if not (content := line.recv(65536)):
                    return
                head += content
            asked.append(head)
            if answer is not None:
                line.sendall(answer)
                return
            host, _, port = head.split(b" ")[1].decode().rpartition(":")
            with socket.create_connection((host, int(port)), timeout=10) as other:
                line.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
                carry(line, other)

    with socket.create_server(("127.0.0.1", 0)) as accepting:
        accepting.settimeout(0.1)
        stop = threading.Event()

        def accept() -> None:
            while not stop.is_set():
                with suppress(TimeoutError):
                    threading.Thread(target=serve, args=[accepting.accept()[0]], daemon=True).start()

        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield accepting.getsockname()[1], asked
        finally:
            stop.set()
            thread.join()
