"""Flower's strategies by name, on flat arrays with public weights; sampling of sites with a public seed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAdam, FedAvg, FedMedian, FedProx, FedTrimmedAvg, FedYogi, Krum, Strategy
from numpy.typing import NDArray

from mammo_fed.errors import RunFailed
from mammo_fed.federation.messages import ARRAYS, CONFIG, METRICS, WEIGHT, flat_array, pack_array
from mammo_fed.settings import FederationSettings
from mammo_fed.settings.federation import ROBUST

__all__ = ["Aggregator", "choose_sites"]


# Attributes of Flower's adaptive strategies.
MOMENTS: Final = ("m_t", "v_t")


def choose_sites(sites: Sequence[str], *, fraction: float, seed: int, round_index: int) -> tuple[str, ...]:
    """Sites that train in a round: at least one, drawn with a public seed. Nothing is amplified by this draw."""
    count = max(1, round(fraction * len(sites)))
    if count == len(sites):
        return tuple(sites)
    drawn = np.random.default_rng([seed, round_index]).permutation(len(sites))[:count]
    return tuple(sites[i] for i in sorted(drawn))


class _Chosen(Grid):
    """A view of a grid that holds only the chosen nodes, so that Flower's own sampling takes exactly these."""

    def __init__(self, grid: Grid, nodes: Sequence[int]) -> None:
        self._grid, self._nodes = grid, list(nodes)

    def get_node_ids(self) -> Iterable[int]:
        return list(self._nodes)

    def set_run(self, run: Any) -> None:
        self._grid.set_run(run)

    @property
    def run(self) -> Any:
        return self._grid.run

    def create_message(self, *arguments: Any, **named: Any) -> Message:
        return self._grid.create_message(*arguments, **named)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        return self._grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return self._grid.pull_messages(message_ids)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        return self._grid.send_and_receive(messages, timeout=timeout)


class Aggregator:
    """Configures and aggregates rounds with one of Flower's strategies.

    Guarantee: post-processing of what sites released; weights are public numbers.
    """

    def __init__(self, settings: FederationSettings) -> None:
        self._train = _strategy(settings, settings.strategy)
        self._mean = _strategy(settings, settings.strategy if settings.strategy in ROBUST else "FedAvg")

    def configure(
        self, grid: Grid, nodes: Sequence[int], *, round_index: int, flat: NDArray[np.float32], config: ConfigRecord
    ) -> list[Message]:
        """The messages of a round to `nodes`, in their order."""
        strategy = self._mean if round_index == 0 else self._train
        return list(strategy.configure_train(round_index, pack_array(flat), config, _Chosen(grid, nodes)))

    def aggregate(self, round_index: int, replies: Sequence[Message]) -> NDArray[np.float32]:
        """Aggregate valid replies (never none of them) to one flat float32 array.

        Raises:
          RunFailed: If the strategy gives no array.
        """
        strategy = self._mean if round_index == 0 else self._train
        arrays, _ = strategy.aggregate_train(round_index, replies)
        if arrays is None:
            raise RunFailed(f"round {round_index}: the strategy gave no model; check federation.strategy and the sites' logs")
        # FedAdam and its kin return float64, which would double every later message.
        return flat_array(arrays)

    def take_average(
        self, round_index: int, average: NDArray[np.float32], *, weight: int, asked: Message
    ) -> NDArray[np.float32]:
        """Aggregate the average over all sites, where no single update is known, as if one site had sent it.

        Args:
          round_index: of the round.
          average: float32, flat: the sites' weighted average of what they would have sent.
          weight: sum of the sites' public weights.
          asked: one of the messages of the round, from `configure`.
        """
        content = RecordDict({ARRAYS: pack_array(average), METRICS: MetricRecord({WEIGHT: weight})})
        return self.aggregate(round_index, [Message(content, reply_to=asked)])

    def state(self) -> dict[str, NDArray[Any]]:
        """What the strategies carry from round to round: the moments of FedAdam and its kin, by name; else nothing."""
        return {f"{name}/{key}": array for name in MOMENTS for key, array in (getattr(self._train, name, None) or {}).items()}

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Take up what `state` gave."""
        for name in MOMENTS:
            moments = {key.partition("/")[2]: array for key, array in state.items() if key.partition("/")[0] == name}
            if moments:
                setattr(self._train, name, moments)


def _strategy(settings: FederationSettings, name: str) -> Strategy:
    common: dict[str, Any] = {
        "fraction_train": 1.0,
        "fraction_evaluate": 1.0,
        "min_train_nodes": 1,
        "min_evaluate_nodes": 1,
        "min_available_nodes": 1,
        "weighted_by_key": WEIGHT,
        "arrayrecord_key": ARRAYS,
        "configrecord_key": CONFIG,
    }
    adaptive: dict[str, Any] = {
        "eta": settings.server_learning_rate,
        "beta_1": settings.beta_1,
        "beta_2": settings.beta_2,
        "tau": settings.tau,
    }
    if name == "FedProx":
        return FedProx(**common, proximal_mu=settings.proximal_mu)
    if name == "FedAdam":
        return FedAdam(**common, **adaptive)
    if name == "FedYogi":
        return FedYogi(**common, **adaptive)
    if name == "FedMedian":
        return FedMedian(**common)
    if name == "FedTrimmedAvg":
        return FedTrimmedAvg(**common, beta=settings.trim)
    if name == "Krum":
        return Krum(**common, num_malicious_nodes=settings.num_malicious)
    return FedAvg(**common)
