"""What changes speed and place only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mammo_fed.settings.checks import at_least

__all__ = ["EngineSettings"]


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """What only changes speed and place, never a result.

    Attributes:
      name: "in_process" or "ray".
      workers: sites that run at a time, >= 1.
      wire: send every message through Flower's real serialisation, in process.
      threads: CPU threads for the networks; 0 leaves it to PyTorch.
      cache: folder of cached features; null is the user's cache folder.
    """

    name: Literal["in_process", "ray"]
    workers: int
    wire: bool
    threads: int
    cache: str | None

    def __post_init__(self) -> None:
        at_least("engine.workers", self.workers, 1)
        at_least("engine.threads", self.threads, 0)
