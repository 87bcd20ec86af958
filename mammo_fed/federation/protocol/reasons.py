"""The fixed words in which sites and servers say why something is refused: none of them depends on a patient's data."""

from __future__ import annotations

from typing import Literal, TypeAlias

__all__ = ["Reason", "RejectionReason"]

Reason: TypeAlias = Literal["budget", "policy", "ledger", "task", "weights", "version", "internal", "unready"]
"""Why a site refuses; the only words about a failure that cross the network.

"unready" is of a site that cannot answer now and has reserved nothing for the round: it lost what the run was declared with, or
its disk is full. It is declared to again before the next round.
"""

RejectionReason: TypeAlias = Literal[
    "schedule",
    "unit",
    "sampling",
    "clipping",
    "noise",
    "events",
    "size",
    "task",
    "shape",
    "not_finite",
    "norm",
    "direction",
    "weight",
    "version",
    "unreadable",
]
"""Why the server leaves out what a site sent; see mammo_fed.reporting.record.statements.REJECTIONS."""
