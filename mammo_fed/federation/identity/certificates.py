"""Reading certificates, at the server and at the sites; making them is the server's."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

from mammo_fed.errors import InvalidSetting

__all__ = ["Certificate", "parse_certificate", "read_authority", "read_certificate"]

Kind = TypeVar("Kind", bound=x509.ExtensionType)


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """What matters of a certificate.

    Attributes:
      valid_from, valid_until: times in UTC.
      hosts: DNS names and addresses that it is valid for; empty for an authority.
      authority: whether it may sign others.
      fingerprint: SHA-256 in hexadecimal digits, for comparing over the telephone.
      pem: the certificate alone, whatever else was in the file.
    """

    valid_from: datetime
    valid_until: datetime
    hosts: tuple[str, ...]
    authority: bool
    fingerprint: str
    pem: bytes

    def days_left(self, *, now: datetime | None = None) -> float:
        """Days until it expires; negative afterwards."""
        return (self.valid_until - (now or datetime.now(UTC))).total_seconds() / 86400

    def check_dates(self, *, name: str, remedy: str, now: datetime | None = None) -> None:
        """Raise InvalidSetting unless it is valid now."""
        moment = now or datetime.now(UTC)
        if not self.valid_from <= moment <= self.valid_until:
            raise InvalidSetting(
                f"{name} is valid from {self.valid_from:%Y-%m-%d %H:%M} to {self.valid_until:%Y-%m-%d %H:%M} UTC, and it is "
                f"{moment:%Y-%m-%d %H:%M} here; check the clock, or {remedy}"
            )


def parse_certificate(pem: bytes, *, name: str) -> Certificate:
    """The first certificate in `pem`; `name` says for messages where it came from.

    Raises:
      InvalidSetting: If there is none.
    """
    try:
        found = x509.load_pem_x509_certificate(pem)
        constraints = _extension(found, x509.BasicConstraints)
        names = _extension(found, x509.SubjectAlternativeName)
    except ValueError as error:
        raise InvalidSetting(f"{name} must be a certificate in PEM; ask the coordinator for for-sites/ca.crt") from error
    return Certificate(
        valid_from=found.not_valid_before_utc,
        valid_until=found.not_valid_after_utc,
        hosts=() if names is None else tuple(str(entry.value) for entry in names),
        authority=constraints is not None and constraints.ca,
        fingerprint=found.fingerprint(hashes.SHA256()).hex(),
        pem=found.public_bytes(serialization.Encoding.PEM),
    )


def read_certificate(path: Path) -> Certificate:
    """The certificate in `path`.

    Raises:
      InvalidSetting: If it cannot be read.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InvalidSetting(f"certificate {path} cannot be read ({error.strerror}); check the path") from error
    return parse_certificate(content, name=str(path))


def read_authority(path: Path) -> Certificate:
    """The authority's certificate in `path`, as a site gets it, or the authorities': any of them may have signed the server's.

    Of several, those that are not valid now are left out while one is; `pem` holds the others, and the rest is of the first.

    Raises:
      InvalidSetting: If one is no authority's, none is valid now, or a private key comes with them.
    """
    first = read_certificate(path)
    several = [
        parse_certificate(one.public_bytes(serialization.Encoding.PEM), name=str(path))
        for one in x509.load_pem_x509_certificates(path.read_bytes())
    ]
    now = datetime.now(UTC)
    valid = [one for one in several if one.valid_from <= now <= one.valid_until]
    found = replace(valid[0], pem=b"".join(one.pem for one in valid)) if valid else first
    if b"PRIVATE KEY" in path.read_bytes():
        raise InvalidSetting(
            f"{path} holds a private key: whoever has it can pose as the server; tell the coordinator, and ask for "
            "for-sites/ca.crt"
        )
    if not all(one.authority for one in several):
        raise InvalidSetting(f"{path} must be the federation's own authority; ask the coordinator for for-sites/ca.crt")
    found.check_dates(name=str(path), remedy="ask the coordinator for a new for-sites/ca.crt")
    return found


def _extension(certificate: x509.Certificate, kind: type[Kind]) -> Kind | None:
    try:
        return certificate.extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None
