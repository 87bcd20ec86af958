"""What a site holds a masked run against: its own policy and the declaration, whatever the server's tasks say."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mammo_fed.client.policy import check_declaration, read_site_file
from mammo_fed.client.rounds.replies import reply_from_bytes, reply_to_bytes
from mammo_fed.client.rounds.site import Site
from mammo_fed.data.cache import ArrayCache
from mammo_fed.data.run_cohorts import load_pool
from mammo_fed.errors import InvalidSetting, LedgerError, PolicyRefused
from mammo_fed.federation.protocol.replies import Refusal
from mammo_fed.federation.protocol.secure_messages import Question
from mammo_fed.federation.protocol.task import Declaration, RoundTask
from mammo_fed.federation.public_start import make_public_start
from mammo_fed.federation.secure_aggregation.double_masks import Roster, parcels_for
from mammo_fed.models.classifier import extractor_spec
from mammo_fed.models.features import Extractor
from mammo_fed.privacy.accounting.pricing import epsilon
from mammo_fed.server.run import declare_run, share_of
from mammo_fed.settings.compose import compose_settings
from mammo_fed.simulations.launch import site_file

DIMS = 20
USES = ("masks", "shared_noise")


@pytest.fixture(scope="module")
def settings(small):
    return compose_settings([*small, "federation.secure.use=shared_noise"]).settings


@pytest.fixture(scope="module")
def store(cache):
    return ArrayCache(cache)


@pytest.fixture(scope="module")
def start(settings, store):
    extractor = Extractor(extractor_spec(settings.model, seed=0), cache=store)
    return extractor, make_public_start(settings, extractor, cache=store)


@pytest.fixture(scope="module")
def payload(start):
    return start[1].payload.flatten()


@pytest.fixture(scope="module")
def shared(settings, start) -> Declaration:
    return declare_run(settings, *start, run_id="run1")


@pytest.fixture
def sites(settings, store, tmp_path) -> dict[str, Site]:
    pool = load_pool(settings.data, share_of(settings), cache=store)
    files = [site_file(settings, pool, index, folder=tmp_path, cache=store) for index in range(4)]
    return {file.site: Site(file) for file in files}


def task(round_index=0, **changed):
    values = {
        "run_id": "run1",
        "round_index": round_index,
        "kind": "train" if round_index else "mean",
        "learning_rate": 20.0,
        "weight_decay": 0.0,
        "optimizer": "sgd",
        "label_smoothing": 0.0,
        "proximal": 0.0,
    }
    return RoundTask(**(values | changed))


def zeros(count=DIMS):
    return np.zeros(count, np.float32)


def ask(site, stage, **parts):
    values = {"stage": stage, "run_id": "run1", "round_index": 0, "roster": None, "survivors": ()}
    return site.masked_sum_stage(Question(**(values | parts)))


def ready(sites, declaration, payload):
    """Every site after the shares of round 0: by site, the parcels for it."""
    for site in sites.values():
        site.declare(declaration, payload)
    roster = Roster(terms=declaration.terms(0), members=tuple(ask(site, "keys").member for site in sites.values()))
    dealt = {name: ask(site, "shares", roster=roster).parcels for name, site in sites.items()}
    return {name: parcels_for(name, dealt, tuple(sites)) for name in sites}


def test_the_declared_shares_are_those_of_the_smallest_sum_less_the_colluders(shared):
    assert (shared.aggregation, shared.min_survivors, shared.colluders, shared.noise_shares) == ("shared_noise", 3, 0, 3)
    assert replace(shared, min_survivors=4, colluders=2).noise_shares == 2
    assert replace(shared, aggregation="masks").noise_shares == 1
    assert Declaration.from_json(shared.to_json()) == shared


@pytest.mark.parametrize(
    "changed",
    [
        {"mechanism": "dp_sgd"},
        {"local_steps": 2},
        {"noise": "float"},
        {"keep_optimizer": True},
        {"min_survivors": 1},
        {"colluders": 3},
        {"aggregation": "plain"},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_a_declaration_that_a_share_of_the_noise_would_not_cover_cannot_exist(shared, changed):
    with pytest.raises(InvalidSetting):
        replace(shared, **changed)


def complaint(declaration, policy):
    with pytest.raises(PolicyRefused) as refused:
        check_declaration(declaration, policy, public=True)
    return str(refused.value)


def test_a_site_that_says_nothing_about_it_refuses_shared_noise_and_allows_masks(sites, shared):
    policy = replace(sites["site-1"].file.policy, aggregation=("plain", "masks"), most_noise_shares=1)
    assert "aggregation=shared_noise is not among ('plain', 'masks')" in complaint(shared, policy)
    check_declaration(replace(shared, aggregation="masks"), policy, public=True)


def test_a_site_file_from_before_masks_is_read_with_the_careful_values(sites, tmp_path):
    path = sites["site-1"].file.write(tmp_path / "site.json")
    text = path.read_text(encoding="utf-8")
    for line in text.splitlines():
        if "most_noise_shares" in line:
            text = text.replace(line, "")
    start = text.index('"aggregation"')
    path.write_text(text[:start] + text[text.index("]", start) + 2 :].lstrip(), encoding="utf-8")
    policy = read_site_file(path).policy
    assert (policy.aggregation, policy.most_noise_shares) == (("plain", "masks"), 1)


def test_a_site_bounds_how_thinly_its_noise_may_be_spread(sites, shared):
    policy = replace(sites["site-1"].file.policy, most_noise_shares=2)
    assert "the noise is divided among 3 sites, above 2" in complaint(shared, policy)
    check_declaration(replace(shared, colluders=1), policy, public=True)


@pytest.mark.parametrize("use", USES)
def test_a_run_under_masks_gives_no_update_in_clear_whatever_is_asked(sites, shared, payload, use):
    site = sites["site-1"]
    site.declare(replace(shared, aggregation=use), payload)
    with pytest.raises(PolicyRefused, match="nothing else leaves this site"):
        site.round(task(), zeros(), zeros())


def test_a_run_in_clear_knows_no_masks(sites, shared, payload):
    site = sites["site-1"]
    site.declare(replace(shared, aggregation="plain", min_survivors=1), payload)
    with pytest.raises(PolicyRefused, match="nothing else leaves this site"):
        site.round(task(), zeros(), zeros(), ())
    with pytest.raises(PolicyRefused, match="was not declared as a masked sum"):
        ask(site, "keys")


@pytest.mark.parametrize("index", [-1, 4, 10**9])
def test_a_round_that_was_not_declared_gets_no_keys(sites, shared, payload, index):
    site = sites["site-1"]
    site.declare(shared, payload)
    with pytest.raises(PolicyRefused, match="was not declared as a masked sum"):
        ask(site, "keys", round_index=index)


def test_a_stage_of_an_unknown_run_is_refused(sites):
    with pytest.raises(InvalidSetting, match="never declared at this site"):
        ask(sites["site-1"], "keys")


@pytest.mark.parametrize("use", USES)
def test_a_masked_reply_is_charged_once_and_sent_again_bit_for_bit(sites, shared, payload, use):
    parcels = ready(sites, replace(shared, aggregation=use), payload)
    site = sites["site-1"]
    first = site.round(task(), zeros(), zeros(), parcels["site-1"])
    # Another process, after a crash.
    again = Site(site.file).round(task(), zeros(), zeros(), parcels["site-1"])
    np.testing.assert_array_equal(first.masked, again.masked)
    assert (len(first.parameters), len(first.masked)) == (0, DIMS)
    assert first.epsilon == again.epsilon == epsilon(first.events, delta=1e-4, accountant="pld")
    np.testing.assert_array_equal(reply_from_bytes(reply_to_bytes(first)).masked, first.masked)


def test_the_ledger_is_charged_for_the_declared_adversary_and_knows_the_shares(sites, shared, payload):
    parcels = ready(sites, shared, payload)
    reply = sites["site-1"].round(task(), zeros(), zeros(), parcels["site-1"])
    assert {event.noise_shares for event in reply.events} == {3}
    assert epsilon(reply.events, delta=1e-4, accountant="pld") == reply.epsilon


def test_another_task_or_another_set_of_sites_for_an_answered_round_is_refused(sites, shared, payload):
    parcels = ready(sites, shared, payload)["site-1"]
    site = sites["site-1"]
    site.round(task(), zeros(), zeros(), parcels)
    with pytest.raises(InvalidSetting, match="another set of sites"):
        site.round(task(), zeros(), zeros(), parcels[:2])
    with pytest.raises(LedgerError):
        site.round(task(learning_rate=21.0), zeros(), zeros(), parcels)


def test_new_keys_after_the_old_ones_were_forgotten_open_no_second_sum(sites, shared, payload):
    """A server that makes a site forget a round cannot have the same round masked anew: its ledger remembers."""
    site = sites["site-1"]
    site.round(task(), zeros(), zeros(), ready(sites, shared, payload)["site-1"])
    for each in sites.values():
        ask(each, "keys", round_index=1)
    parcels = ready(sites, shared, payload)
    with pytest.raises(LedgerError):
        site.round(task(), zeros(), zeros(), parcels["site-1"])


def oversized(policy):
    """The policy with more images than any policy may declare: what is behind its own check holds by itself."""
    found = replace(policy)
    object.__setattr__(found, "public_images", 1 << 31)
    return found


def test_a_site_too_large_for_the_range_of_the_sum_refuses_before_it_touches_a_patient(sites, shared, payload):
    large = sites["site-1"].file
    large = replace(large, policy=oversized(large.policy))
    sites["site-1"] = Site(large)
    parcels = ready(sites, shared, payload)
    with pytest.raises(InvalidSetting, match="without overflow"):
        sites["site-1"].round(task(), zeros(), zeros(), parcels["site-1"])


def test_a_round_that_failed_is_over_and_cannot_be_tried_again(sites, shared, payload):
    """Were it tried again for one charge, whether it fails would be a question that a server may ask without end."""
    large = sites["site-1"].file
    sites["site-1"] = site = Site(replace(large, policy=oversized(large.policy)))
    parcels = ready(sites, shared, payload)["site-1"]
    with pytest.raises(InvalidSetting, match="without overflow"):
        site.round(task(), zeros(), zeros(), parcels)
    with site._ledger(shared) as ledger:
        head = ledger.head()
    for asked in (site, Site(site.file)):
        again = asked.round(task(), zeros(), zeros(), parcels)
        assert isinstance(again, Refusal)
        assert again.reason == "internal"
    with site._ledger(shared) as ledger:
        assert ledger.head() == head


@pytest.mark.parametrize("origin", [3e38, -3e38, 2.0**31, 1e-40])
def test_a_masked_reply_comes_at_once_wherever_the_server_lets_the_sum_begin(sites, shared, payload, origin):
    """A noisy number outside the range is cut: a refusal would say on which side of a border of the server's it fell."""
    parcels = ready(sites, replace(shared, aggregation="masks"), payload)["site-1"]
    reply = sites["site-1"].round(task(), zeros(), np.full(DIMS, origin, np.float32), parcels)
    assert len(reply.masked) == DIMS


