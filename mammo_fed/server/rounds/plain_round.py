"""A round whose updates the server sees one by one: asked, waited for, validated and aggregated."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from flwr.app import Message
from flwr.serverapp import Grid
from numpy.typing import NDArray

from mammo_fed.errors import RunFailed
from mammo_fed.federation.protocol.messages import reason_of, task_config
from mammo_fed.federation.protocol.replies import Refusal, Update
from mammo_fed.federation.strategies.aggregator import Aggregator
from mammo_fed.server.rounds.admission import PASSING, Admission
from mammo_fed.server.rounds.delivery import Delivery, Presence, Traffic, Waiting, attended
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
      presence: which sites are there.
      checks: charges replies and says whose update is aggregated.
      aggregator: makes the messages and aggregates the updates.
    """

    settings: FederationSettings
    needed: int
    grid: Grid
    admission: Admission
    delivery: Delivery
    traffic: Traffic
    presence: Presence
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
        seen = _Seen()
        self.admission.take_unreadable()
        for attempt in range(tries):
            missing = sorted(set(sites) - seen.answered - self.presence.revoked(sites))
            if not missing:
                break
            self.presence.begin(index, attempt=attempt + 1, seconds=self.settings.round_timeout, sites=missing)
            for reply, message in self._ask(sent, missing, seen, enough=max(0, needed - len(valid))):
                seen.answered.add(reply.site)
                if isinstance(reply, Update):
                    self.traffic.bytes_up += reply.parameters.nbytes
                if self.checks.accept(reply, sent):
                    valid[reply.site] = message
                elif isinstance(reply, Refusal) and reply.reason == "unready":
                    seen.unready.add(reply.site)
                    self.admission.declare_again(reply.site)
            if len(valid) >= needed or not set(sites) - (seen.answered - seen.unready) - self.presence.revoked(sites):
                break
            logger.warning(
                "round %d: %d of %d sites replied, try %d of %d",
                index,
                len(seen.answered),
                len(sites),
                attempt + 1,
                tries,
            )
            if attempt + 1 < tries:
                self._ask_unready_anew(seen)
        self._charge_silent(sent, sorted(set(sites) - seen.answered), seen)
        self.checks.reject_unreadable(sent, self.admission.take_unreadable() - seen.answered)
        self.presence.end(sites, alive=seen.alive | seen.answered)
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

    def _ask_unready_anew(self, seen: _Seen) -> None:
        """Without sites that were not ready the round fails: they are declared to again, and asked in the next try."""
        if seen.unready:
            time.sleep(self.settings.resend_after)
            self.admission.next_round()
        seen.answered -= seen.unready
        seen.reached -= seen.unready
        seen.unready.clear()

    def _charge_silent(self, sent: SentTask, silent: Sequence[str], seen: _Seen) -> None:
        """Charge the round to silent sites that may have its task, from this process or one before it; note the others."""
        reached = [site for site in silent if site in seen.reached or self.presence.may_have_task(site, sent.task.round_index)]
        self.checks.charge_unanswered(sent, reached)
        self.checks.note_missed(sent, sorted({*silent, *seen.unready} - set(reached)))

    def _needed(self, replies: int) -> str:
        settings = self.settings
        if replies == settings.min_replies:
            return f"federation.min_replies={replies}"
        return (
            f"federation.strategy={settings.resolved_strategy} with federation.num_malicious={settings.num_malicious} needs "
            f"{replies}: fewer could be outvoted by those"
        )

    def _ask(self, sent: SentTask, sites: Sequence[str], seen: _Seen, *, enough: int) -> list[tuple[Update | Refusal, Message]]:
        """Send the task and return the readable replies of sites in the run, in the order of the sites' names."""
        names = {self.admission.node(site): site for site in sites}
        messages = self.aggregator.configure(
            self.grid,
            list(names),
            round_index=sent.task.round_index,
            parameters=sent.parameters,
            config=task_config(sent.task, sent.feature_mean),
        )
        self.traffic.bytes_down += (sent.parameters.nbytes + sent.feature_mean.nbytes) * len(messages)
        answers = self.delivery.exchange(
            {message.metadata.dst_node_id: message for message in messages},
            waiting=Waiting(enough=enough, at_least=self.settings.round_min_wait, at_most=self.settings.round_timeout),
            is_good=lambda message: not message.has_error() and not reason_of(message.content),
            **attended(self.presence, names),
        )
        still_open = {names[node] for node in self.delivery.reached}
        seen.still_open |= still_open
        seen.reached |= still_open | {names[node] for node in answers}
        seen.alive |= {names[node] for node, message in answers.items() if not message.has_error()}
        replies: list[tuple[Update | Refusal, Message]] = []
        for message, reply in self.admission.read(answers, Update).values():
            if reply.site not in self.checks.budget.sites:
                logger.warning("a reply names the unknown site %s; it is left out", reply.site)
            elif not self._failed(reply, seen, sent.task.round_index):
                replies.append((reply, message))
        return replies

    def _failed(self, reply: Update | Refusal, seen: _Seen, index: int) -> bool:
        """Whether a site has not refused, and whatever it may have spent is charged: why it failed says its own log.

        A site that is not ready has spent nothing, unless it may have the task another time.
        """
        if isinstance(reply, Update) or reply.reason not in PASSING:
            return False
        return reply.reason == "internal" or reply.site in seen.still_open or self.presence.may_have_task(reply.site, index)


@dataclass(kw_only=True)
class _Seen:
    """What a round has seen of its sites, over all tries.

    Attributes:
      answered: with a readable reply that says what the round cost.
      unready: those of them that cannot answer now, which costs nothing.
      still_open: that may have a task which they have not answered.
      reached: that may have a task at all.
      alive: of which anything came at all.
    """

    answered: set[str] = field(default_factory=set)
    unready: set[str] = field(default_factory=set)
    still_open: set[str] = field(default_factory=set)
    reached: set[str] = field(default_factory=set)
    alive: set[str] = field(default_factory=set)
