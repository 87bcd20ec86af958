"""Masked sums: what a site sends alone is uniformly random, and only the sum over enough sites comes out.

The protocol is that of Bonawitz et al. (CCS 2017) with double masks, over the integers modulo 2^64:

    keys      every site makes two key pairs for this round, one for sealed parcels and one for masks
    shares    every site draws a seed, and deals shares of its mask key and of its seed to the others, sealed
    masked    every site sends its vector + the mask of its seed +- the masks that it has in common with every other site
    unmask    the sites learn who sent; of each that did they give a share of its seed, of each other a share of its mask key

In the sum of the survivors' vectors the common masks of two survivors cancel. The server rebuilds the survivors' seeds and the
others' mask keys, and takes away what is left. It never gets both secrets of one site, so one vector alone stays masked:
that is why a site answers `unmask` for one set of survivors only, and why a threshold above half of the roster (plus the
colluders) leaves room for one such set.

Source: Bonawitz et al., CCS 2017, "Practical Secure Aggregation for Privacy-Preserving Machine Learning", Fig. 4.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from mammo_fed.common.serialization import bounded_json, build, canonical_json
from mammo_fed.errors import DataError, InvalidSetting
from mammo_fed.federation.flwr_internals.secagg import (
    KeyPair,
    agreed_key,
    check_public_key,
    derived_key,
    expand,
    open_sealed,
    seal,
    share_secret,
)

__all__ = [
    "MOST_SITES",
    "SEED_BYTES",
    "Dealing",
    "Held",
    "Member",
    "Parcel",
    "Roster",
    "Terms",
    "commitment",
    "deal",
    "mask",
    "mask_context",
    "pair_mask",
    "parcels_for",
    "secure_task_hash",
    "seed_mask",
    "take",
]

MOST_SITES: Final = 1 << 12
SEED_BYTES: Final = 32
# Characters of JSON: of all sites' public keys, and of two shares.
LONGEST_ROSTER: Final = 1 << 23
LONGEST_PARCEL: Final = 1 << 12
NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What a site was told of a round's sum before its first message, in the run's declaration.

    Attributes:
      run_id, round_index: whose round; every key and mask is bound to them.
      min_survivors: below so many sites nothing is unmasked; also how many shares open a secret.
      colluders: sites that may answer the server as often as it likes.
    """

    run_id: str
    round_index: int
    min_survivors: int
    colluders: int

    def __post_init__(self) -> None:
        if self.min_survivors < 2 or not 0 <= self.colluders < self.min_survivors:
            raise InvalidSetting(
                f"min_survivors={self.min_survivors} must be at least 2 and above colluders={self.colluders}; check "
                "federation.secure"
            )


@dataclass(frozen=True, kw_only=True)
class Member:
    """One site's public keys of one round, as PEM: `channel_key` for sealed parcels, `mask_key` for masks."""

    site: str
    channel_key: str
    mask_key: str


@dataclass(frozen=True, kw_only=True)
class Roster:
    """The sites that hold shares of a round's secrets, in the order of their names.

    Raises:
      InvalidSetting: If names or keys are missing, malformed or not distinct, or the threshold does not rule out two sets of
        survivors.
    """

    terms: Terms
    members: tuple[Member, ...]

    def __post_init__(self) -> None:
        names, least = self.names, self.terms.min_survivors
        if list(names) != sorted(set(names)) or not all(NAME.fullmatch(name) for name in names):
            raise InvalidSetting("a roster must name distinct sites in order")
        if not least <= len(names) <= MOST_SITES:
            raise InvalidSetting(f"a roster of {len(names)} sites must have {least} to {MOST_SITES}; wait for more sites")
        if 2 * least <= len(names) + self.terms.colluders:
            raise InvalidSetting(
                f"min_survivors={least} must be above half of {len(names)} sites and {self.terms.colluders} colluders: "
                "otherwise two sets of survivors could be opened; check federation.secure.min_survivors"
            )
        keys = [key for member in self.members for key in (member.channel_key, member.mask_key)]
        if len(set(keys)) < len(keys):
            raise InvalidSetting("the keys of a roster must all be distinct")
        try:
            for key in keys:
                check_public_key(key)
        except DataError as error:
            raise InvalidSetting(f"a roster must hold public keys: {error}") from error

    @property
    def names(self) -> tuple[str, ...]:
        """The sites, in order."""
        return tuple(member.site for member in self.members)

    def member(self, site: str) -> Member:
        """The entry of a site.

        Raises:
          InvalidSetting: If it has none.
        """
        for member in self.members:
            if member.site == site:
                return member
        raise InvalidSetting(f"site={site} must be on the round's roster")

    def present(self, sites: Sequence[str]) -> tuple[str, ...]:
        """`sites`, checked to be enough of the roster's, distinct and in order.

        Raises:
          InvalidSetting: If they are not.
        """
        if list(sites) != sorted(set(sites)) or not set(sites) <= set(self.names):
            raise InvalidSetting("the sites of a sum must be distinct sites of the round's roster, in order")
        if len(sites) < self.terms.min_survivors:
            raise InvalidSetting(
                f"{len(sites)} sites are fewer than min_survivors={self.terms.min_survivors}: nothing is opened"
            )
        return tuple(sites)

    def sha256(self) -> str:
        """Hash of the terms and all members: what two sites must agree on to share a mask."""
        return hashlib.sha256(canonical_json(self).encode()).hexdigest()

    def to_json(self) -> str:
        """Canonical JSON."""
        return canonical_json(self)

    @classmethod
    def from_json(cls, text: str) -> Roster:
        """Inverse of `to_json`.

        Raises:
          InvalidSetting: If the text is not a roster.
        """
        try:
            values = bounded_json(text, most=LONGEST_ROSTER)
        except DataError as error:
            raise InvalidSetting("a roster is not valid JSON") from error
        return build(cls, values, path="roster")


