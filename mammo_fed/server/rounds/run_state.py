"""What a run asks and how far it has come: everything that a later process needs to go on with it, to and from a checkpoint."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

import numpy as np
from numpy.typing import NDArray

from mammo_fed.errors import InvalidSetting
from mammo_fed.federation.protocol.task import DECLARATION_ROUND, NOT_STARTED, Declaration, RoundTask
from mammo_fed.federation.strategies.aggregator import Aggregator
from mammo_fed.server.rounds.budget import BudgetView
from mammo_fed.server.rounds.checkpoint import Checkpoint
from mammo_fed.server.rounds.delivery import Admission, Traffic
from mammo_fed.settings import FederationSettings

__all__ = ["DeclaredRun", "RunState"]


@dataclass(frozen=True, kw_only=True, eq=False)
class DeclaredRun:
    """What is asked of the sites: the declaration, and what the tasks of all rounds have in common.

    Attributes:
      declaration: what every site is asked to accept.
      payload: float32, flat: the public array that comes with it.
      start: float32, flat: the head that training starts from.
      first_task: the task of the mean; those of training differ in their number and kind only.
      federation: whom a round asks, how long it waits and how it aggregates.
      seed: public; draws the sites of a round.
    """

    declaration: Declaration
    payload: NDArray[np.float32]
    start: NDArray[np.float32]
    first_task: RoundTask
    federation: FederationSettings
    seed: int


@dataclass(kw_only=True, eq=False)
class RunState:
    """A run's results so far, and those whose own state belongs to it.

    Attributes:
      declaration: of the run.
      aggregator, budget, admission, traffic: of the run; kept and restored with it.
      start: float32, the head that training starts from: the very numbers of the first process, since a site answers a repeated
        task only if nothing in it has changed.
      feature_mean: float32, shape (dims,): the aggregated private mean; zeros before there is one.
      models: the aggregated head after each training round, float32.
      round_done: the last finished round: NOT_STARTED, DECLARATION_ROUND, 0 for the private mean, then the training rounds.
      round_begun: the last round whose tasks may have been sent; a round that may not be repeated is skipped by it.
    """

    declaration: Declaration
    aggregator: Aggregator
    budget: BudgetView
    admission: Admission
    traffic: Traffic
    start: NDArray[np.float32]
    feature_mean: NDArray[np.float32]
    models: list[NDArray[np.float32]] = field(default_factory=list)
    round_done: int = NOT_STARTED
    round_begun: int = NOT_STARTED

    def to_checkpoint(self) -> Checkpoint:
        """The state as it is kept on the disk."""
        return Checkpoint(
            declaration=self.declaration.to_json(),
            round_done=self.round_done,
            round_begun=self.round_begun,
            start=self.start,
            feature_mean=self.feature_mean,
            models=tuple(self.models),
            optimizer=self.aggregator.state(),
            view={
                "budget": self.budget.as_dict(),
                "nodes": self.admission.as_dict(),
                "traffic": asdict(self.traffic),
            },
        )

    def restore(self, checkpoint: Checkpoint) -> None:
        """Take up what `to_checkpoint` gave.

        Raises:
          InvalidSetting: If the checkpoint is of a run that was declared in another way.
        """
        # By value: an earlier release may have written it, without the fields that came later.
        if Declaration.from_json(checkpoint.declaration) != self.declaration:
            raise InvalidSetting(
                "the settings, weights or synthetic images are not those that the run was declared with; resume it as it was, "
                "or start another run"
            )
        self.round_done, self.round_begun, self.start = checkpoint.round_done, checkpoint.round_begun, checkpoint.start
        self.feature_mean, self.models = checkpoint.feature_mean, list(checkpoint.models)
        if self.round_done < DECLARATION_ROUND:
            return
        self.aggregator.restore(checkpoint.optimizer)
        self.budget.restore(checkpoint.view["budget"])
        self.admission.restore(checkpoint.view["nodes"])
        traffic = checkpoint.view["traffic"]
        self.traffic.bytes_down, self.traffic.bytes_up = traffic["bytes_down"], traffic["bytes_up"]
        self.traffic.seconds[:], self.traffic.failed[:] = traffic["seconds"], traffic["failed"]
