"""The door before any TLS or Flower: a real server with short times, and callers of every kind of bad manners."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from base64 import b64encode
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import uvicorn
from fastapi import HTTPException
from flwr.proto.fleet_pb2 import PushMessagesRequest, PushMessagesResponse
from flwr.proto.message_pb2 import Message as MessageProto
from flwr.proto.message_pb2 import Metadata, ObjectTree, PushObjectRequest, PushObjectResponse
from flwr.proto.node_pb2 import Node
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER
from flwr.superlink.servicer.fleet import fleet_handlers

from mammo_fed.federation.flwr_internals.door.bodies import Bodies, Parked
from mammo_fed.federation.flwr_internals.door.callers import Caller, Callers, State, network_of
from mammo_fed.federation.flwr_internals.door.connection import DOOR
from mammo_fed.federation.flwr_internals.door.entrance import Listener
from mammo_fed.federation.flwr_internals.door.limits import HEAD_BYTES, HEAD_FIELDS, Limits
from mammo_fed.federation.flwr_internals.door.server import DoorServer
from mammo_fed.federation.flwr_internals.door.turned_away import OftenSaid, TurnedAway

SHORT = Limits(
    per_address=8,
    strangers=6,
    first_byte_seconds=1.0,
    handshake_seconds=1.0,
    head_seconds=1.0,
    stall_seconds=1.0,
    idle_seconds=1.0,
    site_idle_seconds=60.0,
)
GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
# So long a machine that does something else too may take for what takes no time.
PATIENCE = 60.0


async def app(scope: Any, receive: Any, send: Any) -> None:
    """/site shows a key, /large answers 32 MiB, everything else reads its body and answers its length."""
    connection = scope["extensions"][DOOR]
    if scope["path"] == "/site":
        connection.is_site(b"a key")
    size, more = 0, True
    while more and scope["path"] != "/unread":
        message = await receive()
        size, more = size + len(message.get("body", b"")), message.get("more_body", False)
    body = b"x" * (32 << 20) if scope["path"] == "/large" else str(size).encode()
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


@dataclass
class Running:
    public: int
    own: int
    said: list[str]

    def call(self, request: bytes = b"", *, own: bool = False) -> socket.socket:
        line = socket.create_connection(("127.0.0.1", self.own if own else self.public), timeout=PATIENCE)
        line.sendall(request)
        return line

    def answer(self, request: bytes = GET, *, own: bool = False) -> bytes:
        with closing(self.call(request, own=own)) as line:
            return answer_on(line)


def answer_on(line: socket.socket) -> bytes:
    """One whole answer, whose length is below 10 and stands last in its head."""
    found = b""
    while not (found.partition(b"\r\n\r\n")[2] and b"\r\n\r\n" in found):
        chunk = line.recv(4096)
        if not chunk:
            break
        found += chunk
    return found


@contextmanager
def serving(limits: Limits) -> Iterator[Running]:
    """A door in a thread of this process."""
    said: list[str] = []
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    listeners = [Listener(sock=sock, limits=limits, own=own) for sock, own in zip(sockets, (True, False), strict=True)]
    config = uvicorn.Config(app, ws="none", lifespan="off", log_config=None, timeout_graceful_shutdown=1)
    server = DoorServer(config, listeners, TurnedAway(said.append, clock=lambda: time.monotonic() * 1000))
    found = Running(sockets[1].getsockname()[1], sockets[0].getsockname()[1], said)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()))
    thread.start()
    try:
        yield found
    finally:
        server.should_exit = True
        thread.join(PATIENCE)
        for sock in sockets:
            sock.close()
    assert not thread.is_alive()


@pytest.fixture(scope="module")
def door() -> Iterator[Running]:
    with serving(SHORT) as running:
        yield running


def ended(line: socket.socket) -> bool:
    """Whether the other side ends a connection, however it does."""
    try:
        while line.recv(65536):
            pass
    except ConnectionError:
        return True
    return True


def pushed(line: socket.socket, what: bytes, pause: float = 0.0) -> int:
    """How many bytes go before the other side ends the connection."""
    sent = 0
    try:
        while sent < (64 << 20):
            sent += line.send(what)
            time.sleep(pause)
    except ConnectionError:
        return sent
    raise AssertionError(f"{sent} bytes were taken")


def taken_of(line: socket.socket) -> int:
    """How many bytes come before the other side ends the connection."""
    taken = 0
    try:
        while chunk := line.recv(1 << 20):
            taken += len(chunk)
    except ConnectionError:
        return taken
    return taken


def until_said(door: Running, what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not any(what in said for said in door.said):
        assert time.monotonic() < deadline, door.said
        time.sleep(0.05)


def test_door_answers_one_request_after_another(door):
    assert door.answer().endswith(b"\r\n\r\n0")
    with closing(door.call(GET)) as line:
        assert answer_on(line).startswith(b"HTTP/1.1 200")
        line.sendall(b"POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\nab")
        line.sendall(b"cde")
        assert answer_on(line).endswith(b"\r\n\r\n5")


def test_door_a_large_body_is_read_when_the_app_asks_for_it(door):
    with closing(door.call()) as line:
        for _ in range(3):
            line.sendall(b"POST / HTTP/1.1\r\nContent-Length: 5242880\r\n\r\n" + b"x" * 5_242_880)
            assert answer_on(line).endswith(b"\r\n\r\n5242880")


def test_door_a_body_that_nobody_reads_ends_the_connection(door):
    with closing(door.call(b"POST /unread HTTP/1.1\r\nContent-Length: 1000000000\r\n\r\n")) as line:
        assert pushed(line, b"x" * 65536) < (32 << 20)


@pytest.mark.parametrize(
    "sent",
    [b"", b"G", b"GET / HTTP/1.1\r\nHost: x\r\n", b"POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\nab", GET],
    ids=["nothing", "a byte", "half a head", "half a body", "a request and then nothing"],
)
def test_door_does_not_wait_for_ever(door, sent):
    with closing(door.call(sent)) as line:
        assert ended(line)


def test_door_a_head_that_comes_byte_by_byte_is_not_waited_for(door):
    with closing(door.call(b"GET / HTTP/1.1\r\n")) as line:
        assert pushed(line, b"a", pause=0.1) < PATIENCE / 0.1


@pytest.mark.parametrize(
    ("begin", "again"),
    [
        (b"", b"x" * 65536),
        (b"GET /", b"x" * 65536),
        (b"GET / HTTP/1.1\r\na: ", b"x" * 65536),
        (b"GET / HTTP/1.1\r\n", b"a: b\r\n" * 8192),
        (b"GET / HTTP/1.1\r\n", b"\r\n" * 8192 + b"x: " * 8192),
        (b"", GET * 2048),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", b"1;" + b"x" * 65536 + b"\r\nx\r\n"),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n", b"a: " + b"x" * 65536),
    ],
    ids=["no HTTP", "address", "one field", "many fields", "blank lines", "pipelined", "chunk extensions", "trailer"],
)
def test_door_a_head_without_end_is_not_read(door, begin, again):
    with closing(door.call(begin)) as line:
        # The system's own buffers take some before anybody looks.
        assert pushed(line, again) < (16 << 20)


def test_door_a_client_may_be_quicker_than_the_app(door):
    # The next request is there before the app has said that its answer was whole.
    with closing(door.call(GET + GET)) as line:
        found = b""
        while found.count(b"HTTP/1.1 200") < 2:
            chunk = line.recv(4096)
            assert chunk
            found += chunk
    with closing(door.call()) as line:
        for _ in range(100):
            line.sendall(GET)
            assert answer_on(line).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("fields", [HEAD_FIELDS - 1, HEAD_FIELDS + 1])
def test_door_counts_fields(door, fields):
    answer = door.answer(b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * fields + b"\r\n") if fields <= HEAD_FIELDS else b""
    if fields > HEAD_FIELDS:
        with closing(door.call(b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * fields + b"\r\n")) as line:
            assert ended(line)
    else:
        assert answer.startswith(b"HTTP/1.1 200")


def test_door_takes_a_head_just_below_the_limit(door):
    head = b"GET / HTTP/1.1\r\na: "
    assert door.answer(head + b"x" * (HEAD_BYTES - len(head) - 4) + b"\r\n\r\n").startswith(b"HTTP/1.1 200")


def test_door_an_answer_that_nobody_takes_is_dropped(door):
    with closing(door.call(b"GET /large HTTP/1.1\r\n\r\n")) as line:
        until_said(door, "that did not take its answer")
        assert taken_of(line) < (32 << 20)


def test_door_an_answer_that_is_taken_slowly_arrives(door):
    with closing(door.call(b"GET /large HTTP/1.1\r\n\r\n")) as line:
        taken = 0
        while taken < (32 << 20):
            chunk = line.recv(1 << 20)
            assert chunk, f"ended after {taken} bytes"
            taken += len(chunk)
            time.sleep(0.01)


def test_door_no_other_protocol_is_spoken(door):
    upgrade = b"GET / HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x\r\n\r\n"
    assert door.answer(upgrade).startswith(b"HTTP/1.1 400")


def test_door_one_address_gets_no_more_than_its_number_and_its_newest_are_heard(door):
    with_nothing = [door.call() for _ in range(40)]
    try:
        assert door.answer().startswith(b"HTTP/1.1 200")
        assert door.answer(own=True).startswith(b"HTTP/1.1 200")
        assert sum(ended(line) for line in with_nothing[:30]) == 30
    finally:
        for line in with_nothing:
            line.close()


def test_door_who_has_shown_a_key_stays_when_a_flood_comes(door):
    with closing(door.call(b"GET /site HTTP/1.1\r\n\r\n")) as site:
        assert answer_on(site).startswith(b"HTTP/1.1 200")
        flood = [door.call(GET if number % 2 else b"") for number in range(60)]
        try:
            # Longer than any stranger may be idle.
            time.sleep(2.5)
            site.sendall(GET)
            assert answer_on(site).startswith(b"HTTP/1.1 200")
        finally:
            for line in flood:
                line.close()


def test_door_tells_of_a_flood_by_its_kinds(door):
    with closing(door.call(b"GET / HTTP/1.1\r\na: ")) as line:
        pushed(line, b"x" * 65536)
    until_said(door, "with a head that is too long")
    assert any("most from 127.0.0.1" in said for said in door.said)


def caller(address: str, since: float) -> tuple[Caller, list[str]]:
    dropped: list[str] = []
    return Caller(address=address, network=network_of(address), since=since, drop=lambda: dropped.append(address)), dropped


def test_door_all_together_have_a_number_and_the_busiest_address_makes_room():
    callers = Callers(Limits(per_address=100, waiting=20))
    busy = [caller("192.0.2.1", number) for number in range(15)]
    quiet = [caller(f"198.51.100.{number}", 100 + number) for number in range(5)]
    for one, _ in (*quiet, *busy):
        assert callers.admit(one, 200) == ""
    assert callers.admit(caller("203.0.113.1", 201)[0], 201) == ""
    assert [bool(dropped) for _, dropped in quiet] == [False] * 5
    assert [bool(dropped) for _, dropped in busy] == [True] + [False] * 14


def test_door_handshakes_are_made_in_turn_by_address():
    callers = Callers(Limits(per_address=100, handshakes=3))
    many = [caller("192.0.2.1", number)[0] for number in range(50)]
    for one in many:
        callers.admit(one, 0)
        callers.move(one, State.READY, 0)
    for _ in range(2):
        callers.move(callers.next_ready(), State.HANDSHAKE, 1)
    late = caller("198.51.100.1", 2)[0]
    callers.admit(late, 2)
    callers.move(late, State.READY, 2)
    assert callers.next_ready() is late
    callers.move(late, State.HANDSHAKE, 2)
    assert callers.next_ready() is None


def test_door_a_key_has_so_many_connections_and_gets_them_back():
    callers = Callers(Limits(per_site=2))
    mine = [caller("192.0.2.1", number)[0] for number in range(3)]
    for one in mine:
        callers.admit(one, 0)
    assert [callers.is_site(one, b"k", 0) for one in mine] == [True, True, False]
    callers.leave(mine[0])
    callers.leave(mine[0])
    assert callers.is_site(mine[2], b"k", 0)
    assert callers.is_site(mine[2], b"k", 0)
    assert len(callers) == 2


def test_door_an_address_full_of_sites_turns_a_stranger_away():
    callers = Callers(Limits(per_address=2))
    for number in range(2):
        one = caller("192.0.2.1", number)[0]
        callers.admit(one, 0)
        callers.is_site(one, b"k", 0)
    assert callers.admit(caller("192.0.2.1", 3)[0], 3) == "beyond what one address may have"
    assert callers.admit(caller("192.0.2.2", 3)[0], 3) == ""


def test_door_writes_one_line_a_minute():
    said: list[str] = []
    now = [0.0]
    turned = TurnedAway(said.append, clock=lambda: now[0])
    for second in range(150):
        now[0] = float(second)
        for _ in range(1000):
            turned.count("that said nothing", f"192.0.2.{second % 7}")
        turned.tell()
    assert len(said) == 3
    assert said[0].startswith("turned away: 1000 that said nothing")
    assert said[1].startswith("turned away: 60000 that said nothing; most from 192.0.2.")


def test_door_lines_that_strangers_cause_are_counted():
    import logging

    now = [0.0]
    said: list[str] = []
    turned = TurnedAway(said.append, clock=lambda: now[0])
    often = OftenSaid(turned, clock=lambda: now[0])

    def kept(name: str, message: str, *arguments: object) -> bool:
        return often.filter(logging.LogRecord(name, logging.INFO, "", 0, message, arguments, None))

    access = ('%s - "%s %s HTTP/%s" %d', "192.0.2.1:5", "GET", "/x", "1.1")
    assert not kept("uvicorn.access", *access, 404)
    assert kept("uvicorn.access", *access, 500)
    assert not kept("uvicorn.error", "Invalid HTTP request received.")
    assert sum(kept("flwr", "[Fleet] node %s", number) for number in range(1700)) == 1000
    now[0] = 61.0
    assert kept("flwr", "[Fleet] node %s", 1)
    turned.tell()
    assert said == ["turned away: 700 lines of this log left out, 1 answered 404, 1 not HTTP; most from 192.0.2.1 (1)"]


@pytest.fixture
def parked(monkeypatch) -> Iterator[list[str]]:
    """Flower's handlers behind bounds of 10 bytes and 3 parts: what they were asked to keep."""
    kept: list[str] = []

    def push_messages(request: Any, state: Any) -> Any:
        kept.append("messages")
        return PushMessagesResponse(session_id=f"session of {request.messages_list[0].metadata.reply_to_message_id}")

    def push_object(request: Any, state: Any) -> Any:
        kept.append("object")
        return PushObjectResponse(stored=True)

    monkeypatch.setattr(fleet_handlers, "push_messages", push_messages)
    monkeypatch.setattr(fleet_handlers, "push_object", push_object)
    Parked(most_bytes=10, most_objects=3).install()
    return kept


