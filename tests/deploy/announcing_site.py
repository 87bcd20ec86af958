"""A site that accepts a run and then announces answers that it never delivers.

It is the installed site-client, whose SuperNode keeps the content of every message but the first to itself. It is started as
`python announcing_site.py WRAPPER [-P] -m MODULE ...`; the processes that it starts are run by the same wrapper.
"""

from __future__ import annotations

import runpy
import shlex
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from flwr.supernode import start_client_internal

NODE_MODULE = "mammo_fed.federation.flwr_internals.supernode"


def site_client(folder: Path) -> list[str]:
    """The command `site-client` of such a site; a wrapper around this Python is written into `folder`."""
    wrapper = folder / "python-that-announces"
    wrapper.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {shlex.quote(__file__)} "$0" "$@"\n')
    wrapper.chmod(0o755)
    return [str(wrapper), "-m", "mammo_fed.client.operations.cli"]


class Keeper:
    """Pushes the content of one message, and of none after it."""

    def __init__(self, push: Callable[..., None]) -> None:
        self._push, self._messages = push, 0

    def __call__(self, contents: Iterable[tuple[str, bytes]], **named: Any) -> None:
        self._messages += 1
        if self._messages == 1:
            self._push(contents, **named)


if __name__ == "__main__":
    _, wrapper, *rest = sys.argv
    sys.executable = wrapper
    sys.argv = rest[rest.index("-m") + 1 :]
    if sys.argv[0] == NODE_MODULE:
        inside: Any = start_client_internal
        inside.push_object_contents_from_iterable = Keeper(inside.push_object_contents_from_iterable)
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
