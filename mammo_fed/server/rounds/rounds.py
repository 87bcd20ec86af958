"""The rounds of a federation: declare, mean, train; valid replies only; who refuses is left out and named."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from flwr.app import Message
from flwr.serverapp import Grid
from numpy.typing import NDArray

from mammo_fed.errors import InvalidSetting, PrivacyRefused, RunFailed
from mammo_fed.federation.protocol.messages import Reply, reason_of, task_config
from mammo_fed.federation.protocol.task import Declaration, RoundTask
from mammo_fed.federation.strategies.aggregator import Aggregator, choose_sites
from mammo_fed.server.rounds.admission import Admission, Traffic
from mammo_fed.server.rounds.budget import BudgetView
from mammo_fed.server.rounds.checkpoint import Checkpoint, CheckpointFolder
from mammo_fed.server.rounds.delivery import Delivery, Waiting
from mammo_fed.server.rounds.masked_round import MaskedRound, most_sites
from mammo_fed.server.rounds.reply_checks import events_of, judge, longest_update
from mammo_fed.settings import Settings
from mammo_fed.training.recipe import Recipe

__all__ = ["Course", "Deployment", "Rounds"]

logger = logging.getLogger(__name__)


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


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """What a run between real machines has, and a simulation in one process does without.

    Attributes:
      checkpoints: where the run's state is kept, and found when it is resumed.
      roster: the registered sites' names by node.
    """

    checkpoints: CheckpointFolder
    roster: Callable[[], Mapping[int, str]]


class Rounds:
    """Runs a declared federation over a grid.

    Args:
      grid: carries the messages.
      settings, recipe: of the run.
      declaration, payload: what every site is asked to accept, and the public array that comes with it.
      on_round: called after the declaration (round -1) and every round with (round, rounds, budget view).
      deployment: of a run between real machines; None in a simulation.
      resumed: the state in which an earlier process left this run.
    """

    def __init__(
        self,
        grid: Grid,
        settings: Settings,
        recipe: Recipe,
        declaration: Declaration,
        payload: NDArray[np.float32],
        *,
        on_round: Callable[[int, int, BudgetView], None],
        deployment: Deployment | None = None,
        resumed: Checkpoint | None = None,
    ) -> None:
        self._grid, self._settings, self._recipe, self._declaration = grid, settings, recipe, declaration
        self._aggregator = Aggregator(settings.federation, noise_seed=settings.privacy.noise_seed)
        self._on_round, self._deployment = on_round, deployment
        self._delivery = Delivery(grid, resend_after=settings.federation.resend_after if deployment else math.inf)
        self.budget = BudgetView(delta=declaration.delta, accountant=declaration.accountant)
        self.traffic = Traffic()
        self._admission = Admission(
            Delivery(grid, resend_after=settings.federation.resend_after if deployment else math.inf),
            declaration,
            payload,
            budget=self.budget,
            traffic=self.traffic,
            roster=deployment.roster if deployment else dict,
            ask_again=deployment is not None,
        )
        self._delivery.follow(self._admission.current)
        self._centre = np.zeros(declaration.dims, np.float32)
        self._models: list[NDArray[np.float32]] = []
        self._initial: NDArray[np.float32] | None = None
        self._done = self._begun = -2
        self._failures = 0
        if resumed is not None:
            self._restore(resumed)

    @property
    def site_level_epsilon(self) -> float | None:
        """Epsilon of a site's part in all models so far; None without site-level noise."""
        return self._aggregator.site_level_epsilon

    def run(self, initial: NDArray[np.float32]) -> Course:
        """All rounds, from the declaration to the averaged model; without rounds no site is asked and the start is the model.

        Raises:
          PrivacyRefused: If every site refuses.
          RunFailed: If the sites do not come, or too few of them reply in a round.
        """
        if self._recipe.rounds == 0:
            return Course(centre=self._centre, models=(), flat=initial)
        # The very numbers of the first start: a site answers a repeated task only if nothing in it has changed.
        self._initial = initial if self._initial is None else self._initial
        if self._done < -1:
            self._open()
        first = 0 if self._declaration.mean_fraction > 0 else 1
        for index in range(max(first, self._done + 1), self._recipe.rounds + 1):
            self._admission.welcome()
            one_round = self._round if self._declaration.aggregation == "plain" else self._masked_round
            if index == 0:
                self._centre = one_round(index, np.zeros(self._declaration.dims, np.float32))
            else:
                self._models.append(one_round(index, self._models[-1] if self._models else self._initial))
            self._finish(index)
        self._say_what_sites_said()
        last = max(1, round(self._settings.federation.tail * len(self._models)))
        average: NDArray[np.float32] = np.stack(self._models[-last:]).mean(axis=0, dtype=np.float64).astype(np.float32)
        return Course(centre=self._centre, models=tuple(self._models), flat=average)

    def _open(self) -> None:
        """Declare the run; its name is on the disk before the first site hears it: nobody prices it twice."""
        self._keep()
        federation = self._settings.federation
        needed = federation.num_sites if federation.min_nodes == "auto" else federation.min_nodes
        self._admission.open(needed=needed, timeout=federation.round_timeout)
        self._require_active("the run")
        self._finish(-1)

    def _finish(self, index: int) -> None:
        self._done = self._begun = index
        self._keep()
        self._on_round(index, self._recipe.rounds, self.budget)

    def _round(self, index: int, flat: NDArray[np.float32]) -> NDArray[np.float32]:
        """One round, tried again while too few sites reply; a site that has replied is not asked again."""
        started, federation = time.perf_counter(), self._settings.federation
        task, chosen = self._task(index), self._chosen(index)
        valid: dict[str, Message] = {}
        answered: set[str] = set()
        for attempt in range(federation.max_failed_rounds):
            waiting = Waiting(
                enough=max(0, federation.min_replies - len(valid)),
                at_least=federation.round_min_wait,
                at_most=federation.round_timeout,
            )
            missing = [site for site in chosen if site not in answered]
            for reply, message in self._ask(task, missing, flat, waiting):
                answered.add(reply.site)
                if self._accept(reply, task, flat):
                    valid[reply.site] = message
            if len(valid) >= federation.min_replies or answered.issuperset(chosen):
                break
            logger.warning(
                "round %d: %d of %d sites replied, try %d of %d",
                index,
                len(answered),
                len(chosen),
                attempt + 1,
                federation.max_failed_rounds,
            )
        self._charge_silence(task, sorted(set(chosen) - answered))
        if len(valid) < federation.min_replies:
            self._require_active(f"round {index}")
            raise RunFailed(
                f"round {index}: {len(valid)} of {len(chosen)} sites replied with an update in {federation.max_failed_rounds} "
                f"tries, and federation.min_replies={federation.min_replies}; look at the sites' logs"
            )
        aggregated = self._aggregator.aggregate(index, [valid[site] for site in sorted(valid)])
        for site in self._aggregator.left_out:
            logger.warning("%s points against the others by round %d; its update is left out", site, index)
            self.budget.reject(site, round_index=index, reason="direction")
        self.traffic.seconds.append(time.perf_counter() - started)
        return aggregated

    def _masked_round(self, index: int, flat: NDArray[np.float32]) -> NDArray[np.float32]:
        """One round under masks, tried once: where it fails, what it cost stays charged and the model stays as it was."""
        started, task, chosen = time.perf_counter(), self._task(index), self._chosen(index)
        if self._begun >= index:
            # A process before this one may have sent it: sites would answer it under other masks, and never do.
            return self._abandon(task, chosen, flat, "it was begun before the server stopped")
        self._begun = index
        self._keep()
        nodes = [self._admission.node(site) for site in chosen]
        config = task_config(task, self._centre)
        messages = self._aggregator.configure(self._grid, nodes, round_index=index, flat=flat, config=config)
        attempt = MaskedRound(
            declaration=self._declaration,
            settings=self._settings.federation,
            admission=self._admission,
            delivery=self._delivery,
            traffic=self.traffic,
            accept=lambda reply, under: self._accept(reply, task, flat, under=under),
            longest=lambda site: self._longest(site, task, flat),
        )
        summed = attempt.run(task, chosen, messages[0].content, flat=flat, centre=self._centre)
        silent = sorted(set(attempt.sent) - attempt.answered)
        if summed is None:
            return self._abandon(task, silent, flat, attempt.failure)
        self._charge_silence(task, silent)
        self._failures = 0
        average, weight = summed
        aggregated = self._aggregator.take_average(index, average, weight=weight, asked=messages[0])
        self.traffic.seconds.append(time.perf_counter() - started)
        return aggregated

    def _abandon(self, task: RoundTask, silent: Sequence[str], flat: NDArray[np.float32], reason: str) -> NDArray[np.float32]:
        logger.warning("round %d gives no sum: %s; what it cost is charged, and the model stays", task.round_index, reason)
        self._charge_silence(task, silent)
        self.traffic.failed.append(task.round_index)
        self._failures += 1
        self._require_active(f"round {task.round_index}")
        if self._failures >= self._settings.federation.max_failed_rounds:
            raise RunFailed(
                f"{self._failures} rounds in a row gave no sum; look at the sites' logs, and check "
                "federation.secure.min_survivors"
            )
        return flat

    def _chosen(self, index: int) -> tuple[str, ...]:
        """The sites of a round; under masks no more than their threshold allows."""
        fraction = 1.0 if index == 0 else self._settings.federation.fraction
        active, seed = self.budget.active, self._settings.seed
        if self._declaration.aggregation != "plain":
            fraction = min(fraction, most_sites(self._declaration) / max(1, len(active)))
        return choose_sites(active, fraction=fraction, seed=seed, round_index=index)

    def _task(self, index: int) -> RoundTask:
        privacy, federation = self._settings.privacy, self._settings.federation
        return RoundTask(
            run_id=self._declaration.run_id,
            round_index=index,
            kind="mean" if index == 0 else "train",
            learning_rate=self._recipe.learning_rate,
            weight_decay=privacy.weight_decay,
            optimizer=privacy.optimizer,
            label_smoothing=privacy.label_smoothing,
            proximal=federation.proximal_mu if federation.strategy == "FedProx" else 0.0,
        )

    def _ask(
        self, task: RoundTask, sites: Sequence[str], flat: NDArray[np.float32], waiting: Waiting
    ) -> list[tuple[Reply, Message]]:
        """Send a task and return the readable replies, in the order of the sites' names."""
        nodes = [self._admission.node(site) for site in sites]
        config = task_config(task, self._centre)
        messages = self._aggregator.configure(self._grid, nodes, round_index=task.round_index, flat=flat, config=config)
        self.traffic.bytes_down += (flat.nbytes + self._centre.nbytes) * len(nodes)
        answers = self._delivery.exchange(
            {message.metadata.dst_node_id: message for message in messages},
            waiting=waiting,
            is_good=lambda message: not message.has_error() and not reason_of(message.content),
        )
        read = [(reply, message) for message, reply in self._admission.read(answers).values()]
        unknown = [reply.site for reply, _ in read if reply.site not in self.budget.sites]
        for site in unknown:
            logger.warning("a reply names the unknown site %s; it is left out", site)
        # A site that failed has told its operator why: it has not refused, and whatever it may have spent is charged.
        return [(reply, message) for reply, message in read if reply.site not in unknown and reply.reason != "internal"]

    def _accept(self, reply: Reply, task: RoundTask, flat: NDArray[np.float32], *, under: str = "") -> bool:
        """Whether a reply's update may be aggregated; its events are composed in any case. `under`: see server.judging."""
        if reply.reason:
            if reply.reason == "ledger":
                # It may have failed after the round was charged there.
                self._charge_silence(task, [reply.site])
            self.budget.refuse(reply)
            logger.warning("%s refuses round %d: %s", reply.site, task.round_index, reply.reason)
            return False
        self.traffic.bytes_up += reply.arrays.nbytes
        declared = self.budget.sites[reply.site]
        expected = events_of(task, declared.declared, local_steps=self._declaration.local_steps)
        # What counts is what was declared: a site that says it spent less has not thereby spent less.
        self.budget.spend(reply, round_index=task.round_index, events=expected)
        wrong = judge(
            reply,
            task,
            centre=self._centre,
            flat=flat,
            declared=declared,
            expected=expected,
            longest=self._longest(reply.site, task, flat),
            under=under,
        )
        if wrong is not None:
            logger.warning("%s %s; its update is left out", reply.site, wrong.text)
            self.budget.reject(reply.site, round_index=task.round_index, reason=wrong.reason)
        return wrong is None

    def _longest(self, name: str, task: RoundTask, flat: NDArray[np.float32]) -> float:
        site = self.budget.sites[name]
        expected = events_of(task, site.declared, local_steps=self._declaration.local_steps)
        return longest_update(self._settings.federation, self._declaration, task, expected, site=site, flat=flat)

    def _charge_silence(self, task: RoundTask, sites: Sequence[str]) -> None:
        for site in sites:
            logger.warning("%s sends no readable reply in round %d; the round is charged all the same", site, task.round_index)
            declared = self.budget.sites[site].declared
            events = events_of(task, declared, local_steps=self._declaration.local_steps)
            self.budget.charge_unanswered(site, round_index=task.round_index, events=events)

    def _keep(self) -> None:
        if self._deployment is None or self._initial is None:
            return
        view: dict[str, Any] = {
            "budget": self.budget.as_dict(),
            "nodes": self._admission.as_dict(),
            "traffic": asdict(self.traffic),
        }
        self._deployment.checkpoints.write(
            Checkpoint(
                declaration=self._declaration.to_json(),
                round_done=self._done,
                round_begun=self._begun,
                initial=self._initial,
                centre=self._centre,
                models=tuple(self._models),
                optimizer=self._aggregator.state(),
                view=view,
            )
        )

    def _restore(self, checkpoint: Checkpoint) -> None:
        if checkpoint.declaration != self._declaration.to_json():
            raise InvalidSetting(
                "the settings, weights or synthetic images are not those that the run was declared with; resume it as it was, "
                "or start another run"
            )
        self._done, self._begun, self._initial = checkpoint.round_done, checkpoint.round_begun, checkpoint.initial
        self._centre, self._models = checkpoint.centre, list(checkpoint.models)
        if checkpoint.round_done < -1:
            return
        self._aggregator.restore(checkpoint.optimizer)
        self.budget.restore(checkpoint.view["budget"])
        self._admission.restore(checkpoint.view["nodes"])
        traffic = checkpoint.view["traffic"]
        self.traffic.bytes_down, self.traffic.bytes_up = traffic["bytes_down"], traffic["bytes_up"]
        self.traffic.seconds[:], self.traffic.failed[:] = traffic["seconds"], traffic["failed"]

    def _say_what_sites_said(self) -> None:
        for name, site in self.budget.sites.items():
            if site.mismatches:
                logger.warning("%s: its own epsilon is not the server's in rounds %s", name, site.mismatches)
            logger.info(
                "%s reported its ledger at %s; `mammo-fed privacy verify --reported` holds it to that", name, site.ledger_head
            )

    def _require_active(self, what: str) -> None:
        sites = self.budget.sites
        if not sites:
            raise RunFailed("no site answered the declaration; look at the sites' logs")
        if not self.budget.active:
            reasons = ", ".join(f"{name}: {spending.reason}" for name, spending in sites.items())
            raise PrivacyRefused(f"every site refuses {what} ({reasons}); look at the sites' policies and ledgers")
