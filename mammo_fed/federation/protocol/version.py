"""The version of the protocol, in a record beside each message's payload: it is read before anything else of a message.

Two programs talk only if they have the same version. This record is the one part of a message that no later version may
change; a message without it is of version 1, which had none.
"""

from __future__ import annotations

from typing import Final

from flwr.app import ConfigRecord, RecordDict

from mammo_fed.errors import DataError, VersionMismatch

__all__ = ["PROTOCOL", "PROTOCOL_VERSION", "check_version", "own_version", "stamped", "version_of"]

PROTOCOL_VERSION: Final = 2
FIRST_VERSION: Final = 1
PROTOCOL: Final = "protocol"
VERSION: Final = "version"


def own_version() -> int:
    """The version that this program speaks."""
    return PROTOCOL_VERSION


def stamped(content: RecordDict) -> RecordDict:
    """The same content, with this program's version beside it."""
    content[PROTOCOL] = ConfigRecord({VERSION: own_version()})
    return content


def version_of(content: RecordDict) -> int:
    """The version in which a message is written.

    Raises:
      DataError: If the message gives something else than a version, or is of no version at all.
    """
    if PROTOCOL not in content:
        if not content.config_records:
            # Every message of the first version had such a record.
            raise DataError("a message has no protocol version and nothing that a version could be told from")
        return FIRST_VERSION
    record = content.config_records.get(PROTOCOL, ConfigRecord())
    version = record.get(VERSION)
    if not isinstance(version, int) or isinstance(version, bool) or version < FIRST_VERSION:
        raise DataError("a message gives a protocol version that no program has")
    return version


def check_version(content: RecordDict) -> None:
    """Require the version of this program, before any other part of a message is read.

    Raises:
      VersionMismatch: If the message is of another version.
      DataError: As `version_of`.
    """
    theirs = version_of(content)
    if theirs != own_version():
        raise VersionMismatch(theirs=theirs, ours=own_version())
