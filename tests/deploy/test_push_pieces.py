"""A message of many pieces on a line that breaks: what arrived is not sent again, and an answer that was lost does no harm."""

from __future__ import annotations

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message, RecordDict
from flwr.server.superlink.linkstate import LinkStateFactory
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.superlink.federation import NoOpFederationManager

from mammo_fed.federation.flwr_internals.guard import let_push_again
from mammo_fed.federation.flwr_internals.messages import become_server

# Of Flower's own migrations.
pytestmark = pytest.mark.filterwarnings("ignore:No path_separator found:DeprecationWarning")

PIECE = 5 << 20
NUM_PIECES = 12
RUN = 7


@pytest.fixture
def link(tmp_path):
    """The state of a SuperLink on the disk, as `flower-server` runs it."""
    database = str(tmp_path / "link.db")
    state = LinkStateFactory(database, NoOpFederationManager(), ObjectStoreFactory(database)).state()
    let_push_again(state)
    return state


def whole_network(kind: str) -> Message:
    """A message of an array of twelve full pieces, with another identity for each kind."""
    become_server(RUN)
    array = np.random.default_rng(0).integers(0, 255, NUM_PIECES * PIECE, np.uint8)
    message = Message(RecordDict({"arrays": ArrayRecord({"flat": Array(array)})}), 5, kind)
    message.metadata.__dict__["_message_id"] = message.object_id
    return message


def contents(message: Message) -> dict[str, bytes]:
    return {name: part.deflate() for name, part in get_all_nested_objects(message).items()}


def test_push_of_a_piece_whose_answer_was_lost_is_repeated_without_harm(link):
    message = whole_network("train")
    session = link.start_session(RUN)
    missing = link.preregister_object_tree(get_object_tree(message), session)
    parts = contents(message)
    assert len(missing) >= NUM_PIECES
    for name in missing:
        assert [link.store_object(RUN, session, name, parts[name]) for _ in range(2)] == [True, True]
    # Another push, or none, learns nothing of what is there.
    other = link.start_session(RUN)
    for wrong in (other, "", "guessed"):
        assert not link.store_object(RUN, wrong, missing[0], parts[missing[0]])


def test_push_that_broke_off_goes_on_with_the_pieces_that_are_missing(link):
    first, again = whole_network("train"), whole_network("train.again")
    session = link.start_session(RUN)
    missing = link.preregister_object_tree(get_object_tree(first), session)
    parts = contents(first)
    arrived = [name for name in missing if len(parts[name]) > PIECE][: NUM_PIECES // 2]
    for name in arrived:
        assert link.store_object(RUN, session, name, parts[name])
    # The site's process was killed: it answers again, in a message of its own with the same content.
    session, parts = link.start_session(RUN), contents(again)
    missing = link.preregister_object_tree(get_object_tree(again), session)
    assert set(arrived).isdisjoint(missing)
    assert sum(len(parts[name]) > PIECE for name in missing) == NUM_PIECES - len(arrived)
    for name in missing:
        assert link.store_object(RUN, session, name, parts[name])
    assert all(link.object_store.get(name) == content for name, content in parts.items())
