"""What comes from sites, settings and files is text on every page, whatever it looks like; what a page lacks is an error."""

import os
import re
import shutil
import subprocess
import sys
import typing
import zipfile
from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from jinja2 import UndefinedError

from mammo_fed.data.cohort import Cohort
from mammo_fed.data.preflight import Finding
from mammo_fed.reporting.pages.comparison_page import write_comparison_page
from mammo_fed.reporting.pages.preflight_page import write_preflight_page
from mammo_fed.reporting.pages.quality_page import COLUMNS, LINES, QualityRow, quality_page
from mammo_fed.reporting.pages.rendering import Figure, Table, render
from mammo_fed.reporting.pages.run_page import Curves, write_page
from mammo_fed.reporting.pages.table_page import TablePage, write_table_page
from mammo_fed.reporting.plots.svg import Svg, draw
from mammo_fed.reporting.record.record import CentralPrivacy
from mammo_fed.reporting.table import TableRow

ROOT = Path(__file__).parents[2]
TEMPLATES = files("mammo_fed.reporting.pages") / "templates"
PAGES = ("run", "comparison", "table", "quality", "preflight")
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
VOID = {"meta", "br", "img", "path", "use"}
HOSTILE = (
    "<script>alert(1)</script>",
    "\"'><img src=http://evil.example/x onerror=alert(1)>",
    "</style></title></pre></section>",
    "{{ 7*7 }}",
    "{% raise %}",
    "{% endraw %}{# gone #}",
    "&lt;b&gt; &amp;",
)
ALL_HOSTILE = " ".join(HOSTILE)
EMPTY_COMPARISON = """
from mammo_fed.reporting.pages.rendering import Table, render
page = render("comparison.html", records=[], results=Table(head=(), rows=(), caption=""), figures=[])
"""
# Set by the record's own rules, not by whoever names a site.
TIMES = {"started", "finished", "cap_since", "withdrawn_at", "at"}


class Page(HTMLParser):
    """A page's tags, attributes and text; a tag that is closed out of turn fails."""

    def __init__(self, html):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.attributes, self.words = [], [], [], []
        self.feed(html)
        self.close()
        assert self.open == []
        self.text = re.sub(r"\s+", " ", " ".join(self.words))

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


def hostile_copy(value, hint, hostile):
    """`value` with every free text in it, at any depth, replaced by `hostile`: literals, times and numbers stay."""
    if is_dataclass(value):
        hints = typing.get_type_hints(type(value), localns=vars(sys.modules[type(value).__module__]))
        changed = {
            field.name: hostile_copy(getattr(value, field.name), hints[field.name], hostile)
            for field in fields(value)
            if field.name not in TIMES
        }
        return replace(value, **changed)
    if isinstance(value, tuple):
        inner = (typing.get_args(hint) or (None,))[0]
        # One site keeps its place among many: their names are distinct.
        return tuple(
            hostile_copy(one, inner, f"{hostile} {place}" if is_dataclass(one) else hostile) for place, one in enumerate(value)
        )
    if isinstance(value, Mapping):
        _, inner = typing.get_args(hint)
        return {f"{hostile} {place}": hostile_copy(one, inner, hostile) for place, one in enumerate(value.values())}
    return hostile if hint is str else value


def run_html(record, curves, folder, hostile):
    central = CentralPrivacy(epsilon=1.0, delta=1e-4, noise_multiplier=1.0, clipping_norm=1.0, guarantee="")
    shown = replace(record, federation=replace(record.federation, central=central))
    shown = replace(shown, synthesis=replace(shown.synthesis, total="both"))
    shown = hostile_copy(shown, None, hostile)
    spent = (replace(shown.privacy.sites[0], unanswered=(1,)), *shown.privacy.sites[1:])
    shown = replace(shown, privacy=replace(shown.privacy, sites=spent))
    drawn = dict(zip(shown.evaluation, curves.sets.values(), strict=True))
    drawn[hostile] = replace(curves.sets["val"], public=False)
    path = write_page(folder, shown, Curves(sets=drawn), settings=f"{hostile}\n{hostile}")
    return path.read_text(encoding="utf-8")


def comparison_html(record, _curves, folder, hostile):
    return write_comparison_page(folder / "c.html", [hostile_copy(record, None, hostile)]).read_text(encoding="utf-8")


def table_html(_record, _curves, folder, hostile):
    row = TableRow(
        key=hostile, title=hostile, group=hostile, unit="patient", epsilon=1.0, patient_epsilon=1.0, sites=2, note=hostile
    )
    page = TablePage(title=hostile, rows=(row,), absent=hostile, notes=(hostile,))
    return write_table_page(folder, page).read_text(encoding="utf-8")


def quality_html(_record, _curves, _folder, hostile):
    pixels = np.random.default_rng(0).random((8, 16, 16), dtype=np.float32)
    figures = {**{name: 1.0 for name, _, _ in (*COLUMNS, *LINES)}, "tstr": None, "tstr_ci": None}
    row = QualityRow(name=hostile, kind=hostile, pixels=pixels, labels=np.arange(8) % 2, figures=figures)
    return quality_page(hostile, [row], public=False)


