"""Flower's SuperExec, which hands a task's token over in a file without a name: `python -m ...superexec`, with its own options.

Flower's own writes the token on the command line of the server's app, where `ps` shows it to every user of the machine.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from typing import Any, Final

from flwr.supercore.cli.flower_superexec import flower_superexec
from flwr.supercore.superexec.executor import subprocess_executor

__all__ = ["TokensByFile", "main"]

TOKEN: Final = "--token"  # noqa: S105 - the option's name
TOKEN_FILE: Final = "--token-file"  # noqa: S105 - the option's name


class TokensByFile:
    """Replaces the module `subprocess` where Flower starts what runs a task."""

    DEVNULL: Final = subprocess.DEVNULL

    def Popen(self, arguments: Sequence[str], **named: Any) -> subprocess.Popen[bytes]:  # noqa: N802 - subprocess's name
        """Start a process whose token, if it has one, is read from memory that it alone inherits."""
        if TOKEN not in arguments:
            return subprocess.Popen(arguments, **named)
        at = list(arguments).index(TOKEN)
        token = os.memfd_create("token", os.MFD_CLOEXEC)
        try:
            os.write(token, arguments[at + 1].encode("ascii"))
            changed = [*arguments[:at], TOKEN_FILE, f"/proc/self/fd/{token}", *arguments[at + 2 :]]
            return subprocess.Popen(changed, pass_fds=(token,), **named)
        finally:
            os.close(token)

    def install(self) -> None:
        """From now on Flower in this process starts processes so."""
        names: Any = subprocess_executor
        names.subprocess = self


def main() -> None:
    """Run a SuperExec."""
    TokensByFile().install()
    flower_superexec()


if __name__ == "__main__":
    main()
