"""The report of a run as one HTML file that loads nothing from anywhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Final

from mammo_fed.common.private_files import write_atomically
from mammo_fed.privacy.events import OLDER_RELATIONS, RELATION
from mammo_fed.reporting.formatting import (
    account_text,
    budget_text,
    delta_text,
    epsilon_text,
    headline_set,
    metric_text,
    participation_text,
    set_title,
)
from mammo_fed.reporting.pages.rendering import Card, Figure, Table, render
from mammo_fed.reporting.pages.run_figures import course_figures, curve_figures
from mammo_fed.reporting.plots.score_plots import ScoredSet
from mammo_fed.reporting.record.cap_words import CapHistory, cap_words
from mammo_fed.reporting.record.record import PrivacySection, Record, SiteWeight

__all__ = ["PAGE_NAME", "Curves", "write_page"]

PAGE_NAME: Final = "report.html"
RELATION_MEANING: Final = "one unit contributes nothing, the cohort's sizes are public constants"
RESULT_COLUMNS: Final = (
    "Evaluation set",
    "AUROC [95 % CI]",
    "AUPRC, malignant positive",
    "AUPRC, benign positive",
    "Brier score",
    "Sensitivity at 90 % specificity",
    "Patients",
    "Images",
)


@dataclass(frozen=True, kw_only=True)
class Curves:
    """Scores behind the plots, by evaluation set: labels and scores, no identifier of any kind."""

    sets: Mapping[str, ScoredSet] = field(default_factory=dict)

    @property
    def public(self) -> dict[str, ScoredSet]:
        """The sets that a report may draw."""
        return {name: scored for name, scored in self.sets.items() if scored.public}


def write_page(folder: Path, record: Record, curves: Curves, *, settings: str = "") -> Path:
    """Write report.html into `folder`, which must exist; a crash leaves what was there before.

    Curves, histograms and the course of the AUROC are drawn for public sets only: each gives back scores of single patients.

    Args:
      folder: the run folder.
      record: what the page reports.
      curves: scores behind the plots.
      settings: the run's settings as text, shown as they are.

    Returns:
      The path of the page.
    """
    path = Path(folder) / PAGE_NAME
    page = render(
        "run.html",
        record=record,
        when=_when(record),
        guaranteed=_guaranteed(record.privacy),
        gained=_gained(record),
        results=_results(record),
        privacy=_privacy(record.privacy),
        terms=_terms(record.privacy),
        figures=_figures(record, curves),
        hidden=", ".join(set_title(name) for name in curves.sets if name not in curves.public),
        data=_data(record),
        how_it_ran=_how_it_ran(record),
        settings=settings.expandtabs(4).splitlines(),
    )
    write_atomically(path, page)
    return path


def _when(record: Record) -> str:
    finished = datetime.fromisoformat(record.finished)
    return f"mammo-fed, {record.mode}, finished {finished:%Y-%m-%d %H:%M %Z} after {record.seconds.total:,.1f} s"


def _guaranteed(privacy: PrivacySection) -> Card:
    if privacy.epsilon == 0:
        value = "Nothing was released"
    elif privacy.guaranteed:
        runs = "" if privacy.ledger == "run" else ", all runs"
        value = f"ε = {epsilon_text(privacy.guaranteed_epsilon)} for each {privacy.unit}{runs}"
    else:
        value = "No privacy guarantee"
    return Card(value=value, note=privacy.guarantee, kind="good" if privacy.guaranteed else "bad")


def _gained(record: Record) -> Card:
    name = headline_set(record.evaluation)
    if name is None:
        return Card(value="Not measured", note="The run has no evaluation set.")
    found = record.evaluation[name]
    if found.auroc is None:
        return Card(value="Withheld", note=f"{set_title(name)}: the sites' policies do not publish its metrics.")
    between = f", 95 % interval {found.auroc_ci[0]:.3f} to {found.auroc_ci[1]:.3f}" if found.auroc_ci else ""
    note = (
        f"{set_title(name)}{between}; {found.n_images:,} images of {found.n_patients:,} patients. "
        "The chance that a malignant mass scores above a benign one: 0.5 is guessing, 1 is perfect."
    )
    return Card(value=f"AUROC {found.auroc:.3f}", note=note)


def _results(record: Record) -> Table:
    rows = [
        (
            set_title(name),
            metric_text(found.auroc, found.auroc_ci),
            metric_text(found.auprc_malignant),
            metric_text(found.auprc_benign),
            metric_text(found.brier),
            metric_text(found.sensitivity_at_90_specificity),
            f"{found.n_patients:,}",
            f"{found.n_images:,}",
        )
        for name, found in record.evaluation.items()
    ]
    caption = "Higher is better, except for the Brier score. Intervals resample whole patients."
    return Table(head=RESULT_COLUMNS, rows=rows, caption=caption)


def _privacy(privacy: PrivacySection) -> Table:
    by_image, run_alone = privacy.unit == "image", privacy.ledger == "run"
    head = [
        "Site",
        "ε this run",
        *(["ε of a patient"] if by_image else []),
        "ε of the account" if run_alone else "Schedule cost of the account",
        *(["Schedule cost, a patient"] if by_image and not run_alone else []),
        "Budget left",
        "Rounds",
        "Participation",
    ]
    rows = [
        (
            site.site,
            epsilon_text(site.epsilon),
            *([epsilon_text(site.patient_epsilon)] if by_image else []),
            account_text(site.epsilon_account),
            *([account_text(site.patient_epsilon_account)] if by_image and not run_alone else []),
            budget_text(site.budget_left),
            str(site.rounds),
            participation_text(rounds=site.rounds, refused=site.refused, charged=bool(site.unanswered)),
        )
        for site in privacy.sites
    ]
    caption = (
        f"At δ = {delta_text(privacy.delta)}, the server's figure or the site's own, whichever is larger. Epsilon of the "
        "account is what all recorded runs of the site cost together. Epsilons are rounded up, budgets down."
    )
    return Table(head=head, rows=rows, caption=caption)


def _terms(privacy: PrivacySection) -> list[tuple[str, str]]:
    target = epsilon_text(privacy.target_epsilon)
    return [
        ("Unit", privacy.unit),
        ("Target ε", "none" if target == "∞" else target),
        ("Mechanism", privacy.mechanism),
        ("Schedule", f"rounds: {privacy.rounds}, local steps in each: {privacy.local_steps}"),
        ("Noise", privacy.noise),
        ("Accountant", privacy.accountant),
        *([("Cap of all runs", caps)] if privacy.ledger == "site" and (caps := _caps(privacy)) else []),
        ("Neighbouring cohorts", _relation(privacy.relation)),
    ]


def _relation(relation: str) -> str:
    if relation not in (RELATION, *OLDER_RELATIONS):
        return relation
    name = relation if relation == RELATION else f"{relation}, now called {RELATION}"
    return f"{name}: {RELATION_MEANING}"


def _caps(privacy: PrivacySection) -> str:
    """Since when the caps of sites that were charged hold, and every raise."""
    charged = [site for site in privacy.sites if site.epsilon > 0]
    return cap_words([CapHistory(site=site.site, since=site.cap_since, raised=site.cap_raised) for site in charged])


def _figures(record: Record, curves: Curves) -> list[Figure]:
    public = {name: scored for name, scored in curves.public.items() if _shown(record, name)}
    return [*curve_figures(record, public), *course_figures(record, public)]


def _shown(record: Record, name: str) -> bool:
    return name in record.evaluation and record.evaluation[name].auroc is not None


def _data(record: Record) -> Table:
    weights = {weight.site: weight for weight in record.federation.weights}
    rows = [
        (
            site.site,
            f"{site.patients:,}",
            f"{site.images:,}",
            "withheld" if site.malignant_fraction is None else f"{100 * site.malignant_fraction:.1f} %",
            *([_share_text(weights.get(site.site))] if weights else []),
        )
        for site in record.data.sites
    ]
    caption = f"Source: {record.data.source}. Fingerprint: {record.data.fingerprint}"
    head = ("Site", "Patients", "Images", "Malignant images", *(["Largest weight in an average"] if weights else []))
    return Table(head=head, rows=rows, caption=caption)


def _share_text(weight: SiteWeight | None) -> str:
    """What a site weighed for the size that it declared."""
    if weight is None or weight.share is None:
        return "not seen"
    return f"{100 * weight.share:.1f} %" + (" (declared out of proportion)" if weight.outsized else "")


def _how_it_ran(record: Record) -> list[tuple[str, str]]:
    model, synthesis, federation, seconds = record.model, record.synthesis, record.federation, record.seconds
    megabytes = f"{federation.bytes_up / 1e6:,.2f} MB up, {federation.bytes_down / 1e6:,.2f} MB down"
    return [
        ("Backbone", model.backbone),
        ("Weights (SHA-256)", model.weights_sha256),
        ("Trained", f"{model.scope}, {model.parameters_trained:,} parameters"),
        (
            "Synthetic images",
            f"{synthesis.images:,} from {synthesis.source} (sha256 {synthesis.sha256[:16]}...); use: {', '.join(synthesis.use)}"
            if synthesis.use
            else "not used",
        ),
        ("Generator trained on", synthesis.provenance.trained_on),
        ("Strategy", f"{federation.strategy}, {federation.rounds} rounds, {federation.sites} sites"),
        ("Messages", f"{megabytes}; {federation.seconds_per_round:.2f} s a round"),
        (
            "Time",
            f"features {seconds.features:,.1f} s, training {seconds.training:,.1f} s, evaluation {seconds.evaluation:,.1f} s",
        ),
        ("Seeds", ", ".join(f"{key}: {'operating system' if seed is None else seed}" for key, seed in record.seeds.items())),
        ("Hash of the settings", record.config_hash),
        ("Versions", ", ".join(f"{key} {version}" for key, version in record.versions.items())),
    ]