def announce(*, answer: str, parts: int) -> None:
    message = MessageProto(metadata=Metadata(reply_to_message_id=answer))
    tree = ObjectTree(object_id="0", children=[ObjectTree(object_id=str(number)) for number in range(1, parts)])
    request = PushMessagesRequest(node=Node(node_id=7), messages_list=[message], message_object_trees=[tree])
    fleet_handlers.push_messages(request=request, state=None)


def part(size: int, *, session: str, node: int = 7) -> None:
    request = PushObjectRequest(node=Node(node_id=node), session_id=session, object_content=b"x" * size)
    fleet_handlers.push_object(request=request, state=None)


def test_door_an_answer_leaves_so_many_bytes_at_the_server_and_no_more(parked):
    announce(answer="a", parts=3)
    part(6, session="session of a")
    part(4, session="session of a")
    with pytest.raises(HTTPException, match="413"):
        part(1, session="session of a")
    # Another answer has its own, and so has a session of before a restart.
    announce(answer="b", parts=1)
    part(10, session="session of b")
    part(10, session="older")
    with pytest.raises(HTTPException, match="413"):
        part(1, session="older")
    assert parked == ["messages", "object", "object", "messages", "object", "object"]


def test_door_an_answer_has_so_many_parts_however_often_it_is_announced(parked):
    with pytest.raises(HTTPException, match="413"):
        announce(answer="a", parts=4)
    for _ in range(4):
        announce(answer="a", parts=3)
    with pytest.raises(HTTPException, match="413"):
        announce(answer="a", parts=3)
    announce(answer="b", parts=3)
    assert parked == ["messages"] * 5


