"""Whether a SuperLink is there, and what o'clock it is at it; without Flower's libraries, which take a while to import."""

from __future__ import annotations

import ssl
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path

import httpx

__all__ = ["Health", "ask_health", "healthy"]


@dataclass(frozen=True, kw_only=True)
class Health:
    """What a server answered to who asked how it is.

    Attributes:
      status: of HTTP; 200 is well.
      ahead_seconds: of this machine's clock before the server's, within a second and the way there; negative where it is
        behind, None where the server did not say the time.
      certificate_until: when the certificate that it showed expires; None without TLS.
    """

    status: int
    ahead_seconds: float | None
    certificate_until: datetime | None


def ask_health(address: str, *, ca: Path | None, proxy: str | None, seconds: float) -> Health:
    """Ask the SuperLink at `address` how it is; no variable of the environment is looked at.

    Args:
      address: host and port.
      ca: certificates of the authorities of which one must have signed the server's; None speaks plain HTTP.
      proxy: URL of an HTTP proxy to go through.
      seconds: for each step.

    Raises:
      httpx.HTTPError: If there is no answer.
      OSError: If `ca` cannot be read.
    """
    verify: ssl.SSLContext | bool = False if ca is None else ssl.create_default_context(cafile=str(ca))
    scheme = "http" if ca is None else "https"
    with (
        httpx.Client(verify=verify, timeout=seconds, trust_env=False, proxy=proxy) as client,
        client.stream("GET", f"{scheme}://{address}/health") as response,
    ):
        ended = time.time()
        shown = response.extensions["network_stream"].get_extra_info("ssl_object")
        until = None if shown is None else _expiry(shown)
        response.read()
    return Health(
        status=response.status_code, ahead_seconds=_ahead(response.headers.get("date"), ended), certificate_until=until
    )


def healthy(address: str, *, ca: Path | None, proxy: str | None = None) -> bool:
    """Whether the SuperLink at `address` answers; see `ask_health`."""
    try:
        return ask_health(address, ca=ca, proxy=proxy, seconds=2.0).status == httpx.codes.OK
    except (httpx.HTTPError, OSError):
        return False


def _ahead(date: str | None, moment: float) -> float | None:
    """A server says whole seconds, cut off."""
    try:
        return None if date is None else moment - parsedate_to_datetime(date).timestamp() - 0.5
    except ValueError:
        return None


def _expiry(shown: ssl.SSLObject) -> datetime | None:
    moment = (shown.getpeercert() or {}).get("notAfter")
    return None if moment is None else datetime.fromtimestamp(ssl.cert_time_to_seconds(str(moment)), UTC)
