"""Processes that import nothing from the current folder.

Python puts the current folder first on the path of `python -m` and `python -c`: a file `client.py` or `numpy.py` that lies
where a command is started would be executed in every process that the command starts. `-P` leaves the folder out; the
variable PYTHONSAFEPATH does the same in the processes that those start in turn, whose commands are not ours to write. `-I`
would also drop PYTHONPATH and the user's own packages, where a hospital may have installed this one.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from concurrent.futures import ProcessPoolExecutor

__all__ = ["absolute_entries", "isolate_children", "isolated_environment", "python_command", "spawned_pool"]


def python_command(module: str, *arguments: str) -> list[str]:
    """The command that runs a module of this installation with this Python, without the current folder on its path."""
    return [sys.executable, "-P", "-m", module, *arguments]


def isolated_environment() -> dict[str, str]:
    """This process's environment for a child: no Python below it looks into the current folder.

    An entry of PYTHONPATH that is empty or relative means the current folder or one below it; `PYTHONPATH=$PYTHONPATH:/opt/x`
    leaves one where the variable was not set before.
    """
    environment = {**os.environ, "PYTHONSAFEPATH": "1"}
    if path := absolute_entries(environment.pop("PYTHONPATH", "")):
        environment["PYTHONPATH"] = path
    return environment


def isolate_children() -> None:
    """Change this process's environment to `isolated_environment`, for libraries that start processes themselves."""
    isolated = isolated_environment()
    os.environ.update(isolated)
    if "PYTHONPATH" not in isolated:
        os.environ.pop("PYTHONPATH", None)


@contextmanager
def spawned_pool(processes: int, initializer: Callable[[], object] | None = None) -> Iterator[ProcessPoolExecutor]:
    """A pool of fresh Python processes: a fork of one that has torch's threads may hang.

    The processes leave Ctrl-C to this one, and end with it however it ends. What the block raises ends them at once: nobody
    waits for what is in hand, and what is queued must not go on behind anybody's back.

    Args:
      processes: at a time, >= 1.
      initializer: called in each process first; a function of a module.
    """
    # Imported here: every worker process imports this module, and few commands start a pool.
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import active_children, get_context

    isolate_children()
    pool = ProcessPoolExecutor(
        processes, mp_context=get_context("spawn"), initializer=_begin_worker, initargs=(initializer or _nothing,)
    )
    before = active_children()
    try:
        yield pool
    except BaseException:
        for child in active_children():
            if child not in before:
                child.terminate()
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown()


def _begin_worker(initializer: Callable[[], object]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    initializer()


def _end_with_parent() -> None:
    """End with the process that waits: one that was killed must leave nobody behind who writes where the next one will."""
    from multiprocessing import parent_process

    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _nothing() -> None:
    pass


def absolute_entries(path: str) -> str:
    """A search path such as PYTHONPATH without its empty and relative entries.

    >>> absolute_entries(":/opt/x:lib")
    '/opt/x'
    """
    return os.pathsep.join(entry for entry in path.split(os.pathsep) if os.path.isabs(entry))
