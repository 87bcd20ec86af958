# ruff: noqa: E501 - tables of nasty values
"""Whatever a stranger sends is read within bounds, in both directions, or refused with one of the errors that callers expect.

`MAMMO_FED_FUZZ` says how many messages are tried; `make fuzz` tries 100,000.
"""

from __future__ import annotations

import copy
import io
import json
import math
import os
import pickle
import random
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from declarations import declared
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from test_messages import ACCEPTED, REFUSAL, TASK, UPDATE

from mammo_fed.errors import DataError, InvalidSetting, VersionMismatch
from mammo_fed.federation.flwr_internals.messages import answer_bytes, become_server, inflated, quiet, stamp
from mammo_fed.federation.flwr_internals.secagg import key_pair
from mammo_fed.federation.protocol.messages import (
    PRIVACY,
    SECURE,
    pack_declaration,
    pack_parameters,
    pack_reply,
    read_declaration,
    read_reply,
    read_task,
    reason_of,
    stamped,
    task_config,
)
from mammo_fed.federation.protocol.replies import Accepted, Refusal, Update
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
from mammo_fed.federation.protocol.task import Declaration
from mammo_fed.federation.secure_aggregation.double_masks import Member, Parcel, Roster, Terms
from mammo_fed.server.rounds.budget import BudgetView

TRIED = int(os.environ.get("MAMMO_FED_FUZZ", "3000"))
EXPECTED = (DataError, InvalidSetting, VersionMismatch)
MOST_BYTES = answer_bytes(1000)
# The messages below have less than 64 KiB: what is read of them takes little more than they do.
PEAK = 16 << 20

Reader = Callable[[RecordDict], Any]


def a_declaration() -> Declaration:
    return declared(weights_sha256="00", whitening_sha256="00")


def corpus() -> list[tuple[str, RecordDict, Reader]]:
    """Every kind of message as it should be, and what reads it."""
    names = ("site-1", "site-2", "site-3")
    members = tuple(Member(site=name, channel_key=key_pair().public, mask_key=key_pair().public) for name in names)
    terms = Terms(run_id="run1", round_index=1, min_survivors=2, colluders=0)
    roster = Roster(terms=terms, members=members)
    parcels = tuple(Parcel(site=name, sealed="gAAA" + "c" * 700) for name in names[1:])
    question = Question(stage="shares", run_id="run1", round_index=1, roster=roster, survivors=())
    unmask = replace(question, stage="unmask", roster=None, survivors=names)
    task = stamped(
        RecordDict({"arrays": pack_parameters(np.ones(9, np.float32)), "config": task_config(TASK, np.zeros(4, np.float32))})
    )
    masked_task = RecordDict({**dict(task), SECURE: pack_parcels(parcels)})
    opened = tuple(Opened(site=name, share="ab" * 80) for name in names)

    def of_message(reader: Callable[[Message], Any]) -> Reader:
        return lambda content: reader(Message(content, 2, "train"))

    return [
        ("accepted", pack_reply(ACCEPTED), read_reply),
        ("update", pack_reply(UPDATE), read_reply),
        (
            "masked update",
            pack_reply(replace(UPDATE, parameters=UPDATE.parameters[:0], masked=np.arange(7, dtype=np.uint64))),
            read_reply,
        ),
        ("refusal", pack_reply(REFUSAL), read_reply),
        ("keys", pack_answer(Answer(member=members[0])), read_answer),
        ("shares", pack_answer(Answer(commitment="d" * 64, parcels=parcels)), read_answer),
        ("opened", pack_answer(Answer(opened=opened)), read_answer),
        ("declaration", pack_declaration(a_declaration(), np.ones(24, np.float32)), of_message(read_declaration)),
        ("task", task, of_message(read_task)),
        ("masked task", masked_task, of_message(lambda message: (read_task(message), read_parcels(message.content)))),
        ("question", pack_question(question), read_question),
        ("survivors", pack_question(unmask), read_question),
    ]


# What a field may hold instead.
HUGE = "9" * 400
NASTY: tuple[Any, ...] = (
    -1, 0, 1, 2**31, 2**63 - 1, -(2**63), 10**400, True, False,
    math.nan, math.inf, -math.inf, -0.0, 1e308, 5e-324,
    "", " ", "nan", "inf", "1e400", "\x00", "../../etc/passwd", "site-1\nERROR forged", "\u202e\u0000\ud7ff", "é" * 300, "x" * 70_000,
    "[" * 50_000, "[" * 400 + "]" * 400, '{"a":' * 2000 + "1" + "}" * 2000, f"[{HUGE}]", f"[-{HUGE}]", "[1e400]", "[NaN]", '"\\ud800"',
    b"", b"\x00" * 64, b"PK\x03\x04" + b"\x00" * 30, b"\x80\x04K\x01.",
    [], [1, 2], ["a"], [1.5], [b"a"], [True],
)  # fmt: skip
IN_JSON = [*(value for value in NASTY if not isinstance(value, bytes) and value != [b"a"]), None, {}, {"a": {}}, [[[]]]]


