"""A federation of real processes for tests: one flower-server, several site-clients, each behind a line that can be cut.

Sites run in network namespaces of their own where the system allows it (root and `ip netns`), else on the loopback.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from mammo_fed.common.supervision import installed_command
from mammo_fed.federation.flwr_internals.environment import flower_environment
from mammo_fed.reporting.record.record import Record, read_record

SMALL_SITE = (
    "data=phantom",
    "data.image_size=64",
    "data.images_train=96",
    "data.images_test=48",
    "data.images_external=24",
)
SMALL_RUN = (
    *SMALL_SITE,
    "model=efficientnet_lite0",
    "model.input_size=64",
    "model.flips=none",
    "model.components=20",
    "synthesis.count=48",
)


def can_cut_lines() -> bool:
    """Whether this process may make network namespaces."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        return False
    name = f"mf-{secrets.token_hex(3)}"
    if subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False).returncode:
        return False
    subprocess.run(["ip", "netns", "del", name], check=True)
    return True


_claims: list[socket.socket] = []


def _claim(what: str) -> bool:
    """Whether `what` is this process's alone, for as long as it runs, among all tests on this machine."""
    claim = socket.socket(socket.AF_UNIX)
    try:
        # A name without a file: the system forgets it with the process, and gives it to one at a time.
        claim.bind(f"\0mammo-fed-tests-{what}")
    except OSError:
        claim.close()
        return False
    _claims.append(claim)
    return True


def _free_network() -> str:
    """The first two numbers of addresses that nobody on this machine has."""
    while True:
        network = f"10.{secrets.randbelow(120) + 100}"
        taken = subprocess.run(["ip", "-o", "-4", "addr"], capture_output=True, text=True, check=True).stdout
        if f" {network}." not in taken and _claim(network):
            return network


def free_port() -> int:
    """A port that nobody listens on, below those of outgoing connections: it stays free while a server is started again."""
    while True:
        port = 20_000 + secrets.randbelow(12_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("", port))
            if _claim(f"port-{port}"):
                return port


@dataclass
class Line:
    """A site's network namespace, joined to this one by a pair of interfaces."""

    name: str
    network: str

    @property
    def here(self) -> str:
        return f"{self.network}.1"

    def make(self) -> None:
        veth = f"{self.name}h"
        for command in (
            f"netns add {self.name}",
            f"link add {veth} type veth peer name {self.name}s netns {self.name}",
            f"addr add {self.here}/30 dev {veth}",
            f"link set {veth} up",
            f"-n {self.name} addr add {self.network}.2/30 dev {self.name}s",
            f"-n {self.name} link set {self.name}s up",
            f"-n {self.name} link set lo up",
        ):
            subprocess.run(["ip", *command.split()], check=True, capture_output=True)

    def set(self, state: str) -> None:
        subprocess.run(["ip", "link", "set", f"{self.name}h", state], check=True)

    def remove(self) -> None:
        subprocess.run(["ip", "netns", "del", self.name], check=False, capture_output=True)


@dataclass
class RealFederation:
    """Folders and processes of one federation.

    Attributes:
      root: everything lies below it.
      port: of the server.
      sites: names.
      lines: by site; none on the loopback.
      server_root: where the server's folders lie instead.
      current_folder: where the commands are started; this process's by default.
      bind: address that the server listens on; the loopback, or all where sites have lines.
      host: by which sites reach the server; the end of their line by default.
      environment: of the commands, on top of this process's.
    """

    root: Path
    port: int
    sites: tuple[str, ...]
    cache: Path
    lines: Mapping[str, Line] = field(default_factory=dict)
    server_root: Path | None = None
    current_folder: Path | None = None
    bind: str = ""
    host: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    server: subprocess.Popen[bytes] | None = None
    clients: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def fed(self) -> Path:
        return (self.server_root or self.root) / "fed"

    @property
    def run_folder(self) -> Path:
        return (self.server_root or self.root) / "run"

    @property
    def record(self) -> Record:
        return read_record(self.run_folder)

    def site(self, name: str) -> Path:
        return self.root / name

    def start_server(self, *arguments: str, resume: bool = False, program: Sequence[str] = ()) -> None:
        command = [*(program or [installed_command("flower-server")]), "run", str(self.fed)]
        command += [f"hydra.run.dir={self.run_folder}", *arguments]
        self.server = self._spawn([*command, "--resume"] if resume else command, "server.out")

    def start_client(self, name: str, *arguments: str, program: Sequence[str] = ()) -> None:
        command = [*(program or [installed_command("site-client")]), "run", str(self.site(name)), *arguments]
        if name in self.lines:
            command = ["ip", "netns", "exec", self.lines[name].name, *command]
        self.clients[name] = self._spawn(command, f"{name}.out")

    def wait(self, seconds: float) -> int:
        """Exit code of the server."""
        assert self.server is not None
        try:
            return self.server.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the server did not end in {seconds:g} s:\n{self.tail()}") from None

    def wait_for(self, text: str, *, seconds: float, name: str = "server.out") -> None:
        deadline = time.monotonic() + seconds
        while text not in self.said(name):
            assert time.monotonic() < deadline, f"{name} did not say {text!r} in {seconds:g} s:\n{self.tail()}"
            assert self.server is None or self.server.poll() is None or text in self.said(name), self.tail()
            time.sleep(0.1)

    def said(self, name: str = "server.out") -> str:
        with suppress(FileNotFoundError):
            return (self.root / name).read_text(encoding="utf-8", errors="replace")
        return ""

    def tail(self) -> str:
        return "\n".join(
            f"--- {path.name}\n{path.read_text(errors='replace')[-1500:]}" for path in sorted(self.root.glob("*.out"))
        )

    def stop(self) -> None:
        processes = [process for process in (self.server, *self.clients.values()) if process is not None]
        for process in processes:
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
        for process in processes:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for pid in self.processes(""):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for line in self.lines.values():
            line.remove()

    def processes(self, *words: str) -> list[int]:
        """Processes of this federation (their command or environment tells) whose command holds all `words`."""
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                command = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                told = command + (path / "environ").read_bytes().decode(errors="replace")
                if str(self.root) in told and all(word in command for word in words) and int(path.name) != os.getpid():
                    found.append(int(path.name))
        return found

    def _spawn(self, command: Sequence[str], log: str) -> subprocess.Popen[bytes]:
        # Not what commands in this process have set: the processes have to isolate what they start.
        inherited = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
        environment = {
            **inherited,
            **flower_environment(self.root / "flwr"),
            "MAMMO_FED_CACHE": str(self.cache),
            "OMP_NUM_THREADS": "1",
            # By this the processes of a test are told from those of others.
            "MAMMO_FED_TEST": str(self.root),
            **self.environment,
        }
        with (self.root / log).open("ab") as out:
            return subprocess.Popen(
                command,
                cwd=self.current_folder,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )


