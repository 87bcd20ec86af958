"""A server that waits for its sites, a stranger in another network namespace, and a coordinator who is curious and hostile."""

from __future__ import annotations

import base64
import json
import pickle
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import network_probe
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from flwr.cli.build import build_fab_from_files
from flwr.common.constant import TIMESTAMP_HEADER
from flwr.proto.fleet_pb2 import ActivateNodeRequest
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER
from flwr.supercore.date import now
from flwr.supercore.primitives.asymmetric import public_key_to_bytes, sign_message
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE
from google.protobuf.message import Message as Protobuf
from real_federation import RealFederation

from mammo_fed.federation.flwr_internals.control import CONTROL_HEADER, Control, Node
from mammo_fed.federation.identity.keys import SiteKey
from mammo_fed.federation.protocol.task import PROTOCOL_VERSION
from mammo_fed.server.operations.folder import FederationFolder

HOSTILE_PYPROJECT = """[project]
name = "mammo-fed"
version = "9.9.9"
description = "hostile"
license = "Apache-2.0"
dependencies = ["flwr>=1.41,<1.43", "surely-no-such-distribution==9.9.9"]

[tool.flwr.app]
publisher = "mammo-fed"
fab-include = ["**/*.py"]

[tool.flwr.app.components]
serverapp = "coordinator:app"
clientapp = "mammo_fed.client.rounds.app:app"

[tool.flwr.app.config]
"""
MARKED = 'import pathlib\npathlib.Path({folder!r}, "ran-" + __name__).touch()\n'
SHADOWS = (
    "client/__init__.py",
    "mammo_fed/client/__init__.py",
    "mammo_fed/client/rounds/app.py",
    "mammo_fed/__init__.py",
    "evil/__init__.py",
    "sitecustomize.py",
    "torch.py",
)
COORDINATOR = """
import pathlib, pickle, time
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import ServerApp
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects

FOLDER = pathlib.Path({folder!r})
(FOLDER / "coordinator").touch()
app = ServerApp()

def told(reply):
    error = (reply.error.code, reply.error.reason) if reply.has_error() else None
    raw = b"".join(part.deflate() for part in get_all_nested_objects(reply).values())
    content = dict() if error else dict((name, dict(record)) for name, record in reply.content.config_records.items())
    return dict(error=error, raw=raw, config=content)

@app.main()
def main(grid, context):
    while not (FOLDER / "stop").exists():
        for path in sorted(FOLDER.glob("ask-*")):
            ask = pickle.loads(path.read_bytes())
            path.unlink()
            content = RecordDict(dict(config=ConfigRecord(ask["config"]), protocol=ConfigRecord(dict(version={version}))))
            if ask["arrays"] is not None:
                content["arrays"] = ArrayRecord(dict(flat=Array(ask["arrays"])))
            replies = grid.send_and_receive([Message(content, ask["node"], ask["kind"])], timeout=90)
            draft = FOLDER / ("draft-" + path.name)
            draft.write_bytes(pickle.dumps([told(reply) for reply in replies]))
            draft.rename(FOLDER / path.name.replace("ask", "answer"))
        time.sleep(0.1)
"""


class StrangerKey:
    """A key pair of the elliptic curve that sites use, and requests signed with it."""

    def __init__(self) -> None:
        self.private = ec.generate_private_key(ec.SECP384R1())
        self.public = public_key_to_bytes(self.private.public_key())

    @property
    def site_key(self) -> SiteKey:
        """As a coordinator registers it."""
        return SiteKey(line=self.private.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode())

    def headers(self, *, stamp: str = "", signature: bytes = b"") -> dict[str, str]:
        """As a SuperNode signs; `stamp` instead of the time, `signature` instead of the right one."""
        stamp = stamp or now().isoformat()
        signature = signature or sign_message(self.private, stamp.encode("ascii"))
        return {
            FLEET_HTTP_PUBLIC_KEY_HEADER: base64.b64encode(self.public).decode(),
            TIMESTAMP_HEADER: stamp,
            FLEET_HTTP_SIGNATURE_HEADER: base64.b64encode(signature).decode(),
        }

    def activation(self) -> ActivateNodeRequest:
        return ActivateNodeRequest(public_key=self.public, heartbeat_interval=30)


