"""What travels arrives as it was sent, through Flower's own serialisation; what no site or server sends is refused."""

from __future__ import annotations

import io
import json
import math
from dataclasses import replace
from datetime import UTC
from typing import Any, get_args

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mammo_fed.errors import DataError, InvalidSetting
from mammo_fed.federation.flwr_internals.messages import become_server, stamp, through_the_wire
from mammo_fed.federation.protocol.messages import (
    ARRAYS,
    CONFIG,
    METRICS,
    PRIVACY,
    WEIGHT,
    pack_parameters,
    pack_reply,
    read_declaration,
    read_parameters,
    read_reply,
    read_task,
    stamped,
    task_config,
)
from mammo_fed.federation.protocol.reasons import Reason
from mammo_fed.federation.protocol.replies import Accepted, Refusal, Reply, Update
from mammo_fed.federation.protocol.task import RoundTask
from mammo_fed.privacy.events import PrivacyEvent, events_to_json
from mammo_fed.privacy.ledger.cap import CapRaise

EVENT = PrivacyEvent(
    mechanism="gradient",
    noise_multiplier=2.5,
    steps=3,
    sample_rate=0.25,
    unit="patient",
    clipping_norm=0.5,
    max_images_per_patient=16,
)
PRICED: dict[str, Any] = {
    "site": "site-1",
    "public_images": 281,
    "public_patients": 146,
    "run_id": "run1",
    "events": (EVENT,),
    "epsilon": 1.25,
    "epsilon_account": 2.5,
    "patient_epsilon_account": 3.5,
    "budget_left": math.inf,
    "ledger_head": "7:" + "a" * 64,
    "withdrawn_at": "2026-03-01",
}
UPDATE = Update(**PRICED, round_index=2, task_hash="c" * 64, parameters=np.linspace(-1, 1, 7, dtype=np.float32))
RAISE = CapRaise(at="2026-02-01T09:30:00+00:00", from_epsilon=3.0, to_epsilon=6.0)
ACCEPTED = Accepted(
    **PRICED,
    cap_epsilon=6.0,
    cap_delta=1e-4,
    cap_since=RAISE.at,
    cap_raised=(RAISE,),
    malignant_fraction=0.25,
    fingerprint="f" * 64,
)
REFUSAL = Refusal(site="site-1", public_images=281, public_patients=146, reason="budget")
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
any_float = st.floats(allow_nan=False)
arrays = hnp.arrays(np.float32, st.integers(0, 9), elements=st.floats(width=32))
events = st.builds(
    PrivacyEvent,
    mechanism=st.sampled_from(["mean", "gradient"]),
    noise_multiplier=st.floats(0, 1e9),
    steps=st.integers(1, 10**6),
    sample_rate=st.floats(1e-9, 1.0),
    unit=st.sampled_from(["patient", "image"]),
    clipping_norm=st.floats(1e-9, 1e9),
    max_images_per_patient=st.integers(1, 999),
)
site = {
    "site": st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,8}", fullmatch=True),
    "public_images": st.integers(1, 10**9),
    "public_patients": st.integers(1, 10**9),
}
words = st.text(st.characters(codec="ascii", min_codepoint=32, max_codepoint=126), max_size=9)
figure = st.floats(0, allow_nan=False)
times = st.datetimes(timezones=st.just(UTC)).map(lambda moment: moment.isoformat(timespec="seconds"))
raises = st.builds(
    lambda at, low, step: CapRaise(at=at, from_epsilon=low, to_epsilon=low + step),
    times,
    st.floats(0, 1e3),
    st.just(math.inf) | st.floats(1e-3, 1e3),
)
priced = {
    **site,
    "run_id": words,
    "events": st.lists(events, max_size=3).map(tuple),
    "epsilon": figure,
    "epsilon_account": figure,
    "patient_epsilon_account": figure,
    "budget_left": figure,
    "ledger_head": st.just("") | st.from_regex(r"[0-9]{1,18}:[0-9a-f]{64}", fullmatch=True),
    "withdrawn_at": st.just("") | st.dates().map(str),
}
replies = st.one_of(
    st.builds(
        Update,
        **priced,
        round_index=st.integers(-1, 10**6),
        task_hash=st.text("0123456789abcdef", max_size=64),
        parameters=arrays,
        masked=hnp.arrays(np.uint64, st.integers(0, 9)),
    ),
    st.builds(
        Accepted,
        **priced,
        cap_epsilon=figure,
        cap_delta=st.floats(0, 1),
        cap_since=st.just("") | times,
        cap_raised=st.lists(raises, max_size=3).map(tuple),
        malignant_fraction=st.none() | st.floats(0, 1),
        fingerprint=words,
    ),
    st.builds(Refusal, **site, reason=st.sampled_from(get_args(Reason))),
)


