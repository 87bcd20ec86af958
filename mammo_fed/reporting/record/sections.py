"""The sections of a run's record, checked when they are built."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mammo_fed.errors import DataError
from mammo_fed.federation.protocol.reasons import RejectionReason
from mammo_fed.privacy.events import PrivacyEvent, Unit
from mammo_fed.privacy.ledger.cap import CapRaise, check_time
from mammo_fed.privacy.ledger.withdrawals import check_date
from mammo_fed.privacy.names import Aggregation, LedgerScope, NoiseOrigin
from mammo_fed.reporting.record.checks import require_count, require_distinct, require_epsilon, require_fraction
from mammo_fed.reporting.record.provenance import Provenance
from mammo_fed.reporting.record.statements import warning_sentences
from mammo_fed.reporting.record.withdrawals import withdrawal_sentence

if TYPE_CHECKING:
    from mammo_fed.training.evaluation import Metrics

__all__ = [
    "CentralPrivacy",
    "DataSection",
    "Evaluation",
    "FederationSection",
    "ModelSection",
    "PrivacySection",
    "Rejected",
    "Seconds",
    "SiteData",
    "SitePrivacy",
    "SynthesisSection",
]


@dataclass(frozen=True, kw_only=True)
class Seconds:
    """Wall-clock seconds of the parts of a run and of the whole."""

    features: float
    training: float
    evaluation: float
    total: float

    def __post_init__(self) -> None:
        for name in ("features", "training", "evaluation", "total"):
            require_count(f"seconds.{name}", getattr(self, name))


@dataclass(frozen=True, kw_only=True)
class SiteData:
    """Public counts of one site; `malignant_fraction` is None where the site does not publish it."""

    site: str
    patients: int
    images: int
    malignant_fraction: float | None

    def __post_init__(self) -> None:
        require_count("data.sites.patients", self.patients)
        require_count("data.sites.images", self.images)
        require_fraction("data.sites.malignant_fraction", self.malignant_fraction)


@dataclass(frozen=True, kw_only=True)
class DataSection:
    """Where the training data came from; `fingerprint` is a random identifier for cohorts not declared public."""

    source: str
    fingerprint: str
    sites: tuple[SiteData, ...]

    def __post_init__(self) -> None:
        require_distinct("data.sites", [site.site for site in self.sites])


@dataclass(frozen=True, kw_only=True)
class ModelSection:
    """The model: frozen backbone, hash of its weights file, and what was trained (`scope`)."""

    backbone: str
    weights_sha256: str
    scope: str
    parameters_trained: int

    def __post_init__(self) -> None:
        require_count("model.parameters_trained", self.parameters_trained)


@dataclass(frozen=True, kw_only=True)
class SynthesisSection:
    """How the synthetic set was used ("whiten", "pretrain", "augment"), which it was, and what its generator saw.

    `sha256` is over its pixels and labels; `images` counts them; `set_sha256` is the hash of a set with its own provenance;
    `total` says in a sentence what set and run guarantee together.
    """

    use: tuple[str, ...]
    source: str
    images: int
    sha256: str
    provenance: Provenance
    set_sha256: str = ""
    total: str = ""


@dataclass(frozen=True, kw_only=True)
class Rejected:
    """An answer of a site that was left out; what the round cost is charged all the same.

    Attributes:
      round: -1 for the answer to the run's declaration, which keeps the site out of the run.
      reason: why, see mammo_fed.reporting.record.statements.REJECTIONS.
      protocol_versions: that of the site and that of the server, where the reason is "version".
    """

    round: int
    reason: RejectionReason
    protocol_versions: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        require_count("privacy.sites.rejected.round", self.round + 1)


@dataclass(frozen=True, kw_only=True)
class SitePrivacy:
    """What one site spent.

    Attributes:
      site: its name.
      epsilon: of this run: the server's figure or the site's own, whichever is larger; infinite without noise, 0 where the site
        was sent no task or refused the first.
      epsilon_account: of everything its ledger holds, this run included: a schedule cost. It and the other two figures of the
        account are None where `account_published` is false.
      epsilon_after_round: cumulative epsilon of this run after each round that the site was asked and did not refuse.
      patient_epsilon: of a patient with the largest allowed number of images; equals `epsilon` where the unit is the patient.
      mechanism: the mechanism in words, such as "full-batch DP gradient descent".
      budget_left: epsilon of the largest further full-batch run that its account's filter still admits under its policy,
        infinite where that sets no bound. Losses add up in squares: it is more than the cap less what was spent.
      rounds: number of rounds it answered.
      refused: whether the site refused the task or a round of it.
      patient_epsilon_account: as `epsilon_account`, for a patient with the largest allowed number of images; infinite in
        records that did not keep it.
      cap_epsilon, cap_delta: the most that the site's policy lets all runs on its patients cost; infinite where unbounded.
      cap_since: when the site's account was given this cap, ISO 8601; "" where that is not known.
      cap_raised: every raise of that cap by the site, the oldest first.
      account_published: whether the site publishes what its account cost (`epsilon_account`, `patient_epsilon_account`) and
        what is left of it (`budget_left`): figures that depend on who is in the cohorts of its other runs.
      mismatches: rounds after which the site's own epsilon was not the server's.
      unanswered: rounds that are charged though no readable reply came.
      missed: rounds that the site had no part in and that cost it nothing: their task never reached it.
      revoked: the round from which on the site's registration was revoked; empty if never.
      rejected: what the server left out of the site's answers, and why.
      ledger_head: where the site's ledger stood when it last replied; `mammo-fed privacy verify --reported` takes it.
      epsilon_other_site: of this run against another site that knows its own share of the noise; `epsilon` where noise is not
        shared, infinite in records that did not keep it.
      epsilon_all_colluding: of this run against a server that controls all other sites; as the one before.
      events: what each entry of `epsilon_after_round` added, from which the figures of this run can be computed again; empty
        in records that did not keep them.
      withdrawn_at: ISO date of the last withdrawal of consent in the site's ledger, whoever it was; "" for none.
      withdrawn_rounds: rounds of this run from which on a withdrawal was in force; empty where all came before it.
    """

    site: str
    epsilon: float
    epsilon_account: float | None
    epsilon_after_round: tuple[float, ...]
    patient_epsilon: float
    mechanism: str
    budget_left: float | None
    rounds: int
    refused: bool
    patient_epsilon_account: float | None = math.inf
    cap_epsilon: float = math.inf
    cap_delta: float = 0.0
    mismatches: tuple[int, ...] = ()
    unanswered: tuple[int, ...] = ()
    rejected: tuple[Rejected, ...] = ()
    ledger_head: str = ""
    epsilon_other_site: float = math.inf
    epsilon_all_colluding: float = math.inf
    events: tuple[PrivacyEvent, ...] = ()
    cap_since: str = ""
    cap_raised: tuple[CapRaise, ...] = ()
    account_published: bool = True
    withdrawn_at: str = ""
    withdrawn_rounds: tuple[int, ...] = ()
    missed: tuple[int, ...] = ()
    revoked: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name in ("epsilon_account", "patient_epsilon_account", "budget_left"):
            # In a record null is an infinite number; only beside `account_published` it is one that was not given.
            if not self.account_published or getattr(self, name) is None:
                object.__setattr__(self, name, math.inf if self.account_published else None)
            else:
                require_epsilon(f"privacy.sites.{name}", getattr(self, name))
        for name in ("epsilon", "patient_epsilon", "cap_epsilon", "epsilon_other_site", "epsilon_all_colluding"):
            require_epsilon(f"privacy.sites.{name}", getattr(self, name))
        if self.cap_since:
            check_time("privacy.sites.cap_since", self.cap_since)
        for value in self.epsilon_after_round:
            require_epsilon("privacy.sites.epsilon_after_round", value)
        if self.events and len(self.events) != len(self.epsilon_after_round):
            raise DataError(
                f"privacy.sites.events has {len(self.events)} entries and must have {len(self.epsilon_after_round)}, one for "
                "each entry of epsilon_after_round; the record was changed or cut"
            )
        require_count("privacy.sites.rounds", self.rounds)
        require_fraction("privacy.sites.cap_delta", self.cap_delta)
        check_date("privacy.sites.withdrawn_at", self.withdrawn_at)
        for name in ("mismatches", "unanswered", "withdrawn_rounds", "missed", "revoked"):
            for value in getattr(self, name):
                require_count(f"privacy.sites.{name}", value)


@dataclass(frozen=True, kw_only=True)
class PrivacySection:
    """The guarantee: its terms, what each site spent, the sentence, and what the sentence does not cover.

    `target_epsilon` is infinite where no noise was asked for; `relation` is the neighbouring relation
    ("no_contribution", which older records call "zero_out"); `ledger` is "site" where the sites' ledgers carry over from run to
    run, and the guarantee is then about all of them. `aggregation` is "plain" where the server sees every update, "masks" where
    it sees their sums, "shared_noise" where only the sums carry all of the noise; `min_survivors` and `colluders` are then the
    declared threat model. `cautions` are what a reader must know of the terms themselves, such as a delta too large for a site.
    """

    unit: Unit
    delta: float
    accountant: str
    mechanism: str
    target_epsilon: float
    rounds: int
    local_steps: int
    noise: NoiseOrigin
    relation: str
    sites: tuple[SitePrivacy, ...]
    guarantee: str
    not_covered: tuple[str, ...]
    ledger: LedgerScope = "run"
    aggregation: Aggregation = "plain"
    min_survivors: int = 1
    colluders: int = 0
    cautions: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 0 < self.delta < 1:
            raise DataError(f"privacy.delta={self.delta} must be in (0, 1)")
        require_epsilon("privacy.target_epsilon", self.target_epsilon)
        require_count("privacy.rounds", self.rounds)
        require_count("privacy.local_steps", self.local_steps)
        require_distinct("privacy.sites", [site.site for site in self.sites])

    @property
    def epsilon(self) -> float:
        """Largest epsilon of this run over the sites: 0 where none took part, infinite without noise."""
        return max((site.epsilon for site in self.sites), default=0.0)

    @property
    def guaranteed_epsilon(self) -> float:
        """Epsilon of the guarantee: of this run alone, or the largest cap of a site whose ledger carries over."""
        if self.ledger == "run":
            return self.epsilon
        return max((max(site.cap_epsilon, site.epsilon) for site in self.sites if site.epsilon > 0), default=0.0)

    @property
    def guaranteed(self) -> bool:
        """Whether the run gives a guarantee at all: finite epsilon, and noise nobody can draw again."""
        return self.noise == "operating system" and math.isfinite(self.guaranteed_epsilon)

    @property
    def withdrawals(self) -> tuple[str, ...]:
        """Since when patients who withdrew their consent take no part, a sentence for each site where somebody did."""
        said = (withdrawal_sentence(site=site.site, at=site.withdrawn_at, rounds=site.withdrawn_rounds) for site in self.sites)
        return tuple(sentence for sentence in said if sentence)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a reader must know of the sites' figures, one sentence each; empty where all went as declared."""
        return self.cautions + tuple(
            sentence
            for site in self.sites
            for sentence in warning_sentences(
                site=site.site,
                mismatches=site.mismatches,
                unanswered=site.unanswered,
                missed=site.missed,
                revoked=site.revoked,
                rejected=[(each.round, each.reason) for each in site.rejected],
                protocol_versions=next((each.protocol_versions for each in site.rejected if each.protocol_versions), ()),
            )
        )


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Metrics of one evaluation set (see mammo_fed.training.evaluation.Metrics); None where they are withheld."""

    n_patients: int
    n_images: int
    auroc: float | None
    auroc_ci: tuple[float, float] | None
    auprc_benign: float | None
    auprc_malignant: float | None
    brier: float | None
    sensitivity_at_90_specificity: float | None

    def __post_init__(self) -> None:
        require_count("evaluation.n_patients", self.n_patients)
        require_count("evaluation.n_images", self.n_images)
        for name in ("auroc", "auprc_benign", "auprc_malignant", "brier", "sensitivity_at_90_specificity"):
            require_fraction(f"evaluation.{name}", getattr(self, name))
        for bound in self.auroc_ci or ():
            require_fraction("evaluation.auroc_ci", bound)

    @classmethod
    def from_metrics(cls, metrics: Metrics) -> Evaluation:
        """The metrics of a set, all shown."""
        return cls(**vars(metrics))

    @classmethod
    def withheld(cls, *, n_patients: int, n_images: int) -> Evaluation:
        """A set whose metrics its site's policy does not publish: the public counts alone."""
        return cls(
            n_patients=n_patients,
            n_images=n_images,
            auroc=None,
            auroc_ci=None,
            auprc_benign=None,
            auprc_malignant=None,
            brier=None,
            sensitivity_at_90_specificity=None,
        )


