"""A SuperNode that ends when one of its threads does; run as a module, with a SuperNode's own options.

Flower's heartbeat ends for good at one answer that it does not expect, such as that of a server whose disk is full. The node
then goes on asking for work, and the server counts it as away for ever. Ended, it is started again by whoever keeps it.
"""

from __future__ import annotations

import logging
import os
import threading
from typing import Final

from flwr.supernode.cli import flower_supernode

__all__ = ["THREAD_DIED", "end_with_any_thread", "main"]

THREAD_DIED: Final = 70


def end_with_any_thread() -> None:
    """From now on this process ends when a thread of it ends by an exception."""

    def end(died: threading.ExceptHookArgs) -> None:
        name = died.thread.name if died.thread else "a thread"
        logging.getLogger(__name__).error("%s ended with %s; the process ends too", name, died.exc_type.__name__)
        os._exit(THREAD_DIED)

    threading.excepthook = end


def main() -> None:
    """Run a SuperNode."""
    end_with_any_thread()
    flower_supernode()


if __name__ == "__main__":
    main()
