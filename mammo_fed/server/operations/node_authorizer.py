"""Which nodes may connect: the keys of a federation's registry, brought to the SuperLink while it runs."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Final

from mammo_fed.common.private_files import write_private
from mammo_fed.errors import MammoFedError
from mammo_fed.federation.flwr_internals.control import CONTROL_ERRORS, Control, node_key
from mammo_fed.federation.identity.clocks import CLOCK_TOLERANCE_SECONDS, difference, read_wrong_clocks
from mammo_fed.server.operations.registry import Registry
from mammo_fed.server.operations.watch.presence import Presence

__all__ = ["NodeAuthorizer"]

CHECK_SECONDS: Final = 2.0


class NodeAuthorizer:
    """Keeps the SuperLink's nodes and the registry the same: registered keys may connect, others are unregistered at once.

    Args:
      registry: of the federation.
      control: of the SuperLink.
      roster: file that tells the server's app which node is which site.
      most_images: file that tells it what sites may declare at most.
      clocks: file in which the SuperLink's guard notes sites that it refused for their clocks.
      presence: of the sites; told whose node is there.
      say: called with a line for every change.
    """

    def __init__(
        self,
        registry: Registry,
        control: Control,
        roster: Path,
        most_images: Path,
        *,
        clocks: Path,
        presence: Presence,
        say: Callable[[str], None],
    ) -> None:
        self._registry, self._control, self._roster, self._say = registry, control, roster, say
        self._presence, self._clocks = presence, clocks
        self._said_of_clocks: dict[bytes, float] = {}
        self._most_images = most_images
        self._limits: dict[str, int] | None = None
        self._due = 0.0
        self._written: dict[int, str] | None = None
        self._complaint = ""

    def check(self) -> None:
        """Bring changes over, if it is time to look; a registry that cannot be read changes nothing."""
        if time.monotonic() < self._due:
            return
        self._due = time.monotonic() + CHECK_SECONDS
        try:
            sites = self._registry.read()
            wanted = {node_key(site.key.file_content(site.name)): site.name for site in sites}
        except MammoFedError as error:
            if str(error) != self._complaint:
                self._say(f"the registered keys cannot be read: {error}")
            self._complaint = str(error)
            return
        self._complaint = ""
        self._name_clocks(wanted)
        # Before anybody may come in whom they are for.
        self._write_limits({site.name: site.max_images for site in sites if site.max_images is not None})
        nodes = self._control.nodes()
        for node in nodes:
            if node.public_key not in wanted:
                who = (self._written or {}).get(node.identifier, f"node {node.identifier}")
                self._try(partial(self._control.unregister, node.identifier), f"{who} is shut out: its key is not registered")
        missing = wanted.keys() - {node.public_key for node in nodes}
        for key in missing:
            self._try(partial(self._control.register, key), f"{wanted[key]} may come in")
        if missing:
            nodes = self._control.nodes()
        roster = {node.identifier: wanted[node.public_key] for node in nodes if node.public_key in wanted}
        if roster != self._written or not _is_written(self._roster, roster):
            write_private(self._roster, json.dumps(roster).encode())
            self._written = roster
        there = {wanted[node.public_key]: node.online for node in nodes if node.public_key in wanted}
        for line in self._presence.note(there):
            self._say(line)

    def _name_clocks(self, wanted: Mapping[bytes, str]) -> None:
        """Say which sites are refused for their clocks: once, and again where the difference has become another."""
        for key, ahead in read_wrong_clocks(self._clocks).items():
            said = self._said_of_clocks.get(key)
            if key not in wanted or (said is not None and abs(ahead - said) < CLOCK_TOLERANCE_SECONDS):
                continue
            self._said_of_clocks[key] = ahead
            self._say(
                f"{wanted[key]} is refused: its clock is {difference(ahead)} this machine's, and {CLOCK_TOLERANCE_SECONDS:g} s "
                "are allowed; one of the two machines has to set its clock"
            )

    def _write_limits(self, limits: dict[str, int]) -> None:
        if limits != self._limits or not _is_written(self._most_images, limits):
            write_private(self._most_images, json.dumps(limits).encode())
            self._limits = limits

    def _try(self, change: Callable[[], None], done: str) -> None:
        """Make one change; one that fails must not keep the others from being made, and is tried again at the next look."""
        try:
            change()
        except CONTROL_ERRORS as error:
            self._say(f"not done: {done} ({type(error).__name__})")
        else:
            self._say(done)


def _is_written(path: Path, table: Mapping[int, str] | Mapping[str, int]) -> bool:
    """Whether the file still says so: a disk may have lost it."""
    try:
        return path.read_text(encoding="utf-8") == json.dumps(table)
    except (OSError, ValueError):
        return False
