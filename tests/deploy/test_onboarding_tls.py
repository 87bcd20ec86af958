"""The federation's certificates: what a TLS stack accepts, and what it does not."""

import socket
import ssl
import threading
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509

from mammo_fed.client.operations.checks import check_site
from mammo_fed.errors import InvalidSetting
from mammo_fed.federation.identity.certificates import parse_certificate, read_authority, read_certificate
from mammo_fed.server.operations.authority import Credentials, check_host, make_authority, make_key, make_server_certificate
from mammo_fed.server.operations.folder import FederationFolder

HOSTS = ("fed.example.org", "10.1.2.3")


@pytest.fixture(scope="module")
def authority():
    return make_authority("mammo")


def shaken(tmp_path, authority: Credentials, certificate: bytes, key: bytes, *, name: str) -> str:
    """What a client that trusts `authority` says of a server that shows `certificate` and is called `name`; "" for nothing."""
    for file, content in (("server.crt", certificate), ("server.key", key), ("ca.crt", authority.certificate)):
        (tmp_path / file).write_bytes(content)
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(tmp_path / "server.crt", tmp_path / "server.key")
    client = ssl.create_default_context(cafile=tmp_path / "ca.crt")
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    to_client, to_server, from_server, from_client = ssl.MemoryBIO(), ssl.MemoryBIO(), ssl.MemoryBIO(), ssl.MemoryBIO()
    mine = client.wrap_bio(to_client, to_server, server_hostname=name)
    theirs = server.wrap_bio(from_client, from_server, server_side=True)
    for _ in range(6):
        for side in (mine, theirs):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                pass
            except ssl.SSLCertVerificationError as error:
                return error.verify_message
            from_client.write(to_server.read())
            to_client.write(from_server.read())
    assert mine.version() in ("TLSv1.2", "TLSv1.3")
    return ""


@pytest.mark.parametrize("name", [*HOSTS, "localhost", "127.0.0.1", "::1"])
def test_tls_clients_believe_the_server_under_all_its_names(tmp_path, authority, name):
    key = make_key()
    assert shaken(tmp_path, authority, make_server_certificate(authority, key, hosts=HOSTS), key, name=name) == ""


@pytest.mark.parametrize("name", ["other.example.org", "10.1.2.4", "sub.fed.example.org"])
def test_tls_clients_refuse_the_server_under_another_name(tmp_path, authority, name):
    key = make_key()
    said = shaken(tmp_path, authority, make_server_certificate(authority, key, hosts=HOSTS), key, name=name)
    assert "mismatch" in said


def test_tls_clients_refuse_another_federations_server(tmp_path, authority):
    key = make_key()
    strange = make_server_certificate(make_authority("mammo"), key, hosts=HOSTS)
    assert shaken(tmp_path, authority, strange, key, name=HOSTS[0]) != ""


def test_tls_clients_refuse_an_expired_server(tmp_path, authority):
    key = make_key()
    old = make_server_certificate(authority, key, hosts=HOSTS, days=1, now=datetime.now(UTC) - timedelta(days=2))
    assert "expired" in shaken(tmp_path, authority, old, key, name=HOSTS[0])


def test_tls_clients_refuse_a_server_that_signed_itself_a_child(tmp_path, authority):
    key, child_key = make_key(), make_key()
    server = Credentials(certificate=make_server_certificate(authority, key, hosts=HOSTS), key=key)
    child = make_server_certificate(server, child_key, hosts=["evil.example"])
    assert shaken(tmp_path, authority, child + server.certificate, child_key, name="evil.example") != ""


def test_the_authority_may_sign_servers_and_nothing_else(authority):
    certificate = x509.load_pem_x509_certificate(authority.certificate)
    basic = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    usage = certificate.extensions.get_extension_for_class(x509.KeyUsage)
    assert (basic.critical, basic.value.ca, basic.value.path_length) == (True, True, 0)
    assert (usage.critical, usage.value.key_cert_sign, usage.value.digital_signature) == (True, True, False)


def test_a_servers_certificate_ends_with_its_authority():
    short = make_authority("mammo", days=10)
    found = parse_certificate(make_server_certificate(short, make_key(), hosts=HOSTS, days=397), name="server")
    assert found.valid_until == parse_certificate(short.certificate, name="ca").valid_until


def test_an_expired_authority_signs_nothing():
    old = make_authority("mammo", days=1, now=datetime.now(UTC) - timedelta(days=2))
    with pytest.raises(InvalidSetting, match=r"ca\.crt expired on .*; make a new federation folder"):
        make_server_certificate(old, make_key(), hosts=HOSTS)


