"""The report of a run as one HTML file that loads nothing from anywhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Final

from mammo_fed.reporting.pages import markup
from mammo_fed.reporting.pages.comparison_page import write_comparison_page
from mammo_fed.reporting.pages.markup import Html
from mammo_fed.reporting.pages.run_figures import course_figures, curve_figures
from mammo_fed.reporting.plots.plots import ScoredSet
from mammo_fed.reporting.record.record import PrivacySection, Record, write_atomically
from mammo_fed.reporting.record.statements import (
    HOW_TO_READ,
    budget_text,
    delta_text,
    epsilon_text,
    headline_set,
    metric_text,
    participation_text,
    set_title,
)

__all__ = ["PAGE_NAME", "Curves", "ScoredSet", "write_comparison_page", "write_page"]

PAGE_NAME: Final = "report.html"
RELATION_WORDS: Final = {"zero_out": "zero_out: the data of one unit is zeroed out, the cohort's size is public"}
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
    """Scores behind the plots, by evaluation set: labels and scores alone, no identifier of any kind."""

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
    parts = [
        _header(record),
        Html(f'<div class="cards">{_guaranteed(record.privacy)}{_gained(record)}</div>'),
        _results(record),
        _privacy(record.privacy),
        *_site_level(record),
        _plots(record, curves),
        markup.section("How to read this", markup.listing(HOW_TO_READ)),
        *_with_synthetic(record),
        markup.section("What epsilon does not cover", markup.listing(record.privacy.not_covered)),
        _data(record),
        _how_it_ran(record),
    ]
    if settings:
        parts.append(markup.details("Settings", Html(f"<pre>{markup.lines(settings)}</pre>")))
    write_atomically(path, markup.document(f"mammo-fed: {record.run_id}", *parts))
    return path


def _site_level(record: Record) -> list[Html]:
    """What the server's own noise protects; nothing where it added none."""
    central = record.federation.central
    return [] if central is None else [markup.section("Each site as a whole", markup.paragraph(central.guarantee))]


def _with_synthetic(record: Record) -> list[Html]:
    """What set and run guarantee together; nothing for records that do not say."""
    total = record.synthesis.total
    return [markup.section("With the synthetic images", markup.paragraph(total))] if total else []


def _header(record: Record) -> Html:
    finished = datetime.fromisoformat(record.finished)
    when = f"mammo-fed, {record.mode}, finished {finished:%Y-%m-%d %H:%M %Z} after {record.seconds.total:,.1f} s"
    return Html(f"<header><h1>{markup.text(record.run_id)}</h1>{markup.paragraph(when, kind='soft')}</header>")


def _guaranteed(privacy: PrivacySection) -> Html:
    if privacy.epsilon == 0:
        value = "Nothing was released"
    elif privacy.guaranteed:
        runs = "" if privacy.ledger == "run" else ", all runs"
        value = f"ε = {epsilon_text(privacy.guaranteed_epsilon)} for each {privacy.unit}{runs}"
    else:
        value = "No privacy guarantee"
    return markup.card("Guaranteed", value, privacy.guarantee, kind="good" if privacy.guaranteed else "bad")


def _gained(record: Record) -> Html:
    name = headline_set(record.evaluation)
    if name is None:
        return markup.card("Gained", "Not measured", "The run has no evaluation set.")
    found = record.evaluation[name]
    if found.auroc is None:
        return markup.card("Gained", "Withheld", f"{set_title(name)}: the sites' policies do not publish its metrics.")
    between = f", 95 % interval {found.auroc_ci[0]:.3f} to {found.auroc_ci[1]:.3f}" if found.auroc_ci else ""
    note = (
        f"{set_title(name)}{between}; {found.n_images:,} images of {found.n_patients:,} patients. "
        "The chance that a malignant mass scores above a benign one: 0.5 is guessing, 1 is perfect."
    )
    return markup.card("Gained", f"AUROC {found.auroc:.3f}", note)


def _results(record: Record) -> Html:
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
    return markup.section("Results", markup.table(RESULT_COLUMNS, rows, caption=caption))


def _privacy(privacy: PrivacySection) -> Html:
    by_image, run_alone = privacy.unit == "image", privacy.ledger == "run"
    head = [
        "Site",
        "ε this run",
        *(["ε of a patient"] if by_image else []),
        "ε of the account" if run_alone else "Schedule cost of the account",
        *(["Schedule cost, a patient"] if by_image and not run_alone else []),
        "Budget left",
        "Rounds",
        "Part taken",
    ]
    rows = [
        (
            site.site,
            epsilon_text(site.epsilon),
            *([epsilon_text(site.patient_epsilon)] if by_image else []),
            epsilon_text(site.epsilon_account),
            *([epsilon_text(site.patient_epsilon_account)] if by_image and not run_alone else []),
            budget_text(site.budget_left),
            str(site.rounds),
            participation_text(rounds=site.rounds, refused=site.refused),
        )
        for site in privacy.sites
    ]
    target = "none" if epsilon_text(privacy.target_epsilon) == "∞" else epsilon_text(privacy.target_epsilon)
    caption = (
        f"At δ = {delta_text(privacy.delta)}, the server's figure or the site's own, whichever is larger. Epsilon of the "
        "account is what all recorded runs of the site cost together. Epsilons are rounded up, budgets down."
    )
    warnings = [markup.listing(privacy.warnings)] if privacy.warnings else []
    terms = [
        ("Unit", privacy.unit),
        ("Target ε", target),
        ("Mechanism", privacy.mechanism),
        ("Schedule", f"rounds: {privacy.rounds}, local steps in each: {privacy.local_steps}"),
        ("Noise", privacy.noise),
        ("Accountant", privacy.accountant),
        ("Neighbouring cohorts", RELATION_WORDS.get(privacy.relation, privacy.relation)),
    ]
    if warnings:
        warnings = [Html(f'<div class="warning" role="note"><strong>Warning</strong>{markup.join(warnings)}</div>')]
    return markup.section("Privacy", *warnings, markup.table(head, rows, caption=caption), markup.facts(terms))


def _plots(record: Record, curves: Curves) -> Html:
    public = {name: scored for name, scored in curves.public.items() if _shown(record, name)}
    figures = [*curve_figures(record, public), *course_figures(record, public)]
    content = [Html(f'<div class="plots">{markup.join(figures)}</div>')] if figures else []
    hidden = ", ".join(set_title(name) for name in curves.sets if name not in curves.public)
    if hidden:
        note = f"Not drawn: {hidden}. Those patients are not declared public, and a curve gives back scores of single patients."
        content.append(markup.paragraph(note, kind="soft"))
    return markup.section("Plots", *content) if content else Html("")


def _shown(record: Record, name: str) -> bool:
    return name in record.evaluation and record.evaluation[name].auroc is not None


def _data(record: Record) -> Html:
    rows = [
        (
            site.site,
            f"{site.patients:,}",
            f"{site.images:,}",
            "withheld" if site.malignant_fraction is None else f"{100 * site.malignant_fraction:.1f} %",
        )
        for site in record.data.sites
    ]
    caption = f"Source: {record.data.source}. Fingerprint: {record.data.fingerprint}"
    head = ("Site", "Patients", "Images", "Malignant images")
    return markup.section("Training data", markup.table(head, rows, caption=caption))


def _how_it_ran(record: Record) -> Html:
    model, synthesis, federation, seconds = record.model, record.synthesis, record.federation, record.seconds
    megabytes = f"{federation.bytes_up / 1e6:,.2f} MB up, {federation.bytes_down / 1e6:,.2f} MB down"
    entries = [
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
    return markup.section("How it ran", markup.facts(entries))
