"""Runs a module as the program of a hostile site: `python hostile_site.py WHAT WRAPPER [-P] -m MODULE ...`.

WHAT is "declaration" or "train": which question it answers with what no site sends. The answers to tasks go through ATTACKS,
one after the other. The processes that it starts are hostile, too: they are started with `sys.executable`, the wrapper.
"""

from __future__ import annotations

import io
import itertools
import runpy
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from flwr.supercore.inflatable.inflatable_object import add_header_to_object_body

import mammo_fed.client.rounds.app as site_app
from mammo_fed.federation.protocol.messages import ARRAYS, PRIVACY, pack_reply
from mammo_fed.federation.protocol.replies import Accepted, Reply, Update


class Unreadable(Array):
    """An array whose description is no JSON; Flower's own transport carries it."""

    def deflate(self) -> bytes:
        self.children  # noqa: B018 - cuts the data
        content: bytes = add_header_to_object_body(object_body=b"[" * 5000, obj=self)
        return content.replace(b"Unreadable", b"Array", 1)


def _array(data: bytes, stype: str = "numpy.ndarray") -> Callable[[RecordDict], None]:
    def change(content: RecordDict) -> None:
        content[ARRAYS] = ArrayRecord({"flat": Array("float32", (7,), stype, data)})

    return change


def _field(name: str, value: Any) -> Callable[[RecordDict], None]:
    def change(content: RecordDict) -> None:
        content[PRIVACY] = ConfigRecord({**dict(content[PRIVACY]), name: value})  # type: ignore[arg-type]

    return change


def _of_flower(content: RecordDict) -> None:
    content[ARRAYS] = ArrayRecord({"flat": Unreadable("float32", (7,), "numpy.ndarray", b"x" * 50)})


def _zip() -> bytes:
    content = io.BytesIO()
    np.savez(content, np.ones(7, np.float32))
    return content.getvalue()


TERABYTES = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000,), }".ljust(117) + b"\n"
HEADER = b"\x93NUMPY\x01\x00" + len(TERABYTES).to_bytes(2, "little") + TERABYTES
ATTACKS: tuple[Callable[[RecordDict], None], ...] = (
    _field("events", "[" * 100_000),
    _field("events", '[{"noise_multiplier": ' + "9" * 400 + "}]"),
    _array(b"\x00" * 400),
    _array(HEADER),
    _array(_zip()),
    _array(HEADER, "torch.Tensor"),
    _of_flower,
)


def site_client(folder: Path, what: str) -> list[str]:
    """The command `site-client` of a hostile site; a wrapper around this Python is written into `folder`."""
    wrapper = folder / f"python-hostile-{what}"
    wrapper.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {shlex.quote(__file__)} {what} "$0" "$@"\n')
    wrapper.chmod(0o755)
    return [str(wrapper), "-m", "mammo_fed.client.operations.cli"]


def be_hostile(what: str) -> None:
    """From now on the site's app in this process answers so."""
    attacks: Iterator[Callable[[RecordDict], None]] = itertools.cycle(ATTACKS)

    def packed(reply: Reply) -> RecordDict:
        content = pack_reply(reply)
        if isinstance(reply, Update) and what == "train":
            next(attacks)(content)
        elif isinstance(reply, Accepted) and what == "declaration":
            _field("cap-raised", "[" * 100_000)(content)
        return content

    setattr(site_app, "pack_reply", packed)  # noqa: B010 - it is final to every other program


if __name__ == "__main__":
    _, what, wrapper, *rest = sys.argv
    be_hostile(what)
    sys.executable = wrapper
    sys.argv = rest[rest.index("-m") + 1 :]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
