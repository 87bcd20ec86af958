"""The rounds of a federation: declare, mean, train; valid replies only; who refuses is left out and named."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from flwr.app import Message, MessageType
from flwr.serverapp import Grid
from numpy.typing import NDArray

from mammo_fed.errors import DataError, PrivacyRefused, RunFailed
from mammo_fed.federation.aggregation import Aggregator, choose_sites
from mammo_fed.federation.messages import Reply, pack_declaration, read_reply, task_config
from mammo_fed.federation.task import Declaration, RoundTask, task_hash
from mammo_fed.privacy.events import PrivacyEvent
from mammo_fed.settings import Settings
from mammo_fed.training.recipe import Recipe
from server.budget import BudgetView

__all__ = ["Course", "Rounds", "Traffic"]

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.1


@dataclass(kw_only=True)
class Traffic:
    """Bytes of arrays sent to and received from all sites together, and the time of every round."""

    bytes_down: int = 0
    bytes_up: int = 0
    seconds: list[float] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True, eq=False)
class Course:
    """What the rounds produced.

    Attributes:
      centre: float32, shape (dims,): the aggregated private mean.
      models: the aggregated head after each training round, float32.
      flat: the released head: the average over the last rounds.
    """

    centre: NDArray[np.float32]
    models: tuple[NDArray[np.float32], ...]
    flat: NDArray[np.float32]


class Rounds:
    """Runs a declared federation over a grid.

    Args:
      grid: carries the messages.
      settings, recipe: of the run.
      declaration: what every site is asked to accept.
      on_round: called after the declaration (round -1) and every round with (round, rounds, budget view).
    """

    def __init__(
        self,
        grid: Grid,
        settings: Settings,
        recipe: Recipe,
        declaration: Declaration,
        *,
        on_round: Callable[[int, int, BudgetView], None],
    ) -> None:
        self._grid, self._settings, self._recipe, self._declaration = grid, settings, recipe, declaration
        self._aggregator = Aggregator(settings.federation)
        self._on_round = on_round
        self._nodes: dict[str, int] = {}
        self.budget = BudgetView(delta=declaration.delta, accountant=declaration.accountant)
        self.traffic = Traffic()

    def run(self, payload: NDArray[np.float32], initial: NDArray[np.float32]) -> Course:
        """All rounds, from the declaration to the averaged model; without rounds no site is asked and the start is the model.

        Raises:
          PrivacyRefused: If every site refuses.
          RunFailed: If the sites do not come, or none of them replies in a round.
        """
        centre = np.zeros(self._declaration.dims, np.float32)
        if self._recipe.rounds == 0:
            return Course(centre=centre, models=(), flat=initial)
        self._declare(payload)
        if self._declaration.mean_fraction > 0:
            centre = self._round(0, "mean", centre, np.zeros(self._declaration.dims, np.float32))
        flat, models = initial, []
        for index in range(1, self._recipe.rounds + 1):
            flat = self._round(index, "train", centre, flat)
            models.append(flat)
        for name, site in self.budget.sites.items():
            if site.mismatches:
                logger.warning("%s: its own epsilon is not the server's in rounds %s", name, site.mismatches)
            logger.info(
                "%s reported its ledger at %s; `mammo-fed privacy verify --reported` holds it to that", name, site.ledger_head
            )
        last = max(1, round(self._settings.federation.tail * len(models)))
        average: NDArray[np.float32] = np.stack(models[-last:]).mean(axis=0, dtype=np.float64).astype(np.float32)
        return Course(centre=centre, models=tuple(models), flat=average)

    def _declare(self, payload: NDArray[np.float32]) -> None:
        nodes = self._wait_for_nodes()
        content = pack_declaration(self._declaration, payload)
        messages = [Message(content, dst_node_id=node, message_type=MessageType.QUERY) for node in nodes]
        self.traffic.bytes_down += payload.nbytes * len(nodes)
        for message, reply in self._replies(messages):
            if not reply.reason and not self._declared_as_asked(reply):
                logger.warning("%s declares another schedule than it was asked for; it is left out", reply.site)
                continue
            self._nodes[reply.site] = message.metadata.src_node_id
            self.budget.enter(reply)
        for name, spending in self.budget.sites.items():
            if spending.reason:
                logger.warning("%s refuses the run: %s", name, spending.reason)
        self._require_active("the run")
        self._on_round(-1, self._recipe.rounds, self.budget)

    def _round(self, index: int, kind: str, centre: NDArray[np.float32], flat: NDArray[np.float32]) -> NDArray[np.float32]:
        started = time.perf_counter()
        privacy, federation = self._settings.privacy, self._settings.federation
        task = RoundTask(
            run_id=self._declaration.run_id,
            round_index=index,
            kind=kind,  # type: ignore[arg-type]
            learning_rate=self._recipe.learning_rate,
            weight_decay=privacy.weight_decay,
            optimizer=privacy.optimizer,
            label_smoothing=privacy.label_smoothing,
            proximal=federation.proximal_mu if federation.strategy == "FedProx" else 0.0,
        )
        fraction = 1.0 if index == 0 else federation.fraction
        chosen = choose_sites(self.budget.active, fraction=fraction, seed=self._settings.seed, round_index=index)
        nodes = [self._nodes[site] for site in chosen]
        messages = self._aggregator.configure(self._grid, nodes, round_index=index, flat=flat, config=task_config(task, centre))
        self.traffic.bytes_down += (flat.nbytes + centre.nbytes) * len(nodes)
        valid, replies = [], self._replies(messages)
        for site in sorted(set(chosen) - {reply.site for _, reply in replies}):
            logger.warning("%s sends no readable reply in round %d; the round is charged all the same", site, index)
            declared = self.budget.sites[site].declared
            self.budget.charge_unanswered(site, round_index=index, events=self._events_of(task, declared))
        for message, reply in replies:
            if self._accept(reply, task, centre, flat):
                valid.append((reply.site, message))
                self.traffic.bytes_up += reply.arrays.nbytes
        if not valid:
            self._require_active(f"round {index}")
            raise RunFailed(f"round {index}: no site replied with an update; look at the sites' logs")
        aggregated = self._aggregator.aggregate(index, [message for _, message in sorted(valid, key=lambda pair: pair[0])])
        self.traffic.seconds.append(time.perf_counter() - started)
        self._on_round(index, self._recipe.rounds, self.budget)
        return aggregated

    def _accept(self, reply: Reply, task: RoundTask, centre: NDArray[np.float32], flat: NDArray[np.float32]) -> bool:
        """Whether a reply's update may be aggregated; its events are composed in any case."""
        if reply.reason:
            self.budget.refuse(reply)
            logger.warning("%s refuses round %d: %s", reply.site, task.round_index, reply.reason)
            return False
        declared = self.budget.sites[reply.site]
        expected = self._events_of(task, declared.declared)
        # What counts is what was declared: a site that says it spent less has not thereby spent less.
        self.budget.spend(reply, round_index=task.round_index, events=expected)
        if reply.events != expected:
            logger.warning("%s reports undeclared events in round %d; its update is left out", reply.site, task.round_index)
            return False
        if (reply.weight, reply.patients) != (declared.images, declared.patients):
            logger.warning("%s changes its public size in round %d; its update is left out", reply.site, task.round_index)
            return False
        wanted = task_hash(task, centre=centre, arrays=flat)
        if (reply.run_id, reply.round_index, reply.task_hash) != (task.run_id, task.round_index, wanted):
            logger.warning("%s answers another task than round %d; its update is left out", reply.site, task.round_index)
            return False
        if reply.arrays.shape != flat.shape or not np.isfinite(reply.arrays).all():
            logger.warning("%s sends an update of the wrong shape or not finite; it is left out", reply.site)
            return False
        return True

    def _declared_as_asked(self, reply: Reply) -> bool:
        """Whether a site's schedule has the releases of the declaration; how much noise each gets is the site's to plan."""
        asked = self._declaration
        steps = {event.mechanism: event.steps for event in reply.events}
        wanted = {"gradient": asked.rounds * asked.local_steps} | ({"mean": 1} if asked.mean_fraction > 0 else {})
        one_unit = all(event.unit == asked.unit for event in reply.events)
        return one_unit and steps == wanted and len(reply.events) == len(wanted)

    def _events_of(self, task: RoundTask, declared: Sequence[PrivacyEvent]) -> tuple[PrivacyEvent, ...]:
        """The part of a declared schedule that one round spends."""
        kind = "mean" if task.kind == "mean" else "gradient"
        steps = 1 if task.kind == "mean" else self._declaration.local_steps
        return tuple(replace(event, steps=steps) for event in declared if event.mechanism == kind)

    def _replies(self, messages: Sequence[Message]) -> list[tuple[Message, Reply]]:
        """Readable replies in the order of the sites' names; errors and unreadable ones are logged and dropped."""
        found: dict[str, tuple[Message, Reply]] = {}
        for message in self._grid.send_and_receive(messages, timeout=self._settings.federation.round_timeout):
            if message.has_error():
                logger.warning("node %d fails with code %d", message.metadata.src_node_id, message.error.code)
                continue
            try:
                reply = read_reply(message.content)
            except (DataError, ValueError) as error:
                logger.warning("node %d sends a reply that cannot be read: %s", message.metadata.src_node_id, error)
                continue
            if self._nodes and reply.site not in self._nodes:
                logger.warning("a reply names the unknown site %s; it is left out", reply.site)
                continue
            if self._nodes and self._nodes[reply.site] != message.metadata.src_node_id:
                logger.warning("another node answers in the name of %s; its reply is left out", reply.site)
                continue
            if reply.site in found:
                logger.warning("a second reply names %s; it is left out", reply.site)
                continue
            found[reply.site] = (message, reply)
        return [found[site] for site in sorted(found)]

    def _wait_for_nodes(self) -> list[int]:
        federation = self._settings.federation
        needed = federation.num_sites if federation.min_nodes == "auto" else federation.min_nodes
        deadline = time.monotonic() + federation.round_timeout
        while len(nodes := sorted(self._grid.get_node_ids())) < needed:
            if time.monotonic() > deadline:
                raise RunFailed(f"{len(nodes)} of {needed} sites came within {federation.round_timeout:g} s; start the others")
            time.sleep(POLL_SECONDS)
        return nodes

    def _require_active(self, what: str) -> None:
        sites = self.budget.sites
        if not sites:
            raise RunFailed("no site answered the declaration; look at the sites' logs")
        if not self.budget.active:
            reasons = ", ".join(f"{name}: {spending.reason}" for name, spending in sites.items())
            raise PrivacyRefused(f"every site refuses {what} ({reasons}); look at the sites' policies and ledgers")
