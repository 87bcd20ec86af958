"""A robust average for few sites with noisy updates: bound what each can do, and leave out who points against the others.

Under differential privacy most of an update is noise, and a coordinate's median of few sites says little. Two things still tell
honest sites from a hostile one: noise makes what they contribute about equally long, and the private mean and the first steps,
where the signal is, point the same way. So

- no site weighs more than its share, whatever it declares, nor, where that share is not set, four times the median of all;
- a site whose contribution, weight times length, is above the median of its round weighs less, until it is not: honest noise
  makes small sites' updates long and large sites' short, and their contributions equal;
- no site may move the model much farther over ten rounds than the median site does: see influence.Course;
- a site that has pointed against the others by more than noise explains is left out until the others agree with it again: see
  influence.Reputation.

Only weights change, never an update: where honest sites differ in size, the average has the length that it would have anyway.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg
from numpy.typing import NDArray

from mammo_fed.federation.protocol.messages import ARRAYS, METRICS, PRIVACY, WEIGHT, read_parameters
from mammo_fed.federation.strategies.influence import Course, Reputation, bounded_weights

__all__ = ["FedAgree", "balanced"]


def balanced(updates: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weights under which no contribution is longer than the median of them all, float64, shape (sites,).

    Args:
      updates: float64, shape (sites, dims).
      weights: of the updates, > 0.
    """
    norms = np.linalg.norm(updates, axis=1)
    middle = float(np.median(norms * weights))
    most: NDArray[np.float64] = np.minimum(weights, np.divide(middle, norms, out=np.full_like(norms, np.inf), where=norms > 0))
    return most


class FedAgree(FedAvg):
    """FedAvg over the sites in good reputation, with weights that bound what each can do.

    Guarantee: post-processing of what sites released.

    Args:
      reputation: of the sites; may be shared by several strategies.
      course: how far they have moved the model; of one model only, so not shared.
      max_share: of a site in the sum of the weights, in (0, 1].
      settings: of FedAvg.

    Attributes:
      against: sites that pointed against the others by the last round.
      left_out: those of them whose updates the last aggregate does without.
    """

    def __init__(self, *, reputation: Reputation, course: Course, max_share: float, **settings: Any) -> None:
        super().__init__(**settings)
        self._reputation, self._course, self._max_share = reputation, course, max_share
        self._sent = np.zeros(0, np.float32)
        self.against: tuple[str, ...] = ()
        self.left_out: tuple[str, ...] = ()

    def configure_train(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid) -> Iterable[Message]:
        """As FedAvg; what is sent is what updates are measured from."""
        self._sent = read_parameters(arrays)
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """The average of the updates of the sites in good reputation, under bounded weights."""
        taken = list(replies)
        if not taken:
            return None, None
        sites = [str(reply.content.config_records[PRIVACY]["site"]) for reply in taken]
        images = [reply.content.metric_records[METRICS][WEIGHT] for reply in taken]
        sent = self._sent.astype(np.float64)
        updates = np.stack([read_parameters(reply.content.array_records[ARRAYS]) for reply in taken]) - sent
        self.against = self._reputation.against(sites, updates)
        # The lowest, and always fewer than half of all.
        low = self.against[: (len(sites) - 1) // 2]
        weights = self._course.weights(sites, updates, balanced(updates, np.asarray(images, np.float64)))
        self.left_out = tuple(sorted(low))
        kept = [index for index, site in enumerate(sites) if site not in low]
        # Once more: what bounds contributions also lowers the weights of the others.
        weights[kept] = bounded_weights(weights[kept].tolist(), max_share=self._max_share)
        if not weights[kept].any():
            weights[kept] = 1.0
        for index in kept:
            taken[index].content[METRICS] = MetricRecord({WEIGHT: float(weights[index])})
        return super().aggregate_train(server_round, [taken[index] for index in kept])
