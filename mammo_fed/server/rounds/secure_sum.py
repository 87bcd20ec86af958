"""The server's part in a masked sum: it carries keys and sealed parcels between sites, and learns the sum of those that stay.

A sum is tried once. Whatever fails on the way, nothing is opened, and nothing of it is used again: a later round has new keys,
new masks and new noise, and is charged separately.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from flwr.app import MessageType, RecordDict
from numpy.typing import NDArray

from mammo_fed.errors import DataError, InvalidSetting, VersionMismatch
from mammo_fed.federation.flwr_internals.secagg import check_public_key
from mammo_fed.federation.protocol.messages import SECURE
from mammo_fed.federation.protocol.replies import Update
from mammo_fed.federation.protocol.secure_messages import (
    SECURE_QUERY,
    Answer,
    Question,
    Stage,
    pack_parcels,
    pack_question,
    read_answer,
    size_of,
)
from mammo_fed.federation.secure_aggregation.double_masks import Member, Parcel, Roster, Terms, parcels_for
from mammo_fed.federation.secure_aggregation.opening import open_sum, rebuilt_key, rebuilt_seed

__all__ = ["Accept", "Exchange", "SecureSum"]

logger = logging.getLogger(__name__)

Exchange: TypeAlias = Callable[[Mapping[str, RecordDict], str], Mapping[str, RecordDict]]
"""Sends each site its content as a message of a type; gives the contents that came back, by site."""

Accept: TypeAlias = Callable[[str, RecordDict, Roster, Sequence[str]], Update | None]
"""A site's reply to the task if its masked update may be added up, else None."""


class _Abandoned(Exception):
    """Too few sites are left, or their shares do not fit."""


