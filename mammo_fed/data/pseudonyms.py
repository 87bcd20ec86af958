"""Pseudonyms of a source's identifiers: the same at every run, and of no meaning to anyone without the salt."""

from __future__ import annotations

import hashlib
import hmac
from pathlib import Path
from typing import Final

from mammo_fed.common.private_files import SECRET_BYTES, check_private, load_or_create_secret
from mammo_fed.errors import DataError, InvalidSetting
from mammo_fed.privacy.patient_identity import caseless, require_identifier

__all__ = ["Pseudonyms"]

DIGITS: Final = 20
PATIENT: Final = "patient"


class Pseudonyms:
    """Keyed digests of identifiers (HMAC-SHA-256, RFC 2104).

    Args:
      salt: the site's secret, 32 bytes.
    """

    def __init__(self, salt: bytes) -> None:
        if len(salt) != SECRET_BYTES:
            raise DataError(f"the salt has {len(salt)} bytes and must have {SECRET_BYTES}; restore it from a backup")
        self._salt = salt

    @classmethod
    def kept_at(cls, path: Path) -> Pseudonyms:
        """With the salt in the file `path`, made on first use, mode 0600.

        Raises:
          InvalidSetting: If others may read the file, or it cannot be made.
          DataError: If it is no salt.
        """
        try:
            salt = load_or_create_secret(path)
            check_private(path)
            return cls(salt)
        except OSError as error:
            raise InvalidSetting(f"salt={path} cannot be used ({error.strerror}); choose another place") from error

    def of(self, kind: str, identifier: str) -> str:
        """The pseudonym of an identifier: 20 hex digits.

        A patient has one, in whatever spelling the ledger takes for the same patient; of anything else, case, outer spaces and
        Unicode form make no difference.

        Args:
          kind: what it names, such as "patient"; equal identifiers of two kinds have unrelated pseudonyms.
          identifier: the source's own.

        Raises:
          DataError: If it is a patient's and is blank.
        """
        normal = require_identifier(identifier, where="a patient") if kind == PATIENT else caseless(identifier)
        return self._digest(kind, normal)

    def earlier_of_patient(self, identifier: str) -> str:
        """A patient's pseudonym as it was before inner blanks and what is not seen made no difference; mostly the same."""
        return self._digest(PATIENT, caseless(identifier))

    def _digest(self, kind: str, normal: str) -> str:
        # A file's name may be bytes that are no text; they come as surrogates.
        content = f"{kind}\0{normal}".encode(errors="surrogatepass")
        return hmac.new(self._salt, content, hashlib.sha256).hexdigest()[:DIGITS]
