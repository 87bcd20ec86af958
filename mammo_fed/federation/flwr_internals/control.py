"""The coordinator's side of a SuperLink: register keys, start a run without code, look at it, stop it; from this machine."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import httpx
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_public_key
from flwr.common.serde import fab_to_proto
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    ListRunsRequest,
    RegisterNodeRequest,
    StartRunRequest,
    StopRunRequest,
    UnregisterNodeRequest,
)
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.fab import Fab
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supercore.interceptors.http.utils import add_headers
from flwr.supercore.primitives.asymmetric import public_key_to_bytes

from mammo_fed.federation.flwr_internals.lines import make_direct_lines

__all__ = ["CONTROL_ERRORS", "CONTROL_HEADER", "Control", "Node", "RunStatus", "bundle", "node_key"]

# The guard in front of a SuperLink lets only those speak to its control side who know the server's own secret.
CONTROL_HEADER: Final = "x-mammo-fed-control"
CONTROL_ERRORS: Final[tuple[type[Exception], ...]] = (httpx.HTTPError, ConnectionError)
ANSWER_SECONDS: Final = 15.0
# Nothing in it depends on a run, a machine or a person: its hash is the same for every federation of this version.
PYPROJECT: Final = """[project]
name = "mammo-fed"
version = "{version}"
description = "no code: both apps come from the installed package"
license = "Apache-2.0"
dependencies = ["flwr>=1.41,<1.43"]

[tool.flwr.app]
publisher = "mammo-fed"
fab-include = ["pyproject.toml"]

[tool.flwr.app.components]
serverapp = "mammo_fed.server.operations.executor_app:app"
clientapp = "mammo_fed.client.rounds.app:app"

[tool.flwr.app.config]
"""


@dataclass(frozen=True, kw_only=True)
class Node:
    """A registered site as the SuperLink sees it: identifier, public key in SEC1 form, and whether it is there."""

    identifier: int
    public_key: bytes
    online: bool


@dataclass(frozen=True, kw_only=True)
class RunStatus:
    """State of a run at the SuperLink: "pending", "starting", "running" or "finished", and how it finished."""

    state: str
    outcome: str


class _Secret:
    """Adds the server's secret to every request."""

    def __init__(self, secret: str) -> None:
        self._secret = secret

    def intercept(self, context: Any, call_next: Any) -> Any:
        """Flower's interface."""
        add_headers(context.request, {CONTROL_HEADER: self._secret})
        return call_next(context)


class Control:
    """Speaks to the control side of a SuperLink on this machine.

    Args:
      address: host and port.
      ca: certificate of the authority that signed the server's; None speaks plain HTTP.
      secret: that the guard asks for.
    """

    def __init__(self, address: str, *, ca: Path | None, secret: str) -> None:
        make_direct_lines()
        self._client = ControlHttpClient.from_server_address(
            server_address=address,
            insecure=ca is None,
            root_certificates=None if ca is None else ca.read_bytes(),
            interceptors=[RuntimeVersionHttpInterceptor(component_name="flwr CLI"), _Secret(secret)],
        )
        # Who asks is who starts a SuperLink again that has just died: he must not wait for it for long.
        self._client._client.timeout = ANSWER_SECONDS

    def nodes(self) -> list[Node]:
        """All registered nodes; Flower still lists those that were excluded; they are left out here."""
        found = self._client.ListNodes(ListNodesRequest()).nodes_info
        return [
            Node(identifier=node.node_id, public_key=node.public_key, online=node.status == "online")
            for node in found
            if node.status != "unregistered"
        ]

    def register(self, public_key: bytes) -> None:
        """Let the holder of the private key come in; nothing changes where it is registered already."""
        try:
            self._client.RegisterNode(RegisterNodeRequest(public_key=public_key))
        except httpx.HTTPStatusError as error:
            if "already in use" not in error.response.text:
                raise

    def unregister(self, identifier: int) -> None:
        """Shut a node out, at once and for good: its key cannot be registered again."""
        self._client.UnregisterNode(UnregisterNodeRequest(node_id=identifier))

    def start(self, content: bytes) -> int:
        """Start a run with a bundle and return its number."""
        fab = Fab(hashlib.sha256(content).hexdigest(), content, {})
        started = self._client.StartRun(StartRunRequest(fab=fab_to_proto(fab)))
        if not started.HasField("run_id"):
            raise ConnectionError("the SuperLink did not start the run")
        return int(started.run_id)

    def status(self, run: int) -> RunStatus:
        """State of a run."""
        status = self._client.ListRuns(ListRunsRequest(run_id=run)).run_dict[run].status
        return RunStatus(state=status.status, outcome=status.sub_status)

    def unfinished(self) -> list[int]:
        """Numbers of the runs that have not finished."""
        runs: Mapping[int, Any] = self._client.ListRuns(ListRunsRequest()).run_dict
        return [number for number, run in runs.items() if run.status.status != "finished"]

    def stop(self, run: int) -> None:
        """Stop a run."""
        self._client.StopRun(StopRunRequest(run_id=run))


def bundle() -> bytes:
    """The bundle of a run (Flower's FAB): a name and two references to installed code; no code, no setting, no path."""
    # Flower's command line comes with it, which takes a quarter of a second.
    from flwr.cli.build import build_fab_from_files

    content, _ = build_fab_from_files({"pyproject.toml": PYPROJECT.format(version=version("mammo-fed")).encode()})
    return content


def node_key(public_key: bytes) -> bytes:
    """A public key in SSH form as a SuperLink keeps it."""
    key = load_ssh_public_key(public_key)
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise ValueError("the key is not of an elliptic curve")  # noqa: TRY004 - a value of the file, not of the call
    return public_key_to_bytes(key)
