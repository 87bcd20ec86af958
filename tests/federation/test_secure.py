"""Masked sums in themselves: what cancels, what stays hidden, which rosters are refused, and that nothing overflows."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mammo_fed.errors import DataError, InvalidSetting
from mammo_fed.federation.flwr_internals.secagg import key_pair
from mammo_fed.federation.protocol.messages import stamped
from mammo_fed.federation.protocol.secure_messages import (
    Answer,
    Opened,
    Question,
    pack_answer,
    pack_parcels,
    pack_question,
    read_answer,
    read_parcels,
    read_question,
)
from mammo_fed.federation.secure_aggregation.double_masks import (
    SEED_BYTES,
    Member,
    Parcel,
    Roster,
    Terms,
    deal,
    mask,
    parcels_for,
    secure_task_hash,
    take,
)
from mammo_fed.federation.secure_aggregation.opening import (
    LARGEST,
    WEIGHTED_STEPS,
    open_sum,
    quantised,
    rebuilt_key,
    rebuilt_seed,
    weighted_sum,
    within_range,
)

NAMES = ("east", "north", "south", "west")
TERMS = Terms(run_id="run1", round_index=2, min_survivors=3, colluders=0)


class Party:
    """A site with its secrets of one round."""

    def __init__(self, site, number):
        self.site = site
        self.channel, self.masking = key_pair(), key_pair()
        self.seed = bytes([number]) * SEED_BYTES

    @property
    def member(self):
        return Member(site=self.site, channel_key=self.channel.public, mask_key=self.masking.public)


@pytest.fixture(scope="module")
def parties():
    return {site: Party(site, number) for number, site in enumerate(NAMES)}


@pytest.fixture(scope="module")
def roster(parties):
    return Roster(terms=TERMS, members=tuple(party.member for party in parties.values()))


@pytest.fixture(scope="module")
def dealings(parties, roster):
    return {
        site: deal(roster, site, channel=party.channel, masking=party.masking, seed=party.seed)
        for site, party in parties.items()
    }


@pytest.fixture(scope="module")
def held(parties, roster, dealings):
    """By site, what it holds of every site, itself among them."""
    parcels = {site: dealing.parcels for site, dealing in dealings.items()}
    return {
        site: {
            each.site: each
            for each in (
                dealings[site].own,
                *take(roster, site, channel=party.channel, parcels=parcels_for(site, parcels, NAMES)),
            )
        }
        for site, party in parties.items()
    }


@pytest.fixture(scope="module")
def vectors():
    draws = np.random.default_rng(0)
    return {site: draws.integers(-(1 << 40), 1 << 40, 50) for site in NAMES}


def masked(party, vector, roster, present=NAMES):
    return mask(vector, roster=roster, site=party.site, masking=party.masking, seed=party.seed, present=present)


@pytest.fixture(scope="module")
def sent(parties, vectors, roster):
    return {site: masked(parties[site], vectors[site], roster) for site in NAMES}


@pytest.mark.parametrize("survivors", [NAMES, NAMES[1:], ("east", "north", "west")], ids=["all", "first lost", "one lost"])
def test_the_sum_of_the_survivors_comes_out_to_the_last_bit(survivors, parties, roster, dealings, held, sent, vectors):
    seeds, keys = {}, {}
    for site in NAMES:
        given = [held[other][site] for other in survivors]
        if site in survivors:
            shares = [bytes.fromhex(each.seed_share) for each in given]
            seeds[site] = rebuilt_seed(shares, roster=roster, site=site, committed=dealings[site].commitment)
        else:
            shares = [bytes.fromhex(each.key_share) for each in given]
            keys[site] = rebuilt_key(shares, roster=roster, lost=roster.member(site))
    total = open_sum({site: sent[site] for site in survivors}, roster=roster, present=NAMES, seeds=seeds, keys=keys)
    np.testing.assert_array_equal(total, sum(vectors[site] for site in survivors))
    assert total.dtype == np.int64


def test_a_masked_vector_looks_uniform_and_depends_on_run_round_and_who_puts_masks_on(parties, roster, vectors):
    party, vector = parties["east"], np.zeros(4096, np.int64)
    once = masked(party, vector, roster)
    bits = np.unpackbits(once.view(np.uint8))
    assert abs(bits.mean() - 0.5) < 5 * 0.5 / np.sqrt(len(bits))
    for terms in (replace(TERMS, round_index=3), replace(TERMS, run_id="run2")):
        assert not np.any(masked(party, vector, replace(roster, terms=terms)) == once)
    assert not np.any(masked(party, vector, roster, present=("east", "north", "west")) == once)


def test_taking_away_either_the_own_mask_or_the_common_ones_leaves_a_vector_hidden(parties, roster, vectors, sent):
    """What the server would have with one kind of share: a site that survived, taken for lost, or the other way round."""
    zeros, party = np.zeros(50, np.int64), parties["east"]
    common_only = masked(replace_seed(party), zeros, roster)
    own_only = masked(party, zeros, roster) - common_only
    for known in (common_only, own_only):
        left = (sent["east"] - known).view(np.int64) - vectors["east"]
        assert np.abs(left.astype(np.float64)).min() > 1 << 40


def replace_seed(party):
    changed = Party(party.site, 99)
    changed.channel, changed.masking = party.channel, party.masking
    return changed


def test_a_wrong_share_is_noticed_and_another_set_of_shares_is_tried(roster, dealings, held):
    right = [bytes.fromhex(held[site]["east"].seed_share) for site in NAMES]
    wrong = bytes.fromhex(held["north"]["west"].seed_share)
    seed = rebuilt_seed([wrong, *right], roster=roster, site="east", committed=dealings["east"].commitment)
    assert seed == bytes([0]) * SEED_BYTES
    with pytest.raises(DataError, match="the seed of east cannot be rebuilt from 3 shares"):
        rebuilt_seed([wrong, *right[:2]], roster=roster, site="east", committed=dealings["east"].commitment)
    with pytest.raises(DataError, match="the mask key of east cannot be rebuilt from 2 shares"):
        rebuilt_key(right[:2], roster=roster, lost=roster.member("east"))


def test_a_sum_is_not_opened_with_too_few_survivors_or_with_both_secrets_of_a_site(roster, sent):
    two = {site: sent[site] for site in NAMES[:2]}
    seeds = dict.fromkeys(NAMES[:2], bytes(32))
    with pytest.raises(InvalidSetting, match="2 sites are fewer than min_survivors=3"):
        open_sum(two, roster=roster, present=NAMES, seeds=seeds, keys={})
    with pytest.raises(InvalidSetting, match="the seed of every survivor"):
        open_sum(sent, roster=roster, present=NAMES, seeds=dict.fromkeys(NAMES, bytes(32)), keys={"east": "00"})


def test_a_parcel_opens_for_its_addressee_under_its_roster_only(parties, roster, dealings):
    parcels = {site: dealing.parcels for site, dealing in dealings.items()}
    mine = parcels_for("east", parcels, NAMES)
    with pytest.raises(DataError, match="another key"):
        take(roster, "north", channel=parties["north"].channel, parcels=[mine[-1]])
    later = replace(roster, terms=replace(TERMS, round_index=3))
    with pytest.raises(DataError, match="another key"):
        take(later, "east", channel=parties["east"].channel, parcels=mine)
    reflected = Parcel(site="north", sealed=next(each.sealed for each in parcels["east"] if each.site == "north"))
    with pytest.raises(DataError, match="another site than it came from"):
        take(roster, "east", channel=parties["east"].channel, parcels=[reflected])


def members(parties, *names):
    return tuple(parties[name].member for name in names)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda all4: all4[:2], "a roster of 2 sites must have 3"),
        (lambda all4: all4[::-1], "distinct sites in order"),
        (lambda all4: (*all4, all4[-1]), "distinct sites in order"),
        (lambda all4: (*all4[:3], replace(all4[2], site="west")), "must all be distinct"),
        (lambda all4: (*all4[:3], replace(all4[3], channel_key=all4[3].mask_key)), "must all be distinct"),
        (lambda all4: (*all4[:3], replace(all4[3], mask_key="none")), "must hold public keys"),
        (lambda all4: (*all4[:3], replace(all4[3], site="../west")), "distinct sites in order"),
    ],
    ids=["too few", "out of order", "twice", "one key for two", "one key twice", "no key", "no name"],
)
def test_a_roster_that_could_hide_a_fraud_cannot_exist(parties, change, said):
    with pytest.raises(InvalidSetting, match=said):
        Roster(terms=TERMS, members=change(members(parties, *NAMES)))


@pytest.mark.parametrize(("least", "colluders"), [(2, 0), (3, 2)])
def test_a_threshold_that_leaves_room_for_two_sets_of_survivors_is_refused(parties, least, colluders):
    terms = Terms(run_id="run1", round_index=2, min_survivors=least, colluders=colluders)
    with pytest.raises(InvalidSetting, match="two sets of survivors"):
        Roster(terms=terms, members=members(parties, *NAMES))


@pytest.mark.parametrize(("least", "colluders"), [(1, 0), (3, 3), (3, -1)])
def test_terms_without_an_honest_majority_to_hide_in_are_refused(least, colluders):
    with pytest.raises(InvalidSetting, match="min_survivors"):
        Terms(run_id="run1", round_index=2, min_survivors=least, colluders=colluders)


def test_one_task_under_two_rosters_is_two_tasks(roster):
    later = replace(roster, terms=replace(TERMS, round_index=3))
    hashes = {
        secure_task_hash("a" * 64, roster, NAMES),
        secure_task_hash("b" * 64, roster, NAMES),
        secure_task_hash("a" * 64, later, NAMES),
        secure_task_hash("a" * 64, roster, NAMES[:3]),
    }
    assert len(hashes) == 4


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=20), st.integers(2, 60))
def test_quantised_updates_add_up_to_half_a_step_each(values, sites):
    exact = np.array(values)
    total = sum(quantised(exact, sites=sites) for _ in range(sites))
    np.testing.assert_allclose(weighted_sum(total), sites * exact, rtol=1e-12, atol=sites * 0.5 / WEIGHTED_STEPS + 1e-9)


@pytest.mark.parametrize("sites", [2, 3, 4096])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e12, -1e12, 1e300, 4294967295.9])
def test_an_update_that_could_overflow_the_sum_is_cut_and_never_refused(bad, sites):
    first, second = quantised(np.array([0.25, bad]), sites=sites)
    assert first == WEIGHTED_STEPS // 4
    assert np.sign(second) == (0 if np.isnan(bad) else np.sign(bad))
    assert abs(int(second)) * sites <= LARGEST


@pytest.mark.parametrize("sites", [2, 3, 4096])
def test_numbers_in_range_never_overflow_however_many_sites_send_them(sites):
    bound = LARGEST // sites
    assert sites * bound < 1 << 63
    numbers = np.array([bound + 1, bound, 0, -bound, -bound - 1])
    assert within_range(numbers, sites=sites).tolist() == [bound, bound, 0, -bound, -bound]


def test_questions_answers_and_parcels_arrive_as_they_were_sent(roster, dealings):
    question = Question(stage="shares", run_id="run1", round_index=2, roster=roster, survivors=())
    assert read_question(pack_question(question)) == question
    answer = Answer(commitment="c", parcels=dealings["east"].parcels, opened=(Opened(site="west", share="00"),))
    assert read_answer(pack_answer(answer)) == answer
    content = pack_question(question)
    with pytest.raises(InvalidSetting, match="is not valid JSON"):
        read_parcels(stamped(type(content)({})))
    content["secure"] = pack_parcels(dealings["east"].parcels)
    assert read_parcels(content) == dealings["east"].parcels


def test_a_dealing_as_it_is_sent_holds_nothing_of_the_sites_own_part(parties, dealings):
    dealing = dealings["east"]
    text = str(dict(pack_answer(Answer(commitment=dealing.commitment, parcels=dealing.parcels))["secure"]))
    for secret in (dealing.own.seed_share, dealing.own.key_share, parties["east"].masking.private):
        assert secret not in text


@pytest.mark.parametrize("text", ["", "[]", '{"reason": ""}', "no JSON"])
def test_an_answer_that_is_none_is_refused(text):
    content = pack_answer(Answer())
    content["secure"]["json"] = text
    with pytest.raises(DataError, match="cannot be read"):
        read_answer(content)
