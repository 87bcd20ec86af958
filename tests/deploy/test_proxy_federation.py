"""A federation across what hospitals have in between, with every variable of proxies set to something dead."""

from __future__ import annotations

import re
import subprocess
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from health_server import foreign_authorities, proxy_that
from middle_boxes import balancers, behind_nat, fake_clock, missing, tinyproxy
from real_federation import SMALL_RUN, RealFederation, can_cut_lines, free_port, real_federation

from mammo_fed.common.supervision import installed_command
from mammo_fed.server.operations.authority import make_server_certificate

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

PASSWORD = "s3cret-word"
ROUNDS = 3
SITE_CLIENT = installed_command("site-client")
# Two hospitals whose clocks are off, in seconds.
AHEAD = {"site-1": 250, "site-4": -250}


def test_proxy_variables_and_boxes_and_clocks_in_between_keep_nobody_from_a_run(cache, tmp_path):
    """site-1 connects directly, site-2 through tinyproxy, site-3 through HAProxy, site-4 from behind a NAT through nginx."""
    if not can_cut_lines():
        pytest.skip("needs root and `ip netns` to make network namespaces")
    if lacking := missing():
        pytest.skip(f"needs {lacking} (apt-get install tinyproxy haproxy nginx-light libnginx-mod-stream nftables gcc)")
    with ExitStack() as stack:
        trap, asked = stack.enter_context(proxy_that(b"HTTP/1.1 503 trap\r\n\r\n"))
        federation = stack.enter_context(real_federation(tmp_path, num_sites=4, cache=cache, lines=True))
        federation.environment = dead_variables(trap)
        here = {name: (line.here, free_port()) for name, line in federation.lines.items()}
        # An address of the line of another site: site-2 has no way there but the proxy's, which lets nobody pass elsewhere.
        server = (here["site-1"][0], federation.port)
        login = {"user": "hospital", "password": PASSWORD}
        log = stack.enter_context(tinyproxy(tmp_path, at=here["site-2"], to=federation.port, **login))
        stack.enter_context(balancers(tmp_path, haproxy_at=here["site-3"], nginx_at=here["site-4"], to=server))
        inner = stack.enter_context(behind_nat(federation.lines["site-4"]))
        take_foreign_certificate(federation)
        preloaded = fake_clock(tmp_path)
        tell(federation, "site-2", server=server, proxy="http://hospital:{}@{}:{}".format(PASSWORD, *here["site-2"]))
        tell(federation, "site-3", server=here["site-3"])
        tell(federation, "site-4", server=here["site-4"])
        federation.start_server(*SMALL_RUN, f"federation.rounds={ROUNDS}", "federation.num_sites=4")
        federation.wait_for("may come in", seconds=300)
        # The whole line, before the sites start to compete for the processor.
        assert "answers through the proxy" in checked(federation, "site-2")
        for name in federation.sites:
            clock = [f"LD_PRELOAD={preloaded}", f"CLOCK_AHEAD={AHEAD[name]}"] if name in AHEAD else []
            started_in = ["ip", "netns", "exec", inner] if name == "site-4" else []
            federation.start_client(name, program=[*started_in, "env", *clock, SITE_CLIENT])
        federation.wait_for(f"round 1/{ROUNDS}", seconds=600)
        commands = [command(pid) for pid in federation.processes()]
        assert len(commands) >= 12
        assert not any(PASSWORD.encode() in found for found in commands)
        assert federation.wait(600) == 0, federation.tail()
    sites = federation.record.privacy.sites
    assert {site.site: site.rounds for site in sites} == dict.fromkeys(federation.sites, ROUNDS + 1)
    assert asked == [], "somebody used a proxy of the environment"
    told = log.read_text(errors="replace")
    assert f"CONNECT {server[0]}:{server[1]}" in told
    # The password is in the site's own file, and nowhere else.
    files = [path for name in federation.sites for path in federation.site(name).rglob("*") if path.is_file()]
    found = [path for path in [*files, *tmp_path.glob("*.out")] if PASSWORD.encode() in path.read_bytes()]
    assert found == [federation.site("site-2") / "site.toml"]
    for name, ahead in AHEAD.items():
        assert f"{name} is refused" not in federation.said(), ahead


def take_foreign_certificate(federation: RealFederation) -> None:
    """The server shows a certificate of a hospital's own issuing authority; sites believe its root, too."""
    root, intermediate = foreign_authorities()
    tls, hosts = federation.fed / "tls", ["127.0.0.1", *(line.here for line in federation.lines.values())]
    leaf = make_server_certificate(intermediate, (tls / "server.key").read_bytes(), hosts=hosts, days=30)
    (tls / "server.crt").write_bytes(leaf + intermediate.certificate)
    both = (tls / "ca.crt").read_bytes() + root
    for file in (tls / "ca.crt", *(federation.site(name) / "ca.crt" for name in federation.sites)):
        file.write_bytes(both)


def command(pid: int) -> bytes:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def dead_variables(port: int) -> dict[str, str]:
    """All variables of proxies, in both cases; in a namespace nobody listens at that port."""
    dead = {"http_proxy": f"http://127.0.0.1:{port}", "https_proxy": f"http://127.0.0.1:{port}"}
    dead |= {"all_proxy": f"socks5://127.0.0.1:{port}", "no_proxy": "example.org,[::1]:80"}
    return dead | {name.upper(): value for name, value in dead.items()}


def tell(federation: RealFederation, name: str, *, server: tuple[str, int], proxy: str = "") -> None:
    file = federation.site(name) / "site.toml"
    text = re.sub(r"(?m)^server = .*$", f'server = "{server[0]}:{server[1]}"', file.read_text())
    file.write_text(re.sub(r"(?m)^proxy = .*$", f'proxy = "{proxy}"', text))


def checked(federation: RealFederation, name: str) -> str:
    """What a site's check of the server says, in its own namespace."""
    command = ["ip", "netns", "exec", federation.lines[name].name, SITE_CLIENT, "check", str(federation.site(name))]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    lines = [line for line in done.stdout.splitlines() if "server:" in line]
    assert len(lines) == 1, (done.returncode, done.stdout, done.stderr)
    return lines[0]
