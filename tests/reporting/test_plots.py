"""Plots are deterministic, self-contained SVG that can stand beside each other, and show what they are given."""

import re
from xml.etree import ElementTree

import matplotlib as mpl
import numpy as np
import pytest

from mammo_fed.data.cohort import BENIGN, MALIGNANT
from mammo_fed.errors import DataError
from mammo_fed.reporting.plots import run_plots, score_plots
from mammo_fed.reporting.plots.run_plots import TradeOffPoint
from mammo_fed.reporting.plots.score_plots import ScoredSet

HOSTILE = '_<script>alert("$x^2$")</script> & 病院'


def paint_all(curves, name="test"):
    sets = {name: curves.sets["test"], "val": curves.sets["val"]}
    points = [TradeOffPoint(epsilon=epsilon, auroc=0.8, auroc_ci=(0.7, 0.9)) for epsilon in (1.0, 6.0, float("inf"))]
    return {
        "roc": score_plots.roc(sets, auroc=dict.fromkeys(sets, "0.9")),
        "precision-recall-malignant": score_plots.precision_recall(sets, positive=MALIGNANT),
        "precision-recall-benign": score_plots.precision_recall(sets, positive=BENIGN),
        "scores": score_plots.score_histogram(sets[name], name=name),
        "calibration": score_plots.calibration(sets),
        "epsilon": run_plots.epsilon_per_round({name: (1.0, 2.0), "b": (1.0, 2.0), "c": (1.0,)}, target=2.0),
        "rounds": run_plots.auroc_per_round({name: (0.5, 0.6)}),
        "sites": run_plots.site_sizes([name, "other"], [100, 120], [1234, 240]),
        "trade-off": run_plots.trade_off({name: points}),
    }


def words(svg):
    return " ".join(ElementTree.fromstring(svg).itertext())  # noqa: S314 -- our own output


@pytest.fixture(scope="module")
def painted(curves):
    return paint_all(curves)


def test_the_same_data_gives_the_same_bytes(curves, painted):
    assert paint_all(curves) == painted


def test_every_plot_is_well_formed_and_has_words_for_those_who_do_not_see_it(painted):
    for name, svg in painted.items():
        root = ElementTree.fromstring(svg)  # noqa: S314 -- our own output
        assert root.tag == "{http://www.w3.org/2000/svg}svg", name
        assert root.get("role") == "img"
        assert len(root.get("aria-label")) > 10


def test_plots_on_one_page_share_no_identifier(painted):
    found = [identifier for svg in painted.values() for identifier in re.findall(r'\bid="([^"]*)"', svg)]
    assert len(found) == len(set(found)) > 100


def test_every_reference_inside_a_plot_has_its_target(painted):
    for svg in painted.values():
        targets = set(re.findall(r'\bid="([^"]*)"', svg))
        assert set(re.findall(r'(?:url\(#|href="#)([^")]*)', svg)) <= targets


def test_a_plot_carries_no_date_no_metadata_no_style_and_no_font(painted):
    for svg in painted.values():
        assert not re.search(r"<metadata|<style|<\?xml|<!DOCTYPE|font-face|matplotlib\.org", svg)


def test_colours_follow_the_page_where_it_defines_them(painted):
    for svg in painted.values():
        assert "var(--ink, #1f2933)" in svg
        assert "var(--series-1, #0072b2)" in svg
        assert not re.search(r"(?:fill|stroke): #(?:1f2933|0072b2)", svg)


def test_hostile_names_are_text_and_nothing_else(curves):
    for svg in paint_all(curves, HOSTILE).values():
        assert "<script" not in svg
    shown = words(run_plots.site_sizes([HOSTILE], [1], [2]))
    assert '_<script>alert("$x^2$")' in shown


def test_plotting_leaves_the_settings_of_matplotlib_alone(curves):
    before = dict(mpl.rcParams)
    paint_all(curves)
    assert dict(mpl.rcParams) == before


def test_sites_that_spent_the_same_share_a_line(painted):
    assert "2 sites alike" in words(painted["epsilon"])
    assert "target 2" in words(painted["epsilon"])


def test_an_infinite_target_draws_no_target():
    assert "target" not in words(run_plots.epsilon_per_round({"a": (1.0,)}, target=float("inf")))


def test_runs_without_noise_are_named_in_the_trade_off(painted):
    assert "no noise" in words(painted["trade-off"])


def test_only_the_largest_of_very_many_sites_are_drawn():
    names = [f"site-{row:03}" for row in range(200)]
    shown = words(run_plots.site_sizes(names, range(1, 201), range(1, 201)))
    assert {name for name in names if name in shown} == set(names[-30:])


def test_a_precision_recall_plot_says_which_class_is_positive(painted):
    assert "Precision (malignant)" in words(painted["precision-recall-malignant"])
    assert "Precision (benign)" in words(painted["precision-recall-benign"])


def test_calibration_groups_are_of_equal_size_and_their_intervals_hold_the_fraction():
    draws = np.random.default_rng(0)
    scores = draws.uniform(size=5000)
    labels = (draws.uniform(size=5000) < scores).astype(np.int64)
    mean_score, fraction, low, high = score_plots.calibration_points(ScoredSet(labels=labels, scores=scores, public=True))
    np.testing.assert_allclose(mean_score, np.linspace(0.05, 0.95, 10), atol=0.02)
    assert ((low < fraction) & (fraction < high)).all()
    assert (np.abs(fraction - mean_score) < 0.06).all()


@pytest.mark.parametrize(
    ("labels", "scores"), [([0, 1], [0.1]), ([1, 1], [0.1, 0.2]), ([0, 1], [0.1, np.nan]), ([0, 1], [0.1, 3.0]), ([], [])]
)
def test_a_set_that_has_no_curve_is_refused(labels, scores):
    with pytest.raises(DataError, match="must"):
        ScoredSet(labels=np.array(labels), scores=np.array(scores), public=True)
