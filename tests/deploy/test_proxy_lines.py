"""Proxies that an environment names are not used for a federation's own lines; one that a site's file names is."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import httpx
import pytest
from flwr.proto.fleet_pb2 import ActivateNodeRequest
from flwr.supernode.fleet_http_client import FleetHttpClient
from health_server import foreign_authorities, health_server, proxy_that

from mammo_fed.client.folder import NetworkSettings, SiteFolder
from mammo_fed.client.operations.server_line import try_line, what_is_wrong
from mammo_fed.common.isolation import isolated_environment
from mammo_fed.common.proxies import PROXY_VARIABLES, machines_proxies, without_proxies
from mammo_fed.errors import InvalidSetting, RunFailed
from mammo_fed.federation.flwr_internals.control import Control
from mammo_fed.federation.flwr_internals.environment import flower_environment
from mammo_fed.federation.flwr_internals.health import healthy
from mammo_fed.federation.flwr_internals.lines import make_direct_lines, make_lines_through
from mammo_fed.federation.identity.certificates import read_authority
from mammo_fed.server.operations.authority import Credentials, make_authority, make_key, make_server_certificate

HOST = "127.0.0.2"
PASSWORD = "s3cret%40word"
SPELLINGS = [name for lower in PROXY_VARIABLES[:3] for name in (lower, lower.upper(), lower.title())]
TOLD = "import json, urllib.request; print(json.dumps(urllib.request.getproxies()))"
MADE = "import httpx; httpx.Client(); " + TOLD


@pytest.fixture(scope="module")
def authority() -> Credentials:
    return make_authority("mammo")


@pytest.fixture(scope="module")
def shown(authority) -> tuple[bytes, bytes]:
    key = make_key()
    return make_server_certificate(authority, key, hosts=[HOST]), key


@pytest.fixture
def clean(monkeypatch):
    """An environment without proxies; what Flower's clients use is put back afterwards."""
    for name in list(os.environ):
        if name.lower() in PROXY_VARIABLES:
            monkeypatch.delenv(name)
    yield monkeypatch
    make_direct_lines()


@pytest.fixture
def reach(site, authority, tmp_path):
    """`reach(port, proxy="...")`: the site's folder, whose server is at that port of this machine's second address."""

    def made(port: int, *, proxy: str = "", host: str = HOST) -> SiteFolder:
        site.authority.write_bytes(authority.certificate)
        text = re.sub(r"(?m)^server = .*$", f'server = "{host}:{port}"', site.site_file.read_text())
        site.site_file.write_text(re.sub(r"(?m)^proxy = .*$", f'proxy = "{proxy}"', text))
        return SiteFolder.open(site.path)

    return made


@pytest.mark.parametrize("value", ["http://127.0.0.1:9", "socks5://127.0.0.1:9", "127.0.0.1:9", "nonsense://"])
@pytest.mark.parametrize("name", SPELLINGS)
def test_proxy_of_the_environment_is_in_no_process_of_a_federation(clean, tmp_path, name, value):
    clean.setenv(name, value)
    clean.setenv("no_proxy", "example.org")
    control = Control("127.0.0.1:9", ca=None, secret="x")  # noqa: S106 - of no server
    assert all(transport is None for transport in control._client._client._mounts.values())
    environment = {**isolated_environment(), **flower_environment(tmp_path)}
    assert environment["no_proxy"] == "*"
    assert not any(environment[lower] for lower in PROXY_VARIABLES[:3])


