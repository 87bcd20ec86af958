"""The line from a site to its coordinator: tried out, and what stands in its way named with a remedy."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Final

import httpx

from mammo_fed.client.folder import NetworkSettings, SiteFolder
from mammo_fed.errors import MammoFedError, RunFailed
from mammo_fed.federation.flwr_internals.health import Health, ask_health
from mammo_fed.federation.identity.certificates import read_authority
from mammo_fed.federation.identity.clocks import CLOCK_TOLERANCE_SECONDS, difference

__all__ = ["try_line", "what_is_wrong"]

SOON_DAYS: Final = 30
# Below it, clocks are as good as the same.
NOTABLE_SECONDS: Final = 30.0
OPENSSL_ON_TIME: Final = ("certificate is not yet valid", "certificate has expired")
PROXY_ANSWERS: Final = {
    "407": 'asks for user and password: write proxy = "http://USER:PASSWORD@HOST:PORT" into [network] of site.toml',
    "403": "refuses: ask its administrators to allow CONNECT to {server}, without opening TLS",
    "405": "refuses: ask its administrators to allow CONNECT to {server}, without opening TLS",
    "500": "cannot reach {server}: check the address, and with the coordinator whether the server is up",
    "502": "cannot reach {server}: check the address, and with the coordinator whether the server is up",
    "503": "cannot reach {server}: check the address, and with the coordinator whether the server is up",
    "504": "cannot reach {server}: check the address, and with the coordinator whether the server is up",
}


def try_line(folder: SiteFolder, *, insecure: bool = False, seconds: float) -> str:
    """Connect to the site's server as its SuperNode would, and say what was found.

    Args:
      folder: the site's.
      insecure: without TLS.
      seconds: for each step.

    Raises:
      InvalidSetting: If the authority's certificate is not valid now or cannot be read.
      RunFailed: If the server cannot be reached, does not prove itself, or would refuse this machine's clock.
    """
    network = folder.network
    if not insecure:
        read_authority(folder.authority)
    try:
        found = ask_health(network.server, ca=None if insecure else folder.authority, proxy=network.way, seconds=seconds)
    except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
        raise RunFailed(_reason(network, error)) from error
    if found.status != httpx.codes.OK:
        raise RunFailed(f"{network.server}/health answers {found.status}, not 200; check that it is the federation's server")
    clock = _clock(network, found)
    through = f" through the proxy {network.proxy_name}" if network.way else ""
    return f"{network.server} answers{through}{_certificate(found)}{clock}"


def what_is_wrong(folder: SiteFolder, *, insecure: bool, seconds: float) -> str:
    """What `try_line` raises; "" where nothing stands in the way."""
    try:
        try_line(folder, insecure=insecure, seconds=seconds)
    except MammoFedError as error:
        return str(error)
    return ""


def _clock(network: NetworkSettings, found: Health) -> str:
    ahead = found.ahead_seconds
    if ahead is None:
        return ""
    said = f"this machine's clock is {difference(ahead)} the server's"
    if abs(ahead) >= CLOCK_TOLERANCE_SECONDS:
        raise RunFailed(
            f"{said}, and {CLOCK_TOLERANCE_SECONDS:g} s are allowed: {network.server} refuses this site; set the clock here "
            "(timedatectl set-ntp true), or tell the coordinator"
        )
    return f"; WARNING: {said}; {CLOCK_TOLERANCE_SECONDS:g} s are allowed" if abs(ahead) >= NOTABLE_SECONDS else ""


def _certificate(found: Health) -> str:
    if found.certificate_until is None:
        return ""
    days = (found.certificate_until - datetime.now(UTC)).total_seconds() / 86400
    soon = "; tell the coordinator to renew it" if days < SOON_DAYS else ""
    return f"; its certificate is valid for {days:.0f} days{soon}"


def _reason(network: NetworkSettings, error: Exception) -> str:
    text = str(error)
    if "certificate verify failed" in text:
        return _certificate_reason(network, text)
    if isinstance(error, httpx.InvalidURL):
        return f"network.server={network.server} cannot be called ({text}); check the address"
    if network.way is None:
        return (
            f"{network.server} does not answer ({type(error).__name__}: {text}); check the address, the firewall for outgoing "
            "connections, whether a proxy has to be passed (proxy in site.toml), and with the coordinator whether the server "
            "is up: between runs only `flower-server listen` keeps it so"
        )
    proxy = f"the proxy {network.proxy_name}"
    if isinstance(error, httpx.ProxyError):
        answer = PROXY_ANSWERS.get(text[:3], "does not connect: ask its administrators to allow CONNECT to {server}")
        return f"{proxy} answers {text!r}, it {answer.format(server=network.server)}"
    return (
        f"no answer of {network.server} through {proxy} ({type(error).__name__}: {text}); check the proxy's address in "
        "site.toml, with its administrators whether it allows CONNECT to that port and leaves TLS closed, and with the "
        "coordinator whether the server is up: between runs only `flower-server listen` keeps it so"
    )


def _certificate_reason(network: NetworkSettings, text: str) -> str:
    found = re.search(r"certificate verify failed: (.*?)(?: \(_ssl|$)", text)
    said = found[1] if found else text
    if said.startswith(OPENSSL_ON_TIME):
        return (
            f"the certificate of {network.server} is not valid now ({said}), and it is {datetime.now(UTC):%Y-%m-%d %H:%M} UTC "
            "by this machine's clock; check the clock, or ask the coordinator to renew the server's certificate"
        )
    opened = f" or whether the proxy {network.proxy_name} opens TLS, which it must not" if network.way else ""
    return (
        f"{network.server} does not prove itself by the federation's authority ({said}); compare ca.crt with the coordinator, "
        f"who may have to renew the server's certificate, and look whether this is another server{opened}"
    )