@pytest.mark.parametrize("host", ["", "a..b", "-a.example", "a_b", "*.example", "a/b", "x" * 64, "::", "224.0.0.1", "1.2.3"])
def test_what_is_no_host_is_refused(host):
    with pytest.raises(InvalidSetting, match="must be a DNS name"):
        check_host(host)


def test_secrets_are_not_shown_by_accident(authority):
    assert "PRIVATE" not in repr(authority)


def test_renew_keeps_the_authority_and_the_key(server, federation):
    before = (federation.authority_certificate.read_bytes(), federation.server_key.read_bytes())
    old = federation.certificate()
    assert server("renew", federation.path, "--host", "new.example.org", "--days", "30")[0] == 0
    new = FederationFolder.open(federation.path)
    assert (new.authority_certificate.read_bytes(), new.server_key.read_bytes()) == before
    assert new.certificate().hosts == ("new.example.org", "localhost", "127.0.0.1", "::1")
    assert 29 < new.certificate().days_left() < 31
    assert new.certificate().fingerprint != old.fingerprint
    assert "new.example.org:18443" in (new.path / "for-sites" / "README.txt").read_text()


def test_renew_with_a_new_key_makes_a_pair_that_fits(server, federation):
    before = federation.server_key.read_bytes()
    assert server("renew", federation.path, "--new-key")[0] == 0
    assert federation.server_key.read_bytes() != before
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(federation.server_certificate, federation.server_key)
    assert FederationFolder.open(federation.path).about == federation.about


def test_renew_needs_the_authoritys_key_and_run_does_not(server, federation, refused):
    federation.authority_key.unlink()
    assert "ca.key must be there" in refused(server("renew", federation.path))
    assert server("run", federation.path, "--cfg", "job", "federation.num_sites=2")[0] == 0


def test_run_with_an_expired_certificate_says_how_to_renew_it(server, federation, refused):
    authority = Credentials(
        certificate=federation.authority_certificate.read_bytes(), key=federation.authority_key.read_bytes()
    )
    past = datetime.now(UTC) - timedelta(days=9)
    key = federation.server_key.read_bytes()
    federation.server_certificate.write_bytes(make_server_certificate(authority, key, hosts=["localhost"], days=1, now=past))
    assert "flower-server renew" in refused(server("run", federation.path, "federation.num_sites=2"))


@pytest.mark.parametrize("given", ["server", "with key", "text", "missing"])
def test_a_site_takes_nothing_but_an_authoritys_certificate(federation, tmp_path, given):
    path = tmp_path / "ca.crt"
    if given == "server":
        path.write_bytes(federation.server_certificate.read_bytes())
    elif given == "with key":
        path.write_bytes(federation.authority_certificate.read_bytes() + federation.authority_key.read_bytes())
    elif given == "text":
        path.write_text("hello")
    with pytest.raises(InvalidSetting):
        read_authority(path)


def test_a_certificate_is_read_as_it_was_made(federation):
    found = read_certificate(federation.server_certificate)
    assert not found.authority
    assert found.hosts == ("localhost", "127.0.0.1", "::1")
    assert read_authority(federation.authority_certificate).authority


@contextmanager
def answering(federation, answer: bytes):
    """A server with the federation's certificate on a free port that gives every connection `answer`."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(federation.server_certificate, federation.server_key)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(20)

        def serve() -> None:
            try:
                connection, _ = listening.accept()
                with context.wrap_socket(connection, server_side=True) as secure:
                    secure.recv(4096)
                    secure.sendall(answer)
            except OSError:
                return

        thread = threading.Thread(target=serve)
        thread.start()
        yield listening.getsockname()[1]
    thread.join()


def change(site, old: str, new: str) -> None:
    text = site.site_file.read_text()
    assert old in text
    site.site_file.write_text(text.replace(old, new))


def server_check(site):
    (check,) = [check for check in check_site(type(site).open(site.path)) if check.name == "server"]
    return check


@pytest.mark.parametrize(
    ("answer", "ok"), [(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", True), (b"HTTP/1.1 404 No\r\n\r\n", False)]
)
def test_check_asks_the_servers_health_over_tls(federation, site, answer, ok):
    with answering(federation, answer) as port:
        change(site, "localhost:18443", f"localhost:{port}")
        assert server_check(site).ok is ok


def test_check_names_a_server_that_is_not_the_federations(server, federation, site, tmp_path):
    server("init", tmp_path / "other", "--name", "other", "--host", "localhost")
    with answering(FederationFolder.open(tmp_path / "other"), b"") as port:
        change(site, "localhost:18443", f"localhost:{port}")
        check = server_check(site)
    assert not check.ok
    assert "does not prove itself by the federation's authority" in check.message