@dataclass(frozen=True, kw_only=True)
class Held:
    """What a site holds of another's secrets, in hex: a share of its seed and one of its mask key."""

    site: str
    seed_share: str
    key_share: str


@dataclass(frozen=True, kw_only=True)
class Parcel:
    """A sealed `Held`; `site` is whom it is for, or whom it is from."""

    site: str
    sealed: str


@dataclass(frozen=True, kw_only=True)
class Dealing:
    """A site's answer to a roster: parcels for all others, its own part, and a commitment to its seed."""

    commitment: str
    own: Held
    parcels: tuple[Parcel, ...]


def commitment(roster: Roster, site: str, seed: bytes) -> str:
    """Hash that shows whether a rebuilt seed is the one that was dealt; it tells nothing of 32 random bytes."""
    return hashlib.sha256(f"mammo-fed seed {roster.sha256()} {site} ".encode() + seed).hexdigest()


def deal(roster: Roster, site: str, *, channel: KeyPair, masking: KeyPair, seed: bytes) -> Dealing:
    """Share a site's seed and mask key among the roster, one sealed parcel for each other site."""
    count, threshold = len(roster.members), roster.terms.min_survivors
    seeds = share_secret(seed, threshold=threshold, count=count)
    keys = share_secret(bytes.fromhex(masking.private), threshold=threshold, count=count)
    held = [Held(site=site, seed_share=one.hex(), key_share=other.hex()) for one, other in zip(seeds, keys, strict=True)]
    parcels = tuple(
        Parcel(site=member.site, sealed=seal(_channel(roster, channel, site, member.site), _plain(part)).decode("ascii"))
        for member, part in zip(roster.members, held, strict=True)
        if member.site != site
    )
    return Dealing(commitment=commitment(roster, site, seed), own=held[roster.names.index(site)], parcels=parcels)


def take(roster: Roster, site: str, *, channel: KeyPair, parcels: Sequence[Parcel]) -> tuple[Held, ...]:
    """Open the parcels that other sites sealed for this one.

    Raises:
      DataError: If one was sealed for another site, round or roster, or changed.
    """
    found = []
    for parcel in parcels:
        opened = open_sealed(_channel(roster, channel, site, parcel.site), parcel.sealed.encode("ascii", errors="replace"))
        try:
            held = build(Held, bounded_json(opened.decode(), most=LONGEST_PARCEL), path="parcel")
        except (InvalidSetting, ValueError) as error:
            raise DataError("a parcel does not hold shares") from error
        if held.site != parcel.site:
            raise DataError("a parcel holds the shares of another site than it came from")
        found.append(held)
    return tuple(found)


def mask(
    values: NDArray[np.int64], *, roster: Roster, site: str, masking: KeyPair, seed: bytes, present: Sequence[str]
) -> NDArray[np.uint64]:
    """A site's vector under all its masks.

    Guarantee: to whoever lacks the seed, or lacks the masks that the site shares with one other honest site, the result is
    uniformly random (as far as ChaCha20 and the key agreement hold).

    Args:
      values: int64, shape (length,); below 2^63 / sites in size, so that no sum leaves the range.
      roster, site, masking, seed: of this round.
      present: the sites whose masks are put on, this one among them.
    """
    context = mask_context(roster, present)
    total = np.ascontiguousarray(values).view(np.uint64) + seed_mask(seed, context, len(values))
    for peer in present:
        if peer != site:
            total += pair_mask(masking.private, site, roster.member(peer), context, len(values))
    return total


def seed_mask(seed: bytes, context: str, length: int) -> NDArray[np.uint64]:
    """The mask of a site's own seed."""
    return expand(derived_key(seed, purpose=f"mammo-fed own mask {context}"), length)


def pair_mask(private: str, site: str, peer: Member, context: str, length: int) -> NDArray[np.uint64]:
    """The mask that `site` has in common with `peer`, with the sign that `site` gives it."""
    words = expand(agreed_key(private, peer.mask_key, purpose=f"mammo-fed pair mask {context}"), length)
    return words if site < peer.site else np.negative(words)


def mask_context(roster: Roster, present: Sequence[str]) -> str:
    """What every mask is bound to: run, round, roster, and who puts masks on."""
    return hashlib.sha256(f"{roster.sha256()} {' '.join(roster.present(present))}".encode()).hexdigest()


def secure_task_hash(content: str, roster: Roster, present: Sequence[str]) -> str:
    """Hash of a round's task under one roster: a site answers a round for one of them only."""
    return hashlib.sha256(f"{content} {mask_context(roster, present)}".encode()).hexdigest()


def parcels_for(site: str, dealings: Mapping[str, Sequence[Parcel]], present: Sequence[str]) -> tuple[Parcel, ...]:
    """The parcels for `site` from every other present one, renamed to their senders."""
    return tuple(
        Parcel(site=sender, sealed=parcel.sealed)
        for sender in present
        if sender != site
        for parcel in dealings[sender]
        if parcel.site == site
    )


def _channel(roster: Roster, channel: KeyPair, site: str, peer: str) -> bytes:
    """The key of the parcels between two sites, bound to the roster."""
    first, second = sorted((site, peer))
    purpose = f"mammo-fed parcel {roster.sha256()} {first} {second}"
    return agreed_key(channel.private, roster.member(peer).channel_key, purpose=purpose)


def _plain(held: Held) -> bytes:
    return canonical_json(held).encode()
