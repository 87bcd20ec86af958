"""What stands between hospitals and coordinators, as the real programs: a proxy, load balancers, a NAT that forgets."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from real_federation import Line

ROOT = Path(__file__).parents[2]
# libfaketime ends Python's time.sleep with an error.
CLOCK = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>
int clock_gettime(clockid_t clock, struct timespec *spec) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    int result = real(clock, spec);
    if (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE) spec->tv_sec += atol(getenv("CLOCK_AHEAD"));
    return result;
}
int gettimeofday(struct timeval *value, void *zone) {
    struct timespec spec;
    int result = clock_gettime(CLOCK_REALTIME, &spec);
    value->tv_sec = spec.tv_sec, value->tv_usec = spec.tv_nsec / 1000;
    return result;
}
time_t time(time_t *value) {
    struct timespec spec;
    clock_gettime(CLOCK_REALTIME, &spec);
    return value ? *value = spec.tv_sec : spec.tv_sec;
}
"""
# What a NAT of a hospital does after a minute or more, scaled down; Flower's own lines are idle for at most 5 s.
NAT_SECONDS = 8


def missing() -> str:
    """Which of the programs this machine has not; "" where it has all."""
    return ", ".join(name for name in ("tinyproxy", "haproxy", "nginx", "nft", "gcc") if shutil.which(name) is None)


def fake_clock(folder: Path) -> Path:
    """A library to preload: the clock of a process is CLOCK_AHEAD seconds ahead; what only grows is left alone."""
    (folder / "clock.c").write_text(CLOCK)
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", folder / "clock.so", folder / "clock.c", "-ldl"], check=True)
    return folder / "clock.so"


@contextmanager
def started(command: Sequence[object], *, listens: tuple[str, int]) -> Iterator[None]:
    """A program, from when it listens until the block ends."""
    process = subprocess.Popen([str(word) for word in command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while True:
            with suppress(OSError), socket.create_connection(listens, timeout=5):
                break
            assert time.monotonic() < deadline, f"{command[0]} does not listen"
            assert process.poll() is None, f"{command[0]} has ended"
            time.sleep(0.1)
        yield
    finally:
        process.terminate()
        process.wait(20)


@contextmanager
def tinyproxy(folder: Path, *, at: tuple[str, int], to: int, user: str, password: str) -> Iterator[Path]:
    """A proxy that asks for a password, and connects to one port only; its log."""
    log, config = folder / "tinyproxy.log", folder / "tinyproxy.conf"
    config.write_text(
        f'Listen {at[0]}\nPort {at[1]}\nTimeout 600\nLogFile "{log}"\nLogLevel Connect\nMaxClients 50\n'
        f"BasicAuth {user} {password}\nConnectPort {to}\n"
    )
    with started(["tinyproxy", "-d", "-c", config], listens=at):
        yield log


@contextmanager
def balancers(folder: Path, *, haproxy_at: tuple[str, int], nginx_at: tuple[str, int], to: tuple[str, int]) -> Iterator[None]:
    """HAProxy and nginx as the files for coordinators have them, at other addresses."""
    with ExitStack() as stack:
        for name, at in (("haproxy.cfg", haproxy_at), ("nginx.conf", nginx_at)):
            text = (ROOT / "server" / name).read_text(encoding="utf-8")
            assert "0.0.0.0:8443" in text
            assert "10.1.2.3:8443" in text
            text = text.replace("0.0.0.0:8443", f"{at[0]}:{at[1]}").replace("10.1.2.3:8443", f"{to[0]}:{to[1]}")
            (folder / name).write_text(text, encoding="utf-8")
        nginx = ["nginx", "-p", folder, "-e", folder / "nginx.log", "-c", folder / "nginx.conf"]
        nginx += ["-g", f"daemon off; pid {folder / 'nginx.pid'};"]
        stack.enter_context(started(["haproxy", "-db", "-f", folder / "haproxy.cfg"], listens=haproxy_at))
        stack.enter_context(started(nginx, listens=nginx_at))
        yield


@contextmanager
def behind_nat(line: Line) -> Iterator[str]:
    """A namespace behind a line's own, a router that forgets idle connections and drops what still comes."""
    inner = f"{line.name}n"
    commands = (
        f"ip netns add {inner}",
        f"ip -n {line.name} link add {inner}r type veth peer name {inner}s netns {inner}",
        f"ip -n {line.name} addr add 192.168.77.1/30 dev {inner}r",
        f"ip -n {line.name} link set {inner}r up",
        f"ip -n {inner} addr add 192.168.77.2/30 dev {inner}s",
        f"ip -n {inner} link set {inner}s up",
        f"ip -n {inner} link set lo up",
        f"ip -n {inner} route add default via 192.168.77.1",
        f"ip netns exec {line.name} nft add table ip nat",
        f"ip netns exec {line.name} nft add chain ip nat out {{ type nat hook postrouting priority 100 ; }}",
        f"ip netns exec {line.name} nft add rule ip nat out masquerade",
        f"ip netns exec {line.name} nft add chain ip nat through {{ type filter hook forward priority 0 ; }}",
        f"ip netns exec {line.name} nft add rule ip nat through ct state invalid drop",
        f"ip netns exec {line.name} sysctl -w net.ipv4.ip_forward=1",
        f"ip netns exec {line.name} sysctl -w net.netfilter.nf_conntrack_tcp_loose=0",
        f"ip netns exec {line.name} sysctl -w net.netfilter.nf_conntrack_tcp_timeout_established={NAT_SECONDS}",
    )
    try:
        for command in commands:
            subprocess.run(command.split(), check=True, capture_output=True)
        yield inner
    finally:
        subprocess.run(["ip", "netns", "del", inner], check=False, capture_output=True)
