"""What is installed: one package and nothing outside of it, whether it comes from a checkout or from a source distribution."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# What is no part of a source tree: environments, caches and results of runs.
LEFT_OUT = shutil.ignore_patterns(".*", "runs", "build", "dist", "*.egg-info", "__pycache__", "outputs", "multirun")
OTHER = """[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"

[project]
name = "somebody-elses"
version = "1.0"

[tool.setuptools]
packages = ["server", "client", "configs", "simulations"]
"""
SDIST = "import setuptools.build_meta as backend, sys; backend.build_sdist(sys.argv[1])"


def pip(*arguments: object) -> None:
    """This environment's pip, without an index."""
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *map(str, arguments)]
    subprocess.run(command, check=True, env={**os.environ, "PIP_NO_INDEX": "1"})


def make_wheel(source: Path, out: Path) -> Path:
    pip("wheel", source, "--no-deps", "--no-build-isolation", "--wheel-dir", out)
    return next(out.glob("*.whl"))


def members(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def contents(folder: Path) -> dict[str, str]:
    """Every file below `folder` by its path, as a hash."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """A copy of the checkout: building writes into it."""
    copy = tmp_path_factory.mktemp("checkout") / "checkout"
    shutil.copytree(ROOT, copy, symlinks=True, ignore=LEFT_OUT)
    return copy


@pytest.fixture(scope="module")
def wheel(source, tmp_path_factory) -> Path:
    """Built from the checkout."""
    return make_wheel(source, tmp_path_factory.mktemp("wheel"))


@pytest.mark.slow
def test_wheel_holds_the_package_with_its_data_and_nothing_outside_of_it(wheel):
    held = members(wheel)
    assert {name.partition("/")[0].partition("-")[0] for name in held} == {"mammo_fed"}
    package = ROOT / "mammo_fed"
    modules = {str(path.relative_to(ROOT)) for path in package.rglob("*.py")}
    settings = {f"mammo_fed/configs/{path.relative_to(ROOT / 'configs')}" for path in (ROOT / "configs").rglob("*.yaml")}
    others = {
        str(path.relative_to(ROOT))
        for path in package.rglob("*")
        if path.is_file() and path.suffix not in {".py", ".pyc", ".yaml"}
    }
    assert len(settings) > 20
    assert {name for name in held if name.startswith("mammo_fed/")} == modules | settings | others


@pytest.mark.slow
def test_wheel_from_a_source_distribution_is_the_wheel_from_the_checkout(source, wheel, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(source, copy, symlinks=True)
    subprocess.run([sys.executable, "-c", SDIST, str(tmp_path)], cwd=copy, check=True, capture_output=True)
    shutil.unpack_archive(next(tmp_path.glob("*.tar.gz")), tmp_path / "unpacked", filter="data")
    again = make_wheel(next((tmp_path / "unpacked").iterdir()), tmp_path / "wheel")
    with zipfile.ZipFile(wheel) as one, zipfile.ZipFile(again) as other:
        names = {name for name in one.namelist() if not name.endswith("/RECORD")}
        assert names == {name for name in other.namelist() if not name.endswith("/RECORD")}
        assert all(one.read(name) == other.read(name) for name in names)


@pytest.fixture(scope="module")
def other_wheel(tmp_path_factory) -> Path:
    """Another distribution, with packages named as our folders are."""
    root = tmp_path_factory.mktemp("other")
    for name in ("server", "client", "configs", "simulations"):
        (root / name).mkdir()
        (root / name / "__init__.py").write_text("raise RuntimeError('imported')\n")
    (root / "pyproject.toml").write_text(OTHER)
    return make_wheel(root, root / "dist")


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_installing_and_removing_ours_or_another_changes_no_file_of_the_other(wheel, other_wheel, tmp_path):
    home = tmp_path / "venv"
    venv.create(home, with_pip=False)
    python = home / "bin" / "python"
    libraries = next((home / "lib").glob("python*/site-packages"))
    # The dependencies are this environment's.
    paths = [entry for entry in sys.path if entry.endswith("site-packages")]
    (libraries / "dependencies.pth").write_text("".join(f"{entry}\n" for entry in paths))

    def install(which: Path) -> None:
        pip("--python", python, "install", "--no-deps", "--no-compile", "--force-reinstall", which)

    empty = contents(libraries)
    install(wheel)
    ours = contents(libraries).items() - empty.items()
    install(other_wheel)
    both = contents(libraries)
    assert ours <= both.items()
    theirs = both.items() - ours - empty.items()
    assert {name.partition("/")[0] for name, _ in theirs} >= {"server", "client", "configs", "simulations"}

    done = subprocess.run(
        [home / "bin" / "mammo-fed", "simulate", "--cfg", "job"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "privacy:" in done.stdout
    where = subprocess.run(
        [python, "-P", "-c", "import mammo_fed; print(mammo_fed.__file__)"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert Path(where.stdout.strip()).is_relative_to(libraries)

    pip("--python", python, "uninstall", "--yes", "mammo-fed")
    assert contents(libraries).items() == theirs | empty.items()
    install(wheel)
    pip("--python", python, "uninstall", "--yes", "somebody-elses")
    assert contents(libraries).items() == ours | empty.items()


@pytest.mark.parametrize("unit", ["server/flower-server.service", "client/site-client.service"])
def test_a_unit_bounds_what_its_processes_may_take_of_the_machine(unit):
    service = (ROOT / unit).read_text(encoding="utf-8").partition("[Service]")[2].partition("\n[")[0]
    given = dict(line.split("=", 1) for line in service.splitlines() if "=" in line and not line.startswith("#"))
    # The server holds some 1,400 connections and its database; a limit of 1,024, which is usual, would close its door.
    assert 2048 <= int(given["LimitNOFILE"]) <= 65536
    assert int(given["MemoryMax"].removesuffix("G")) >= 4
    assert 256 <= int(given["TasksMax"]) <= 4096
