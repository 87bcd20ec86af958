"""The folder of a run: made before anything is written, never over a run that is there, and taken up again after a break."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from mammo_fed.common.private_files import file_lock, write_atomically, write_private
from mammo_fed.errors import InvalidSetting
from mammo_fed.federation.run_folder import SITES_NAME
from mammo_fed.reporting.record.record import RECORD_NAME
from mammo_fed.server.operations.run_folder import CHECKPOINT_NAME
from mammo_fed.server.rounds.run_state import CheckpointFolder
from mammo_fed.settings import Settings

__all__ = [
    "CONFIGURATION_NAME",
    "check_begun",
    "check_fresh",
    "hold",
    "is_done",
    "keep_begun",
    "make_run_folder",
    "make_sweep_folder",
    "read_sweep",
    "remove_leftovers",
]

CONFIGURATION_NAME: Final = "config.yaml"
SWEEP_NAME: Final = "sweep.json"
# Beside the sites' files, which nobody edits while a run lies there; not one of theirs, which end in .json.
BEGUN_NAME: Final = "begun-with"
LOCK_NAME: Final = "run.lock"


def is_done(folder: Path) -> bool:
    """Whether the run in `folder` has ended: its record is written last."""
    return (folder / RECORD_NAME).exists()


def remove_leftovers(folder: Path) -> None:
    """Remove what the run in `folder`, which is done, had kept to go on: it was killed when only that was left to do."""
    if (folder / CHECKPOINT_NAME).exists():
        # Who has the folder now removes it.
        with suppress(InvalidSetting), hold(folder):
            CheckpointFolder(folder / CHECKPOINT_NAME).remove()


def make_run_folder(folder: Path, *, configuration: str) -> None:
    """Make the folder of a run with its config.yaml.

    Raises:
      InvalidSetting: If it holds a run already (its files are not touched), or cannot be made.
    """
    check_fresh(folder)
    _make(folder, setting="hydra.run.dir")
    write_atomically(folder / CONFIGURATION_NAME, configuration)


def check_fresh(folder: Path) -> None:
    """Raise InvalidSetting where `folder` holds a run: its ledgers are not to be overwritten."""
    if is_done(folder):
        raise InvalidSetting(f"hydra.run.dir={folder} already holds a run and its ledgers; choose another folder, or remove it")
    if (folder / SITES_NAME).exists():
        raise InvalidSetting(
            f"hydra.run.dir={folder} already holds a run and its ledgers; go on with it (mammo-fed simulate --resume "
            f"{folder}), or choose another folder"
        )


def keep_begun(folder: Path, settings: Settings) -> None:
    """Keep what a run is begun with, apart from the config.yaml that people edit."""
    write_private(folder / SITES_NAME / BEGUN_NAME, settings.to_json() + "\n")


def check_begun(folder: Path, settings: Settings) -> None:
    """Raise InvalidSetting where the run in `folder` was begun with other settings than these, engine aside."""
    path = folder / SITES_NAME / BEGUN_NAME
    if not path.exists():
        # Nothing was asked of a site yet, or an earlier release began it: then the run's declaration decides.
        return
    try:
        same = Settings.from_json(path.read_text(encoding="utf-8")).sha256() == settings.sha256()
    except (OSError, ValueError) as error:
        raise InvalidSetting(
            f"{path} cannot be read as this version's settings ({error}); resume the run with the version that began it, or "
            "start another run"
        ) from error
    if not same:
        raise InvalidSetting(
            f"the settings are not those that the run in {folder} was begun with; put its {CONFIGURATION_NAME} back as it was, "
            "or start another run in another folder"
        )


@contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Have the run in `folder` for oneself.

    Raises:
      InvalidSetting: If another process has it.
    """
    path = folder / LOCK_NAME
    with file_lock(path, what="simulation", folder=folder):
        yield
        # Whoever comes now finds a record, and runs nothing.
        if is_done(folder):
            path.unlink(missing_ok=True)


def make_sweep_folder(folder: Path, runs: Sequence[Sequence[str]]) -> None:
    """Make the folder of a sweep, and write down which runs it has: the overrides of each, run N in the folder N below.

    Raises:
      InvalidSetting: If it holds a sweep already, or cannot be made.
    """
    if (folder / SWEEP_NAME).exists():
        raise InvalidSetting(
            f"hydra.sweep.dir={folder} already holds a sweep; go on with it (mammo-fed simulate --resume {folder}), or choose "
            "another folder"
        )
    _make(folder, setting="hydra.sweep.dir")
    write_atomically(folder / SWEEP_NAME, json.dumps({"format": 1, "runs": [list(run) for run in runs]}, indent=2) + "\n")


def read_sweep(folder: Path) -> list[list[str]] | None:
    """The overrides of each run of the sweep in `folder`; None where there is no sweep.

    Raises:
      InvalidSetting: If the file that lists them is damaged.
    """
    path = folder / SWEEP_NAME
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["format"] != 1:
            raise ValueError(f"format {found['format']}")
        return [[str(override) for override in run] for run in found["runs"]]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InvalidSetting(f"{path} is not the list of a sweep's runs ({error}); start the sweep again elsewhere") from error


def _make(folder: Path, *, setting: str) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidSetting(f"{setting}={folder} cannot be made ({error.strerror}); choose another folder") from error
