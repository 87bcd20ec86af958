"""The table says what its rows say, in Markdown, in CSV and on a page that loads nothing; what is absent is a dash."""

import csv
import math
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from mammo_fed.errors import DataError
from mammo_fed.reporting.pages.table_page import Comparison, Stratified, TablePage, write_table_page
from mammo_fed.reporting.plots.score_plots import ScoredSet
from mammo_fed.reporting.plots.table_plots import series_of, utility_plot
from mammo_fed.reporting.table import ABSENT, CSV_COLUMNS, Published, TableRow, table_cells, write_table
from mammo_fed.training.statistics import METRICS, Scores, paired_difference, subgroups, summarise

HOSTILE = "<script>alert(1)</script>\"'><img src=http://evil.example/x onerror=alert(1)>"
WITHOUT_TEST = "Test and external test are not at hand: the folder holds train and val only."
VOID = {"meta", "br", "hr", "img", "input", "link", "path", "use"}


class Reader(HTMLParser):
    """Collects tags, attributes, text and the cells of each table row, and fails on a tag closed out of turn."""

    def __init__(self, path):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.attributes, self.words, self.rows = [], [], [], [], []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert self.open == []
        self.text = re.sub(r"\s+", " ", " ".join(self.words))

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)
        if self.open and self.open[-1] in {"td", "th"}:
            self.rows[-1].append(data)


def scores(seeds=3, separation=1.5, draw=0):
    draws = np.random.default_rng(0)
    patient = np.repeat(np.arange(60), 2)
    label = (np.arange(60) % 2)[patient]
    latent = label * separation + draws.normal(size=60)[patient] + 0.5 * draws.normal(size=120)
    latent = latent + 0.3 * np.random.default_rng(draw).normal(size=(seeds, 120))
    density = np.where(patient < 4, "", "b")
    return Scores(labels=label, patients=patient, scores=1 / (1 + np.exp(-latent)), strata={"density": density, "|v|": density})


@pytest.fixture(scope="module")
def summary():
    return summarise(scores(), bootstrap=100, seed=0)


@pytest.fixture(scope="module")
def one_seed():
    return summarise(scores(seeds=1), bootstrap=100, seed=0)


@pytest.fixture(scope="module")
def rows(summary, one_seed):
    return (
        TableRow(
            key="dbr2",
            title="Real + synthetic",
            group="augmentation",
            epsilon=6.0,
            unit="image",
            sites=1,
            patient_epsilon=14.5,
            paper={"test": Published(auroc=0.617), "external": Published(auroc=0.609, auprc_benign=0.642)},
            summaries={"cv": summary, "test": one_seed},
        ),
        TableRow(
            key="dbr0",
            title="Real data",
            group="real",
            epsilon=math.inf,
            unit=None,
            sites=1,
            paper={"test": Published(auroc=0.778, auprc_benign=0.850)},
            summaries={"cv": one_seed},
        ),
        TableRow(
            key="ours4", title="Our recipe, 4 sites", group="ours", epsilon=1.0, unit="patient", sites=4, patient_epsilon=1.0
        ),
    )


@pytest.fixture
def page(rows, tmp_path):
    a, b = scores(), scores(draw=1, separation=1.2)
    scored = ScoredSet(labels=a.labels, scores=a.scores[0], public=True)
    content = TablePage(
        title="Reproduction",
        rows=rows,
        absent=WITHOUT_TEST,
        notes=("Chosen on train & val.", "Three seeds."),
        curves={
            "cv": {"dbr2": scored, "dbr0": replace(scored, scores=b.scores[0])},
            "test": {"dbr2": scored, "ours4": replace(scored, public=False)},
        },
        comparisons=(
            Comparison(first="dbr2", second="dbr0", set_name="cv", difference=paired_difference(a, b, bootstrap=99, seed=0)),
        ),
        strata=(Stratified(key="dbr2", set_name="cv", groups=subgroups(a, bootstrap=50, seed=0)),),
    )
    return write_table_page(tmp_path, content)


def cells_of(rows, key):
    head, body = table_cells(rows)
    return dict(zip(head, next(cells for cells in body if cells[0] == key), strict=True))


def read_csv(path):
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        return reader.fieldnames, list(reader)


