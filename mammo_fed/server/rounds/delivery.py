"""Messages to sites and their answers, over lines that break and machines that restart.

A task may be sent to a site more than once: a site answers the same task from its ledger, and neither trains nor charges twice.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from mammo_fed.errors import DataError
from mammo_fed.federation.flwr_internals.messages import CLIENT_FAILED, LINK_ERRORS, answer_bytes, empty_message, fetch_one

__all__ = ["LAST_POLL_SECONDS", "Delivery", "GridPost", "Post", "Presence", "Traffic", "Waiting", "attended"]

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


class Presence:
    """Which sites are there, by name. This one is of sites that always are, as in a simulation."""

    def begin(self, index: int, *, attempt: int, seconds: float, sites: Sequence[str]) -> None:
        """A try of a round begins, or the declaration (DECLARATION_ROUND); it lasts `seconds` at most."""

    def asking(self, sites: Iterable[str]) -> None:
        """Tasks are about to be sent to `sites`; returns when another process would know of it after a power loss."""

    def answered(self, sites: Iterable[str]) -> None:
        """Answers of `sites` are here."""

    def end(self, sites: Iterable[str], *, alive: Iterable[str]) -> None:
        """The round of `sites` is over, and of those `alive` something has come."""

    def back(self, sites: Iterable[str]) -> None:
        """Sites were away or silent, and are heard of again."""

    def aside(self, sites: Iterable[str]) -> frozenset[str]:
        """Those of `sites` that are asked but not waited for."""
        del sites
        return frozenset()

    def revoked(self, sites: Iterable[str]) -> frozenset[str]:
        """Those of `sites` that may not come any more."""
        del sites
        return frozenset()

    def may_have_task(self, site: str, index: int) -> bool:
        """Whether a process before this one may have sent the site the task of a round."""
        del site, index
        return False


class Post(Protocol):
    """Where answers lie, and tasks that nobody has fetched."""

    def fetch(self, identifiers: Collection[str]) -> Mapping[str, Message | None]:
        """Answers that are whole, by the identifier of what they answer; None for one that is no message. Waits for none."""

    def withdraw(self, identifiers: Collection[str]) -> frozenset[str]:
        """Take tasks back: those that no node has ever fetched, and that none can fetch any more."""


class GridPost:
    """What any grid can do: nothing that was sent can be taken back."""

    def __init__(self, grid: Grid, *, most_bytes: int) -> None:
        self._grid, self._most_bytes = grid, most_bytes

    def fetch(self, identifiers: Collection[str]) -> Mapping[str, Message | None]:
        """See `Post`."""
        found: dict[str, Message | None] = {}
        for identifier in identifiers:
            try:
                answer = fetch_one(self._grid, identifier, most_bytes=self._most_bytes)
            except DataError as error:
                logger.warning("an answer cannot be read: %s", error)
                found[identifier] = None
            except LINK_ERRORS:
                if found:
                    # What was fetched is fetched once.
                    break
                raise
            else:
                found |= {} if answer is None else {identifier: answer}
        return found

    def withdraw(self, identifiers: Collection[str]) -> frozenset[str]:
        """See `Post`."""
        del identifiers
        return frozenset()


def attended(presence: Presence, names: Mapping[int, str]) -> dict[str, Any]:
    """What `Delivery.exchange` must know of the presence of sites, and tell of it, for nodes by their sites' names."""
    nodes = {site: node for node, site in names.items()}
    return {
        "aside": {nodes[site] for site in presence.aside(nodes)},
        "gone": lambda: [nodes[site] for site in presence.revoked(nodes)],
        "announce": lambda asked: presence.asking(names[node] for node in asked),
        "on_answers": lambda answered: presence.answered(names[node] for node in answered),
    }


@dataclass(kw_only=True)
class _PendingTask:
    """One node's open task: when and where it was and will be sent, and the identifiers of what was sent.

    `unanswered` may still be answered; `given` a node may have fetched, or may yet.
    """

    message: Message
    pause: float
    due: float
    tries: int = 0
    sent_to: int | None = None
    unanswered: set[str] = field(default_factory=set)
    given: set[str] = field(default_factory=set)