@dataclass(kw_only=True)
class SecureSum:
    """One masked sum over a round's sites.

    Attributes:
      exchange, accept: carry messages, and validate replies.
      terms: of the sum.
      refused: called with a site and its reason where it refuses a stage.
      sent: sites that were sent the task: from then on the round may have cost them.
      replies: of the survivors.
      total: int64, shape (length,), the sum over the survivors; None where it was not opened.
      failure: why it was not.
      unreadable: sites whose answer to a stage cannot be read.
      bytes_down, bytes_up: of what the masks need beside tasks and updates.
    """

    exchange: Exchange
    accept: Accept
    terms: Terms
    refused: Callable[[str, str], None] = lambda *_: None
    sent: tuple[str, ...] = ()
    replies: dict[str, Update] = field(default_factory=dict)
    total: NDArray[np.int64] | None = None
    failure: str = ""
    unreadable: set[str] = field(default_factory=set)
    bytes_down: int = 0
    bytes_up: int = 0

    def run(self, sites: Sequence[str], task: Mapping[str, Any]) -> None:
        """Go through all stages with `sites`; `task` is what the masked stage adds the parcels to."""
        try:
            roster = self._keys(sites)
            dealings = self._shares(roster)
            present = tuple(sorted(dealings))
            masked = self._masked(roster, dealings, present, task)
            self.total = self._open(roster, dealings, present, masked)
        except _Abandoned as reason:
            self.failure = str(reason)
            self.replies.clear()

    def _keys(self, sites: Sequence[str]) -> Roster:
        answers = self._ask("keys", dict.fromkeys(sites))
        members: list[Member] = []
        known: set[str] = set()
        for site, answer in sorted(answers.items()):
            member = answer.member
            # One by one: a roster with a key that is none would be no roster, and the others' sum would end with it.
            if member is None or member.site != site or not _has_own_keys(member, known):
                logger.warning("%s sends no keys of its own; it is left out of round %d", site, self.terms.round_index)
                continue
            known |= {member.channel_key, member.mask_key}
            members.append(member)
        self._require_enough(len(members), "sent keys")
        try:
            return Roster(terms=self.terms, members=tuple(members))
        except InvalidSetting as error:
            raise _Abandoned(f"the sites' keys make no roster: {error}") from error

    def _shares(self, roster: Roster) -> dict[str, Answer]:
        answers = self._ask("shares", dict.fromkeys(roster.names, roster))
        dealings = {}
        for site, answer in answers.items():
            if [parcel.site for parcel in answer.parcels] != [name for name in roster.names if name != site]:
                logger.warning("%s deals shares to others than the roster; it is left out", site)
                continue
            dealings[site] = answer
        self._require_enough(len(dealings), "dealt shares")
        return dealings

    def _masked(
        self, roster: Roster, dealings: Mapping[str, Answer], present: tuple[str, ...], task: Mapping[str, Any]
    ) -> dict[str, NDArray[np.uint64]]:
        parcels: dict[str, tuple[Parcel, ...]] = {site: dealings[site].parcels for site in present}
        contents = {site: RecordDict({**task, SECURE: pack_parcels(parcels_for(site, parcels, present))}) for site in present}
        self.sent = present
        self.bytes_down += sum(map(size_of, contents.values()))
        for site, content in sorted(self.exchange(contents, MessageType.TRAIN).items()):
            reply = self.accept(site, content, roster, present)
            if reply is not None:
                self.replies[site] = reply
        self._require_enough(len(self.replies), "sent a masked update")
        return {site: reply.masked for site, reply in self.replies.items()}

    def _open(
        self,
        roster: Roster,
        dealings: Mapping[str, Answer],
        present: tuple[str, ...],
        masked: Mapping[str, NDArray[np.uint64]],
    ) -> NDArray[np.int64]:
        survivors = tuple(sorted(masked))
        answers = self._ask("unmask", dict.fromkeys(survivors), survivors=survivors)
        self._require_enough(len(answers), "gave their shares")
        shares: dict[str, list[bytes]] = {site: [] for site in present}
        for answer in answers.values():
            for opened in answer.opened:
                if opened.site in shares:
                    shares[opened.site].append(_bytes(opened.share))
        try:
            seeds = {
                site: rebuilt_seed(shares[site], roster=roster, site=site, committed=dealings[site].commitment)
                for site in survivors
            }
            keys = {
                site: rebuilt_key(shares[site], roster=roster, lost=roster.member(site))
                for site in present
                if site not in masked
            }
        except DataError as error:
            raise _Abandoned(str(error)) from error
        return open_sum(masked, roster=roster, present=present, seeds=seeds, keys=keys)

    def _ask(self, stage: Stage, rosters: Mapping[str, Roster | None], *, survivors: tuple[str, ...] = ()) -> dict[str, Answer]:
        """Answers that can be read and are no refusals, by site."""
        terms = self.terms
        contents = {
            site: pack_question(
                Question(stage=stage, run_id=terms.run_id, round_index=terms.round_index, roster=roster, survivors=survivors)
            )
            for site, roster in rosters.items()
        }
        self.bytes_down += sum(map(size_of, contents.values()))
        answers = {}
        for site, content in self.exchange(contents, SECURE_QUERY).items():
            try:
                answer = read_answer(content)
            except VersionMismatch as error:
                logger.warning("%s: %s", site, error)
                continue
            except DataError as error:
                logger.warning("%s sends an answer that cannot be read: %s", site, error)
                self.unreadable.add(site)
                continue
            self.bytes_up += size_of(content)
            if answer.reason:
                logger.warning("%s refuses stage %s of round %d: %s", site, stage, terms.round_index, answer.reason)
                self.refused(site, answer.reason)
                continue
            answers[site] = answer
        return answers

    def _require_enough(self, count: int, what: str) -> None:
        if count < self.terms.min_survivors:
            raise _Abandoned(f"{count} sites {what}, fewer than min_survivors={self.terms.min_survivors}")


def _has_own_keys(member: Member, known: AbstractSet[str]) -> bool:
    """Whether both keys of a site are public keys, and nobody's before."""
    keys = {member.channel_key, member.mask_key}
    try:
        for key in keys:
            check_public_key(key)
    except DataError:
        return False
    return len(keys) == 2 and not keys & known


def _bytes(text: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError:
        return b""