def test_a_row_shows_ours_beside_the_papers_and_the_difference(rows, one_seed, summary):
    found = cells_of(rows, "dbr2")
    test, cv = one_seed.auroc, summary.auroc
    assert [found[name] for name in ("Unit", "Sites", "ε", "ε of a patient")] == ["image", "1", "6", "14.5"]
    spread = summary.seed_std["auroc"]
    assert found["Cross-validation: AUROC [95 % CI] ± seeds"] == f"{cv.value:.3f} [{cv.low:.3f}, {cv.high:.3f}] ± {spread:.3f}"
    assert found["Test: AUROC [95 % CI] ± seeds"] == f"{test.value:.3f} [{test.low:.3f}, {test.high:.3f}]"
    assert found["Test: AUPRC, benign"].startswith(f"{one_seed.auprc_benign.value:.3f} [")
    assert found["Test: paper, AUROC / AUPRC"] == f"0.617 / {ABSENT}"
    assert found["Test: ours less paper"] == f"{test.value - 0.617:+.3f} / {ABSENT}"


def test_what_is_missing_is_a_dash(rows):
    found = cells_of(rows, "dbr2")
    missing = ["External test: AUROC [95 % CI] ± seeds", "External test: AUPRC, benign", "External test: ours less paper"]
    assert [found[name] for name in missing] == [ABSENT] * 3
    assert found["External test: paper, AUROC / AUPRC"] == "0.609 / 0.642"
    assert cells_of(rows, "dbr0")["ε"] == "∞"
    assert set(list(cells_of(rows, "ours4").values())[6:]) == {ABSENT}


def test_only_sets_of_the_paper_have_its_columns_and_only_a_noted_table_a_column_of_notes(rows):
    head, _ = table_cells(rows)
    assert [title for title in head if "paper" in title] == [
        *("Test: paper, AUROC / AUPRC", "Test: ours less paper"),
        *("External test: paper, AUROC / AUPRC", "External test: ours less paper"),
    ]
    assert "Note" not in head
    noted, body = table_cells([replace(rows[0], note="30 epochs"), rows[1]])
    assert (noted[-1], [cells[-1] for cells in body]) == ("Note", ["30 epochs", ABSENT])


def test_the_markdown_is_one_table_with_the_absent_sets_above_and_notes_below(rows, tmp_path):
    path, _ = write_table(tmp_path, rows, absent=WITHOUT_TEST, notes=("First.", "Second\nline."))
    lines = path.read_text(encoding="utf-8").splitlines()
    assert (lines[0], lines[1], lines[-3:]) == (WITHOUT_TEST, "", ["First.", "", "Second line."])
    table = [line for line in lines if line.startswith("|")]
    head, body = table_cells(rows)
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    assert cells[0] == head
    assert all(re.fullmatch("---:?", cell) for cell in cells[1])
    assert cells[2:] == body


def test_a_title_cannot_leave_its_markdown_cell(rows, tmp_path):
    hostile = replace(rows[0], title="a | b\n| c | [x](http://evil.example) <img src=x> `\\`")
    path, _ = write_table(tmp_path, [hostile])
    (line,) = [line for line in path.read_text(encoding="utf-8").splitlines() if "evil" in line]
    cells = re.split(r"(?<!\\)\|", line)
    assert len(cells) - 2 == len(table_cells([hostile])[0])
    assert cells[2].strip() == r"a \| b \| c \| \[x](http://evil.example) \<img src=x\> \`\\\`"


def test_the_csv_gives_back_every_number_in_full(rows, tmp_path):
    _, path = write_table(tmp_path, rows)
    columns, lines = read_csv(path)
    assert tuple(columns) == CSV_COLUMNS
    found = {(line["key"], line["set"], line["metric"]): line for line in lines}
    assert len(found) == len(lines)
    for row in rows:
        for name, ours in row.summaries.items():
            for metric in METRICS:
                line, expected = found[row.key, name, metric], ours.metric(metric)
                numbers = (float(line["value"]), float(line["low"]), float(line["high"]))
                assert numbers == (expected.value, expected.low, expected.high)
                assert line["seed_std"] == ("" if ours.seed_std is None else repr(ours.seed_std[metric]))
                counts = tuple(int(line[column]) for column in ("patients", "images", "seeds"))
                assert counts == (ours.n_patients, ours.n_images, ours.n_seeds)
    assert float(found["dbr0", "cv", "auroc"]["epsilon"]) == math.inf
    assert found["dbr0", "cv", "auroc"]["unit"] == found["dbr0", "cv", "auroc"]["patient_epsilon"] == ""
    assert float(found["dbr2", "cv", "auroc"]["patient_epsilon"]) == 14.5
    # A set that only the paper has keeps its lines, without values of ours.
    external = found["dbr2", "external", "auprc_benign"]
    assert (external["paper"], external["value"], external["seeds"]) == ("0.642", "", "")
    assert ("dbr2", "external", "brier") not in found
    assert not [key for key in found if key[0] == "ours4"]