@dataclass
class NetworkTrial:
    """What tests do to a server that runs.

    Attributes:
      federation: the processes.
      asks: folder through which the hostile bundle is told what to ask.
    """

    federation: RealFederation
    asks: Path
    _count: int = field(default=0)

    @property
    def folder(self) -> FederationFolder:
        return FederationFolder.open(self.federation.fed)

    @property
    def ca(self) -> Path:
        return self.federation.fed / "tls" / "ca.crt"

    @property
    def secret(self) -> str:
        return (self.federation.fed / "state" / "control.secret").read_text().strip()

    @contextmanager
    def control(self) -> Iterator[Control]:
        """The coordinator's side, for as long as the block runs."""
        made = Control(f"127.0.0.1:{self.federation.port}", ca=self.ca, secret=self.secret)
        try:
            yield made
        finally:
            made._client.close()

    def nodes(self) -> list[Node]:
        """All that the server knows."""
        with self.control() as control:
            return control.nodes()

    @property
    def outer_host(self) -> str:
        """The server's address as another machine sees it."""
        return self.federation.lines[self.federation.sites[0]].here

    def here(self, request: bytes, *, tls: bool = True) -> dict[str, Any]:
        """A request from this machine."""
        address = ("127.0.0.1", self.federation.port)
        return network_probe.exchange(address, request, ca=str(self.ca) if tls else None)

    def outside(self, requests: Sequence[bytes], *, port: int | None = None, tls: bool = True) -> list[dict[str, Any]]:
        """Requests from another network namespace."""
        line = self.federation.lines[self.federation.sites[0]]
        given = {
            "host": line.here,
            "port": port or self.federation.port,
            "ca": str(self.ca) if tls else None,
            "seconds": 10.0,
            "requests": [request.hex() for request in requests],
        }
        command = ["ip", "netns", "exec", line.name, sys.executable, network_probe.__file__]
        done = subprocess.run(command, input=json.dumps(given), capture_output=True, text=True, check=True, timeout=300)
        found: list[dict[str, Any]] = json.loads(done.stdout)
        return found

    def fleet(self, name: str, message: Protobuf, headers: dict[str, str]) -> dict[str, Any]:
        """What the sites' side answers to a message."""
        headers = {"Content-Type": PROTOBUF_MEDIA_TYPE, **headers}
        body = message.SerializeToString()
        return self.here(network_probe.http("POST", f"/v1/fleet/{name}", host="127.0.0.1", headers=headers, body=body))

    def activate(self, key: StrangerKey) -> int:
        """Come in with a key: the status of the answer."""
        return int(self.fleet("activate-node", key.activation(), key.headers())["status"])

    def come_in(self, key: StrangerKey) -> int:
        """Come in with a registered key: the node's number."""
        self.until(lambda: self.activate(key) == 200, "the registered key comes in")
        return next(node.identifier for node in self.nodes() if node.public_key == key.public)

    def until(self, happened: Callable[[], bool], what: str, *, seconds: float = 20.0) -> None:
        deadline = time.monotonic() + seconds
        while not happened():
            assert time.monotonic() < deadline, f"not in {seconds:g} s: {what}\n{self.federation.tail()}"
            time.sleep(0.2)

    def control_headers(self) -> dict[str, str]:
        return {CONTROL_HEADER: self.secret}

    def start_hostile_bundle(self) -> None:
        """Start a run with a bundle full of code, as only the coordinator can."""
        mark = MARKED.format(folder=str(self.asks)).encode()
        files = dict.fromkeys(SHADOWS, mark)
        files["pyproject.toml"] = HOSTILE_PYPROJECT.encode()
        files["coordinator.py"] = COORDINATOR.format(folder=str(self.asks), version=PROTOCOL_VERSION).encode()
        with warnings.catch_warnings():
            # Flower's list of files uses a name that pathspec has deprecated.
            warnings.simplefilter("ignore", DeprecationWarning)
            content, _ = build_fab_from_files(files)
        with self.control() as control:
            control.start(content)
        self.until((self.asks / "coordinator").exists, "the hostile bundle runs at the server", seconds=60)

    def ask(self, node: int, kind: str, config: dict[str, Any], arrays: Any = None) -> dict[str, Any]:
        """Let the hostile bundle ask a site, whatever it likes: error, content and raw bytes of the reply."""
        self._count += 1
        draft = self.asks / f"new-{self._count:03d}"
        draft.write_bytes(pickle.dumps({"node": node, "kind": kind, "config": config, "arrays": arrays}))
        draft.rename(self.asks / f"ask-{self._count:03d}")
        answer = self.asks / f"answer-{self._count:03d}"
        self.until(answer.exists, f"an answer to {kind} {sorted(config)}", seconds=100)
        (found,) = pickle.loads(answer.read_bytes())  # noqa: S301 - written by this test's own bundle
        return dict(found)