@contextmanager
def real_federation(
    root: Path,
    *,
    num_sites: int,
    cache: Path,
    lines: bool = False,
    data: Sequence[str] = SMALL_SITE,
    server_root: Path | None = None,
    current_folder: Path | None = None,
    bind: str = "",
    host: str = "",
) -> Iterator[RealFederation]:
    """Initialised and registered folders; nothing runs yet. Everything is ended and removed afterwards.

    Args:
      root: empty folder.
      num_sites: site-1, site-2, ... share the cohort as in a simulation.
      cache: of features, shared.
      lines: a network namespace for each site.
      data: overrides of the sites' data.
      server_root: where the server's folder really lies.
      current_folder: where the commands are started.
      bind: address that the server listens on, "HERE" for its end of the first site's line.
      host: name or address by which sites reach the server.
    """
    names = tuple(f"site-{index + 1}" for index in range(num_sites))
    tag = secrets.token_hex(3)
    network = _free_network() if lines else ""
    made = (
        {name: Line(name=f"mf{tag}{index}", network=f"{network}.{index}") for index, name in enumerate(names)} if lines else {}
    )
    federation = RealFederation(
        root=root,
        port=free_port(),
        sites=names,
        cache=cache,
        lines=made,
        server_root=server_root,
        current_folder=current_folder,
        bind=bind,
        host=host,
    )
    try:
        for line in made.values():
            line.make()
        _init(federation, data)
        yield federation
    finally:
        federation.stop()


def _init(federation: RealFederation, data: Sequence[str]) -> None:
    ends = [line.here for line in federation.lines.values()]
    hosts = [*([federation.host] if federation.host else []), "127.0.0.1", *ends]
    bind = "0.0.0.0" if federation.lines else "127.0.0.1"  # noqa: S104 - a test's own namespaces
    bind = ends[0] if federation.bind == "HERE" else federation.bind or bind
    _call(
        "mammo_fed.server.operations.cli",
        "init",
        federation.fed,
        "--name",
        "trial",
        "--port",
        federation.port,
        "--bind",
        bind,
        *(word for host in hosts for word in ("--host", host)),
    )
    for index, name in enumerate(federation.sites):
        folder = federation.site(name)
        host = federation.lines[name].here if name in federation.lines else "127.0.0.1"
        host = f"[{federation.host}]" if ":" in federation.host else federation.host or host
        _call(
            "mammo_fed.client.operations.cli",
            "init",
            folder,
            "--name",
            name,
            "--server",
            f"{host}:{federation.port}",
            "--ca",
            federation.fed / "tls" / "ca.crt",
            "--share",
            f"{index + 1}/{len(federation.sites)}",
            "--max-epsilon",
            "inf",
            *data,
        )
        text = (folder / "site.toml").read_text(encoding="utf-8").splitlines()
        text = [f"cache = {json.dumps(str(federation.cache))}" if line.startswith("cache = ") else line for line in text]
        (folder / "site.toml").write_text("\n".join(text) + "\n", encoding="utf-8")
        _call("mammo_fed.server.operations.cli", "register", federation.fed, folder / "keys" / f"{name}.pub")


def _call(module: str, *arguments: object) -> None:
    from importlib import import_module

    code = import_module(module).main([str(argument) for argument in arguments])
    assert code == 0, (module, arguments)