def test_proxy_of_the_environment_is_in_no_child_nor_grandchild_but_kept_for_downloads(clean, tmp_path):
    given = {"HTTPS_PROXY": "http://127.0.0.1:9", "all_proxy": "socks5://127.0.0.1:9", "No_Proxy": "example.org"}
    for name, value in given.items():
        clean.setenv(name, value)
    environment = {**isolated_environment(), **flower_environment(tmp_path)}
    found = subprocess.run([sys.executable, "-c", MADE], env=environment, capture_output=True, text=True, check=True)
    assert json.loads(found.stdout) == {"no": "*"}
    for name, value in without_proxies().items():
        clean.setenv(name, value)
    # As a child sees it that starts children of its own.
    again = without_proxies()
    assert again["https_proxy"] == ""
    assert httpx.Client()._mounts == {}
    with machines_proxies():
        assert {name: os.environ[name] for name in given} == given
        assert "https_proxy" not in os.environ
    assert (os.environ["https_proxy"], os.environ["no_proxy"]) == ("", "*")


@pytest.mark.parametrize("no_proxy", ["10.0.0.0/8,[::1]:80", "example.org", ""])
def test_proxy_that_is_dead_keeps_no_one_from_a_server_on_this_machine(clean, tmp_path, authority, shown, no_proxy):
    (tmp_path / "ca.crt").write_bytes(authority.certificate)
    for name in SPELLINGS:
        clean.setenv(name, "socks5://127.0.0.1:9" if name.lower() == "all_proxy" else "http://127.0.0.1:9")
    clean.setenv("no_proxy", no_proxy)
    with health_server(tmp_path, *shown) as port:
        assert healthy(f"{HOST}:{port}", ca=tmp_path / "ca.crt")


def test_proxy_of_the_site_carries_what_check_and_a_supernode_say(clean, reach, tmp_path, authority, shown):
    with health_server(tmp_path, *shown) as port, proxy_that(None) as (through, asked):
        folder = reach(port, proxy=f"http://site-a:{PASSWORD}@localhost:{through}")
        clean.setattr("mammo_fed.client.folder._is_loopback", lambda _host: False)
        assert f"answers through the proxy localhost:{through}; its certificate is valid" in try_line(folder, seconds=10)
        make_lines_through(str(folder.network.way))
        certificate = authority.certificate
        with (
            FleetHttpClient.from_server_address(f"{HOST}:{port}", False, certificate, interceptors=[]) as client,
            pytest.raises(httpx.HTTPStatusError, match="501"),
        ):
            client.ActivateNode(ActivateNodeRequest(public_key=b"x", heartbeat_interval=30))
    word = base64.b64encode(b"site-a:s3cret@word")
    assert len(asked) == 2
    for head in asked:
        assert head.startswith(f"CONNECT {HOST}:{port} HTTP/1.1".encode())
        assert word in head


def test_proxy_never_carries_a_line_to_this_machine(reach):
    for host in ("127.0.0.1", "127.8.8.8", "[::1]", "localhost", "LOCALHOST.", "fed.localhost"):
        assert reach(8443, proxy="http://proxy.hospital:3128", host=host).network.way is None
    assert reach(8443, proxy="http://proxy.hospital:3128", host="10.1.2.3").network.way == "http://proxy.hospital:3128"


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n", ("407", "user and password", "[network] of site.toml")),
        (b"HTTP/1.1 403 Filtered\r\n\r\n", ("403 Filtered", "refuses", "allow CONNECT to 127.0.0.2")),
        (b"HTTP/1.1 503 Service Unavailable\r\n\r\n", ("503", "cannot reach 127.0.0.2")),
        (b"HTTP/1.1 429 Too Many\r\n\r\n", ("429", "does not connect")),
        (b"", ("no answer of 127.0.0.2", "through the proxy localhost")),
        (b"\x15\x03\x01 what is this", ("no answer of 127.0.0.2", "through the proxy localhost")),
    ],
    ids=["407", "403", "503", "429", "closes", "nonsense"],
)
def test_proxy_that_does_not_connect_is_named_with_a_remedy_and_without_its_password(clean, reach, client, answer, words):
    clean.setattr("mammo_fed.client.folder._is_loopback", lambda _host: False)
    with proxy_that(answer) as (through, asked):
        folder = reach(8443, proxy=f"http://site-a:{PASSWORD}@localhost:{through}")
        code, out, err = client("check", folder.path)
    assert len(asked) == 1
    (line,) = [line for line in out.splitlines() if "server:" in line]
    assert (code, err) == (2, "")
    assert line.startswith("FAILED")
    assert [word for word in words if word not in line] == []
    assert "s3cret" not in out