def travelled(content: RecordDict, kind: str = "train") -> Message:
    """A message with this content, after the way through Flower's serialisation."""
    become_server(1)
    message = Message(content, 2, kind)
    stamp(message)
    return through_the_wire(message)


def fields(reply: Reply) -> dict[str, object]:
    """Everything in a reply, to the last bit."""
    return {
        "kind": type(reply),
        **{
            name: (value.dtype.str, value.shape, value.tobytes()) if isinstance(value, np.ndarray) else value
            for name, value in vars(reply).items()
        },
    }


def changed(reply: Reply = UPDATE, **privacy: object) -> RecordDict:
    """A packed reply with entries of its privacy record changed, or removed where they are None."""
    content = pack_reply(reply)
    record = dict(content.config_records[PRIVACY])
    for name, value in privacy.items():
        key = name.replace("_", "-")
        assert key in record
        if value is None:
            del record[key]
        else:
            record[key] = value
    content[PRIVACY] = ConfigRecord(record)
    return content


@given(replies)
@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None, max_examples=60)
def test_a_reply_arrives_as_it_was_sent(reply):
    assert fields(read_reply(travelled(pack_reply(reply)).content)) == fields(reply)


def test_flowers_strategies_find_one_array_record_and_one_number_to_weigh_by():
    content = pack_reply(UPDATE)
    assert list(content.array_records) == [ARRAYS]
    (metrics,) = content.metric_records.values()
    assert dict(metrics) == {WEIGHT: 281}


@pytest.mark.parametrize("reply", [ACCEPTED, REFUSAL], ids=["accepted", "refusal"])
def test_only_an_update_carries_an_array(reply):
    assert list(pack_reply(reply).array_records) == []


ACCOUNT = ("epsilon_account", "patient_epsilon_account", "budget_left")


@pytest.mark.parametrize("reply", [UPDATE, ACCEPTED], ids=["update", "accepted"])
def test_cap_figures_of_an_account_that_are_not_published_do_not_travel_at_all(reply):
    packed = pack_reply(replace(reply, **dict.fromkeys(ACCOUNT)))
    assert not {name.replace("_", "-") for name in ACCOUNT} & packed.config_records[PRIVACY].keys()
    read = read_reply(packed)
    assert [getattr(read, name) for name in ACCOUNT] == [None] * 3


@pytest.mark.parametrize("name", ACCOUNT)
def test_cap_figures_of_an_account_travel_all_or_not_at_all(name):
    with pytest.raises(DataError, match=f"a reply lacks '{name.replace('_', '-')}'"):
        read_reply(changed(UPDATE, **{name: None}))


STEP = {"at": RAISE.at, "from": 3.0, "to": 6.0}


@pytest.mark.parametrize(
    "steps",
    [
        [{**STEP, "to": 3.0}],
        [{**STEP, "to": 2.0}],
        [{**STEP, "from": -1.0}],
        [{**STEP, "from": None}],
        [{**STEP, "to": "inf"}],
        [{**STEP, "to": True}],
        [{**STEP, "at": "yesterday"}],
        [{**STEP, "at": "2026-02-01T09:30:00"}],
        [{**STEP, "at": "2026-02-01\x1b09:30:00+00:00"}],
        [{**STEP, "at": 3}],
        [{**STEP, "by": "Erika"}],
        [{"at": RAISE.at, "from": 3.0}],
        [3],
        {"at": RAISE.at},
        None,
    ],
    ids=str,
)
def test_cap_raises_that_no_site_sends_are_refused(steps):
    with pytest.raises(DataError):
        read_reply(changed(ACCEPTED, cap_raised=json.dumps(steps)))


@pytest.mark.parametrize("since", ["2026", "2026-02-01", "2026-02-01T09:30:00", "2026-02-01 09:30:00+00:00", "soon", 7])
def test_cap_since_is_a_time_as_a_ledger_writes_it(since):
    with pytest.raises(DataError, match="cap-since"):
        read_reply(changed(ACCEPTED, cap_since=since))


