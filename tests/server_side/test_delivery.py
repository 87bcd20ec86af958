"""Tasks reach their sites over lines that lose messages, and one answer comes of each, whatever is sent twice or late."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import httpx
import pytest
from flwr.app import ConfigRecord, Error, Message, RecordDict
from flwr.serverapp import Grid

from mammo_fed.federation.flwr_internals.messages import (
    CLIENT_FAILED,
    LINK_ERRORS,
    SERVER_NODE_ID,
    become_server,
    empty_run,
    stamp,
)
from mammo_fed.server.rounds.delivery import Delivery, Waiting

RUN_ID = 9
NODE, OTHER = 11, 12
# Flower's word for a node that is not there.
AWAY = 5
SOON = 0.05
PATIENT = Waiting(enough=1, at_least=20.0, at_most=20.0)


class Post(Grid):
    """A grid without sites: what becomes of a message is decided by a function.

    Args:
      fate: called with (message, how many the node was sent before): the answer, or None where it is lost.
      nodes: that are there.
    """

    def __init__(self, fate: Callable[[Message, int], Message | None], nodes: Iterable[int] = (NODE,)) -> None:
        become_server(RUN_ID)
        self._run = empty_run(RUN_ID)
        self._fate = fate
        self.nodes = set(nodes)
        self.sent: list[tuple[float, Message]] = []
        self.answers: dict[str, Message] = {}
        # What these calls raise, one a call, before they work.
        self.troubles: dict[str, list[Exception]] = {"push": [], "pull": [], "nodes": []}

    def set_run(self, run: Any) -> None:
        self._run = run

    @property
    def run(self) -> Any:
        return self._run

    def create_message(self, *arguments: Any, **named: Any) -> Message:
        return Message(*arguments, **named)

    def get_node_ids(self) -> Iterable[int]:
        self._trouble("nodes")
        return list(self.nodes)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        self._trouble("push")
        return [self._push(message) for message in messages]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        self._trouble("pull")
        return [self.answers.pop(identifier) for identifier in message_ids if identifier in self.answers]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        return self.pull_messages(self.push_messages(messages))

    def times(self, node: int = NODE) -> list[float]:
        """When messages were sent to a node."""
        return [moment for moment, message in self.sent if message.metadata.dst_node_id == node]

    def _push(self, message: Message) -> str:
        # What is sent twice must be two messages: Flower knows them by their content and time.
        assert all(message is not earlier for _, earlier in self.sent)
        before = len(self.times(message.metadata.dst_node_id))
        self.sent.append((time.monotonic(), message))
        identifier = stamp(message)
        answer = self._fate(message, before)
        if answer is not None:
            self.answers[identifier] = answer
        return identifier

    def _trouble(self, call: str) -> None:
        if self.troubles[call]:
            raise self.troubles[call].pop(0)


def task(node: int = NODE) -> Message:
    become_server(RUN_ID)
    return Message(RecordDict({"task": ConfigRecord({"round": 3})}), dst_node_id=node, message_type="train", group_id="3")


def tasks(*nodes: int) -> dict[int, Message]:
    return {node: task(node) for node in nodes}


def answered(message: Message, text: str = "") -> Message:
    reply = Message(RecordDict({"answer": ConfigRecord({"text": text})}), reply_to=message)
    stamp(reply)
    return reply


def failed(message: Message, code: int) -> Message:
    """An error, as Flower's SuperLink makes it: it names itself as the sender."""
    reply = Message(Error(code=code, reason="node unavailable"), reply_to=message)
    stamp(reply)
    reply.metadata.__dict__["_src_node_id"] = SERVER_NODE_ID
    return reply


def always(message: Message, before: int) -> Message:
    return answered(message, str(before))


def never(message: Message, before: int) -> None:
    return None


def text_of(message: Message) -> str:
    return str(message.content["answer"]["text"])


def losing(*lost: int) -> Callable[[Message, int], Message | None]:
    """Loses the messages of these numbers on their way."""
    return lambda message, before: None if before in lost else always(message, before)


def exchange(post: Post, *nodes: int, resend_after: float = SOON, waiting: Waiting = PATIENT, **named: Any):
    return Delivery(post, resend_after=resend_after).exchange(tasks(*nodes), waiting=waiting, **named)


def test_every_node_gets_its_message_once_and_its_answer_is_its_own():
    post = Post(lambda message, before: answered(message, str(message.metadata.dst_node_id)), nodes=(NODE, OTHER))
    answers = exchange(post, NODE, OTHER, resend_after=60.0)
    assert {node: text_of(answer) for node, answer in answers.items()} == {NODE: "11", OTHER: "12"}
    assert (len(post.times(NODE)), len(post.times(OTHER))) == (1, 1)


