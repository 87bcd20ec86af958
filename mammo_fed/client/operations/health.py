"""Name of the file in which an executor says what it does; apart, so that a supervisor need not load what an executor loads."""

from __future__ import annotations

from typing import Final

__all__ = ["HEALTH_NAME"]

HEALTH_NAME: Final = "executor.json"
