"""Small federations on the real command line: a phantom of a few patches, one cache of features for the whole session."""

from __future__ import annotations

import contextlib
import csv
import io
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open

from mammo_fed.cli.main import main
from mammo_fed.data.cohort import MALIGNANT, Cohort
from mammo_fed.data.phantom.hospitals import PhantomFederation, phantom_hospitals
from mammo_fed.reporting.record.record import Record, SitePrivacy, read_record

# No doctests in here; collecting several files of one name as modules would clash.
collect_ignore_glob = ["conftest.py", "*/conftest.py"]


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where several processes share the files, those that may take longest come first: nobody waits for one at the end."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return
    seconds: Counter[Path] = Counter()
    for item in items:
        limit = item.get_closest_marker("timeout")
        seconds[item.path] += int(limit.args[0]) if limit and limit.args else 1
    items.sort(key=lambda item: -seconds[item.path])


SMALL = (
    "model=efficientnet_lite0",
    "model.input_size=64",
    "model.flips=none",
    "model.components=20",
    "data.image_size=64",
    "data.images_train=96",
    "data.images_test=48",
    "data.images_external=24",
    "synthesis.count=48",
    "federation.rounds=3",
)


@dataclass(frozen=True)
class Finished:
    """What a command line left behind."""

    code: int
    out: str
    err: str
    folder: Path

    @property
    def record(self) -> Record:
        return read_record(self.folder)

    @property
    def sites(self) -> tuple[SitePrivacy, ...]:
        return self.record.privacy.sites

    @property
    def model(self) -> dict[str, np.ndarray]:
        with safe_open(self.folder / "model.safetensors", framework="numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping

    def same_model(self, other: Finished, *, tolerance: float = 0.0) -> bool:
        """Whether head and feature mean agree."""
        mine, theirs = self.model, other.model
        return all(np.allclose(mine[name], theirs[name], rtol=0, atol=tolerance) for name in ("head", "centre"))


def call(arguments: Sequence[str]) -> tuple[int, str, str]:
    """The command line in this process: exit code, standard output, standard error."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as stop:
            code = int(stop.code or 0)
    return code, out.getvalue(), err.getvalue()


@pytest.fixture(scope="session", autouse=True)
def state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where it is remembered how far trainings of generators are: not in the home folder of who runs the tests."""
    folder = tmp_path_factory.mktemp("state")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MAMMO_FED_STATE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Features, made once for the whole session, which several processes may share."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "cache"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def small(cache: Path) -> tuple[str, ...]:
    """Settings of a federation that runs in a second."""
    return (*SMALL, f"engine.cache={cache}")


@pytest.fixture(scope="session")
def cli() -> Callable[..., tuple[int, str, str]]:
    """`cli("simulate", "seed=1")`: the command line in this process, as (exit code, standard output, standard error)."""
    return lambda *arguments: call(arguments)


@pytest.fixture(scope="session")
def simulate(small: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Finished]:
    """`simulate("seed=1")`: a small federation in a run folder of its own."""

    def run(*overrides: str, command: str = "simulate", folder: Path | None = None) -> Finished:
        folder = folder or tmp_path_factory.mktemp("run") / "run"
        code, out, err = call([command, *small, *overrides, f"hydra.run.dir={folder}"])
        return Finished(code, out, err, folder)

    return run


@pytest.fixture(scope="session")
def succeed(simulate: Callable[..., Finished]) -> Callable[..., Finished]:
    """As `simulate`, for runs that must end well."""

    def run(*overrides: str, **named: Any) -> Finished:
        finished = simulate(*overrides, **named)
        assert finished.code == 0, finished.err
        return finished

    return run


@pytest.fixture(scope="session")
def start_cli() -> Callable[..., subprocess.Popen[str]]:
    """`start_cli("simulate", ...)`: the command line as a process of its own, with pipes."""

    def start(*arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "mammo_fed.cli.main", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "80"},
        )

    return start


@pytest.fixture(scope="session")
def phantom() -> PhantomFederation:
    """Patches to write to disk: two hospitals, and held-out patients."""
    return phantom_hospitals(images_train=56, images_test=24, images_external=16, image_size=64, seed=8, num_sites=2)


def write_png(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.round(pixels * 255).astype(np.uint8)).save(path)
    return path


@dataclass(frozen=True)
class Table:
    """A hospital's table on disk."""

    path: Path
    patients: tuple[str, ...]
    images: tuple[str, ...]

    @property
    def planted(self) -> tuple[str, ...]:
        """Every name that must not leave the hospital."""
        return tuple({*self.patients, *self.images, *(Path(image).stem for image in self.images)})


@pytest.fixture(scope="session")
def make_table() -> Callable[..., Table]:
    """`make_table(folder, [("train", cohort), ...])`: cohorts as a CSV table beside PNG files, with telling names."""

    def make(folder: Path, parts: Sequence[tuple[str, Cohort]]) -> Table:
        rows = []
        for split, cohort in parts:
            for row, label in enumerate(cohort.labels.tolist()):
                patient = f"Erika-{cohort.patients[row]}"
                image = f"png/mammogram-{cohort.images[row]}.png"
                write_png(folder / image, cohort.pixels[row])
                rows.append((patient, image, "malignant" if label == MALIGNANT else "benign", split))
        path = folder / "table.csv"
        with path.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([("patient", "image", "label", "split"), *rows])
        return Table(path, tuple(sorted({row[0] for row in rows})), tuple(row[1] for row in rows))

    return make


@pytest.fixture(scope="session")
def table(phantom: PhantomFederation, make_table: Callable[..., Table], tmp_path_factory: pytest.TempPathFactory) -> Table:
    """A table with a training and a validation split."""
    parts = [("train", site) for site in phantom.sites] + [("val", phantom.external)]
    return make_table(tmp_path_factory.mktemp("hospital"), parts)


@pytest.fixture(scope="session")
def training(
    phantom: PhantomFederation, make_table: Callable[..., Table], tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, ...]:
    """Settings of public training patients alone: nothing is scored, which halves the time of a run."""
    table = make_table(tmp_path_factory.mktemp("training"), [("train", site) for site in phantom.sites])
    return ("data=csv", f"data.root={table.path}", "data.public=true")
