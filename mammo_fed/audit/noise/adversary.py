"""All tests of a site's noise as one adversary with one probability of a false alarm."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from mammo_fed.audit.noise import repeats, sampling, shape
from mammo_fed.audit.noise.probe import Message, collect
from mammo_fed.audit.noise.suspicion import Suspicion
from mammo_fed.audit.subject import Mechanism, Subject
from mammo_fed.audit.trials import Progress

__all__ = ["FALSE_ALARM", "NOISE_CHECKS", "NoiseCheck", "NoiseResult", "audit_noise", "judge"]

FALSE_ALARM: Final = 1e-6
"""An upper bound on the probability that the checks of one audit together find fault with sound noise."""

NOISE_CHECKS: Final[Mapping[str, Callable[[Sequence[Message]], Suspicion]]] = {
    "scale": shape.scale,
    "direction": shape.direction,
    "support": shape.support,
    "tails": shape.tails,
    "distribution": shape.distribution,
    "lengths": shape.lengths,
    "resolution": shape.resolution,
    "grid": shape.grid,
    "copies": repeats.copies,
    "rounds": repeats.between_rounds,
    "sites": repeats.between_sites,
    "runs": repeats.between_runs,
    "entries": repeats.between_entries,
    "sampling rate": sampling.rate,
    "sample sizes": sampling.drawn_together,
    "crowds": sampling.drawn_in_crowds,
    "samples": sampling.drawn_again,
}
"""Every check by its name."""


@dataclass(frozen=True, kw_only=True)
class NoiseCheck:
    """What one check of the noise says.

    Attributes:
      name: of NOISE_CHECKS.
      chance: the probability that any of the checks finds sound noise as odd as this is at most this, in [0, 1].
      failed: whether `chance` is below FALSE_ALARM.
      found: the oddest thing it saw, in words; empty where there was nothing to look at.
    """

    name: str
    chance: float
    failed: bool
    found: str


@dataclass(frozen=True, kw_only=True)
class NoiseResult:
    """What the noise of a site looks like.

    Attributes:
      runs: runs, of two sites each.
      draws: numbers that hold nothing but noise.
      checks: one for each of NOISE_CHECKS.
    """

    runs: int
    draws: int
    checks: tuple[NoiseCheck, ...]

    @property
    def faults(self) -> tuple[str, ...]:
        """What sound noise would not show, in words; empty if nothing."""
        return tuple(f"the noise fails the check of its {check.name}: {check.found}" for check in self.checks if check.failed)


def audit_noise(
    subject: Subject,
    *,
    runs: int,
    mechanism: Mechanism | None = None,
    jobs: int = 1,
    progress: Progress = lambda *_: None,
) -> NoiseResult:
    """Look at the noise that a site's code adds, and at the samples that it draws, over many runs of its schedule.

    It releases nothing and charges nothing: the cohort is made up, and the runs are thrown away.

    Args:
      subject: the site, what it runs, and what that is said to cost.
      runs: of the whole schedule, >= 1; each is answered by two sites.
      mechanism: the code under audit; the sites' own unless a test says otherwise.
      jobs: processes, >= 1.
      progress: told of finished runs.
    """
    return judge(collect(mechanism or Mechanism(), subject, runs=runs, jobs=jobs, progress=progress))


def judge(messages: Sequence[Message]) -> NoiseResult:
    """What all checks say of the messages of a probe.

    Guarantee: for sound noise and samples, some check fails with a probability of at most FALSE_ALARM.
    """
    checks = tuple(_checked(name, check(messages)) for name, check in NOISE_CHECKS.items())
    return NoiseResult(runs=len(messages[0].noise), draws=sum(message.noise.size for message in messages), checks=checks)


def _checked(name: str, suspicion: Suspicion) -> NoiseCheck:
    log_chance = min(0.0, suspicion.log_chance + math.log(len(NOISE_CHECKS)))
    return NoiseCheck(name=name, chance=math.exp(log_chance), failed=log_chance < math.log(FALSE_ALARM), found=suspicion.found)
