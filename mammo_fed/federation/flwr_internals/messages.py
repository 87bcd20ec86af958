"""Messages as Flower makes, copies and serialises them."""

from __future__ import annotations

import copy
import logging
import os
import uuid
from typing import Any

import httpx
from flwr.app import Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import ObjectPullError, inflate_object_from_contents
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

__all__ = [
    "CLIENT_FAILED",
    "LINK_ERRORS",
    "SERVER_NODE_ID",
    "become_server",
    "empty_run",
    "own_copy",
    "quiet",
    "stamp",
    "through_the_wire",
]

SERVER_NODE_ID = 1
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
    parts: dict[str, Any] = {key: part.deflate() for key, part in get_all_nested_objects(message).items()}
    rebuilt: Any = inflate_object_from_contents(message.object_id, parts)
    if not isinstance(rebuilt, Message):
        raise TypeError(f"Flower rebuilt a {type(rebuilt).__name__} from a message")
    rebuilt.metadata.__dict__["_message_id"] = message.metadata.message_id
    return rebuilt


def quiet() -> None:
    """Keep Flower's own chatter off the console and out of logs, and its telemetry and update checks off the network."""
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
    logging.getLogger("flwr").setLevel(logging.ERROR)
    # A line for every request, and an executor asks for work five times a second.
    logging.getLogger("httpx").setLevel(logging.WARNING)