@dataclass(frozen=True, kw_only=True)
class CentralPrivacy:
    """Site-level privacy by noise at the server, over all aggregates of the run.

    Attributes:
      epsilon: of one site's part, by Flower's Renyi accountant.
      delta: at which it is given.
      noise_multiplier: standard deviation of the noise on the sum of updates, in units of `clipping_norm`.
      clipping_norm: largest norm of a site's update.
      guarantee: what it means, in a sentence.
      releases: number of aggregates that it is over; 0 in records that did not keep it.
    """

    epsilon: float
    delta: float
    noise_multiplier: float
    clipping_norm: float
    guarantee: str
    releases: int = 0

    def __post_init__(self) -> None:
        require_epsilon("federation.central.epsilon", self.epsilon)
        for name in ("noise_multiplier", "clipping_norm", "releases"):
            require_count(f"federation.central.{name}", getattr(self, name))
        if not 0 < self.delta < 1:
            raise DataError(f"federation.central.delta={self.delta} must be in (0, 1)")


@dataclass(frozen=True, kw_only=True)
class SiteWeight:
    """What a site declared and what it weighed for it.

    Attributes:
      site: its name.
      images: that it declared.
      share: the largest that its updates had in a round's average, in [0, 1]; None where none was averaged, or it was not seen.
      outsized: it declared more than four times the median of all.
      against: rounds (0 is the mean) by which its updates pointed against the others', whether they were left out or not.
    """

    site: str
    images: int
    share: float | None
    outsized: bool
    against: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        require_count("federation.weights.images", self.images)
        require_fraction("federation.weights.share", self.share)


@dataclass(frozen=True, kw_only=True)
class FederationSection:
    """How the messages went: strategy, rounds and sites asked for, payload bytes, mean seconds per round.

    `failed_rounds` gave no sum: what they cost is charged, and the model stayed as it was. `central` is None without site-level
    noise at the server. `weights` are of the sites that took part; records of earlier releases have none.
    """

    strategy: str
    rounds: int
    sites: int
    bytes_up: int
    bytes_down: int
    seconds_per_round: float
    failed_rounds: tuple[int, ...] = ()
    central: CentralPrivacy | None = None
    weights: tuple[SiteWeight, ...] = ()

    def __post_init__(self) -> None:
        for name in ("rounds", "sites", "bytes_up", "bytes_down", "seconds_per_round"):
            require_count(f"federation.{name}", getattr(self, name))