class Delivery:
    """Sends one message at a time to each of several nodes and collects one answer from each.

    Nothing is sent to a node that is away. What a node has not fetched when it goes away, or when its round is over, is taken
    back where the post can do that: it then never has it.

    Args:
      grid: carries the messages.
      resend_after: seconds until an unanswered task is sent again, doubling each time; infinity sends once.
      all_come: every node answers or fails, as in a simulation: each is waited for, however busy the machine is.
      most_bytes: that an answer may have.
      post: of the grid; None makes one that can only fetch.
    """

    def __init__(
        self,
        grid: Grid,
        *,
        resend_after: float = math.inf,
        all_come: bool = False,
        most_bytes: int = answer_bytes(0),
        post: Post | None = None,
    ) -> None:
        self._grid, self._resend_after, self.all_come = grid, resend_after, all_come
        self._post: Post = post or GridPost(grid, most_bytes=most_bytes)
        self._watches = post is not None
        self._pending: dict[int, _PendingTask] = {}
        self._current: Callable[[int], int] = lambda node: node
        self._announce: Callable[[Sequence[int]], None] = lambda _: None
        # Tasks of earlier exchanges, by identifier: an answer says that their node is alive, and nothing more.
        self._late: dict[str, int] = {}
        self._absent: set[int] = set()
        self._back: set[int] = set()
        self._reached: frozenset[int] = frozenset()

    def follow(self, current: Callable[[int], int]) -> None:
        """From now on, what is meant for a node goes to `current(node)`: a site whose key changes becomes another node."""
        self._current = current

    def nodes(self) -> list[int]:
        """The nodes that are there now; none while the carrier fails."""
        return sorted(self._look() or ())

    def start(self, messages: Mapping[int, Message]) -> None:
        """Send a message to each node that is there, to the others when they are; what nodes had open before is forgotten."""
        now = time.monotonic()
        self._pending |= {
            node: _PendingTask(message=message, pause=self._resend_after, due=now) for node, message in messages.items()
        }
        there = self._look() or set()
        self._send([node for node in messages if self._current(node) in there])

    @property
    def open(self) -> frozenset[int]:
        """Nodes that have not answered yet."""
        return frozenset(self._pending)

    @property
    def reached(self) -> frozenset[int]:
        """Nodes that may have a task of the last exchange that they have not answered."""
        return self._reached

    def forget(self, node: int) -> None:
        """Wait no more for a node."""
        self._pending.pop(node, None)

    def heard_of(self) -> frozenset[int]:
        """Nodes that came back, or answered an earlier exchange, since the last call."""
        if self._watches:
            self._look()
            self._fetch()
        found, self._back = frozenset(self._back), set()
        return found

    def collect(self) -> dict[int, Message]:
        """Answers that are there, by node; what is due is sent again."""
        if self._watches and (there := self._look()) is not None:
            self._take_back(there)
        answers = self._fetch()
        now = time.monotonic()
        if due := [node for node, pending in self._pending.items() if now >= pending.due or self._has_moved(node, pending)]:
            # A task for a node that is away would come back from Flower as an error: it waits until the node is there.
            there = self._look() or set()
            self._send([node for node in due if self._current(node) in there])
        return answers

    def exchange(
        self,
        messages: Mapping[int, Message],
        *,
        waiting: Waiting,
        is_good: Callable[[Message], bool] = lambda _: True,
        aside: Collection[int] = (),
        gone: Callable[[], Collection[int]] = tuple,
        announce: Callable[[Sequence[int]], None] = lambda _: None,
        on_answers: Callable[[Collection[int]], None] = lambda _: None,
    ) -> dict[int, Message]:
        """Send and wait: the answers by node, errors among them; a node that does not answer in time is missing.

        Args:
          messages: one for each node.
          waiting: how long; for ever where `all_come`.
          is_good: whether an answer counts as one of `waiting.enough`.
          aside: nodes whose answers count if they come in time, and that are not waited for while there are enough others.
          gone: nodes that are not waited for from now on, whatever is missing.
          announce: called with nodes before anything is sent to them.
          on_answers: called with nodes whose answers came.
        """
        begun, poll, answers = time.monotonic(), FIRST_POLL_SECONDS, dict[int, Message]()
        self._announce = announce
        self.start(messages)
        tasks = {node: self._pending[node] for node in messages}
        while True:
            if came := {node: answer for node, answer in self.collect().items() if node in messages}:
                answers |= came
                on_answers(came.keys())
            for node in gone():
                self.forget(node)
            elapsed, still = time.monotonic() - begun, messages.keys() & self._pending.keys()
            enough = sum(map(is_good, answers.values())) >= waiting.enough
            over = elapsed >= waiting.at_most or (enough and (elapsed >= waiting.at_least or still <= set(aside)))
            if not still or (over and not self.all_come):
                break
            time.sleep(poll)
            poll = min(2 * poll, LAST_POLL_SECONDS)
        self._announce = lambda _: None
        self._close(tasks)
        return answers

    def _close(self, tasks: Mapping[int, _PendingTask]) -> None:
        """End an exchange: nobody can fetch a task of it any more."""
        reached = set()
        self._late = {identifier: node for identifier, node in self._late.items() if node not in tasks}
        for node, task in tasks.items():
            self.forget(node)
            if task.given:
                task.given -= self._post.withdraw(task.given)
            if task.given:
                reached.add(node)
                self._late |= dict.fromkeys(task.given, node)
        self._reached = frozenset(reached)

    def _look(self) -> set[int] | None:
        """The nodes that are there, None while the carrier fails; who comes back is noted."""
        try:
            there = set(self._grid.get_node_ids())
        except LINK_ERRORS as error:
            logger.warning("the SuperLink cannot be asked for its nodes (%s)", type(error).__name__)
            time.sleep(LINK_PAUSE_SECONDS)
            return None
        for node in (*self._pending, *self._absent):
            if self._current(node) not in there:
                self._absent.add(node)
            elif node in self._absent:
                self._absent = self._absent - {node}
                self._back.add(node)
        return there

    def _take_back(self, there: set[int]) -> None:
        """Take back what nodes that are away have not fetched: it is sent anew when they come, and else they never had it."""
        for pending in self._pending.values():
            if pending.given and pending.sent_to is not None and pending.sent_to not in there:
                unread = self._post.withdraw(pending.given)
                pending.given -= unread
                pending.unanswered -= unread
                if unread:
                    pending.due = time.monotonic()

    def _has_moved(self, node: int, pending: _PendingTask) -> bool:
        return pending.sent_to is not None and self._current(node) != pending.sent_to

    def _send(self, nodes: list[int]) -> None:
        if nodes:
            self._announce(nodes)
        for node in nodes:
            pending, target = self._pending[node], self._current(node)
            if pending.tries:
                logger.info("the task of node %d is sent again", node)
            first = not pending.tries and target == node
            message = pending.message if first else _copy(pending.message, target)
            try:
                pushed = list(self._grid.push_messages([message]))
            except LINK_ERRORS as error:
                logger.warning("a task cannot be handed to the SuperLink (%s); it is tried again", type(error).__name__)
                # It may have been taken all the same.
                pending.given.add(message.metadata.message_id or f"unknown-{node}")
                pending.due = time.monotonic() + LINK_PAUSE_SECONDS
                continue
            pending.unanswered |= {identifier for identifier in pushed if identifier}
            pending.given |= {identifier for identifier in pushed if identifier}
            pending.tries, pending.sent_to = pending.tries + 1, target
            pending.due = time.monotonic() + pending.pause
            pending.pause *= 2

    def _fetch(self) -> dict[int, Message]:
        waited = {identifier: node for node, pending in self._pending.items() for identifier in pending.unanswered}
        if not waited and not self._late:
            return {}
        try:
            fetched = self._post.fetch([*waited, *self._late])
        except LINK_ERRORS as error:
            logger.warning("answers cannot be fetched from the SuperLink (%s); it is tried again", type(error).__name__)
            time.sleep(LINK_PAUSE_SECONDS)
            return {}
        answers: dict[int, Message] = {}
        for identifier, answer in fetched.items():
            if (late := self._late.pop(identifier, None)) is not None and answer is not None and not answer.has_error():
                self._back.add(late)
            # Flower's own errors name the SuperLink as their sender: only what they answer tells which node is meant.
            node = waited.get(identifier)
            if node is not None and node in self._pending:
                self._take(node, identifier, answer, answers)
        return answers

    def _take(self, node: int, identifier: str, answer: Message | None, answers: dict[int, Message]) -> None:
        """Note what came for a node: its answer, or why it is asked again."""
        pending = self._pending[node]
        pending.unanswered.discard(identifier)
        if answer is None:
            logger.warning("node %d sends something that is no message; it is left out", node)
            answers[node] = empty_message(pending.message.metadata)
            del self._pending[node]
            return
        if answer.has_error() and answer.error.code != CLIENT_FAILED and math.isfinite(pending.pause):
            # The node was away, or its process was killed: the site has not refused, so it is asked again.
            logger.info("node %d is away (code %d)", node, answer.error.code)
            pending.due = time.monotonic() + LINK_PAUSE_SECONDS
            return
        if not answer.has_error():
            pending.given.discard(identifier)
        answers[node] = answer
        del self._pending[node]


def _copy(message: Message, node: int) -> Message:
    """The same content as a message of its own, which Flower tells from the first by its time."""
    return Message(
        RecordDict(dict(message.content)),
        dst_node_id=node,
        message_type=message.metadata.message_type,
        group_id=message.metadata.group_id,
    )


@dataclass(kw_only=True)
class Traffic:
    """Bytes of arrays sent to and received from all sites together, the time of every round, and the rounds that failed."""

    bytes_down: int = 0
    bytes_up: int = 0
    seconds: list[float] = field(default_factory=list)
    failed: list[int] = field(default_factory=list)
