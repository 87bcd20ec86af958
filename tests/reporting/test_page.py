"""The page loads nothing, escapes everything, is balanced HTML and says what the record says."""

import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from mammo_fed.errors import DataError
from mammo_fed.reporting.pages.comparison_page import write_comparison_page
from mammo_fed.reporting.pages.run_page import Curves, write_page
from mammo_fed.reporting.plots.score_plots import ScoredSet
from mammo_fed.reporting.record.record import Evaluation

VOID = {"meta", "br", "hr", "img", "input", "link", "path", "use"}
HOSTILE = "<script>alert(1)</script>\"'><img src=http://evil.example/x onerror=alert(1)>"


class Reader(HTMLParser):
    """Collects tags, attributes and text, and fails on a tag that is closed out of turn."""

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.attributes, self.words = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return re.sub(r"\s+", " ", " ".join(self.words))


def read(path):
    reader = Reader()
    reader.feed(path.read_text(encoding="utf-8"))
    reader.close()
    assert reader.open == []
    return reader


@pytest.fixture
def page(record, curves, tmp_path):
    return write_page(tmp_path, record, curves, settings="privacy:\n\tunit: patient\n  note: <b>&")


def test_the_page_is_balanced_and_has_unique_identifiers(page):
    identifiers = [value for name, value in read(page).attributes if name == "id"]
    assert len(identifiers) == len(set(identifiers)) > 100


def test_the_page_loads_nothing_and_runs_nothing(page):
    text = page.read_text(encoding="utf-8")
    reader = read(page)
    assert not re.search(r"""(?:src|href|action|data)\s*=\s*["']?\s*(?:https?:)?//""", text, re.IGNORECASE)
    assert not re.search(r"@import|url\(\s*[\"']?(?!#)", text)
    assert not {"script", "link", "img", "iframe", "object", "embed", "base", "form"} & set(reader.tags)
    assert not [name for name, _ in reader.attributes if name.startswith("on")]
    assert "default-src 'none'" in text


def test_the_page_leads_with_the_guarantee_and_the_gain(page, record):
    text = read(page).text
    assert text.index("ε = 6 for each patient") < text.index("AUROC 0.") < text.index("Evaluation set")
    assert text.count(record.privacy.guarantee) == 1
    assert f"AUROC {record.evaluation['test'].auroc:.3f}" in text


def test_the_results_show_every_metric_and_name_the_positive_class(page, record):
    text = read(page).text
    assert "AUPRC, malignant positive" in text
    assert "AUPRC, benign positive" in text
    for found in record.evaluation.values():
        low, high = found.auroc_ci
        assert f"{found.auroc:.3f} [{low:.3f}, {high:.3f}]" in text
        for value in (found.auprc_benign, found.auprc_malignant, found.brier, found.sensitivity_at_90_specificity):
            assert f"{value:.3f}" in text


def test_the_page_says_who_refused_and_what_is_not_covered(page, record):
    text = read(page).text
    assert "refused after round 7" in text
    for sentence in record.privacy.not_covered:
        assert sentence in text


def test_settings_keep_their_lines_and_are_escaped(page):
    text = page.read_text(encoding="utf-8")
    assert "<pre>privacy:\n    unit: patient\n  note: &lt;b&gt;&amp;</pre>" in text
    assert read(page).tags.count("details") == 1


def test_hostile_names_stay_text(record, curves, tmp_path):
    data = replace(record.data, sites=(replace(record.data.sites[0], site=HOSTILE),), source=HOSTILE, fingerprint=HOSTILE)
    privacy = replace(
        record.privacy,
        sites=(replace(record.privacy.sites[0], site=HOSTILE, mechanism=HOSTILE),),
        guarantee=HOSTILE,
        not_covered=(HOSTILE,),
        accountant=HOSTILE,
        relation=HOSTILE,
    )
    model = replace(record.model, backbone=HOSTILE, weights_sha256=HOSTILE, scope=HOSTILE)
    hostile = replace(
        record,
        run_id=HOSTILE,
        config_hash=HOSTILE,
        seeds={HOSTILE: 1},
        versions={HOSTILE: HOSTILE},
        data=data,
        privacy=privacy,
        model=model,
        evaluation={HOSTILE: record.evaluation["test"]},
    )
    drawn = Curves(sets={HOSTILE: curves.sets["test"]})
    for path in (
        write_page(tmp_path, hostile, drawn, settings=HOSTILE),
        write_comparison_page(tmp_path / "comparison.html", [hostile]),
    ):
        reader = read(path)
        assert not {"script", "img"} & set(reader.tags)
        assert not [name for name, _ in reader.attributes if name.startswith("on")]
        assert HOSTILE in reader.text