def npy(header: bytes, data: bytes = b"", *, version: bytes = b"\x01\x00", length: int | None = None) -> bytes:
    size = (len(header) if length is None else length).to_bytes(2 if version[0] == 1 else 4, "little")
    return b"\x93NUMPY" + version + size + header + data


def saved(array: Any, *, as_zip: bool = False) -> bytes:
    content = io.BytesIO()
    if as_zip:
        np.savez(content, array)
    else:
        np.save(content, array, allow_pickle=True)
    return content.getvalue()


def hostile_arrays() -> list[Array]:
    """What may stand for an array of seven numbers."""
    good = saved(np.ones(7, np.float32))
    terabytes = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000,), }\n"
    nested = b"{'descr': '<f4', 'fortran_order': False, 'shape': " + b"(" * 9000 + b")" * 9000 + b", }\n"
    datas = [
        b"", b"\x00" * 400, good[:-1], good + b"\x00", good[:9], good[:60], saved(np.ones(7, np.float32), as_zip=True),
        pickle.dumps(np.ones(7)), npy(terabytes), npy(terabytes, version=b"\x03\x00"), npy(nested), npy(terabytes, length=65_000),
        npy(terabytes.replace(b"000", b""), good[-28:]), saved(np.ones((7, 1), np.float32)), saved(np.array([None] * 7, dtype=object)),
        saved(np.ones(7, ">f4")), saved(np.ones(7, np.float64)), saved(np.ones(7, "S3")), saved(np.asfortranarray(np.ones((2, 3), np.float32))),
        npy(b"{'descr': '<f4', 'fortran_order': False, 'shape': (-7,), }\n", good[-28:]),
    ]  # fmt: skip
    made = [Array("float32", (7,), "numpy.ndarray", data) for data in datas]
    made += [Array("float32", (7,), stype, good) for stype in ("", "torch.Tensor", "pickle", "numpy.ndarray\x00")]
    made += [Array(dtype, (7,), "numpy.ndarray", good) for dtype in ("", "object", "float64", "f" * 5000)]
    return made + [Array("float32", shape, "numpy.ndarray", good) for shape in ((), (8,), (7, 1), (-1,), (10**18,))]


HOSTILE_ARRAYS = hostile_arrays()
KINDS = (ConfigRecord, MetricRecord, ArrayRecord)


def put(record: Any, name: str, value: Any) -> None:
    # A record refuses some values when they are set, though they can come over the wire.
    try:
        record[name] = value
    except TypeError:
        record[name] = 0


def changed_json(dice: random.Random, text: str) -> str:
    """A JSON text with one of its values, or a key, changed."""
    try:
        values = node = json.loads(text)
    except (ValueError, RecursionError):
        # It was changed before.
        return text[: dice.randrange(len(text))]
    while True:
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        if not keys:
            return text[: dice.randrange(len(text))]
        key = dice.choice(keys)
        if isinstance(node[key], dict | list) and node[key] and dice.random() < 0.7:
            node = node[key]
            continue
        what = dice.random()
        if what < 0.1 and isinstance(node, dict):
            del node[key]
        elif what < 0.2 and isinstance(node, dict):
            node[dice.choice(["", "a\nb", "x" * 5000, "__class__"])] = dice.choice(IN_JSON)
        else:
            node[key] = dice.choice(IN_JSON)
        return json.dumps(values)


def mutated(dice: random.Random, content: RecordDict) -> RecordDict:
    """A message with one to three things changed."""
    made = RecordDict({name: copy.copy(record) for name, record in content.items()})
    for _ in range(dice.randint(1, 3)):
        if not made:
            break
        name = dice.choice(list(made))
        record = made[name]
        what = dice.random()
        if what < 0.06:
            del made[name]
        elif what < 0.1:
            made[name] = dice.choice(KINDS)()
        elif what < 0.14:
            made[dice.choice(["arrays", "privacy", "x" * 300, "a\nb"])] = dice.choice([record, ConfigRecord({"a": 1})])
        elif isinstance(record, ArrayRecord):
            made[name] = ArrayRecord({dice.choice(["flat"] * 9 + ["", "other"]): dice.choice(HOSTILE_ARRAYS)})
        elif len(record):
            made[name] = record = type(record)(dict(record))
            key = dice.choice(list(record))
            value = record[key]
            if isinstance(value, str) and value[:1] in ("[", "{") and dice.random() < 0.7:
                put(record, key, changed_json(dice, value))
            elif dice.random() < 0.15:
                del record[key]
            elif dice.random() < 0.1:
                put(record, dice.choice(["", "extra", "a\nb"]), dice.choice(NASTY))
            else:
                put(record, key, dice.choice(NASTY))
    return made


def parts_of(content: RecordDict) -> tuple[str, dict[str, bytes]]:
    message = Message(content, 2, "train")
    stamp(message)
    return message.object_id, {key: part.deflate() for key, part in get_all_nested_objects(message).items()}


