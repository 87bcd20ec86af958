"""The federation's folder at the coordinator: who the server is, which sites may come, and where its runs lie."""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal

from mammo_fed.common.json_lines import read_object
from mammo_fed.common.private_files import check_private, file_lock, is_locked, new_folder, write_atomically, write_private
from mammo_fed.common.serialization import build, canonical_json
from mammo_fed.errors import DataError, InvalidSetting
from mammo_fed.federation.flwr_internals.door.limits import CONNECTIONS_PER_ADDRESS
from mammo_fed.federation.identity.certificates import Certificate, read_certificate
from mammo_fed.federation.identity.keys import check_site_name
from mammo_fed.server.operations.authority import (
    AUTHORITY_DAYS,
    SERVER_DAYS,
    Credentials,
    check_host,
    make_authority,
    make_key,
    make_server_certificate,
)
from mammo_fed.server.operations.onboarding_bundle import write_onboarding_bundle
from mammo_fed.server.operations.registry import Registry
from mammo_fed.server.operations.run_folder import OUTCOME_NAME
from mammo_fed.server.operations.sockets import check_bind

__all__ = ["STATE_NAME", "Federation", "FederationFolder", "init_folder"]

ABOUT: Final = "federation.json"
# In the folder of the server's state: the run that it serves, or served last.
STATE_NAME: Final = "server.json"
# Who has RUN_LOCK wants a run, or has one; who has LOCK has the processes.
RUN_LOCK: Final = "run.lock"
LOCK: Final = "lock"
# Longer than a look at a lock takes, and than a listener takes to end its processes.
LOOK_SECONDS: Final = 2.0
GIVE_WAY_SECONDS: Final = 60.0
FORMAT: Final = 1
# A site's SuperNode has a handful of connections; above the most, all addresses together may have no more.
LEAST_CONNECTIONS: Final = 8
MOST_CONNECTIONS: Final = 1024
REMEDY: Final = "`flower-server init FOLDER` makes one"


@dataclass(frozen=True, kw_only=True)
class Federation:
    """What federation.json says.

    Attributes:
      format: of the folder.
      name: of the federation.
      hosts: names and addresses by which sites reach the server; the first is the one that they get.
      port: where the server listens.
      bind: address that it listens on.
      max_connections_per_address: at a time, >= 8; sites behind one proxy share an address.
    """

    format: int
    name: str
    hosts: tuple[str, ...]
    port: int
    bind: str
    max_connections_per_address: int = CONNECTIONS_PER_ADDRESS

    def __post_init__(self) -> None:
        if self.format != FORMAT:
            raise InvalidSetting(f"format={self.format} must be {FORMAT}; use the version of mammo-fed that made the folder")
        check_site_name(self.name, option="--name")
        if not self.hosts:
            raise InvalidSetting("hosts=[] must name at least one host; give --host")
        for host in self.hosts:
            check_host(host)
        if not 1 <= self.port <= 65535:
            raise InvalidSetting(f"--port={self.port} must be from 1 to 65535")
        try:
            ipaddress.ip_address(self.bind)
        except ValueError as error:
            raise InvalidSetting(f"--bind={self.bind} must be an address of this machine; 0.0.0.0 is all of IPv4") from error
        if not LEAST_CONNECTIONS <= self.max_connections_per_address <= MOST_CONNECTIONS:
            raise InvalidSetting(
                f"--max-connections-per-address={self.max_connections_per_address} must be from {LEAST_CONNECTIONS} to "
                f"{MOST_CONNECTIONS}; one site uses up to {LEAST_CONNECTIONS}"
            )

    @property
    def address(self) -> str:
        """HOST:PORT as sites get it."""
        host = self.hosts[0]
        return f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"


