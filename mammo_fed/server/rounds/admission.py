"""Which node speaks for which site: who comes is asked to accept the run's declaration, and answers in its own name alone.

A site is asked at the run's start, when it comes later, and anew where it has lost what it was declared.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

import numpy as np
from flwr.app import Message, MessageType
from numpy.typing import NDArray

from mammo_fed.errors import DataError, RunFailed, VersionMismatch
from mammo_fed.federation.protocol.messages import pack_declaration, read_reply
from mammo_fed.federation.protocol.replies import Accepted, Refusal, Update
from mammo_fed.federation.protocol.task import Declaration
from mammo_fed.server.rounds.budget import BudgetView, reason_text
from mammo_fed.server.rounds.delivery import LAST_POLL_SECONDS, Delivery, Traffic
from mammo_fed.server.rounds.reply_checks import declaration_fault, refusal_of_version, weight_fault

__all__ = ["PASSING", "Admission"]

logger = logging.getLogger(__name__)

Wanted = TypeVar("Wanted", Accepted, Update)

FIRST_POLL_SECONDS: Final = 0.02
# Why a site refuses that may accept the very same run a little later.
PASSING: Final = ("internal", "unready")


class Admission:
    """Knows which node speaks for which site.

    Args:
      delivery: to the nodes.
      declaration, payload: what a site is asked to accept, and the public array that comes with it.
      budget, traffic: where sites are entered and bytes counted.
      roster: the registered names by node, where the sites' keys are known; an empty one believes the first who gives a name.
      most_images: what registered sites may declare at most, by name.
      ask_again: a site that could not answer, or lost what it was declared, is asked again before every round.
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
        self._unreadable: set[str] = set()
        self._again: set[int] = set()

    def node(self, site: str) -> int:
        """The node that speaks for a site now."""
        return self.current(self._nodes[site])

    def site(self, node: int) -> str | None:
        """The site for which `node` speaks or spoke."""
        return next((name for name, known in self._nodes.items() if node in (known, self.current(known))), None)

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
        deadline, poll = time.monotonic() + timeout, FIRST_POLL_SECONDS
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

    def declare_again(self, site: str) -> None:
        """The site has lost what it was declared, or could not take it in: it is asked anew before the next round."""
        if self._ask_again:
            self._again |= {self._nodes[site], self.node(site)}

    def next_round(self) -> None:
        """Ask who is new, and anew who could not accept the run or has lost it; waits for nobody."""
        self._asked -= self._again
        self._again = set()
        self.poll_joins()

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
            if message.has_error() and self._ask_again:
                self._asked.discard(node)
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

    def _enter(self, node: int, reply: Accepted | Refusal) -> None:
        known = self._budget.sites.get(reply.site)
        if self._ask_again and isinstance(reply, Refusal) and reply.reason in PASSING:
            self._again.add(node)
            if known is not None and not known.reason:
                logger.warning("%s cannot take in the declaration now (%s); it is asked again", reply.site, reply.reason)
                return
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
