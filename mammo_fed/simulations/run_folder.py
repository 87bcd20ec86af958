"""The folder of a new run: made before anything is written, and never over a run that is there."""

from __future__ import annotations

from pathlib import Path

from mammo_fed.common.private_files import write_atomically
from mammo_fed.errors import InvalidSetting

__all__ = ["make_run_folder"]


def make_run_folder(folder: Path, *, configuration: str) -> None:
    """Make the folder of a run with its config.yaml.

    Raises:
      InvalidSetting: If it holds a run already (its files are not touched), or cannot be made.
    """
    if (folder / "sites").exists() or (folder / "record.json").exists():
        raise InvalidSetting(f"hydra.run.dir={folder} already holds a run and its ledgers; choose another folder, or remove it")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidSetting(f"hydra.run.dir={folder} cannot be made ({error.strerror}); choose another folder") from error
    write_atomically(folder / "config.yaml", configuration)
