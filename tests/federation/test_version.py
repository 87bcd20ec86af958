"""The version of the protocol is read before anything else; inside one version, defaults may be left out and nothing added."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

import numpy as np
import pytest
from declarations import declared, usual_model
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict

from mammo_fed.common.serialization import build
from mammo_fed.errors import DataError, InvalidSetting, VersionMismatch
from mammo_fed.federation.flwr_internals.messages import become_server, stamp, through_the_wire
from mammo_fed.federation.protocol import task as protocol
from mammo_fed.federation.protocol.messages import (
    ARRAYS,
    CONFIG,
    PROTOCOL,
    check_version,
    pack_declaration,
    pack_parameters,
    pack_reply,
    read_declaration,
    read_reply,
    read_task,
    reason_of,
    stamped,
    task_config,
    version_of,
)
from mammo_fed.federation.protocol.replies import Refusal
from mammo_fed.federation.protocol.secure_messages import (
    Answer,
    Question,
    pack_answer,
    pack_question,
    read_answer,
    read_question,
)
from mammo_fed.federation.protocol.task import PROTOCOL_VERSION, Declaration, RoundTask, from_json, from_message, to_message

TASK = RoundTask(
    run_id="run1",
    round_index=1,
    kind="train",
    learning_rate=1 / 3,
    weight_decay=1e-4,
    optimizer="adamw",
    label_smoothing=0.1,
    proximal=0.01,
)
ZEROS = np.zeros(3, np.float32)


@pytest.fixture(scope="module")
def declaration() -> Declaration:
    return declared(model=replace(usual_model(), flips="none"), dims=20, clipping_norm=0.45, batch_size=20, rounds=4)


@dataclass(frozen=True, kw_only=True)
class Inner:
    depth: int
    colour: str = "grey"


@dataclass(frozen=True, kw_only=True)
class Outer:
    name: str
    inner: Inner
    limit: float = float("inf")


def travelled(content: RecordDict) -> Message:
    """A message with this content, after the way through Flower's serialisation."""
    become_server(1)
    message = Message(content, 2, "query")
    stamp(message)
    return through_the_wire(message)


def task_content(task: RoundTask = TASK) -> RecordDict:
    return stamped(RecordDict({ARRAYS: pack_parameters(ZEROS), CONFIG: task_config(task, ZEROS)}))


def test_version_travels_beside_the_payload_of_every_message(declaration):
    question = Question(stage="keys", run_id="run1", round_index=1, roster=None, survivors=())
    refusal = Refusal(site="north", public_images=2, public_patients=1, reason="budget")
    for content in (
        pack_declaration(declaration, ZEROS),
        task_content(),
        pack_question(question),
        pack_answer(Answer()),
        pack_reply(refusal),
    ):
        assert version_of(travelled(content).content) == PROTOCOL_VERSION


@pytest.mark.parametrize("theirs", [1, PROTOCOL_VERSION - 1, PROTOCOL_VERSION + 1, 1000])
def test_version_of_the_other_side_is_named_before_anything_else_is_read(theirs):
    """Nothing but the version is there: a later version may have changed all the rest."""
    content = RecordDict({PROTOCOL: ConfigRecord({"version": theirs})})
    said = f"version {theirs} of the protocol and this one version {PROTOCOL_VERSION}"
    for read in (read_reply, read_answer, read_question, check_version):
        with pytest.raises(VersionMismatch, match=said) as caught:
            read(content)
        assert (caught.value.theirs, caught.value.ours) == (theirs, PROTOCOL_VERSION)
    for read_message in (read_declaration, read_task):
        with pytest.raises(VersionMismatch, match=said):
            read_message(travelled(content))
    assert reason_of(content) == "version"


def test_version_of_a_later_program_refuses_what_this_one_sends(monkeypatch):
    content = task_content()
    monkeypatch.setattr(protocol, "PROTOCOL_VERSION", PROTOCOL_VERSION + 1)
    with pytest.raises(VersionMismatch, match=f"version {PROTOCOL_VERSION} of the protocol and this one version"):
        read_task(travelled(content))


@pytest.mark.parametrize("value", [0, -1, 2.0, "2", True, b"2"])
def test_version_that_no_program_has_is_unreadable(value):
    with pytest.raises(DataError, match="a protocol version that no program has"):
        version_of(RecordDict({PROTOCOL: ConfigRecord({"version": value})}))


@pytest.mark.parametrize(
    "content",
    [
        RecordDict({}),
        RecordDict({"a": ArrayRecord({})}),
        RecordDict({PROTOCOL: ArrayRecord({})}),
        RecordDict({PROTOCOL: ConfigRecord()}),
    ],
    ids=["nothing", "no configuration", "an array", "an empty record"],
)
def test_version_of_garbage_is_unreadable_and_no_older_version(content):
    with pytest.raises(DataError, match="protocol version"):
        version_of(content)
    assert reason_of(content) == "unreadable"


@pytest.mark.parametrize("kind", ["declaration", "task"])
def test_version_1_refuses_a_text_of_this_version_before_it_charges(declaration, kind):
    """Version 1 looked at no version, but built its tasks from exactly the fields that it knew."""
    value: Declaration | RoundTask = declaration if kind == "declaration" else TASK
    with pytest.raises(InvalidSetting, match=rf"{kind}\.protocol_version is not a setting"):
        build(type(value), json.loads(to_message(value)), path=kind)


def test_version_fields_with_a_default_may_be_left_out_also_of_nested_parts():
    read = from_json(Outer, '{"name": "a", "inner": {"depth": 2}}', path="outer")
    assert read == Outer(name="a", inner=Inner(depth=2))
    assert from_message(Outer, to_message(read), path="outer") == read


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"name": "a", "inner": {"depth": 2}, "birthday": 1950}', "outer.birthday is not a field of protocol version"),
        ('{"name": "a", "inner": {"depth": 2, "birthday": 1950}}', "birthday is not a"),
        ('{"inner": {"depth": 2}}', "outer.name is missing"),
        ('{"name": "a", "inner": {}}', "outer.inner.depth is missing"),
        ('{"name": "a", "inner": 7}', "outer.inner=7 must be"),
        ('{"name": 1, "inner": {"depth": 2}}', "outer.name=1 must be text"),
        ("[" * 100_000, "outer is not valid JSON"),
        ("NaN", "outer is not valid JSON"),
    ],
)
def test_version_fields_that_are_unknown_or_missing_are_named(text, said):
    with pytest.raises(InvalidSetting, match=said):
        from_json(Outer, text, path="outer")


def test_version_unknown_parts_of_a_servers_message_are_named(declaration):
    content = task_content()
    content[CONFIG] = ConfigRecord({**content.config_records[CONFIG], "birthday": 1950})
    with pytest.raises(InvalidSetting, match="'birthday' is not a field of protocol version"):
        read_task(travelled(content))
    content = pack_declaration(declaration, ZEROS)
    content["more"] = pack_parameters(ZEROS)
    with pytest.raises(InvalidSetting, match="'more' is not a record of protocol version"):
        read_declaration(travelled(content))
    content = task_content()
    del content.config_records[CONFIG]["centre"]
    with pytest.raises(InvalidSetting, match="lacks the field 'centre'"):
        read_task(travelled(content))
    changed = json.loads(to_message(TASK)) | {"birthday": 1950}
    content = task_content()
    content[CONFIG] = ConfigRecord({**content.config_records[CONFIG], "task": json.dumps(changed)})
    with pytest.raises(InvalidSetting, match=r"task\.birthday is not a field"):
        read_task(travelled(content))
