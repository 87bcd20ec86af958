"""Whether a site's update may be added up: of this task, of the declared cost, of the right shape and size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from mammo_fed.federation.messages import Reply
from mammo_fed.federation.task import RoundTask, task_hash
from mammo_fed.privacy.events import PrivacyEvent
from server.budget import SiteSpending

__all__ = ["complaint", "events_of"]


def events_of(task: RoundTask, declared: Sequence[PrivacyEvent], *, local_steps: int) -> tuple[PrivacyEvent, ...]:
    """The part of a declared schedule that one round spends."""
    kind = "mean" if task.kind == "mean" else "gradient"
    steps = 1 if task.kind == "mean" else local_steps
    return tuple(replace(event, steps=steps) for event in declared if event.mechanism == kind)


def complaint(
    reply: Reply,
    task: RoundTask,
    *,
    centre: NDArray[np.float32],
    flat: NDArray[np.float32],
    declared: SiteSpending,
    expected: tuple[PrivacyEvent, ...],
    under: str = "",
) -> str:
    """Why an update is left out, or an empty string if it may be added up.

    Args:
      reply: the site's, not a refusal.
      task: of the round, sent with `centre` and the model `flat`.
      declared: what the site said of itself when it took part.
      expected: the events that the round spends.
      under: of a masked update, the hash of the task under the round's masks; nothing more can be seen of it than its length.
    """
    if reply.events != expected:
        return f"reports undeclared events in round {task.round_index}"
    if (reply.weight, reply.patients) != (declared.images, declared.patients):
        return f"changes its public size in round {task.round_index}"
    wanted = under or task_hash(task, centre=centre, arrays=flat)
    if (reply.run_id, reply.round_index, reply.task_hash) != (task.run_id, task.round_index, wanted):
        return f"answers another task than round {task.round_index}"
    if under:
        alone = not len(reply.arrays) and reply.masked.shape == flat.shape
        return "" if alone else "sends a masked update of the wrong shape, or another one beside it"
    if reply.arrays.shape != flat.shape or not np.isfinite(reply.arrays).all():
        return "sends an update of the wrong shape or not finite"
    return ""
