"""A round whose updates are added up under masks: from the round's messages to the average that a strategy takes in."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from flwr.app import Message, RecordDict
from numpy.typing import NDArray

from mammo_fed.errors import DataError
from mammo_fed.federation.protocol.messages import Reply, read_reply, reason_of
from mammo_fed.federation.protocol.task import Declaration, RoundTask, task_hash
from mammo_fed.federation.secure_aggregation.double_masks import Roster, secure_task_hash
from mammo_fed.federation.secure_aggregation.opening import weighted_sum
from mammo_fed.privacy.shared_noise import release_of_sum
from mammo_fed.server.rounds.admission import Admission, Traffic
from mammo_fed.server.rounds.delivery import Delivery, Waiting
from mammo_fed.server.rounds.secure_sum import SecureSum
from mammo_fed.settings import FederationSettings

__all__ = ["MaskedRound", "average_of_sum", "most_sites"]

logger = logging.getLogger(__name__)


def most_sites(declaration: Declaration) -> int:
    """The largest roster that the declared threshold allows: above it two sets of survivors could be opened."""
    return 2 * declaration.min_survivors - declaration.colluders - 1


def average_of_sum(
    total: NDArray[np.int64], task: RoundTask, flat: NDArray[np.float32], *, declaration: Declaration, weight: int
) -> NDArray[np.float32]:
    """What the weighted average of the sites' updates would be, from their sum alone.

    With masks the sum is that of weight * (update - sent model). With shared noise it is that of the clipped contributions,
    and one step along it from the sent model is the average of the steps that the sites would take: they all start there.

    Args:
      total: int64, shape (length,).
      task, flat: what the sites were sent.
      declaration: of the run.
      weight: sum of the survivors' public weights.

    Returns:
      float32, shape (length,).
    """
    if declaration.aggregation == "masks":
        average: NDArray[np.float32] = (flat + weighted_sum(total) / weight).astype(np.float32)
        return average
    clipping_norm = declaration.mean_clipping_norm if task.kind == "mean" else declaration.clipping_norm
    mean = release_of_sum(total, clipping_norm=clipping_norm) / weight
    step = mean if task.kind == "mean" else flat - task.learning_rate * mean
    return step.astype(np.float32)


@dataclass(kw_only=True)
class MaskedRound:
    """One try at a round's masked sum.

    Attributes:
      declaration, settings: of the run.
      admission, delivery, traffic: to the sites.
      accept: composes a reply's events and says whether its update may be added up, given the hash that it must answer.
      longest: by a site's name, the largest norm that its update may have, were it seen.
      answered: sites whose reply to the task was read; what they spent is composed.
      sent: sites that were sent the task.
      failure: why nothing was opened, or empty.
    """

    declaration: Declaration
    settings: FederationSettings
    admission: Admission
    delivery: Delivery
    traffic: Traffic
    accept: Callable[[Reply, str], bool]
    longest: Callable[[str], float]
    answered: set[str] = field(default_factory=set)
    sent: tuple[str, ...] = ()
    failure: str = ""

    def run(
        self,
        task: RoundTask,
        sites: Sequence[str],
        content: RecordDict,
        *,
        flat: NDArray[np.float32],
        centre: NDArray[np.float32],
    ) -> tuple[NDArray[np.float32], int] | None:
        """The average and the weight of the sites behind it, or None where the sum was not opened.

        Args:
          task: of the round.
          sites: whom to ask.
          content: of the strategy's message: the task, the model and what else it sends.
          flat, centre: what the task starts from.
        """
        plain_hash = task_hash(task, centre=centre, arrays=flat)

        def judge(site: str, answer: RecordDict, roster: Roster, present: Sequence[str]) -> Reply | None:
            return self._judge(site, answer, secure_task_hash(plain_hash, roster, present), task.round_index)

        total = SecureSum(exchange=self._exchange, judge=judge, terms=self.declaration.terms(task.round_index))
        total.run(sites, dict(content))
        self.sent, self.failure = total.sent, total.failure
        self.traffic.bytes_down += total.bytes_down + (flat.nbytes + centre.nbytes) * len(total.sent)
        self.traffic.bytes_up += total.bytes_up + sum(reply.masked.nbytes for reply in total.replies.values())
        if total.total is None:
            return None
        replies = total.replies
        weight = sum(reply.weight for reply in replies.values())
        average = average_of_sum(total.total, task, flat, declaration=self.declaration, weight=weight)
        # No single update can be looked at; honest ones cannot have an average longer than this.
        longest = sum(reply.weight * self.longest(site) for site, reply in replies.items()) / weight
        length = float(np.linalg.norm(average.astype(np.float64) - flat))
        if not length <= longest:
            self.failure = f"the average has norm {length:.4g}, above {longest:.4g} that honest sites can reach"
            return None
        return average, weight

    def _judge(self, site: str, answer: RecordDict, under: str, round_index: int) -> Reply | None:
        try:
            reply = read_reply(answer)
        except (DataError, ValueError) as error:
            logger.warning("%s sends a reply that cannot be read: %s", site, error)
            return None
        if reply.site != site:
            logger.warning("the node of %s answers in the name of %s; its reply is left out", site, reply.site)
            return None
        if reply.reason in ("task", "internal"):
            # It could not take part in this sum: it has not refused the run, and whatever it may have spent is charged.
            logger.warning("%s cannot answer round %d: %s", site, round_index, reply.reason)
            return None
        self.answered.add(site)
        return reply if self.accept(reply, under) else None

    def _exchange(self, contents: Mapping[str, RecordDict], message_type: str) -> dict[str, RecordDict]:
        """Send each site its content and wait as for any round; errors are logged and dropped."""
        names = {self.admission.node(site): site for site in contents}
        messages = {node: Message(contents[site], dst_node_id=node, message_type=message_type) for node, site in names.items()}
        waiting = Waiting(
            enough=self.declaration.min_survivors,
            at_least=self.settings.round_min_wait,
            at_most=self.settings.round_timeout,
        )
        answers = self.delivery.exchange(
            messages,
            waiting=waiting,
            is_good=lambda message: not message.has_error() and not reason_of(message.content),
        )
        for node, message in answers.items():
            if message.has_error():
                logger.warning("%s fails with code %d", names[node], message.error.code)
        return {names[node]: message.content for node, message in answers.items() if not message.has_error()}
