"""What a site answers: it accepts a run, it sends the update of a round, or it refuses."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from mammo_fed.federation.protocol.reasons import Reason
from mammo_fed.federation.protocol.task import own_version
from mammo_fed.privacy.events import PrivacyEvent
from mammo_fed.privacy.ledger.cap import CapRaise

__all__ = ["Accepted", "PricedReply", "Refusal", "Reply", "SiteReply", "Update"]


@dataclass(frozen=True, kw_only=True, eq=False)
class SiteReply:
    """What is in every reply.

    Attributes:
      site: its name.
      public_images, public_patients: size of its cohort, declared public.
    """

    site: str
    public_images: int
    public_patients: int


@dataclass(frozen=True, kw_only=True, eq=False)
class PricedReply(SiteReply):
    """A reply with events that the site's ledger has priced.

    Attributes:
      run_id: which run it answers.
      events: what the reply has spent; of `Accepted`, the whole schedule.
      epsilon: the site's own cumulative figure for this run.
      epsilon_account: for everything its ledger knows of these patients. It and the next two depend on who is in the cohorts of
        the site's other runs: None unless the site's policy publishes them.
      patient_epsilon_account: as `epsilon_account`, for a patient with the largest allowed number of images, by PLD.
      budget_left: of the site's own maximum; infinite where there is none.
      ledger_head: where the site's ledger stood, position and seal: proof against a ledger put back from an older copy.
      withdrawn_at: ISO date of the last withdrawal of consent in the site's ledger, whoever it was and whether or not in this
        cohort; "" where nobody ever withdrew.
    """

    run_id: str
    events: tuple[PrivacyEvent, ...]
    epsilon: float
    epsilon_account: float | None
    patient_epsilon_account: float | None
    budget_left: float | None
    ledger_head: str
    withdrawn_at: str = ""


@dataclass(frozen=True, kw_only=True, eq=False)
class Accepted(PricedReply):
    """A site takes part in a run: the answer to its declaration.

    Attributes:
      cap_epsilon, cap_delta: the most that the site's policy lets all runs on its patients cost; infinite where unbounded.
      cap_since: when the site's account was given this cap, ISO 8601; "" where its ledger did not note it.
      cap_raised: every raise of the account's cap, the oldest first.
      fingerprint: content hash of a public cohort, or a random identifier.
      malignant_fraction: of the site's labels where its policy declares it public, else None.
    """

    cap_epsilon: float = math.inf
    cap_delta: float = 0.0
    cap_since: str = ""
    cap_raised: tuple[CapRaise, ...] = ()
    fingerprint: str = ""
    malignant_fraction: float | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Update(PricedReply):
    """What a site releases in a round.

    Attributes:
      round_index, task_hash: which task it answers.
      parameters: float32, flat; empty where only sums are opened.
      masked: uint64, flat: the update under its masks; empty where updates travel in plaintext.
    """

    round_index: int
    task_hash: str
    parameters: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))
    masked: NDArray[np.uint64] = field(default_factory=lambda: np.zeros(0, np.uint64))


@dataclass(frozen=True, kw_only=True, eq=False)
class Refusal(SiteReply):
    """A site says no, with nothing in it that depends on a patient.

    Attributes:
      reason: why.
      protocol_version: that the site speaks. Nothing but the site's name is known where it is another one: sizes are 0 then.
    """

    reason: Reason
    protocol_version: int = field(default_factory=own_version)


Reply: TypeAlias = Accepted | Update | Refusal