def preflight_html(_record, _curves, folder, hostile):
    count = 12
    cohort = Cohort(
        name=hostile,
        pixels=np.random.default_rng(0).random((count, 16, 16), dtype=np.float32),
        labels=np.arange(count) % 2,
        patients=np.array([f"p{row}" for row in range(count)]),
        images=np.array([f"i{row}" for row in range(count)]),
        views=np.full(count, ""),
        splits=np.full(count, "train"),
        public=True,
    )
    found = [Finding(name=hostile, level="ok", message=hostile)]
    path = write_preflight_page(folder / "p.html", cohort, found, refused={hostile: 1}, identifying={hostile: 1})
    return path.read_text(encoding="utf-8")


MAKERS = {
    "run": run_html,
    "comparison": comparison_html,
    "table": table_html,
    "quality": quality_html,
    "preflight": preflight_html,
}
# How often a page shows the words that it was given, at least.
SHOWN = {"run": 30, "comparison": 3, "table": 7, "quality": 6, "preflight": 3}


@pytest.mark.parametrize("name", PAGES)
def test_hostile_text_in_every_field_stays_text(name, record, curves, tmp_path):
    harmless, hostile = (Page(MAKERS[name](record, curves, tmp_path, words)) for words in ("harmless", ALL_HOSTILE))
    assert hostile.tags == harmless.tags
    assert [key for key, _ in hostile.attributes] == [key for key, _ in harmless.attributes]
    # Underscores are the only characters that a page puts into other words.
    assert hostile.text.count(ALL_HOSTILE) >= SHOWN[name]
    for words in HOSTILE:
        assert hostile.text.count(words) >= hostile.text.count(ALL_HOSTILE)


@pytest.mark.parametrize("name", PAGES)
def test_characters_that_do_not_print_do_not_reach_a_page(name, record, curves, tmp_path):
    html = MAKERS[name](record, curves, tmp_path, "a\x1b[31m\N{RIGHT-TO-LEFT OVERRIDE}b\x00")
    assert not {"\x1b", "\N{RIGHT-TO-LEFT OVERRIDE}", "\x00"} & set(html)
    assert "a?[31m?b?" in html


@pytest.mark.parametrize("name", PAGES)
def test_every_page_forbids_scripts_and_whatever_lies_elsewhere(name, record, curves, tmp_path):
    html = MAKERS[name](record, curves, tmp_path, "a")
    page = Page(html)
    assert [value for key, value in page.attributes if key == "content" and "default-src" in value] == [POLICY]
    # The policy comes before anything that it governs.
    assert html.index("Content-Security-Policy") < html.index("<style>")
    assert not {"script", "link", "iframe", "object", "embed", "base", "form"} & set(page.tags)
    assert all(value.startswith("data:image/png;base64,") for key, value in page.attributes if key == "src")


@pytest.mark.parametrize("name", PAGES)
def test_a_page_without_what_its_template_names_is_an_error(name):
    with pytest.raises(UndefinedError):
        render(f"{name}.html")


def test_a_misspelt_field_of_a_value_is_an_error(tmp_path):
    with pytest.raises(UndefinedError, match="no attribute 'title'"):
        render("table.html", page=Table(head=(), rows=(), caption=""))


def test_a_value_that_is_not_text_is_an_error(record):
    with pytest.raises(TypeError, match="format the value first"):
        render("run.html", record=record, when=4.0)


def test_only_a_drawing_goes_into_a_page_as_it_is():
    drawn = draw("a", lambda axes: axes.set_title("<b>"), label='<i>"', xlabel="<script>", ylabel="")
    assert isinstance(drawn, Svg)
    assert {"b", "i", "script"}.isdisjoint(Page(Figure(svg=drawn, caption="").element).tags)
    with pytest.raises(TypeError, match="must be an Svg"):
        Figure(svg="<svg><script>alert(1)</script></svg>", caption="").element  # noqa: B018


def test_no_template_turns_escaping_off_or_loads_anything():
    names = {path.name for path in TEMPLATES.iterdir()}
    assert {f"{name}.html" for name in PAGES} < names
    for path in TEMPLATES.iterdir():
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"\|\s*safe\b|autoescape|Markup|<script|\bon\w+=|https?:|@import|url\(", text), path.name


def test_files_named_like_templates_in_the_current_folder_are_not_read(record, tmp_path, monkeypatch):
    folder = tmp_path / "mammo_fed" / "reporting" / "pages" / "templates"
    folder.mkdir(parents=True)
    for place in (folder, tmp_path):
        for name in ("base.html", "comparison.html", "parts.html", "style.css"):
            (place / name).write_text("taken from elsewhere", encoding="utf-8")
    code = f"{EMPTY_COMPARISON}\nprint(page)"
    found = subprocess.run([sys.executable, "-P", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "taken from elsewhere" not in found.stdout
    assert "Comparison of runs" in found.stdout


@pytest.mark.slow
def test_the_wheel_holds_every_template_and_makes_pages_of_them(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "mammo_fed", source / "mammo_fed", ignore=shutil.ignore_patterns("__pycache__"))
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*build, "--wheel-dir", tmp_path, source], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        packed = {Path(name).name: archive.read(name) for name in archive.namelist() if "/pages/templates/" in name}
        archive.extractall(tmp_path / "installed")
    assert packed == {path.name: path.read_bytes() for path in TEMPLATES.iterdir()}
    code = f"import mammo_fed\n{EMPTY_COMPARISON}\nprint(mammo_fed.__file__, page)"
    # By name: a command that ran in this process keeps its children from importing what lies in their current folder.
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "installed")}
    found = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert found.stdout.startswith(str(tmp_path))
    assert "Comparison of runs" in found.stdout
