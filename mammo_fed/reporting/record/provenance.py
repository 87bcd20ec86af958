"""Where a synthetic set comes from, as a record keeps it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from mammo_fed.privacy.events import PrivacyEvent
from mammo_fed.reporting.record.checks import require_epsilon, require_fraction

__all__ = ["Provenance"]


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """What a generator saw, and what that adds up to with the run.

    Attributes:
      epsilon, delta: towards each `generator_unit` that it saw; 0 where no patient is in it, infinite without privacy.
      trained_on: the cohort.
      overlap: whether patients whom it saw train in the run too; judged by images in records of earlier versions.
      generator_unit: that its training protects; "" without differential privacy.
      total_epsilon, total_delta, total_unit: of training and run together, for who is in both; infinite where there is none.
      generator_floating: whether its noise was drawn in floating point; earlier sets do not say.
      chosen: how the step that it is taken from was chosen.
      events: of the generator's training, which its epsilon is the price of; empty without differential privacy, and in records
        that did not keep them.
      generator_accountant: who priced them.
    """

    epsilon: float
    delta: float
    trained_on: str
    overlap: Literal["none", "some", "unknown"] = "unknown"
    generator_unit: str = ""
    total_epsilon: float = math.inf
    total_delta: float = 0.0
    total_unit: str = ""
    chosen: str = ""
    events: tuple[PrivacyEvent, ...] = ()
    generator_accountant: str = ""

    generator_floating: bool = False

    def __post_init__(self) -> None:
        require_epsilon("synthesis.provenance.epsilon", self.epsilon)
        require_fraction("synthesis.provenance.delta", self.delta)
        require_epsilon("synthesis.provenance.total_epsilon", self.total_epsilon)
        require_fraction("synthesis.provenance.total_delta", self.total_delta)