def test_the_same_rows_give_the_same_bytes(rows, page, tmp_path):
    first = [path.read_bytes() for path in (*write_table(tmp_path, rows), page)]
    content = TablePage(title="Reproduction", rows=rows)
    once = write_table_page(tmp_path, content).read_bytes()
    assert [path.read_bytes() for path in write_table(tmp_path, rows)] == first[:2]
    assert write_table_page(tmp_path, content).read_bytes() == once != first[2]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["table.csv", "table.html", "table.md"]


def test_a_metric_without_a_value_has_an_empty_place_in_the_csv(rows, one_seed, tmp_path):
    parted = replace(one_seed, calibration_slope=None, calibration_intercept=None)
    _, path = write_table(tmp_path, [replace(rows[0], summaries={"cv": parted})])
    (line,) = [line for line in read_csv(path)[1] if (line["set"], line["metric"]) == ("cv", "calibration_slope")]
    assert (line["value"], line["low"], line["high"], line["images"]) == ("", "", "", "120")


def test_the_page_is_balanced_and_has_unique_identifiers(page):
    identifiers = [value for name, value in Reader(page).attributes if name == "id"]
    assert len(identifiers) == len(set(identifiers)) > 100


def test_every_reference_of_the_page_leads_to_one_of_its_own_identifiers(page):
    reader = Reader(page)
    identifiers = {value for name, value in reader.attributes if name == "id"}
    links = [value for name, value in reader.attributes if name in {"href", "xlink:href", "src", "action", "data"}]
    links += [match for _, value in reader.attributes if value for match in re.findall(r"url\((.*?)\)", value)]
    assert links
    assert {link[1:] for link in links if link.startswith("#")} <= identifiers
    assert all(link.startswith("#") for link in links)
    assert not {"script", "link", "img", "iframe", "object", "embed", "base", "form"} & set(reader.tags)
    assert not [name for name, _ in reader.attributes if name.startswith("on")]
    assert "default-src 'none'" in page.read_text(encoding="utf-8")


def test_the_page_shows_the_cells_of_the_table(page, rows):
    found = [[cell.replace("\N{NO-BREAK SPACE}", " ") for cell in row] for row in Reader(page).rows]
    head, body = table_cells(rows)
    assert found[0] == head
    assert found[1:4] == body


def test_the_page_says_what_is_absent_how_it_was_made_and_what_it_does_not_draw(page):
    text = Reader(page).text
    assert text.index(WITHOUT_TEST) < text.index("dbr2")
    assert "Chosen on train & val." in text
    assert "Not drawn: ours4 (Test)" in text
    assert text.count("Precision (malignant)") == 2


def test_pairs_and_subgroups_are_on_the_page(page):
    a, b = scores(), scores(draw=1, separation=1.2)
    pair, groups = paired_difference(a, b, bootstrap=99, seed=0), subgroups(a, bootstrap=50, seed=0)
    rows = Reader(page).rows
    (found,) = [row for row in rows if row[0] == "dbr2 less dbr0"]
    assert found[1:] == [
        *("Cross-validation", "AUROC", f"{pair.value:+.3f} [{pair.low:+.3f}, {pair.high:+.3f}]", f"{pair.p_value:.3f}"),
    ]
    shown = {row[2]: row for row in rows if len(row) == 7 and row[0] == "dbr2"}
    assert set(shown) == {"density: unknown", "density: b", "|v|: unknown", "|v|: b"}
    assert shown["density: unknown"][3:] == ["2 / 2", "8", "too small", ABSENT]
    assert shown["density: b"][5].startswith(f"{groups[1].summary.auroc.value:.3f} [")