def test_proxy_that_is_not_there_is_named(clean, reach):
    clean.setattr("mammo_fed.client.folder._is_loopback", lambda _host: False)
    said = what_is_wrong(reach(8443, proxy="http://localhost:9"), insecure=False, seconds=5)
    assert "through the proxy localhost:9 (ConnectError" in said


@pytest.mark.parametrize("answer", [b"HTTP/1.1 503 Service Unavailable\r\n\r\n", b"HTTP/1.1 407 No\r\n\r\n"])
def test_proxy_that_refuses_for_now_is_tried_again_by_a_supernode_and_named_once(clean, authority, answer):
    said: list[str] = []
    with proxy_that(answer) as (through, asked):
        make_lines_through(f"http://u:{PASSWORD}@localhost:{through}", on_trouble=said.append)
        with FleetHttpClient.from_server_address("10.9.9.9:9", False, authority.certificate, interceptors=[]) as client:
            for _ in range(2):
                # What Flower's own loop takes for a line that will come back.
                with pytest.raises(httpx.ConnectError):
                    client.ActivateNode(ActivateNodeRequest(public_key=b"x", heartbeat_interval=30))
    assert len(asked) == 2
    assert len(said) == 1
    assert "s3cret" not in said[0]


@pytest.mark.parametrize(
    "url",
    ["proxy:3128", "https://proxy:3128", "socks5://proxy:3128", "http://proxy", "http://proxy:70000", "http://a b:3128", "http://proxy:0",
     f"http://u:{PASSWORD}@proxy", f"u:{PASSWORD}@proxy:3128", "http://proxy:3128/path",
     f"http://u:{PASSWORD}@proxy..hospital:3128", f"http://{'a' * 64}:3128"],
)  # fmt: skip
def test_proxy_of_another_form_is_refused_without_its_password(url):
    with pytest.raises(InvalidSetting, match="must be http://HOST:PORT") as caught:
        NetworkSettings(server="fed:8443", ca="ca.crt", key="k", executor_port="auto", proxy=url)
    assert "s3cret" not in str(caught.value)


def test_proxy_is_written_by_init_without_a_password_and_older_files_have_none(
    client, make_site, refused, tmp_path, federation
):
    site = make_site("hospital-b", "--proxy", "http://proxy.hospital:3128", "data=phantom", "data.images_train=96")
    assert site.network.way is None, "its server is on this machine"
    assert site.network.proxy == "http://proxy.hospital:3128"
    site.site_file.write_text(re.sub(r"(?m)^proxy = .*\n", "", site.site_file.read_text()))
    assert SiteFolder.open(site.path).network.proxy == ""
    site.site_file.write_text(re.sub(r"(?s)\[network\].*?\[policy\]", "[policy]", f"network = 3\n{site.site_file.read_text()}"))
    with pytest.raises(InvalidSetting, match="network=3 must be a group of settings"):
        SiteFolder.open(site.path)
    arguments = ("--name", "c", "--server", "fed:8443", "--ca", federation.path / "for-sites" / "ca.crt")
    line = refused(client("init", tmp_path / "c", *arguments, "--proxy", f"http://u:{PASSWORD}@proxy:3128"))
    assert "site.toml" in line
    assert "s3cret" not in line
    assert "s3cret" not in repr(NetworkSettings(server="f:1", ca="", key="", executor_port=1, proxy=f"http://u:{PASSWORD}@p:1"))


