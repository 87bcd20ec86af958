"""Of all copies of a training's folder, one goes on; and only generators that the ledger settled are drawn from.

The folder keeps the mark that the ledger gave it last, and the one that it asks for now; the ledger keeps all of them. A crash
anywhere leaves the ledger at one of the two. A copy of the folder has the mark of the moment when it was made: once the
original was resumed or made a checkpoint, the ledger is further, and the copy stops. A ledger can be copied too, with the
folder that it lies in or with its site's; so where it ends is remembered outside of both, for each training, in a folder of
the user (`state_root`).
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mammo_fed.client.charging import LedgerMemory, site_ledger
from mammo_fed.client.folder import SiteFolder
from mammo_fed.client.generator.training_folder import Training, load_average
from mammo_fed.client.policy import SiteFile
from mammo_fed.common.private_files import user_folder, write_private
from mammo_fed.errors import InvalidSetting, LedgerError
from mammo_fed.privacy.ledger.journal import storage_errors
from mammo_fed.privacy.ledger.lease import GONE_ON, Lease
from mammo_fed.privacy.ledger.ledger import Budget, Ledger
from mammo_fed.settings.gan import GanSettings
from mammo_fed.synthesis.checkpoints import checkpoint_steps, publish_drafts

__all__ = ["Settled", "TrainingLease", "check_paid", "settled_generators", "site_of", "state_root", "training_ledger"]

LEDGER_NAME: Final = "ledger"
LEDGER_SITE: Final = "donor"
LEASE_NAME: Final = "lease.json"
MEMORY_FOLDER: Final = "generators"


def state_root() -> Path:
    """Where the ends of trainings' own ledgers are remembered, outside of the trainings' folders.

    It is MAMMO_FED_STATE, else XDG_STATE_HOME/mammo-fed, else ~/.local/state/mammo-fed.

    Raises:
      InvalidSetting: If neither variable is set and the user has no home folder.
    """
    return user_folder("MAMMO_FED_STATE", shared="XDG_STATE_HOME", usual=".local/state", what="a training's state")


@contextmanager
def training_ledger(
    settings: GanSettings, folder: Path, training: Training, site: SiteFile | None
) -> Iterator[tuple[Ledger, Callable[[], None]]]:
    """The ledger that a training is charged to, and a call that remembers outside of it where it ends now.

    Args:
      settings: of the training.
      folder: of the training; without a site the ledger lies in it.
      training: what was decided when it began.
      site: whose ledger it is, or None.

    Raises:
      LedgerError: If the ledger is gone, an older copy, tampered with, or not writable.
    """
    memory = LedgerMemory(state_root() / MEMORY_FOLDER / training.run_id)
    if site is not None:
        with site_ledger(site, usual="declared") as ledger:
            _check_newest(memory, ledger)
            own = LedgerMemory(Path(site.folder) / "ledger-head")

            def remember() -> None:
                # The site's own after the outer one: of a copied site nothing is written where another copy went on.
                _advance(memory, ledger)
                own.keep(ledger)

            yield ledger, remember
        return
    memory.check_exists(folder / LEDGER_NAME)
    budget = Budget(max_epsilon=settings.privacy.target_epsilon, delta=settings.privacy.delta)
    with Ledger.open(folder / LEDGER_NAME, site=LEDGER_SITE, budget=budget, filter="declared") as ledger:
        _check_newest(memory, ledger)
        yield ledger, lambda: _advance(memory, ledger)


def _check_newest(memory: LedgerMemory, ledger: Ledger) -> None:
    try:
        memory.check_holds(ledger)
    except LedgerError as error:
        raise LedgerError(f"{GONE_ON} ({error})") from error


def _advance(memory: LedgerMemory, ledger: Ledger) -> None:
    _check_newest(memory, ledger)
    memory.advance(ledger)


class TrainingLease:
    """The marks that a training's folder keeps, and what they vouch for: its holder and the custody of its checkpoints.

    Args:
      folder: of the training.
      run_id: under which it is charged.
      ledger: that it is charged to.
      remember: notes outside of the ledger where that ends; raises where another copy was remembered since.
    """

    def __init__(self, folder: Path, *, run_id: str, ledger: Ledger, remember: Callable[[], None]) -> None:
        self._folder, self._run_id, self._ledger, self._remember = folder, run_id, ledger, remember
        self._current = self._pending = ""

    @property
    def token(self) -> str:
        """The latest mark that was granted."""
        return self._current

    def claim(self) -> Lease:
        """The step from the latest mark to a new one.

        Raises:
          LedgerError: If the ledger's latest mark is not one of those that are kept here.
        """
        latest = self._ledger.lease(run_id=self._run_id, round_index=0).latest
        if latest not in self._kept():
            raise LedgerError(GONE_ON)
        self._write(current=latest, pending=secrets.token_hex(16))
        return Lease(expected=latest, token=self._pending)

    def granted(self) -> None:
        """The ledger has the new mark: from now on this folder goes on, with the checkpoints that the ledger knows of."""
        self._remember()
        publish_drafts(self._folder, self._ledger.lease(run_id=self._run_id, round_index=0).tokens)
        self._write(current=self._pending, pending=self._pending)

    def mark(self, *, token: str, content_sha256: str, step: int) -> None:
        """Note a checkpoint in the ledger before it has its name; LedgerError where another copy of the folder went on."""
        self._write(current=self._current, pending=token)
        lease = Lease(expected=self._current, token=token, state_sha256=content_sha256, step=step)
        self._ledger.checkpoint(run_id=self._run_id, round_index=0, lease=lease)
        self._remember()
        self._write(current=token, pending=token)

    def check(self, *, content_sha256: str, step: int) -> None:
        """LedgerError unless this is the newest checkpoint that the ledger knows of, where it knows of any."""
        known = self._ledger.lease(run_id=self._run_id, round_index=0)
        if known.state_sha256 and (known.state_sha256, known.step) != (content_sha256, step):
            raise LedgerError(
                f"the newest checkpoint in {self._folder} is not that of step {known.step}, with which the training went on: "
                "steps that were shown would be taken again; restore that checkpoint, or train again in another folder"
            )

    def _kept(self) -> tuple[str, str]:
        with storage_errors():
            path = self._folder / LEASE_NAME
            if not path.exists():
                return "", ""
            text = path.read_text(encoding="utf-8")
        try:
            values = json.loads(text)
            return str(values["current"]), str(values["pending"])
        except (ValueError, KeyError, TypeError) as error:
            raise LedgerError(f"{path} is not what was written there; restore it from a backup of the same moment") from error

    def _write(self, *, current: str, pending: str) -> None:
        with storage_errors():
            write_private(self._folder / LEASE_NAME, json.dumps({"current": current, "pending": pending}) + "\n")
        self._current, self._pending = current, pending


@dataclass(frozen=True, kw_only=True)
class Settled:
    """The generators that a ledger settled: the hash of the last, and of every kept checkpoint by its step."""

    last: str
    checkpoints: Mapping[int, str]

    def reply(self) -> bytes:
        """As the ledger keeps it."""
        steps = {str(step): digest for step, digest in self.checkpoints.items()}
        return json.dumps({"generator_sha256": self.last, "checkpoints": steps}, sort_keys=True).encode()

    @classmethod
    def from_reply(cls, reply: bytes) -> Settled:
        """What the ledger keeps; one of an earlier version has the last hash alone."""
        values = json.loads(reply)
        steps = {int(step): str(digest) for step, digest in values.get("checkpoints", {}).items()}
        return cls(last=values["generator_sha256"], checkpoints=steps)


def settled_generators(
    settings: GanSettings, folder: Path, training: Training, *, site_folder: Path | None = None
) -> Settled | None:
    """What the ledger settled for a training with privacy; None where it has not ended.

    Args:
      settings: of the training.
      folder: of the training.
      training: what was decided when it began.
      site_folder: of the site whose ledger was charged; None is where it was when the training was resumed last.

    Raises:
      InvalidSetting: If it is not known where the site's folder is, or one is given for a training without a site.
      LedgerError: If the ledger is gone, an older copy or damaged.
    """
    site = site_of(training, site_folder)
    if site is None and not (folder / LEDGER_NAME).is_dir():
        raise LedgerError(
            f"{folder} has no ledger: a generator is drawn from where a ledger says that it was paid for; restore the folder"
        )
    with training_ledger(settings, folder, training, site) as (ledger, _):
        reply = ledger.stored_reply(run_id=training.run_id, round_index=0, task_hash=training.settings_sha256)
    return None if reply is None else Settled.from_reply(reply)


def check_paid(settings: GanSettings, folder: Path, settled: Settled) -> None:
    """LedgerError unless the folder holds the generator that the ledger settled: a copy of the folder may have another."""
    steps = checkpoint_steps(folder)
    if steps[-1:] != [settings.gan.steps] or load_average(settings, folder, steps[-1])[1] != settled.last:
        raise LedgerError(
            f"{folder} does not hold the generator that was paid for: the training ended in another copy of this folder; use "
            "that one, or restore it from a backup"
        )


def site_of(training: Training, site_folder: Path | None) -> SiteFile | None:
    """The file of the site whose ledger a training is charged to, None where the ledger is the training's own.

    Raises:
      InvalidSetting: If it is not known where the site's folder is, or one is given for a training without a site.
    """
    if not training.at_site:
        if site_folder is not None:
            raise InvalidSetting(f"--site={site_folder} is given, and the training is no site's; leave it out")
        return None
    place = site_folder or (Path(training.site_folder) if training.site_folder else None)
    if place is None or not place.is_dir():
        raise InvalidSetting("the training was charged to a site's ledger, and its folder is not known; give --site FOLDER")
    return SiteFolder.open(place).file
