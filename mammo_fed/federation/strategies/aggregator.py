"""Flower's strategies by name, on flat arrays with public weights; sampling of sites with a public seed."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid, PrivacyAccountant
from flwr.serverapp.strategy import Strategy
from numpy.typing import NDArray

from mammo_fed.errors import InvalidSetting, RunFailed
from mammo_fed.federation.protocol.messages import (
    ARRAYS,
    METRICS,
    NAME,
    PRIVACY,
    WEIGHT,
    pack_parameters,
    read_parameters,
    stamped,
)
from mammo_fed.federation.strategies.by_name import strategy_of
from mammo_fed.federation.strategies.fed_agree import FedAgree
from mammo_fed.federation.strategies.influence import OUTSIZED, Course, Reputation, bounded_weights
from mammo_fed.federation.strategies.site_level_dp import (
    SiteLevelNoise,
    accountant_state,
    site_level_accountant,
    take_up_accountant,
)
from mammo_fed.privacy.noise import NoiseSource
from mammo_fed.settings import FederationSettings
from mammo_fed.settings.federation import FEWEST_TO_COMPARE, ROBUST

__all__ = ["Aggregator", "choose_sites"]


# Attributes of Flower's adaptive strategies.
MOMENTS: Final = ("m_t", "v_t")
REPUTATION: Final = "standing"
COURSE: Final = "course"
ACCOUNT: Final = "site-level account"
# In whose name the server draws; no site may be called so.
SERVER: Final = "-server-"


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

    Guarantee: post-processing of what sites released; weights are public numbers of images.
    """

    def __init__(self, settings: FederationSettings, *, noise_seed: int | None = None) -> None:
        self._reputation, self._course, self._share = Reputation(), Course(), settings.weight_share
        self._left_out: tuple[str, ...] = ()
        self._against: tuple[str, ...] = ()
        self._shares: dict[str, float] = {}
        self._sent = np.zeros(0, np.float32)
        name = settings.resolved_strategy
        train, mean = (
            strategy_of(settings, kind, reputation=self._reputation, course=course)
            # The mean is another space than the model, and of one round: nobody has come far in it.
            for kind, course in ((name, self._course), (name if name in ROBUST else "FedAvg", Course()))
        )
        self._train: Strategy = train
        self._mean: Strategy = mean
        self._counts_sites = name in ROBUST and name != "FedAgree"
        self._most_of_median = OUTSIZED if isinstance(train, FedAgree) and settings.max_weight_share == "auto" else math.inf
        self._accountant: PrivacyAccountant | None = None
        if settings.central.noise_multiplier > 0:
            self._accountant = site_level_accountant(settings.central, sites=settings.num_sites)
            source = NoiseSource(injected_seed=noise_seed)
            self._train, self._mean = (
                SiteLevelNoise(
                    strategy,
                    settings=settings.central,
                    sites=settings.num_sites,
                    accountant=self._accountant,
                    draws=lambda index: source.on_grid(site=SERVER, round_index=index, purpose="site-level noise"),
                )
                for strategy in (train, mean)
            )

    @property
    def site_level_epsilon(self) -> float | None:
        """Epsilon of a site's part in all aggregates so far, at federation.central.delta; None without site-level noise."""
        return None if self._accountant is None else self._accountant.get_privacy_spent().epsilon

    @property
    def left_out(self) -> tuple[str, ...]:
        """Sites whose valid updates the last aggregate does without."""
        return self._left_out

    @property
    def against(self) -> tuple[str, ...]:
        """Sites that pointed against the others by the last aggregate, whether it does without them or not."""
        return self._against

    @property
    def shares(self) -> Mapping[str, float]:
        """Share of each site in the weights of the last aggregate; empty under masks, and where all sites weigh the same."""
        return self._shares

    def configure(
        self, grid: Grid, nodes: Sequence[int], *, round_index: int, parameters: NDArray[np.float32], config: ConfigRecord
    ) -> list[Message]:
        """The messages of a round to `nodes`, in their order."""
        strategy = self._mean if round_index == 0 else self._train
        self._sent = parameters
        messages = list(strategy.configure_train(round_index, pack_parameters(parameters), config, _Chosen(grid, nodes)))
        for message in messages:
            stamped(message.content)
        return messages

    def aggregate(self, round_index: int, replies: Sequence[Message]) -> NDArray[np.float32]:
        """Aggregate valid replies (never none of them) to one flat float32 array.

        Raises:
          RunFailed: If the strategy gives no array.
        """
        self._bound(replies)
        strategy = self._mean if round_index == 0 else self._train
        sites = [str(reply.content.config_records[PRIVACY]["site"]) for reply in replies]
        self._against = ()
        if len(replies) >= FEWEST_TO_COMPARE and not isinstance(strategy, FedAgree):
            # Also under a strategy that leaves nobody out the record says who pointed against the others.
            updates = np.stack([read_parameters(reply.content.array_records[ARRAYS]) for reply in replies])
            self._against = self._reputation.against(sites, updates.astype(np.float64) - self._sent)
        aggregated = self._aggregated(round_index, replies)
        self._left_out = ()
        if isinstance(strategy, FedAgree):
            self._against, self._left_out = strategy.against, strategy.left_out
        weights = {
            site: float(np.asarray(reply.content.metric_records[METRICS][WEIGHT]))
            for site, reply in zip(sites, replies, strict=True)
            if site not in self._left_out
        }
        total = sum(weights.values())
        self._shares = {} if self._counts_sites else {site: weight / total for site, weight in weights.items()}
        return aggregated

    def _bound(self, replies: Sequence[Message]) -> None:
        """Bound what each site weighs: its size is its own word."""
        images = [reply.content.metric_records[METRICS][WEIGHT] for reply in replies]
        weights = bounded_weights(images, max_share=self._share, times_median=self._most_of_median)  # type: ignore[arg-type]
        for reply, weight in zip(replies, weights.tolist(), strict=True):
            reply.content[METRICS] = MetricRecord({WEIGHT: weight})

    def _aggregated(self, round_index: int, replies: Sequence[Message]) -> NDArray[np.float32]:
        strategy = self._mean if round_index == 0 else self._train
        arrays, _ = strategy.aggregate_train(round_index, replies)
        if arrays is None:
            raise RunFailed(f"round {round_index}: the strategy gave no model; check federation.strategy and the sites' logs")
        # FedAdam and FedYogi return float64, which would double every later message.
        aggregated: NDArray[np.float32] = arrays[NAME].numpy().astype(np.float32, copy=False)
        return aggregated

    def take_average(
        self, round_index: int, average: NDArray[np.float32], *, public_images: int, asked: Message
    ) -> NDArray[np.float32]:
        """Aggregate the average over all sites, where no single update is known, as if one site had sent it.

        Args:
          round_index: of the round.
          average: float32, flat: the sites' weighted average of what they would have sent.
          public_images: of the sites together.
          asked: one of the messages of the round, from `configure`.
        """
        content = RecordDict({ARRAYS: pack_parameters(average), METRICS: MetricRecord({WEIGHT: public_images})})
        return self._aggregated(round_index, [Message(content, reply_to=asked)])

    def state(self) -> dict[str, NDArray[Any]]:
        """State from round to round: moments of FedAdam and FedYogi, sites' reputation, the site-level account."""
        state = {f"{name}/{key}": array for name in MOMENTS for key, array in (getattr(self._train, name, None) or {}).items()}
        if reputation := self._reputation.as_dict():
            state[REPUTATION] = np.frombuffer(json.dumps(reputation).encode(), np.uint8)
        state |= {f"{COURSE}/{site}": array for site, array in self._course.as_arrays().items()}
        if self._accountant is not None:
            state[ACCOUNT] = accountant_state(self._accountant)
        return state

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Take up what `state` gave.

        Raises:
          InvalidSetting: If the site-level account is of other settings.
        """
        if REPUTATION in state:
            self._reputation.restore(json.loads(state[REPUTATION].tobytes()))
        prefix = f"{COURSE}/"
        self._course.restore({key.removeprefix(prefix): array for key, array in state.items() if key.startswith(prefix)})
        if self._accountant is not None:
            if ACCOUNT not in state:
                raise InvalidSetting("federation.central.noise_multiplier must be 0, as when the run began")
            take_up_accountant(self._accountant, state[ACCOUNT])
        elif ACCOUNT in state:
            raise InvalidSetting("federation.central.noise_multiplier must be above 0, as when the run began")
        for name in MOMENTS:
            moments = {key.partition("/")[2]: array for key, array in state.items() if key.partition("/")[0] == name}
            if moments:
                setattr(self._train, name, moments)
