"""Which sites are there in a run between real machines: who answers, who is missing, who is revoked, who is asked on the side.

It is kept in a file that is replaced in one step at every change: people and programs read it, and a process that goes on with
the run learns from it to whom the one before may have sent the round's task.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias, get_args

from mammo_fed.common.private_files import write_private
from mammo_fed.errors import RunFailed
from mammo_fed.federation.protocol.task import DECLARATION_ROUND
from mammo_fed.server.rounds.delivery import Presence

__all__ = ["MISSED_UNTIL_ASIDE", "Attendance", "State"]

logger = logging.getLogger(__name__)

State: TypeAlias = Literal["asked", "answered", "missing", "aside", "revoked", "refused"]
"""What is known of a site: it is asked and waited for, has answered the round, was missing in the last one, is asked on the
side, may not come any more, or takes no part."""

# Rounds in a row after which a silent site is asked on the side.
MISSED_UNTIL_ASIDE: Final = 2
PAUSE_SECONDS: Final = 2.0


@dataclass(kw_only=True)
class _Entry:
    """A site: its state and since when (Unix time), rounds missed in a row, and whether it may have the round's task."""

    state: State
    since: float
    missed: int = 0
    sent: bool = False


class Attendance(Presence):
    """Keeps the attendance of a run.

    Args:
      path: of the file.
      roster: the registered sites' names by node; always empty where sites come without keys.
      rounds: of the run.
      patience: seconds in which a disk that is full or away is tried again before the run stops.
    """

    def __init__(self, path: Path, roster: Callable[[], Mapping[int, str]], *, rounds: int, patience: float = 600.0) -> None:
        self._path, self._roster, self._rounds, self._patience = path, roster, rounds, patience
        self._sites: dict[str, _Entry] = {}
        self._round, self._attempt, self._begun, self._deadline = DECLARATION_ROUND - 1, 0, 0.0, 0.0
        self._keyed = False
        # Of an earlier process: the round in which it stopped, and who may have that round's task; None if that is not known.
        self._earlier: frozenset[str] | None = frozenset()
        self._earlier_round = DECLARATION_ROUND - 1

    def resume(self, next_round: int) -> None:
        """Take up what an earlier process left; where that cannot be read, every site may have the task of `next_round`."""
        self._earlier_round = next_round
        try:
            found = json.loads(self._path.read_text(encoding="utf-8"))
            self._sites = {str(name): _entry(values) for name, values in found["sites"].items()}
            begun = int(found["round"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            self._sites, self._earlier = {}, None
            return
        for entry in self._sites.values():
            entry.sent = entry.sent and begun == next_round
        self._earlier = frozenset(name for name, entry in self._sites.items() if entry.sent)

    def begin(self, index: int, *, attempt: int, seconds: float, sites: Sequence[str]) -> None:
        """See `Presence`; what was sent in an earlier try of the same round stays noted."""
        now, new = time.time(), index not in (self._round, self._earlier_round)
        self._round, self._attempt, self._begun, self._deadline = index, attempt, now, now + seconds
        aside = self.aside(sites)
        for entry in self._sites.values():
            entry.sent = entry.sent and not new
        for site in sites:
            self._entry(site).sent |= self.may_have_task(site, index)
            self._set(site, "aside" if site in aside else "asked")
        self._write_surely()

    def asking(self, sites: Iterable[str]) -> None:
        """See `Presence`.

        Raises:
          RunFailed: If the disk stays full or away.
        """
        new = [site for site in sites if not self._entry(site).sent]
        for site in new:
            self._entry(site).sent = True
        if new:
            self._write_surely()

    def answered(self, sites: Iterable[str]) -> None:
        """See `Presence`."""
        for site in sites:
            self._set(site, "answered")
        self._write()

    def end(self, sites: Iterable[str], *, alive: Iterable[str]) -> None:
        """See `Presence`; who missed too many rounds in a row is asked on the side from now on."""
        alive = set(alive)
        for site in sites:
            entry = self._entry(site)
            if site in alive:
                entry.missed = 0
            elif entry.state not in ("revoked", "refused"):
                entry.missed += 1
                self._set(site, "aside" if entry.missed >= MISSED_UNTIL_ASIDE else "missing")
                if entry.missed == MISSED_UNTIL_ASIDE:
                    logger.warning("%s missed %d rounds in a row; it is asked on, and waited for no more", site, entry.missed)
        self._write()

    def back(self, sites: Iterable[str]) -> None:
        """See `Presence`: they are waited for again, and asked on the side after one more round that they miss."""
        for site in sites:
            entry = self._entry(site)
            if entry.missed >= MISSED_UNTIL_ASIDE:
                logger.info("%s is there again", site)
            entry.missed = min(entry.missed, MISSED_UNTIL_ASIDE - 1)

    def aside(self, sites: Iterable[str]) -> frozenset[str]:
        """See `Presence`; where all would be, nobody is."""
        names = set(sites)
        found = frozenset(site for site in names if site in self._sites and self._sites[site].missed >= MISSED_UNTIL_ASIDE)
        return frozenset() if found == names else found

    def revoked(self, sites: Iterable[str]) -> frozenset[str]:
        """See `Presence`: sites that the roster does not name any more."""
        registered = set(self._roster().values())
        self._keyed = self._keyed or bool(registered)
        found = frozenset(site for site in sites if site not in registered) if self._keyed else frozenset[str]()
        for site in found:
            if self._entry(site).state != "revoked":
                logger.warning("the registration of %s was revoked: its part in the run ends", site)
                self._set(site, "revoked")
                self._write()
        return found

    def may_have_task(self, site: str, index: int) -> bool:
        """See `Presence`."""
        return index == self._earlier_round and (self._earlier is None or site in self._earlier)

    def refused(self, sites: Iterable[str]) -> None:
        """Sites take no part."""
        for site in sites:
            if self._entry(site).state != "revoked":
                self._set(site, "refused")
        self._write()

    def as_dict(self) -> dict[str, Any]:
        """Values that strict JSON knows."""
        stage = {DECLARATION_ROUND: "declaration", 0: "mean"}.get(self._round, "train")
        return {
            "stage": stage,
            "round": self._round,
            "rounds": self._rounds,
            "attempt": self._attempt,
            "begun": self._begun,
            "deadline": self._deadline,
            "sites": {name: asdict(entry) for name, entry in sorted(self._sites.items())},
        }

    def _entry(self, site: str) -> _Entry:
        return self._sites.setdefault(site, _Entry(state="asked", since=time.time()))

    def _set(self, site: str, state: State) -> None:
        entry = self._entry(site)
        if entry.state != state:
            entry.state, entry.since = state, time.time()

    def _write(self) -> None:
        """For readers: a disk that is full loses a change, and stops nothing."""
        try:
            write_private(self._path, json.dumps(self.as_dict(), allow_nan=False))
        except OSError as error:
            logger.warning("%s cannot be written (%s)", self._path.name, error.strerror)

    def _write_surely(self) -> None:
        """For a process that goes on later: return when it is on the disk."""
        until = time.monotonic() + self._patience
        while True:
            try:
                write_private(self._path, json.dumps(self.as_dict(), allow_nan=False))
            except OSError as error:
                if time.monotonic() > until:
                    raise RunFailed(
                        f"{self._path.name} cannot be written ({error.strerror}); free space on the server, then resume the run"
                    ) from error
                logger.warning("%s cannot be written (%s); it is tried again", self._path.name, error.strerror)
                time.sleep(PAUSE_SECONDS)
            else:
                return


def _entry(values: Mapping[str, Any]) -> _Entry:
    known = {field.name: values[field.name] for field in fields(_Entry)}
    if known["state"] not in get_args(State):
        raise ValueError("no state of a site")
    return _Entry(**known)
