"""What a SuperNode hands to its executor, and takes back: one message at a time, answered by the installed app.

The bundle that comes with a message is never read: no code of the server runs at a site.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from typing import Any, Final

from flwr.app import Context, Error, Message
from flwr.common.constant import SubStatus
from flwr.common.serde import context_from_proto
from flwr.common.serde_utils import metadata_from_proto
from flwr.proto.node_pb2 import Node
from flwr.proto.runtime_pb2 import AcquireTaskRequest, PullAppMessagesRequest, PullTaskInputRequest
from flwr.supercore.app_utils import start_parent_process_monitor
from flwr.supercore.heartbeat import HeartbeatSender, make_task_heartbeat_fn_http
from flwr.supercore.inflatable.inflatable_protobuf_utils import (
    make_confirm_message_received_fn_protobuf,
    make_pull_object_fn_protobuf,
)
from flwr.supercore.inflatable.inflatable_utils import ObjectPullError
from flwr.supercore.interceptors import (
    RuntimeTokenHttpInterceptor,
    RuntimeVersionHttpInterceptor,
    SuperExecAuthHttpInterceptor,
)
from flwr.supercore.retry import make_simple_http_retry_invoker
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode.runtime.run_clientapp import push_message, push_task_output

from mammo_fed.errors import DataError
from mammo_fed.federation.flwr_internals.lines import make_direct_lines
from mammo_fed.federation.flwr_internals.messages import CLIENT_FAILED, TASK_BYTES, contents_of, empty_message, inflated

__all__ = ["die_with_parent", "serve_messages"]

logger = logging.getLogger(__name__)

ACQUIRE: Final = frozenset({"/flwr.proto.Runtime/AcquireTask"})
FAILED_TEXT: Final = "internal"
# Without a part of a message for so long, the rest will not come: its sender was killed on the way.
IDLE_SECONDS: Final = 60.0
LOST: Final = 75


def serve_messages(
    answer: Callable[[Message, Context], Message],
    *,
    address: str,
    secret: bytes,
    stop: threading.Event,
    on_task: Callable[[bool], None] = lambda _: None,
    poll_seconds: float = 0.3,
) -> None:
    """Answer messages until `stop` is set; a message that has begun is answered first.

    Args:
      answer: the installed app.
      address: of the SuperNode on this machine.
      secret: shared with the SuperNode.
      stop: ends the service.
      on_task: told True when a message begins and False when its answer has been handed over.
      poll_seconds: between questions for work.

    Raises:
      httpx.HTTPError: If the SuperNode is gone.
    """
    waiting = _client(address, SuperExecAuthHttpInterceptor(master_secret=secret, protected_methods=ACQUIRE))
    while not stop.is_set():
        found = waiting.AcquireTask(AcquireTaskRequest(supported_task_types=["flwr-clientapp"]))
        if not (found.HasField("task") and found.token):
            stop.wait(poll_seconds)
            continue
        on_task(True)
        _answer_one(answer, address=address, token=found.token)
        on_task(False)


def die_with_parent(parent: int) -> None:
    """End this process when the process `parent` is gone."""
    start_parent_process_monitor(parent)


def _answer_one(answer: Callable[[Message, Context], Message], *, address: str, token: str) -> None:
    client = _client(address, RuntimeTokenHttpInterceptor(token))
    heartbeat = HeartbeatSender(make_task_heartbeat_fn_http(client))
    heartbeat.start()
    message: Message | None = None
    context: Context | None = None
    status = SubStatus.FAILED
    started = time.perf_counter()
    try:
        message, context = _pull(client)
        try:
            reply = answer(message, context)
            status = SubStatus.COMPLETED
        except Exception:
            # Flower would send the text of the error to the server.
            logger.exception("the app failed; the server hears only that")
            reply = Message(Error(code=CLIENT_FAILED, reason=FAILED_TEXT), reply_to=message)
        push_message(client, reply, context)
        logger.info("a %s message was answered in %.2f s", message.metadata.message_type, time.perf_counter() - started)
    except ObjectPullError:
        logger.error("a message did not arrive whole; this process ends, so that the SuperNode does not wait for its answer")
        os._exit(LOST)
    except Exception as error:  # noqa: BLE001 - whatever came, the next message is answered
        logger.warning("a message could not be taken or answered (%s)", type(error).__name__)
        status = SubStatus.FAILED
    finally:
        push_task_output(client, context, status, "" if status == SubStatus.COMPLETED else FAILED_TEXT)
        heartbeat.stop()
        client.close()


def _pull(client: Any) -> tuple[Message, Context]:
    """The message and its context; the bundle that comes with them is left where it is.

    Flower's own way waits for ever for a part whose sender was killed.
    """
    given = client.PullTaskInput(PullTaskInputRequest())
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = given.task_id, given.run.run_id, given.context.node_id
    context = context_from_proto(given.context)
    found = client.PullMessages(PullAppMessagesRequest())
    if not found.messages_list:
        raise RuntimeError("the SuperNode has no message for a task")
    node, tree = Node(node_id=context.node_id), found.message_object_trees[0]
    pull_one = make_pull_object_fn_protobuf(client.PullObject, node, context.run_id)
    last = [time.monotonic()]

    def pull(identifier: str) -> bytes:
        if time.monotonic() > last[0] + IDLE_SECONDS:
            raise ObjectPullError(identifier, "no part of the message came any more")
        content: bytes = pull_one(identifier)
        last[0] = time.monotonic()
        return content

    confirm = make_confirm_message_received_fn_protobuf(client.ConfirmMessageReceived, node, context.run_id)
    about = metadata_from_proto(found.messages_list[0].metadata)
    try:
        message = inflated(tree.object_id, contents_of(tree, pull, most_bytes=TASK_BYTES), most_bytes=TASK_BYTES)
    except DataError as error:
        logger.warning("a message from the server is refused: %s", error)
        message = empty_message(about)
    confirm(tree.object_id)
    # What travels does not hold its own name.
    message.metadata.__dict__["_message_id"] = tree.object_id
    return message, context


def _client(address: str, interceptor: Any) -> Any:
    make_direct_lines()
    return RuntimeHttpClient.from_server_address(
        server_address=address,
        insecure=True,
        root_certificates=None,
        interceptors=[RuntimeVersionHttpInterceptor(component_name="flwr-clientapp"), interceptor],
        retry_invoker=make_simple_http_retry_invoker(),
    )
