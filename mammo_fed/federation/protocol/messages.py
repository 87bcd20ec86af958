"""What the server sends: one flat float32 array a message, and the declaration of a run or the task of a round."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from numpy.typing import NDArray

from mammo_fed.errors import DataError, InvalidSetting
from mammo_fed.federation.protocol.task import Declaration, RoundTask
from mammo_fed.federation.protocol.version import PROTOCOL, check_version, from_message, own_version, stamped, to_message

__all__ = [
    "ARRAYS",
    "CONFIG",
    "METRICS",
    "NAME",
    "PRIVACY",
    "SECURE",
    "WEIGHT",
    "pack_declaration",
    "pack_parameters",
    "read_declaration",
    "read_parameters",
    "read_task",
    "task_config",
]

# Keys on the wire.
ARRAYS: Final = "arrays"
CONFIG: Final = "config"
PRIVACY: Final = "privacy"
METRICS: Final = "metrics"
SECURE: Final = "secure"
NAME: Final = "flat"
# Flower's own key for a site's weight in an average; it carries the public number of images.
WEIGHT: Final = "num-examples"

# What Flower's strategies add to a task.
OF_FLOWER: Final = ("server-round", "proximal-mu")


def pack_parameters(parameters: NDArray[np.float32]) -> ArrayRecord:
    """One flat float32 array as a record."""
    return ArrayRecord({NAME: Array(np.ascontiguousarray(parameters, np.float32))})


def read_parameters(record: ArrayRecord) -> NDArray[np.float32]:
    """The flat array of a record, float32.

    Raises:
      DataError: If the record does not hold exactly one flat numeric array.
    """
    if list(record) != [NAME]:
        raise DataError(f"a message must carry one array named {NAME!r}")
    array = record[NAME].numpy()
    if array.ndim != 1 or not np.issubdtype(array.dtype, np.floating):
        raise DataError(f"a message's array must be flat and real, not {array.dtype} of shape {array.shape}")
    return array.astype(np.float32, copy=False)


def pack_declaration(declaration: Declaration, payload: NDArray[np.float32]) -> RecordDict:
    """Content of the message that opens a run at a site."""
    config = ConfigRecord({"declaration": to_message(declaration)})
    return stamped(RecordDict({ARRAYS: pack_parameters(payload), CONFIG: config}))


def read_declaration(message: Message) -> tuple[Declaration, NDArray[np.float32]]:
    """Inverse of `pack_declaration`.

    Raises:
      VersionMismatch: If the message is of another version of the protocol; nothing else of it is read.
      InvalidSetting, DataError: If the message is no declaration; an unknown field is named.
    """
    check_version(message.content)
    config, parameters = _parts(message.content, ("declaration",))
    return from_message(Declaration, str(config["declaration"]), path="declaration"), parameters


def task_config(task: RoundTask, feature_mean: NDArray[np.float32]) -> ConfigRecord:
    """The task of a round as the record that Flower's strategies pass to every site."""
    return ConfigRecord({"task": to_message(task), "centre": np.ascontiguousarray(feature_mean, "<f4").tobytes()})


def read_task(message: Message) -> tuple[RoundTask, NDArray[np.float32], NDArray[np.float32]]:
    """Task, feature mean and parameters of a round's message.

    Raises:
      VersionMismatch: If the message is of another version of the protocol; nothing else of it is read.
      InvalidSetting, DataError: If the message is no task; an unknown field is named.
    """
    check_version(message.content)
    config, parameters = _parts(message.content, ("task", "centre"), optional=OF_FLOWER, records=(SECURE,))
    feature_mean = config["centre"]
    if not isinstance(feature_mean, bytes):
        raise DataError("a task's feature mean must be bytes")
    task = from_message(RoundTask, str(config["task"]), path="task")
    return task, np.frombuffer(feature_mean, "<f4").astype(np.float32), parameters


def _parts(
    content: RecordDict, fields: tuple[str, ...], *, optional: tuple[str, ...] = (), records: tuple[str, ...] = ()
) -> tuple[ConfigRecord, NDArray[np.float32]]:
    """The two records of a message from the server, where it has exactly the known records and fields."""
    _check_names("record", content, required=(ARRAYS, CONFIG), optional=(PROTOCOL, *records))
    config = content.config_records[CONFIG]
    _check_names("field", config, required=fields, optional=optional)
    return config, read_parameters(content.array_records[ARRAYS])


def _check_names(what: str, names: Iterable[str], *, required: tuple[str, ...], optional: tuple[str, ...]) -> None:
    found = set(names)
    if unknown := sorted(found - {*required, *optional}):
        raise InvalidSetting(f"{unknown[0]!r:.80} is not a {what} of protocol version {own_version()}; the message is refused")
    if absent := sorted(set(required) - found):
        raise InvalidSetting(f"a message lacks the {what} {absent[0]!r}; it is refused")
