"""A round whose updates are added up under masks: from its task to the parameters that a strategy makes of the sum."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from flwr.app import Message, MessageType, RecordDict
from flwr.serverapp import Grid
from numpy.typing import NDArray

from mammo_fed.errors import DataError, VersionMismatch
from mammo_fed.federation.protocol.messages import read_reply, reason_of, task_config
from mammo_fed.federation.protocol.replies import Accepted, Refusal, Update
from mammo_fed.federation.protocol.task import Declaration
from mammo_fed.federation.secure_aggregation.double_masks import Roster, secure_task_hash
from mammo_fed.federation.secure_aggregation.opening import weighted_sum
from mammo_fed.federation.strategies.aggregator import Aggregator
from mammo_fed.privacy.shared_noise import release_of_sum
from mammo_fed.server.rounds.admission import PASSING, Admission
from mammo_fed.server.rounds.delivery import Delivery, Presence, Traffic, Waiting, attended
from mammo_fed.server.rounds.reply_checks import ReplyChecks, SentTask, refusal_of_version
from mammo_fed.server.rounds.secure_sum import SecureSum
from mammo_fed.settings import FederationSettings

__all__ = ["MaskedRound", "average_of_sum", "most_sites"]

logger = logging.getLogger(__name__)


def most_sites(declaration: Declaration) -> int:
    """The largest roster that the declared threshold allows: above it two sets of survivors could be opened."""
    return 2 * declaration.min_survivors - declaration.colluders - 1


def average_of_sum(
    total: NDArray[np.int64], sent: SentTask, *, declaration: Declaration, public_images: int
) -> NDArray[np.float32]:
    """What the weighted average of the sites' updates would be, from their sum alone.

    With masks the sum is that of public images * (update - sent parameters). With shared noise it is that of the clipped
    contributions, and one step along it from the sent parameters, where all sites start, is the average of the steps that they
    would take.

    Args:
      total: int64, shape (length,).
      sent: what the sites were sent.
      declaration: of the run.
      public_images: of the survivors together.

    Returns:
      float32, shape (length,).
    """
    task, parameters = sent.task, sent.parameters
    if declaration.aggregation == "masks":
        average: NDArray[np.float32] = (parameters + weighted_sum(total) / public_images).astype(np.float32)
        return average
    clipping_norm = declaration.mean_clipping_norm if task.kind == "mean" else declaration.clipping_norm
    mean = release_of_sum(total, clipping_norm=clipping_norm) / public_images
    step = mean if task.kind == "mean" else parameters - task.learning_rate * mean
    return step.astype(np.float32)


@dataclass(kw_only=True)
class MaskedRound:
    """One try at a round's masked sum.

    Attributes:
      declaration, settings: of the run.
      grid, admission, delivery, traffic: to the sites.
      presence: which sites are there.
      checks: charges replies and says whose update is added up.
      aggregator: makes the messages and takes in the average.
      failure: why nothing was opened, or empty.
    """

    declaration: Declaration
    settings: FederationSettings
    grid: Grid
    admission: Admission
    delivery: Delivery
    traffic: Traffic
    presence: Presence
    checks: ReplyChecks
    aggregator: Aggregator
    failure: str = ""
    _answered: set[str] = field(default_factory=set, init=False)
    _still_open: set[str] = field(default_factory=set, init=False)
    _reached: set[str] = field(default_factory=set, init=False)
    _alive: set[str] = field(default_factory=set, init=False)
    _unready: set[str] = field(default_factory=set, init=False)

    def run(self, sent: SentTask, sites: Sequence[str]) -> NDArray[np.float32] | None:
        """The aggregated parameters, or None where the sum was not opened; what the round cost is charged in both cases."""
        started, index = time.perf_counter(), sent.task.round_index
        self.presence.begin(index, attempt=1, seconds=self.settings.round_timeout, sites=sites)
        messages = self.aggregator.configure(
            self.grid,
            [self.admission.node(site) for site in sites],
            round_index=index,
            parameters=sent.parameters,
            config=task_config(sent.task, sent.feature_mean),
        )

        def accept(site: str, answer: RecordDict, roster: Roster, present: Sequence[str]) -> Update | None:
            return self._accept(site, answer, sent, secure_task_hash(sent.hash, roster, present))

        total = SecureSum(
            exchange=self._exchange, accept=accept, terms=self.declaration.terms(index), refused=self._refused_stage
        )
        total.run(sites, dict(messages[0].content))
        self.failure = total.failure
        self.checks.reject_unreadable(sent, total.unreadable)
        self.traffic.bytes_down += total.bytes_down + (sent.parameters.nbytes + sent.feature_mean.nbytes) * len(total.sent)
        self.traffic.bytes_up += total.bytes_up + sum(reply.masked.nbytes for reply in total.replies.values())
        self.checks.charge_unanswered(sent, sorted(self._reached - self._answered))
        self.checks.note_missed(sent, sorted((set(sites) - self._reached - self._alive) | self._unready))
        self.presence.end(sites, alive=self._alive)
        if total.total is None:
            return None
        public_images = sum(reply.public_images for reply in total.replies.values())
        average = average_of_sum(total.total, sent, declaration=self.declaration, public_images=public_images)
        # No single update can be looked at; the average of honest ones is no longer than this.
        max_norm = (
            sum(reply.public_images * self.checks.max_norm(site, sent) for site, reply in total.replies.items()) / public_images
        )
        norm = float(np.linalg.norm(average.astype(np.float64) - sent.parameters))
        if not norm <= max_norm:
            self.failure = f"the average has norm {norm:.4g}, above {max_norm:.4g} that honest sites can reach"
            return None
        aggregated = self.aggregator.take_average(index, average, public_images=public_images, asked=messages[0])
        self.traffic.seconds.append(time.perf_counter() - started)
        return aggregated

    def _accept(self, site: str, answer: RecordDict, sent: SentTask, masked_hash: str) -> Update | None:
        try:
            reply = read_reply(answer)
        except VersionMismatch as error:
            reply = refusal_of_version(error, site)
        except (DataError, ValueError) as error:
            logger.warning("%s sends a reply that cannot be read: %s", site, error)
            self.checks.reject_unreadable(sent, [site])
            return None
        if reply.site != site:
            logger.warning("the node of %s answers in the name of %s; its reply is left out", site, reply.site)
            return None
        if isinstance(reply, Accepted):
            logger.warning("%s answers a declaration and not round %d; it is left out", site, sent.task.round_index)
            return None
        if isinstance(reply, Refusal) and reply.reason == "unready" and site not in self._still_open:
            self._refused_stage(site, reply.reason)
        elif isinstance(reply, Refusal) and reply.reason in ("task", *PASSING):
            # It could not take part in this sum: it has not refused the run, and whatever it may have spent is charged.
            logger.warning("%s cannot answer round %d: %s", site, sent.task.round_index, reply.reason)
            return None
        self._answered.add(site)
        return self.checks.accept(reply, sent, masked_hash=masked_hash)

    def _refused_stage(self, site: str, reason: str) -> None:
        if reason == "unready":
            self._unready.add(site)
            self.admission.declare_again(site)

    def _exchange(self, contents: Mapping[str, RecordDict], message_type: str) -> dict[str, RecordDict]:
        """Send each site its content and wait as for any round; errors are logged and dropped."""
        names = {self.admission.node(site): site for site in contents}
        messages = {node: Message(contents[site], dst_node_id=node, message_type=message_type) for node, site in names.items()}
        waiting = Waiting(
            enough=self.declaration.min_survivors,
            at_least=self.settings.round_min_wait,
            at_most=self.settings.round_timeout,
        )
        attention = attended(self.presence, names)
        # Who has answered a stage of this round is waited for in the next one.
        attention["aside"] = {node for node in attention["aside"] if names[node] not in self._alive}
        if message_type != MessageType.TRAIN:
            # A question about keys or shares costs a site nothing.
            del attention["announce"]
        answers = self.delivery.exchange(
            messages,
            waiting=waiting,
            is_good=lambda message: not message.has_error() and not reason_of(message.content),
            **attention,
        )
        if message_type == MessageType.TRAIN:
            self._still_open = {names[node] for node in self.delivery.reached}
            self._reached = self._still_open | {names[node] for node in answers}
        self._alive |= {names[node] for node, message in answers.items() if not message.has_error()}
        for node, message in answers.items():
            if message.has_error():
                logger.warning("%s fails with code %d", names[node], message.error.code)
        return {names[node]: message.content for node, message in answers.items() if not message.has_error()}
