"""A SuperNode that asks sooner for what comes next, and ends when any of its threads does; run as a module, with its options.

Flower's heartbeat ends for good at one answer that it does not expect, such as that of a server whose disk is full. The node
then continues to ask for work, and the server counts it as away for ever. Its main loop ends at what is no TLS, such as another
server's answer at the same port, while the thread that serves the executor keeps the process. Ended, it is started again by
whoever keeps it.

It also sleeps 3 s whenever there is no message, which is most of a round with frozen networks. Here the pause begins short
after every message and grows to those 3 s, so that sites that wait for long ask no more often than Flower's own.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from typing import Any, Final

from flwr.supernode import start_client_internal
from flwr.supernode.cli import flower_supernode

from mammo_fed.federation.flwr_internals.environment import PROXY_VARIABLE
from mammo_fed.federation.flwr_internals.lines import make_direct_lines, make_lines_through

__all__ = ["THREAD_DIED", "EagerPauses", "end_with_any_thread", "main"]

THREAD_DIED: Final = 70
FIRST_PAUSE_SECONDS: Final = 0.5
LAST_PAUSE_SECONDS: Final = 3.0
GROWTH: Final = 1.4
# Between looks for an answer of the executor on this machine.
ANSWER_SECONDS: Final = 0.2


class EagerPauses:
    """Replaces the module `time` in Flower's main loop, and for its function that pulls a message."""

    def __init__(self) -> None:
        self._pull = start_client_internal._pull_and_store_message
        self._next = FIRST_PAUSE_SECONDS

    def sleep(self, seconds: float) -> None:
        """Sleep as long as the time since the last message asks for; waits for an answer on this machine are short."""
        if seconds < LAST_PAUSE_SECONDS:
            time.sleep(min(seconds, ANSWER_SECONDS))
            return
        time.sleep(self._next)
        self._next = min(GROWTH * self._next, LAST_PAUSE_SECONDS)

    def pull(self, **arguments: Any) -> int | None:
        """Pull a message; one that is there makes the next pauses short again."""
        run: int | None = self._pull(**arguments)
        if run is not None:
            self._next = FIRST_PAUSE_SECONDS
        return run

    def install(self) -> None:
        """From now on Flower's main loop in this process pauses so."""
        names: Any = start_client_internal
        names.time, names._pull_and_store_message = self, self.pull


def end_with_any_thread() -> None:
    """From now on this process ends when a thread of it ends by an exception."""

    def end(died: threading.ExceptHookArgs) -> None:
        name = died.thread.name if died.thread else "a thread"
        logging.getLogger(__name__).error("%s ended with %s; the process ends too", name, died.exc_type.__name__)
        os._exit(THREAD_DIED)

    threading.excepthook = end


def main() -> None:
    """Run a SuperNode; its line to the server goes through the proxy that `PROXY_VARIABLE` names, and is direct without."""
    end_with_any_thread()
    # A command line can be read by everybody on the machine, and a proxy's URL may hold a password.
    if proxy := os.environ.pop(PROXY_VARIABLE, ""):
        make_lines_through(proxy)
    else:
        make_direct_lines()
    EagerPauses().install()
    try:
        flower_supernode()
    except Exception as error:  # noqa: BLE001 - whatever ended it, what is left asks for nothing any more
        logging.getLogger(__name__).error("the main loop ended with %s; the process ends too", type(error).__name__)
    # It ends well by a signal only, with SystemExit.
    os._exit(THREAD_DIED)


if __name__ == "__main__":
    main()
