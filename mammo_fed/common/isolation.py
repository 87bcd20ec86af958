"""Processes that import nothing from the current folder.

Python puts the current folder first on the path of `python -m` and `python -c`: a file `client.py` or `numpy.py` that lies
where a command is started would be executed in every process that the command starts. `-P` leaves the folder out; the
variable PYTHONSAFEPATH does the same in the processes that those start in turn, whose commands are not ours to write. `-I`
would also drop PYTHONPATH and the user's own packages, where a hospital may have installed this one.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
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


def spawned_pool(processes: int, initializer: Callable[[], object] | None = None) -> ProcessPoolExecutor:
    """A pool of fresh Python processes: a fork of one that has torch's threads may hang.

    Args:
      processes: at a time, >= 1.
      initializer: called in each process first; a function of a module.
    """
    # Imported here: every worker process imports this module, and few commands start a pool.
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    isolate_children()
    return ProcessPoolExecutor(processes, mp_context=get_context("spawn"), initializer=initializer)


def absolute_entries(path: str) -> str:
    """A search path such as PYTHONPATH without its empty and relative entries.

    >>> absolute_entries(":/opt/x:lib")
    '/opt/x'
    """
    return os.pathsep.join(entry for entry in path.split(os.pathsep) if os.path.isabs(entry))
