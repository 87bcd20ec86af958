"""How the server's executor hands a task's token over: not where other users of the machine can read it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from mammo_fed.federation.flwr_internals.superexec import TokensByFile

TOKEN = "0123456789abcdef" * 4
# As Flower's commands read it; then it waits until its standard input ends.
READER = """
import pathlib, sys
from flwr.common.args import add_args_flwr_app_common, try_obtain_flwr_app_token
import argparse
parser = argparse.ArgumentParser()
add_args_flwr_app_common(parser)
print(try_obtain_flwr_app_token(parser.parse_args()), flush=True)
sys.stdin.read()
"""


def start(*arguments: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", READER, *arguments]
    return TokensByFile().Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def test_door_a_task_gets_its_token_and_its_command_line_does_not_show_it():
    process = start("--insecure", "--token", TOKEN)
    with process:
        assert process.stdout is not None
        assert process.stdout.readline().decode().strip() == TOKEN
        shown = Path(f"/proc/{process.pid}/cmdline").read_bytes()
    assert TOKEN.encode() not in shown
    assert b"--insecure" in shown
    assert process.returncode == 0
