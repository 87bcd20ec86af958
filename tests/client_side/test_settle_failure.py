"""A reply that could not be stored: nothing that its attempt made survives, in memory or on the disk, however it failed."""

from __future__ import annotations

import errno
import pickle
import random
import resource
import secrets
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mammo_fed.client import charging
from mammo_fed.client.charging import Charge, charged_once
from mammo_fed.client.policy import SiteFile
from mammo_fed.client.rounds import site as site_module
from mammo_fed.client.rounds.site import Site
from mammo_fed.data.cache import ArrayCache
from mammo_fed.data.run_cohorts import load_pool
from mammo_fed.errors import LedgerError
from mammo_fed.federation.protocol.replies import Refusal, Update
from mammo_fed.federation.protocol.secure_messages import Question
from mammo_fed.federation.protocol.task import Declaration, RoundTask
from mammo_fed.federation.public_start import make_public_start
from mammo_fed.federation.secure_aggregation.double_masks import Roster, parcels_for
from mammo_fed.models.classifier import extractor_spec
from mammo_fed.models.features import Extractor
from mammo_fed.models.heads import HeadSpec
from mammo_fed.privacy.events import PrivacyEvent
from mammo_fed.privacy.ledger.journal import HeadFile, Journal
from mammo_fed.privacy.ledger.ledger import Ledger
from mammo_fed.privacy.noise import FloatDraws
from mammo_fed.server.run import declare_run, share_of
from mammo_fed.settings.compose import compose_settings
from mammo_fed.simulations.launch import site_file
from mammo_fed.training.local import LocalSteps, SiteFeatures, train_head

DIMS = 20


@pytest.fixture(scope="module")
def settings(small):
    return compose_settings([*small]).settings


@pytest.fixture(scope="module")
def store(cache) -> ArrayCache:
    return ArrayCache(cache)


@pytest.fixture(scope="module")
def start(settings, store):
    extractor = Extractor(extractor_spec(settings.model, seed=0), cache=store)
    return extractor, make_public_start(settings, extractor, cache=store)


@pytest.fixture(scope="module")
def whitening(start) -> np.ndarray:
    return start[1].payload.flatten()


@pytest.fixture(scope="module")
def kept(settings, start) -> Declaration:
    """A run whose sites keep AdamW's moments; its noise can be drawn again, so that two sites can be compared."""
    declared = declare_run(settings, *start, run_id="run1")
    return replace(declared, mechanism="dp_sgd", batch_size=32, keep_optimizer=True, noise_seed=3)


@pytest.fixture
def file_in(settings, store) -> Callable[[Path], SiteFile]:
    pool = load_pool(settings.data, share_of(settings), cache=store)
    return lambda folder: site_file(settings, pool, 2, folder=folder, cache=store)


@pytest.fixture
def site(file_in, tmp_path, kept, whitening) -> Site:
    """A site that has answered the mean and one round."""
    return begun(file_in(tmp_path / "here"), kept, whitening)


def begun(file: SiteFile, declaration: Declaration, payload: np.ndarray) -> Site:
    opened = Site(file)
    opened.declare(declaration, payload)
    for index in (0, 1):
        answer(opened, index)
    return opened


def answer(site: Site, index: int) -> Update | Refusal:
    task = RoundTask(
        run_id="run1",
        round_index=index,
        kind="train" if index else "mean",
        learning_rate=0.1,
        weight_decay=0.0,
        optimizer="adamw",
        label_smoothing=0.0,
        proximal=0.0,
    )
    return site.round(task, np.zeros(DIMS, np.float32), np.zeros(DIMS + 1 if index else DIMS, np.float32))


def moments(site: Site) -> bytes:
    """What the site keeps of the run's optimizer, to the last bit."""
    # After the last round nothing is kept.
    state = site._prepared["run1"].optimizer if "run1" in site._prepared else None
    values = {
        place: {name: np.asarray(value).tobytes() for name, value in each.items()}
        for place, each in (state or {}).get("optimizer", {}).items()
    }
    return pickle.dumps(sorted((place, sorted(each.items())) for place, each in values.items()))


