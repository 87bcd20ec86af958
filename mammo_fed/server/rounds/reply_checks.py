"""Whether a site may take part, and its updates be added up: as declared, of this task, of the right shape and size.

A round is charged in any case: what counts is what was declared, whatever a site answers and whether it answers at all.

How far an honest site's update can be from the model it was sent follows from what it declared: every unit's part in a step is
clipped, and the noise is Gaussian of a known scale. So the norm of what a site releases has a bound that follows from public
numbers alone; whatever is longer was not made by the declared steps.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom, chi

from mammo_fed.errors import PrivacyRefused, RunFailed, VersionMismatch
from mammo_fed.federation.protocol.reasons import RejectionReason
from mammo_fed.federation.protocol.replies import Accepted, Refusal, Update
from mammo_fed.federation.protocol.site_schedule import site_sample_rate
from mammo_fed.federation.protocol.task import Declaration, RoundTask, task_hash
from mammo_fed.privacy.accounting.pricing import epsilon
from mammo_fed.privacy.events import PrivacyEvent, full_batch
from mammo_fed.server.rounds.budget import BudgetView, SiteSpending, outsized_text, reason_text

__all__ = [
    "Rejection",
    "ReplyChecks",
    "SentTask",
    "declaration_fault",
    "events_of",
    "refusal_of_version",
    "update_bound",
    "validate",
    "weight_fault",
]

logger = logging.getLogger(__name__)

# Site and server may run accountants of two versions; beyond that their plans are the same.
LEAST_SPENT: Final = 0.98
MOST_SPENT: Final = 1.001

# Probability that an honest update is longer than its bound, for the noise and for the sampling each.
CHANCE: Final = 1e-9
# PyTorch's defaults for AdamW.
BETA_1, BETA_2 = 0.9, 0.999
# Sites compute in single precision.
ROUNDING: Final = 1e-4
STEP_ROUNDING: Final = 1e-6


@dataclass(frozen=True, kw_only=True)
class Rejection:
    """Why something that a site sent is left out.

    Attributes:
      reason: for the record.
      text: for the server's log, behind the site's name.
    """

    reason: RejectionReason
    text: str


@dataclass(frozen=True, kw_only=True, eq=False)
class SentTask:
    """What the sites of a round are sent.

    Attributes:
      task: of the round.
      parameters: float32, flat: the head, or zeros for the mean.
      feature_mean: float32, shape (dims,): the aggregated private mean, zeros before there is one.
    """

    task: RoundTask
    parameters: NDArray[np.float32]
    feature_mean: NDArray[np.float32]

    @cached_property
    def hash(self) -> str:
        """What an answer to this task names."""
        return task_hash(self.task, feature_mean=self.feature_mean, parameters=self.parameters)


def refusal_of_version(error: VersionMismatch, site: str) -> Refusal:
    """The refusal that a site's message of another version of the protocol is, of which nothing else is read."""
    return Refusal(site=site, public_images=0, public_patients=0, reason="version", protocol_version=error.theirs)


def events_of(task: RoundTask, declared: Sequence[PrivacyEvent], *, local_steps: int) -> tuple[PrivacyEvent, ...]:
    """The part of a declared schedule that one round spends."""
    kind = "mean" if task.kind == "mean" else "gradient"
    steps = 1 if task.kind == "mean" else local_steps
    return tuple(replace(event, steps=steps) for event in declared if event.mechanism == kind)


def declaration_fault(asked: Declaration, reply: Accepted) -> Rejection | None:
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
    rates = {"gradient": site_sample_rate(asked, public_images=reply.public_images), "mean": 1.0}
    if any(not math.isclose(event.sample_rate, rates[name]) for name, event in events.items()):
        return Rejection(reason="sampling", text="declares another sampling rate than its public size gives")
    norms = {"gradient": asked.clipping_norm, "mean": asked.mean_clipping_norm}
    if any(not math.isclose(event.clipping_norm, norms[name]) for name, event in events.items()):
        return Rejection(reason="clipping", text="declares another clipping norm than it was asked for")
    target = asked.target_epsilon
    try:
        price = epsilon(reply.events, delta=asked.delta, accountant=asked.accountant)
    except (ArithmeticError, MemoryError, ValueError):
        return Rejection(reason="noise", text="declares events that have no price")
    if not target * LEAST_SPENT <= price <= target * MOST_SPENT:
        text = f"declares events of epsilon {price:.4g} for a target of {target:.4g}"
        return Rejection(reason="noise", text=text)
    return None


