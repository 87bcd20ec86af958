"""What a run asks and how far it has come, and that state on the server's disk: all to go on with it, and nothing of a patient.

Every aggregated model is written once, in a file of its own; `state.safetensors` names them, and is replaced in one step. A
crash or a power loss at any moment leaves the state of the last finished round.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from mammo_fed.common.private_files import write_private
from mammo_fed.errors import DataError, InvalidSetting, RunFailed
from mammo_fed.federation.protocol.task import DECLARATION_ROUND, NOT_STARTED, Declaration, RoundTask
from mammo_fed.federation.strategies.aggregator import Aggregator
from mammo_fed.server.rounds.admission import Admission
from mammo_fed.server.rounds.budget import BudgetView
from mammo_fed.server.rounds.delivery import Traffic
from mammo_fed.settings import FederationSettings

__all__ = ["Checkpoint", "CheckpointFolder", "DeclaredRun", "RunState"]

logger = logging.getLogger(__name__)

FORMAT: Final = 1
STATE_NAME: Final = "state.safetensors"
PAUSE_SECONDS: Final = 2.0


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


@dataclass(frozen=True, kw_only=True, eq=False)
class Checkpoint:
    """A run after one of its rounds.

    Attributes:
      declaration: canonical JSON of what was declared; holds the run's name.
      round_done: NOT_STARTED before the declaration, DECLARATION_ROUND after it, 0 after the private mean, then the round.
      round_begun: the last round whose tasks may have been sent; a round that may not be repeated is skipped by it.
      start: float32, the head that training starts from.
      feature_mean: float32, the aggregated private mean.
      models: float32, the aggregated model after each round.
      optimizer: state of the server's optimizer.
      view: the budget view, the sites' nodes and the traffic, as plain JSON values.
    """

    declaration: str
    round_done: int = NOT_STARTED
    round_begun: int = NOT_STARTED
    start: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))
    feature_mean: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))
    models: tuple[NDArray[np.float32], ...] = ()
    optimizer: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    view: Mapping[str, Any] = field(default_factory=dict)


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


class CheckpointFolder:
    """Where a run keeps its checkpoint.

    Args:
      folder: made at the first write, readable by its owner only.
      patience: seconds in which a disk that is full or away is tried again before the run stops.
    """

    def __init__(self, folder: Path, *, patience: float = 600.0) -> None:
        self._folder, self._patience = folder, patience

    def write(self, checkpoint: Checkpoint) -> None:
        """Return when the checkpoint is on the disk; until then the one before it stands.

        Raises:
          RunFailed: If the disk stays full or away.
        """
        deadline = time.monotonic() + self._patience
        while True:
            try:
                self._write(checkpoint)
            except OSError as error:
                if time.monotonic() > deadline:
                    raise RunFailed(
                        f"the run's state cannot be written ({error.strerror}); free space on the server, then resume the run"
                    ) from error
                logger.warning("the run's state cannot be written (%s); it is tried again", error.strerror)
                time.sleep(PAUSE_SECONDS)
            else:
                return

    def read(self) -> Checkpoint | None:
        """The last checkpoint that was written whole, or None where there is none.

        Raises:
          DataError: If it is damaged.
        """
        path = self._folder / STATE_NAME
        if not path.exists():
            return None
        try:
            with safe_open(path, framework="numpy") as file:
                about = json.loads(file.metadata()["checkpoint"])
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
            if about["format"] != FORMAT:
                raise DataError(f"the checkpoint is of format {about['format']}, not {FORMAT}; use the version that wrote it")
            models = tuple(self._model(index, digest) for index, digest in enumerate(about["models"]))
            return Checkpoint(
                declaration=about["declaration"],
                round_done=about["round_done"],
                round_begun=about["round_begun"],
                start=arrays.pop("initial"),
                feature_mean=arrays.pop("centre"),
                models=models,
                optimizer=arrays,
                view=about["view"],
            )
        except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(
                f"the run's checkpoint in {self._folder} cannot be read ({type(error).__name__}); restore the folder, or start "
                "another run"
            ) from error

    def remove(self) -> None:
        """Forget the run's state: its record is written."""
        for path in sorted(self._folder.glob("*.safetensors*")):
            path.unlink(missing_ok=True)
        if self._folder.exists():
            self._folder.rmdir()

    def _write(self, checkpoint: Checkpoint) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        digests = []
        for index, model in enumerate(checkpoint.models):
            content = save({"model": np.ascontiguousarray(model, np.float32)})
            digests.append(hashlib.sha256(content).hexdigest())
            path = self._path(index)
            if not path.exists() or hashlib.sha256(path.read_bytes()).hexdigest() != digests[-1]:
                write_private(path, content)
        about = {
            "format": FORMAT,
            "declaration": checkpoint.declaration,
            "round_done": checkpoint.round_done,
            "round_begun": checkpoint.round_begun,
            "models": digests,
            "view": checkpoint.view,
        }
        state = save(
            {
                "initial": np.ascontiguousarray(checkpoint.start),
                "centre": np.ascontiguousarray(checkpoint.feature_mean),
                **{name: np.ascontiguousarray(array) for name, array in checkpoint.optimizer.items()},
            },
            metadata={"checkpoint": json.dumps(about, allow_nan=False)},
        )
        write_private(self._folder / STATE_NAME, state)

    def _path(self, index: int) -> Path:
        return self._folder / f"round-{index + 1:05d}.safetensors"

    def _model(self, index: int, digest: str) -> NDArray[np.float32]:
        content = self._path(index).read_bytes()
        if hashlib.sha256(content).hexdigest() != digest:
            raise ValueError("a model is not the one that was written")
        with safe_open(self._path(index), framework="numpy") as file:
            model: NDArray[np.float32] = file.get_tensor("model")
        return model
