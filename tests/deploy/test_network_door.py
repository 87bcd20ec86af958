"""A server that runs, seen from another machine and from its own: which doors there are, and what they ask for."""

from __future__ import annotations

import socket
import ssl
import warnings
from datetime import timedelta

import flwr.superlink.main as superlink
import pytest
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from fastapi.routing import iter_route_contexts
from flwr.proto.fleet_pb2 import PushMessagesRequest, RegisterNodeFleetRequest, UnregisterNodeFleetRequest
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import Message as MessageProto
from flwr.proto.message_pb2 import Metadata
from flwr.proto.node_pb2 import Node
from flwr.supercore.date import now
from flwr.supercore.primitives.asymmetric import sign_message
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE
from network_probe import http
from network_trial import NetworkTrial, StrangerKey

pytestmark = pytest.mark.slow

FLEET, HEALTH, RUNTIME = "/v1/fleet/", "/health", "/v1/runtime/"
NOT_THERE = (404, "")
PROTOBUF = {"Content-Type": PROTOBUF_MEDIA_TYPE}
# The order of P-384.
ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFC7634D81F4372DDF581A0DB248B0A77AECEC196ACCC52973


@pytest.fixture(scope="module")
def paths() -> tuple[str, ...]:
    """Every path that a SuperLink serves."""
    found = sorted({str(route.path) for route in iter_route_contexts(superlink.create_app().routes) if route.path})
    assert {HEALTH, "/docs", "/openapi.json", f"{FLEET}push-messages", f"{RUNTIME}acquire-task"} <= set(found)
    assert sum(path.startswith("/v1/control/") for path in found) > 30
    return tuple(found)


@pytest.fixture(scope="module")
def member(trial) -> tuple[StrangerKey, int]:
    """A registered site that the test itself speaks for: its key and its node."""
    key = StrangerKey()
    trial.folder.registry.register("member", key.site_key, replace=False)
    return key, trial.come_in(key)


def closed(answers) -> bool:
    return {(answer["status"], answer["body"]) for answer in answers} == {NOT_THERE}


def heartbeat(trial: NetworkTrial, key: StrangerKey, node: int, headers: dict[str, str] | None = None) -> int:
    message = SendNodeHeartbeatRequest(node=Node(node_id=node), heartbeat_interval=30)
    return int(trial.fleet("send-node-heartbeat", message, key.headers() if headers is None else headers)["status"])


def test_network_from_outside_only_the_sites_side_and_health_are_there(trial, paths):
    inner = [path for path in paths if not path.startswith(FLEET) and path != HEALTH]
    requests = [
        http(method, path.replace("{", "").replace("}", ""), host=trial.outer_host, headers=PROTOBUF)
        for path in inner
        for method in ("POST", "GET", "HEAD", "OPTIONS")
    ]
    assert closed(trial.outside(requests))
    health, site = trial.outside(
        [http("GET", HEALTH, host=trial.outer_host), http("POST", f"{FLEET}activate-node", host=trial.outer_host)]
    )
    assert (health["status"], site["status"]) == (200, 401)


@pytest.mark.parametrize(
    "headers",
    [
        {"X-Forwarded-For": "127.0.0.1"},
        {"X-Forwarded-For": "127.0.0.1, 127.0.0.1"},
        {"Forwarded": "for=127.0.0.1;host=localhost;proto=http"},
        {"X-Real-IP": "127.0.0.1", "X-Client-IP": "::1", "X-Forwarded-Host": "localhost"},
        {"Host": "localhost"},
        {"Host": "127.0.0.1/v1/fleet/?"},
        {"X-Original-URL": "/v1/fleet/", "X-Rewrite-URL": "/health"},
    ],
    ids=lambda headers: "+".join(headers),
)
def test_network_a_caller_who_says_that_it_is_local_is_not(trial, headers):
    # With the server's own secret: all that is missing is that it comes from this machine.
    headers = {**PROTOBUF, **trial.control_headers(), **headers}
    targets = ["/v1/control/list-nodes", "/v1/control/start-run", "/v1/runtime/acquire-task", "/docs"]
    assert closed(trial.outside([http("POST", target, host=trial.outer_host, headers=headers) for target in targets]))