def weight_fault(reply: Accepted, most_images: Mapping[str, int]) -> Rejection | None:
    """Why a site may not weigh what it declares: more images than the coordinator registered it for; None if it may."""
    most = most_images.get(reply.site, reply.public_images)
    if reply.public_images <= most:
        return None
    text = (
        f"declares {reply.public_images} images and is registered for {most} (correct public_images at the site, or "
        "flower-server register --max-images, and resume)"
    )
    return Rejection(reason="weight", text=text)


def validate(
    reply: Update,
    sent: SentTask,
    *,
    site: SiteSpending,
    expected: Sequence[PrivacyEvent],
    max_norm: float,
    masked_hash: str = "",
) -> Rejection | None:
    """Why an update is left out, or None if it may be added up.

    Args:
      reply: the site's.
      sent: what it must answer.
      site: what the site said of itself when it took part.
      expected: the events that the round spends.
      max_norm: largest norm of a change of what was sent; see mammo_fed.server.rounds.reply_checks.
      masked_hash: of a masked update, the hash of the task under the round's masks; nothing more can be seen of the update than
        its length.
    """
    task, parameters = sent.task, sent.parameters
    number = task.round_index
    if reply.events != tuple(expected):
        return Rejection(reason="events", text=f"reports undeclared events in round {number}")
    if (reply.public_images, reply.public_patients) != (site.images, site.patients):
        return Rejection(reason="size", text=f"changes its public size in round {number}")
    if (reply.run_id, reply.round_index, reply.task_hash) != (task.run_id, number, masked_hash or sent.hash):
        return Rejection(reason="task", text=f"answers another task than round {number}")
    if masked_hash:
        if len(reply.parameters) or reply.masked.shape != parameters.shape:
            return Rejection(reason="shape", text="sends a masked update of the wrong shape, or another one beside it")
        return None
    if len(reply.masked):
        return Rejection(reason="shape", text="sends a masked update beside one in plaintext")
    if reply.parameters.shape != parameters.shape:
        return Rejection(reason="shape", text="sends an update of the wrong shape")
    if not np.isfinite(reply.parameters).all():
        return Rejection(reason="not_finite", text="sends an update that is not finite")
    norm = float(np.linalg.norm(reply.parameters.astype(np.float64) - parameters))
    if norm > max_norm:
        return Rejection(reason="norm", text=f"sends an update of norm {norm:.4g} in round {number}, above {max_norm:.4g}")
    return None


