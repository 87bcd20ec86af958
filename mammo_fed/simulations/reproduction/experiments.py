"""The rows of the reproduction as data: configs/experiments.yaml read, checked and chosen from."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final

from mammo_fed.errors import InvalidSetting
from mammo_fed.settings import Settings
from mammo_fed.settings.compose import compose_settings, read_configuration

__all__ = ["Experiment", "backbones", "experiments", "select"]

FILE: Final = "experiments.yaml"


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One row of the table.

    Attributes:
      key: short name.
      title: what is done, in words.
      groups: names that choose it together with others.
      paper: whether it reproduces a row of the paper; only those take `epochs` and `backbone`.
      overrides: settings, as on the command line.
      published: the paper's (AUROC, AUPRC benign) by set.
      cross_validated: whether it is also run on folds of train + val.
      steps_per_epoch: steps in one pass over its data; 0 for a row that trains on nobody, or that counts no epochs.
    """

    key: str
    title: str
    groups: tuple[str, ...]
    paper: bool
    overrides: tuple[str, ...]
    published: Mapping[str, tuple[float | None, float | None]] = field(default_factory=dict)
    cross_validated: bool = False
    steps_per_epoch: int = 0

    def settings(self, extra: Sequence[str]) -> Settings:
        """The row's settings with further overrides behind its own.

        Raises:
          InvalidSetting: If an override is wrong.
        """
        return compose_settings([*self.overrides, *extra]).settings


@lru_cache(maxsize=1)
def experiments() -> tuple[Experiment, ...]:
    """All rows, in the order of the table."""
    raw = _file()
    bases: Mapping[str, list[str]] = raw["bases"]
    rows = [
        Experiment(
            key=key,
            title=row["title"],
            groups=tuple(row["groups"]),
            paper=True,
            overrides=(*bases[row["base"]], *row["overrides"]),
            published={name: (values[0], values[1]) for name, values in row["published"].items()},
            steps_per_epoch=_steps(row["overrides"], raw["steps_per_epoch"]),
        )
        for key, row in raw["rows"].items()
    ]
    return (*rows, *_beyond(raw["beyond"], bases))


def backbones() -> Mapping[str, tuple[str, ...]]:
    """Settings of the paper's rows for each backbone that `backbone=` knows."""
    return {name: tuple(overrides) for name, overrides in _file()["backbones"].items()}


def select(names: str) -> tuple[Experiment, ...]:
    """Rows by key or group, comma-separated; "all" is every row.

    Raises:
      InvalidSetting: If a name is neither.
    """
    rows = experiments()
    groups = sorted({group for row in rows for group in row.groups})
    chosen: set[str] = set()
    for name in (part.strip() for part in names.strip("[]").split(",")):
        found = {row.key for row in rows if name in ("all", row.key) or name in row.groups}
        if not found:
            raise InvalidSetting(
                f"experiment={name} must be all, a group ({', '.join(groups)}) or a row; see `mammo-fed reproduce --list`"
            )
        chosen |= found
    return tuple(row for row in rows if row.key in chosen)


@lru_cache(maxsize=1)
def _file() -> Any:
    return read_configuration(FILE)


def _steps(overrides: Sequence[str], steps: Mapping[str, int]) -> int:
    if "federation.rounds=0" in overrides:
        return 0
    return steps["synthetic" if "data.train=synthetic" in overrides else "patients"]


def _beyond(grid: Mapping[str, Any], bases: Mapping[str, list[str]]) -> list[Experiment]:
    rows = []
    folded = grid["cross_validated"]
    words = {"phantom": "data-free whitening", "gan": "whitening by GAN images"}
    for unit, source, sites, epsilon in itertools.product(grid["unit"], grid["synthesis"], grid["sites"], grid["epsilon"]):
        if epsilon == "inf" and unit != grid["unit"][0]:
            # Without a guarantee there is no unit: one row is enough.
            continue
        where = "one site" if sites == 1 else f"{sites} sites"
        rows.append(
            Experiment(
                key=f"{unit}-{source}-{sites}-{epsilon}",
                title=f"Our recipe, {words[source]}, {where}",
                groups=("beyond", f"beyond-{unit}", f"beyond-{source}", f"beyond-{sites}"),
                paper=False,
                overrides=(
                    *bases[grid["base"]],
                    f"privacy.unit={unit}",
                    f"privacy.target_epsilon={epsilon}",
                    f"synthesis.source={source}",
                    f"federation.num_sites={sites}",
                ),
                cross_validated=sites == 1 and epsilon in folded["epsilon"] and source in folded["synthesis"],
            )
        )
    return rows
