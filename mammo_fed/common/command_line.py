"""What the command lines share: common options, one line for an error, exit codes, overrides in any place."""

from __future__ import annotations

import argparse
import json
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

from rich.console import Console

from mammo_fed import __version__
from mammo_fed.common.serialization import plain
from mammo_fed.errors import MammoFedError

__all__ = ["INTERRUPTED", "Command", "CommandLine", "describe", "print_json", "say", "warn"]

INTERRUPTED: Final = 130

Command = Callable[[argparse.Namespace, Console], int]


class CommandLine:
    """A program with commands, each of which gets `--json` and `--debug`.

    Args:
      program: its name.
      description: one sentence.
      interrupted: what to say after an interrupt.
    """

    def __init__(self, program: str, description: str, *, interrupted: str) -> None:
        self.parser = argparse.ArgumentParser(prog=program, description=description)
        self.parser.add_argument("--version", action="version", version=f"{program} {__version__}")
        self.commands = self.parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
        self.common = argparse.ArgumentParser(add_help=False)
        self.common.add_argument("--json", action="store_true", help="print the result as JSON on standard output")
        self.common.add_argument("--debug", action="store_true", help="show tracebacks")
        self._interrupted = interrupted

    def add(self, name: str, text: str, command: Command) -> argparse.ArgumentParser:
        """A command, described by `text`."""
        added: argparse.ArgumentParser = self.commands.add_parser(
            name,
            help=text,
            description=text,
            parents=[self.common],
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        added.set_defaults(command=command)
        return added

    def run(self, arguments: Sequence[str] | None) -> int:
        """Parse, call the command, and return the exit code: 0 done, 1 failure, 2 bad input, 3 refused, 130 interrupted."""
        options = self.parse(arguments)
        console = Console(stderr=True)
        try:
            command: Command = options.command
            return command(options, console)
        except KeyboardInterrupt:
            console.print(self._interrupted, style="yellow", highlight=False)
            return INTERRUPTED
        except MammoFedError as error:
            if options.debug:
                traceback.print_exc()
            console.print(f"error: {error}", style="red", highlight=False, markup=False, soft_wrap=True)
            return error.exit_code
        except Exception as error:  # noqa: BLE001 - a person gets one line; --debug shows the rest
            if options.debug:
                traceback.print_exc()
            console.print(
                f"internal failure: {type(error).__name__}: {error} (--debug shows where)",
                style="red",
                markup=False,
                soft_wrap=True,
            )
            return 1

    def parse(self, arguments: Sequence[str] | None) -> argparse.Namespace:
        """The options of a command line; overrides may stand anywhere in it."""
        options, rest = self.parser.parse_known_args(arguments)
        # argparse takes positional arguments in one piece only: `simulate seed=1 -m privacy.delta=1e-4,1e-5` comes in two.
        if any(argument.startswith("-") or "=" not in argument for argument in rest) or (rest and "overrides" not in options):
            self.parser.error(f"unrecognized arguments: {' '.join(rest)}")
        if rest:
            options.overrides = [*options.overrides, *rest]
        return options


def say(console: Console, *lines: str) -> None:
    """Print lines for a person, as they are: no markup, no colours for numbers, no breaks within a path."""
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def warn(console: Console, line: str) -> None:
    """Print a line that nobody should miss."""
    console.print(f"WARNING: {line}", style="bold red", markup=False, highlight=False, soft_wrap=True)


def describe(found: Mapping[str, Any]) -> Iterator[str]:
    """A mapping as lines for a person; a list of mappings in it becomes one line each."""
    for name, value in found.items():
        words = name.replace("_", " ")
        if isinstance(value, Sequence) and value and all(isinstance(item, Mapping) for item in value):
            yield f"{words}:"
            yield from ("  " + ", ".join(f"{key} {item[key]}" for key in item) for item in value)
        else:
            yield f"{words}: {value}"


def print_json(value: Any) -> None:
    """The result of a command as JSON on standard output."""
    sys.stdout.write(json.dumps(plain(value), indent=2, default=str) + "\n")