@dataclass(frozen=True, kw_only=True)
class ReplyChecks:
    """Charges what a round spends and says whose update may be added up.

    Attributes:
      declaration: of the run.
      max_update_norm: as set, or "auto": what a site's declared schedule can reach.
      budget: where rounds are charged and refusals and rejections noted.
    """

    declaration: Declaration
    max_update_norm: float | Literal["auto"]
    budget: BudgetView

    def accept(self, reply: Update | Refusal, sent: SentTask, *, masked_hash: str = "") -> Update | None:
        """The update if it may be added up; its events are charged in any case. `masked_hash`: see `validate`."""
        number = sent.task.round_index
        if isinstance(reply, Refusal) and reply.reason == "unready":
            logger.warning("%s cannot answer round %d, which costs it nothing; it is declared to again", reply.site, number)
            return None
        if isinstance(reply, Refusal):
            if reply.reason in ("ledger", "version"):
                # It may have failed after the round was charged there, or have answered it before its software was changed.
                self.charge_unanswered(sent, [reply.site])
            self.budget.refuse(reply, round_index=number)
            logger.warning("%s refuses round %d: %s", reply.site, number, reason_text(reply.reason, reply.protocol_version))
            return None
        site, expected = self.budget.sites[reply.site], self._expected(reply.site, sent)
        # What counts is what was declared: a site that says it spent less has not thereby spent less.
        self.budget.spend(reply, round_index=number, events=expected)
        max_norm = self.max_norm(reply.site, sent)
        fault = validate(reply, sent, site=site, expected=expected, max_norm=max_norm, masked_hash=masked_hash)
        if fault is not None:
            logger.warning("%s %s; its update is left out", reply.site, fault.text)
            self.budget.reject(reply.site, round_index=number, reason=fault.reason)
            return None
        return reply

    def max_norm(self, name: str, sent: SentTask) -> float:
        """Largest norm of a site's change of what was sent that is taken in."""
        if self.max_update_norm != "auto":
            return self.max_update_norm
        site, expected = self.budget.sites[name], self._expected(name, sent)
        return update_bound(
            self.declaration,
            sent.task,
            expected,
            public_images=site.images,
            public_patients=site.patients,
            parameters=sent.parameters,
        )

    def charge_unanswered(self, sent: SentTask, sites: Iterable[str]) -> None:
        """Charge a round to sites that were sent its task and sent nothing readable back."""
        number = sent.task.round_index
        for site in sites:
            logger.warning("%s sends no readable reply in round %d; the round is charged all the same", site, number)
            self.budget.charge_unanswered(site, round_index=number, events=self._expected(site, sent))

    def reject_unreadable(self, sent: SentTask, sites: Iterable[str]) -> None:
        """Note for the record that sites of the run sent something in a round that cannot be read."""
        for site in sorted(set(sites) & self.budget.sites.keys()):
            self.budget.reject(site, round_index=sent.task.round_index, reason="unreadable")

    def note_missed(self, sent: SentTask, sites: Iterable[str]) -> None:
        """Note a round that sites have no part in, and that costs them nothing: its task never reached them."""
        for site in sites:
            self.budget.note_missed(site, round_index=sent.task.round_index)

    def require_active(self, what: str) -> None:
        """Check that a site is left for `what`.

        Raises:
          RunFailed: If no site answered the declaration.
          PrivacyRefused: If every site refuses.
        """
        sites = self.budget.sites
        if not sites:
            raise RunFailed("no site answered the declaration; look at the sites' logs")
        if not self.budget.active:
            reasons = ", ".join(f"{name}: {spending.reason_text}" for name, spending in sites.items())
            raise PrivacyRefused(
                f"every site refuses {what} ({reasons}); each site's own log says why, and its policy and ledger decide"
            )

    def bound_shares(self, max_share: float, *, round_index: int) -> None:
        """Turn away who declares a larger share of all images than `max_share`, where sites weigh their own updates.

        What it sends could not be weighed down, and the sum is divided by what sites declare.
        """
        images = {site.site: site.images for site in self.budget.active_spending}
        total = sum(images.values())
        for site, count in images.items():
            if len(images) > 1 and count > max_share * total:
                logger.warning(
                    "%s declares %d of %d images, more than federation.max_weight_share=%g of them; it is left out, and its "
                    "public_images or that setting must change before it can come back",
                    site,
                    count,
                    total,
                    max_share,
                )
                self.budget.turn_away(site, round_index=round_index, reason="weight")

    def name_outsized(self, named: set[str]) -> None:
        """Warn once of every site that declares out of proportion; `named` are those of whom it was said before."""
        for site in sorted(set(self.budget.outsized) - named):
            logger.warning("%s", outsized_text(site, self.budget))
            named.add(site)

    def _expected(self, site: str, sent: SentTask) -> tuple[PrivacyEvent, ...]:
        return events_of(sent.task, self.budget.sites[site].declared, local_steps=self.declaration.local_steps)


def update_bound(
    declaration: Declaration,
    task: RoundTask,
    events: Sequence[PrivacyEvent],
    *,
    public_images: int,
    public_patients: int,
    parameters: NDArray[np.float32],
) -> float:
    """Largest norm of (update - `parameters`) that the declared steps of one round can have, up to a chance of 2e-9.

    The signal is bounded in the worst case (every unit at the clipping norm, all in one direction; as many units as Poisson
    sampling may draw), the noise by the quantile of its norm. It is a bound on honest sites: a hostile site stays below it at
    will, and has then no more say than one whose patients all pull the same way.

    Args:
      declaration, task: of the round.
      events: what the round spends, as the site declared it; one event.
      public_images, public_patients: public size of the site.
      parameters: float32, what the site was sent: the head, or zeros for the mean.

    Returns:
      The bound, >= 0; infinity where synthetic images are trained on next to the site's own and their gradient has no bound
      (another head than the linear one, or features of any norm, with plain steps).

    Source: quantiles of the chi and binomial distributions; for AdamW the Cauchy-Schwarz inequality, coordinate by coordinate.
    """
    (event,) = events
    images_in_all = public_images + declaration.mixed_images
    # A site that claims more patients than images would claim a longer reach.
    units = (min(public_patients, public_images) if event.unit == "patient" else public_images) + declaration.mixed_images
    if task.kind == "mean":
        signal = event.clipping_norm * units / images_in_all
        if declaration.model.norm == "unit":
            signal = min(signal, 1.0)
        noise = event.noise_multiplier * event.clipping_norm / images_in_all
        return (signal + noise * _noise_bound(len(parameters))) * (1 + ROUNDING)
    if declaration.mechanism == "dp_sgd" and task.optimizer == "adamw":
        length = _adamw_bound(declaration, task, event, parameters)
    else:
        length = _descent_bound(declaration, task, event, units=units, images_in_all=images_in_all, parameters=parameters)
    return length * (1 + ROUNDING) + STEP_ROUNDING * event.steps * float(np.linalg.norm(parameters))


