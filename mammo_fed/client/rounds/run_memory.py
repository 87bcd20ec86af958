"""What a site keeps of each run on its disk, so that another process can answer the run's rounds."""

from __future__ import annotations

import hashlib
import io
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from mammo_fed.common.private_files import write_private
from mammo_fed.errors import DataError, InvalidSetting, MammoFedError, PolicyRefused
from mammo_fed.federation.protocol.task import Declaration

__all__ = ["RunLost", "RunMemory"]

DECLARATION_NAME: Final = "declaration.json"
PAYLOAD_NAME: Final = "payload.npy"
# A run that was not ended may be resumed: so long its payload is kept beside those of later runs.
OLD_DAYS: Final = 30
OLD_SECONDS: Final = OLD_DAYS * 86_400.0
PAYLOAD_HASH_NAME: Final = "payload.sha256"


class RunLost(InvalidSetting):
    """What a run was declared with is not here, or not whole: it was never declared at this site, or must be again."""


class RunMemory:
    """The runs that were declared at one site; each has a private folder.

    What is lost of it costs nothing: the ledger knows what a run was charged, and the server declares it to the site again.

    Args:
      folder: the site's private folder.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "runs"

    def folder(self, run_id: str) -> Path:
        """The run's folder, which may not be there yet.

        Raises:
          InvalidSetting: If `run_id` could be a path.
        """
        if not run_id.isalnum():
            raise InvalidSetting("run_id must be letters and digits")
        return self._folder / run_id

    def keep(self, declaration: Declaration, payload: NDArray[np.float32]) -> None:
        """Keep a run that was accepted. The declaration is written last: where it is, the payload is too."""
        folder = self.folder(declaration.run_id)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        buffer = io.BytesIO()
        np.save(buffer, payload, allow_pickle=False)
        content = buffer.getvalue()
        write_private(folder / PAYLOAD_HASH_NAME, hashlib.sha256(content).hexdigest())
        write_private(folder / PAYLOAD_NAME, content)
        write_private(folder / DECLARATION_NAME, declaration.to_json().encode())
        self._forget_old(declaration.run_id)

    def end(self, run_id: str) -> None:
        """Give back the room of a run in whose last round this site has answered: replies come from the ledger from now on."""
        for name in (PAYLOAD_NAME, PAYLOAD_HASH_NAME):
            (self.folder(run_id) / name).unlink(missing_ok=True)

    def _forget_old(self, newest: str) -> None:
        """Give back the room of runs that were declared long before this one; what they were declared with stays known."""
        for payload in self._folder.glob(f"*/{PAYLOAD_NAME}"):
            with suppress(OSError):
                if payload.parent.name != newest and time.time() - payload.stat().st_mtime > OLD_SECONDS:
                    self.end(payload.parent.name)

    def check_same(self, declaration: Declaration) -> None:
        """PolicyRefused where the run was declared here before in another way: what was agreed on holds for the whole run."""
        try:
            known = self.declaration(declaration.run_id)
        except RunLost:
            # The ledger still holds the run's schedule, and lets it be declared in no other way.
            return
        if known != declaration:
            raise PolicyRefused(f"run {declaration.run_id} was declared here before in another way; another run needs a new id")

    def declaration(self, run_id: str) -> Declaration:
        """What the run was declared with; the site's policy may have changed since.

        Raises:
          RunLost: If the run was never declared here, or that is lost.
        """
        try:
            text = (self.folder(run_id) / DECLARATION_NAME).read_text(encoding="utf-8")
        except FileNotFoundError as error:
            raise RunLost(f"run {run_id} was never declared at this site") from error
        except (OSError, UnicodeDecodeError) as error:
            raise RunLost(f"{DECLARATION_NAME} of run {run_id} cannot be read; the run is declared again") from error
        try:
            return Declaration.from_json(text)
        except MammoFedError as error:
            raise RunLost(f"{DECLARATION_NAME} of run {run_id} is damaged; the run is declared again") from error

    def payload(self, run_id: str) -> NDArray[np.float32]:
        """The public things that the run starts from, float32, flat.

        Raises:
          RunLost: If they cannot be read, or are not those that were kept; the run is to be declared again.
        """
        folder = self.folder(run_id)
        try:
            content = (folder / PAYLOAD_NAME).read_bytes()
            # An earlier release kept no hash; what it kept is checked when it is used.
            path = folder / PAYLOAD_HASH_NAME
            known = path.read_text(encoding="ascii").strip() if path.exists() else hashlib.sha256(content).hexdigest()
            if hashlib.sha256(content).hexdigest() != known:
                raise DataError("it is not what was kept")
            payload: NDArray[np.float32] = np.load(io.BytesIO(content), allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise RunLost(f"{PAYLOAD_NAME} of run {run_id} cannot be read; the run is declared again") from error
        return payload
