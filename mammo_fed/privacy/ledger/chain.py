"""The ledger's chain: entries sealed with the site's key, each over the one before, and the head that says where it ends."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from mammo_fed.errors import DataError, InvalidSetting, LedgerError
from mammo_fed.privacy.patient_identity import require_identifier

__all__ = [
    "KEY_BYTES",
    "REMEDY",
    "START",
    "Entry",
    "Head",
    "LedgerKeys",
    "check_reported",
    "extend",
    "head_from_text",
    "patient_digests",
    "reply_seal",
    "verified",
]

REMEDY: Final = (
    "nothing is released; keep the ledger's folder as it is and restore it from a backup no older than the last round"
)
KEY_BYTES: Final = 32
DIGEST_HEX: Final = 32


@dataclass(frozen=True, kw_only=True)
class LedgerKeys:
    """Keys for separate uses, derived from the one secret beside the ledger; never logged, never sent.

    Attributes:
      chain: seals entries. head: seals the head file. patients: recognises patients. replies: seals stored replies.
    """

    chain: bytes
    head: bytes
    patients: bytes
    replies: bytes

    @classmethod
    def derive(cls, secret: bytes) -> LedgerKeys:
        """Keys of the ledger whose secret is `secret`, KEY_BYTES random bytes.

        Raises:
          LedgerError: If the secret has another length.
        """
        if len(secret) != KEY_BYTES:
            raise LedgerError(f"the ledger's key has {len(secret)} bytes, must be {KEY_BYTES}; {REMEDY}")
        return cls(**{use: _mac(secret, use.encode()) for use in ("chain", "head", "patients", "replies")})

    def __repr__(self) -> str:
        return "LedgerKeys(...)"


@dataclass(frozen=True, kw_only=True)
class Head:
    """Where a chain ends: the last entry's position and seal. Safe to report: it says how many entries, not what is in them."""

    seq: int
    mac: bytes

    def __str__(self) -> str:
        return f"{self.seq}:{self.mac.hex()}"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One line of the journal.

    Attributes:
      seq: position, 0 for the first.
      kind: what happened; `LedgerState` in `rules` knows the kinds.
      payload: canonical JSON of the details, as sealed.
      mac: 32 bytes over the entry and the mac before it, with the site's key.
    """

    seq: int
    kind: str
    payload: bytes
    mac: bytes

    def details(self) -> dict[str, Any]:
        """The payload as plain values."""
        values: dict[str, Any] = json.loads(self.payload)
        return values

    @property
    def head(self) -> Head:
        """Where a chain ends whose last entry this is."""
        return Head(seq=self.seq, mac=self.mac)


START: Final = Head(seq=-1, mac=bytes(32))


def extend(keys: LedgerKeys, head: Head, *, kind: str, details: Mapping[str, Any]) -> Entry:
    """The entry that comes after `head`, sealed."""
    payload = json.dumps(details, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
    seq = head.seq + 1
    return Entry(seq=seq, kind=kind, payload=payload, mac=_seal(keys, head, seq=seq, kind=kind, payload=payload))


def verified(keys: LedgerKeys, head: Head, entries: Iterable[Entry]) -> list[Entry]:
    """`entries` as given, once every one is proven to follow the one before, the first of them `head`.

    Raises:
      LedgerError: If an entry was edited, removed, reordered or copied in; says which position, nothing of its content.
    """
    proven = []
    for entry in entries:
        expected = _seal(keys, head, seq=head.seq + 1, kind=entry.kind, payload=entry.payload)
        if entry.seq != head.seq + 1 or not hmac.compare_digest(expected, entry.mac):
            raise LedgerError(f"ledger entry {head.seq + 1} is not what the site wrote there; {REMEDY}")
        proven.append(entry)
        head = entry.head
    return proven


def head_from_text(text: str) -> Head:
    """The head that reads `text`; ValueError where it is none."""
    seq, _, mac = text.partition(":")
    if len(mac) != 64:
        raise ValueError("a seal has 64 hex digits")
    return Head(seq=int(seq), mac=bytes.fromhex(mac))


def check_reported(reported: str, entries: Iterable[Entry]) -> None:
    """Check that a head which the site reported earlier is part of its chain: an older copy put back has lost it.

    Raises:
      InvalidSetting: If `reported` is not a head.
      LedgerError: If the chain does not contain it.
    """
    try:
        head = head_from_text(reported)
    except ValueError as error:
        raise InvalidSetting(f"reported head={reported!r} must read POSITION:HEX, as privacy show prints it") from error
    if not any(entry.seq == head.seq and hmac.compare_digest(entry.mac, head.mac) for entry in entries):
        raise LedgerError(f"the ledger does not hold the entry {head.seq} that the site reported; {REMEDY}")


def patient_digests(keys: LedgerKeys, identifiers: Iterable[str]) -> frozenset[str]:
    """Keyed digests of patients, DIGEST_HEX hex digits each, of identifiers as `normal_identifier` gives them.

    Two spellings that might be one patient are taken as one: that can only charge more. Nobody without the key can tell
    whether a patient is among them.

    Raises:
      InvalidSetting: If there is no identifier, or one is blank or no text that can be encoded; or if one text stands for all.
    """
    if isinstance(identifiers, str):
        # Its letters would be taken for patients, and whom it names would be charged, or left out, under no name of theirs.
        raise InvalidSetting("patients must be a list of identifiers, and is one text; put it into a list")
    digests = set()
    for identifier in identifiers:
        if not isinstance(identifier, str):
            raise InvalidSetting(f"patients must be texts, and one is of type {type(identifier).__name__}; write it as one")
        try:
            normal = require_identifier(identifier, where="patients")
        except DataError as error:
            raise InvalidSetting(str(error)) from error
        digests.add(_mac(keys.patients, normal.encode()).hex()[:DIGEST_HEX])
    if not digests:
        raise InvalidSetting("patients must name at least one patient; check the site's cohort")
    return frozenset(digests)


def reply_seal(keys: LedgerKeys, reply: bytes) -> str:
    """Keyed digest of a stored reply, 64 hex digits."""
    return _mac(keys.replies, reply).hex()


def _seal(keys: LedgerKeys, head: Head, *, seq: int, kind: str, payload: bytes) -> bytes:
    """Seal of an entry after `head`. Lengths go in first, so that no two entries have the same bytes under the seal."""
    name = kind.encode()
    return _mac(keys.chain, b"".join([head.mac, seq.to_bytes(8, "big"), len(name).to_bytes(8, "big"), name, payload]))


def _mac(key: bytes, content: bytes) -> bytes:
    return hmac.digest(key, content, hashlib.sha256)