def test_a_balance_that_is_not_public_does_not_travel_at_all():
    packed = pack_reply(replace(ACCEPTED, malignant_fraction=None))
    assert not any("malignant" in key for key in packed.config_records[PRIVACY])
    read = read_reply(packed)
    assert isinstance(read, Accepted)
    assert read.malignant_fraction is None


@pytest.mark.parametrize(
    ("reply", "name"),
    [
        *((UPDATE, name) for name in ("kind", "site", "run_id", "round", "task_hash", "events", "epsilon", "patients")),
        *(
            (ACCEPTED, name)
            for name in ("run_id", "fingerprint", "withdrawn_at", "cap_epsilon", "ledger_head", "patient_epsilon_account")
        ),
        (REFUSAL, "reason"),
    ],
)
def test_a_reply_that_lacks_a_field_is_refused_by_name(reply, name):
    with pytest.raises(DataError, match=f"a reply lacks '{name.replace('_', '-')}'"):
        read_reply(changed(reply, **{name: None}))


@pytest.mark.parametrize("reply", [UPDATE, ACCEPTED, REFUSAL], ids=["update", "accepted", "refusal"])
def test_version_a_field_that_this_version_does_not_have_is_refused_by_name(reply):
    content = pack_reply(reply)
    content[PRIVACY] = ConfigRecord({**content.config_records[PRIVACY], "birthday": "1950"})
    with pytest.raises(DataError, match="unknown field 'birthday'"):
        read_reply(content)
    more = pack_reply(reply)
    more["images"] = pack_parameters(np.zeros(3, np.float32))
    with pytest.raises(DataError, match="unknown record 'images'"):
        read_reply(more)


@pytest.mark.parametrize("record", [ARRAYS, PRIVACY, "metrics"])
def test_a_reply_that_lacks_a_record_is_refused(record):
    content = pack_reply(UPDATE)
    del content[record]
    with pytest.raises(DataError, match="a reply lacks"):
        read_reply(content)


@pytest.mark.parametrize(
    ("reply", "privacy"),
    [
        (UPDATE, {"kind": "confession"}),
        (UPDATE, {"round": 1.0}),
        (UPDATE, {"round": "1"}),
        (UPDATE, {"round": True}),
        (UPDATE, {"patients": 0.5}),
        (UPDATE, {"epsilon": "6"}),
        (UPDATE, {"epsilon": True}),
        (UPDATE, {"budget_left": b"6"}),
        (UPDATE, {"ledger_head": "7"}),
        (UPDATE, {"withdrawn_at": "2026-03-01T09:30:00"}),
        (UPDATE, {"withdrawn_at": "20260301"}),
        (ACCEPTED, {"withdrawn_at": "Erika on 2026-03-01"}),
        (ACCEPTED, {"withdrawn_at": 20260301}),
        (REFUSAL, {"reason": "because of Erika"}),
        (REFUSAL, {"reason": ""}),
        (ACCEPTED, {"malignant_fraction": "half"}),
    ],
    ids=str,
)
def test_a_reply_with_a_value_of_the_wrong_kind_is_refused(reply, privacy):
    with pytest.raises(DataError, match=r"a reply('s| has a| is of a kind)"):
        read_reply(changed(reply, **privacy))


@pytest.mark.parametrize("weight", [0, -3, 2.0, math.nan])
def test_a_reply_with_a_number_of_images_that_no_site_sends_is_refused(weight):
    content = pack_reply(UPDATE)
    content["metrics"] = MetricRecord({WEIGHT: weight})
    with pytest.raises(DataError, match="number of images"):
        read_reply(content)


def of_shape(shape: str) -> bytes:
    """The head of an array file that claims a shape, with little behind it."""
    head = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head + bytes(12)


def archive() -> bytes:
    content = io.BytesIO()
    np.savez(content, flat=np.zeros(3, np.float32))
    return content.getvalue()


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        ("other", of_shape("(3,)")),
        ("numpy.ndarray", b""),
        ("numpy.ndarray", b"PK\x03\x04 no archive"),
        ("numpy.ndarray", archive()),
        ("numpy.ndarray", of_shape("(1000000000000000,)")),
        ("numpy.ndarray", of_shape("(99999999999999999999999,)")),
        ("numpy.ndarray", of_shape("((")),
        ("numpy.ndarray", of_shape("(True,)")),
    ],
    ids=["kind", "nothing", "broken archive", "archive", "too large", "no machine's number", "no shape", "no number"],
)
def test_bytes_that_are_no_array_are_a_reply_that_cannot_be_read(kind, data):
    """Whatever numpy raises at them: the server's round goes on without this site."""
    content = pack_reply(UPDATE)
    content[ARRAYS] = ArrayRecord({"flat": Array(dtype="float32", shape=(3,), stype=kind, data=data)})
    with pytest.raises(DataError):
        read_reply(content)


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, events_to_json([EVENT]).replace("2.5", "1" + 400 * "0"), "[" + 5000 * "1" + "]"],
    ids=["deep", "no float", "digits"],
)
def test_events_that_python_cannot_read_are_a_reply_that_cannot_be_read(text):
    content = pack_reply(UPDATE)
    content.config_records[PRIVACY]["events"] = text
    with pytest.raises(DataError):
        read_reply(content)


