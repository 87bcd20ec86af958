"""From what happened to the record."""

from __future__ import annotations

import hashlib
import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from importlib.metadata import version
from typing import Final, Literal

from mammo_fed.data.known_patients import Overlap
from mammo_fed.extensions.kinds import MECHANISMS
from mammo_fed.federation.extensions_used import extensions_used
from mammo_fed.federation.protocol.task import Declaration, own_version
from mammo_fed.federation.public_start import PublicStart
from mammo_fed.privacy.events import RELATION
from mammo_fed.privacy.names import NoiseOrigin
from mammo_fed.reporting.record.cap_words import CapHistory
from mammo_fed.reporting.record.record import (
    CentralPrivacy,
    DataSection,
    Evaluation,
    FederationSection,
    ModelSection,
    PrivacySection,
    Provenance,
    Record,
    Rejected,
    Seconds,
    SiteData,
    SitePrivacy,
    SiteWeight,
    SynthesisSection,
    guarantee_sentence,
    not_covered_sentences,
    shared_noise_sentence,
    threat_text,
)
from mammo_fed.reporting.record.statements import site_level_sentence, synthetic_sentence
from mammo_fed.server.rounds.budget import EXCLUDED, REVOKED, BudgetView, SiteSpending, outsized_text
from mammo_fed.server.rounds.delivery import Traffic
from mammo_fed.server.rounds.synthetic_overlap import seen_by_generator
from mammo_fed.settings import Settings
from mammo_fed.settings.checks import delta_warning

__all__ = ["Outcome", "build_record"]

