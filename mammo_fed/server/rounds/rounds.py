"""The rounds of a federation: declare, mean, train; valid replies only; who refuses is left out and named."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from flwr.serverapp import Grid
from numpy.typing import NDArray

from mammo_fed.errors import RunFailed
from mammo_fed.federation.flwr_internals.link.post import LinkPost
from mammo_fed.federation.flwr_internals.messages import answer_bytes
from mammo_fed.federation.protocol.task import DECLARATION_ROUND
from mammo_fed.federation.strategies.aggregator import Aggregator, choose_sites
from mammo_fed.server.rounds.admission import Admission
from mammo_fed.server.rounds.attendance import Attendance
from mammo_fed.server.rounds.budget import BudgetView
from mammo_fed.server.rounds.delivery import Delivery, Presence, Traffic
from mammo_fed.server.rounds.masked_round import MaskedRound, most_sites
from mammo_fed.server.rounds.plain_round import PlainRound
from mammo_fed.server.rounds.reply_checks import ReplyChecks, SentTask
from mammo_fed.server.rounds.run_state import Checkpoint, CheckpointFolder, DeclaredRun, RunState

__all__ = ["Course", "Deployment", "Rounds"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, eq=False)
class Course:
    """What the rounds produced.

    Attributes:
      feature_mean: float32, shape (dims,): the aggregated private mean.
      models: the aggregated head after each training round, float32.
      parameters: float32: the released head, the average over the last rounds.
      budget: what every site has spent.
      traffic: bytes and seconds.
      site_level_epsilon: epsilon of a site's part in all models; None without site-level noise.
    """

    feature_mean: NDArray[np.float32]
    models: tuple[NDArray[np.float32], ...]
    parameters: NDArray[np.float32]
    budget: BudgetView
    traffic: Traffic
    site_level_epsilon: float | None


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """What a run between real machines has, and a simulation does without.

    Attributes:
      checkpoints: where the run's state is kept, and found when it is resumed.
      roster: the registered sites' names by node.
      most_images: what registered sites may declare at most, by name; a site that is not named may declare any number.
      attendance: file that says who is there.
      database: of the SuperLink, in which tasks lie that nobody has fetched.
    """

    checkpoints: CheckpointFolder
    roster: Callable[[], Mapping[int, str]]
    most_images: Callable[[], Mapping[str, int]] = dict
    attendance: Path | None = None
    database: Path | None = None


class Rounds:
    """Decides what is asked of whom in which round, and what of it counts.

    Args:
      grid: carries the messages.
      run: what was declared.
      on_round: called after the declaration (DECLARATION_ROUND) and every round with (round, rounds, budget view).
      on_declared: called with the budget view once the sites have answered the declaration, before any of them trains: when the
        run begins, and when the sites of a simulation that goes on were found again. What it raises ends the run.
      deployment: of a run between real machines; None in a simulation.
      checkpoints: where the state is kept after every round; None keeps none.
      resumed: the state in which an earlier process left this run.
    """

    def __init__(
        self,
        grid: Grid,
        run: DeclaredRun,
        *,
        on_round: Callable[[int, int, BudgetView], None],
        on_declared: Callable[[BudgetView], None] = lambda _: None,
        deployment: Deployment | None = None,
        checkpoints: CheckpointFolder | None = None,
        resumed: Checkpoint | None = None,
    ) -> None:
        declaration, federation = run.declaration, run.federation
        resend_after = federation.resend_after if deployment else math.inf
        budget = BudgetView(delta=declaration.delta, accountant=declaration.accountant)
        traffic = Traffic()
        most_bytes = answer_bytes(max(declaration.dims, declaration.head.num_parameters))
        post = LinkPost(grid, deployment.database, most_bytes=most_bytes) if deployment else None
        self._attendance = (
            Attendance(deployment.attendance, deployment.roster, rounds=declaration.rounds)
            if deployment and deployment.attendance
            else None
        )
        admission = Admission(
            Delivery(grid, resend_after=resend_after, all_come=deployment is None, most_bytes=most_bytes, post=post),
            declaration,
            run.payload,
            budget=budget,
            traffic=traffic,
            roster=deployment.roster if deployment else dict,
            most_images=deployment.most_images if deployment else dict,
            ask_again=deployment is not None,
        )
        delivery = Delivery(grid, resend_after=resend_after, all_come=deployment is None, most_bytes=most_bytes, post=post)
        delivery.follow(admission.current)
        self._run, self._on_round, self._on_declared = run, on_round, on_declared
        self._deployed = deployment is not None
        self._checkpoints = checkpoints
        self._failures = 0
        self._outsized: set[str] = set()
        self._state = RunState(
            declaration=declaration,
            aggregator=Aggregator(federation, noise_seed=declaration.noise_seed),
            budget=budget,
            admission=admission,
            traffic=traffic,
            start=run.start,
            feature_mean=np.zeros(declaration.dims, np.float32),
        )
        self._checks = ReplyChecks(declaration=declaration, max_update_norm=federation.max_update_norm, budget=budget)
        self._plain = PlainRound(
            settings=federation,
            needed=federation.fewest_replies,
            grid=grid,
            admission=admission,
            delivery=delivery,
            traffic=traffic,
            presence=self._attendance or Presence(),
            checks=self._checks,
            aggregator=self._state.aggregator,
        )
        if resumed is not None:
            self._state.restore(resumed)
            if self._attendance is not None:
                self._attendance.resume(max(self._state.round_done + 1, self._first))

    def run(self) -> Course:
        """All rounds, from the declaration to the averaged model; without rounds no site is asked and the start is the model.

        Raises:
          PrivacyRefused: If every site refuses.
          RunFailed: If the sites do not come, or too few of them reply in a round.
        """
        state, declaration = self._state, self._run.declaration
        if declaration.rounds == 0:
            return self._course(self._run.start)
        if state.round_done < DECLARATION_ROUND:
            self._open()
        elif not self._deployed:
            self._find_again()
        one_round = self._plain.run if declaration.aggregation == "plain" else self._masked_round
        for index in range(max(self._first, state.round_done + 1), declaration.rounds + 1):
            self._look_around(index)
            self._judge_sizes(index)
            if index == 0:
                state.feature_mean = one_round(self._sent(index, np.zeros(declaration.dims, np.float32)), self._chosen(index))
            else:
                head = state.models[-1] if state.models else state.start
                state.models.append(one_round(self._sent(index, head), self._chosen(index)))
            self._finish(index)
        self._log_reports()
        last = max(1, round(self._run.federation.tail * len(state.models)))
        average: NDArray[np.float32] = np.stack(state.models[-last:]).mean(axis=0, dtype=np.float64).astype(np.float32)
        return self._course(average)

    @property
    def _first(self) -> int:
        """Number of the first round."""
        return 0 if self._run.declaration.mean_fraction > 0 else 1

    def _look_around(self, index: int) -> None:
        """Take in who is new or back, and let go of who was revoked."""
        state, presence = self._state, self._plain.presence
        state.admission.next_round()
        if self._attendance is None:
            return
        names = {state.admission.site(node) for node in self._plain.delivery.heard_of()}
        presence.back(name for name in names if name)
        for site in sorted(presence.revoked(state.budget.active)):
            state.budget.revoke(site, round_index=index)
        self._attendance.refused(set(state.budget.sites) - set(state.budget.active))
        self._checks.require_active(f"round {index}")

    def _course(self, parameters: NDArray[np.float32]) -> Course:
        state = self._state
        return Course(
            feature_mean=state.feature_mean,
            models=tuple(state.models),
            parameters=parameters,
            budget=state.budget,
            traffic=state.traffic,
            site_level_epsilon=state.aggregator.site_level_epsilon,
        )

    def _judge_sizes(self, index: int) -> None:
        """What sites declare is their own word: who is out of proportion is named, or turned away under masks."""
        self._checks.name_outsized(self._outsized)
        if self._run.declaration.aggregation != "plain":
            self._checks.bound_shares(self._run.federation.weight_share, round_index=index)

    def _open(self) -> None:
        """Declare the run; its name is on the disk before the first site hears it: nobody prices it twice."""
        self._keep()
        federation = self._run.federation
        needed = federation.num_sites if federation.min_nodes == "auto" else federation.min_nodes
        self._plain.presence.begin(DECLARATION_ROUND, attempt=1, seconds=federation.round_timeout, sites=())
        self._state.admission.open(needed=needed, timeout=federation.round_timeout)
        self._checks.require_active("the run")
        self._finish(DECLARATION_ROUND)

    def _find_again(self) -> None:
        """Ask simulated sites for the node that each has now: an engine numbers them anew, and nobody has registered them.

        They answer the declaration that they accepted as before, and are charged nothing for it.
        """
        state, bytes_down = self._state, self._state.traffic.bytes_down
        state.admission.forget()
        state.admission.open(needed=self._run.federation.num_sites, timeout=self._run.federation.round_timeout)
        # A run that nothing interrupted asks once.
        state.traffic.bytes_down = bytes_down
        if lost := sorted(set(state.budget.active) - set(state.admission.as_dict())):
            raise RunFailed(f"simulated sites do not answer any more ({', '.join(lost)}); look at the run's log")
        self._on_declared(state.budget)

    def _finish(self, index: int) -> None:
        self._state.round_done = self._state.round_begun = index
        self._keep()
        if index == DECLARATION_ROUND:
            self._on_declared(self._state.budget)
        self._on_round(index, self._run.declaration.rounds, self._state.budget)

    def _keep(self) -> None:
        if self._checkpoints is not None:
            self._checkpoints.write(self._state.to_checkpoint())

    def _masked_round(self, sent: SentTask, chosen: Sequence[str]) -> NDArray[np.float32]:
        """One round under masks, tried once: where it fails, what it cost stays charged and the parameters stay."""
        state, index = self._state, sent.task.round_index
        if state.round_begun >= index:
            # A process before this one may have sent it: sites would answer it under other masks, and never do.
            asked = [site for site in chosen if self._attendance is None or self._attendance.may_have_task(site, index)]
            self._checks.charge_unanswered(sent, asked)
            return self._abandon(sent, "it was begun before the server stopped")
        state.round_begun = index
        self._keep()
        plain = self._plain
        attempt = MaskedRound(
            declaration=self._run.declaration,
            settings=plain.settings,
            grid=plain.grid,
            admission=plain.admission,
            delivery=plain.delivery,
            traffic=plain.traffic,
            presence=plain.presence,
            checks=plain.checks,
            aggregator=plain.aggregator,
        )
        aggregated = attempt.run(sent, chosen)
        if aggregated is None:
            return self._abandon(sent, attempt.failure)
        self._failures = 0
        return aggregated

    def _abandon(self, sent: SentTask, reason: str) -> NDArray[np.float32]:
        index = sent.task.round_index
        logger.warning("round %d gives no sum: %s; what it cost is charged, and the model stays", index, reason)
        self._state.traffic.failed.append(index)
        self._failures += 1
        self._checks.require_active(f"round {index}")
        if self._failures >= self._run.federation.max_failed_rounds:
            raise RunFailed(
                f"{self._failures} rounds in a row gave no sum; look at the sites' logs, and check "
                "federation.secure.min_survivors"
            )
        return sent.parameters

    def _sent(self, index: int, parameters: NDArray[np.float32]) -> SentTask:
        first = self._run.first_task
        task = first if index == 0 else replace(first, round_index=index, kind="train")
        return SentTask(task=task, parameters=parameters, feature_mean=self._state.feature_mean)

    def _chosen(self, index: int) -> tuple[str, ...]:
        """The sites of a round; under masks no more than their threshold allows.

        Sites that are asked on the side come beside those that are drawn from the others, where they would be drawn from all.
        """
        active = self._state.budget.active
        aside = self._plain.presence.aside(active)
        drawn = self._draw(active, index)
        if not aside:
            return drawn
        waited = self._draw([site for site in active if site not in aside], index)
        beside = [site for site in drawn if site in aside]
        if self._run.declaration.aggregation != "plain":
            beside = beside[: max(0, most_sites(self._run.declaration) - len(waited))]
        return tuple(site for site in active if site in {*waited, *beside})

    def _draw(self, sites: Sequence[str], index: int) -> tuple[str, ...]:
        declaration = self._run.declaration
        fraction = 1.0 if index == 0 else self._run.federation.fraction
        if declaration.aggregation != "plain":
            fraction = min(fraction, most_sites(declaration) / max(1, len(sites)))
        return choose_sites(sites, fraction=fraction, seed=self._run.seed, round_index=index)

    def _log_reports(self) -> None:
        for name, site in self._state.budget.sites.items():
            if site.mismatches:
                logger.warning("%s: its own epsilon is not the server's in rounds %s", name, site.mismatches)
            logger.info(
                "%s reported its ledger at %s; compare with `mammo-fed privacy verify --reported`", name, site.ledger_head
            )
