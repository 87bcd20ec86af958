"""The server's side of a SuperLink's messages: answers are fetched each by itself, and tasks that nobody took are taken back.

Flower's own grid waits for every part of every answer that was announced, for more than an hour, and hands out none until then.
"""

from __future__ import annotations

import logging
import os
import sqlite3
from collections.abc import Collection, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from flwr.app import Error, Message, Metadata
from flwr.app.message import make_message
from flwr.common.constant import ErrorCode
from flwr.common.serde_utils import metadata_from_proto
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, PullObjectRequest
from flwr.proto.runtime_pb2 import PullAppMessagesRequest
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
from flwr.superlink.grid.http_grid import HttpGrid

from mammo_fed.errors import DataError
from mammo_fed.federation.flwr_internals.messages import LINK_ERRORS, MOST_PARTS, fetch_one, inflated

__all__ = ["LinkPost", "unread_tasks"]

logger = logging.getLogger(__name__)

LOCK_SECONDS: Final = 5.0
# In one statement: nobody can fetch a message between the look at it and its removal.
WITHDRAW: Final = "DELETE FROM message_ins WHERE message_id = ? AND delivered_at = '' RETURNING message_id"


@dataclass(kw_only=True)
class _Arriving:
    """An answer that was announced: what the SuperLink says of it, and those of its parts that are here."""

    about: Metadata
    parts: tuple[str, ...]
    contents: dict[str, bytes] = field(default_factory=dict)


class LinkPost:
    """Answers and unread tasks of one run at a SuperLink.

    Args:
      grid: of the run.
      database: the SuperLink's; None takes nothing back.
      most_bytes: that an answer may have.
    """

    def __init__(self, grid: Grid, database: Path | None, *, most_bytes: int) -> None:
        self._grid, self._database, self._most_bytes = grid, database, most_bytes
        self._arriving: dict[str, _Arriving] = {}

    def fetch(self, identifiers: Collection[str]) -> Mapping[str, Message | None]:
        """Answers that are whole, by the identifier of what they answer; None for one that cannot be read as a message.

        An answer of which a part is missing is looked at again at the next call, and keeps no other from coming.
        """
        grid: Any = self._grid
        if not isinstance(grid, HttpGrid):
            given = {each: fetch_one(grid, each, most_bytes=self._most_bytes) for each in identifiers}
            return {each: answer for each, answer in given.items() if answer is not None}
        self._arriving = {known: arriving for known, arriving in self._arriving.items() if known in identifiers}
        if new := [identifier for identifier in identifiers if identifier not in self._arriving]:
            told = grid._runtime_client.PullMessages(PullAppMessagesRequest(message_ids=new))
            for message, tree in zip(told.messages_list, told.message_object_trees, strict=True):
                parts = tuple(dict.fromkeys(part.object_id for part in iterate_object_tree(tree)))
                about = metadata_from_proto(message.metadata)
                self._arriving[about.reply_to_message_id] = _Arriving(about=about, parts=parts)
        found: dict[str, Message | None] = {}
        for answered in list(self._arriving):
            try:
                answer = self._complete(grid, self._arriving[answered])
            except DataError as error:
                logger.warning("an answer cannot be read: %s", error)
                found[answered] = None
            except LINK_ERRORS:
                if found:
                    # What is whole is handed out once, and must not be lost with this.
                    break
                raise
            else:
                if answer is None:
                    continue
                found[answered] = answer
            del self._arriving[answered]
        return found

    def withdraw(self, identifiers: Collection[str]) -> frozenset[str]:
        """Take tasks back: those that no node has ever fetched, and that none can fetch any more."""
        return frozenset() if self._database is None else unread_tasks(self._database, identifiers)

    def _complete(self, grid: Any, arriving: _Arriving) -> Message | None:
        """Fetch the parts that are there: the answer, None while a part is missing; DataError if it is no message."""
        run, about = grid.run.run_id, arriving.about
        if len(arriving.parts) > MOST_PARTS:
            raise DataError(f"a message has {len(arriving.parts)} parts, more than {MOST_PARTS}")
        for part in arriving.parts:
            if part in arriving.contents:
                continue
            told = grid._runtime_client.PullObject(PullObjectRequest(node=grid.node, run_id=run, object_id=part))
            if not told.object_found:
                # Its sender was killed before it had handed over all of it.
                return make_message(metadata=about, error=Error(code=ErrorCode.MESSAGE_UNAVAILABLE, reason=""))
            if not told.object_available:
                return None
            arriving.contents[part] = told.object_content
            if sum(map(len, arriving.contents.values())) > self._most_bytes:
                raise DataError(f"a message has more than {self._most_bytes} bytes")
        grid._runtime_client.ConfirmMessageReceived(
            ConfirmMessageReceivedRequest(node=grid.node, run_id=run, message_object_id=about.message_id)
        )
        answer = inflated(about.message_id, arriving.contents, most_bytes=self._most_bytes)
        # Whose answer it is says the SuperLink, which knows the sender's key.
        if answer.has_error():
            return make_message(metadata=about, error=answer.error)
        return make_message(metadata=about, content=answer.content)


def unread_tasks(database: Path, identifiers: Collection[str]) -> frozenset[str]:
    """Remove messages that no node has fetched from a SuperLink's database, and name them; none where it cannot be opened.

    A message that was fetched, or is not there, stays out of the answer: nobody can say that its node never had it.
    """
    try:
        with closing(sqlite3.connect(f"file:{quote(os.fsencode(database))}?mode=rw", uri=True, timeout=LOCK_SECONDS)) as opened:
            removed = {row[0] for each in identifiers for row in opened.execute(WITHDRAW, (each,)).fetchall()}
            opened.commit()
    except sqlite3.Error as error:
        logger.info("unread tasks cannot be taken back (%s)", type(error).__name__)
        return frozenset()
    return frozenset(removed)
