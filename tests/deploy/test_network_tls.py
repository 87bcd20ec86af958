"""What a site's SuperNode does before a server that is not its federation's: it says nothing."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import httpx
import pytest
from flwr.proto.fleet_pb2 import ActivateNodeRequest
from flwr.supernode.fleet_http_client import FleetHttpClient

from mammo_fed.federation.flwr_internals.health import healthy
from mammo_fed.server.operations.authority import make_authority, make_key, make_server_certificate

# Of this machine, and in no certificate unless it is asked for.
HOST = "127.0.0.2"
MARK = b"a key of this site"


class Listener:
    """A server with some certificate: what it has been told."""

    def __init__(self) -> None:
        self.port, self.told = 0, b""


@contextmanager
def listening(tmp_path, certificate: bytes | None, key: bytes) -> Iterator[Listener]:
    """A server on this machine; without a certificate it speaks plainly."""
    found = Listener()
    context = None
    if certificate is not None:
        (tmp_path / "shown.crt").write_bytes(certificate)
        (tmp_path / "shown.key").write_bytes(key)
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(tmp_path / "shown.crt", tmp_path / "shown.key")
    with socket.create_server((HOST, 0)) as accepting:
        accepting.settimeout(10)
        found.port = accepting.getsockname()[1]

        def serve() -> None:
            try:
                connection, _ = accepting.accept()
                connection.settimeout(10)
                with connection if context is None else context.wrap_socket(connection, server_side=True) as line:
                    found.told = line.recv(65536)
                    while found.told.startswith(b"POST") and MARK not in found.told:
                        found.told += line.recv(65536)
                    line.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
            except OSError:
                return

        thread = threading.Thread(target=serve)
        thread.start()
        yield found
        thread.join()


@pytest.fixture(scope="module")
def authority():
    return make_authority("mammo")


def call(port: int, ca: bytes) -> None:
    """As a SuperNode comes in."""
    with FleetHttpClient.from_server_address(f"{HOST}:{port}", False, ca, interceptors=[]) as client:
        client.ActivateNode(ActivateNodeRequest(public_key=MARK, heartbeat_interval=30))


def test_tls_a_site_speaks_to_its_federations_server(tmp_path, authority):
    key = make_key()
    with listening(tmp_path, make_server_certificate(authority, key, hosts=[HOST]), key) as server:
        call(server.port, authority.certificate)
    assert MARK in server.told


@pytest.mark.parametrize("wrong", ["expired", "other host", "other authority", "signed by itself"])
def test_tls_a_site_says_nothing_to_a_server_with_a_wrong_certificate(tmp_path, authority, wrong):
    key, stranger = make_key(), make_authority("mammo")
    hosts = ["fed.example.org"] if wrong == "other host" else [HOST]
    past = datetime.now(UTC) - timedelta(days=9) if wrong == "expired" else None
    signer = stranger if wrong == "other authority" else authority
    certificate = make_server_certificate(signer, key, hosts=hosts, days=1, now=past)
    if wrong == "signed by itself":
        certificate, key = stranger.certificate, stranger.key
    with listening(tmp_path, certificate, key) as server, pytest.raises(httpx.ConnectError, match="certificate verify failed"):
        call(server.port, authority.certificate)
    assert server.told == b""


def test_tls_a_site_says_nothing_to_a_server_that_speaks_plainly(tmp_path, authority):
    with listening(tmp_path, None, b"") as server, pytest.raises(httpx.TransportError):
        call(server.port, authority.certificate)
    assert MARK not in server.told


def test_tls_health_over_a_wrong_certificate_is_no_health(tmp_path, authority):
    (tmp_path / "ca.crt").write_bytes(authority.certificate)
    key = make_key()
    with listening(tmp_path, make_server_certificate(make_authority("mammo"), key, hosts=[HOST]), key) as server:
        assert not healthy(f"{HOST}:{server.port}", ca=tmp_path / "ca.crt")
    assert server.told == b""
