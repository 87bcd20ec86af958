"""The process at a site that answers the server: the installed app, kept warm, with the site's own file.

Code that comes with a run is never read. It ends when its supervisor is gone, and finishes what it has begun when
asked to stop.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from flwr.app import Context, Message

from mammo_fed.client.backup.outside import remember_outside
from mammo_fed.client.operations.activity import ActivityLog
from mammo_fed.client.operations.activity_lines import ACTIVITY_NAME
from mammo_fed.client.operations.supervisor import HEALTH_NAME
from mammo_fed.client.policy import read_site_file
from mammo_fed.client.rounds.app import make_app
from mammo_fed.client.rounds.site import open_site
from mammo_fed.common.private_files import write_private
from mammo_fed.errors import MammoFedError
from mammo_fed.federation.flwr_internals.messages import quiet
from mammo_fed.federation.flwr_internals.runtime import die_with_parent, serve_messages
from mammo_fed.federation.flwr_internals.supernode import end_with_any_thread

__all__ = ["main"]

logger = logging.getLogger(__name__)


class _Health:
    """What this process does, in a file for the supervisor."""

    def __init__(self, path: Path, *, holds: Callable[[], bool]) -> None:
        self._path, self._holds, self._answered, self._begun = path, holds, 0, 0.0

    def write(self, busy: bool) -> None:
        """Note that a message begins, or that its answer has been handed over."""
        if busy:
            self._begun = time.time()
        elif self._begun:
            self._answered += 1
        values = {
            "busy_since": self._begun if busy else None,
            "answered": self._answered,
            "time": time.time(),
            "holds_state": self._holds(),
        }
        try:
            write_private(self._path, json.dumps(values).encode())
        except OSError as error:
            logger.warning("health cannot be written (%s)", error.strerror)


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until asked to stop."""
    parser = argparse.ArgumentParser(prog="mammo_fed.client.operations.executor", description="answers one site's messages")
    parser.add_argument("--address", required=True, help="of the SuperNode on this machine")
    parser.add_argument("--secret-file", required=True, type=Path, help="shared with the SuperNode")
    parser.add_argument("--site-file", required=True, type=Path, help="what makes the site")
    parser.add_argument("--state", required=True, type=Path, help="folder for the health file")
    parser.add_argument("--parent-pid", type=int, required=True, help="of the supervisor")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    quiet()
    die_with_parent(options.parent_pid)
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    # Flower interrupts its own process when the SuperNode does not know it any more; threads that wait must not keep it.
    end_with_any_thread()
    signal.signal(signal.SIGINT, lambda *_: os._exit(1))
    site_file = str(options.site_file.resolve())
    answered: list[bool] = []
    # Before the first task the site is not opened for this: it takes a while, and holds nothing.
    health = _Health(options.state / HEALTH_NAME, holds=lambda: bool(answered) and open_site(Path(site_file)).goes_on)
    health.write(False)
    activity = ActivityLog(options.state / ACTIVITY_NAME)
    app = make_app(activity.note)

    def on_task(busy: bool) -> None:
        health.write(busy)
        if not busy:
            activity.write()

    def answer(message: Message, context: Context) -> Message:
        # The site's own file, whatever came with the message: neither the bundle nor the SuperNode decides whose data this is.
        own = Context(
            run_id=context.run_id,
            node_id=context.node_id,
            node_config={"site-file": site_file},
            state=context.state,
            run_config={},
        )
        reply = app(message, own)
        # Before the reply leaves: a backup from before it is an old one from then on.
        with suppress(MammoFedError):
            remember_outside(read_site_file(options.site_file))
        # Only where the site could be opened: one that fails is opened again at the next task.
        answered[:] = [True] if not reply.has_error() else []
        return reply

    logger.info("ready for %s", options.address)
    secret = options.secret_file.read_bytes().strip()
    serve_messages(answer, address=options.address, secret=secret, stop=stop, on_task=on_task)
    return 0


if __name__ == "__main__":
    sys.exit(main())
