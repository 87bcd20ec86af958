"""What the first version of the protocol left behind is read on; what it sends is refused with both versions named."""

from __future__ import annotations

import base64
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from safetensors.numpy import load_file

from mammo_fed.client.policy import SiteFile, read_site_file
from mammo_fed.client.rounds.app import app
from mammo_fed.client.rounds.site import Site
from mammo_fed.data.cache import ArrayCache
from mammo_fed.data.run_cohorts import load_pool
from mammo_fed.errors import VersionMismatch
from mammo_fed.federation.flwr_internals.messages import become_server
from mammo_fed.federation.protocol.messages import pack_reply, read_declaration, read_reply, read_task, reason_of, version_of
from mammo_fed.federation.protocol.replies import Refusal, Update
from mammo_fed.federation.protocol.secure_messages import read_answer, read_question
from mammo_fed.federation.protocol.task import PROTOCOL_VERSION, Declaration, RoundTask
from mammo_fed.federation.public_start import make_extractor, make_public_start
from mammo_fed.privacy.ledger.report import show_ledger, verify_ledger
from mammo_fed.reporting.record.record import read_record
from mammo_fed.server.rounds.rounds import Deployment
from mammo_fed.server.rounds.run_state import CheckpointFolder
from mammo_fed.server.run import Hooks, run_federation, share_of
from mammo_fed.settings import Settings
from mammo_fed.settings.compose import compose_settings
from mammo_fed.simulations.in_process import run_in_process
from mammo_fed.simulations.launch import site_file
from mammo_fed.training.recipe import resolve

STORED = Path(__file__).with_name("version-1")
INTERRUPTED = STORED / "interrupted"
RUN_ID = json.loads((INTERRUPTED / "declaration.json").read_text(encoding="utf-8"))["run_id"]


@pytest.fixture(scope="module")
def settings() -> Settings:
    return compose_settings((STORED / "settings.txt").read_text(encoding="utf-8").split()).settings


@pytest.fixture
def folder(settings, cache, tmp_path) -> Path:
    """The folder of the interrupted run, with the sites' files as they are for this machine."""
    shutil.copytree(INTERRUPTED, tmp_path, dirs_exist_ok=True)
    # A ledger is its owner's alone, which a checkout does not keep.
    for path in (tmp_path / "sites").rglob("*"):
        path.chmod(0o700 if path.is_dir() else 0o600)
    store = ArrayCache(cache)
    pool = load_pool(settings.data, share_of(settings), cache=store)
    for index in range(2):
        described = site_file(settings, pool, index, folder=tmp_path, cache=store)
        described.write(tmp_path / "sites" / f"site-{index + 1}.json")
        memory = tmp_path / "sites" / described.site / "runs" / RUN_ID
        memory.mkdir(parents=True)
        for name in ("declaration.json", "payload.npy"):
            shutil.copy(INTERRUPTED / name, memory)
    return tmp_path


@pytest.fixture
def described(settings, folder, cache) -> SiteFile:
    """The file of the first site."""
    store = ArrayCache(cache)
    return site_file(settings, load_pool(settings.data, share_of(settings), cache=store), 0, folder=folder, cache=store)


def message(name: str) -> Message:
    """A stored message as Flower rebuilds it."""
    stored = json.loads((STORED / "messages" / f"{name}.json").read_text(encoding="utf-8"))
    parts = {key: base64.b64decode(text) for key, text in stored["objects"].items()}
    rebuilt: Any = inflate_object_from_contents(stored["message"], parts)
    return rebuilt


def first_task(settings: Settings) -> RoundTask:
    """The task of the stored run's first training round."""
    return RoundTask(
        run_id=RUN_ID,
        round_index=1,
        kind="train",
        learning_rate=resolve(settings).learning_rate,
        weight_decay=settings.privacy.weight_decay,
        optimizer=settings.privacy.optimizer,
        label_smoothing=settings.privacy.label_smoothing,
        proximal=0.0,
    )


def same_start(settings: Settings, cache: Path) -> bool:
    """Whether this machine computes the public statistics of the machine that the data comes from, to the last bit."""
    extractor = make_extractor(settings, cache=ArrayCache(cache))
    start = make_public_start(settings, extractor, cache=ArrayCache(cache))
    stored = Declaration.from_json((INTERRUPTED / "declaration.json").read_text(encoding="utf-8"))
    return start.payload.whitening.sha256() == stored.whitening_sha256


def test_a_ledger_of_version_1_verifies_to_the_head_that_its_site_remembers(folder):
    for name in ("site-1", "site-2"):
        head = (INTERRUPTED / "sites" / name / "ledger-head").read_text(encoding="ascii").strip()
        assert verify_ledger(folder / "sites" / name / "ledger", reported=head)


def test_a_ledger_of_version_1_returns_its_stored_reply_and_charges_nothing_for_it(settings, folder, described):
    checkpoint = CheckpointFolder(folder / "checkpoint").read()
    before = show_ledger(Path(described.ledger), delta=1e-4).accounts
    updates = []
    for index in (1, 2):
        site = Site(read_site_file(folder / "sites" / f"site-{index}.json"))
        update = site.round(first_task(settings), checkpoint.feature_mean, checkpoint.start)
        assert isinstance(update, Update)
        assert (update.run_id, update.round_index) == (RUN_ID, 1)
        assert [event.mechanism for event in update.events] == ["gradient"]
        updates.append(update)
    # The same patients, too: the ledger's key still gives them the same pseudonyms.
    after = show_ledger(Path(described.ledger), delta=1e-4).accounts
    # Nothing is charged, and nothing else is written.
    assert after == before
    weights = [update.public_images for update in updates]
    average = np.average([update.parameters for update in updates], axis=0, weights=weights)
    np.testing.assert_allclose(average, checkpoint.models[0], rtol=1e-5, atol=1e-6)
    # As any reply, it travels in the version of today.
    assert isinstance(read_reply(pack_reply(updates[0])), Update)


