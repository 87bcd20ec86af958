"""What the command lines share: a table of commands, common options, one line for an error, exit codes, overrides anywhere."""

from __future__ import annotations

import argparse
import difflib
import json
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pkgutil import resolve_name
from typing import Any, Final

from rich.console import Console

from mammo_fed.common.interruption import Interrupted, interruptible, leave, received
from mammo_fed.common.isolation import isolate_children
from mammo_fed.common.serialization import plain
from mammo_fed.errors import MammoFedError

__all__ = ["INTERRUPTED", "Command", "CommandGroup", "CommandLine", "Handler", "print_json", "say", "warn"]

INTERRUPTED: Final = 130

Handler = Callable[[argparse.Namespace, Console], int]


@dataclass(frozen=True)
class Command:
    """A command that can be listed, and whose options can be shown, before the code behind it is imported.

    Attributes:
      name: what a person types.
      text: what it does, in one line.
      options: adds its options to a parser; belongs into a module that loads in no time.
      handler: "module:function" of a `Handler`, imported when the command is about to run.
    """

    name: str
    text: str
    options: Callable[[argparse.ArgumentParser], None]
    handler: str

    def add_to(self, parsers: Any, common: argparse.ArgumentParser) -> None:
        """Add the command to argparse's subparsers; each of its options beside those of `common`."""
        parser = parsers.add_parser(self.name, help=self.text, description=self.text, parents=[common])
        self.options(parser)
        if parser.epilog:
            parser.formatter_class = argparse.RawDescriptionHelpFormatter
        parser.set_defaults(command=self.handler)


@dataclass(frozen=True)
class CommandGroup:
    """Commands below a word of their own, such as `plan` and `show` of `mammo-fed privacy`."""

    name: str
    text: str
    commands: tuple[Command, ...]

    def add_to(self, parsers: Any, common: argparse.ArgumentParser) -> None:
        """Add the group and its commands to argparse's subparsers."""
        parser = parsers.add_parser(self.name, help=self.text, description=self.text)
        below = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
        for command in self.commands:
            command.add_to(below, common)


class CommandLine:
    """A program with commands, each of which gets `--json` and `--debug`.

    Args:
      program: its name.
      description: one sentence.
      interrupted: what to say after an interrupt.
      commands: in the order in which they are listed.
    """

    def __init__(self, program: str, description: str, *, interrupted: str, commands: Sequence[Command | CommandGroup]) -> None:
        self.parser = argparse.ArgumentParser(prog=program, description=description)
        self.parser.add_argument("--version", action="version", version=f"{program} {version('mammo-fed')}")
        self.commands = tuple(commands)
        self._interrupted = interrupted
        common = argparse.ArgumentParser(add_help=False)
        common.add_argument("--json", action="store_true", help="print the result as JSON on standard output")
        common.add_argument("--debug", action="store_true", help="show tracebacks")
        parsers = self.parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
        for command in self.commands:
            command.add_to(parsers, common)

    def run(self, arguments: Sequence[str] | None) -> int:
        """Parse, call the command, and return the exit code: 0 done, 1 failure, 2 bad input, 3 refused, 130 interrupted.

        SIGTERM and SIGHUP end a command as Ctrl-C does; the exit code is 128 and the signal's number.

        Args:
          arguments: those of a caller's program; None takes those of this process, which then ends when it is interrupted.
        """
        options = self.parse(arguments)
        isolate_children()
        console, whole = Console(stderr=True), arguments is None
        with interruptible(self._interrupted, whole_process=whole) as advice:
            code = self._call(options, console, advice)
            if whole and received():
                # Not through Python's own end, which waits for every thread.
                leave(code)
        return code

    def _call(self, options: argparse.Namespace, console: Console, advice: Callable[[], str]) -> int:
        try:
            # Only now, for it may bring seconds of imports along, which neither --help nor a mistyped option should wait for.
            handler: Handler = resolve_name(options.command)
            return handler(options, console)
        except KeyboardInterrupt as interrupt:
            console.print(advice(), style="yellow", highlight=False, markup=False, soft_wrap=True)
            return interrupt.exit_code if isinstance(interrupt, Interrupted) else INTERRUPTED
        except Exception as error:  # noqa: BLE001 - a person gets one line; --debug shows the rest
            return self._failed(error, options, console, advice)

    def _failed(self, error: Exception, options: argparse.Namespace, console: Console, advice: Callable[[], str]) -> int:
        if options.debug:
            traceback.print_exc()
        if number := received():
            # The signal has reached processes below this one too, or broke off a library's work: that is not what went wrong.
            console.print(advice(), style="yellow", highlight=False, markup=False, soft_wrap=True)
            return 128 + number
        if isinstance(error, MammoFedError):
            console.print(f"error: {error}", style="red", highlight=False, markup=False, soft_wrap=True)
            return error.exit_code
        text = f"internal failure: {type(error).__name__}: {error} (--debug shows where)"
        console.print(text, style="red", markup=False, soft_wrap=True)
        return 1

    def parse(self, arguments: Sequence[str] | None) -> argparse.Namespace:
        """The options of a command line; overrides may stand anywhere in it."""
        words = list(sys.argv[1:] if arguments is None else arguments)
        self._check_command(words)
        options, rest = self.parser.parse_known_args(words)
        # argparse takes positional arguments in one piece only: `simulate seed=1 -m privacy.delta=1e-4,1e-5` comes in two.
        if any(argument.startswith("-") or "=" not in argument for argument in rest) or (rest and "overrides" not in options):
            self.parser.error(f"unrecognized arguments: {' '.join(rest)}")
        if rest:
            options.overrides = [*options.overrides, *rest]
        return options

    def _check_command(self, words: Sequence[str]) -> None:
        """Answer an unknown command with its nearest neighbours, beside all that there are."""
        commands: Sequence[Command | CommandGroup] = self.commands
        for word in words[:2]:
            known = {command.name: command for command in commands}
            if word.startswith("-"):
                return
            if word not in known:
                near = difflib.get_close_matches(word, known, n=3, cutoff=0.5)
                hint = f"; did you mean {' or '.join(near)}?" if near else ""
                self.parser.error(f"argument COMMAND: invalid choice: {word!r} (choose from {', '.join(known)}){hint}")
            found = known[word]
            if isinstance(found, Command):
                return
            commands = found.commands


def say(console: Console, *lines: str) -> None:
    """Print lines for a person, as they are: no markup, no colours for numbers, no breaks within a path."""
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def warn(console: Console, line: str) -> None:
    """Print a line that nobody should miss."""
    console.print(f"WARNING: {line}", style="bold red", markup=False, highlight=False, soft_wrap=True)


def print_json(value: Any) -> None:
    """The result of a command as JSON on standard output."""
    sys.stdout.write(json.dumps(plain(value), indent=2, default=str) + "\n")
