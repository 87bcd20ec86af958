"""Federations whose updates are added up under masks: equal to the plain sum, whoever drops out, and no update is ever seen."""

from __future__ import annotations

import gc
import logging
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from mammo_fed.client.rounds.app import app
from mammo_fed.data.cache import ArrayCache
from mammo_fed.data.run_cohorts import load_pool
from mammo_fed.errors import RunFailed
from mammo_fed.federation.protocol.messages import SECURE, read_reply, read_task
from mammo_fed.federation.protocol.secure_messages import read_question
from mammo_fed.federation.secure_aggregation.opening import WEIGHTED_STEPS
from mammo_fed.models.classifier import Classifier, read_classifier
from mammo_fed.privacy.ledger.report import show_ledger
from mammo_fed.privacy.noise import GRID_STEPS
from mammo_fed.reporting.record.record import Record, read_record
from mammo_fed.server.app import make_app
from mammo_fed.server.rounds.rounds import Deployment
from mammo_fed.server.rounds.run_state import CheckpointFolder
from mammo_fed.server.rounds.secure_sum import SecureSum
from mammo_fed.server.run import Hooks, run_federation, share_of
from mammo_fed.settings import Settings
from mammo_fed.settings.compose import compose_settings
from mammo_fed.simulations.in_process import InProcessGrid, run_in_process
from mammo_fed.simulations.launch import site_file

# The average, as under masks: five sites in plaintext would be compared with each other.
FIVE = (
    *("federation.num_sites=5", "federation.secure.min_survivors=3", "privacy.noise_seed=5", "federation.rounds=2"),
    "federation.strategy=FedAvg",
)
# A quantised update is half a step off in every coordinate; the model is written in float32.
FLOAT = 1e-5