def damaged(dice: random.Random, parts: dict[str, bytes]) -> dict[str, bytes]:
    """The parts of a message with bytes changed, cut, repeated or exchanged, their lengths in the heads made to fit or not."""
    made = dict(parts)
    name = dice.choice(list(made))
    content = bytearray(made[name])
    start = content.find(b"\x00") + 1 if dice.random() < 0.8 else 0
    for _ in range(dice.randint(1, 4)):
        if len(content) <= start:
            break
        at, what = dice.randrange(start, len(content)), dice.random()
        if what < 0.6:
            content[at] = dice.randrange(256)
        elif what < 0.7:
            del content[at:]
        elif what < 0.8:
            content[at:at] = bytes(dice.randrange(1, 200))
        elif what < 0.9:
            content[at:at] = content[start:at]
        else:
            content[start:] = dice.choice(list(parts.values()))
    made[name] = bytes(content)
    if dice.random() < 0.05:
        del made[dice.choice(list(made))]
    return made


def keep_and_restore(reply: Accepted | Update | Refusal) -> None:
    """What a server keeps of a reply must be readable when the run is resumed."""
    budget = BudgetView(delta=1e-4, accountant="pld")
    if isinstance(reply, Accepted | Refusal):
        budget.enter(reply)
    else:
        budget.enter(ACCEPTED)
        replied = replace(reply, site=ACCEPTED.site)
        budget.spend(replied, round_index=1, events=ACCEPTED.events)
    text = json.dumps(budget.as_dict(), allow_nan=False)
    restored = BudgetView(delta=1e-4, accountant="pld")
    restored.restore(json.loads(text))
    assert json.dumps(restored.as_dict(), allow_nan=False) == text


def trials(count: int, seed: int) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Names of messages and what reads a hostile one of that kind."""
    dice, messages = random.Random(seed), corpus()  # noqa: S311 - which bytes are tried is no secret
    whole = {name: parts_of(content) for name, content, _ in messages}
    for _ in range(count):
        name, content, read = dice.choice(messages)
        if dice.random() < 0.6:
            given = mutated(dice, content)
            yield name, lambda given=given, read=read: (reason_of(given), read(given))[1]
        else:
            identifier, parts = whole[name]
            broken = damaged(dice, parts)
            yield name, lambda i=identifier, b=broken, read=read: read(inflated(i, b, most_bytes=MOST_BYTES).content)


@pytest.fixture(autouse=True)
def _server():
    quiet()
    become_server(1)


@pytest.mark.timeout(3000)
def test_fuzz_every_message_that_a_stranger_changed_is_read_within_bounds_or_refused(capsys):
    refused = accepted = 0
    said: list[str] = []
    for number, (name, read) in enumerate(trials(TRIED, seed=20_260_101)):
        measured = number % 10 == 0
        if measured:
            tracemalloc.start()
        try:
            found = read()
            accepted += 1
            if isinstance(found, Accepted | Update | Refusal):
                keep_and_restore(found)
        except EXPECTED as error:
            refused += 1
            said.append(str(error))
        except Exception as error:
            raise AssertionError(f"message {number} ({name}) ends with {type(error).__name__}: {error!s:.300}") from error
        finally:
            if measured:
                _, peak = tracemalloc.get_traced_memory()
                tracemalloc.stop()
        if measured:
            assert peak < PEAK, (name, number, peak)
    with capsys.disabled():
        sys.stdout.write(f"\n{TRIED} hostile messages: {refused} refused, {accepted} say what a friend might say\n")
    assert refused > TRIED / 2
    assert [text[:300] for text in said if len(text) >= 1000 or not text.isprintable()] == []
    # Nothing that was read before has changed how a friend's message is read.
    for _, content, read in corpus():
        read(content)


@pytest.mark.parametrize("array", HOSTILE_ARRAYS, ids=range(len(HOSTILE_ARRAYS)))
def test_hostile_array_is_refused_before_memory_is_taken_for_it(array):
    content = pack_reply(UPDATE)
    content["arrays"] = ArrayRecord({"flat": array})
    tracemalloc.start()
    try:
        with pytest.raises(DataError):
            read_reply(content)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_hostile_message_of_one_chunk_named_many_times_is_refused_before_it_is_put_together():
    content = pack_reply(replace(UPDATE, parameters=np.ones(1 << 18, np.float32)))
    identifier, parts = parts_of(content)
    ((name, part),) = [(name, part) for name, part in parts.items() if part.startswith(b"Array ")]
    head, _, body = part.partition(b"\x00")
    many = body.replace(b'"arraychunk_ids": [0]', b'"arraychunk_ids": [' + b"0, " * 5000 + b"0]")
    parts[name] = head.rpartition(b" ")[0] + f" {len(many)}".encode() + b"\x00" + many
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match="arrays"):
            inflated(identifier, parts, most_bytes=MOST_BYTES)
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()


def test_hostile_field_of_every_message_is_refused_or_read_as_what_it_is():
    for _, content, read in corpus():
        for record_name, record in content.items():
            for key in list(record) if not isinstance(record, ArrayRecord) else []:
                for value in NASTY:
                    made = RecordDict(dict(content))
                    made[record_name] = type(record)(dict(record))
                    try:
                        made[record_name][key] = value
                    except TypeError:
                        continue
                    try:
                        found = read(made)
                    except EXPECTED:
                        continue
                    if record_name == PRIVACY:
                        keep_and_restore(found)
