"""What the pages name is there: files, modules, names in them, links, tests, make targets."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("*/README.md")])
CODE = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")
FILE = re.compile(r"(?:mammo_fed|server|client|simulations|configs|tests|benchmarks|docs)/[\w./-]*")
MODULE = re.compile(r"mammo_fed(?:\.\w+)+")
TARGET = re.compile(r"make (\w+)")


def spans(page: Path) -> list[str]:
    """Everything between backticks on one line."""
    return CODE.findall(page.read_text(encoding="utf-8"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_modules_and_make_targets_that_a_page_names_exist(page):
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    missing = [span for span in spans(page) if FILE.fullmatch(span) and not (ROOT / span).exists()]
    missing += [span for span in spans(page) if MODULE.fullmatch(span) and not exists(span)]
    missing += [span for span in spans(page) if (found := TARGET.fullmatch(span)) and found[1] not in targets]
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_of_a_page_lead_somewhere(page):
    links = [
        link for link in LINK.findall(page.read_text(encoding="utf-8")) if "://" not in link and not link.startswith("mailto:")
    ]
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_names_beside_a_file_in_the_architecture_page_are_defined_in_it():
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    pairs = re.findall(r"`(mammo_fed/[\w/]+\.py)`: `([A-Za-z_.]+)`", page)
    assert len(pairs) >= 5
    for file, name in pairs:
        found: object = importlib.import_module(file[:-3].replace("/", "."))
        for part in name.split("."):
            found = getattr(found, part)


def exists(dotted: str) -> bool:
    """Whether a module, or a name in one, can be imported."""
    parts = dotted.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            found: object = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        for part in parts[cut:]:
            if not hasattr(found, part):
                return False
            found = getattr(found, part)
        return True
    return False
