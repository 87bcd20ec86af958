"""What a site proves itself with: a registered key, a fresh signature, and each of them once."""

from __future__ import annotations

import os
from datetime import timedelta

import flwr.superlink.routers.fleet.router as fleet_router
import pytest
import uvicorn
from flwr.supercore.date import now
from flwr.superlink.servicer.fleet import fleet_handlers
from network_trial import StrangerKey

from mammo_fed.federation.flwr_internals.environment import flower_environment
from mammo_fed.federation.flwr_internals.guard import _is_local
from mammo_fed.federation.flwr_internals.proof import REMEMBERED_SECONDS, Proofs


class Clock:
    """A time that the test moves."""

    def __init__(self) -> None:
        self.moment = now()

    def __call__(self):
        return self.moment

    def move(self, seconds: float) -> None:
        self.moment += timedelta(seconds=seconds)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def key() -> StrangerKey:
    return StrangerKey()


@pytest.fixture
def proofs(key, clock) -> Proofs:
    return Proofs(lambda public: public == key.public, clock=clock)


def sent(key: StrangerKey, stamp: str, **changed: bytes) -> dict[bytes, bytes]:
    headers = {name.encode(): value.encode() for name, value in key.headers(stamp=stamp).items()}
    return headers | {name.replace("_", "-").encode(): value for name, value in changed.items()}


def test_network_a_proof_is_good_once(proofs, key, clock):
    headers = sent(key, clock().isoformat())
    assert [proofs.accepts(headers) for _ in range(3)] == [True, False, False]


def test_network_a_proof_stays_used_for_as_long_as_its_time_is_fresh(proofs, key, clock):
    # From a clock that is ahead: it is fresh for longest.
    headers = sent(key, (clock() + timedelta(seconds=4.9)).isoformat())
    assert proofs.accepts(headers)
    for _ in range(62):
        clock.move(5)
        proofs.accepts(sent(key, clock().isoformat()))
        assert not proofs.accepts(headers)


def test_network_old_proofs_are_forgotten(proofs, key, clock):
    for _ in range(20):
        assert proofs.accepts(sent(key, clock().isoformat()))
        clock.move(1)
    clock.move(REMEMBERED_SECONDS)
    assert proofs.accepts(sent(key, clock().isoformat()))
    assert (len(proofs._seen), len(proofs._order)) == (1, 1)


def test_network_what_proves_nothing_leaves_no_trace(proofs, key, clock):
    stamp = clock().isoformat()
    other = StrangerKey()
    refused = [
        {},
        sent(other, stamp),
        sent(key, (clock() - timedelta(seconds=400)).isoformat()),
        sent(key, (clock() + timedelta(seconds=30)).isoformat()),
        sent(key, stamp.partition("+")[0]),
        sent(key, "yesterday"),
        sent(key, stamp, flwr_signature=sent(other, stamp)[b"flwr-signature"]),
        sent(key, stamp, flwr_signature=b"?"),
        sent(key, stamp, flwr_public_key=b"AAAA"),
    ]
    assert [proofs.accepts(headers) for headers in refused] == [False] * len(refused)
    assert (len(proofs._seen), len(proofs._order)) == (0, 0)
    assert proofs.accepts(sent(key, stamp))


@pytest.mark.parametrize(
    ("client", "local"),
    [
        (("127.0.0.1", 1), True),
        (("127.8.9.1", 1), True),
        (("::1", 1), True),
        (("::ffff:127.0.0.1", 1), True),
        (("::ffff:10.0.0.1", 1), False),
        (("10.0.0.1", 1), False),
        (("fe80::1", 1), False),
        (("localhost", 1), False),
        (("", 0), False),
        (None, False),
    ],
)
def test_network_local_is_who_comes_over_the_loopback(client, local):
    assert _is_local({"client": client}) == local


def test_network_whose_connections_are_trusted_is_not_left_to_the_environment(monkeypatch, tmp_path):
    for name, value in {**flower_environment(tmp_path), "PATH": os.environ["PATH"]}.items():
        monkeypatch.setenv(name, value)
    config = uvicorn.Config(app=_nothing)
    assert (config.forwarded_allow_ips, config.workers) == ("127.0.0.1", 1)


async def _nothing(*_: object) -> None:
    return None


def test_network_flower_looks_up_the_handler_that_is_replaced():
    assert fleet_router.fleet_handlers is fleet_handlers
    assert "push_messages" in fleet_router.fleet_push_messages.__code__.co_names
