"""Messages as Flower makes, copies and serialises them, and how they are read that come over the wire.

Whoever sends one is a stranger: what is outside of a bound is a DataError, before memory is taken for it and before a library
that was made for friends reads it.
"""

from __future__ import annotations

import copy
import logging
import os
import re
import uuid
from collections.abc import Callable, Mapping
from typing import Any, Final

import httpx
import numpy as np
from flwr.app import Array, ArrayRecord, Error, Message, Metadata, RecordDict
from flwr.app.message import make_message
from flwr.common.constant import ErrorCode
from flwr.common.serde_utils import metadata_from_proto
from flwr.proto.message_pb2 import ObjectTree
from flwr.proto.runtime_pb2 import PullAppMessagesRequest
from flwr.serverapp import Grid
from flwr.supercore.constant import PULL_MAX_TIME
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_head_values_from_object_content,
    iterate_object_tree,
)
from flwr.supercore.inflatable.inflatable_protobuf_utils import (
    make_confirm_message_received_fn_protobuf,
    make_pull_object_fn_protobuf,
)
from flwr.supercore.inflatable.inflatable_utils import (
    ObjectPullError,
    inflate_object_from_contents,
    pull_objects,
)
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.grid.http_grid import HttpGrid
from numpy.typing import DTypeLike, NDArray

from mammo_fed.common.serialization import bounded_json
from mammo_fed.errors import DataError

__all__ = [
    "CLIENT_FAILED",
    "LINK_ERRORS",
    "SERVER_NODE_ID",
    "TASK_BYTES",
    "answer_bytes",
    "become_server",
    "contents_of",
    "empty_message",
    "empty_run",
    "fetch_one",
    "flat_array",
    "inflated",
    "own_copy",
    "quiet",
    "stamp",
    "through_the_wire",
]

SERVER_NODE_ID = 1
# Parts of a message: records, arrays, and the arrays' chunks of 20 MiB. What describes a part is short.
MOST_PARTS: Final = 512
MOST_DESCRIPTION: Final = 1 << 16
# What a site takes from a server: a pretrained network may be in it.
TASK_BYTES: Final = 1 << 30
# Bytes of a whole answer beside its arrays.
ANSWER_BYTES: Final = 1 << 25
ITEM_BYTES: Final = 8
# An array as numpy writes it, of any release: a mark, the version 1.0, the length of what follows, and the text of a dict.
MAGIC: Final = b"\x93NUMPY\x01\x00"
START: Final = len(MAGIC) + 2
HEADER: Final = re.compile(
    rb"\{'descr': '(?P<descr>[<|>][a-z][0-9]{1,2})', 'fortran_order': False, "
    rb"'shape': \((?P<length>[0-9]{1,18}),\), *\} *\n"
)
STYPE: Final = "numpy.ndarray"
CLIENT_FAILED: int = ErrorCode.CLIENT_APP_RAISED_EXCEPTION
# What a grid raises while its SuperLink is away or broken.
LINK_ERRORS: tuple[type[Exception], ...] = (httpx.HTTPError, ObjectPullError, ConnectionError)


def become_server(run_id: int) -> None:
    """Let this process create messages as the server of a run; `Message()` reads the identity of its process."""
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, run_id, SERVER_NODE_ID


def empty_run(run_id: int) -> Run:
    """A run without a bundle of code."""
    return Run.create_empty(run_id)


def stamp(message: Message) -> str:
    """Give a message a fresh identifier, as a SuperLink would, and return it."""
    identifier = uuid.uuid4().hex
    message.metadata.__dict__["_message_id"] = identifier
    return identifier


def own_copy(message: Message) -> Message:
    """The same message with a record of its own, so that what a receiver does to it is not seen by others."""
    rebuilt: Any = Message
    copied: Message = rebuilt(RecordDict(dict(message.content)), metadata=copy.copy(message.metadata))
    return copied


def through_the_wire(message: Message) -> Message:
    """Serialise and rebuild a message exactly as it travels between machines; the identifier stays."""
    parts = {key: part.deflate() for key, part in get_all_nested_objects(message).items()}
    rebuilt = inflated(message.object_id, parts, most_bytes=TASK_BYTES)
    rebuilt.metadata.__dict__["_message_id"] = message.metadata.message_id
    return rebuilt


def fetch_one(grid: Grid, identifier: str, *, most_bytes: int, seconds: float | None = None) -> Message | None:
    """The answer to one message that was pushed, or None where there is none yet; it can be fetched once.

    Whose answer it is says the SuperLink, which knows the sender's key; what the sender wrote about that is not looked at.

    Args:
      grid: carries the messages.
      identifier: of the message that was pushed.
      most_bytes: that the answer may have.
      seconds: in which all parts of an answer must have come to the SuperLink; None for Flower's own patience.

    Raises:
      DataError: If there is an answer, and it is larger or cannot be read: there will be no other.
      LINK_ERRORS: If the SuperLink does not answer.
    """
    if not isinstance(grid, HttpGrid):
        given = grid.pull_messages([identifier])
        return next((answer for answer in given if answer.metadata.reply_to_message_id == identifier), None)
    client, run = grid._runtime_client, grid.run.run_id
    found = client.PullMessages(PullAppMessagesRequest(message_ids=[identifier]))
    for about, tree in zip(found.messages_list, found.message_object_trees, strict=True):
        if about.metadata.reply_to_message_id != identifier:
            continue
        pull = make_pull_object_fn_protobuf(client.PullObject, grid.node, run)
        confirm = make_confirm_message_received_fn_protobuf(client.ConfirmMessageReceived, grid.node, run)
        metadata = metadata_from_proto(about.metadata)
        try:
            contents = contents_of(tree, pull, most_bytes=most_bytes, seconds=seconds)
        except ObjectPullError:
            # Its sender was killed before it had handed over all of it.
            return make_message(metadata=metadata, error=Error(code=ErrorCode.MESSAGE_UNAVAILABLE, reason=""))
        except DataError:
            confirm(metadata.message_id)
            raise
        confirm(metadata.message_id)
        answer = inflated(tree.object_id, contents, most_bytes=most_bytes)
        if answer.has_error():
            return make_message(metadata=metadata, error=answer.error)
        return make_message(metadata=metadata, content=answer.content)
    return None