@dataclass
class Watch:
    """What passes between the server and its sites; it can lose and change messages.

    Attributes:
      loses: whether a site's answer in a stage ("declare", "keys", "shares", "masked", "unmask") of a round is lost.
      changes: what becomes of an answer on its way; None leaves it.
      contents: everything that reached the server, in order.
      updates: by (site, round), the float32 update where it travels in clear, and the array that the site was sent.
      at_unmask: called while the server holds all masked updates of a round.
    """

    loses: Callable[[str, str, int], bool] = lambda site, stage, index: False
    changes: Callable[[str, str, int, RecordDict], RecordDict | None] = lambda site, stage, index, content: None
    contents: list[RecordDict] = field(default_factory=list)
    updates: dict[tuple[str, int], tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    at_unmask: Callable[[], None] = lambda: None


class WatchedApp(ClientApp):
    """The real client app, watched."""

    def __init__(self, watch: Watch) -> None:
        super().__init__()
        self._watch = watch

    def __call__(self, message: Message, context: Context) -> Message:
        site, watch = f"site-{int(context.node_config['partition-id']) + 1}", self._watch
        stage, index = stage_of(message)
        if stage == "unmask":
            watch.at_unmask()
        answer = app(message, context)
        if watch.loses(site, stage, index):
            raise ConnectionError("lost")
        if stage == "masked" and SECURE not in message.content:
            watch.updates[site, index] = (read_reply(answer.content).parameters, read_task(message)[2])
        changed = watch.changes(site, stage, index, answer.content)
        if changed is not None:
            answer = Message(changed, reply_to=message)
        watch.contents.append(answer.content)
        return answer


def stage_of(message: Message) -> tuple[str, int]:
    if message.metadata.message_type == "train":
        return "masked", read_task(message)[0].round_index
    if message.metadata.message_type == "query":
        return "declare", -1
    question = read_question(message.content)
    return question.stage, question.round_index


@dataclass(frozen=True)
class Federation:
    """A finished federation."""

    folder: Path
    record: Record
    model: Classifier
    warnings: str
    log: str


def prepare(settings: Settings, folder: Path, cache: Path) -> dict[str, str]:
    """Site files and the run's configuration."""
    store = ArrayCache(cache)
    pool = load_pool(settings.data, share_of(settings), cache=store)
    sites = folder / "sites"
    sites.mkdir(parents=True)
    for index in range(settings.federation.num_sites):
        site_file(settings, pool, index, folder=folder, cache=store).write(sites / f"site-{index + 1}.json")
    return {"config-json": settings.to_json(), "run-folder": str(folder), "sites-folder": str(sites), "mode": "simulate"}


@pytest.fixture
def federate(small, training, cache, tmp_path, caplog):
    """`federate(watch, "key=value")`: five sites over Flower's real serialisation."""

    def run(watch: Watch, *overrides: str) -> Federation:
        folder = tmp_path / f"run{len(list(tmp_path.iterdir()))}"
        settings = compose_settings([*small, *training, *FIVE, *overrides]).settings
        run_config = prepare(settings, folder, cache)
        caplog.clear()
        caplog.set_level(logging.INFO)
        run_in_process(
            make_app(Hooks()),
            WatchedApp(watch),
            num_sites=settings.federation.num_sites,
            run_config=run_config,
            workers=2,
            wire=True,
        )
        warnings = "\n".join(entry.getMessage() for entry in caplog.records if entry.levelno >= logging.WARNING)
        return Federation(folder, read_record(folder), read_classifier(folder / "model.safetensors"), warnings, caplog.text)

    return run


def masks(*more: str) -> tuple[str, ...]:
    return ("federation.secure.use=masks", *more)


def shared(*more: str) -> tuple[str, ...]:
    return ("federation.secure.use=shared_noise", *more)


def losing(stage: str, *sites: str, index: int = 1) -> Watch:
    """These sites answer in this stage of this round, and their answers are lost."""
    return Watch(loses=lambda site, at, number: (at, number) == (stage, index) and site in sites)


def same_model(one: Federation, other: Federation) -> bool:
    """Equal head and feature mean to what quantisation and single precision leave."""
    return all(
        np.allclose(getattr(one.model, name), getattr(other.model, name), rtol=1e-5, atol=FLOAT)
        for name in ("parameters", "feature_mean")
    )


def test_a_masked_federation_gives_the_plain_one(federate):
    plain, masked = federate(Watch()), federate(Watch(), *masks())
    assert same_model(plain, masked)
    assert masked.warnings == ""
    assert masked.record.privacy.aggregation == "masks"
    epsilons = [site.epsilon for site in masked.record.privacy.sites]
    assert epsilons == [site.epsilon for site in plain.record.privacy.sites]
    assert [site.epsilon_all_colluding for site in masked.record.privacy.sites] == epsilons
    assert masked.record.federation.bytes_up > plain.record.federation.bytes_up


@pytest.mark.parametrize("strategy", ["FedProx", "FedAdam", "FedYogi"])
def test_a_strategy_that_needs_the_average_alone_gives_the_same_under_masks(federate, strategy):
    options = (f"federation.strategy={strategy}", "federation.proximal_mu=0.1", "federation.server_learning_rate=0.1")
    assert same_model(federate(Watch(), *options), federate(Watch(), *masks(*options)))


def test_without_noise_shared_sums_give_the_plain_federation(federate):
    silent = ("privacy.target_epsilon=inf", "privacy.noise_seed=null")
    assert same_model(federate(Watch(), *silent), federate(Watch(), *shared(*silent)))


@pytest.mark.parametrize("lost", [("site-2",), ("site-1", "site-4")], ids=["one", "two"])
@pytest.mark.parametrize("stage", ["keys", "shares", "masked", "unmask"])
def test_sites_that_drop_out_are_missing_from_the_sum_and_nothing_else_changes(federate, stage, lost):
    # Who drops out of the last stage has its update in the sum already.
    plain = federate(losing("masked", *(() if stage == "unmask" else lost)))
    masked = federate(losing(stage, *lost), *masks())
    assert same_model(plain, masked)
    assert masked.record.federation.failed_rounds == ()
    charged = {site.site: site.unanswered for site in masked.record.privacy.sites}
    # Before the masked stage no task was sent: nothing can have been spent.
    assert charged == {site: (1,) if stage == "masked" and site in lost else () for site in charged}
    missing = 3 - (stage in ("keys", "shares"))
    assert {site.site: site.rounds for site in masked.record.privacy.sites} == {
        site: missing - (stage == "masked") if site in lost and stage != "unmask" else 3 for site in charged
    }


@pytest.mark.parametrize("stage", ["keys", "shares", "masked", "unmask"])
def test_a_round_with_too_few_survivors_opens_nothing_is_charged_and_the_next_goes_on(federate, stage):
    lost = ("site-1", "site-2", "site-3")
    federation = federate(losing(stage, *lost), *shared())
    assert federation.record.federation.failed_rounds == (1,)
    assert "round 1 gives no sum: 2 sites" in federation.warnings
    for site in federation.record.privacy.sites:
        own = show_ledger(federation.folder / "sites" / site.site / "ledger", delta=1e-4).accounts[0].epsilon
        assert site.epsilon >= own * (1 - 1e-6)
        assert site.mismatches == ()
    sent = stage in ("masked", "unmask")
    whole = federate(Watch(), *shared())
    assert [
        site.epsilon == pytest.approx(other.epsilon) if sent else site.epsilon < other.epsilon
        for site, other in zip(federation.record.privacy.sites, whole.record.privacy.sites, strict=True)
    ] == [True] * 5


def test_rounds_that_fail_one_after_the_other_end_the_run(federate):
    with pytest.raises(RunFailed, match="3 rounds in a row gave no sum"):
        federate(Watch(loses=lambda site, stage, index: stage == "masked" and site != "site-1"), *masks())


def spoiled(content: RecordDict) -> RecordDict:
    """The same with one digit of every text changed where it holds secrets."""
    copy = RecordDict(dict(content))
    copy[SECURE] = ConfigRecord({"json": str(content[SECURE]["json"]).replace('"share":"', '"share":"0f')})
    return copy


@pytest.mark.parametrize(
    ("stage", "change"),
    [
        ("keys", lambda content: RecordDict({})),
        ("shares", lambda content: RecordDict({SECURE: ConfigRecord({"json": "[]"})})),
        ("unmask", spoiled),
    ],
    ids=["no keys", "no shares", "wrong shares"],
)
def test_a_site_that_answers_with_nonsense_is_left_out_or_found_out(federate, stage, change):
    watch = Watch(
        changes=lambda site, at, index, content: change(content) if (site, at, index) == ("site-5", stage, 1) else None
    )
    federation = federate(watch, *masks())
    assert same_model(federation, federate(losing(stage, "site-5"), *masks()))


def test_a_masked_update_of_the_wrong_length_is_treated_as_lost(federate):
    def shorten(content: RecordDict) -> RecordDict:
        copy = RecordDict(dict(content))
        record = content.array_records["masked"]
        copy["masked"] = type(record)({"flat": Array(record["flat"].numpy()[:-1])})
        return copy

    watch = Watch(
        changes=lambda site, at, index, content: shorten(content) if (site, at, index) == ("site-5", "masked", 1) else None
    )
    federation = federate(watch, *masks())
    assert "site-5 sends a masked update of the wrong shape" in federation.warnings
    assert same_model(federation, federate(losing("masked", "site-5"), *masks()))


def test_a_sum_that_honest_sites_cannot_reach_is_not_taken_in(federate):
    def enlarge(content: RecordDict) -> RecordDict:
        copy = RecordDict(dict(content))
        record = content.array_records["masked"]
        copy["masked"] = type(record)({"flat": Array(record["flat"].numpy() + np.uint64(1 << 58))})
        return copy

    watch = Watch(
        changes=lambda site, at, index, content: enlarge(content) if (site, at, index) == ("site-5", "masked", 2) else None
    )
    federation = federate(watch, *masks())
    assert federation.record.federation.failed_rounds == (2,)
    assert "that honest sites can reach" in federation.warnings


def arrays_in(content: RecordDict) -> Iterator[np.ndarray]:
    for record in content.array_records.values():
        for array in record.values():
            yield array.numpy()
    for record in content.config_records.values():
        for value in record.values():
            if isinstance(value, bytes) and len(value) % 4 == 0:
                yield np.frombuffer(value, np.float32)


def readings(array: np.ndarray) -> Iterator[np.ndarray]:
    """What an array could mean: numbers as they are, or whole numbers on one of the two grids."""
    yield array.astype(np.float64)
    if array.dtype in (np.uint64, np.int64):
        for steps in (WEIGHTED_STEPS, GRID_STEPS):
            yield array.astype(np.uint64).view(np.int64) / steps


def shows(array: np.ndarray, update: np.ndarray) -> bool:
    """Whether a site's update, or a multiple of it, can be read from an array."""
    for reading in readings(array):
        if reading.shape != update.shape or not np.isfinite(reading).all():
            continue
        with np.errstate(over="ignore", invalid="ignore"):
            norms = np.linalg.norm(reading) * np.linalg.norm(update)
        if norms > 0 and np.isfinite(norms) and abs(float(reading @ update)) / norms > 0.999:
            return True
    return False


def held_by_the_server() -> list[np.ndarray]:
    """Every array that can be reached from a sum at the server, but for the sites, which share this process with it."""
    beyond = (InProcessGrid, ClientApp, type, types.ModuleType, types.FrameType)
    # By type: isinstance() would ask lazy objects for what they stand for.
    pending: list[object] = [each for each in gc.get_objects() if type(each) is SecureSum]
    seen: dict[int, object] = {}
    while pending:
        each = pending.pop()
        if id(each) in seen or issubclass(type(each), beyond):
            continue
        seen[id(each)] = each
        # The globals of a function would lead everywhere, to the sites too.
        pending.extend(each.__closure__ or () if type(each) is types.FunctionType else gc.get_referents(each))
    return [each for each in seen.values() if type(each) is np.ndarray]


def test_the_server_neither_receives_nor_holds_a_single_update_in_clear(federate):
    clear = Watch()
    plain = federate(clear)
    watch, held = Watch(), list[np.ndarray]()
    watch.at_unmask = lambda: held.extend(held_by_the_server())
    masked = federate(watch, *masks())
    assert same_model(plain, masked)
    assert len(clear.updates) == 15
    changes = [arrays.astype(np.float64) - sent for arrays, sent in clear.updates.values()]
    wholes = [arrays.astype(np.float64) for arrays, _ in clear.updates.values()]
    received = [array for content in watch.contents for array in arrays_in(content)]
    # It does hold the masked vectors at that moment, so the search finds what is there.
    assert sum(array.dtype == np.uint64 and array.size in (20, 21) for array in held) >= 5
    for array in (*received, *held):
        assert not any(shows(array, update) for update in (*changes, *wholes))
    # And the very same search finds every update of the plain run.
    in_clear = [array for content in clear.contents for array in arrays_in(content)]
    assert all(any(shows(array, whole) for array in in_clear) for whole in wholes)
    for whole in wholes:
        assert str(float(whole[0])) not in masked.log


class PowerCut(Exception):
    """The server's process ends."""


class MortalGrid(InProcessGrid):
    """The server dies as it asks for the shares of round 1."""

    def push_messages(self, messages):
        messages = list(messages)
        if any(stage_of(message) == ("unmask", 1) for message in messages):
            raise PowerCut
        return super().push_messages(messages)


def test_a_server_that_died_within_a_sum_goes_on_with_the_next_round_and_charges_the_lost_one(small, training, cache, tmp_path):
    settings = compose_settings([*small, *training, *FIVE, *shared()]).settings
    run_config = prepare(settings, tmp_path, cache)
    checkpoints = CheckpointFolder(tmp_path / "state")
    deployment = Deployment(checkpoints=checkpoints, roster=dict)

    def serve(kind: type[InProcessGrid]) -> Record:
        grid = kind(app, num_sites=5, run_config=run_config, workers=2, wire=False)
        try:
            return run_federation(grid, settings, tmp_path, mode="simulate", hooks=Hooks(), deployment=deployment)
        finally:
            grid.close()

    with pytest.raises(PowerCut):
        serve(MortalGrid)
    left = checkpoints.read()
    assert left is not None
    assert (left.round_done, left.round_begun) == (0, 1)
    record = serve(InProcessGrid)
    assert record.federation.failed_rounds == (1,)
    for site in record.privacy.sites:
        assert (site.unanswered, site.rounds, site.mismatches) == ((1,), 2, ())
        own = show_ledger(tmp_path / "sites" / site.site / "ledger", delta=1e-4).accounts[0].epsilon
        assert site.epsilon == pytest.approx(own, rel=1e-5)


def test_a_record_names_the_threat_model_and_what_others_see(federate):
    federation = federate(Watch(), *shared("privacy.noise_seed=null"))
    privacy = federation.record.privacy
    assert (privacy.aggregation, privacy.min_survivors, privacy.colluders) == ("shared_noise", 3, 0)
    assert "against a server that controls no other site and opens sums of at least 3 sites only" in privacy.guarantee
    assert "noise in shares of 3 sites" in privacy.mechanism
    for site in privacy.sites:
        assert site.epsilon < site.epsilon_other_site < site.epsilon_all_colluding
    assert "a server that controls all other sites" in privacy.not_covered[0]
    assert read_record(federation.folder) == federation.record
