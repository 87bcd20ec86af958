"""Where a server listens: any address of its machine works, for its own processes too; any other is refused at once."""

from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path

import pytest
from real_federation import SMALL_RUN, can_cut_lines, real_federation

from mammo_fed.errors import InvalidSetting, RunFailed
from mammo_fed.server.operations.folder import FederationFolder
from mammo_fed.server.operations.sockets import bind_own, bind_public, check_bind

RUN = (*SMALL_RUN, "federation.rounds=1", "federation.num_sites=1")


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("192.0.2.7", "`ip addr` lists them"),
        ("2001:db8::7", "`ip addr` lists them"),
        ("224.0.0.1", "anybody can connect to"),
        ("ff02::1", "anybody can connect to"),
        ("255.255.255.255", "anybody can connect to"),
        ("localhost", "must be an address of this machine"),
        ("[::1]", "must be an address of this machine"),
        ("127.0.0.1:8443", "must be an address of this machine"),
        ("", "must be an address of this machine"),
    ],
)
def test_bind_an_address_that_is_not_of_this_machine_is_refused_at_init(server, refused, tmp_path, address, said):
    folder = tmp_path / "fed"
    line = refused(server("init", folder, "--name", "m", "--host", "localhost", "--bind", address))
    assert f"--bind={address}" in line
    assert said in line
    assert not folder.exists()


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "127.0.0.2",
        "0.0.0.0",  # noqa: S104 - a folder only
        pytest.param("::1", marks=needs_ipv6),
        pytest.param("::", marks=needs_ipv6),
        pytest.param("0:0:0:0:0:0:0:1", marks=needs_ipv6),
    ],
)
def test_bind_an_address_of_this_machine_is_taken(server, tmp_path, address):
    code, _, err = server("init", tmp_path / "fed", "--name", "m", "--host", "localhost", "--bind", address)
    assert code == 0, err
    assert FederationFolder.open(tmp_path / "fed").about.bind == address


@needs_ipv6
def test_bind_to_all_takes_callers_of_both_families():
    with bind_public("::", 0) as listening:
        for address in ("127.0.0.1", "::1"):
            socket.create_connection((address, listening.getsockname()[1]), timeout=30).close()


def test_bind_a_port_that_somebody_has_ends_with_one_line(monkeypatch):
    monkeypatch.setattr("mammo_fed.server.operations.sockets.TAKEN_SECONDS", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(RunFailed, match="is it free"):
        bind_public("127.0.0.1", taken.getsockname()[1])


def test_bind_an_interface_that_has_gone_is_named_when_a_run_starts():
    with pytest.raises(InvalidSetting, match=r"--bind=192\.0\.2\.7"):
        bind_public("192.0.2.7", 8443)


def test_bind_the_servers_own_processes_have_a_socket_of_their_own():
    with bind_own() as first, bind_own() as second:
        assert first.getsockname()[0] == second.getsockname()[0] == "127.0.0.1"
        assert first.getsockname()[1] != second.getsockname()[1]


@pytest.mark.parametrize("number", [0, 7, 1025, -1])
def test_door_a_number_of_connections_that_no_site_can_use_is_refused(server, refused, tmp_path, number):
    arguments = ("init", tmp_path / "fed", "--name", "m", "--host", "localhost", "--max-connections-per-address", number)
    assert "must be from 8 to 1024" in refused(server(*arguments))


def test_door_the_number_of_connections_is_kept_and_folders_of_before_have_one(server, tmp_path):
    arguments = ("--name", "m", "--host", "localhost", "--max-connections-per-address", 500)
    assert server("init", tmp_path / "fed", *arguments)[0] == 0
    assert server("renew", tmp_path / "fed")[0] == 0
    folder = FederationFolder.open(tmp_path / "fed")
    assert folder.about.max_connections_per_address == 500
    about = json.loads((folder.path / "federation.json").read_text())
    del about["max_connections_per_address"]
    (folder.path / "federation.json").write_text(json.dumps(about))
    assert FederationFolder.open(folder.path).about.max_connections_per_address == 100


def test_bind_check_names_what_is_wrong():
    with pytest.raises(InvalidSetting, match="without brackets and port"):
        check_bind("[::]")


@pytest.mark.slow
@needs_ipv6
def test_bind_to_the_loopback_of_ipv6_a_run_goes_through(cache, tmp_path):
    with real_federation(tmp_path, num_sites=1, cache=cache, bind="::1", host="::1") as federation:
        federation.start_server(*RUN)
        federation.start_client("site-1")
        assert federation.wait(600) == 0, federation.tail()
        assert "[::1]" in federation.said("site-1.out")


@pytest.mark.slow
def test_bind_to_one_interface_and_a_name_of_two_families_a_run_goes_through(cache, tmp_path):
    if not can_cut_lines():
        pytest.skip("needs root and `ip netns` to make a network namespace")
    with real_federation(tmp_path, num_sites=1, cache=cache, lines=True, bind="HERE", host="both.test") as federation:
        line = federation.lines["site-1"]
        # `ip netns exec` shows this file as /etc/hosts: nobody is at the address of IPv6, which is asked first.
        names = Path("/etc/netns") / line.name
        names.mkdir(parents=True)
        try:
            (names / "hosts").write_text(f"127.0.0.1 localhost\n::1 both.test\n{line.here} both.test\n")
            federation.start_server(*RUN)
            federation.start_client("site-1")
            assert federation.wait(600) == 0, federation.tail()
        finally:
            shutil.rmtree(names)
    assert federation.record.privacy.sites
