"""The server's own view of what every site has spent, recomputed from the events that came with the replies."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from statistics import median
from typing import Any, Final

from mammo_fed.common.serialization import build, plain
from mammo_fed.federation.protocol.reasons import RejectionReason
from mammo_fed.federation.protocol.replies import Accepted, Refusal, Update
from mammo_fed.federation.protocol.task import DECLARATION_ROUND, own_version
from mammo_fed.federation.strategies.influence import OUTSIZED, outsized
from mammo_fed.privacy.accounting.composition import gaussian_epsilon, gaussian_mu
from mammo_fed.privacy.accounting.pricing import epsilon, patient_epsilon
from mammo_fed.privacy.events import PrivacyEvent
from mammo_fed.privacy.ledger.cap import CapRaise
from mammo_fed.privacy.shared_noise import Adversaries, adversary_epsilons

__all__ = ["EXCLUDED", "REVOKED", "BudgetView", "SiteSpending", "outsized_text", "reason_text"]

EVENTS: Final = ("declared", "events", "answered")
# In place of a site's own reason, where the server excludes it, and where its coordinator has revoked it.
EXCLUDED: Final = "turned away"
REVOKED: Final = "revoked"
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
      events: what its replies have spent, and what it may have spent where no readable reply came.
      epsilon_after_round: cumulative epsilon after each round that it was asked and did not refuse: the server's figure, or the
        site's own where that is larger.
      epsilon_account: the site's own figure for everything its ledger holds, at least this run's; None, as the next two, where
        the site does not publish it.
      budget_left: epsilon of a further full-batch run within the site's own maximum, by its own account and by this run alone:
        the smaller.
      patient_epsilon_account: as `epsilon_account`, for a patient with the largest allowed number of images.
      cap_epsilon, cap_delta: the site's own maximum for all runs on its patients.
      cap_since, cap_raised: when the site's account was given it, "" where unknown, and every raise.
      answered: events of the rounds with a readable reply.
      unanswered: rounds that are charged though no readable reply came.
      rejected: rounds (DECLARATION_ROUND too) whose answer was left out, and why; the rounds are charged all the same.
      missed: rounds that it had no part in and that cost it nothing: their task never reached it.
      revoked: the round from which on its coordinator let it come no more; nothing if never.
      reason: why it refused, "" if it never did; EXCLUDED if the server did, REVOKED if its registration was revoked.
      mismatches: rounds in which the site's figure was not the server's.
      ledger_head: what the site last said of where its ledger stood.
      withdrawn_at: ISO date of the last withdrawal of consent that the site spoke of, "" for none.
      withdrawn_rounds: rounds whose reply was the first to speak of a later withdrawal than all before.
      against: rounds by which its updates pointed against the others', counted or not.
      largest_share: of its updates in the average of a round; None where none of them was averaged, or under masks.
      protocol_version: that the site speaks, where `reason` is "version"; nothing else is known of it then.
    """

    site: str
    patients: int
    images: int
    malignant_fraction: float | None
    fingerprint: str
    declared: tuple[PrivacyEvent, ...]
    events: list[PrivacyEvent] = field(default_factory=list)
    epsilon_after_round: list[float] = field(default_factory=list)
    epsilon_account: float | None = None
    budget_left: float | None = None
    reason: str = ""
    mismatches: list[int] = field(default_factory=list)
    ledger_head: str = ""
    withdrawn_at: str = ""
    withdrawn_rounds: list[int] = field(default_factory=list)
    patient_epsilon_account: float | None = None
    cap_epsilon: float = math.inf
    cap_delta: float = 0.0
    cap_since: str = ""
    cap_raised: tuple[CapRaise, ...] = ()
    answered: list[PrivacyEvent] = field(default_factory=list)
    unanswered: list[int] = field(default_factory=list)
    rejected: list[tuple[int, RejectionReason]] = field(default_factory=list)
    protocol_version: int = 0
    against: list[int] = field(default_factory=list)
    largest_share: float | None = None
    missed: list[int] = field(default_factory=list)
    revoked: list[int] = field(default_factory=list)

    @property
    def epsilon(self) -> float:
        """Cumulative epsilon of this run, 0 before the first release."""
        return self.epsilon_after_round[-1] if self.epsilon_after_round else 0.0

    @property
    def reason_text(self) -> str:
        """`reason` for people, with both versions where they differ."""
        return reason_text(self.reason, self.protocol_version)

    @property
    def rounds(self) -> int:
        """Number of rounds that it answered."""
        return len(self.epsilon_after_round) - len(self.unanswered)

    def as_dict(self) -> dict[str, Any]:
        """Values that strict JSON knows."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        return {
            name: [event.as_dict() for event in value] if name in EVENTS else plain(value) for name, value in values.items()
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SiteSpending:
        """Inverse of `as_dict`."""
        events = {name: [PrivacyEvent.from_dict(event) for event in values[name]] for name in EVENTS}
        reals = ("epsilon_account", "budget_left", "patient_epsilon_account", "cap_epsilon", "cap_delta")
        rest: dict[str, Any] = {
            name: float(value) if name in reals and value is not None else value
            for name, value in values.items()
            if name not in EVENTS
        }
        rest["cap_raised"] = tuple(build(CapRaise, step, path="cap_raised") for step in values.get("cap_raised", ()))
        rest["epsilon_after_round"] = [float(value) for value in values["epsilon_after_round"]]
        rest["rejected"] = [(int(index), reason) for index, reason in values["rejected"]]
        return cls(**rest, declared=tuple(events["declared"]), events=events["events"], answered=events["answered"])

    def reach(self, epsilon: float) -> None:
        """Note that this run has cost `epsilon` by now; no figure ever falls behind it."""
        largest = max(self.epsilon, epsilon)
        self.epsilon_after_round.append(largest)
        if self.epsilon_account is not None:
            self.epsilon_account = max(self.epsilon_account, largest)
        if self.budget_left is not None and math.isfinite(self.cap_epsilon):
            self.budget_left = min(self.budget_left, _beside(largest, cap=self.cap_epsilon, delta=self.cap_delta))


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
        """Sites that take part: they have not refused, and were not excluded."""
        return tuple(name for name, spending in self.sites.items() if not spending.reason)

    @property
    def active_spending(self) -> tuple[SiteSpending, ...]:
        """What the sites that have not refused have spent."""
        return tuple(spending for spending in self.sites.values() if not spending.reason)

    def as_dict(self) -> dict[str, Any]:
        """What the server knows of every site, as values that strict JSON knows."""
        return {name: spending.as_dict() for name, spending in self._sites.items()}

    def restore(self, values: Mapping[str, Any]) -> None:
        """Take up what `as_dict` gave."""
        self._sites = {name: SiteSpending.from_dict(site) for name, site in values.items()}

    def enter(self, reply: Accepted | Refusal) -> None:
        """Take in a site's answer to the declaration."""
        if isinstance(reply, Refusal):
            self._sites[reply.site] = SiteSpending(
                site=reply.site,
                patients=reply.public_patients,
                images=reply.public_images,
                malignant_fraction=None,
                fingerprint="",
                declared=(),
            )
            self.refuse(reply, round_index=DECLARATION_ROUND)
            return
        self._sites[reply.site] = SiteSpending(
            site=reply.site,
            patients=reply.public_patients,
            images=reply.public_images,
            malignant_fraction=reply.malignant_fraction,
            fingerprint=reply.fingerprint,
            declared=reply.events,
            epsilon_account=reply.epsilon_account,
            budget_left=reply.budget_left,
            ledger_head=reply.ledger_head,
            withdrawn_at=reply.withdrawn_at,
            patient_epsilon_account=reply.patient_epsilon_account,
            cap_epsilon=reply.cap_epsilon,
            cap_delta=reply.cap_delta,
            cap_since=reply.cap_since,
            cap_raised=reply.cap_raised,
        )

    def refuse(self, reply: Refusal, *, round_index: int) -> None:
        """Note that a site takes no further part, and why."""
        spending = self._sites[reply.site]
        spending.reason = reply.reason
        if reply.reason == "version":
            spending.protocol_version = reply.protocol_version
            self.reject(reply.site, round_index=round_index, reason="version")

    def revoke(self, site: str, *, round_index: int) -> None:
        """Note that a site may not come any more: it is asked in no round from this one on, and what it gave stays."""
        spending = self._sites[site]
        spending.reason = REVOKED
        spending.revoked.append(round_index)

    def note_missed(self, site: str, *, round_index: int) -> None:
        """Note that a site had no part in a round, which costs it nothing."""
        if round_index not in self._sites[site].missed:
            self._sites[site].missed.append(round_index)

    def reject(self, site: str, *, round_index: int, reason: RejectionReason) -> None:
        """Note that what a site sent in a round was left out, and why."""
        self._sites[site].rejected.append((round_index, reason))

    def weigh(self, shares: Mapping[str, float], *, against: Sequence[str], round_index: int) -> None:
        """Note what sites weighed in a round's average, and who pointed against the others."""
        for site, share in shares.items():
            self._sites[site].largest_share = max(share, self._sites[site].largest_share or 0.0)
        for site in against:
            self._sites[site].against.append(round_index)

    @property
    def outsized(self) -> tuple[str, ...]:
        """Sites that take part and declare more than four times the median number of images."""
        return outsized({site.site: site.images for site in self.active_spending})

    def turn_away(self, site: str, *, round_index: int, reason: RejectionReason) -> None:
        """Note that a site takes no further part, because the server does not want it."""
        self._sites[site].reason = EXCLUDED
        self.reject(site, round_index=round_index, reason=reason)

    def keep_out(self, site: str, *, reason: RejectionReason) -> None:
        """Note that a site of which nothing but the name is known takes no part; one that takes part goes on."""
        if site in self._sites and self._sites[site].declared:
            return
        self.enter(Refusal(site=site, public_images=0, public_patients=0, reason="internal"))
        self._sites[site].reason = EXCLUDED
        self.reject(site, round_index=DECLARATION_ROUND, reason=reason)

    def exclude(self, reply: Accepted, *, reason: RejectionReason) -> None:
        """Note that a site takes no part, because what it declares is not what it was asked for."""
        self.enter(reply)
        self.turn_away(reply.site, round_index=DECLARATION_ROUND, reason=reason)

    def spend(self, reply: Update, *, round_index: int, events: Sequence[PrivacyEvent]) -> None:
        """Charge the declared `events` of a round that a site answered, and compare with what the site says."""
        spending = self._sites[reply.site]
        spending.events.extend(events)
        spending.answered.extend(events)
        own, least = self._price(spending.events), self._price(spending.answered)
        # A task that got lost on its way cost nothing at the site: its figure may lie anywhere between the two.
        if not least * (1 - TOLERANCE) - TOLERANCE <= reply.epsilon <= own * (1 + TOLERANCE) + TOLERANCE:
            spending.mismatches.append(round_index)
        spending.epsilon_account, spending.budget_left = reply.epsilon_account, reply.budget_left
        spending.patient_epsilon_account = reply.patient_epsilon_account
        spending.ledger_head = reply.ledger_head
        # A stored reply that is sent again speaks of an earlier time.
        if reply.withdrawn_at > spending.withdrawn_at:
            spending.withdrawn_at = reply.withdrawn_at
            spending.withdrawn_rounds.append(round_index)
        spending.reach(max(own, reply.epsilon))

    def charge_unanswered(self, site: str, *, round_index: int, events: Sequence[PrivacyEvent]) -> None:
        """Charge a round whose task was sent to a site that sent nothing readable back: its reply may be in other hands."""
        spending = self._sites[site]
        spending.events.extend(events)
        spending.unanswered.append(round_index)
        spending.reach(self._price(spending.events))

    def patient_epsilon(self, site: str) -> float:
        """Epsilon of a patient with the largest allowed number of images, by PLD: only it prices several sampled images."""
        spending = self._sites[site]
        own = patient_epsilon(spending.events, delta=self._delta, accountant="pld")
        return max(own, spending.epsilon) if all(event.unit == "patient" for event in spending.events) else own

    def patient_epsilon_account(self, site: str) -> float | None:
        """The same over all that the site's ledger knows of its patients, never below this run's figure; None if withheld."""
        account = self._sites[site].patient_epsilon_account
        return None if account is None else max(account, self.patient_epsilon(site))

    def adversaries(self, site: str, *, min_survivors: int) -> Adversaries:
        """What this run costs by who looks at it; everybody sees the same where each site adds all of its noise."""
        spending = self._sites[site]
        if all(event.noise_shares == 1 for event in spending.events):
            own = spending.epsilon
            return Adversaries(declared=own, other_site=own, all_colluding=own)
        return adversary_epsilons(
            spending.events,
            min_survivors=min_survivors,
            delta=self._delta,
            accountant=self._accountant,
        )

    def _price(self, events: Sequence[PrivacyEvent]) -> float:
        return epsilon(events, delta=self._delta, accountant=self._accountant)


