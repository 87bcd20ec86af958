"""The site's folder at a hospital: its file, its key, its ledger."""

from __future__ import annotations

import ipaddress
import math
import re
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from mammo_fed.client.policy import SiteFile, read_site_file, read_toml
from mammo_fed.common.private_files import check_private, file_lock, is_locked, write_private
from mammo_fed.common.serialization import build
from mammo_fed.errors import InvalidSetting
from mammo_fed.federation.identity.keys import SiteKey, check_site_name, make_private_key, public_key_of

__all__ = ["ABOUT", "NetworkSettings", "SiteFolder"]

ABOUT: Final = "site.toml"
LOCK: Final = "lock"
USUAL_IDLE_MINUTES: Final = 5.0
ADDRESS: Final = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[^:\[\]/\s]+):(?P<port>[0-9]{1,5})")
# Characters of a name in DNS.
MOST_HOST: Final = 253
# Of files from before there was a proxy in them.
NO_PROXY: Final = ""
PROXY: Final = re.compile(
    r"http://(?:[^\s:@/]+(?::[^\s:@/]*)?@)?(?P<host>\[[0-9A-Fa-f:.]+\]|[^\s:@/\[\]]+):(?P<port>[0-9]{1,5})/?"
)


@dataclass(frozen=True, kw_only=True)
class NetworkSettings:
    """The table `network` of a site's file.

    Attributes:
      server: HOST:PORT of the coordinator.
      ca: the federation's authority's certificate.
      key: this site's private key.
      executor_port: port on 127.0.0.1 for the site's own processes; "auto" takes a free one.
      executor_idle_minutes: after so many without a server and without a task the process that trains is ended, > 0; it takes
        hundreds of megabytes, and is started again when the server is back.
      proxy: URL of the HTTP proxy between this site and the coordinator; it may hold a password, and "" is none.
    """

    server: str
    ca: str
    key: str
    executor_port: int | Literal["auto"]
    executor_idle_minutes: float = USUAL_IDLE_MINUTES
    proxy: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        match = ADDRESS.fullmatch(self.server)
        if not match or not 1 <= int(match["port"]) <= 65535 or not _can_be_asked_for(self.host):
            raise InvalidSetting(
                f"network.server={self.server} must be HOST:PORT without https://, as the coordinator gave it; check --server"
            )
        if self.executor_port != "auto" and not 1 <= self.executor_port <= 65535:
            raise InvalidSetting(f"network.executor_port={self.executor_port} must be from 1 to 65535, or auto")
        if not (math.isfinite(self.executor_idle_minutes) and self.executor_idle_minutes > 0):
            raise InvalidSetting(f"network.executor_idle_minutes={self.executor_idle_minutes} must be a finite number above 0")
        match = PROXY.fullmatch(self.proxy) if self.proxy else None
        if self.proxy and (
            not match or not 1 <= int(match["port"]) <= 65535 or not _can_be_asked_for(match["host"].strip("[]"))
        ):
            raise InvalidSetting(
                f"network.proxy={_without_password(self.proxy)} must be http://HOST:PORT or http://USER:PASSWORD@HOST:PORT, "
                "with special characters of user and password as in a URL (%40 for @); leave it empty to connect directly"
            )

    @property
    def host(self) -> str:
        """The server's name or address, without brackets."""
        return self.server.rpartition(":")[0].strip("[]")

    @property
    def port(self) -> int:
        """The server's port."""
        return int(self.server.rpartition(":")[2])

    @property
    def way(self) -> str | None:
        """The proxy's URL; None where the line is direct, as it always is on this machine."""
        return self.proxy if self.proxy and not _is_loopback(self.host) else None

    @property
    def proxy_name(self) -> str:
        """The proxy without user and password, for people."""
        return self.proxy.rpartition("@")[2].removeprefix("http://")


def _without_password(url: str) -> str:
    scheme, found, rest = url.rpartition("://")
    return f"{scheme}{found}{'***@' if '@' in rest else ''}{rest.rpartition('@')[2]}"


def _can_be_asked_for(host: str) -> bool:
    """Whether a name has a form that DNS knows; of others the system's functions end with errors that nobody expects."""
    try:
        return len(host.encode("idna").decode("idna")) <= MOST_HOST
    except UnicodeError:
        return False


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower().rstrip(".") == "localhost" or host.lower().rstrip(".").endswith(".localhost")


