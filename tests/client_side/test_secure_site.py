"""A site's state of masked sums: the same answer to the same question, also after a crash, and no second one."""

import stat
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mammo_fed.client.rounds.masked_sums import MaskedSums
from mammo_fed.errors import DataError, InvalidSetting, PolicyRefused
from mammo_fed.federation.flwr_internals.secagg import key_pair
from mammo_fed.federation.protocol.secure_messages import Question
from mammo_fed.federation.secure_aggregation.double_masks import Member, Roster, Terms, parcels_for

NAMES = ("east", "north", "south", "west")
TERMS = Terms(run_id="run1", round_index=1, min_survivors=3, colluders=0)


class Round:
    """Four sites on their disks; every access is by a fresh object, as after a crash."""

    def __init__(self, folder: Path, terms: Terms = TERMS) -> None:
        self.folder, self.terms = folder, terms
        self.roster = Roster(terms=terms, members=tuple(self.site(name).keys(terms) for name in NAMES))

    def site(self, name: str) -> MaskedSums:
        return MaskedSums(self.folder / name, name)

    def deal(self, present=NAMES):
        self.parcels = {name: self.site(name).shares(self.roster).parcels for name in present}
        return self.parcels

    def accept(self, name: str, present=NAMES):
        return self.site(name).accept(self.terms, parcels_for(name, self.parcels, present))

    def ready(self):
        self.deal()
        for name in NAMES:
            self.accept(name)
        return self


@pytest.fixture
def begun(tmp_path):
    return Round(tmp_path)


@pytest.fixture
def ready(tmp_path):
    return Round(tmp_path).ready()


def test_every_stage_gives_a_restarted_site_the_answer_that_it_gave_before(begun):
    assert begun.site("east").keys(TERMS) == begun.roster.member("east")
    assert begun.deal() == begun.deal()
    for name in NAMES:
        begun.accept(name)
    values = np.arange(5)
    one, other = (begun.site("east").mask(TERMS, values) for _ in range(2))
    np.testing.assert_array_equal(one, other)
    assert begun.accept("east") == (begun.roster, NAMES)
    assert begun.site("east").unmask(TERMS, NAMES[:3]) == begun.site("east").unmask(TERMS, NAMES[:3])


def test_keys_are_fresh_in_every_round_and_the_earlier_rounds_are_forgotten(begun, tmp_path):
    later = replace(TERMS, round_index=2)
    assert begun.site("east").keys(later) != begun.roster.member("east")
    assert [path.name for path in (tmp_path / "east" / "secure").iterdir()] == ["round-2.json"]
    with pytest.raises(InvalidSetting, match="round 1 has no keys at this site"):
        begun.site("east").shares(begun.roster)


def test_what_is_kept_can_be_read_by_its_owner_only(ready, tmp_path):
    folder = tmp_path / "east" / "secure"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert [stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()] == [0o600]


def test_shares_are_dealt_to_one_roster_only(begun):
    begun.deal()
    smaller = Roster(terms=TERMS, members=begun.roster.members[:3])
    with pytest.raises(InvalidSetting, match="dealt to another roster"):
        begun.site("east").shares(smaller)


def test_a_roster_with_another_key_for_a_site_than_its_own_is_refused(begun):
    fake = Member(site="east", channel_key=key_pair().public, mask_key=key_pair().public)
    forged = Roster(terms=TERMS, members=(fake, *begun.roster.members[1:]))
    with pytest.raises(InvalidSetting, match="other keys for this site than its own"):
        begun.site("east").shares(forged)


def test_a_roster_without_the_site_is_refused(begun):
    with pytest.raises(InvalidSetting, match="site=west must be on the round's roster"):
        begun.site("west").shares(Roster(terms=TERMS, members=begun.roster.members[:3]))