def contents_of(
    tree: ObjectTree, pull: Callable[[str], bytes], *, most_bytes: int, seconds: float | None = None
) -> dict[str, bytes]:
    """The parts of a message by identifier, none of them looked at yet.

    Args:
      tree: their identifiers.
      pull: gives one part.
      most_bytes: of all parts together.
      seconds: in which all must have come; None for Flower's own patience.

    Raises:
      DataError: If there are too many parts, or too many bytes in them.
      ObjectPullError: If a part does not come.
    """
    parts = {part.object_id for part in iterate_object_tree(tree)}
    if len(parts) > MOST_PARTS:
        raise DataError(f"a message has {len(parts)} parts, more than {MOST_PARTS}")
    sizes: dict[str, int] = {}

    def bounded(identifier: str) -> bytes:
        content = pull(identifier)
        sizes[identifier] = len(content)
        if sum(list(sizes.values())) > most_bytes:
            raise DataError(f"a message has more than {most_bytes} bytes")
        return content

    return pull_objects(sorted(parts), bounded, max_time=PULL_MAX_TIME if seconds is None else seconds)


def inflated(identifier: str, contents: Mapping[str, bytes], *, most_bytes: int) -> Message:
    """A stranger's message from its parts.

    Args:
      identifier: of the message among its parts.
      contents: all parts.
      most_bytes: that its arrays may have when their chunks are put together: a chunk may be named more than once.

    Raises:
      DataError: If the parts make no message, or a larger one.
    """
    try:
        if sum(map(len, contents.values())) > most_bytes or len(contents) > MOST_PARTS:
            raise DataError(f"a message has more than {most_bytes} bytes or {MOST_PARTS} parts")
        if sum(_array_bytes(content, contents) for content in contents.values()) > most_bytes:
            raise DataError(f"the arrays of a message have more than {most_bytes} bytes")
        found = inflate_object_from_contents(identifier, dict(contents))
        if not isinstance(found, Message) or found.has_error() == found.has_content():
            raise DataError("what came is no message with a content or an error")
    except DataError:
        raise
    except Exception as error:
        # Bytes of a stranger reach Flower's own reading, which raises more kinds than a list of them would hold.
        raise DataError(f"a message cannot be put together ({type(error).__name__})") from error
    return found


def _array_bytes(content: bytes, contents: Mapping[str, bytes]) -> int:
    """Bytes of an array when its chunks are put together; 0 for other parts, whose descriptions are checked to be short."""
    kind, children, length = get_object_head_values_from_object_content(content)
    if kind in ("Array", "ArrayRecord", "RecordDict", "Message") and length > MOST_DESCRIPTION:
        raise DataError(f"the description of a part has {length} bytes, more than {MOST_DESCRIPTION}")
    if kind != "Array":
        return 0
    numbers = bounded_json(content[len(content) - length :].decode(), most=MOST_DESCRIPTION)["arraychunk_ids"]
    return sum(len(contents[children[number]]) for number in numbers)


def answer_bytes(numbers: int) -> int:
    """Bytes that a site's answer may have whose arrays have up to `numbers` entries."""
    return ANSWER_BYTES + 2 * ITEM_BYTES * numbers


def flat_array(record: ArrayRecord, name: str, dtype: DTypeLike) -> NDArray[Any]:
    """The one flat array of a record, in memory of its own.

    Nothing is taken on trust: the header is compared as text and not evaluated, and the data must be as long as it says.

    Args:
      record: as it came.
      name: of the array.
      dtype: that it must have.

    Raises:
      DataError: If the record holds something else.
    """
    if list(record) != [name]:
        raise DataError(f"a message must carry one array named {name!r}")
    array, wanted = record[name], np.dtype(dtype)
    count = _count(array, wanted)
    return np.frombuffer(array.data, wanted, count=count, offset=len(array.data) - count * wanted.itemsize).copy()


def _count(array: Array, wanted: np.dtype[Any]) -> int:
    """The number of entries of an array that is whole and flat."""
    if array.stype != STYPE:
        raise DataError("an array must be serialised by numpy")
    data = array.data
    start = START + int.from_bytes(data[len(MAGIC) : START], "little")
    header = HEADER.fullmatch(data, START, start)
    if not data.startswith(MAGIC) or header is None:
        raise DataError("a message's array must be flat, and written as numpy writes it")
    if header["descr"].decode("ascii") != wanted.newbyteorder("<").str:
        raise DataError(f"a message's array must be {wanted.name}")
    count = int(header["length"])
    if len(data) - start != count * wanted.itemsize:
        raise DataError(f"an array of {len(data) - start} bytes has not the {count} entries that it names")
    if tuple(array.shape) != (count,) or array.dtype != wanted.name:
        raise DataError("an array must have the shape and type that come with it")
    return count


def empty_message(metadata: Metadata) -> Message:
    """A message without anything in it, in place of one that cannot be read: whoever reads it refuses it."""
    return make_message(metadata=metadata, content=RecordDict())


def quiet() -> None:
    """Keep Flower's own chatter off the console and out of logs, and its telemetry and update checks off the network."""
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
    logging.getLogger("flwr").setLevel(logging.ERROR)
    # A line for every request, and an executor asks for work five times a second.
    logging.getLogger("httpx").setLevel(logging.WARNING)