def _descent_bound(
    declaration: Declaration,
    task: RoundTask,
    event: PrivacyEvent,
    *,
    units: int,
    images_in_all: int,
    parameters: NDArray[np.float32],
) -> float:
    """Bound of plain steps: every gradient enters with the factor that later steps leave of it."""
    # Full-batch descent knows no weight decay.
    decay = task.weight_decay if declaration.mechanism == "dp_sgd" else 0.0
    factors = _factors(task, event.steps, decay=decay)
    step = task.learning_rate * event.clipping_norm / (event.sample_rate * images_in_all)
    drawn = units * event.steps
    if event.sample_rate < 1:
        drawn = int(binom.isf(CHANCE, drawn, event.sample_rate))
        signal = float(factors.max()) * drawn
    else:
        signal = units * float(factors.sum())
    noise = event.noise_multiplier * math.sqrt(float(factors @ factors)) * _noise_bound(len(parameters))
    pulled = task.learning_rate * (decay * float(np.linalg.norm(parameters)) + _public_gradient(declaration))
    return step * (signal + noise) + pulled * float(factors.sum())


def _adamw_bound(declaration: Declaration, task: RoundTask, event: PrivacyEvent, parameters: NDArray[np.float32]) -> float:
    """Bound of AdamW's steps, which bound every coordinate whatever the gradient is."""
    first = (task.round_index - 1) * event.steps if declaration.keep_optimizer else 0
    # A site that missed rounds, or lost its optimizer, has taken fewer steps.
    ratio = max(_largest_ratio(step) for step in range(1, first + event.steps + 1))
    pulled = task.weight_decay * float(np.linalg.norm(parameters))
    factors = _factors(task, event.steps, decay=task.weight_decay)
    return task.learning_rate * (ratio * math.sqrt(len(parameters)) + pulled) * float(factors.sum())


def _largest_ratio(step: int) -> float:
    """Bound on AdamW's first moment over the root of its second, both corrected for their start, at the given step from 1."""
    quotient = BETA_1**2 / BETA_2
    weights = (1 - quotient**step) / (1 - quotient)
    second = (1 - BETA_2**step) / (1 - BETA_2)
    return (1 - BETA_1) / (1 - BETA_1**step) * math.sqrt(second * weights)


def _factors(task: RoundTask, steps: int, *, decay: float) -> NDArray[np.float64]:
    """What the last step leaves of every step's own change, from the last step to the first."""
    kept = abs(1 - task.learning_rate * decay)
    pull = 1 / (1 + task.learning_rate * task.proximal)
    factors: NDArray[np.float64] = pull * np.power(kept * pull, np.arange(steps), dtype=np.float64)
    return factors


def _public_gradient(declaration: Declaration) -> float:
    """Largest norm of the gradient that synthetic images add to every step next to that of the site's own."""
    if not declaration.synthetic_images or declaration.mixed_images or declaration.augment_weight == 0:
        return 0.0
    if full_batch(declaration.mechanism):
        return 0.0
    if declaration.head.kind != "linear" or declaration.model.norm != "unit":
        return math.inf
    return declaration.augment_weight * math.hypot(1.0, declaration.head.bias_scale)


def _noise_bound(dims: int) -> float:
    """Norm that `dims` standard normal draws pass with a probability of CHANCE."""
    return float(chi.isf(CHANCE, dims))