def test_a_ledger_of_version_1_is_charged_on(settings, folder, described):
    checkpoint = CheckpointFolder(folder / "checkpoint").read()
    (account,) = show_ledger(Path(described.ledger), delta=1e-4).accounts
    second = replace(first_task(settings), round_index=2)
    update = Site(described).round(second, checkpoint.feature_mean, checkpoint.models[0])
    assert isinstance(update, Update)
    (later,) = show_ledger(Path(described.ledger), delta=1e-4).accounts
    assert later.epsilon > account.epsilon
    # The cap, which such ledgers did not note, is noted before they are charged again.
    assert account.caps == {}
    assert [cap.max_epsilon for cap in later.caps.values()] == [described.policy.max_epsilon]
    assert update.epsilon == pytest.approx(later.epsilon)
    assert verify_ledger(Path(described.ledger), reported=update.ledger_head)


def test_a_checkpoint_of_version_1_is_resumed_to_the_model_of_the_run_without_a_stop(settings, folder, cache):
    if not same_start(settings, cache):
        pytest.skip("this machine computes other public statistics than the one that the checkpoint comes from")
    made = ServerApp()

    @made.main()
    def main(grid: Grid, context: Context) -> None:
        deployment = Deployment(checkpoints=CheckpointFolder(folder / "checkpoint"), roster=dict)
        run_federation(
            grid,
            replace(settings, engine=replace(settings.engine, cache=str(cache))),
            folder,
            mode="deploy",
            hooks=Hooks(),
            deployment=deployment,
        )

    run_in_process(made, app, num_sites=2, run_config={"sites-folder": str(folder / "sites")}, workers=1, wire=True)
    record = read_record(folder)
    assert record.run_id == RUN_ID
    assert [site.rounds for site in record.privacy.sites] == [4, 4]
    stored = read_record(STORED / "finished")
    assert [site.epsilon for site in record.privacy.sites] == [site.epsilon for site in stored.privacy.sites]
    finished, model = load_file(STORED / "finished" / "model.safetensors"), load_file(folder / "model.safetensors")
    for name in ("head", "centre"):
        np.testing.assert_array_equal(model[name], finished[name])
    assert not (folder / "checkpoint").exists()


def test_a_declaration_of_version_1_is_read_also_where_later_fields_are_missing(folder):
    stored = CheckpointFolder(folder / "checkpoint").read()
    declaration = Declaration.from_json(stored.declaration)
    assert Declaration.from_json(declaration.to_json()) == declaration
    fewer = json.loads(stored.declaration)
    for name in ("network_size", "aggregation", "min_survivors", "colluders"):
        del fewer[name]
    assert Declaration.from_json(json.dumps(fewer)) == declaration


def test_a_record_of_version_1_is_shown(cli, tmp_path):
    record = read_record(STORED / "finished")
    runs = [tmp_path / name for name in ("first", "second")]
    for run in runs:
        shutil.copytree(STORED / "finished", run)
    code, out, err = cli("report", runs[0])
    assert code == 0, err
    assert record.privacy.guarantee.split()[0] in out
    assert all(site.site in out for site in record.privacy.sites)
    code, _, err = cli("report", *runs, "--output", tmp_path / "both.html")
    assert code == 0, err
    assert record.run_id in (tmp_path / "both.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("declaration", read_declaration),
        ("task", read_task),
        ("question", lambda message: read_question(message.content)),
        ("reply", lambda message: read_reply(message.content)),
        ("answer", lambda message: read_answer(message.content)),
    ],
)
def test_version_1_is_told_by_every_message_without_a_version(name, read):
    stored = message(name)
    assert version_of(stored.content) == 1
    with pytest.raises(VersionMismatch, match=f"version 1 of the protocol and this one version {PROTOCOL_VERSION}"):
        read(stored)


@pytest.mark.parametrize("name", ["declaration", "task"])
def test_version_1_of_a_server_is_refused_by_a_site_with_both_numbers_and_no_charge(settings, tmp_path, cache, caplog, name):
    store = ArrayCache(cache)
    described = site_file(settings, load_pool(settings.data, share_of(settings), cache=store), 0, folder=tmp_path, cache=store)
    node = {"site-file": str(described.write(tmp_path / "site.json"))}
    become_server(1)
    answer = app(message(name), Context(run_id=1, node_id=2, node_config=node, state=RecordDict(), run_config={}))
    refusal = read_reply(answer.content)
    assert isinstance(refusal, Refusal)
    assert refusal.reason == "version"
    said = f"the other side speaks version 1 of the protocol and this one version {PROTOCOL_VERSION}"
    assert f"refuses: version: {said}" in caplog.text
    assert not Path(described.ledger).exists()


def test_version_1_of_a_masked_sum_is_refused_by_a_site_with_the_same_word(settings, tmp_path, cache, caplog):
    store = ArrayCache(cache)
    described = site_file(settings, load_pool(settings.data, share_of(settings), cache=store), 0, folder=tmp_path, cache=store)
    node = {"site-file": str(described.write(tmp_path / "site.json"))}
    become_server(1)
    answer = app(message("question"), Context(run_id=1, node_id=2, node_config=node, state=RecordDict(), run_config={}))
    assert read_answer(answer.content).reason == "version"
    assert f"speaks version 1 of the protocol and this one version {PROTOCOL_VERSION}" in caplog.text


def test_version_1_of_a_site_counts_as_a_refusal_whatever_it_says():
    assert reason_of(message("reply").content) == "version"
