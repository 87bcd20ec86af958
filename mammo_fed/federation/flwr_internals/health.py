"""Whether a SuperLink is there; without Flower's libraries, which take a while to import."""

from __future__ import annotations

import ssl
from pathlib import Path

import httpx

__all__ = ["healthy"]


def healthy(address: str, *, ca: Path | None) -> bool:
    """Whether the SuperLink at `address` answers."""
    verify: ssl.SSLContext | bool = False if ca is None else ssl.create_default_context(cafile=str(ca))
    try:
        scheme = "http" if ca is None else "https"
        return httpx.get(f"{scheme}://{address}/health", verify=verify, timeout=2.0, trust_env=False).is_success
    except (httpx.HTTPError, OSError):
        return False
