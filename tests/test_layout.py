"""The layout of the package: rooms that hold little each, imports without a circle, and nothing installed beside it."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

import mammo_fed

ROOT = Path(mammo_fed.__file__).parent
MOST_MODULES = 12


def modules(root: Path = ROOT) -> dict[str, Path]:
    """Every module by its name; a package by the name of its folder."""
    found = {}
    for path in sorted(root.rglob("*.py")):
        parts = (root.name, *path.relative_to(root).with_suffix("").parts)
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(name: str, path: Path, known: Mapping[str, Path]) -> Iterator[str]:
    """What a module imports of `known`, wherever the statement stands: in a function, or for types alone."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom):
            above = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
            base = above[: len(above) - node.level + 1] if node.level else []
            package = ".".join([*base, *((node.module or "").split(".") if node.module else [])])
            for alias in node.names:
                submodule = f"{package}.{alias.name}"
                if submodule in known or package in known:
                    yield submodule if submodule in known else package


def graph(root: Path = ROOT) -> dict[str, set[str]]:
    """Modules, and what each imports."""
    known = modules(root)
    return {name: set(imported(name, path, known)) - {name} for name, path in known.items()}


def circle(arrows: Mapping[str, set[str]]) -> list[str]:
    """One circle of the graph, empty where there is none."""
    done: set[str] = set()

    def visit(name: str, way: list[str]) -> list[str]:
        if name in way:
            return [*way[way.index(name) :], name]
        if name in done:
            return []
        for other in sorted(arrows[name]):
            if found := visit(other, [*way, name]):
                return found
        done.add(name)
        return []

    return next((found for name in arrows if (found := visit(name, []))), [])


def test_modules_import_each_other_in_no_circle_nor_in_functions_or_for_types():
    arrows = graph()
    assert len(arrows) > 200
    assert sum(map(len, arrows.values())) > 500
    assert circle(arrows) == []


@pytest.mark.parametrize(
    "statement",
    [
        "from room import first",
        "from . import first",
        "from .first import x",
        "import room.first",
        "def f():\n    from room.first import x",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from room.first import x",
    ],
)
def test_a_circle_is_found_however_it_is_written(tmp_path, statement):
    room = tmp_path / "room"
    room.mkdir()
    (room / "__init__.py").write_text("")
    (room / "first.py").write_text("from room.second import y\n")
    (room / "second.py").write_text(f"{statement}\n")
    assert circle(graph(room)) == ["room.first", "room.second", "room.first"]


def test_the_package_itself_holds_errors_and_rooms_only():
    entries = {entry.name for entry in ROOT.iterdir() if entry.is_file()}
    assert entries == {"__init__.py", "errors.py", "py.typed"}
    rooms = [entry for entry in ROOT.iterdir() if entry.is_dir() and entry.name != "__pycache__"]
    assert [room.name for room in rooms if not (room / "__init__.py").is_file() and any(room.rglob("*.py"))] == []


def test_no_folder_holds_more_modules_than_one_reads_in_a_sitting():
    folders = {path.parent for path in modules().values()}
    counts = {
        str(folder.relative_to(ROOT)): sum(path.name != "__init__.py" for path in folder.glob("*.py")) for folder in folders
    }
    assert {name: count for name, count in counts.items() if count > MOST_MODULES} == {}


def test_every_folder_of_modules_is_a_package_with_a_docstring():
    for folder in {path.parent for path in modules().values()}:
        docstring = ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8")))
        assert docstring, folder