def test_hostile_words_stay_text(rows, summary, tmp_path):
    row = replace(rows[0], key=HOSTILE, title=HOSTILE, group=HOSTILE, note=HOSTILE)
    scored = ScoredSet(labels=scores().labels, scores=scores().scores[0], public=True)
    content = TablePage(
        title=HOSTILE,
        rows=(row, rows[1]),
        absent=HOSTILE,
        notes=(HOSTILE,),
        curves={"cv": {HOSTILE: scored}, "test": {HOSTILE: replace(scored, public=False)}},
        comparisons=(
            Comparison(
                first=HOSTILE,
                second=HOSTILE,
                set_name="cv",
                difference=paired_difference(scores(), scores(), bootstrap=9, seed=0),
            ),
        ),
        strata=(
            Stratified(
                key=HOSTILE,
                set_name="cv",
                groups=subgroups(replace(scores(), strata={HOSTILE: np.full(120, HOSTILE)}), bootstrap=9, seed=0),
            ),
        ),
    )
    reader = Reader(write_table_page(tmp_path, content))
    assert not {"script", "img"} & set(reader.tags)
    assert not [name for name, _ in reader.attributes if name.startswith("on")]
    assert reader.words.count(HOSTILE) >= 5


def test_a_page_of_a_bare_table_has_no_empty_sections(rows, tmp_path):
    text = Reader(write_table_page(tmp_path, TablePage(title="Bare", rows=rows[2:]))).text
    assert "Our recipe, 4 sites" in text
    for title in ("Privacy and utility", "ROC and", "Paired differences", "Subgroups", "How the numbers were made"):
        assert title not in text


def test_a_curve_holds_one_group_unit_and_number_of_sites_and_ends_without_privacy(rows, summary):
    def row(key, **change):
        return replace(rows[2], key=key, summaries={"cv": summary}, **change)

    found = series_of(
        [
            row("end", epsilon=math.inf, unit=None),
            row("six", epsilon=6.0),
            row("one"),
            row("image", unit="image"),
            row("central", sites=1),
            row("alone", epsilon=math.inf, unit=None, group="other", sites=1),
        ]
    )
    assert {name: [one.key for one in points] for name, points in found} == {
        "ours (patient), 4 sites": ["one", "six", "end"],
        "ours (image), 4 sites": ["image", "end"],
        "ours (patient), 1 site": ["central"],
        "other, 1 site": ["alone"],
    }


def test_the_utility_plot_has_our_lines_the_papers_and_inf_at_the_right_end(rows):
    svg = utility_plot(rows, "cv")
    words = re.findall(r">([^<>]+)</text>", svg)
    assert {"6", "inf", "augmentation (image)", "Paper's best, Test set", "AUROC"} <= {word.strip() for word in words}
    assert words.index("inf") == words.index("6") + 1
    assert "Paper's best" in re.findall(r">([^<>]+)</text>", utility_plot(rows, "test"))


def test_rows_of_a_series_at_one_epsilon_are_points_beside_its_line(rows, summary):
    def paths(count):
        points = [replace(rows[2], key=str(row), epsilon=float(row + 1), summaries={"cv": summary}) for row in range(3)]
        more = [replace(points[1], key=f"again {row}") for row in range(count)]
        svg = utility_plot([*points, *more], "cv")
        (line,) = re.findall(r'<path d="([^"]+)"[^>]*style="[^"]*--series-1[^"]*stroke-width: 1\.9', svg)[:1]
        return len(re.findall("[ML]", line))

    assert paths(0) == 3
    assert paths(1) == 2


def test_a_set_without_values_or_with_epsilon_zero_alone_has_no_utility_plot(rows):
    assert utility_plot(rows, "external") is None
    assert utility_plot([replace(rows[0], epsilon=0.0)], "cv") is None


def test_rows_without_a_guarantee_alone_still_make_a_plot(rows):
    assert "inf" in re.findall(r">([^<>]+)</text>", utility_plot([replace(rows[1], paper={})], "cv"))


def test_bad_rows_are_refused(rows, summary, tmp_path):
    with pytest.raises(DataError, match="sets \\['bcdr'\\] are unknown; use cv, val, test, external"):
        replace(rows[0], summaries={"bcdr": summary})
    for bad in ({"epsilon": -1.0}, {"epsilon": math.nan}, {"patient_epsilon": -0.1}):
        with pytest.raises(DataError, match="must be at least 0"):
            replace(rows[0], **bad)
    for table in ([], [rows[0], rows[0]]):
        with pytest.raises(DataError, match="at least one row and distinct keys"):
            write_table(tmp_path, table)
    with pytest.raises(DataError, match="sets \\['bcdr'\\] are unknown"):
        TablePage(title="", rows=rows, curves={"bcdr": {}})
    assert list(tmp_path.iterdir()) == []
