"""Whether a site may take part, and its updates be added up: as declared, of this task, of the right shape and size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from mammo_fed.federation.protocol.messages import Reply
from mammo_fed.federation.protocol.site_schedule import site_sample_rate
from mammo_fed.federation.protocol.task import Declaration, RoundTask, task_hash
from mammo_fed.federation.protocol.update_bound import update_reach
from mammo_fed.privacy.accounting.pricing import epsilon
from mammo_fed.privacy.events import PrivacyEvent
from mammo_fed.reporting.record.sections import RejectionReason
from mammo_fed.server.rounds.budget import SiteSpending
from mammo_fed.settings import FederationSettings

__all__ = ["Rejection", "declaration_fault", "events_of", "judge", "longest_update"]


# Site and server may run accountants of two versions; beyond that their plans are the same.
LEAST_SPENT: Final = 0.98
MOST_SPENT: Final = 1.001


@dataclass(frozen=True, kw_only=True)
class Rejection:
    """Why something that a site sent is left out.

    Attributes:
      reason: for the record.
      text: for the server's log, behind the site's name.
    """

    reason: RejectionReason
    text: str


def events_of(task: RoundTask, declared: Sequence[PrivacyEvent], *, local_steps: int) -> tuple[PrivacyEvent, ...]:
    """The part of a declared schedule that one round spends."""
    kind = "mean" if task.kind == "mean" else "gradient"
    steps = 1 if task.kind == "mean" else local_steps
    return tuple(replace(event, steps=steps) for event in declared if event.mechanism == kind)


def declaration_fault(asked: Declaration, reply: Reply) -> Rejection | None:
    """What is wrong with the schedule that a site declares, or None: releases, unit, sampling, clipping, and its price.

    The server prices the declared events itself. With less noise than the target takes, the guarantee would not hold; with
    more, the site would claim to spend less than every honest site does.
    """
    gradient, mean = asked.rounds * asked.local_steps, int(asked.mean_fraction > 0)
    wanted = {"gradient": gradient} | ({"mean": 1} if mean else {})
    events = {event.mechanism: event for event in reply.events}
    whole = len(events) == len(reply.events) and {name: event.steps for name, event in events.items()} == wanted
    if not whole or any(event.noise_shares != asked.noise_shares for event in reply.events):
        return Rejection(reason="schedule", text="declares another schedule than it was asked for")
    if any(event.unit != asked.unit for event in reply.events):
        return Rejection(reason="unit", text=f"declares another unit of privacy than {asked.unit}")
    rates = {"gradient": site_sample_rate(asked, public_images=reply.weight), "mean": 1.0}
    if any(not math.isclose(event.sample_rate, rates[name]) for name, event in events.items()):
        return Rejection(reason="sampling", text="declares another sampling rate than its public size gives")
    norms = {"gradient": asked.clipping_norm, "mean": asked.mean_clipping_norm}
    if any(not math.isclose(event.clipping_norm, norms[name]) for name, event in events.items()):
        return Rejection(reason="clipping", text="declares another clipping norm than it was asked for")
    target, price = asked.target_epsilon, epsilon(reply.events, delta=asked.delta, accountant=asked.accountant)
    if not target * LEAST_SPENT <= price <= target * MOST_SPENT:
        text = f"declares events of epsilon {price:.4g} for a target of {target:.4g}"
        return Rejection(reason="noise", text=text)
    return None


def longest_update(
    settings: FederationSettings,
    declaration: Declaration,
    task: RoundTask,
    expected: Sequence[PrivacyEvent],
    *,
    site: SiteSpending,
    flat: NDArray[np.float32],
) -> float:
    """Largest norm of a site's change of `flat` that is taken in: as set, or what the site's declared schedule can reach."""
    if settings.max_update_norm != "auto":
        return settings.max_update_norm
    return update_reach(declaration, task, expected, images=site.images, patients=site.patients, flat=flat)


def judge(
    reply: Reply,
    task: RoundTask,
    *,
    centre: NDArray[np.float32],
    flat: NDArray[np.float32],
    declared: SiteSpending,
    expected: tuple[PrivacyEvent, ...],
    longest: float = math.inf,
    under: str = "",
) -> Rejection | None:
    """Why an update is left out, or None if it may be added up.

    Args:
      reply: the site's, not a refusal.
      task: of the round, sent with `centre` and the model `flat`.
      declared: what the site said of itself when it took part.
      expected: the events that the round spends.
      longest: largest norm of a change of what was sent; see mammo_fed.federation.protocol.update_bound.
      under: of a masked update, the hash of the task under the round's masks; nothing more can be seen of it than its length.
    """
    number = task.round_index
    if reply.events != expected:
        return Rejection(reason="events", text=f"reports undeclared events in round {number}")
    if (reply.weight, reply.patients) != (declared.images, declared.patients):
        return Rejection(reason="size", text=f"changes its public size in round {number}")
    wanted = under or task_hash(task, centre=centre, arrays=flat)
    if (reply.run_id, reply.round_index, reply.task_hash) != (task.run_id, number, wanted):
        return Rejection(reason="task", text=f"answers another task than round {number}")
    if under:
        if len(reply.arrays) or reply.masked.shape != flat.shape:
            return Rejection(reason="shape", text="sends a masked update of the wrong shape, or another one beside it")
        return None
    if reply.arrays.shape != flat.shape:
        return Rejection(reason="shape", text="sends an update of the wrong shape")
    if not np.isfinite(reply.arrays).all():
        return Rejection(reason="not_finite", text="sends an update that is not finite")
    length = float(np.linalg.norm(reply.arrays.astype(np.float64) - flat))
    if length > longest:
        return Rejection(reason="norm", text=f"sends an update of norm {length:.4g} in round {number}, above {longest:.4g}")
    return None
