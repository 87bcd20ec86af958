"""Flower's primitives of secure aggregation: key agreement, encryption and secret sharing.

The expansion of a key to a mask is not Flower's: its generator folds every seed to 32 bits, and whoever holds a masked vector
could try them all. ChaCha20 takes all 256.

Source: protocol, Bonawitz et al., CCS 2017; key derivation, RFC 5869; ChaCha20, RFC 8439.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from cryptography.fernet import InvalidToken
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from flwr.common.secure_aggregation.crypto.shamir import combine_shares, create_shares
from flwr.common.secure_aggregation.crypto.symmetric_encryption import decrypt, encrypt, generate_shared_key
from flwr.supercore.primitives.asymmetric import bytes_to_public_key, generate_key_pairs, public_key_to_bytes
from numpy.typing import NDArray

from mammo_fed.errors import DataError

__all__ = [
    "KEY_BYTES",
    "KeyPair",
    "agreed_key",
    "check_public_key",
    "derived_key",
    "expand",
    "key_pair",
    "open_sealed",
    "public_of",
    "rebuild_secret",
    "seal",
    "share_secret",
]

KEY_BYTES: Final = 32
# A private key as a number of the curve's order: what is shared is short, and any number of this size is a key.
SCALAR_BYTES: Final = 48
CURVE: Final = ec.SECP384R1
WORD_BYTES: Final = 8


@dataclass(frozen=True, kw_only=True)
class KeyPair:
    """A key pair of one round: `private` as 96 hex digits (empty once forgotten), `public` as PEM."""

    private: str
    public: str


def key_pair() -> KeyPair:
    """A fresh key pair from the operating system's randomness."""
    private, public = generate_key_pairs()
    scalar = private.private_numbers().private_value.to_bytes(SCALAR_BYTES, "big")
    return KeyPair(private=scalar.hex(), public=public_key_to_bytes(public).decode("ascii"))


def public_of(private: str) -> str:
    """The public key of a private one.

    Raises:
      DataError: If `private` is no private key.
    """
    return public_key_to_bytes(_private(private).public_key()).decode("ascii")


def check_public_key(public: str) -> None:
    """Raise DataError unless `public` is a key of the curve, in the one way in which it is written."""
    try:
        key = bytes_to_public_key(public.encode("ascii"))
        canonical = isinstance(key.curve, CURVE) and public_key_to_bytes(key).decode("ascii") == public
    except (ValueError, TypeError, AttributeError, UnicodeEncodeError) as error:
        raise DataError("a public key cannot be read") from error
    if not canonical:
        raise DataError("a public key is of another curve, or written in another way")


def agreed_key(private: str, public: str, *, purpose: str) -> bytes:
    """32 bytes that only the holders of the two private keys know; other purposes give unrelated keys."""
    check_public_key(public)
    shared = generate_shared_key(_private(private), bytes_to_public_key(public.encode("ascii")))
    return derived_key(base64.urlsafe_b64decode(shared), purpose=purpose)


def derived_key(secret: bytes, *, purpose: str) -> bytes:
    """32 bytes from a secret; other purposes give unrelated keys."""
    return HKDF(algorithm=hashes.SHA256(), length=KEY_BYTES, salt=None, info=purpose.encode()).derive(secret)


def seal(key: bytes, plaintext: bytes) -> bytes:
    """Encrypt and authenticate."""
    return encrypt(base64.urlsafe_b64encode(key), plaintext)


def open_sealed(key: bytes, sealed: bytes) -> bytes:
    """Inverse of `seal`.

    Raises:
      DataError: If it was sealed with another key, or changed.
    """
    try:
        return decrypt(base64.urlsafe_b64encode(key), sealed)
    except InvalidToken as error:
        raise DataError("a sealed share was made with another key, or was changed on its way") from error


def share_secret(secret: bytes, *, threshold: int, count: int) -> tuple[bytes, ...]:
    """`count` shares of which any `threshold` give the secret back and fewer tell nothing of it."""
    return tuple(create_shares(secret, threshold, count))


def rebuild_secret(shares: Sequence[bytes]) -> bytes:
    """Inverse of `share_secret`; with too few or wrong shares an error, or another secret: the caller checks which it got.

    Raises:
      DataError: If the shares do not fit together.
    """
    try:
        return combine_shares(list(shares))
    except (ValueError, IndexError) as error:
        raise DataError("the shares of a secret do not fit together") from error


def expand(key: bytes, count: int) -> NDArray[np.uint64]:
    """`count` words of the key's ChaCha20 stream, uint64. A key is for one mask: the nonce is always zero."""
    stream = Cipher(ChaCha20(key, bytes(16)), mode=None).encryptor().update(bytes(WORD_BYTES * count))
    return np.frombuffer(stream, "<u8").astype(np.uint64)


def _private(private: str) -> ec.EllipticCurvePrivateKey:
    try:
        return ec.derive_private_key(int.from_bytes(binascii.unhexlify(private), "big"), CURVE())
    except (ValueError, binascii.Error) as error:
        raise DataError("a private key of a round cannot be read") from error