LIBRARIES: Final = ("mammo-fed", "flwr", "torch", "timm", "opacus", "dp-accounting", "numpy", "hydra-core")
MECHANISM: Final = {
    ("dp_gd", "float"): "full-batch DP gradient descent, closed form, in floating point",
    ("dp_gd", "secure"): "full-batch DP gradient descent, closed form, discrete Gaussian on a grid",
    ("dp_sgd", "float"): "Poisson DP-SGD (Opacus), in floating point",
    ("dp_sgd", "secure"): "Poisson DP-SGD, discrete Gaussian on a grid",
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Outcome:
    """Everything a record is made from."""

    settings: Settings
    declaration: Declaration
    start: PublicStart
    budget: BudgetView
    traffic: Traffic
    weights_sha256: str
    evaluation: Mapping[str, Evaluation]
    evaluation_public: bool
    overlap: Overlap
    started: datetime
    seconds: Seconds
    mode: Literal["simulate", "deploy", "reproduce"]
    chosen_round: int | None = None
    site_level_epsilon: float | None = None


def build_record(outcome: Outcome) -> Record:
    """The record of a finished run; nothing in it is about a single patient."""
    settings, model, seen = outcome.settings, outcome.settings.model, _provenance(outcome)
    seconds = outcome.traffic.seconds
    return Record(
        run_id=outcome.declaration.run_id,
        mode=outcome.mode,
        config_hash=settings.sha256(),
        seeds={"seed": settings.seed, "privacy.noise_seed": settings.privacy.noise_seed},
        versions={"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}, **_extensions(settings)},
        started=outcome.started.isoformat(timespec="seconds"),
        finished=(outcome.started + timedelta(seconds=outcome.seconds.total)).isoformat(timespec="seconds"),
        seconds=outcome.seconds,
        data=_data(outcome),
        model=ModelSection(
            backbone="+".join(model.backbone),
            weights_sha256=outcome.weights_sha256,
            scope=_scope(settings),
            parameters_trained=outcome.start.head.num_parameters,
        ),
        synthesis=SynthesisSection(
            use=settings.synthesis.use,
            source=outcome.start.source,
            images=outcome.start.images,
            sha256=outcome.start.sha256,
            provenance=seen,
            set_sha256=outcome.start.origin.sha256 if outcome.start.origin else "",
            total=synthetic_sentence(outcome.start.source, seen),
        ),
        privacy=_privacy(outcome, seen),
        evaluation=dict(outcome.evaluation),
        federation=FederationSection(
            strategy=settings.federation.resolved_strategy,
            rounds=outcome.declaration.rounds,
            sites=len(outcome.budget.sites),
            bytes_up=outcome.traffic.bytes_up,
            bytes_down=outcome.traffic.bytes_down,
            seconds_per_round=sum(seconds) / max(1, len(seconds)),
            central=_central(outcome),
            failed_rounds=tuple(outcome.traffic.failed),
            weights=_weights(outcome.budget),
        ),
    )


def _weights(budget: BudgetView) -> tuple[SiteWeight, ...]:
    """What every site that took part weighed, and when it pointed against the others."""
    return tuple(
        SiteWeight(
            site=site.site,
            images=site.images,
            share=site.largest_share,
            outsized=site.site in budget.outsized,
            against=tuple(site.against),
        )
        for site in budget.sites.values()
        if site.epsilon > 0
    )


def _central(outcome: Outcome) -> CentralPrivacy | None:
    """What the server's own noise is worth, or None where it added none."""
    if outcome.site_level_epsilon is None:
        return None
    epsilon, central = outcome.site_level_epsilon, outcome.settings.federation.central
    aggregates = outcome.declaration.rounds + int(outcome.declaration.mean_fraction > 0)
    return CentralPrivacy(
        epsilon=epsilon,
        delta=central.delta,
        noise_multiplier=central.noise_multiplier,
        clipping_norm=central.clipping_norm,
        guarantee=site_level_sentence(
            epsilon=epsilon,
            delta=central.delta,
            noise_multiplier=central.noise_multiplier,
            clipping_norm=central.clipping_norm,
            noise_seed=outcome.settings.privacy.noise_seed,
        ),
        releases=aggregates - len(outcome.traffic.failed),
    )


def _scope(settings: Settings) -> str:
    """What private training changed, and what pretraining did."""
    synthesis = settings.synthesis
    if "pretrain" not in synthesis.use or synthesis.pretrain_scope != "network":
        return settings.model.scope
    return f"{settings.model.scope}, after {synthesis.epochs} epochs of synthetic pretraining of the whole network"


def _data(outcome: Outcome) -> DataSection:
    sites = outcome.budget.sites.values()
    combined = hashlib.sha256("".join(site.fingerprint for site in sites).encode()).hexdigest()
    return DataSection(
        source=outcome.settings.data.source,
        fingerprint=combined,
        sites=tuple(
            SiteData(site=site.site, patients=site.patients, images=site.images, malignant_fraction=site.malignant_fraction)
            for site in sites
            # Of a site with another version of the protocol nothing is known.
            if site.images
        ),
    )


def _provenance(outcome: Outcome) -> Provenance:
    charged = [spending for spending in outcome.budget.sites.values() if spending.epsilon > 0]
    return seen_by_generator(
        outcome.start,
        charged,
        overlap=outcome.overlap,
        settings=outcome.settings,
        run_alone=_run_alone(outcome),
        patient_epsilons=[_of_patient_at(outcome.budget, spending.site, run_alone=_run_alone(outcome)) for spending in charged],
    )


def _run_alone(outcome: Outcome) -> bool:
    """A real site keeps one ledger for all runs on its patients, whatever the coordinator would like."""
    return outcome.settings.privacy.ledger == "run" and outcome.mode != "deploy"


def _privacy(outcome: Outcome, seen: Provenance) -> PrivacySection:
    privacy, declaration = outcome.settings.privacy, outcome.declaration
    sites = tuple(_site(outcome, spending) for spending in outcome.budget.sites.values())
    noise: NoiseOrigin = "operating system"
    if privacy.noise_seed is not None:
        noise = "injected"
    elif math.isinf(privacy.target_epsilon):
        noise = "none"
    floating = declaration.noise == "float" and noise == "operating system"
    run_alone = _run_alone(outcome)
    # Rounds and runs follow what came before them: over all runs only the cap that the sites' ledgers enforce is a guarantee.
    charged = [site for site in sites if site.epsilon > 0]
    published = all(site.account_published for site in charged)
    return PrivacySection(
        unit=privacy.unit,
        delta=privacy.delta,
        accountant=privacy.accountant,
        mechanism=_mechanism(outcome),
        target_epsilon=privacy.target_epsilon,
        rounds=declaration.rounds,
        local_steps=declaration.local_steps,
        noise=noise,
        relation=RELATION,
        sites=sites,
        ledger="run" if run_alone else "site",
        guarantee=guarantee_sentence(
            unit=privacy.unit,
            epsilon=max((site.epsilon if run_alone else max(site.cap_epsilon, site.epsilon) for site in charged), default=0.0),
            delta=privacy.delta if run_alone else max((site.cap_delta for site in charged), default=privacy.delta),
            noise=noise,
            ledger="run" if run_alone else "site",
            noise_seed=privacy.noise_seed,
            patient_epsilon=max((site.patient_epsilon if run_alone else _of_patient(site) for site in sites), default=0.0),
            schedule_cost=None if run_alone else _schedule_cost(charged),
            account_published=published,
            caps=[CapHistory(site=site.site, since=site.cap_since, raised=site.cap_raised) for site in charged],
            asked=bool(sites),
            max_images_per_patient=privacy.max_images_per_patient,
            threat=_threat(declaration),
            floating=floating,
        ),
        not_covered=_beyond_threat(declaration, charged)
        + not_covered_sentences(
            evaluation_public=outcome.evaluation_public,
            synthetic_source=outcome.start.source,
            seen=seen,
            chosen_round=outcome.chosen_round,
            ledger="run" if run_alone else "site",
            account_published=published,
            floating=floating,
        ),
        aggregation=declaration.aggregation,
        min_survivors=declaration.min_survivors,
        colluders=declaration.colluders,
        cautions=_cautions(outcome),
    )


def _cautions(outcome: Outcome) -> tuple[str, ...]:
    """A sentence for each site at which delta is too large to mean anything, or that stood out from the others."""
    delta = outcome.settings.privacy.delta
    found = ((site, delta_warning(delta=delta, patients=of.patients)) for site, of in outcome.budget.sites.items())
    return tuple(f"{site}: {said}." for site, said in found if said) + _of_aggregation(outcome.budget)


def _of_aggregation(budget: BudgetView) -> tuple[str, ...]:
    """A sentence for each site that declared out of proportion, or pointed against the others and was counted all the same."""
    sizes = tuple(f"{outsized_text(site, budget)}." for site in budget.outsized)
    counted = {
        name: [index for index in site.against if (index, "direction") not in site.rejected]
        for name, site in budget.sites.items()
    }
    return sizes + tuple(
        f"{name}: its updates pointed against the others' by round {', '.join(map(str, rounds))}, and were counted."
        for name, rounds in counted.items()
        if rounds
    )


def _schedule_cost(charged: Sequence[SitePrivacy]) -> float | None:
    """The largest published cost of an account, None where a site does not publish its own."""
    costs = [site.epsilon_account for site in charged]
    return None if None in costs else max((cost for cost in costs if cost is not None), default=0.0)


def _of_patient(site: SitePrivacy) -> float:
    """A patient's figure over all runs, or of this one where the site publishes no more."""
    return site.patient_epsilon if site.patient_epsilon_account is None else site.patient_epsilon_account


def _of_patient_at(budget: BudgetView, site: str, *, run_alone: bool) -> float:
    account = None if run_alone else budget.patient_epsilon_account(site)
    return budget.patient_epsilon(site) if account is None else account


def _mechanism(outcome: Outcome) -> str:
    shares = outcome.declaration.noise_shares
    return _mechanism_text(outcome.settings) + (f", noise in shares of {shares} sites" if shares > 1 else "")


def _threat(declaration: Declaration) -> str:
    if declaration.noise_shares == 1:
        return ""
    return threat_text(min_survivors=declaration.min_survivors, colluders=declaration.colluders)


def _beyond_threat(declaration: Declaration, charged: Sequence[SitePrivacy]) -> tuple[str, ...]:
    if declaration.noise_shares == 1 or not charged:
        return ()
    other_site = max(site.epsilon_other_site for site in charged)
    all_colluding = max(site.epsilon_all_colluding for site in charged)
    return (shared_noise_sentence(other_site=other_site, all_colluding=all_colluding),)


def _site(outcome: Outcome, spending: SiteSpending) -> SitePrivacy:
    seen_by = outcome.budget.adversaries(spending.site, min_survivors=outcome.declaration.min_survivors)
    return SitePrivacy(
        site=spending.site,
        epsilon=spending.epsilon,
        epsilon_account=spending.epsilon_account,
        epsilon_after_round=tuple(spending.epsilon_after_round),
        patient_epsilon=outcome.budget.patient_epsilon(spending.site),
        mechanism=_mechanism(outcome),
        budget_left=spending.budget_left,
        rounds=spending.rounds,
        refused=spending.reason not in ("", EXCLUDED, REVOKED),
        patient_epsilon_account=outcome.budget.patient_epsilon_account(spending.site),
        cap_epsilon=spending.cap_epsilon,
        cap_delta=spending.cap_delta,
        cap_since=spending.cap_since,
        cap_raised=spending.cap_raised,
        account_published=spending.epsilon_account is not None,
        mismatches=tuple(spending.mismatches),
        unanswered=tuple(spending.unanswered),
        missed=tuple(spending.missed),
        revoked=tuple(spending.revoked),
        rejected=tuple(
            Rejected(
                round=index,
                reason=reason,
                protocol_versions=(spending.protocol_version, own_version()) if reason == "version" else (),
            )
            for index, reason in spending.rejected
        ),
        ledger_head=spending.ledger_head,
        epsilon_other_site=seen_by.other_site,
        epsilon_all_colluding=seen_by.all_colluding,
        events=tuple(spending.events),
        withdrawn_at=spending.withdrawn_at,
        withdrawn_rounds=tuple(spending.withdrawn_rounds),
    )


def _mechanism_text(settings: Settings) -> str:
    """The mechanism in words; one from outside with the distribution that brings its gradient."""
    privacy = settings.privacy
    known = MECHANISM.get((privacy.mechanism, privacy.noise))
    if known is not None:
        return known
    arithmetic = ", discrete Gaussian on a grid" if privacy.noise == "secure" else ""
    return f"full-batch DP descent on the gradient {privacy.mechanism} of {MECHANISMS.origin(privacy.mechanism)}{arithmetic}"


def _extensions(settings: Settings) -> dict[str, str]:
    """Versions of the distributions whose code decided the numbers beside ours, by distribution."""
    return {used.origin.distribution: used.origin.version or used.key for used in extensions_used(settings)}
