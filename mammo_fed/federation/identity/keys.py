"""A site's key pair: what its SuperNode proves itself with, in the format that Flower reads."""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from mammo_fed.errors import InvalidSetting

__all__ = ["SiteKey", "check_site_name", "make_private_key", "public_key_of", "read_public_key"]

ALGORITHM: Final = "ecdsa-sha2-nistp384"
LARGEST_FILE: Final = 16 * 1024
SITE_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


@dataclass(frozen=True, kw_only=True)
class SiteKey:
    """A site's public key.

    Attributes:
      line: as OpenSSH writes it, without a comment: "ecdsa-sha2-nistp384 BASE64".
    """

    line: str

    @property
    def fingerprint(self) -> str:
        """As `ssh-keygen -l` shows it: "SHA256:..."."""
        digest = hashlib.sha256(base64.b64decode(self.line.split()[1])).digest()
        return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")

    @property
    def pem(self) -> bytes:
        """As Flower's control API takes it: a PEM SubjectPublicKeyInfo."""
        key = serialization.load_ssh_public_key(self.line.encode())
        return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)

    def file_content(self, name: str) -> bytes:
        """The content of NAME.pub."""
        return f"{self.line} {name}\n".encode()


def check_site_name(name: str, *, option: str) -> str:
    """`name` itself if it can name a site: it becomes a file name, and everybody in the federation sees it.

    Raises:
      InvalidSetting: If it cannot.
    """
    if not SITE_NAME.fullmatch(name):
        raise InvalidSetting(
            f"{option}={name!r} must be 1 to 64 letters, digits, - or _, the first a letter or digit; choose a name that says "
            "nothing about patients"
        )
    return name


def make_private_key() -> bytes:
    """A new P-384 key in OpenSSH's format, without a passphrase: a site must come back unattended after a reboot."""
    return ec.generate_private_key(ec.SECP384R1()).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )


def public_key_of(path: Path) -> SiteKey:
    """The public half of the private key in `path`.

    Raises:
      InvalidSetting: If the file cannot be read as a P-384 private key.
    """
    try:
        key = serialization.load_ssh_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise InvalidSetting(
            f"{path} must be the site's private key ({type(error).__name__}); restore it from a backup or rotate the key"
        ) from error
    if not (isinstance(key, ec.EllipticCurvePrivateKey) and isinstance(key.curve, ec.SECP384R1)):
        raise InvalidSetting(f"{path} must be a P-384 key; rotate the key")
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    return SiteKey(line=public.decode())


def read_public_key(path: Path) -> SiteKey:
    """The public key in `path`: one line, P-384, in OpenSSH's format.

    Raises:
      InvalidSetting: If it is anything else, above all a private key.
    """
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST_FILE + 1)
    except OSError as error:
        raise InvalidSetting(f"FILE={path} cannot be read ({error.strerror}); give the site's keys/NAME.pub") from error
    if b"PRIVATE KEY" in content:
        raise InvalidSetting(
            f"FILE={path} holds a private key, which must never leave its site: have the site rotate it, and ask for "
            "keys/NAME.pub"
        )
    lines = content.decode("utf-8", errors="replace").split("\n")
    words = lines[0].split()
    wrong = InvalidSetting(f"FILE={path} must be one line '{ALGORITHM} BASE64 [comment]'; ask the site for its keys/NAME.pub")
    if len(content) > LARGEST_FILE or any(line.strip() for line in lines[1:]) or len(words) < 2 or words[0] != ALGORITHM:
        raise wrong
    try:
        key = serialization.load_ssh_public_key(" ".join(words[:2]).encode())
    except (ValueError, UnsupportedAlgorithm) as error:
        raise wrong from error
    if not (isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP384R1)):
        raise wrong
    return SiteKey(line=" ".join(words[:2]))
