"""Runs a module as a program of another version of the protocol: `python other_version.py VERSION WRAPPER [-P] -m MODULE ...`.

The processes that it starts are of that version, too: they are started with `sys.executable`, which is the wrapper.
"""

from __future__ import annotations

import runpy
import shlex
import sys
from pathlib import Path

import mammo_fed.federation.protocol.task as protocol


def site_client(folder: Path, version: int) -> list[str]:
    """The command `site-client` of another version; a wrapper around this Python is written into `folder`."""
    wrapper = folder / f"python-of-version-{version}"
    wrapper.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {shlex.quote(__file__)} {version} "$0" "$@"\n')
    wrapper.chmod(0o755)
    return [str(wrapper), "-m", "mammo_fed.client.operations.cli"]


if __name__ == "__main__":
    _, version, wrapper, *rest = sys.argv
    setattr(protocol, "PROTOCOL_VERSION", int(version))  # noqa: B010 - it is final to every other program
    sys.executable = wrapper
    sys.argv = rest[rest.index("-m") + 1 :]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
