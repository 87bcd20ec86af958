"""Which extensions a run's settings ask for, and which distributions they come from."""

from __future__ import annotations

from dataclasses import dataclass

from mammo_fed.extensions.kinds import ACCOUNTANTS, BACKBONES, MECHANISMS, STRATEGIES
from mammo_fed.extensions.registry import Origin
from mammo_fed.settings import Settings

__all__ = ["UsedExtension", "extensions_used"]


@dataclass(frozen=True, kw_only=True)
class UsedExtension:
    """An extension that a run uses.

    Attributes:
      kind: "mechanism", "accountant", "backbone" or "strategy".
      name: as in the settings.
      origin: the distribution that brings it.
    """

    kind: str
    name: str
    origin: Origin

    @property
    def key(self) -> str:
        """As a site's policy names it."""
        return f"{self.kind}:{self.name}"


def extensions_used(settings: Settings) -> tuple[UsedExtension, ...]:
    """What the settings ask for beyond our own; nothing is imported for it.

    Raises:
      InvalidSetting: If two distributions bring the same name.
    """
    asked = [
        ("mechanism", MECHANISMS, settings.privacy.mechanism),
        ("accountant", ACCOUNTANTS, settings.privacy.accountant),
        ("strategy", STRATEGIES, settings.federation.resolved_strategy),
        *(("backbone", BACKBONES, name) for name in settings.model.backbone),
    ]
    return tuple(
        UsedExtension(kind=kind, name=name, origin=extensions.origin(name))
        for kind, extensions, name in asked
        if extensions.extends(name)
    )
