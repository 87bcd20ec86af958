"""Messages to sites and their answers, over lines that break and machines that restart.

A task may be sent to a site more than once: a site answers the same task from its ledger, and neither trains nor charges twice.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from mammo_fed.federation.flwr_internals.messages import CLIENT_FAILED, LINK_ERRORS

__all__ = ["Delivery", "Waiting"]

logger = logging.getLogger(__name__)

FIRST_POLL_SECONDS: Final = 0.002
LAST_POLL_SECONDS: Final = 0.5
# How long the carrier itself may fail before it is asked again.
LINK_PAUSE_SECONDS: Final = 1.0


@dataclass(frozen=True, kw_only=True)
class Waiting:
    """How long to wait for sites.

    Attributes:
      enough: good answers that are enough once `at_least` seconds are over.
      at_least: seconds in which every site is waited for.
      at_most: seconds after which nobody is.
    """

    enough: int
    at_least: float
    at_most: float


@dataclass(kw_only=True)
class _PendingTask:
    """One node's open task: when and where it was and will be sent, and the identifiers of what was sent and not answered."""

    message: Message
    pause: float
    due: float
    tries: int = 0
    sent_to: int | None = None
    unanswered: set[str] = field(default_factory=set)


class Delivery:
    """Sends one message at a time to each of several nodes and collects one answer from each.

    Args:
      grid: carries the messages.
      resend_after: seconds until an unanswered task is sent again, doubling each time; infinity sends once.
    """

    def __init__(self, grid: Grid, *, resend_after: float = math.inf) -> None:
        self._grid, self._resend_after = grid, resend_after
        self._pending: dict[int, _PendingTask] = {}
        self._current: Callable[[int], int] = lambda node: node

    def follow(self, current: Callable[[int], int]) -> None:
        """From now on, what is meant for a node goes to `current(node)`: a site whose key changes becomes another node."""
        self._current = current

    def nodes(self) -> list[int]:
        """The nodes that are there now; none while the carrier fails."""
        try:
            return sorted(self._grid.get_node_ids())
        except LINK_ERRORS as error:
            logger.warning("the SuperLink cannot be asked for its nodes (%s)", type(error).__name__)
            time.sleep(LINK_PAUSE_SECONDS)
            return []

    def start(self, messages: Mapping[int, Message]) -> None:
        """Send a message to each node; what the nodes had open before is forgotten."""
        now = time.monotonic()
        self._pending |= {
            node: _PendingTask(message=message, pause=self._resend_after, due=now) for node, message in messages.items()
        }
        self._send(list(messages))

    @property
    def open(self) -> frozenset[int]:
        """Nodes that have not answered yet."""
        return frozenset(self._pending)

    def forget(self, node: int) -> None:
        """Wait no more for a node."""
        self._pending.pop(node, None)

    def collect(self) -> dict[int, Message]:
        """Answers that are there, by node; what is due is sent again."""
        answers = self._fetch()
        now = time.monotonic()
        if due := [node for node, pending in self._pending.items() if now >= pending.due or self._has_moved(node, pending)]:
            # A task for a node that is away would come back from Flower as an error: it waits until the node is there.
            there = set(self.nodes())
            self._send([node for node in due if self._current(node) in there])
        return answers

    def exchange(
        self, messages: Mapping[int, Message], *, waiting: Waiting, is_good: Callable[[Message], bool] = lambda _: True
    ) -> dict[int, Message]:
        """Send and wait: the answers by node, errors among them; a node that does not answer in time is missing.

        Args:
          messages: one for each node.
          waiting: how long.
          is_good: whether an answer counts as one of `waiting.enough`.
        """
        begun, poll, answers = time.monotonic(), FIRST_POLL_SECONDS, dict[int, Message]()
        self.start(messages)
        while not messages.keys() <= answers.keys():
            answers |= {node: answer for node, answer in self.collect().items() if node in messages}
            elapsed = time.monotonic() - begun
            good = sum(map(is_good, answers.values()))
            if elapsed >= waiting.at_most or (elapsed >= waiting.at_least and good >= waiting.enough):
                break
            if not messages.keys() <= answers.keys():
                time.sleep(poll)
                poll = min(2 * poll, LAST_POLL_SECONDS)
        for node in messages:
            self.forget(node)
        return answers

    def _has_moved(self, node: int, pending: _PendingTask) -> bool:
        return pending.sent_to is not None and self._current(node) != pending.sent_to

    def _send(self, nodes: list[int]) -> None:
        for node in nodes:
            pending, target = self._pending[node], self._current(node)
            if pending.tries:
                logger.info("the task of node %d is sent again", node)
            try:
                first = not pending.tries and target == node
                pushed = list(self._grid.push_messages([pending.message if first else _copy(pending.message, target)]))
            except LINK_ERRORS as error:
                logger.warning("a task cannot be handed to the SuperLink (%s); it is tried again", type(error).__name__)
                pending.due = time.monotonic() + LINK_PAUSE_SECONDS
                continue
            pending.unanswered |= {identifier for identifier in pushed if identifier}
            pending.tries, pending.sent_to = pending.tries + 1, target
            pending.due = time.monotonic() + pending.pause
            pending.pause *= 2

    def _fetch(self) -> dict[int, Message]:
        waited = {identifier: node for node, pending in self._pending.items() for identifier in pending.unanswered}
        if not waited:
            return {}
        try:
            fetched = list(self._grid.pull_messages(list(waited)))
        except LINK_ERRORS as error:
            logger.warning("answers cannot be fetched from the SuperLink (%s); it is tried again", type(error).__name__)
            time.sleep(LINK_PAUSE_SECONDS)
            return {}
        answers = {}
        for answer in fetched:
            # Flower's own errors name the SuperLink as their sender: only what they answer tells which node is meant.
            identifier = answer.metadata.reply_to_message_id
            node = waited.get(identifier)
            if node is None or node in answers:
                continue
            pending = self._pending[node]
            pending.unanswered.discard(identifier)
            if answer.has_error() and answer.error.code != CLIENT_FAILED and math.isfinite(pending.pause):
                # The node was away, or its process was killed: the site has not refused, so it is asked again.
                logger.info("node %d is away (code %d)", node, answer.error.code)
                pending.due = time.monotonic() + LINK_PAUSE_SECONDS
                continue
            answers[node] = answer
            del self._pending[node]
        return answers


def _copy(message: Message, node: int) -> Message:
    """The same content as a message of its own, which Flower tells from the first by its time."""
    return Message(
        RecordDict(dict(message.content)),
        dst_node_id=node,
        message_type=message.metadata.message_type,
        group_id=message.metadata.group_id,
    )