@dataclass(frozen=True, kw_only=True)
class FederationFolder:
    """A federation's folder.

    Attributes:
      path: the folder, absolute.
      about: what federation.json says.
    """

    path: Path
    about: Federation

    @classmethod
    def open(cls, path: Path) -> FederationFolder:
        """The folder at `path`.

        Raises:
          InvalidSetting: If it is not a federation's folder, or its secrets are open to others.
          DataError: If federation.json is damaged.
        """
        try:
            values = json.loads((path / ABOUT).read_text(encoding="utf-8"))
        except OSError as error:
            raise InvalidSetting(
                f"FOLDER={path} must be a federation's folder ({ABOUT}: {error.strerror}); {REMEDY}"
            ) from error
        except ValueError as error:
            raise DataError(f"{path / ABOUT} is not JSON; restore it from a backup") from error
        if isinstance(values, dict):
            # Folders of earlier versions do not say.
            values = {"max_connections_per_address": CONNECTIONS_PER_ADDRESS, **values}
        folder = cls(path=path.resolve(), about=build(Federation, values, path=""))
        for secret in (folder.path, folder.state, folder.server_key):
            check_private(secret)
        return folder

    @property
    def authority_certificate(self) -> Path:
        """The authority's certificate, which sites hold too."""
        return self.path / "tls" / "ca.crt"

    @property
    def authority_key(self) -> Path:
        """The authority's key; needed by `renew` only, and may be kept elsewhere."""
        return self.path / "tls" / "ca.key"

    @property
    def server_certificate(self) -> Path:
        """The server's certificate."""
        return self.path / "tls" / "server.crt"

    @property
    def server_key(self) -> Path:
        """The server's key."""
        return self.path / "tls" / "server.key"

    @property
    def state(self) -> Path:
        """Databases, secrets and logs of the server's processes."""
        return self.path / "state"

    @property
    def runs(self) -> Path:
        """Run folders."""
        return self.path / "runs"

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Have the folder for a run while the block runs: a listener gives way, and comes back afterwards.

        Raises:
          InvalidSetting: If another run is there, or the listener does not end.
        """
        # Who looks whether it is taken is in the way for a moment.
        with file_lock(self.state / RUN_LOCK, what="flower-server", seconds=LOOK_SECONDS), self._held(GIVE_WAY_SECONDS):
            yield

    def hold_between_runs(self) -> AbstractContextManager[None]:
        """Have the folder as a listener while the block runs, which has to end as soon as `run_wants_folder`.

        Raises:
          InvalidSetting: If another server is there.
        """
        return self._held(LOOK_SECONDS)

    @property
    def run_wants_folder(self) -> bool:
        """Whether a run has the folder, or waits for it."""
        return is_locked(self.state / RUN_LOCK)

    @property
    def state_of_server(self) -> Literal["running", "listening", "stopped"]:
        """What has the folder: a run, a listener between runs, or nobody."""
        if self.run_wants_folder:
            return "running"
        return "listening" if is_locked(self.state / LOCK) else "stopped"

    def _held(self, seconds: float) -> AbstractContextManager[None]:
        return file_lock(self.state / LOCK, what="flower-server", seconds=seconds)

    @property
    def registry(self) -> Registry:
        """Who may come; it may change while a server runs."""
        return Registry(sites=self.path / "sites", revoked=self.path / "revoked")

    def renew(self, *, hosts: Sequence[str], days: int, new_key: bool) -> FederationFolder:
        """A new server certificate from the same authority, for `hosts` or, where empty, those of before.

        Raises:
          InvalidSetting: If the authority's key is not there, or a value is out of its range.
        """
        check_private(self.authority_key)
        about = replace(self.about, hosts=tuple(check_host(host) for host in hosts) or self.about.hosts)
        authority = Credentials(certificate=self.authority_certificate.read_bytes(), key=self.authority_key.read_bytes())
        key = make_key() if new_key else self.server_key.read_bytes()
        certificate = make_server_certificate(authority, key, hosts=about.hosts, days=days)
        if new_key:
            write_private(self.server_key, key)
        write_atomically(self.server_certificate, certificate.decode())
        write_atomically(self.path / ABOUT, _text(about))
        write_onboarding_bundle(
            self.path / "for-sites", name=about.name, address=about.address, authority=authority.certificate
        )
        return FederationFolder(path=self.path, about=about)

    def certificate(self) -> Certificate:
        """The server's certificate, checked to be valid now.

        Raises:
          InvalidSetting: If it cannot be read or is not valid now.
        """
        found = read_certificate(self.server_certificate)
        found.check_dates(name=str(self.server_certificate), remedy=f"`flower-server renew {self.path}`")
        return found

    def unfinished_run(self) -> Path:
        """The newest run in `runs` that has settings and no record; one that ended for bad input only if there is no other.

        Raises:
          InvalidSetting: If there is none.
        """
        found = [path.parent for path in self.runs.glob("*/config.yaml") if not (path.parent / "record.json").exists()]
        if not found:
            raise InvalidSetting(f"--resume finds no unfinished run in {self.runs}; start one without --resume")
        return max(found, key=lambda run: (not _ended_for_bad_input(run), (run / "config.yaml").stat().st_mtime_ns))


def _ended_for_bad_input(run: Path) -> bool:
    return read_object(run / OUTCOME_NAME).get("exit_code") == InvalidSetting.exit_code


def init_folder(
    path: Path,
    *,
    name: str,
    hosts: Sequence[str],
    port: int,
    bind: str,
    max_connections_per_address: int = CONNECTIONS_PER_ADDRESS,
    days: int = SERVER_DAYS,
    authority_days: int = AUTHORITY_DAYS,
) -> FederationFolder:
    """Make a federation's folder, with its own authority and a server certificate.

    Args:
      path: where; new or empty.
      name: of the federation.
      hosts: names and addresses by which sites reach the server.
      port, bind: where the server listens.
      max_connections_per_address: that one address may have at a time.
      days, authority_days: until its certificate and its authority's expire, >= 1.

    Raises:
      InvalidSetting: If a value is out of its range or the folder holds something.
    """
    about = Federation(
        format=FORMAT,
        name=name,
        hosts=tuple(check_host(host) for host in hosts),
        port=port,
        bind=bind,
        max_connections_per_address=max_connections_per_address,
    )
    check_bind(bind)
    authority = make_authority(name, days=authority_days)
    key = make_key()
    certificate = make_server_certificate(authority, key, hosts=about.hosts, days=days)
    with new_folder(path, last=ABOUT) as draft:
        for part in ("tls", "sites", "revoked", "state", "runs"):
            (draft / part).mkdir(mode=0o700)
        (draft / "tls" / "ca.crt").write_bytes(authority.certificate)
        (draft / "tls" / "server.crt").write_bytes(certificate)
        write_private(draft / "tls" / "ca.key", authority.key)
        write_private(draft / "tls" / "server.key", key)
        write_onboarding_bundle(draft / "for-sites", name=name, address=about.address, authority=authority.certificate)
        (draft / ABOUT).write_text(_text(about), encoding="utf-8")
    return FederationFolder.open(path)


def _text(about: Federation) -> str:
    return json.dumps(json.loads(canonical_json(about)), indent=2) + "\n"