def test_terms_other_than_the_declared_ones_are_refused(begun):
    question = Question(
        stage="shares",
        run_id="run1",
        round_index=1,
        roster=replace(begun.roster, terms=replace(TERMS, min_survivors=4)),
        survivors=(),
    )
    with pytest.raises(InvalidSetting, match="the terms that were declared"):
        begun.site("east").answer(TERMS, question)
    with pytest.raises(InvalidSetting, match="made for other terms"):
        begun.site("east").keys(replace(TERMS, min_survivors=4))


def test_masks_are_made_for_one_set_of_sites_only(begun):
    begun.deal()
    begun.accept("east", present=NAMES[:3])
    with pytest.raises(InvalidSetting, match="made for another set of sites"):
        begun.accept("east")


def test_too_few_sites_get_no_masks(begun):
    begun.deal()
    with pytest.raises(InvalidSetting, match="2 sites are fewer than min_survivors=3"):
        begun.accept("east", present=NAMES[:2])


def test_a_parcel_that_was_changed_on_its_way_ends_the_sites_part(begun):
    parcels = list(parcels_for("east", begun.deal(), NAMES))
    parcels[0] = replace(parcels[0], sealed=parcels[0].sealed[:-8] + "AAAAAAA=")
    with pytest.raises(DataError, match="changed on its way"):
        begun.site("east").accept(TERMS, parcels)
    with pytest.raises(InvalidSetting, match="masks are not ready"):
        begun.site("east").mask(TERMS, np.zeros(3, np.int64))


def test_shares_are_given_for_one_set_of_survivors_only(ready):
    given = dict(ready.site("east").unmask(TERMS, NAMES[:3]))
    for others in (NAMES, ("east", "north", "west")):
        with pytest.raises(PolicyRefused, match="another set of survivors"):
            ready.site("east").unmask(TERMS, others)
    assert set(given) == set(NAMES)


def test_nobody_gets_both_shares_of_one_site_nor_finds_them_on_the_disk_afterwards(ready, tmp_path):
    path = tmp_path / "east" / "secure" / "round-1.json"
    before = ready.site("east")._load(1)
    survivors = NAMES[:3]
    given = dict(ready.site("east").unmask(TERMS, survivors))
    after = path.read_text(encoding="utf-8")
    for held in before.held:
        told, kept_back = (held.seed_share, held.key_share) if held.site in survivors else (held.key_share, held.seed_share)
        assert given[held.site] == told
        assert kept_back not in after
    for secret in (before.seed, before.masking.private, before.channel.private):
        assert secret not in after
    with pytest.raises(InvalidSetting, match="given up when it was opened"):
        ready.site("east").mask(TERMS, np.zeros(3, np.int64))


@pytest.mark.parametrize(
    ("survivors", "said"),
    [
        (NAMES[:2], "2 sites are fewer than min_survivors=3"),
        (NAMES[1:], "must be masking sites and this one"),
        (("east", "north", "nowhere"), "must be distinct sites of the round's roster"),
        (("east", "east", "north"), "must be distinct sites of the round's roster"),
    ],
    ids=["too few", "without the site", "unknown", "twice"],
)
def test_a_set_of_survivors_that_does_not_fit_is_refused_and_nothing_is_told(ready, survivors, said):
    with pytest.raises(InvalidSetting, match=said):
        ready.site("east").unmask(TERMS, survivors)
    assert ready.site("east").unmask(TERMS, NAMES)


@pytest.mark.parametrize("stage", ["shares", "unmask"])
def test_a_stage_out_of_turn_is_refused(tmp_path, stage):
    alone = MaskedSums(tmp_path, "east")
    question = Question(stage=stage, run_id="run1", round_index=1, roster=None, survivors=NAMES)
    with pytest.raises(InvalidSetting):
        alone.answer(TERMS, question)
    alone.keys(TERMS)
    with pytest.raises(InvalidSetting, match="before its masks were made"):
        alone.unmask(TERMS, NAMES)
    with pytest.raises(InvalidSetting, match="need the shares that were dealt before"):
        alone.accept(TERMS, [])
