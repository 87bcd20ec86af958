"""Overrides as people type them: Hydra's grammar where a text is of it, and the text itself where it is not.

A folder may be called anything, and Hydra's grammar knows neither umlauts nor parentheses nor `#`. What names a file or a
folder is taken as it is; of any other setting, what Hydra cannot parse.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice, product
from typing import Final

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override
from hydra.errors import HydraException

from mammo_fed.common.serialization import printable
from mammo_fed.errors import InvalidSetting

__all__ = ["Overrides", "combinations"]

# Settings that name a file or a folder.
PATHS: Final = (
    "cache",
    "data.root",
    "engine.cache",
    "hydra.run.dir",
    "hydra.sweep.dir",
    "model.weights_file",
    "privacy.ledger",
    "synthesis.root",
)
ASSIGNMENT: Final = re.compile(r"(?P<key>\+{0,2}[A-Za-z_][A-Za-z0-9_./@-]*)=(?P<value>.*)", re.DOTALL)
QUOTED: Final = re.compile(r"'[^']*'|\"[^\"]*\"")
SWEEP: Final = re.compile(r"(choice|range|interval|glob|shuffle|sort|tag)\(.*\)", re.DOTALL)
# A sweep of more runs was not meant.
MOST_RUNS: Final = 10_000
EXAMPLE: Final = "overrides look like privacy.target_epsilon=1"


@dataclass(frozen=True, kw_only=True)
class Overrides:
    """Overrides of one run.

    Attributes:
      parsed: what Hydra's grammar holds.
      literal: texts by the key of their setting, taken as they are.
    """

    parsed: tuple[Override, ...]
    literal: dict[str, str]

    @classmethod
    def read(cls, texts: Sequence[str]) -> Overrides:
        """Sort overrides; of two of the same setting the later one counts.

        Raises:
          InvalidSetting: If one is no assignment.
        """
        parsed: list[Override] = []
        literal: dict[str, str] = {}
        for text in texts:
            key, value = _assignment(text)
            if key in PATHS and "\0" in value:
                raise InvalidSetting(f"{key}={printable(value)} has a NUL in it, which no name of a file has")
            if key in PATHS and _is_name(key, value):
                literal[key] = value
                continue
            override = _parse(text)
            if override is not None:
                literal.pop(key, None)
                parsed.append(override)
            elif key:
                literal[key] = value
            else:
                raise InvalidSetting(f"{printable(text)} is no override; {EXAMPLE}")
        return cls(parsed=tuple(parsed), literal=literal)


def combinations(texts: Sequence[str]) -> list[list[str]]:
    """Every combination of the comma-separated values of a sweep, in their order.

    Raises:
      InvalidSetting: If an override cannot be parsed, asks for what a sweep does not know, or there are too many.
    """
    found = list(islice(product(*map(_values, texts)), MOST_RUNS + 1))
    if len(found) > MOST_RUNS:
        raise InvalidSetting(f"the sweep has more than {MOST_RUNS} runs; give fewer values")
    return [list(combination) for combination in found]


def _values(text: str) -> list[str]:
    key, value = _assignment(text)
    override = None if key in PATHS and not SWEEP.fullmatch(value) and "${" not in value else _parse(text)
    if override is None:
        if not key:
            raise InvalidSetting(f"{printable(text)} is no override; {EXAMPLE}")
        return [f"{key}={part}" for part in _parts(value)]
    if not override.is_sweep_override():
        return [str(override.input_line)]
    if isinstance(override.value(), Glob):
        raise InvalidSetting(
            f"{printable(text)} lists nothing here: a sweep takes values with commas between them, such as a,b"
        )
    try:
        values = list(islice(override.sweep_string_iterator(), MOST_RUNS + 1))
    except (HydraException, NotImplementedError, TypeError, ValueError) as error:
        # Hydra raises all four for values that its grammar takes and that it cannot list.
        raise InvalidSetting(f"{printable(text)} is no sweep ({printable(str(error))}); give values such as a,b") from error
    return [f"{override.get_key_element()}={each}" for each in values]


def _assignment(text: str) -> tuple[str, str]:
    """Key and value of an override; both empty where it is none."""
    found = ASSIGNMENT.fullmatch(text)
    return ("", "") if found is None else (found["key"].lstrip("+"), found["value"])


def _is_name(key: str, value: str) -> bool:
    """Whether a value of PATHS is taken as it is: not null, quoted whole or with an interpolation, which are Hydra's."""
    if value.startswith("~/"):
        raise InvalidSetting(
            f"{key}={printable(value)} begins with ~, which no shell expands there; give the whole path, such as "
            f'{key}="$HOME"/{printable(value[2:])}'
        )
    return value not in ("", "null") and "${" not in value and not QUOTED.fullmatch(value)


def _parts(value: str) -> list[str]:
    """The values between commas, of which quotes keep one together."""
    return list(re.findall(r"((?:'[^']*'|\"[^\"]*\"|[^,])+)", value)) or [""]


def _parse(text: str) -> Override | None:
    """An override as Hydra reads it, or None where its grammar does not hold it."""
    try:
        (override,) = OverridesParser.create().parse_overrides(overrides=[text])
    except HydraException:
        return None
    return override