def _beside(epsilon: float, *, cap: float, delta: float) -> float:
    """Epsilon of the full-batch run that fits under `cap` beside one of `epsilon`: losses add up in squares.

    >>> round(_beside(3.0, cap=6.0, delta=1e-4), 1)
    4.8
    """
    if epsilon >= cap or not 0 < delta < 1:
        return 0.0
    squares = gaussian_mu(epsilon=cap, delta=delta) ** 2 - gaussian_mu(epsilon=epsilon, delta=delta) ** 2
    return min(cap, gaussian_epsilon(mu=math.sqrt(max(0.0, squares)), delta=delta)) if squares > 0 else 0.0


def reason_text(reason: str, protocol_version: int) -> str:
    """Why a site takes no part, for people; `protocol_version` is what it speaks where the reason is "version".

    >>> reason_text("budget", 0)
    'budget'
    """
    if reason != "version":
        return reason
    return f"version (it speaks version {protocol_version} of the protocol, this server version {own_version()})"


def outsized_text(site: str, budget: BudgetView) -> str:
    """That a site declares out of proportion to the others, for people."""
    middle = median(each.images for each in budget.active_spending)
    return f"{site} declares {budget.sites[site].images:,} images, more than {OUTSIZED:g} times the median of {middle:,.0f}"