def test_a_lost_task_is_sent_again_with_pauses_that_double():
    post = Post(losing(0, 1, 2))
    answers = exchange(post, NODE)
    assert text_of(answers[NODE]) == "3"
    first, second, third, fourth = post.times()
    assert second - first >= SOON
    assert third - second >= 2 * SOON
    assert fourth - third >= 4 * SOON


def test_what_is_sent_again_is_the_same_task_under_a_name_of_its_own():
    post = Post(losing(0))
    exchange(post, NODE)
    (_, first), (_, second) = post.sent
    assert dict(first.content["task"]) == dict(second.content["task"])
    for name in ("dst_node_id", "message_type", "group_id"):
        assert getattr(first.metadata, name) == getattr(second.metadata, name)
    assert first.metadata.message_id != second.metadata.message_id


def test_a_node_that_was_away_is_asked_again_though_the_error_names_the_superlink_as_its_sender():
    def fate(message: Message, before: int) -> Message:
        other_was_away = message.metadata.dst_node_id == OTHER and before == 0
        return failed(message, AWAY) if other_was_away else always(message, before)

    post = Post(fate, nodes=(NODE, OTHER))
    answers = exchange(post, NODE, OTHER, resend_after=60.0)
    assert {node: text_of(answer) for node, answer in answers.items()} == {NODE: "0", OTHER: "1"}
    assert (len(post.times(NODE)), len(post.times(OTHER))) == (1, 2)


def test_nothing_is_sent_while_the_node_is_away_and_the_task_comes_when_it_is_back():
    post = Post(always, nodes=(OTHER,))
    delivery = Delivery(post, resend_after=SOON)
    delivery.start(tasks(NODE))
    until = time.monotonic() + 8 * SOON
    while time.monotonic() < until:
        assert delivery.collect() == {}
        time.sleep(SOON / 5)
    assert post.times() == []
    post.nodes.add(NODE)
    assert delivery.collect() == {}
    assert text_of(delivery.collect()[NODE]) == "0"
    assert delivery.open == frozenset()


@pytest.mark.parametrize("code", [CLIENT_FAILED, AWAY])
def test_where_tasks_are_sent_once_every_error_is_an_answer(code):
    post = Post(lambda message, before: failed(message, code))
    answers = exchange(post, NODE, resend_after=math.inf)
    assert answers[NODE].error.code == code
    assert len(post.times()) == 1


def test_where_tasks_are_sent_once_a_lost_one_is_missing():
    post = Post(never)
    assert exchange(post, NODE, resend_after=math.inf, waiting=Waiting(enough=1, at_least=0.0, at_most=0.4)) == {}
    assert len(post.times()) == 1


def test_an_app_that_failed_has_answered_and_is_not_asked_again():
    post = Post(lambda message, before: failed(message, CLIENT_FAILED))
    answers = exchange(post, NODE)
    assert answers[NODE].error.code == CLIENT_FAILED
    time.sleep(2 * SOON)
    assert len(post.times()) == 1


def test_the_first_of_two_answers_counts_and_the_second_is_never_seen():
    post = Post(never)
    delivery = Delivery(post, resend_after=SOON)
    delivery.start(tasks(NODE))
    while len(post.sent) < 2:
        assert delivery.collect() == {}
    (_, first), (_, second) = post.sent
    post.answers |= {first.metadata.message_id: answered(first, "first"), second.metadata.message_id: answered(second, "again")}
    answers = delivery.collect()
    assert [text_of(answer) for answer in answers.values()] in (["first"], ["again"])
    assert delivery.collect() == {}


def test_an_answer_to_an_earlier_sending_counts():
    post = Post(never)
    delivery = Delivery(post, resend_after=SOON)
    delivery.start(tasks(NODE))
    while len(post.sent) < 3:
        assert delivery.collect() == {}
    first = post.sent[0][1]
    post.answers[first.metadata.message_id] = answered(first, "late")
    assert text_of(delivery.collect()[NODE]) == "late"
    assert delivery.open == frozenset()


def test_an_answer_that_comes_after_its_round_is_no_answer_to_the_next():
    post = Post(never)
    delivery = Delivery(post, resend_after=60.0)
    assert delivery.exchange(tasks(NODE), waiting=Waiting(enough=0, at_least=0.0, at_most=10.0)) == {}
    late = post.sent[0][1]
    post.answers[late.metadata.message_id] = answered(late, "late")
    delivery.start(tasks(NODE))
    assert delivery.collect() == {}
    now = post.sent[1][1]
    post.answers[now.metadata.message_id] = answered(now, "in time")
    assert text_of(delivery.collect()[NODE]) == "in time"


