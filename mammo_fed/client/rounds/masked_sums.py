"""A site's part in masked sums: its keys and its key shares of others, kept on its own disk from stage to stage of a round.

Once only: a site answers each stage of a round for one roster, one set of masking sites and one set of survivors. The same
request again gets the same answer, also from a process that was started after a crash; another one is refused. So no two
masked vectors of a round ever exist under the same masks, and nobody gets both a share of a seed and one of a mask key of the
same site.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from mammo_fed.common.private_files import exclusive, write_private
from mammo_fed.common.serialization import build, canonical_json
from mammo_fed.errors import InvalidSetting, PolicyRefused
from mammo_fed.federation.flwr_internals.secagg import KeyPair, key_pair
from mammo_fed.federation.protocol.secure_messages import Answer, Opened, Question
from mammo_fed.federation.secure_aggregation.double_masks import (
    SEED_BYTES,
    Dealing,
    Held,
    Member,
    Parcel,
    Roster,
    Terms,
    deal,
    mask,
    take,
)
from mammo_fed.privacy.ledger.journal import storage_errors

__all__ = ["MaskedSums"]

FOLDER: Final = "secure"
LOCK_NAME: Final = "secure.lock"


@dataclass(frozen=True, kw_only=True)
class _State:
    """What a site keeps of one round; secrets are emptied when the last stage needs them no more.

    Attributes:
      terms: of the round.
      channel, masking: its key pairs.
      seed: of its own mask, in hex.
      roster, dealing: the one roster that it answered, and its answer.
      present, held: the one set of masking sites, and what it holds of each of them.
      survivors: the one set that it gave shares for.
    """

    terms: Terms
    channel: KeyPair
    masking: KeyPair
    seed: str
    roster: Roster | None
    dealing: Dealing | None
    present: tuple[str, ...]
    held: tuple[Held, ...]
    survivors: tuple[str, ...]


_EMPTY: Final = Held(site="", seed_share="", key_share="")


class MaskedSums:
    """The masked sums of one run at one site.

    Args:
      folder: the run's private folder at the site.
      site: the site's name.
    """

    def __init__(self, folder: Path, site: str) -> None:
        self._folder, self._site = folder / FOLDER, site

    def answer(self, terms: Terms, question: Question) -> Answer:
        """Answer a stage's question; `terms` are those that the run was declared with, whatever the question says.

        Raises:
          InvalidSetting, PolicyRefused: As the stage.
        """
        if question.stage == "keys":
            return Answer(member=self.keys(terms))
        if question.stage == "shares":
            if question.roster is None or question.roster.terms != terms:
                raise InvalidSetting("a roster must hold the terms that were declared; the round is refused")
            dealing = self.shares(question.roster)
            return Answer(commitment=dealing.commitment, parcels=dealing.parcels)
        opened = self.unmask(terms, question.survivors)
        return Answer(opened=tuple(Opened(site=site, share=share) for site, share in opened))

    def keys(self, terms: Terms) -> Member:
        """The site's public keys of a round, fresh ones for every round; what it kept of other rounds goes.

        Raises:
          InvalidSetting: If the terms are not those that the keys were made for.
        """
        with self._exclusive():
            state = self._load(terms.round_index)
            if state is None:
                state = _State(
                    terms=terms,
                    channel=key_pair(),
                    masking=key_pair(),
                    seed=secrets.token_bytes(SEED_BYTES).hex(),
                    roster=None,
                    dealing=None,
                    present=(),
                    held=(),
                    survivors=(),
                )
                self._forget_others(terms.round_index)
                self._save(state)
            _require(state.terms == terms, "a round's keys were made for other terms")
            return Member(site=self._site, channel_key=state.channel.public, mask_key=state.masking.public)

    def shares(self, roster: Roster) -> Dealing:
        """Deal shares of this round's secrets to a roster.

        Raises:
          InvalidSetting: If the round has no keys here, the roster does not hold them, or another roster was answered.
        """
        with self._exclusive():
            state = self._of(roster.terms)
            if state.dealing is None:
                own = Member(site=self._site, channel_key=state.channel.public, mask_key=state.masking.public)
                _require(roster.member(self._site) == own, "a roster holds other keys for this site than its own")
                dealing = deal(roster, self._site, channel=state.channel, masking=state.masking, seed=bytes.fromhex(state.seed))
                state = replace(state, roster=roster, dealing=dealing)
                self._save(state)
            if state.dealing is None or state.roster != roster:
                raise InvalidSetting("this round's shares were dealt to another roster; the round is refused")
            return state.dealing

    def accept(self, terms: Terms, parcels: Sequence[Parcel]) -> tuple[Roster, tuple[str, ...]]:
        """Take the others' shares: from now on this round's masks are those of exactly these sites and this one.

        Returns:
          The round's roster and the sites whose masks are put on.

        Raises:
          InvalidSetting: If no shares were dealt, too few sites sent theirs, or others were accepted before.
          DataError: If a parcel cannot be opened.
        """
        with self._exclusive():
            state = self._of(terms)
            roster, dealing = state.roster, state.dealing
            if roster is None or dealing is None:
                raise InvalidSetting("a round's masks need the shares that were dealt before; the server must ask for them")
            present = roster.present(sorted({self._site, *(parcel.site for parcel in parcels)}))
            _require(len(parcels) == len(present) - 1, "a round's parcels must come from distinct other sites")
            if not state.present:
                held = (dealing.own, *take(roster, self._site, channel=state.channel, parcels=parcels))
                state = replace(state, present=present, held=held)
                self._save(state)
            _require(state.present == present, "this round's masks were made for another set of sites")
            return roster, present

    def mask(self, terms: Terms, values: NDArray[np.int64]) -> NDArray[np.uint64]:
        """`values` under the round's masks; the ledger sees to it that only one result ever leaves the site.

        Raises:
          InvalidSetting: If the round's stages were not gone through, or its secrets are forgotten.
        """
        with self._exclusive():
            state = self._of(terms)
        if state.roster is None or not state.present or not state.seed:
            raise InvalidSetting("a round's masks are not ready, or were given up when it was opened")
        return mask(
            values,
            roster=state.roster,
            site=self._site,
            masking=state.masking,
            seed=bytes.fromhex(state.seed),
            present=state.present,
        )

    def unmask(self, terms: Terms, survivors: Sequence[str]) -> tuple[tuple[str, str], ...]:
        """For every masking site, a share of its seed if it survived, else of its mask key: (site, share in hex).

        Raises:
          PolicyRefused: If shares were given for another set of survivors: with both, a single vector could be opened.
          InvalidSetting: If the survivors are too few, unknown, or do not include this site.
        """
        with self._exclusive():
            state = self._of(terms)
            if state.roster is None or not state.present:
                raise InvalidSetting("a round's shares cannot be given before its masks were made")
            chosen = state.roster.present(survivors)
            _require(
                self._site in chosen and set(chosen) <= set(state.present), "the survivors must be masking sites and this one"
            )
            if state.survivors and state.survivors != chosen:
                raise PolicyRefused("this round's shares were given for another set of survivors")
            # Written before any share leaves; the site's own secrets are not needed any more.
            if not state.survivors:
                state = replace(
                    state,
                    channel=replace(state.channel, private=""),
                    masking=replace(state.masking, private=""),
                    seed="",
                    dealing=None if state.dealing is None else replace(state.dealing, own=_EMPTY),
                    held=_chosen_only(state.held, chosen),
                    survivors=chosen,
                )
                self._save(state)
            return tuple((held.site, held.seed_share or held.key_share) for held in state.held)

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        """Keep other processes and threads from this site's sums of the run."""
        with ExitStack() as stack:
            with storage_errors():
                self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                stack.enter_context(exclusive(self._folder.with_name(LOCK_NAME)))
            yield

    def _of(self, terms: Terms) -> _State:
        state = self._load(terms.round_index)
        if state is None:
            raise InvalidSetting(f"round {terms.round_index} has no keys at this site; the server must ask for them first")
        _require(state.terms == terms, "a round's keys were made for other terms")
        return state

    def _path(self, round_index: int) -> Path:
        return self._folder / f"round-{round_index}.json"

    def _load(self, round_index: int) -> _State | None:
        with storage_errors():
            if not self._path(round_index).exists():
                return None
            text = self._path(round_index).read_text(encoding="utf-8")
        return build(_State, json.loads(text), path="secure")

    def _save(self, state: _State) -> None:
        with storage_errors():
            write_private(self._path(state.terms.round_index), canonical_json(state))

    def _forget_others(self, round_index: int) -> None:
        with storage_errors():
            for path in self._folder.iterdir():
                if path != self._path(round_index):
                    path.unlink(missing_ok=True)


def _chosen_only(held: Sequence[Held], survivors: Sequence[str]) -> tuple[Held, ...]:
    """Of every site the one share that leaves; the other one is forgotten."""
    return tuple(
        replace(each, key_share="") if each.site in survivors else replace(each, seed_share="")
        for each in sorted(held, key=lambda each: each.site)
    )


def _require(condition: bool, otherwise: str) -> None:
    if not condition:
        raise InvalidSetting(f"{otherwise}; the round is refused")