def test_door_a_request_announces_one_answer(parked):
    with pytest.raises(HTTPException, match="400"):
        fleet_handlers.push_messages(request=PushMessagesRequest(node=Node(node_id=7)), state=None)
    assert parked == []


def test_door_two_large_bodies_of_a_key_are_read_at_a_time():
    reading, most, refused = 0, 0, []

    async def slow(scope: Any, receive: Any, send: Any) -> None:
        nonlocal reading, most
        reading += 1
        most = max(most, reading)
        await asyncio.sleep(0.05)
        reading -= 1

    async def told(message: Any) -> None:
        refused.append(message)

    async def all_at_once() -> None:
        bodies = Bodies(slow, with_keys=True)

        def call(key: bytes, size: int) -> Any:
            headers = [(FLEET_HTTP_PUBLIC_KEY_HEADER.encode(), b64encode(key)), (b"content-length", str(size).encode())]
            return bodies({"type": "http", "path": "/v1/fleet/push-object", "headers": headers}, None, told)

        await asyncio.gather(*(call(b"one", 5 << 20) for _ in range(7)))
        assert most == 2
        # Another key's, and small ones, wait for nobody.
        await asyncio.gather(*(call(key, 5 << 20) for key in (b"one", b"two") for _ in range(7)), call(b"one", 100))
        assert most == 5

    asyncio.run(all_at_once())
    assert refused == []