@dataclass(frozen=True, kw_only=True)
class SiteFolder:
    """A site's folder.

    Attributes:
      path: the folder, absolute.
      file: what makes the site, as its app reads it.
      network: how it reaches the server.
    """

    path: Path
    file: SiteFile
    network: NetworkSettings

    @classmethod
    def open(cls, path: Path) -> SiteFolder:
        """The folder at `path`.

        Raises:
          InvalidSetting: If it is not a site's folder, a value is out of its range, or its secrets are open to others.
          DataError: If its file cannot be read.
        """
        folder = cls.described(path)
        for secret in (folder.path, folder.site_file, folder.key):
            check_private(secret)
        return folder

    @classmethod
    def described(cls, path: Path) -> SiteFolder:
        """The folder at `path` as its file describes it, whether or not what the file names is there and closed to others.

        Raises:
          InvalidSetting: If it is not a site's folder, or a value is out of its range.
          DataError: If its file cannot be read.
        """
        about = path / ABOUT
        if not about.is_file():
            raise InvalidSetting(
                f"FOLDER={path} must be a site's folder, with {ABOUT} in it; `site-client init FOLDER` makes one"
            )
        values: Mapping[str, Any] = read_toml(about)
        if "network" not in values:
            raise InvalidSetting(f"network is missing in {about}; give a table [network] with server, ca, key, executor_port")
        network = values["network"]
        if isinstance(network, Mapping):
            # Files of earlier releases do not name them.
            network = {"executor_idle_minutes": USUAL_IDLE_MINUTES, "proxy": NO_PROXY, **network}
        folder = cls(
            path=path.resolve(),
            file=read_site_file(about),
            network=build(NetworkSettings, network, path="network"),
        )
        check_site_name(folder.file.site, option="site")
        return folder

    @property
    def site_file(self) -> Path:
        """The site's file; what a SuperNode gets as `site-file`."""
        return self.path / ABOUT

    @property
    def key(self) -> Path:
        """The private key."""
        return self._within(self.network.key)

    @property
    def public_key_file(self) -> Path:
        """The public key, for the coordinator."""
        return self.key.with_name(f"{self.file.site}.pub")

    @property
    def old_key(self) -> Path:
        """The private key from before a rotation, until that is over."""
        return self.key.with_name(f"{self.key.name}.old")

    @property
    def authority(self) -> Path:
        """The federation's authority's certificate."""
        return self._within(self.network.ca)

    @property
    def private(self) -> Path:
        """Prepared runs, and the state and logs of the site's processes."""
        return Path(self.file.folder)

    def hold(self) -> AbstractContextManager[None]:
        """Keep every other site-client off the folder while the block runs; raises InvalidSetting where one is there."""
        self.private.mkdir(mode=0o700, parents=True, exist_ok=True)
        return file_lock(self.private / LOCK, what="site-client")

    @property
    def held(self) -> bool:
        """Whether a site-client has the folder."""
        return is_locked(self.private / LOCK)

    def public_key(self) -> SiteKey:
        """The public half of the site's key."""
        return public_key_of(self.key)

    def rotate_key(self) -> SiteKey:
        """Make a new key and keep the old one aside until `end_rotation` or `undo_rotation`; the new public key.

        A SuperNode that runs has read the old key, and keeps it until the coordinator replaces it; the one that is
        started then reads the new key.

        Raises:
          InvalidSetting: If the last rotation is not over: a second one would lose the only key that the coordinator knows.
        """
        if self.old_key.exists():
            raise InvalidSetting(
                f"the last rotation is not over, {self.old_key} is still there; when the coordinator has registered the new "
                "key give --done, to go back to the old key give --undo"
            )
        write_private(self.old_key, self.key.read_bytes())
        return self._take(make_private_key())

    def undo_rotation(self) -> SiteKey:
        """Go back to the key from before the rotation; that public key.

        Raises:
          InvalidSetting: If no rotation is going on.
        """
        self._check_rotating()
        key = self._take(self.old_key.read_bytes())
        self.old_key.unlink()
        return key

    def end_rotation(self) -> SiteKey:
        """Throw the old key away; the public key that is in use.

        Raises:
          InvalidSetting: If no rotation is going on.
        """
        self._check_rotating()
        self.old_key.unlink()
        return self.public_key()

    def _check_rotating(self) -> None:
        if not self.old_key.exists():
            raise InvalidSetting(f"--done and --undo end a rotation, and {self.old_key} is not there; rotate first")

    def _take(self, private: bytes) -> SiteKey:
        write_private(self.key, private)
        key = self.public_key()
        write_private(self.public_key_file, key.file_content(self.file.site))
        return key

    def _within(self, path: str) -> Path:
        return self.path / Path(path).expanduser()
