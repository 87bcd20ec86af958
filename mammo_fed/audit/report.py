"""The audit of one site's part in one run, from trials to a report."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from mammo_fed.audit.canaries import CANARIES, CanaryKind
from mammo_fed.audit.membership import Membership
from mammo_fed.audit.noise.adversary import NoiseResult, audit_noise
from mammo_fed.audit.subject import Mechanism, Subject, sensitivity
from mammo_fed.audit.trials import CanaryResult, Progress, audit_canary
from mammo_fed.common.serialization import plain
from mammo_fed.privacy.accounting.pricing import epsilon

__all__ = ["AuditReport", "audit_subject"]

# Releases are float32: a move may pass its bound by rounding.
SLACK: Final = 1e-4
FEWEST_NATURAL: Final = 500
# The same accountant priced both, perhaps on another machine.
TOLERANCE: Final = 1e-6
SCHEMA_VERSION: Final = 1


@dataclass(frozen=True, kw_only=True)
class AuditReport:
    """What the audit of a run found.

    Attributes:
      run_id: the run.
      site: whose messages the adversary saw.
      unit: whose data is protected.
      epsilon, delta: the claim for this site and run.
      mu: the claim as a Gaussian trade-off curve; None where sampling makes it another curve.
      priced: epsilon of the site's releases, priced again by the claim's accountant.
      messages: what the site sent: the mean and one reply a round.
      sensitivity: largest move of each release by one hostile unit, over its clipping norm; at most 1 is right.
      canaries: one result for each canary.
      noise: what the noise itself looks like.
      split_patients: patients who were several units of the site.
      membership: inference on the released model; None where it was not asked for.
      seconds: how long it took.
    """

    run_id: str
    site: str
    unit: str
    epsilon: float
    delta: float
    mu: float | None
    priced: float
    messages: int
    sensitivity: Mapping[str, float]
    canaries: tuple[CanaryResult, ...]
    noise: NoiseResult
    membership: Membership | None
    seconds: float
    split_patients: int = 0

    @property
    def faults(self) -> tuple[str, ...]:
        """What refutes the claim, in words; empty if nothing does."""
        found = []
        if not self.epsilon >= self.priced * (1 - TOLERANCE):
            found.append(f"the stated epsilon {self.epsilon:.4f} is below the price of the site's releases, {self.priced:.4f}")
        if self.split_patients:
            found.append(f"{self.split_patients} patients of the site were more than one privacy unit each")
        found += [
            f"one unit moves the {name} by {move:.3g} times its clipping norm"
            for name, move in self.sensitivity.items()
            if not move <= 1 + SLACK
        ]
        found += [
            f"the {result.canary} canary refutes the claimed trade-off curve with 99.9 % confidence"
            for result in self.canaries
            if result.rejected
        ]
        found += self.noise.faults
        return tuple(found)

    @property
    def passed(self) -> bool:
        """Whether nothing was found against the claim. That is no proof of it."""
        return not self.faults

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON; infinity is the string "inf"."""
        values: dict[str, Any] = plain(self)
        return {"schema_version": SCHEMA_VERSION, "passed": self.passed, "faults": list(self.faults), **values}


def audit_subject(
    subject: Subject,
    *,
    run_id: str,
    trials: int,
    canaries: Sequence[CanaryKind] = CANARIES,
    seed: int,
    mechanism: Mechanism | None = None,
    jobs: int = 1,
    progress: Progress = lambda *_: None,
) -> AuditReport:
    """Gate, canaries and a look at the noise of one site. It releases nothing and charges nothing: trials are thrown away.

    Args:
      subject: the site, what it runs, and what that is said to cost.
      run_id: name of the run.
      trials: evaluated runs on each side for the gradient canary, and runs in which the noise is looked at. The other canaries,
        weaker by nature, get a third, but 500 if that is more and so many were asked for.
      canaries: which.
      seed: of the canaries' seats.
      mechanism: the code under audit; the sites' own unless a test says otherwise.
      jobs: processes, >= 1.
      progress: told how far the trials are.
    """
    started = time.perf_counter()
    code, claim = mechanism or Mechanism(), subject.claim
    moves = sensitivity(subject, code)
    results = tuple(
        audit_canary(subject, kind, trials=_share(kind, trials), seed=seed, mechanism=code, jobs=jobs, progress=progress)
        for kind in canaries
    )
    noise = audit_noise(subject, runs=trials, mechanism=code, jobs=jobs, progress=progress)
    return AuditReport(
        run_id=run_id,
        site=subject.site,
        unit=subject.schedule.step_event.unit,
        epsilon=claim.epsilon,
        delta=claim.delta,
        mu=claim.mu,
        priced=epsilon(subject.schedule.events(), delta=claim.delta, accountant=claim.accountant),
        messages=subject.schedule.rounds + (subject.schedule.mean_event is not None),
        sensitivity=moves,
        canaries=results,
        noise=noise,
        membership=None,
        split_patients=subject.split_patients,
        seconds=time.perf_counter() - started,
    )


def _share(kind: CanaryKind, trials: int) -> int:
    return trials if kind == "gradient" else max(trials // 3, min(trials, FEWEST_NATURAL))