@pytest.mark.parametrize("ahead", [-7200.0, -302.0, 302.0, 7200.0])
def test_clock_that_the_server_would_refuse_fails_the_check_with_the_difference(reach, client, tmp_path, shown, ahead):
    with health_server(tmp_path, *shown, ahead=ahead) as port:
        code, out, _ = client("check", reach(port).path)
    (line,) = [line for line in out.splitlines() if "server:" in line]
    found = re.search(r"this machine's clock is (\d+) s (ahead of|behind) the server's, and 300 s are allowed", line)
    assert (code, line[:6]) == (2, "FAILED")
    assert found is not None
    assert abs(int(found[1]) - abs(ahead)) < 30
    assert found[2] == ("behind" if ahead > 0 else "ahead of")


@pytest.mark.parametrize(("ahead", "warns"), [(0.0, False), (10.0, False), (-10.0, False), (200.0, True), (-200.0, True)])
def test_clock_that_is_allowed_passes_the_check_with_a_warning_where_it_is_notable(reach, tmp_path, shown, ahead, warns):
    with health_server(tmp_path, *shown, ahead=ahead) as port:
        said = try_line(reach(port), seconds=30)
    assert ("WARNING: this machine's clock is" in said) == warns


@pytest.mark.parametrize("days", [-20, 20])
def test_clock_is_named_where_the_servers_certificate_is_not_valid_now(reach, tmp_path, authority, days):
    key = make_key()
    moment = datetime.now(UTC) + timedelta(days=days)
    old = make_authority("mammo", now=datetime.now(UTC) - timedelta(days=99))
    certificate = make_server_certificate(old, key, hosts=[HOST], days=1, now=moment)
    with health_server(tmp_path, certificate, key) as port:
        folder = reach(port)
        folder.authority.write_bytes(old.certificate)
        with pytest.raises(RunFailed, match=f"it is {datetime.now(UTC):%Y-%m-%d} .* by this machine's clock; check the clock"):
            try_line(folder, seconds=10)


def test_tls_a_site_believes_any_of_several_authorities_and_a_server_that_shows_its_intermediate(
    client, small_phantom, cache, tmp_path, authority, shown
):
    root, intermediate = foreign_authorities()
    expired = make_authority("old", days=1, now=datetime.now(UTC) - timedelta(days=9))
    bundle = tmp_path / "bundle.crt"
    bundle.write_bytes(expired.certificate + authority.certificate + root)
    key = make_key()
    leaf = make_server_certificate(intermediate, key, hosts=[HOST], days=30)
    with health_server(tmp_path, leaf + intermediate.certificate, key) as port:
        address = ("--server", f"{HOST}:{port}", "--ca", bundle)
        site = ("init", tmp_path / "site", "--name", "a", *address, "--cache", cache, "--share", "1/2", *small_phantom)
        assert client(*site)[0] == 0
        folder = SiteFolder.open(tmp_path / "site")
        assert "answers" in try_line(folder, seconds=30)
        with (
            FleetHttpClient.from_server_address(
                f"{HOST}:{port}", False, folder.authority.read_bytes(), interceptors=[]
            ) as calls,
            pytest.raises(httpx.HTTPStatusError, match="501"),
        ):
            calls.ActivateNode(ActivateNodeRequest(public_key=b"x", heartbeat_interval=30))
    assert folder.authority.read_bytes() == authority.certificate + root
    # The intermediate is not shown: the chain to the root cannot be made.
    with health_server(tmp_path, leaf, key) as port:
        assert "does not prove itself" in what_is_wrong(moved(folder, port), insecure=False, seconds=30)
    with health_server(tmp_path, *shown) as port:
        assert "answers" in try_line(moved(folder, port), seconds=30)


def moved(folder: SiteFolder, port: int) -> SiteFolder:
    text = re.sub(r"(?m)^server = .*$", f'server = "{HOST}:{port}"', folder.site_file.read_text())
    folder.site_file.write_text(text)
    return SiteFolder.open(folder.path)


def test_tls_a_file_of_authorities_with_somebody_elses_certificate_in_it_is_refused(authority, shown, tmp_path):
    file = tmp_path / "ca.crt"
    file.write_bytes(authority.certificate + shown[0])
    with pytest.raises(InvalidSetting, match="must be the federation's own authority"):
        read_authority(file)