def test_scores_of_patients_who_are_not_public_are_not_drawn(record, curves, tmp_path):
    private = {name: replace(scored, public=False) for name, scored in curves.sets.items()}
    page = write_page(tmp_path, record, Curves(sets=private))
    text = page.read_text(encoding="utf-8")
    for plot in ("roc", "precision-recall-malignant", "precision-recall-benign", "scores", "calibration", "rounds"):
        assert f'id="{plot}-' not in text
    assert 'id="epsilon-' in text
    assert "Not drawn: Validation, Test, External test." in read(page).text


def test_scores_of_a_private_set_leave_no_trace_in_the_page(record, curves, tmp_path):
    draws = np.random.default_rng(1)
    private = replace(curves.sets["val"], public=False, round_auroc=(0.1, 0.2))
    other = replace(private, scores=draws.uniform(size=len(private.scores)), round_auroc=(0.7,))
    pages = [
        write_page(tmp_path, record, Curves(sets={**curves.sets, "val": hidden})).read_text(encoding="utf-8")
        for hidden in (private, other)
    ]
    assert pages[0] == pages[1]


def test_metrics_that_are_withheld_are_neither_shown_nor_drawn(record, curves, tmp_path):
    hidden = replace(record, evaluation={"test": Evaluation.withheld(n_patients=212, n_images=402)})
    page = write_page(tmp_path, hidden, curves)
    assert "Withheld" in read(page).text
    assert 'id="roc-' not in page.read_text(encoding="utf-8")


@pytest.mark.parametrize("noise", ["injected", "none"])
def test_a_run_without_a_guarantee_does_not_headline_an_epsilon(record, curves, tmp_path, noise):
    page = write_page(tmp_path, replace(record, privacy=replace(record.privacy, noise=noise)), curves)
    text = read(page).text
    assert "No privacy guarantee" in text
    assert "ε = 6" not in text
    assert "these values guarantee nothing" in text


def test_an_infinite_epsilon_is_shown_as_such_and_not_drawn(record, curves, tmp_path):
    sites = tuple(
        replace(site, epsilon=float("inf"), epsilon_after_round=(float("inf"),) * 12) for site in record.privacy.sites
    )
    privacy = replace(record.privacy, sites=sites, noise="none", target_epsilon=float("inf"))
    page = write_page(tmp_path, replace(record, privacy=privacy), curves)
    assert "∞" in read(page).text
    assert 'id="epsilon-' not in page.read_text(encoding="utf-8")


def test_an_image_level_run_shows_the_patients_epsilon(record, curves, tmp_path):
    sites = tuple(replace(site, patient_epsilon=14.53) for site in record.privacy.sites)
    page = write_page(tmp_path, replace(record, privacy=replace(record.privacy, unit="image", sites=sites)), curves)
    text = read(page).text
    assert "ε of a patient" in text.replace("\u00a0", " ")
    assert "14.53" in text
    assert "ε = 6 for each image" in text


def test_a_run_without_evaluation_or_sites_still_has_a_page(record, tmp_path):
    bare = replace(
        record,
        evaluation={},
        data=replace(record.data, sites=()),
        privacy=replace(record.privacy, sites=()),
    )
    text = read(write_page(tmp_path, bare, Curves())).text
    assert "Not measured" in text
    assert "Nothing was released" in text


def test_the_same_run_gives_the_same_page(record, curves, tmp_path):
    first = write_page(tmp_path, record, curves).read_bytes()
    assert write_page(tmp_path, record, curves).read_bytes() == first


def test_a_comparison_shows_every_run_with_its_guarantee(record, tmp_path):
    infinite = tuple(replace(site, epsilon=float("inf")) for site in record.privacy.sites)
    other = replace(
        record,
        run_id="without noise",
        privacy=replace(record.privacy, sites=infinite, noise="none", guarantee="None: no noise."),
        evaluation={"test": record.evaluation["test"]},
    )
    path = write_comparison_page(tmp_path / "comparison.html", [record, other])
    reader = read(path)
    assert reader.tags.count("svg") == 1
    for words in (record.run_id, "without noise", "None: no noise.", record.privacy.guarantee, "not measured", "∞"):
        assert words in reader.text


def test_a_comparison_of_runs_whose_metrics_are_withheld_has_no_plot(record, tmp_path):
    hidden = replace(record, evaluation={"test": Evaluation.withheld(n_patients=1, n_images=1)})
    assert "svg" not in read(write_comparison_page(tmp_path / "comparison.html", [hidden])).tags


def test_a_comparison_of_nothing_is_refused(tmp_path):
    with pytest.raises(DataError, match="at least one run"):
        write_comparison_page(tmp_path / "comparison.html", [])


def test_the_scores_that_a_page_takes_have_no_room_for_identifiers():
    assert set(ScoredSet.__dataclass_fields__) == {"labels", "scores", "public", "round_auroc"}
