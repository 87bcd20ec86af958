"""The server's own view of what every site has spent, recomputed from the events that came with the replies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from mammo_fed.federation.messages import Reply
from mammo_fed.privacy.accounting import epsilon, patient_epsilon
from mammo_fed.privacy.events import PrivacyEvent

__all__ = ["BudgetView", "SiteSpending"]

# The site and the server run the same accountant; what differs by more is a fault or a lie.
TOLERANCE: Final = 1e-6


@dataclass(kw_only=True)
class SiteSpending:
    """One site's spending in this run.

    Attributes:
      site: its name.
      patients, images: public size.
      malignant_fraction: where the site publishes it, else None.
      fingerprint: of a public cohort, else a random identifier.
      declared: the whole schedule that the site has priced.
      events: what its replies have spent.
      epsilon_after_round: cumulative epsilon after each round it took part in, as the server computes it.
      epsilon_account: the site's own figure for everything its ledger holds.
      budget_left: of the site's own maximum.
      reason: why it refused, "" if it never did.
      mismatches: rounds in which the site's figure was not the server's.
      ledger_head: what the site last said of where its ledger stood.
    """

    site: str
    patients: int
    images: int
    malignant_fraction: float | None
    fingerprint: str
    declared: tuple[PrivacyEvent, ...]
    events: list[PrivacyEvent] = field(default_factory=list)
    epsilon_after_round: list[float] = field(default_factory=list)
    epsilon_account: float = 0.0
    budget_left: float = 0.0
    reason: str = ""
    mismatches: list[int] = field(default_factory=list)
    ledger_head: str = ""

    @property
    def epsilon(self) -> float:
        """Cumulative epsilon of this run, 0 before the first release."""
        return self.epsilon_after_round[-1] if self.epsilon_after_round else 0.0


class BudgetView:
    """Composes events per site; the site's ledger stays the authority and a difference is shown, never averaged away."""

    def __init__(self, *, delta: float, accountant: str) -> None:
        self._delta, self._accountant = delta, accountant
        self._sites: dict[str, SiteSpending] = {}

    @property
    def sites(self) -> Mapping[str, SiteSpending]:
        """Every site that answered the declaration, in the order of their names."""
        return dict(sorted(self._sites.items()))

    @property
    def active(self) -> tuple[str, ...]:
        """Sites that have not refused."""
        return tuple(name for name, spending in self.sites.items() if not spending.reason)

    @property
    def active_spending(self) -> tuple[SiteSpending, ...]:
        """What the sites that have not refused have spent."""
        return tuple(spending for spending in self.sites.values() if not spending.reason)

    def enter(self, reply: Reply) -> None:
        """Take in a site's answer to the declaration."""
        self._sites[reply.site] = SiteSpending(
            site=reply.site,
            patients=reply.patients,
            images=reply.weight,
            malignant_fraction=reply.malignant_fraction,
            fingerprint=reply.fingerprint,
            declared=reply.events,
            epsilon_account=reply.epsilon_account,
            budget_left=reply.budget_left,
            reason=reply.reason,
            ledger_head=reply.ledger_head,
        )

    def spend(self, reply: Reply) -> None:
        """Compose the events of one round's reply, and compare with what the site says."""
        spending = self._sites[reply.site]
        if reply.reason:
            spending.reason = reply.reason
            return
        spending.events.extend(reply.events)
        own = epsilon(spending.events, delta=self._delta, accountant=self._accountant)  # type: ignore[arg-type]
        spending.epsilon_after_round.append(own)
        spending.epsilon_account, spending.budget_left = reply.epsilon_account, reply.budget_left
        spending.ledger_head = reply.ledger_head
        if own != reply.epsilon and not abs(own - reply.epsilon) <= TOLERANCE * max(1.0, own):
            spending.mismatches.append(reply.round_index)

    def patient_epsilon(self, site: str) -> float:
        """Epsilon of a patient with the largest allowed number of images, by PLD: only it prices several sampled images."""
        return patient_epsilon(self._sites[site].events, delta=self._delta, accountant="pld")
