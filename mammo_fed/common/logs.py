"""Where the packages' own log goes."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

__all__ = ["LOG_NAME", "log_to_file"]

LOG_NAME: Final = "run.log"
TOP: Final = "mammo_fed"


@contextmanager
def log_to_file(path: Path) -> Iterator[None]:
    """Append what the packages log to `path` for the time of a run."""
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logger = logging.getLogger(TOP)
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = True
        handler.close()