def test_network_the_servers_secret_opens_the_control_side_on_its_own_machine_only(trial):
    request = http("POST", "/v1/control/list-nodes", host="x", headers={**PROTOBUF, **trial.control_headers()})
    assert trial.here(request)["status"] == 200
    assert closed(trial.outside([request]))


@pytest.mark.parametrize(
    "target",
    [
        "//v1/control/list-nodes",
        "/v1//control/list-nodes",
        "/v1/control/list-nodes/",
        "/v1/fleet/../control/list-nodes",
        "/v1/fleet/%2e%2e/control/list-nodes",
        "/v1/fleet/..%2fcontrol/list-nodes",
        "/v1/fleet%2f..%2fcontrol/list-nodes",
        "/v1/fleet/..;/control/list-nodes",
        "/V1/CONTROL/LIST-NODES",
        "/V1/FLEET/activate-node",
        "/v1/control%2flist-nodes",
        "/%76%31/control/list-nodes",
        "/v1/control/list-nodes?/v1/fleet/",
        "/v1/control/list-nodes%3f/v1/fleet/",
        "/v1/control/list-nodes%00/v1/fleet/",
        "/health/../v1/control/list-nodes",
        "/health/",
        "http://localhost/v1/control/list-nodes",
        "/v1/fleet",
        "*",
    ],
)
def test_network_no_spelling_of_a_path_leads_round_the_guard(trial, target):
    headers = {**PROTOBUF, **trial.control_headers()}
    for answer in trial.outside([http(method, target, host=trial.outer_host, headers=headers) for method in ("POST", "GET")]):
        assert answer["status"] in (400, 401, 404)
        assert "node" not in answer["body"]


def test_network_no_websocket_is_opened(trial, paths):
    headers = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    }
    targets = ["/v1/control/stream-logs", "/v1/fleet/pull-messages", HEALTH]
    answers = trial.outside([http("GET", target, host=trial.outer_host, headers=headers) for target in targets])
    assert {answer["status"] for answer in answers} <= {400, 403, 404}


def test_network_on_the_servers_machine_nothing_is_there_without_its_secret(trial, paths):
    for secret in ({}, {"x-mammo-fed-control": "0" * 96}, {"x-mammo-fed-control": ""}):
        for path in paths:
            if path.startswith((FLEET, RUNTIME)) or path == HEALTH:
                continue
            request = http("POST", path.replace("{", "").replace("}", ""), host="localhost", headers={**PROTOBUF, **secret})
            assert closed([trial.here(request)]), path


def test_network_the_side_of_flowers_own_processes_asks_for_their_tokens(trial, paths):
    own = [path for path in paths if path.startswith(RUNTIME)]
    for path in own:
        request = http("POST", path.replace("{", "").replace("}", ""), host="localhost", headers=PROTOBUF)
        assert trial.here(request)["status"] in (400, 401, 403, 404, 415, 422), path
    acquire = trial.here(http("POST", f"{RUNTIME}acquire-task", host="localhost", headers=PROTOBUF))
    assert acquire["status"] in (401, 403)


def test_network_nobody_without_a_key_is_heard(trial, paths):
    sides = [path for path in paths if path.startswith(FLEET)]
    assert len(sides) >= 12
    answers = trial.outside([http("POST", path, host=trial.outer_host, headers=PROTOBUF) for path in sides])
    assert {(answer["status"], answer["body"]) for answer in answers} == {(401, "")}


def test_network_a_stranger_is_refused_before_the_server_reads_what_it_sends(trial):
    # A body of a terabyte is announced, and nothing of it is sent: whoever waits for it would not answer.
    request = http("POST", f"{FLEET}push-object", host="x", headers={**PROTOBUF, "Content-Length": str(1 << 40)})
    (answer,) = trial.outside([request])
    assert (answer["status"], answer["error"]) == (401, "")


