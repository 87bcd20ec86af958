"""A round whose updates the server sees one by one: asked, waited for, validated and aggregated."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from flwr.app import Message
from flwr.serverapp import Grid
from numpy.typing import NDArray

from mammo_fed.errors import RunFailed
from mammo_fed.federation.protocol.messages import reason_of, task_config
from mammo_fed.federation.protocol.replies import Refusal, Update
from mammo_fed.federation.strategies.aggregator import Aggregator
from mammo_fed.server.rounds.delivery import Admission, Delivery, Traffic, Waiting
from mammo_fed.server.rounds.reply_checks import ReplyChecks, SentTask
from mammo_fed.settings import FederationSettings

__all__ = ["PlainRound"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class PlainRound:
    """Runs one round after the other.

    Attributes:
      settings: of the run.
      needed: replies without which a round is tried again (`fewest_replies` of the settings).
      grid, admission, delivery, traffic: to the sites.
      checks: charges replies and says whose update is aggregated.
      aggregator: makes the messages and aggregates the updates.
    """

    settings: FederationSettings
    needed: int
    grid: Grid
    admission: Admission
    delivery: Delivery
    traffic: Traffic
    checks: ReplyChecks
    aggregator: Aggregator

    def run(self, sent: SentTask, sites: Sequence[str]) -> NDArray[np.float32]:
        """The aggregated parameters; a site that has replied is not asked again while the round is retried for the others.

        Raises:
          PrivacyRefused: If every site refuses.
          RunFailed: If too few sites reply.
        """
        started, index, tries = time.perf_counter(), sent.task.round_index, self.settings.max_failed_rounds
        needed = self.needed
        valid: dict[str, Message] = {}
        answered: set[str] = set()
        self.admission.take_unreadable()
        for attempt in range(tries):
            missing = [site for site in sites if site not in answered]
            for reply, message in self._ask(sent, missing, enough=max(0, needed - len(valid))):
                answered.add(reply.site)
                if isinstance(reply, Update):
                    self.traffic.bytes_up += reply.parameters.nbytes
                if self.checks.accept(reply, sent):
                    valid[reply.site] = message
            if len(valid) >= needed or answered.issuperset(sites):
                break
            logger.warning(
                "round %d: %d of %d sites replied, try %d of %d",
                index,
                len(answered),
                len(sites),
                attempt + 1,
                tries,
            )
        self.checks.charge_unanswered(sent, sorted(set(sites) - answered))
        self.checks.reject_unreadable(sent, self.admission.take_unreadable() - answered)
        if len(valid) < needed:
            self.checks.require_active(f"round {index}")
            raise RunFailed(
                f"round {index}: {len(valid)} of {len(sites)} sites replied with an update in {tries} tries, "
                f"and {self._needed(needed)}; look at the sites' logs"
            )
        aggregated = self.aggregator.aggregate(index, [valid[site] for site in sorted(valid)])
        self._note(index)
        self.traffic.seconds.append(time.perf_counter() - started)
        return aggregated

    def _note(self, index: int) -> None:
        """What the aggregate did with whose update."""
        left_out, budget = self.aggregator.left_out, self.checks.budget
        budget.weigh(self.aggregator.shares, against=self.aggregator.against, round_index=index)
        for site in self.aggregator.against:
            what = "is left out" if site in left_out else "counts all the same"
            logger.warning("%s points against the others by round %d; its update %s", site, index, what)
        for site in left_out:
            budget.reject(site, round_index=index, reason="direction")

    def _needed(self, replies: int) -> str:
        settings = self.settings
        if replies == settings.min_replies:
            return f"federation.min_replies={replies}"
        return (
            f"federation.strategy={settings.resolved_strategy} with federation.num_malicious={settings.num_malicious} needs "
            f"{replies}: fewer could be outvoted by those"
        )

    def _ask(self, sent: SentTask, sites: Sequence[str], *, enough: int) -> list[tuple[Update | Refusal, Message]]:
        """Send the task and return the readable replies of sites in the run, in the order of the sites' names."""
        messages = self.aggregator.configure(
            self.grid,
            [self.admission.node(site) for site in sites],
            round_index=sent.task.round_index,
            parameters=sent.parameters,
            config=task_config(sent.task, sent.feature_mean),
        )
        self.traffic.bytes_down += (sent.parameters.nbytes + sent.feature_mean.nbytes) * len(messages)
        answers = self.delivery.exchange(
            {message.metadata.dst_node_id: message for message in messages},
            waiting=Waiting(enough=enough, at_least=self.settings.round_min_wait, at_most=self.settings.round_timeout),
            is_good=lambda message: not message.has_error() and not reason_of(message.content),
        )
        replies: list[tuple[Update | Refusal, Message]] = []
        for message, reply in self.admission.read(answers, Update).values():
            if reply.site not in self.checks.budget.sites:
                logger.warning("a reply names the unknown site %s; it is left out", reply.site)
            elif not (isinstance(reply, Refusal) and reply.reason == "internal"):
                # A site that failed says why in its own log: it has not refused, and whatever it may have spent is charged.
                replies.append((reply, message))
        return replies
