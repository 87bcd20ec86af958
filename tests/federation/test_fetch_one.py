"""One answer is fetched by itself, within bounds, as its sender's: a SuperLink that is played stands for the real one."""

from __future__ import annotations

import hashlib

import pytest
from flwr.app import Message, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.common.serde import message_to_proto
from flwr.proto.message_pb2 import ObjectTree, PullObjectResponse
from flwr.proto.runtime_pb2 import PullAppMessagesResponse
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.superlink.grid.http_grid import HttpGrid
from test_messages import UPDATE

from mammo_fed.errors import DataError
from mammo_fed.federation.flwr_internals.messages import become_server, empty_message, empty_run, fetch_one, stamp
from mammo_fed.federation.protocol.messages import pack_reply, read_reply

MOST = 1 << 20


class PlayedLink:
    """What a SuperLink holds of one answer."""

    def __init__(self, answer: Message, asked: str) -> None:
        self.tree = get_object_tree(answer)
        self.parts = {key: part.deflate() for key, part in get_all_nested_objects(answer).items()}
        # What the SuperLink wrote down when the answer came, which is not what is in the answer.
        self.about = message_to_proto(remove_content_from_message(answer))
        self.about.metadata.reply_to_message_id = asked
        self.about.metadata.message_id = self.tree.object_id
        self.confirmed: list[str] = []
        self.gone = False

    def PullMessages(self, request):  # noqa: N802 - Flower's name
        found = list(request.message_ids) == [self.about.metadata.reply_to_message_id]
        return PullAppMessagesResponse(messages_list=[self.about] * found, message_object_trees=[self.tree] * found)

    def PullObject(self, request):  # noqa: N802 - Flower's name
        return PullObjectResponse(
            object_found=not self.gone, object_available=True, object_content=self.parts[request.object_id]
        )

    def ConfirmMessageReceived(self, request):  # noqa: N802 - Flower's name
        self.confirmed.append(request.message_object_id)


@pytest.fixture
def link() -> PlayedLink:
    become_server(1)
    asked = Message(RecordDict(), 2, "train")
    stamp(asked)
    return PlayedLink(Message(pack_reply(UPDATE), reply_to=asked), "asked")


@pytest.fixture
def grid(link) -> HttpGrid:
    made = HttpGrid(token="token")  # noqa: S106 - nobody asks for it
    made.set_run(empty_run(1))
    made._client = link
    return made


def test_answer_that_is_fetched_is_that_of_its_sender_whatever_it_says_of_that(grid, link):
    answer = fetch_one(grid, "asked", most_bytes=MOST)
    assert answer is not None
    assert answer.metadata.reply_to_message_id == "asked"
    assert read_reply(answer.content).site == UPDATE.site
    assert link.confirmed == [link.tree.object_id]


def test_answer_to_another_message_is_not_fetched(grid):
    assert fetch_one(grid, "other", most_bytes=MOST) is None


def test_hostile_answer_that_cannot_be_put_together_is_a_data_error(grid, link):
    root = b"Message  5\x00[[[[["
    link.tree = ObjectTree(object_id=hashlib.sha256(root).hexdigest())
    link.parts = {link.tree.object_id: root}
    with pytest.raises(DataError, match="cannot be put together"):
        fetch_one(grid, "asked", most_bytes=MOST)
    assert link.confirmed


def test_hostile_answer_that_is_too_large_or_of_too_many_parts_is_a_data_error(grid, link):
    with pytest.raises(DataError, match="more than 200 bytes"):
        fetch_one(grid, "asked", most_bytes=200)
    link.tree = ObjectTree(object_id="0", children=[ObjectTree(object_id=str(number)) for number in range(1000)])
    with pytest.raises(DataError, match="1000 parts"):
        fetch_one(grid, "asked", most_bytes=MOST)


def test_answer_whose_sender_was_killed_is_an_error_and_no_reply(grid, link):
    link.gone = True
    answer = fetch_one(grid, "asked", most_bytes=MOST)
    assert answer is not None
    assert answer.has_error()


def test_empty_message_is_read_by_nobody(link):
    become_server(1)
    asked = Message(RecordDict(), 2, "train")
    stamp(asked)
    with pytest.raises(DataError):
        read_reply(empty_message(asked.metadata).content)
