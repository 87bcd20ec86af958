"""Messages to sites and their answers, over lines that break and machines that restart, and which node speaks for which site.

A task may be sent to a site more than once: a site answers the same task from its ledger, and neither trains nor charges twice.
Sites are asked to accept a run's declaration at its start, and when they come later.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

import numpy as np
from flwr.app import Message, MessageType, RecordDict
from flwr.serverapp import Grid
from numpy.typing import NDArray

from mammo_fed.errors import DataError, RunFailed, VersionMismatch
from mammo_fed.federation.flwr_internals.messages import CLIENT_FAILED, LINK_ERRORS, empty_message, fetch_one
from mammo_fed.federation.protocol.bounds import answer_bytes
from mammo_fed.federation.protocol.messages import pack_declaration, read_reply
from mammo_fed.federation.protocol.replies import Accepted, Refusal, Update
from mammo_fed.federation.protocol.task import Declaration
from mammo_fed.server.rounds.budget import BudgetView, reason_text
from mammo_fed.server.rounds.reply_checks import declaration_fault, refusal_of_version, weight_fault

__all__ = ["Admission", "Delivery", "Traffic", "Waiting"]

logger = logging.getLogger(__name__)

Wanted = TypeVar("Wanted", Accepted, Update)

FIRST_POLL_SECONDS: Final = 0.002
FIRST_JOIN_POLL_SECONDS: Final = 0.02
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
      all_come: every node answers or fails, as in a simulation: each is waited for, however busy the machine is.
      most_bytes: that an answer may have.
    """

    def __init__(
        self,
        grid: Grid,
        *,
        resend_after: float = math.inf,
        all_come: bool = False,
        most_bytes: int = answer_bytes(0),
    ) -> None:
        self._grid, self._resend_after, self.all_come, self._most_bytes = grid, resend_after, all_come, most_bytes
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
          waiting: how long; for ever where `all_come`.
          is_good: whether an answer counts as one of `waiting.enough`.
        """
        begun, poll, answers = time.monotonic(), FIRST_POLL_SECONDS, dict[int, Message]()
        self.start(messages)
        while not messages.keys() <= answers.keys():
            answers |= {node: answer for node, answer in self.collect().items() if node in messages}
            elapsed = time.monotonic() - begun
            good = sum(map(is_good, answers.values()))
            over = elapsed >= waiting.at_most or (elapsed >= waiting.at_least and good >= waiting.enough)
            if over and not self.all_come:
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
        answers = {}
        for identifier, node in waited.items():
            if node in answers:
                continue
            try:
                answer = fetch_one(self._grid, identifier, most_bytes=self._most_bytes)
            except DataError as error:
                logger.warning("the answer of node %d cannot be read: %s", node, error)
                answer = empty_message(self._pending[node].message.metadata)
            except LINK_ERRORS as error:
                logger.warning("answers cannot be fetched from the SuperLink (%s); it is tried again", type(error).__name__)
                time.sleep(LINK_PAUSE_SECONDS)
                break
            if answer is None:
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


@dataclass(kw_only=True)
class Traffic:
    """Bytes of arrays sent to and received from all sites together, the time of every round, and the rounds that failed."""

    bytes_down: int = 0
    bytes_up: int = 0
    seconds: list[float] = field(default_factory=list)
    failed: list[int] = field(default_factory=list)


class Admission:
    """Knows which node speaks for which site.

    Args:
      delivery: to the nodes.
      declaration, payload: what a site is asked to accept, and the public array that comes with it.
      budget, traffic: where sites are entered and bytes counted.
      roster: the registered names by node, where the sites' keys are known; an empty one believes the first who gives a name.
      most_images: what registered sites may declare at most, by name.
      ask_again: a site that could not answer is asked again before every round.
    """

    def __init__(
        self,
        delivery: Delivery,
        declaration: Declaration,
        payload: NDArray[np.float32],
        *,
        budget: BudgetView,
        traffic: Traffic,
        roster: Callable[[], Mapping[int, str]],
        ask_again: bool,
        most_images: Callable[[], Mapping[str, int]] = dict,
    ) -> None:
        self._delivery, self._declaration, self._payload = delivery, declaration, payload
        self._budget, self._traffic, self._roster, self._ask_again = budget, traffic, roster, ask_again
        self._most_images = most_images
        self._nodes: dict[str, int] = {}
        self._asked: set[int] = set()
        # Nodes whose app failed at the declaration, and that are not asked again.
        self.failed: set[int] = set()
        self._unreadable: set[str] = set()

    def node(self, site: str) -> int:
        """The node that speaks for a site now."""
        return self.current(self._nodes[site])

    def current(self, node: int) -> int:
        """The node that speaks now for the site for which `node` spoke; another one after a site's key has changed."""
        site = next((name for name, known in self._nodes.items() if known == node), None)
        roster = {} if site is None else self._roster()
        if node in roster:
            return node
        return next((now for now, name in roster.items() if name == site), node)

    def open(self, *, needed: int, timeout: float) -> None:
        """Wait until `needed` sites have come and answered.

        Raises:
          RunFailed: If fewer came in `timeout` seconds.
        """
        deadline, poll = time.monotonic() + timeout, FIRST_JOIN_POLL_SECONDS
        while True:
            self.poll_joins()
            if len(self._asked) >= needed and not self._delivery.open:
                return
            if time.monotonic() > deadline and not (self._delivery.all_come and self._delivery.open):
                break
            time.sleep(poll)
            poll = min(2 * poll, LAST_POLL_SECONDS)
        if len(self._asked) < needed:
            raise RunFailed(f"{len(self._asked)} of {needed} sites came within {timeout:g} s; start the others")
        logger.warning("%d sites have not answered the declaration; they can still join", len(self._delivery.open))

    def poll_joins(self) -> None:
        """Ask whoever is new, and take in the answers that are there; waits for nobody."""
        new = [node for node in self._delivery.nodes() if node not in self._asked]
        if new:
            content = pack_declaration(self._declaration, self._payload)
            self._delivery.start({node: Message(content, dst_node_id=node, message_type=MessageType.QUERY) for node in new})
            self._asked |= set(new)
            self._traffic.bytes_down += self._payload.nbytes * len(new)
        if not self._delivery.open:
            return
        answers = self._delivery.collect()
        for node, message in sorted(answers.items()):
            if message.has_error():
                (self._asked.discard if self._ask_again else self.failed.add)(node)
        for node, (_, reply) in self.read(answers, Accepted).items():
            self._enter(node, reply)
        for site in sorted(self.take_unreadable()):
            self._budget.keep_out(site, reason="unreadable")

    def read(self, answers: Mapping[int, Message], kind: type[Wanted]) -> dict[int, tuple[Message, Wanted | Refusal]]:
        """Replies of a kind and refusals by node, in the order of the sites' names; all else is logged and dropped."""
        found: dict[str, tuple[int, Message, Wanted | Refusal]] = {}
        for node, message in answers.items():
            if message.has_error():
                logger.warning("node %d fails with code %d", node, message.error.code)
                continue
            try:
                reply = self._read(node, message, kind)
            except (DataError, ValueError) as error:
                logger.warning("node %d sends a reply that cannot be read: %s", node, error)
                self._unreadable.add(self._name(node))
                continue
            if complaint := self._complaint(node, reply.site):
                logger.warning("%s", complaint)
                continue
            if reply.site in found:
                logger.warning("a second reply names %s; it is left out", reply.site)
                continue
            found[reply.site] = (node, message, reply)
        return {node: (message, reply) for _, (node, message, reply) in sorted(found.items())}

    def _read(self, node: int, message: Message, kind: type[Wanted]) -> Wanted | Refusal:
        try:
            reply = read_reply(message.content)
        except VersionMismatch as error:
            return refusal_of_version(error, self._name(node))
        if not isinstance(reply, kind | Refusal):
            raise DataError(f"{type(reply).__name__} is not what was asked for")
        return reply

    def take_unreadable(self) -> frozenset[str]:
        """Sites that sent what cannot be read since this was asked last."""
        found, self._unreadable = frozenset(self._unreadable), set()
        return found

    def _name(self, node: int) -> str:
        """The site for which a node speaks, as far as that is known without its own word."""
        known = self._roster().get(self.current(node))
        return known or next((site for site, of in self._nodes.items() if of == node), f"node-{node}")

    def as_dict(self) -> dict[str, Any]:
        """Who spoke for whom, as values that strict JSON knows."""
        return dict(self._nodes)

    def restore(self, values: Mapping[str, Any]) -> None:
        """Take up what `as_dict` gave. Sites that had refused are asked again: their operators may have changed their minds."""
        self._nodes = {site: int(node) for site, node in values.items() if site in self._budget.active}
        self._asked = set(self._nodes.values())

    def forget(self) -> None:
        """Know no node any more: whoever is there is asked anew."""
        self._nodes.clear()
        self._asked.clear()
        self.failed.clear()

    def _enter(self, node: int, reply: Accepted | Refusal) -> None:
        known = self._budget.sites.get(reply.site)
        if known is not None and known.events and (isinstance(reply, Refusal) or reply.events != known.declared):
            logger.warning("%s answers the declaration again, in another way; it goes on as before", reply.site)
            return
        is_new = known is None or not known.events
        if isinstance(reply, Refusal):
            logger.warning("%s refuses the run: %s", reply.site, reason_text(reply.reason, reply.protocol_version))
        elif wrong := weight_fault(reply, self._most_images()) or declaration_fault(self._declaration, reply):
            logger.warning("%s %s; it is left out", reply.site, wrong.text)
            if is_new:
                self._budget.exclude(reply, reason=wrong.reason)
            return
        if is_new:
            self._budget.enter(reply)
        self._nodes[reply.site] = node

    def _complaint(self, node: int, site: str) -> str:
        """Why a reply in the name of `site` is not taken from `node`; empty if it is."""
        roster = self._roster()
        if roster:
            registered = roster.get(self.current(node))
            return (
                ""
                if registered == site
                else f"the key of {registered or 'nobody'} answers in the name of {site}; it is left out"
            )
        if site in self._nodes and self._nodes[site] != node:
            return f"another node answers in the name of {site}; its reply is left out"
        return ""
