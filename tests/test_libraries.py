"""Every heavy library has one home, so that it can be replaced there, and what does not need it never loads it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import mammo_fed

ROOT = Path(mammo_fed.__file__).parent
HOMES = {
    "flwr": ("federation", "server", "client", "simulations"),
    "ray": ("simulations/ray_engine.py",),
    "opacus": ("privacy",),
    # Twice on purpose: who prices a record again may share nothing with who priced it first.
    "dp_accounting": ("privacy/accounting", "privacy/verification"),
    "timm": ("models/backbones.py",),
    "pydicom": ("data/dicom",),
    "hydra": ("settings/compose.py", "settings/overrides.py"),
    "omegaconf": ("settings/compose.py", "audit/finished_run.py"),
    "matplotlib": ("reporting/plots",),
    "jinja2": ("reporting/pages",),
    "prometheus_client": ("common/metrics_page.py",),
}


def users(library: str) -> list[str]:
    """Modules that import a library anywhere, functions and type checking included."""
    found = []
    for path in sorted(ROOT.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            if any(name.split(".")[0] == library for name in names):
                found.append(path.relative_to(ROOT).as_posix())
                break
    return found


@pytest.mark.parametrize(("library", "homes"), HOMES.items(), ids=list(HOMES))
def test_a_heavy_library_is_imported_at_its_home_only(library, homes):
    strangers = [user for user in users(library) if not any(user == home or user.startswith(f"{home}/") for home in homes)]
    assert strangers == []


def test_the_libraries_at_home_are_really_used():
    assert [library for library in HOMES if library != "jinja2" and not users(library)] == []