@pytest.mark.parametrize(
    ("name", "record"),
    [
        (METRICS, MetricRecord({WEIGHT: 281, "loss": 0.5})),
        ("masked", ArrayRecord({"flat": Array(np.zeros(0, np.uint64))})),
    ],
    ids=["metric", "masked"],
)
def test_what_flowers_strategies_stumble_over_is_no_reply(name, record):
    """They give up a whole round where one site's records or metrics differ from the others'."""
    content = pack_reply(UPDATE)
    content[name] = record
    with pytest.raises(DataError):
        read_reply(content)


@pytest.mark.parametrize("text", ["", "{}", "[1]", '[{"mechanism": "mean"}]', "[" * 50])
def test_a_reply_whose_events_are_none_is_refused(text):
    with pytest.raises((InvalidSetting, DataError)):
        read_reply(changed(events=text))


def test_an_event_with_another_relation_is_refused():
    text = str(pack_reply(UPDATE).config_records[PRIVACY]["events"])
    with pytest.raises(InvalidSetting, match="relation='add_remove' must be 'no_contribution'"):
        read_reply(changed(events=text.replace("no_contribution", "add_remove")))


@pytest.mark.parametrize(
    "record",
    [
        ArrayRecord({}),
        ArrayRecord({"other": Array(np.zeros(3, np.float32))}),
        ArrayRecord({"flat": Array(np.zeros(3, np.float32)), "more": Array(np.zeros(3, np.float32))}),
        ArrayRecord({"flat": Array(np.zeros((3, 1), np.float32))}),
        ArrayRecord({"flat": Array(np.zeros(3, np.int64))}),
        ArrayRecord({"flat": Array(np.zeros(3, np.complex64))}),
        ArrayRecord({"flat": Array(np.array(3.0, np.float32))}),
    ],
    ids=["none", "name", "two", "matrix", "whole", "complex", "scalar"],
)
def test_a_message_carries_exactly_one_flat_real_array(record):
    with pytest.raises(DataError, match="array"):
        read_parameters(record)


def test_wider_numbers_are_refused():
    with pytest.raises(DataError, match="must be float32"):
        read_parameters(ArrayRecord({"flat": Array(np.array([0.1, 1e30]))}))


def test_an_array_that_lies_apart_in_memory_arrives_whole():
    wide = np.arange(10, dtype=np.float32)
    np.testing.assert_array_equal(read_parameters(pack_parameters(wide[::3])), wide[::3])


def test_a_task_arrives_as_it_was_sent():
    feature_mean = np.array([0.1, -0.0, 1e-38], np.float32)
    flat = np.array([np.pi, 2.0], np.float32)
    message = travelled(stamped(RecordDict({ARRAYS: pack_parameters(flat), CONFIG: task_config(TASK, feature_mean)})))
    task, arrived_centre, arrived = read_task(message)
    assert task == TASK
    assert (arrived_centre.tobytes(), arrived.tobytes()) == (feature_mean.tobytes(), flat.tobytes())
    # A site may work in its arrays.
    arrived_centre += 1


@pytest.mark.parametrize("feature_mean", ["text", 7, 0.5])
def test_a_centre_that_is_no_array_is_refused(feature_mean):
    config = ConfigRecord({"task": TASK.to_json(), "centre": feature_mean})
    with pytest.raises(DataError, match="a task's feature mean must be bytes"):
        read_task(travelled(stamped(RecordDict({ARRAYS: pack_parameters(np.zeros(2, np.float32)), CONFIG: config}))))


def test_a_declaration_that_is_none_is_refused():
    content = RecordDict({ARRAYS: pack_parameters(np.zeros(2, np.float32)), CONFIG: ConfigRecord({"declaration": "[]"})})
    with pytest.raises(InvalidSetting, match="must be a JSON object"):
        read_declaration(travelled(stamped(content), "query"))