def test_what_a_site_keeps_of_its_sums_lies_in_its_private_folder(sites, shared, payload, tmp_path):
    ready(sites, shared, payload)
    kept = list(tmp_path.rglob("round-0.json"))
    assert len(kept) == 4
    for path in kept:
        assert Path(sites[path.parents[3].name].file.folder) in path.parents


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("secure.use=masks", "strategy=FedMedian"), "looks at single updates"),
        (("secure.use=masks", "strategy=Krum"), "looks at single updates"),
        (("secure.use=masks", "max_update_norm=3"), "bounds single updates"),
        (("secure.use=masks", "central.noise_multiplier=1"), "clips single updates"),
        (("secure.use=masks", "num_sites=1"), "at least 2"),
        (("secure.use=masks", "secure.min_survivors=5"), "at most the 4 sites"),
        (("secure.use=masks", "secure.min_survivors=2"), "two sets of survivors"),
        (("secure.use=masks", "secure.colluders=2"), "two sets of survivors"),
        (("secure.use=masks", "fraction=0.25"), "at most the 1 sites"),
        (("secure.use=shared_noise", "fraction=0.75"), "one plain sum a round"),
        (("secure.use=shared_noise", "strategy=FedAdam"), "one plain sum a round"),
        (("secure.use=shared_noise", "local_steps=2"), "one plain sum a round"),
        (("secure.use=shared_noise", "keep_optimizer=true"), "needs privacy.mechanism=dp_gd"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, tuple) else "",
)
def test_settings_that_masks_would_break_are_refused_with_a_reason(small, overrides, said):
    with pytest.raises(InvalidSetting, match=said):
        _ = compose_settings([*small, *(f"federation.{each}" for each in overrides)]).settings


@pytest.mark.parametrize("changed", ["privacy=dp_sgd", "privacy.noise=float"])
def test_noise_is_shared_on_the_grid_and_in_the_full_batch_only(small, changed):
    with pytest.raises(InvalidSetting, match=r"privacy\.mechanism=dp_gd and privacy\.noise=secure|local_steps"):
        _ = compose_settings([*small, "federation.secure.use=shared_noise", changed]).settings