def test_network_an_unregistered_key_stays_outside(trial):
    assert trial.activate(StrangerKey()) == 401


def test_network_a_registered_key_comes_in_without_a_restart(trial, member):
    key, node = member
    assert heartbeat(trial, key, node) == 200


def test_network_a_key_that_did_not_sign_stays_outside(trial, member):
    key, node = member
    forged = sign_message(StrangerKey().private, b"2026-01-01")
    assert heartbeat(trial, key, node, key.headers(signature=forged)) == 401
    assert heartbeat(trial, key, node + 1) == 401


def test_network_nobody_registers_itself(trial, member):
    stranger = StrangerKey()
    before = len(trial.nodes())
    assert (
        trial.fleet("register-node", RegisterNodeFleetRequest(public_key=stranger.public), stranger.headers())["status"] == 401
    )
    key, node = member
    # Nor does a site bring others in, or put them out.
    assert trial.fleet("register-node", RegisterNodeFleetRequest(public_key=key.public), key.headers())["status"] >= 400
    assert trial.fleet("unregister-node", UnregisterNodeFleetRequest(node_id=node), key.headers())["status"] >= 400
    assert len(trial.nodes()) == before
    assert heartbeat(trial, key, node) == 200


def test_network_a_message_that_is_sent_again_is_refused(trial, member):
    key, node = member
    headers = key.headers()
    assert heartbeat(trial, key, node, headers) == 200
    assert heartbeat(trial, key, node, headers) == 401


def test_network_a_signature_is_not_good_for_another_message(trial, member):
    key, node = member
    headers = key.headers()
    assert heartbeat(trial, key, node, headers) == 200
    assert trial.fleet("activate-node", key.activation(), headers)["status"] == 401


def test_network_a_signature_in_another_form_is_still_the_same(trial, member):
    key, node = member
    stamp = now().isoformat()
    signature = sign_message(key.private, stamp.encode())
    r, s = decode_dss_signature(signature)
    assert heartbeat(trial, key, node, key.headers(stamp=stamp, signature=signature)) == 200
    assert heartbeat(trial, key, node, key.headers(stamp=stamp, signature=encode_dss_signature(r, ORDER - s))) == 401


@pytest.mark.parametrize("seconds", [-3600, -306, 306, 3600])
def test_network_a_message_of_another_time_is_refused(trial, member, seconds):
    key, node = member
    stamp = (now() + timedelta(seconds=seconds)).isoformat()
    assert heartbeat(trial, key, node, key.headers(stamp=stamp)) == 401
    direction = "ahead of" if seconds > 0 else "behind"
    trial.until(lambda: f"s {direction} this machine's" in trial.federation.said(), "the server names the clock")


@pytest.mark.parametrize("seconds", [-280, 10, 280])
def test_clock_of_a_site_may_be_minutes_off(trial, member, seconds):
    key, node = member
    headers = key.headers(stamp=(now() + timedelta(seconds=seconds)).isoformat())
    assert [heartbeat(trial, key, node, headers) for _ in range(2)] == [200, 401]


def test_clock_is_all_that_a_stranger_learns_of_the_server(trial, member):
    key, node = member
    stamp = (now() + timedelta(hours=1)).isoformat()
    message = SendNodeHeartbeatRequest(node=Node(node_id=node), heartbeat_interval=30)
    told = trial.fleet("send-node-heartbeat", message, key.headers(stamp=stamp))
    assert "x-mammo-fed-refused: clock" in told["head"]
    stranger = trial.fleet("send-node-heartbeat", message, StrangerKey().headers(stamp=stamp))
    names = {line.partition(":")[0].lower() for line in stranger["head"].splitlines()[1:]}
    assert (stranger["status"], names) == (401, {"content-length", "connection", "date"})


def test_network_a_site_speaks_in_its_own_name_only(trial, member):
    key, node = member
    other = next(found.identifier for found in trial.nodes() if found.identifier != node)

    def push(source: int) -> int:
        metadata = Metadata(run_id=1, message_id="00", src_node_id=source, dst_node_id=1, reply_to_message_id="00")
        message = PushMessagesRequest(node=Node(node_id=node), messages_list=[MessageProto(metadata=metadata)])
        return int(trial.fleet("push-messages", message, key.headers())["status"])

    assert push(other) == 403
    assert push(node) != 403


