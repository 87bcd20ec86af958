"""What a site proves itself with: a registered key, a fresh signature, and each of them once."""

from __future__ import annotations

import os
from datetime import timedelta

import flwr.superlink.routers.fleet.node_auth as node_auth
import flwr.superlink.routers.fleet.router as fleet_router
import pytest
import uvicorn
from flwr.supercore.date import now
from flwr.superlink.servicer.fleet import fleet_handlers
from network_trial import StrangerKey

from mammo_fed.federation.flwr_internals.environment import flower_environment
from mammo_fed.federation.flwr_internals.guard import _is_local
from mammo_fed.federation.flwr_internals.proof import REMEMBERED_SECONDS, Objection, Proofs
from mammo_fed.federation.identity.clocks import CLOCK_TOLERANCE_SECONDS, WrongClocks, read_wrong_clocks


class Clock:
    """A time that the test moves."""

    def __init__(self) -> None:
        self.moment, self.passed = now(), 0.0

    def __call__(self):
        return self.moment

    def move(self, seconds: float) -> None:
        self.moment += timedelta(seconds=seconds)
        self.passed += seconds

    def jump(self, seconds: float) -> None:
        """Somebody sets it."""
        self.moment += timedelta(seconds=seconds)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def key() -> StrangerKey:
    return StrangerKey()


@pytest.fixture
def proofs(key, clock) -> Proofs:
    return Proofs(lambda public: public == key.public, clock=clock, passed=lambda: clock.passed)


def accepted(proofs: Proofs, headers: dict[bytes, bytes]) -> bool:
    return proofs.objection(headers) is None


def sent(key: StrangerKey, stamp: str, **changed: bytes) -> dict[bytes, bytes]:
    headers = {name.encode(): value.encode() for name, value in key.headers(stamp=stamp).items()}
    return headers | {name.replace("_", "-").encode(): value for name, value in changed.items()}


def test_network_a_proof_is_good_once(proofs, key, clock):
    headers = sent(key, clock().isoformat())
    assert [accepted(proofs, headers) for _ in range(3)] == [True, False, False]


def test_network_a_proof_stays_used_for_as_long_as_its_time_is_fresh(proofs, key, clock):
    # From a clock that is ahead: it is fresh for longest.
    headers = sent(key, (clock() + timedelta(seconds=CLOCK_TOLERANCE_SECONDS - 0.1)).isoformat())
    assert accepted(proofs, headers)
    for _ in range(61):
        clock.move(10)
        accepted(proofs, sent(key, clock().isoformat()))
        assert not accepted(proofs, headers)


def test_network_old_proofs_are_forgotten(proofs, key, clock):
    for _ in range(20):
        assert accepted(proofs, sent(key, clock().isoformat()))
        clock.move(1)
    clock.move(REMEMBERED_SECONDS)
    assert accepted(proofs, sent(key, clock().isoformat()))
    assert (len(proofs._seen), len(proofs._order)) == (1, 1)


def test_network_what_proves_nothing_leaves_no_trace(proofs, key, clock):
    stamp = clock().isoformat()
    other = StrangerKey()
    refused = [
        {},
        sent(other, stamp),
        sent(key, (clock() - timedelta(seconds=400)).isoformat()),
        sent(key, (clock() + timedelta(seconds=400)).isoformat()),
        sent(key, stamp.partition("+")[0]),
        sent(key, "yesterday"),
        sent(key, stamp, flwr_signature=sent(other, stamp)[b"flwr-signature"]),
        sent(key, stamp, flwr_signature=b"?"),
        sent(key, stamp, flwr_public_key=b"AAAA"),
    ]
    assert [accepted(proofs, headers) for headers in refused] == [False] * len(refused)
    assert (len(proofs._seen), len(proofs._order)) == (0, 0)
    assert accepted(proofs, sent(key, stamp))


@pytest.mark.parametrize("seconds", [-299, -60, -6, 6, 10, 60, 299])
def test_clock_of_a_site_may_be_minutes_off_in_both_directions(proofs, key, clock, seconds):
    headers = sent(key, (clock() + timedelta(seconds=seconds)).isoformat())
    assert [accepted(proofs, headers) for _ in range(2)] == [True, False]


@pytest.mark.parametrize("seconds", [-86400, -301, 301, 86400, 1e10])
def test_clock_too_far_off_is_named_to_who_has_proved_itself_and_to_the_coordinator_only(key, clock, seconds):
    noted = []
    proofs = Proofs(lambda public: public == key.public, clock=clock, on_wrong_clock=lambda *note: noted.append(note))
    stamp = (clock() + timedelta(seconds=seconds)).isoformat()
    told = proofs.objection(sent(key, stamp))
    assert told is not None
    assert (told.status, told.headers) == (401, ((b"x-mammo-fed-refused", b"clock"),))
    assert noted == [(key.public, pytest.approx(seconds))]
    stranger = StrangerKey()
    for headers in (sent(stranger, stamp), sent(key, stamp, flwr_signature=sent(stranger, stamp)[b"flwr-signature"])):
        assert proofs.objection(headers) == Objection(status=401, headers=())
    assert len(noted) == 1


@pytest.mark.parametrize("seconds", [3600, -3600])
def test_clock_of_the_server_that_jumps_and_comes_back_makes_no_proof_good_again(proofs, key, clock, seconds):
    used = sent(key, clock().isoformat())
    assert accepted(proofs, used)
    clock.jump(seconds)
    assert accepted(proofs, sent(key, clock().isoformat()))
    clock.jump(-seconds)
    assert not accepted(proofs, used)


def test_clock_notes_are_read_as_they_were_written_and_a_damaged_file_says_nothing(tmp_path, key):
    path = tmp_path / "clocks.json"
    path.write_text("of before")
    notes = WrongClocks(path)
    assert dict(read_wrong_clocks(path)) == {}
    notes.note(key.public, 712.345)
    notes.note(key.public, 713.0)
    notes.note(b"\x04other", -86400.0)
    assert dict(read_wrong_clocks(path)) == {key.public: 712.3, b"\x04other": -86400.0}
    path.write_bytes(path.read_bytes()[:-9])
    assert dict(read_wrong_clocks(path)) == {}


def test_clock_that_is_ahead_is_refused_by_flower_alone_unless_it_is_told():
    assert {"SYSTEM_TIME_TOLERANCE", "TIMESTAMP_TOLERANCE"} <= set(node_auth.authenticate_node.__code__.co_names)


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
