"""Every site in this process: a Grid that hands each message straight to the client app."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from mammo_fed.federation.flwr_internals.messages import (
    CLIENT_FAILED,
    SERVER_NODE_ID,
    become_server,
    empty_run,
    own_copy,
    stamp,
    through_the_wire,
)

__all__ = ["InProcessGrid", "run_in_process"]

RUN_ID = 1
FIRST_NODE_ID = 2


class InProcessGrid(Grid):
    """Sites as calls: one context per site, one message at a time for each site, several sites at once.

    Args:
      client_app: the app that answers.
      num_sites: nodes to pretend.
      run_config: what every context carries.
      workers: threads.
      wire: send every message and reply through Flower's real serialisation.
    """

    def __init__(
        self, client_app: ClientApp, *, num_sites: int, run_config: Mapping[str, Any], workers: int, wire: bool
    ) -> None:
        self._client_app, self._wire = client_app, wire
        self._run = empty_run(RUN_ID)
        become_server(RUN_ID)
        self._contexts = {
            FIRST_NODE_ID + i: Context(
                run_id=RUN_ID,
                node_id=FIRST_NODE_ID + i,
                node_config={"partition-id": i, "num-partitions": num_sites},
                state=RecordDict(),
                run_config=dict(run_config),
            )
            for i in range(num_sites)
        }
        self._locks = {node: threading.Lock() for node in self._contexts}
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="site")
        self._pending: dict[str, Future[Message]] = {}

    def close(self) -> None:
        """Start nothing more; what runs is left to end."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def set_run(self, run: Any) -> None:
        """Set the run (Flower's interface)."""
        self._run = run

    @property
    def run(self) -> Any:
        """The run (Flower's interface)."""
        return self._run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """A message to one site (Flower's interface)."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """All sites (Flower's interface)."""
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Start every message at its site and return the identifiers."""
        identifiers = []
        for message in messages:
            identifier = stamp(message)
            sent = through_the_wire(message) if self._wire else own_copy(message)
            self._pending[identifier] = self._pool.submit(self._answer, sent)
            identifiers.append(identifier)
        return identifiers

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Replies that are there."""
        done = [identifier for identifier in message_ids if identifier in self._pending and self._pending[identifier].done()]
        return [self._pending.pop(identifier).result() for identifier in done]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Start every message and wait for the replies, at most `timeout` seconds."""
        identifiers = list(self.push_messages(messages))
        wait([self._pending[identifier] for identifier in identifiers], timeout=timeout)
        return self.pull_messages(identifiers)

    def _answer(self, message: Message) -> Message:
        node = message.metadata.dst_node_id
        try:
            with self._locks[node]:
                reply = self._client_app(message, self._contexts[node])
        except Exception as error:  # noqa: BLE001 - what a SuperNode does: a failing app becomes an error reply
            reply = Message(Error(code=CLIENT_FAILED, reason=type(error).__name__), reply_to=message)
        stamp(reply)
        return through_the_wire(reply) if self._wire else reply


def run_in_process(
    server_app: ServerApp,
    client_app: ClientApp,
    *,
    num_sites: int,
    run_config: Mapping[str, Any],
    workers: int,
    wire: bool,
) -> None:
    """Run both apps in this process; whatever the server app raises is raised here."""
    grid = InProcessGrid(client_app, num_sites=num_sites, run_config=run_config, workers=workers, wire=wire)
    context = Context(run_id=RUN_ID, node_id=SERVER_NODE_ID, node_config={}, state=RecordDict(), run_config=dict(run_config))
    try:
        server_app(grid, context)
    finally:
        grid.close()
