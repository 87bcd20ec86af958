"""What a site keeps of each run on its disk, so that another process can answer the run's rounds."""

from __future__ import annotations

import io
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from mammo_fed.common.private_files import write_private
from mammo_fed.errors import DataError, InvalidSetting, PolicyRefused
from mammo_fed.federation.protocol.task import Declaration

__all__ = ["RunMemory"]

DECLARATION_NAME: Final = "declaration.json"
PAYLOAD_NAME: Final = "payload.npy"
# A run that was not ended may be resumed: so long its payload is kept beside those of later runs.
OLD_DAYS: Final = 30
OLD_SECONDS: Final = OLD_DAYS * 86_400.0


class RunMemory:
    """The runs that were declared at one site; each has a private folder.

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
        content = io.BytesIO()
        np.save(content, payload, allow_pickle=False)
        write_private(folder / PAYLOAD_NAME, content.getvalue())
        write_private(folder / DECLARATION_NAME, declaration.to_json().encode())
        self._forget_old(declaration.run_id)

    def end(self, run_id: str) -> None:
        """Give back the room of a run in whose last round this site has answered: replies come from the ledger from now on."""
        (self.folder(run_id) / PAYLOAD_NAME).unlink(missing_ok=True)

    def _forget_old(self, newest: str) -> None:
        """Give back the room of runs that were declared long before this one; what they were declared with stays known."""
        for payload in self._folder.glob(f"*/{PAYLOAD_NAME}"):
            with suppress(OSError):
                if payload.parent.name != newest and time.time() - payload.stat().st_mtime > OLD_SECONDS:
                    payload.unlink()

    def check_same(self, declaration: Declaration) -> None:
        """PolicyRefused where the run was declared here before in another way: what was agreed on holds for the whole run."""
        try:
            known = (self.folder(declaration.run_id) / DECLARATION_NAME).read_text(encoding="utf-8")
        except FileNotFoundError:
            return
        if Declaration.from_json(known) != declaration:
            raise PolicyRefused(f"run {declaration.run_id} was declared here before in another way; another run needs a new id")

    def declaration(self, run_id: str) -> Declaration:
        """What the run was declared with; the site's policy may have changed since.

        Raises:
          InvalidSetting: If the run was never declared here.
        """
        try:
            text = (self.folder(run_id) / DECLARATION_NAME).read_text(encoding="utf-8")
        except OSError as error:
            raise InvalidSetting(f"run {run_id} was never declared at this site") from error
        return Declaration.from_json(text)

    def payload(self, run_id: str) -> NDArray[np.float32]:
        """The public things that the run starts from, float32, flat.

        Raises:
          DataError: If they cannot be read. The site then fails in this round, and stays in the run.
        """
        try:
            payload: NDArray[np.float32] = np.load(self.folder(run_id) / PAYLOAD_NAME, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise DataError(
                f"{PAYLOAD_NAME} of run {run_id} cannot be read: this site answers no round of the run until it is declared "
                f"again; restore the site's folder from a backup (another run's declaration removes it after {OLD_DAYS} days)"
            ) from error
        return payload
