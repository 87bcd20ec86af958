"""Small federations on the real command line: a phantom of a few patches, one cache of features for the whole session."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open

from mammo_fed.cli import main
from mammo_fed.data.assemble import Share
from mammo_fed.data.cache import ArrayCache
from mammo_fed.data.cohort import Cohort
from mammo_fed.data.phantom_cohorts import phantom_hospitals
from mammo_fed.reporting.record import Record, read_record

SMALL = (
    "model=efficientnet_lite0",
    "model.input_size=64",
    "model.flips=false",
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
    def json(self) -> dict[str, Any]:
        return json.loads((self.folder / "record.json").read_text(encoding="utf-8"))

    @property
    def model(self) -> dict[str, np.ndarray]:
        with safe_open(self.folder / "model.safetensors", framework="numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping

    @property
    def site_epsilons(self) -> dict[str, float]:
        return {site.site: site.epsilon for site in self.record.privacy.sites}


def call(arguments: Sequence[str]) -> tuple[int, str, str]:
    """The command line in this process: exit code, standard output, standard error."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main(list(arguments))
        except SystemExit as stop:
            code = int(stop.code or 0)
    return code, out.getvalue(), err.getvalue()
