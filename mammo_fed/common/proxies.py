"""HTTP proxies that the variables of an environment name: not for a federation's own lines, only for downloads of weights.

http_proxy, https_proxy, all_proxy and no_proxy are read, in both cases, by nearly every HTTP client. A federation's own
processes speak to this machine or to the one server that their settings name: a proxy that somebody set for downloads makes
such a line hang, and shows it where it need not pass. Lower case wins over upper case where both are set, so that an empty
variable in lower case switches off both.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final

__all__ = ["PROXY_VARIABLES", "machines_proxies", "without_proxies"]

PROXY_VARIABLES: Final = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")
# In which a process without proxies keeps those of the machine, as JSON, for what it downloads.
KEPT_VARIABLE: Final = "MAMMO_FED_MACHINES_PROXIES"


def without_proxies() -> dict[str, str]:
    """Variables for a child of this process: it and all its children use no proxy, but for downloads.

    >>> without_proxies()["https_proxy"], without_proxies()["no_proxy"]
    ('', '*')
    """
    return {**dict.fromkeys(PROXY_VARIABLES[:3], ""), "no_proxy": "*", KEPT_VARIABLE: json.dumps(_machines())}


@contextmanager
def machines_proxies() -> Iterator[None]:
    """While the block runs, this process's environment names the machine's proxies again: for a download from the internet.

    Clients that were made before, such as those of a federation's own lines, do not notice.
    """
    before = _present()
    try:
        _set(_machines())
        yield
    finally:
        _set(before)


def _machines() -> Mapping[str, str]:
    """What the environment of the first process named that was not without proxies."""
    if (kept := os.environ.get(KEPT_VARIABLE)) is None:
        return _present()
    found: dict[str, str] = json.loads(kept)
    return found


def _present() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.lower() in PROXY_VARIABLES}


def _set(wanted: Mapping[str, str]) -> None:
    for name in _present():
        del os.environ[name]
    os.environ.update(wanted)
