"""The five kinds of extension, with our own names; docs/recipes.md shows how to bring one of each."""

from __future__ import annotations

from typing import Any, Final

from mammo_fed.extensions.registry import Extensions

__all__ = ["ACCOUNTANTS", "ARCHIVES", "BACKBONES", "MECHANISMS", "STRATEGIES"]

ARCHIVES: Final[Extensions[Any]] = Extensions(
    group="mammo_fed.archives",
    setting="--source",
    built_in=("csv", "cbis_ddsm", "bcdr", "inbreast", "cmmd", "vindr_mammo", "embed"),
)
"""Functions as mammo_fed.data.dicom.findings.Source."""

BACKBONES: Final[Extensions[Any]] = Extensions(group="mammo_fed.backbones", setting="model.backbone", built_in=())
"""Functions as mammo_fed.models.backbones.MakeNetwork; whatever timm knows is built in."""

STRATEGIES: Final[Extensions[Any]] = Extensions(
    group="mammo_fed.strategies",
    setting="federation.strategy",
    built_in=("FedAvg", "FedProx", "FedAdam", "FedYogi", "FedMedian", "FedTrimmedAvg", "Krum", "FedAgree"),
)
"""Functions from (federation settings, **arguments of Flower's FedAvg) to a kind of FedAvg."""

ACCOUNTANTS: Final[Extensions[Any]] = Extensions(
    group="mammo_fed.accountants", setting="privacy.accountant", built_in=("pld", "rdp", "gdp", "prv")
)
"""Instances of mammo_fed.privacy.accounting.composition.PrivacyAccountant."""

MECHANISMS: Final[Extensions[Any]] = Extensions(
    group="mammo_fed.mechanisms", setting="privacy.mechanism", built_in=("dp_gd", "dp_sgd")
)
"""Functions as mammo_fed.privacy.mechanisms.unit_descent.UnitGradient."""
