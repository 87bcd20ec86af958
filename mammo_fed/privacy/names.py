"""Names of sites, runs, tasks and accounts in a ledger."""

from __future__ import annotations

from typing import Final

from mammo_fed.errors import InvalidSetting

__all__ = ["DEFAULT_ACCOUNT", "NAME_LENGTH", "check_name"]

DEFAULT_ACCOUNT: Final = "default"
NAME_LENGTH: Final = 200


def check_name(name: str, *, setting: str) -> None:
    """Raise InvalidSetting unless `name` is 1 to 200 printable characters."""
    if not (0 < len(name) <= NAME_LENGTH and name.isprintable()):
        raise InvalidSetting(f"{setting} must be 1 to {NAME_LENGTH} printable characters; it has {len(name)}")
