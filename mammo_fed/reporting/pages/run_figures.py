"""Which plots a run's report shows, each with its caption."""

from __future__ import annotations

import math
from collections.abc import Mapping

from mammo_fed.data.cohort import BENIGN, MALIGNANT
from mammo_fed.reporting.formatting import headline_set, metric_text, set_title
from mammo_fed.reporting.pages.rendering import Figure
from mammo_fed.reporting.plots import run_plots, score_plots
from mammo_fed.reporting.plots.score_plots import ScoredSet
from mammo_fed.reporting.record.record import Record

__all__ = ["course_figures", "curve_figures"]


def curve_figures(record: Record, sets: Mapping[str, ScoredSet]) -> list[Figure]:
    """ROC, precision-recall, calibration and score plots of `sets`, which must all be public and evaluated."""
    name = headline_set(sets)
    if name is None:
        return []
    intervals = {key: metric_text(record.evaluation[key].auroc, record.evaluation[key].auroc_ci) for key in sets}
    return [
        Figure(
            svg=score_plots.roc(sets, auroc=intervals),
            caption="ROC curves with the area under each and its 95 % interval. The diagonal is guessing.",
        ),
        Figure(
            svg=score_plots.precision_recall(sets, positive=MALIGNANT),
            caption="Precision over recall, malignant as the positive class. Thin lines: guessing.",
        ),
        Figure(
            svg=score_plots.precision_recall(sets, positive=BENIGN),
            caption="Precision over recall, benign as the positive class. Thin lines: guessing.",
        ),
        Figure(
            svg=score_plots.score_histogram(sets[name], name=name),
            caption=f"Scores of the set {set_title(name)}, each class separately.",
        ),
        Figure(
            svg=score_plots.calibration(sets),
            caption="Calibration in ten groups of equal size. On the diagonal, a score is the fraction of malignant images.",
        ),
    ]


def course_figures(record: Record, sets: Mapping[str, ScoredSet]) -> list[Figure]:
    """How the run went: epsilon and AUROC over the rounds (of public `sets`), and the sites' sizes."""
    found = []
    spent = {
        site.site: site.epsilon_after_round
        for site in record.privacy.sites
        if site.epsilon_after_round and all(math.isfinite(value) for value in site.epsilon_after_round)
    }
    if spent:
        void = "" if record.privacy.guaranteed else " The noise of this run was not secret, so these values guarantee nothing."
        svg = run_plots.epsilon_per_round(spent, target=record.privacy.target_epsilon)
        found.append(Figure(svg=svg, caption=f"What each site had spent after each round.{void}"))
    course = {name: scored.round_auroc for name, scored in sets.items() if scored.round_auroc}
    if course:
        found.append(Figure(svg=run_plots.auroc_per_round(course), caption="AUROC of the shared model after each round."))
    sites = record.data.sites
    if sites:
        counts = [site.patients for site in sites], [site.images for site in sites]
        svg = run_plots.site_sizes([site.site for site in sites], *counts)
        found.append(Figure(svg=svg, caption="Patients and images that each site declares it trains on."))
    return found