def files(folder: Path) -> dict[str, bytes]:
    """Everything below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def beside_ledger(folder: Path) -> dict[str, bytes]:
    """A site's files but for its ledger, which gets an entry for every attempt, and what it remembers of the ledger's end."""
    return {name: content for name, content in files(folder).items() if not name.startswith("ledger")}


@contextmanager
def full_database(monkeypatch) -> Iterator[None]:
    """SQLite itself finds the disk full when the reply comes, and not before."""
    append = Journal.append

    def limited(journal, kind, details, *, reply=None):
        if reply is not None:
            pages = journal._database.execute("PRAGMA page_count").fetchone()[0]
            journal._database.execute(f"PRAGMA max_page_count = {pages}")
            reply = reply + bytes(1 << 16)
        return append(journal, kind, details, reply=reply)

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "append", limited)
        yield


@contextmanager
def full_disk(monkeypatch, *, frames: int) -> Iterator[None]:
    """The disk takes so many pages of the transaction that settles, and no more: a write is cut off within the commit."""
    append = Journal.append

    def limited(journal, kind, details, *, reply=None):
        if reply is None:
            return append(journal, kind, details)
        path = Path(journal._database.execute("PRAGMA database_list").fetchone()[2] + "-wal")
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + frames * 4120 + 100, hard))
        try:
            return append(journal, kind, details, reply=reply)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "append", limited)
        yield


@contextmanager
def failing(monkeypatch, owner: Any, name: str, error: BaseException) -> Iterator[None]:
    def fail(*_: object, **__: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, fail)
        yield


@contextmanager
def failing_with_reply(monkeypatch, error: BaseException) -> Iterator[None]:
    """The journal fails for the entry that settles, before it is written."""
    append = Journal.append

    def fail(journal, kind, details, *, reply=None):
        if reply is not None:
            raise error
        return append(journal, kind, details)

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "append", fail)
        yield


BEFORE_STORED = {
    "disk full in sqlite": full_database,
    "disk full before a page of the commit": lambda patch: full_disk(patch, frames=0),
    "disk full within the commit": lambda patch: full_disk(patch, frames=1),
    "disk full": lambda patch: failing_with_reply(patch, OSError(errno.ENOSPC, "full")),
    "read only": lambda patch: failing_with_reply(patch, OSError(errno.EROFS, "read only")),
    "input or output": lambda patch: failing_with_reply(patch, OSError(errno.EIO, "broken")),
    "database locked": lambda patch: failing_with_reply(patch, sqlite3.OperationalError("database is locked")),
    "out of memory": lambda patch: failing_with_reply(patch, MemoryError()),
    "interrupted": lambda patch: failing_with_reply(patch, KeyboardInterrupt()),
    "process told to end": lambda patch: failing_with_reply(patch, SystemExit(1)),
    "settle refuses": lambda patch: failing(patch, Ledger, "settle", LedgerError("another reply")),
    "interrupted while training": lambda patch: failing(patch, site_module, "reply_to_bytes", KeyboardInterrupt()),
}


@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize("fault", BEFORE_STORED)
def test_settle_failure_of_every_kind_leaves_the_site_as_it_was(
    site, file_in, kept, whitening, tmp_path, monkeypatch, fault, times
):
    before, folder = moments(site), Path(site.file.folder)
    kept_files = beside_ledger(folder)
    for _ in range(times):
        with BEFORE_STORED[fault](monkeypatch), pytest.raises(BaseException) as caught:  # noqa: PT011, many kinds
            answer(site, 2)
        assert not isinstance(caught.value, AssertionError)
        assert moments(site) == before
        assert beside_ledger(folder) == kept_files
    untouched = begun(file_in(tmp_path / "there"), kept, whitening)
    for index in (2, 3):
        mine, other = answer(site, index), answer(untouched, index)
        assert mine.parameters.tobytes() == other.parameters.tobytes()
        assert moments(site) == moments(untouched)


def test_settle_failure_leaves_no_byte_of_its_reply_on_the_disk(site, monkeypatch, tmp_path):
    """Without an injected seed each attempt has noise of its own: two draws for one charge must not both lie somewhere."""
    made: list[np.ndarray] = []
    pack = site_module.reply_to_bytes

    def seen(reply):
        if isinstance(reply, Update):
            made.append(reply.parameters)
        return pack(reply)

    prepared = site._prepared["run1"]
    site._prepared["run1"] = replace(prepared, declaration=replace(prepared.declaration, noise_seed=None))
    monkeypatch.setattr(site_module, "reply_to_bytes", seen)
    faults = [name for name in BEFORE_STORED if name.startswith("disk full") or name == "interrupted"]
    for number, fault in enumerate(faults, 1):
        with BEFORE_STORED[fault](monkeypatch), pytest.raises((LedgerError, KeyboardInterrupt)):
            answer(site, 2)
        assert len(made) == number
        # A few numbers in a row are enough to know a reply by, wherever a page of a database may begin.
        pieces = [each.tobytes()[start : start + 16] for each in made for start in range(0, 4 * DIMS - 16, 16)]
        everything = b"".join(files(tmp_path).values())
        assert [piece for piece in pieces if piece in everything] == []
    sent = answer(site, 2)
    assert made[-1].tobytes() == sent.parameters.tobytes()
    assert sent.parameters.tobytes() in b"".join(files(tmp_path).values())


def test_settle_failure_touches_no_random_numbers_that_another_attempt_draws_from(site, monkeypatch):
    def states() -> tuple[Any, ...]:
        return random.getstate(), pickle.dumps(np.random.get_state()), torch.get_rng_state().numpy().tobytes()  # noqa: NPY002

    before = states()
    with BEFORE_STORED["disk full"](monkeypatch), pytest.raises(LedgerError):
        answer(site, 2)
    assert states() == before


def test_settle_failure_after_the_reply_was_stored_sends_it_and_forgets_its_moments(site, monkeypatch):
    """Commit and head file are two writes: where the second fails, the reply is there, and is the only one for this task."""
    before = moments(site)
    append = Journal.append

    def headless(journal, kind, details, *, reply=None):
        if reply is None:
            return append(journal, kind, details)
        with failing(monkeypatch, HeadFile, "write", OSError(errno.ENOSPC, "full")):
            return append(journal, kind, details, reply=reply)

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "append", headless)
        with pytest.raises(LedgerError):
            answer(site, 2)
    assert moments(site) == before
    with monkeypatch.context() as patch:
        patch.setattr(site_module.Release, "plain", lambda *_: pytest.fail("it trained again"))
        first, again = answer(site, 2), answer(site, 2)
    assert first.parameters.tobytes() == again.parameters.tobytes()
    # Behind the noise of rounds that were paid for, the moments are an older round's, and privacy rests on none of them.
    assert moments(site) == before
    assert isinstance(answer(site, 3), Update)


def test_settle_failure_of_what_comes_after_it_loses_no_reply_and_repeats_no_step(
    site, file_in, kept, whitening, tmp_path, monkeypatch
):
    """The bytes are stored, and something fails on their way out: the moments are those of the stored reply, once."""
    for owner, name in ((site_module, "reply_from_bytes"), (charging.LedgerMemory, "keep")):
        index = 2 if name == "reply_from_bytes" else 3
        with failing(monkeypatch, owner, name, OSError(errno.EIO, "broken")), pytest.raises(OSError, match="broken"):
            answer(site, index)
        after = moments(site)
        answer(site, index)
        # Behind the last round nothing is kept.
        assert moments(site) == (after if index == 2 else pickle.dumps([]))
    untouched = begun(file_in(tmp_path / "there"), kept, whitening)
    for index in (2, 3):
        answer(untouched, index)
    assert moments(site) == moments(untouched)


def test_settle_failure_by_a_killed_process_leaves_the_next_one_with_a_fresh_optimizer(
    site, file_in, kept, whitening, tmp_path
):
    """Whatever the first process held is gone; the second sends the stored reply, and trains on from nothing."""
    stored = answer(site, 2)
    restarted = Site(site.file)
    assert answer(restarted, 2).parameters.tobytes() == stored.parameters.tobytes()
    assert not restarted._prepared
    fresh = answer(restarted, 3)
    untouched = begun(file_in(tmp_path / "there"), kept, whitening)
    assert answer(untouched, 2).parameters.tobytes() == stored.parameters.tobytes()
    assert fresh.parameters.tobytes() != answer(untouched, 3).parameters.tobytes()


def test_settle_failure_shares_no_tensor_between_what_is_kept_and_an_attempt(site, monkeypatch):
    """Two rounds: what the optimizer of the second changed in place was a copy, all the way down."""
    held = {id(value): value.clone() for value in tensors(site._prepared["run1"].optimizer)}
    kept = tensors(site._prepared["run1"].optimizer)
    with BEFORE_STORED["disk full"](monkeypatch), pytest.raises(LedgerError):
        answer(site, 2)
    assert held
    assert all(torch.equal(value, held[id(value)]) for value in kept)
    answer(site, 2)
    assert all(torch.equal(value, held[id(value)]) for value in kept)
    assert {value.data_ptr() for value in tensors(site._prepared["run1"].optimizer)}.isdisjoint(
        {value.data_ptr() for value in kept}
    )


def tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    parts = value.values() if isinstance(value, dict) else ()
    return [tensor for part in parts for tensor in tensors(part)]


@pytest.mark.parametrize("use", ["masks", "shared_noise"])
def test_settle_failure_of_a_masked_sum_leaves_its_secrets_and_makes_one_vector_only(
    small, store, start, tmp_path, monkeypatch, use
):
    """Two vectors under the same masks would give away their difference: the one that failed is nowhere."""
    chosen = compose_settings([*small, f"federation.secure.use={use}"]).settings
    declaration, payload = declare_run(chosen, *start, run_id="run1"), start[1].payload.flatten()
    pool = load_pool(chosen.data, share_of(chosen), cache=store)
    sites = [Site(site_file(chosen, pool, index, folder=tmp_path, cache=store)) for index in range(4)]
    for each in sites:
        each.declare(declaration, payload)

    def ask(each, stage, roster=None):
        question = Question(stage=stage, run_id="run1", round_index=0, roster=roster, survivors=())
        return each.masked_sum_stage(question)

    roster = Roster(terms=declaration.terms(0), members=tuple(ask(each, "keys").member for each in sites))
    dealt = {each.file.site: ask(each, "shares", roster).parcels for each in sites}
    site, made = sites[0], []
    parcels = parcels_for(site.file.site, dealt, tuple(dealt))
    task = RoundTask(
        run_id="run1",
        round_index=0,
        kind="mean",
        learning_rate=1.0,
        weight_decay=0.0,
        optimizer="sgd",
        label_smoothing=0.0,
        proximal=0.0,
    )
    pack = site_module.reply_to_bytes

    def seen(reply):
        if isinstance(reply, Update):
            made.append(reply.masked)
        return pack(reply)

    monkeypatch.setattr(site_module, "reply_to_bytes", seen)
    zeros = np.zeros(DIMS, np.float32)
    with BEFORE_STORED["disk full"](monkeypatch), pytest.raises(LedgerError):
        site.round(task, zeros, zeros, parcels)
    secrets_before = files(Path(site.file.folder) / "runs")
    sent = site.round(task, zeros, zeros, parcels)
    assert files(Path(site.file.folder) / "runs") == secrets_before
    assert [np.array_equal(each, sent.masked) for each in made] == [False, True]
    everything = b"".join(files(tmp_path).values())
    assert made[0].tobytes()[:32] not in everything


class NoLedger:
    """A ledger in memory that cannot store a reply the first few times."""

    def __init__(self, failures: int) -> None:
        self.failures = failures

    def stored_reply(self, **_: object) -> None:
        return None

    def reserve(self, **_: object) -> None:
        return None

    def settle(self, *_: object) -> None:
        if self.failures:
            self.failures -= 1
            raise LedgerError("the disk is full")


# Noise for which two rounds of one full-batch step have a mu of .5 together.
NOISE = 2 * np.sqrt(2.0)
PATIENTS, TRIALS = 256, 10


def two_rounds(failures: int) -> np.ndarray:
    """What a server sees of two rounds with AdamW in a range where its steps are linear: shape (rounds, patients).

    Each patient has a direction alone, and every other one is absent; the first round fails `failures` times.
    """
    features = np.eye(PATIENTS, dtype=np.float32)
    features[1::2] = 0
    # So many public images that AdamW's division by its second moment is one by its epsilon.
    data = SiteFeatures(features=features, labels=np.ones(PATIENTS, np.int64), units=np.arange(PATIENTS), public_images=10**14)
    event = PrivacyEvent(
        mechanism="gradient",
        noise_multiplier=NOISE,
        steps=1,
        sample_rate=1.0,
        unit="patient",
        clipping_norm=0.1,
        max_images_per_patient=1,
    )
    head = HeadSpec(kind="linear", dims=PATIENTS, bias_scale=0.0)
    state: dict[str, Any] = {}
    ledger, seen = NoLedger(failures), []

    def train(attempt):
        draws = FloatDraws(generator=np.random.default_rng(secrets.randbits(128)))
        return train_head(
            data,
            np.zeros(PATIENTS + 1, np.float32),
            head=head,
            feature_mean=np.zeros(PATIENTS, np.float32),
            steps=LocalSteps(learning_rate=1.0, weight_decay=0.0, optimizer="adamw", label_smoothing=0.0, proximal=0.0),
            event=event,
            closed_form=False,
            noise=draws,
            sampling=draws,
            state=attempt,
        ).tobytes()

    for index in range(2):
        while len(seen) == index:
            try:
                charge = Charge(run_id="run1", round_index=index, task_hash="task", events=(event,))
                reply = charged_once(ledger, charge, train=train, failed=None, state=state)
                seen.append(np.frombuffer(reply, np.float32)[:PATIENTS].astype(np.float64))
            except LedgerError:
                continue
    return np.array(seen)


def measured_mu(failures: int) -> float:
    """Distance of present from absent patients along the best linear combination of both replies, in standard deviations."""
    replies = np.concatenate([two_rounds(failures) for _ in range(TRIALS)], axis=1)
    absent = np.arange(replies.shape[1]) % PATIENTS % 2 == 1
    apart = replies[:, ~absent].mean(axis=1) - replies[:, absent].mean(axis=1)
    spread = (np.cov(replies[:, ~absent]) + np.cov(replies[:, absent])) / 2
    return float(np.sqrt(apart @ np.linalg.solve(spread, apart)))


# Of a mu of .5 measured on 10 * 128 patients of each kind: about sqrt(2 / 1280).
ERROR = 0.04


def test_settle_failure_lets_no_matched_filter_see_more_than_was_declared():
    assert measured_mu(0) == pytest.approx(0.5, abs=4 * ERROR)
    assert measured_mu(4) < 0.5 + 4 * ERROR


def test_settle_failure_mutation_of_moments_that_survive_it_is_caught_by_the_matched_filter(monkeypatch):
    """The check has teeth: where attempts share their state, four failures show more than twice what was declared."""
    monkeypatch.setattr(charging.copy, "deepcopy", lambda state: state)
    assert measured_mu(4) > 0.8