def test_a_grid_that_gives_what_nobody_asked_for_is_not_believed():
    class Noisy(Post):
        def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
            return [answered(stranger, "stranger"), *super().pull_messages(message_ids)]

    stranger = task(OTHER)
    stamp(stranger)
    post = Noisy(always)
    answers = exchange(post, NODE)
    assert {node: text_of(answer) for node, answer in answers.items()} == {NODE: "0"}


def test_with_enough_good_answers_the_rest_is_waited_for_until_at_least_and_no_longer():
    post = Post(lambda message, before: always(message, before) if message.metadata.dst_node_id == NODE else None)
    begun = time.monotonic()
    answers = exchange(post, NODE, OTHER, resend_after=60.0, waiting=Waiting(enough=1, at_least=0.3, at_most=30.0))
    assert list(answers) == [NODE]
    assert 0.3 <= time.monotonic() - begun < 15.0


def test_without_enough_good_answers_the_wait_goes_on_until_at_most():
    post = Post(lambda message, before: always(message, before) if message.metadata.dst_node_id == NODE else None)
    begun = time.monotonic()
    answers = exchange(post, NODE, OTHER, resend_after=60.0, waiting=Waiting(enough=2, at_least=0.0, at_most=0.5))
    assert list(answers) == [NODE]
    assert 0.5 <= time.monotonic() - begun < 15.0


def test_an_answer_that_is_not_good_does_not_count_as_enough():
    post = Post(lambda message, before: always(message, before) if message.metadata.dst_node_id == NODE else None)
    begun = time.monotonic()
    waiting = Waiting(enough=1, at_least=0.0, at_most=0.5)
    answers = exchange(post, NODE, OTHER, resend_after=60.0, waiting=waiting, is_good=lambda answer: False)
    assert list(answers) == [NODE]
    assert time.monotonic() - begun >= 0.5


def test_when_everybody_has_answered_nobody_is_waited_for():
    begun = time.monotonic()
    waiting = Waiting(enough=2, at_least=30.0, at_most=30.0)
    assert set(exchange(Post(always, nodes=(NODE, OTHER)), NODE, OTHER, waiting=waiting)) == {NODE, OTHER}
    assert time.monotonic() - begun < 15.0


TROUBLES: Sequence[Exception] = (
    httpx.ConnectError("refused"),
    httpx.ReadTimeout("slow"),
    httpx.HTTPStatusError("503", request=httpx.Request("POST", "https://link"), response=httpx.Response(503)),
    ConnectionError("the SuperLink does not answer"),
)


@pytest.mark.parametrize("call", ["push", "pull", "nodes"])
def test_a_superlink_that_is_away_for_a_moment_loses_nothing(call, caplog):
    post = Post(losing(0) if call == "nodes" else always)
    post.troubles[call] = [TROUBLES[0]]
    answers = exchange(post, NODE)
    assert text_of(answers[NODE]) in ("0", "1")
    assert post.troubles[call] == []
    assert "ConnectError" in caplog.text


@pytest.mark.parametrize("trouble", TROUBLES[1:], ids=lambda trouble: type(trouble).__name__)
def test_every_way_in_which_a_link_breaks_is_survived(trouble):
    assert isinstance(trouble, LINK_ERRORS)
    post = Post(always)
    post.troubles["push"] = [trouble]
    assert set(exchange(post, NODE)) == {NODE}
    assert len(post.sent) == 1


def test_a_task_that_could_not_be_handed_over_is_handed_over_later_even_where_tasks_are_sent_once():
    post = Post(always)
    post.troubles["push"] = [TROUBLES[0]]
    assert set(exchange(post, NODE, resend_after=math.inf)) == {NODE}


def test_no_node_is_there_while_the_superlink_is_away():
    post = Post(always)
    post.troubles["nodes"] = [TROUBLES[0]]
    delivery = Delivery(post)
    assert delivery.nodes() == []
    assert delivery.nodes() == [NODE]


def test_an_error_that_is_no_broken_link_is_not_taken_for_one():
    post = Post(always)
    post.troubles["push"] = [RuntimeError("a fault in the code")]
    with pytest.raises(RuntimeError, match="a fault in the code"):
        exchange(post, NODE)


def test_a_node_that_is_forgotten_is_neither_asked_again_nor_heard():
    post = Post(never)
    delivery = Delivery(post, resend_after=SOON)
    delivery.start(tasks(NODE))
    delivery.forget(NODE)
    time.sleep(2 * SOON)
    late = post.sent[0][1]
    post.answers[late.metadata.message_id] = answered(late)
    assert delivery.collect() == {}
    assert len(post.times()) == 1
