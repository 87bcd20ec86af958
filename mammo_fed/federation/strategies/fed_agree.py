"""A robust average for few sites with noisy updates: bound what each can do, and leave out who points against the others.

Under differential privacy most of an update is noise, and a coordinate's median of few sites says little. Two things still tell
honest sites from a hostile one: noise makes their updates about equally long, and the private mean and the first steps, where
the signal is, point the same way. So

- every update is shortened to the median length of its round;
- every site has a reputation: the sum, never above zero, of how far its updates agreed with the others', in standard deviations
  of what noise alone gives. Below a limit its updates are left out, until the others agree with it again.

A site that is honest at first gains nothing by it. What a hostile site can still do is bounded by one honest site's length.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg
from numpy.typing import NDArray

from mammo_fed.federation.protocol.messages import ARRAYS, PRIVACY, pack_parameters, read_parameters

__all__ = ["FedAgree", "Reputation", "direction_scores", "shortened"]

LOWEST_REPUTATION: Final = -3.0
# Of two sites that disagree nobody can tell which is right.
FEWEST_TO_COMPARE: Final = 3


def direction_scores(updates: NDArray[np.float64]) -> NDArray[np.float64]:
    """Median cosine of every update with the others, times the root of the dimension, float64, shape (sites,).

    Between independent noise the cosine times the root of the dimension is about standard normal.

    Args:
      updates: float64, shape (sites, dims), finite, at least two sites; one that is zero agrees with nobody and disagrees with
        nobody.
    """
    norms = np.linalg.norm(updates, axis=1, keepdims=True)
    rows = np.divide(updates, norms, out=np.zeros_like(updates), where=norms > 0)
    cosines = rows @ rows.T
    sites = len(updates)
    others = cosines[~np.eye(sites, dtype=bool)].reshape(sites, sites - 1)
    medians: NDArray[np.float64] = np.median(others, axis=1) * math.sqrt(updates.shape[1])
    return medians


def shortened(updates: NDArray[np.float64]) -> NDArray[np.float64]:
    """Updates brought down to their median length where they are longer, float64, shape (sites, dims)."""
    norms = np.linalg.norm(updates, axis=1)
    median = float(np.median(norms))
    factors = np.divide(median, norms, out=np.ones_like(norms), where=norms > median)
    short: NDArray[np.float64] = updates * factors[:, None]
    return short


class Reputation:
    """How far each site has agreed with the others so far; shared by the mean and the training rounds."""

    def __init__(self) -> None:
        self._scores: dict[str, float] = {}

    def exclude(self, sites: Sequence[str], updates: NDArray[np.float64]) -> frozenset[str]:
        """Take in a round and name the sites whose updates are to be left out: the lowest, always fewer than half of all."""
        if len(sites) < FEWEST_TO_COMPARE:
            return frozenset()
        for site, score in zip(sites, direction_scores(updates).tolist(), strict=True):
            self._scores[site] = min(0.0, self._scores.get(site, 0.0) + score)
        low = sorted((self._scores[site], site) for site in sites if self._scores[site] < LOWEST_REPUTATION)
        return frozenset(site for _, site in low[: (len(sites) - 1) // 2])

    def as_dict(self) -> dict[str, float]:
        """Scores by site."""
        return dict(self._scores)

    def restore(self, scores: Mapping[str, float]) -> None:
        """Take up what `as_dict` gave."""
        self._scores = {site: float(score) for site, score in scores.items()}


class FedAgree(FedAvg):
    """FedAvg over shortened updates of the sites in good reputation.

    Guarantee: post-processing of what sites released.

    Args:
      reputation: of the sites; may be shared by several strategies.
      settings: of FedAvg.

    Attributes:
      left_out: sites whose updates the last aggregate does without.
    """

    def __init__(self, *, reputation: Reputation, **settings: Any) -> None:
        super().__init__(**settings)
        self._reputation = reputation
        self._sent = np.zeros(0, np.float32)
        self.left_out: tuple[str, ...] = ()

    def configure_train(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid) -> Iterable[Message]:
        """As FedAvg; what is sent is what updates are measured from."""
        self._sent = read_parameters(arrays)
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """The weighted average of the shortened updates of the sites in good reputation."""
        taken = list(replies)
        if not taken:
            return None, None
        sites = [str(reply.content.config_records[PRIVACY]["site"]) for reply in taken]
        sent = self._sent.astype(np.float64)
        updates = shortened(np.stack([read_parameters(reply.content.array_records[ARRAYS]) for reply in taken]) - sent)
        low = self._reputation.exclude(sites, updates)
        self.left_out = tuple(sorted(low))
        for reply, update in zip(taken, updates, strict=True):
            reply.content[ARRAYS] = pack_parameters((sent + update).astype(np.float32))
        return super().aggregate_train(
            server_round, [reply for reply, site in zip(taken, sites, strict=True) if site not in low]
        )
