"""The federation's own certificate authority, and the server certificate that it signs."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from mammo_fed.errors import InvalidSetting

__all__ = [
    "AUTHORITY_DAYS",
    "LOCAL_HOSTS",
    "SERVER_DAYS",
    "Credentials",
    "check_host",
    "make_authority",
    "make_key",
    "make_server_certificate",
]

AUTHORITY_DAYS: Final = 3650
# The longest that browsers and operating systems accept of a server.
SERVER_DAYS: Final = 397
# The server's own processes call it by these.
LOCAL_HOSTS: Final = ("localhost", "127.0.0.1", "::1")
# Clocks of hospitals may be behind.
CLOCK_SKEW: Final = timedelta(hours=1)
LABEL: Final = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)")


@dataclass(frozen=True, kw_only=True, repr=False)
class Credentials:
    """A certificate and its private key, both PEM (the key PKCS 8, without a passphrase)."""

    certificate: bytes
    key: bytes


def check_host(host: str) -> str:
    """`host` itself if a certificate can name it.

    Raises:
      InvalidSetting: If it is neither a DNS name nor an address that somebody can connect to.
    """
    wrong = InvalidSetting(
        f"--host={host} must be a DNS name (in ASCII) or an address by which sites reach the server, without a port; give one "
        "--host for each"
    )
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        labels = host.split(".")
        if len(host) > 253 or labels[-1].isdigit() or not all(LABEL.fullmatch(label) for label in labels):
            raise wrong from None
        return host
    if address.is_unspecified or address.is_multicast:
        raise wrong
    return str(address)


def make_key() -> bytes:
    """A new P-256 key."""
    return _key_bytes(ec.generate_private_key(ec.SECP256R1()))


def make_authority(federation: str, *, days: int = AUTHORITY_DAYS, now: datetime | None = None) -> Credentials:
    """A new authority for one federation; it may sign servers and no further authorities (path length 0).

    Args:
      federation: its name, for people who look at the certificate.
      days: until it expires, >= 1.
      now: time of issue; that of the clock where None.

    Raises:
      InvalidSetting: If `days` is below 1.
    """
    key = ec.generate_private_key(ec.SECP384R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"mammo-fed authority of {federation}"[:64])])
    public = key.public_key()
    certificate = (
        _builder(days, now, option="--ca-days")
        .subject_name(name)
        .issuer_name(name)
        .public_key(public)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .sign(key, hashes.SHA384())
    )
    return Credentials(certificate=_pem(certificate), key=_key_bytes(key))


def make_server_certificate(
    authority: Credentials, key: bytes, *, hosts: Sequence[str], days: int = SERVER_DAYS, now: datetime | None = None
) -> bytes:
    """A certificate for the server's `key`, signed by `authority`, as PEM.

    Args:
      authority: who signs.
      key: the server's private key, PEM.
      hosts: DNS names and addresses by which sites reach the server; the local ones are added.
      days: until it expires, >= 1; never beyond the authority itself.
      now: time of issue; that of the clock where None.

    Raises:
      InvalidSetting: If a host or `days` is out of its range, or the authority has expired.
    """
    signer = serialization.load_pem_private_key(authority.key, password=None)
    issuer = x509.load_pem_x509_certificate(authority.certificate)
    server = serialization.load_pem_private_key(key, password=None)
    if not isinstance(signer, ec.EllipticCurvePrivateKey) or not isinstance(server, ec.EllipticCurvePrivateKey):
        raise InvalidSetting("tls/ca.key and tls/server.key must be elliptic-curve keys; restore those that init made")
    moment = now or datetime.now(UTC)
    if issuer.not_valid_after_utc <= moment:
        raise InvalidSetting(
            f"tls/ca.crt expired on {issuer.not_valid_after_utc:%Y-%m-%d}; make a new federation folder, and give its "
            "for-sites/ca.crt to every site"
        )
    names = dict.fromkeys([check_host(host) for host in hosts] + list(LOCAL_HOSTS))
    certificate = (
        _builder(days, moment, option="--days", latest=issuer.not_valid_after_utc)
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "mammo-fed server")]))
        .issuer_name(issuer.subject)
        .public_key(server.public_key())
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([_general_name(name) for name in names]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(server.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
        .sign(signer, hashes.SHA384())
    )
    return _pem(certificate)


def _builder(days: int, now: datetime | None, *, option: str, latest: datetime | None = None) -> x509.CertificateBuilder:
    if days < 1:
        raise InvalidSetting(f"{option}={days} must be at least 1")
    moment = now or datetime.now(UTC)
    until = moment + timedelta(days=days)
    return (
        x509.CertificateBuilder()
        .serial_number(x509.random_serial_number())
        .not_valid_before(moment - CLOCK_SKEW)
        .not_valid_after(until if latest is None else min(until, latest))
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _key_bytes(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)
