"""Patients who withdraw from a site: every later round is, to the last bit, that of a cohort in which they never were."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mammo_fed.client.charging import LedgerMemory, site_ledger
from mammo_fed.client.policy import SiteFile
from mammo_fed.client.rounds import replies as site_replies
from mammo_fed.client.rounds.masked_sums import MaskedSums
from mammo_fed.client.rounds.site import Site
from mammo_fed.data.cache import ArrayCache
from mammo_fed.data.run_cohorts import load_pool
from mammo_fed.errors import DataError, LedgerError
from mammo_fed.federation.protocol.replies import Update
from mammo_fed.federation.protocol.task import Declaration, RoundTask
from mammo_fed.federation.public_start import make_public_start
from mammo_fed.federation.secure_aggregation.double_masks import Parcel, Roster, parcels_for
from mammo_fed.models.classifier import extractor_spec
from mammo_fed.models.features import Extractor
from mammo_fed.privacy.ledger.report import export_ledger, show_ledger
from mammo_fed.server.run import declare_run, share_of
from mammo_fed.settings.compose import compose_settings
from mammo_fed.simulations.launch import site_file

DIMS = 20
SEED = 11


@pytest.fixture(scope="module")
def settings(small):
    return compose_settings([*small]).settings


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> ArrayCache:
    """Of descriptors that were made one image at a time: kernels may round otherwise in a batch of another size."""
    patch = pytest.MonkeyPatch()
    patch.setattr("mammo_fed.models.features.PASS", 1)
    yield ArrayCache(tmp_path_factory.mktemp("cache"))
    patch.undo()


@pytest.fixture(scope="module")
def public_start(settings, store):
    extractor = Extractor(extractor_spec(settings.model, seed=0), cache=store)
    return extractor, make_public_start(settings, extractor, cache=store)


@pytest.fixture(scope="module")
def payload(public_start) -> np.ndarray:
    return public_start[1].payload.flatten()


@pytest.fixture(scope="module")
def declaration(settings, public_start) -> Declaration:
    """Noise that is drawn again, so that two worlds can be compared bit by bit; the cohort is public."""
    return replace(declare_run(settings, *public_start, run_id="run1"), noise_seed=SEED)


@pytest.fixture(scope="module")
def leaving(phantom) -> tuple[str, ...]:
    """Two patients who withdraw, one of them with several images."""
    patients, counts = np.unique(phantom.sites[0].patients, return_counts=True)
    return tuple(f"Erika-{patients[place]}" for place in (int(np.argmax(counts)), 0 if np.argmax(counts) else 1))


@pytest.fixture
def hospital(settings, store, tmp_path, phantom, make_table, leaving) -> Callable[..., SiteFile]:
    """`hospital("name", without=patients)`: its file; public sizes are those of the whole table, whoever is not in it."""
    whole = make_table(tmp_path / "table", [("train", phantom.sites[0])])

    def make(name: str, *, without: tuple[str, ...] = (), **policy: object) -> SiteFile:
        folder = tmp_path / name
        folder.mkdir()
        table = whole.path.with_name(f"{name}.csv")
        with whole.path.open(encoding="utf-8", newline="") as lines, table.open("w", encoding="utf-8", newline="") as kept:
            csv.writer(kept).writerows(row for row in csv.reader(lines) if row[0] not in without)
        data = replace(settings.data, source="csv", root=str(table), public=True)
        alone = replace(settings, data=data, federation=replace(settings.federation, num_sites=1))
        described = site_file(alone, load_pool(data, share_of(alone), cache=store), 0, folder=folder, cache=store)
        sizes = {"public_patients": 40, "public_images": 60, "min_patients": 1}
        return replace(described, site="north", policy=replace(described.policy, **{**sizes, **policy}))

    return make


def withdraw(described: SiteFile, *patients: str) -> None:
    """As another process does it, whatever the site is doing."""
    with site_ledger(described, usual="gdp") as ledger:
        ledger.withdraw([[patient] for patient in patients])


def task(round_index: int, **changed: object) -> RoundTask:
    values = {
        "run_id": "run1",
        "round_index": round_index,
        "kind": "train" if round_index else "mean",
        "learning_rate": 1.0,
        "weight_decay": 0.0,
        "optimizer": "sgd",
        "label_smoothing": 0.0,
        "proximal": 0.0,
    }
    return RoundTask(**(values | changed))


def answer(site: Site, round_index: int, parcels: tuple[Parcel, ...] | None = None, **changed: object) -> Update:
    size = DIMS + 1 if round_index else DIMS
    return site.round(task(round_index, **changed), np.zeros(DIMS, np.float32), np.zeros(size, np.float32), parcels)


def released(reply: Update) -> bytes:
    return reply.parameters.tobytes() + reply.masked.tobytes()


def kinds(described: SiteFile) -> list[str]:
    return [entry.kind for entry in export_ledger(Path(described.ledger))]


SAMPLED = {"mechanism": "dp_sgd", "batch_size": 8}
WAYS = {
    "grid": {},
    "float": {"noise": "float"},
    "image": {"unit": "image"},
    "sampled": {**SAMPLED, "noise": "secure"},
    "sampled-float": {**SAMPLED, "noise": "float"},
    "kept-optimizer": {**SAMPLED, "noise": "secure", "keep_optimizer": True},
}


@pytest.fixture(params=WAYS)
def asked(request, declaration) -> Declaration:
    return replace(declaration, **WAYS[request.param])


def test_a_run_declared_after_patients_withdrew_is_that_of_a_cohort_in_which_they_never_were(hospital, asked, payload, leaving):
    here, never = hospital("here"), hospital("never", without=leaving)
    withdraw(here, *leaving)
    sites = Site(here), Site(never)
    for site in sites:
        site.declare(asked, payload)
    for round_index in (0, 1, 2):
        mine, theirs = (answer(site, round_index) for site in sites)
        assert released(mine) == released(theirs)
        assert (mine.public_patients, mine.public_images) == (40, 60)
    patients = [show_ledger(Path(one.ledger), delta=None).accounts[0].patients for one in (here, never)]
    assert patients[0] == patients[1]


def test_a_running_site_leaves_out_who_withdraws_from_the_next_round_on(hospital, asked, payload, leaving):
    here, with_them, never = hospital("here"), hospital("with"), hospital("never", without=leaving)
    sites = Site(here), Site(with_them), Site(never)
    for site in sites:
        site.declare(asked, payload)
    mine, theirs, others = (answer(site, 0) for site in sites)
    assert released(mine) == released(theirs) != released(others)
    withdraw(here, *leaving)
    mine, theirs, others = (answer(site, 1) for site in sites)
    assert released(mine) == released(others)
    assert released(mine) != released(theirs)


def test_a_patient_withdraws_in_the_middle_of_a_round_and_has_no_part_in_its_reply(
    hospital, asked, payload, leaving, monkeypatch
):
    here, never = hospital("here"), hospital("never", without=leaving)
    sites = Site(here), Site(never)
    for site in sites:
        site.declare(asked, payload)
    train, left = site_replies.train_head, list(leaving)

    def train_while_a_patient_withdraws(data, *arguments, **named):
        trained = train(data, *arguments, **named)
        if left and data.public_images == 60:
            withdraw(here, left.pop())
        return trained

    theirs = answer(sites[1], 1)
    with monkeypatch.context() as patch:
        patch.setattr(site_replies, "train_head", train_while_a_patient_withdraws)
        mine = answer(sites[0], 1)
    assert not left
    assert released(mine) == released(theirs)
    assert kinds(here)[2:] == ["reserved", "withdrawn", "resumed", "withdrawn", "resumed", "settled"]
    assert mine.epsilon == theirs.epsilon


def test_a_round_reserved_before_a_patient_withdrew_and_never_trained_trains_without_them(
    hospital, declaration, payload, leaving, monkeypatch
):
    here, never = hospital("here"), hospital("never", without=leaving)
    Site(here).declare(declaration, payload)
    Site(never).declare(declaration, payload)

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(site_replies, "train_head", killed)
        with pytest.raises(KeyboardInterrupt):
            answer(Site(here), 1)
    withdraw(here, *leaving)
    assert released(answer(Site(here), 1)) == released(answer(Site(never), 1))
    assert kinds(here).count("reserved") == 1


def test_a_task_that_was_answered_before_a_patient_withdrew_gets_its_stored_reply(hospital, declaration, payload):
    here = hospital("here", min_patients=2)
    site = Site(here)
    site.declare(declaration, payload)
    first = answer(site, 1)
    withdraw(here, *sorted(set(site.cohort.patients.tolist())))
    assert released(answer(site, 1)) == released(first)
    assert released(answer(Site(here), 1)) == released(first)


def test_a_site_left_with_too_few_patients_by_those_who_withdrew_charges_and_answers_nothing(
    hospital, declaration, payload, leaving
):
    here = hospital("here", min_patients=len(np.unique(Site(hospital("count")).cohort.patients)) - 1)
    site = Site(here)
    site.declare(declaration, payload)
    withdraw(here, leaving[0])
    answer(site, 0)
    withdraw(here, leaving[1])
    before = kinds(here)
    for one in (site, Site(here)):
        with pytest.raises(DataError, match=r"withdrawals until \d{4}-\d\d-\d\d left .* min_patients"):
            answer(one, 1)
        with pytest.raises(DataError, match="takes no further part"):
            one.declare(replace(declaration, run_id="run2"), payload)
    assert [kind for kind in kinds(here)[len(before) :] if kind != "enrolled"] == []


def test_moments_that_an_optimizer_kept_begin_anew_when_a_patient_withdraws(hospital, declaration, payload, leaving):
    asked = replace(declaration, **WAYS["kept-optimizer"])
    changed = {"optimizer": "adamw", "learning_rate": 0.01}
    here, untouched = hospital("here"), hospital("untouched")
    sites = Site(here), Site(untouched)
    for site, described in zip(sites, (here, untouched), strict=True):
        site.declare(asked, payload)
        answer(site, 1, **changed)
        # A patient of neither cohort: what the site does must not say whose withdrawal it was.
        withdraw(described, "somebody else") if site is sites[0] else None
    fresh = Site(untouched)
    assert released(answer(sites[0], 2, **changed)) == released(answer(fresh, 2, **changed))
    assert released(answer(sites[0], 3, **changed)) == released(answer(fresh, 3, **changed))


def test_synthetic_images_stay_in_the_draw_when_a_patient_withdraws(small, store, hospital, public_start, leaving):
    settings = compose_settings([*small, "synthesis.use=[whiten,augment]", "privacy.mechanism=dp_sgd"]).settings
    start = make_public_start(settings, public_start[0], cache=store)
    asked = replace(declare_run(settings, public_start[0], start, run_id="run1"), noise_seed=SEED)
    asked = replace(asked, noise="secure")
    here, never = hospital("here"), hospital("never", without=leaving)
    withdraw(here, *leaving)
    replies = []
    for described in (here, never):
        site = Site(described)
        site.declare(asked, start.payload.flatten())
        replies.append(released(answer(site, 1)))
    assert replies[0] == replies[1]


def masked_round(site: Site, described: SiteFile, terms, others: dict[str, MaskedSums], roster: Roster) -> Update:
    own = MaskedSums(Path(described.folder) / "runs" / "run1", "north")
    dealt = {"north": own.shares(roster).parcels} | {name: each.shares(roster).parcels for name, each in others.items()}
    return answer(site, terms.round_index, parcels_for("north", dealt, tuple(sorted(dealt))))


@pytest.mark.parametrize("aggregation", ["masks", "shared_noise"])
def test_a_patient_who_withdrew_has_no_part_in_a_masked_sum(hospital, declaration, payload, leaving, tmp_path, aggregation):
    """The same keys in both worlds, so that their masks are the same bits."""
    asked = replace(declaration, aggregation=aggregation, min_survivors=3)
    policy = {"aggregation": ("masks", "shared_noise"), "most_noise_shares": 8}
    here, never = hospital("here", **policy), hospital("never", without=leaving, **policy)
    terms = asked.terms(1)
    others = {name: MaskedSums(tmp_path / name, name) for name in ("east", "south")}
    own = MaskedSums(Path(here.folder) / "runs" / "run1", "north")
    roster = Roster(terms=terms, members=(others["east"].keys(terms), own.keys(terms), others["south"].keys(terms)))
    (Path(never.folder) / "runs" / "run1").mkdir(parents=True)
    shutil.copytree(Path(here.folder) / "runs" / "run1" / "secure", Path(never.folder) / "runs" / "run1" / "secure")
    sites = Site(here), Site(never)
    for site in sites:
        site.declare(asked, payload)
    withdraw(here, *leaving)
    mine = masked_round(sites[0], here, terms, others, roster)
    secure = [Path(one.folder) / "runs" / "run1" / "secure" for one in (here, never)]
    shutil.rmtree(secure[1])
    shutil.copytree(secure[0], secure[1])
    theirs = masked_round(sites[1], never, terms, others, roster)
    assert len(mine.masked) == DIMS + 1
    assert released(mine) == released(theirs)


def test_no_descriptor_is_made_of_a_patient_who_withdrew(hospital, declaration, payload, leaving, store, tmp_path, monkeypatch):
    """The cache was removed after the withdrawal, as its remedy says."""
    here = replace(hospital("here"), cache=str(tmp_path / "emptied"))
    withdraw(here, *leaving)
    seen: list[np.ndarray] = []
    compute = Extractor.compute

    def watched(self, pixels, **named):
        seen.append(np.array(pixels))
        return compute(self, pixels, **named)

    monkeypatch.setattr(Extractor, "compute", watched)
    site = Site(here)
    site.declare(declaration, payload)
    answer(site, 1)
    gone = np.isin(site.cohort.patients, leaving)
    (pixels,) = [each for each in seen if len(each) == len(gone)]
    assert not pixels[gone].any()
    assert pixels[~gone].any(axis=(1, 2)).all()


def test_two_folders_of_a_site_on_one_ledger_leave_out_who_withdrew_at_either(
    hospital, declaration, payload, leaving, tmp_path
):
    here, never = hospital("here"), hospital("never", without=leaving)
    second = replace(here, folder=str(tmp_path / "second"))
    running = Site(here), Site(never)
    for site in running:
        site.declare(declaration, payload)
    withdraw(second, *leaving)
    assert released(answer(running[0], 1)) == released(answer(running[1], 1))


def test_a_site_forgets_no_withdrawal_when_its_ledger_is_put_back_from_before(
    hospital, declaration, payload, leaving, tmp_path
):
    here = hospital("here")
    site = Site(here)
    site.declare(declaration, payload)
    older = shutil.copytree(here.ledger, tmp_path / "older")
    withdraw(here, *leaving)
    shutil.rmtree(here.ledger)
    shutil.copytree(older, here.ledger)
    for one in (site, Site(here)):
        with pytest.raises(LedgerError, match="does not hold the entry"):
            answer(one, 1)


def test_a_process_that_is_slow_puts_back_no_head_from_before_a_withdrawal(hospital, leaving):
    here = hospital("here")
    memory = LedgerMemory(Path(here.folder) / "ledger-head")
    with site_ledger(here, usual="gdp") as slow:
        slow.head()
        withdraw(here, *leaving)
        remembered = (Path(here.folder) / "ledger-head").read_text()
        memory.keep(slow)
    assert (Path(here.folder) / "ledger-head").read_text() == remembered
    assert int(remembered.split(":")[0]) == 1
