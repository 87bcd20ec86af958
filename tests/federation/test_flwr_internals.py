"""Everything private to Flower that is used: these tests fail first, and loudly, when Flower moves it."""

from __future__ import annotations

import importlib.metadata
import inspect
import logging
import os
import uuid

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.supercore.corestate import sql_corestate
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode import start_client_internal

from mammo_fed.federation.flwr_internals.guard import give_time_to_start
from mammo_fed.federation.flwr_internals.messages import (
    CLIENT_FAILED,
    SERVER_NODE_ID,
    become_server,
    empty_run,
    own_copy,
    quiet,
    stamp,
    through_the_wire,
)


@pytest.fixture
def message() -> Message:
    """A message with one record of each kind."""
    become_server(7)
    content = RecordDict(
        {
            "arrays": ArrayRecord({"flat": Array(np.arange(5, dtype=np.float32))}),
            "metrics": MetricRecord({"num-examples": 3, "loss": 0.25}),
            "config": ConfigRecord({"task": "{}", "centre": b"\x00\x01", "infinite": float("inf")}),
        }
    )
    return Message(content, 12, "train", ttl=60.0, group_id="3")


def test_flower_is_the_version_that_these_internals_were_written_for():
    assert importlib.metadata.version("flwr").split(".")[:2] in (["1", "41"], ["1", "42"])


def test_a_process_that_became_the_server_may_create_messages(message):
    assert (TaskIdentity.run_id, TaskIdentity.node_id) == (7, SERVER_NODE_ID)
    assert (message.metadata.run_id, message.metadata.src_node_id, message.metadata.dst_node_id) == (7, SERVER_NODE_ID, 12)


def test_a_run_without_a_bundle_of_code_can_be_made():
    run = empty_run(7)
    assert isinstance(run, Run)
    assert run.run_id == 7


def test_a_stamp_is_the_messages_identifier_from_then_on(message):
    first = stamp(message)
    assert message.metadata.message_id == first
    assert uuid.UUID(first).version == 4
    assert stamp(message) != first


def test_the_wire_keeps_content_identifier_and_addresses(message):
    identifier = stamp(message)
    arrived = through_the_wire(message)
    assert arrived is not message
    assert arrived.metadata.message_id == identifier
    for name in ("run_id", "src_node_id", "dst_node_id", "group_id", "ttl", "message_type", "created_at"):
        assert getattr(arrived.metadata, name) == getattr(message.metadata, name)
    np.testing.assert_array_equal(arrived.content["arrays"]["flat"].numpy(), np.arange(5, dtype=np.float32))
    assert dict(arrived.content["metrics"]) == dict(message.content["metrics"])
    assert dict(arrived.content["config"]) == dict(message.content["config"])


def test_the_wire_carries_a_reply_back_to_its_question(message):
    identifier = stamp(message)
    reply = Message(RecordDict({}), reply_to=through_the_wire(message))
    stamp(reply)
    assert through_the_wire(reply).metadata.reply_to_message_id == identifier


def test_an_error_reply_keeps_its_code_and_has_no_content(message):
    stamp(message)
    failed = Message(Error(code=CLIENT_FAILED, reason="RuntimeError"), reply_to=message)
    stamp(failed)
    assert failed.has_error()
    assert (failed.error.code, failed.has_content()) == (CLIENT_FAILED, False)
    arrived = through_the_wire(failed)
    assert (arrived.error.code, arrived.error.reason) == (CLIENT_FAILED, "RuntimeError")


def test_a_copy_is_a_receivers_own(message):
    stamp(message)
    copied = own_copy(message)
    copied.content["config"] = ConfigRecord({"task": "other"})
    del copied.content["metrics"]
    assert message.content["config"]["task"] == "{}"
    assert "metrics" in message.content
    assert copied.metadata.message_id == message.metadata.message_id
    copied.metadata.__dict__["_message_id"] = "changed"
    assert message.metadata.message_id != "changed"


def test_flower_is_quiet_and_calls_nobody(monkeypatch):
    for name in ("FLWR_TELEMETRY_ENABLED", "FLWR_DISABLE_UPDATE_CHECK"):
        monkeypatch.delenv(name, raising=False)
    quiet()
    assert (os.environ["FLWR_TELEMETRY_ENABLED"], os.environ["FLWR_DISABLE_UPDATE_CHECK"]) == ("0", "1")
    assert logging.getLogger("flwr").getEffectiveLevel() == logging.ERROR


def test_flowers_node_sleeps_three_seconds_where_there_is_no_message():
    loop = inspect.getsource(start_client_internal.start_client_internal)
    assert "time.sleep(3)" in loop
    assert "_pull_and_store_message(" in loop
    assert inspect.getsource(start_client_internal._push_messages).count("time.sleep(0.5)") == 2


def test_the_token_of_the_servers_app_outlives_a_start_on_a_busy_machine(monkeypatch):
    monkeypatch.setattr(sql_corestate, "HEARTBEAT_DEFAULT_INTERVAL", sql_corestate.HEARTBEAT_DEFAULT_INTERVAL)
    give_time_to_start()
    # What Flower's state reads when a task is claimed.
    claim = inspect.getsource(sql_corestate.SqlCoreState.claim_task)
    assert "HEARTBEAT_DEFAULT_INTERVAL" in claim
    assert sql_corestate.HEARTBEAT_DEFAULT_INTERVAL >= 300