def test_network_a_revoked_key_is_out_at_once(trial, server):
    key = StrangerKey()
    trial.folder.registry.register("short", key.site_key, replace=False)
    node = trial.come_in(key)
    assert heartbeat(trial, key, node) == 200
    assert server("revoke", trial.federation.fed, "short")[0] == 0
    trial.until(lambda: heartbeat(trial, key, node) == 401, "the revoked key is out", seconds=8)
    assert trial.activate(key) == 401


def test_network_after_a_rotation_the_new_key_comes_in_and_the_old_does_not(trial):
    old, new = StrangerKey(), StrangerKey()
    trial.folder.registry.register("rotating", old.site_key, replace=False)
    node = trial.come_in(old)
    trial.folder.registry.register("rotating", new.site_key, replace=True)
    trial.come_in(new)
    trial.until(lambda: heartbeat(trial, old, node) == 401, "the old key is out", seconds=8)
    assert trial.activate(old) == 401


@pytest.mark.parametrize(
    ("name", "said", "status"),
    [
        ("push-object", {"Content-Length": str(600 << 20)}, 413),
        ("push-object", {"Content-Length": str(7 << 20)}, 413),
        ("push-messages", {"Content-Length": str(2 << 20)}, 413),
        ("send-node-heartbeat", {"Content-Length": str(100 << 10)}, 413),
        ("push-object", {"Transfer-Encoding": "chunked"}, 411),
    ],
    ids=lambda value: str(value),
)
def test_door_a_sites_body_is_bounded_before_it_is_read(trial, member, name, said, status):
    # None of the body is sent: whoever waits for it would not answer.
    key, _ = member
    headers = {"Host": "x", **PROTOBUF, **key.headers(), **said}
    head = "".join(f"{field}: {value}\r\n" for field, value in headers.items())
    assert trial.here(f"POST {FLEET}{name} HTTP/1.1\r\n{head}\r\n".encode())["status"] == status


def test_tls_plain_http_gets_no_answer_of_a_server(trial):
    request = http("GET", HEALTH, host="x")
    assert trial.here(request, tls=False)["status"] == 0
    (answer,) = trial.outside([request], tls=False)
    assert answer["status"] == 0


@pytest.mark.parametrize(
    ("version", "accepted"),
    [
        (ssl.TLSVersion.TLSv1, False),
        (ssl.TLSVersion.TLSv1_1, False),
        (ssl.TLSVersion.TLSv1_2, True),
        (ssl.TLSVersion.TLSv1_3, True),
    ],
    ids=str,
)
def test_tls_below_1_2_is_refused(trial, version, accepted):
    made = shaken(trial, version, "ALL:@SECLEVEL=0")
    assert (made is not None) == accepted


def test_tls_1_2_is_spoken_with_authenticated_encryption_only(trial):
    assert shaken(trial, ssl.TLSVersion.TLSv1_2, "ECDHE-ECDSA-AES256-SHA:ECDHE-ECDSA-AES128-SHA256:@SECLEVEL=0") is None
    assert "GCM" in str(shaken(trial, ssl.TLSVersion.TLSv1_2, "ECDHE+AESGCM"))


def shaken(trial: NetworkTrial, version: ssl.TLSVersion, ciphers: str) -> str | None:
    """The cipher of a connection of one version of TLS; None where the server makes none."""
    context = ssl.create_default_context(cafile=str(trial.ca))
    context.set_ciphers(ciphers)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = context.maximum_version = version
    try:
        with (
            socket.create_connection(("127.0.0.1", trial.federation.port), timeout=10) as plain,
            context.wrap_socket(plain, server_hostname="127.0.0.1") as line,
        ):
            return str(line.cipher())
    except (ssl.SSLError, ConnectionError):
        return None
