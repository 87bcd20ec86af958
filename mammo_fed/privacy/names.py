"""Names that settings, policies, records and code share, each written out once; whose data is protected is `events.Unit`."""

from __future__ import annotations

from typing import Final, Literal, TypeAlias

__all__ = [
    "AccountantName",
    "Aggregation",
    "FilterKind",
    "LedgerScope",
    "LocalOptimizer",
    "MOST_COUNT",
    "MechanismName",
    "NoiseMode",
    "NoiseOrigin",
    "OwnAccountant",
]

# Images, patients and steps: no hospital has more, and all arithmetic on them stays in the range of its types.
MOST_COUNT: Final = 10**9
# Who prices: one of ours, or the name of an accountant that another distribution brings (mammo_fed.extensions.kinds).
AccountantName: TypeAlias = str
# Who may price the training of a generator, which is ours alone.
OwnAccountant: TypeAlias = Literal["pld", "rdp", "prv"]
# How a site trains: "dp_gd" (full-batch gradient descent), "dp_sgd" (Poisson-sampled steps), or another distribution's name.
MechanismName: TypeAlias = str
# What takes the sampled steps.
LocalOptimizer: TypeAlias = Literal["sgd", "adamw"]
# Noise on the integer grid, or in floating point.
NoiseMode: TypeAlias = Literal["secure", "float"]
# Whether the server sees updates, masked sums whose parts carry all of their noise, or sums that only together carry it.
Aggregation: TypeAlias = Literal["plain", "masks", "shared_noise"]
# Where the noise of a run came from.
NoiseOrigin: TypeAlias = Literal["operating system", "injected", "none"]
# What bounds an account whose releases are chosen adaptively.
FilterKind: TypeAlias = Literal["gdp", "rdp", "declared"]
# Whose ledger a guarantee is about: the run's own, or the site's, which carries over.
LedgerScope: TypeAlias = Literal["run", "site"]
