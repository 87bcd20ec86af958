"""The record of a run: what was guaranteed and what was gained, as record.json (schema_version 1)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final, Literal

from mammo_fed.common.private_files import write_atomically
from mammo_fed.common.serialization import RECORD, build, dumps, plain
from mammo_fed.errors import DataError
from mammo_fed.reporting.record.provenance import Provenance
from mammo_fed.reporting.record.sections import (
    CentralPrivacy,
    DataSection,
    Evaluation,
    FederationSection,
    ModelSection,
    PrivacySection,
    Rejected,
    Seconds,
    SiteData,
    SitePrivacy,
    SiteWeight,
    SynthesisSection,
)
from mammo_fed.reporting.record.statements import guarantee_sentence, not_covered_sentences, shared_noise_sentence, threat_text

__all__ = [
    "RECORD_NAME",
    "SCHEMA_VERSION",
    "CentralPrivacy",
    "DataSection",
    "Evaluation",
    "FederationSection",
    "ModelSection",
    "PrivacySection",
    "Provenance",
    "Record",
    "Rejected",
    "Seconds",
    "SiteData",
    "SitePrivacy",
    "SiteWeight",
    "SynthesisSection",
    "comparable",
    "guarantee_sentence",
    "not_covered_sentences",
    "read_record",
    "shared_noise_sentence",
    "threat_text",
]

SCHEMA_VERSION: Final = 1
RECORD_NAME: Final = "record.json"
# What two runs of the same settings may differ in.
PASSING: Final = ("run_id", "versions", "started", "finished", "seconds")
OF_LEDGER: Final = ("ledger_head", "cap_since", "cap_raised")


@dataclass(frozen=True, kw_only=True)
class Record:
    """Everything a run has to say about itself; nothing in it is about a single patient.

    Attributes:
      run_id: name of the run.
      mode: how the run was started.
      config_hash: hash of the canonical settings.
      seeds: every seed by its setting's name; None where the operating system drew.
      versions: of Python and the libraries that decide the numbers.
      started: ISO 8601 with time zone.
      finished: ISO 8601 with time zone.
      seconds, data, model, synthesis, privacy, federation: the sections.
      evaluation: metrics by set: "val", "test", "external", "sites".

    Raises:
      DataError: If a value is out of its range.

    >>> from dataclasses import fields
    >>> [each.name for each in fields(Record)][-4:]
    ['synthesis', 'privacy', 'evaluation', 'federation']
    """

    run_id: str
    mode: Literal["simulate", "deploy", "reproduce"]
    config_hash: str
    seeds: Mapping[str, int | None]
    versions: Mapping[str, str]
    started: str
    finished: str
    seconds: Seconds
    data: DataSection
    model: ModelSection
    synthesis: SynthesisSection
    privacy: PrivacySection
    evaluation: Mapping[str, Evaluation]
    federation: FederationSection

    def __post_init__(self) -> None:
        if not self.run_id:
            raise DataError(f"run_id={self.run_id!r} must not be empty")
        for name in ("started", "finished"):
            _require_time(name, getattr(self, name))

    def as_dict(self) -> dict[str, Any]:
        """The record as JSON values, `schema_version` first; an infinite epsilon is None."""
        return {"schema_version": SCHEMA_VERSION, **plain(self, form=RECORD)}

    def write(self, folder: Path) -> Path:
        """Write record.json into `folder`, which must exist; a crash leaves what was there before."""
        path = Path(folder) / RECORD_NAME
        write_atomically(path, dumps(self.as_dict()))
        return path


def read_record(folder: Path | str) -> Record:
    """The record of the run in `folder`.

    Raises:
      DataError: If there is no record, it is not strict JSON, it is of another schema version, or a value is missing, of
        the wrong type or out of its range.

    >>> import tempfile
    >>> from mammo_fed import compose_settings, simulate
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     record = simulate(compose_settings([
    ...         "model=efficientnet_lite0", "model.weights=none", "model.input_size=32", "model.components=8",
    ...         "model.flips=none", "data.image_size=32", "data.images_train=24", "data.images_test=20",
    ...         "data.images_external=8", "synthesis.count=16", "synthesis.use=[whiten]",
    ...         "federation.num_sites=2", "federation.rounds=1", f"engine.cache={folder}/cache",
    ...     ]), f"{folder}/run")
    ...     read_record(f"{folder}/run") == record
    True
    """
    path = Path(folder) / RECORD_NAME
    try:
        values = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except OSError as error:
        raise DataError(f"{path} cannot be read; give the folder of a finished run") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not strict JSON: {error}") from error
    version = values.pop("schema_version", None) if isinstance(values, dict) else None
    if version != SCHEMA_VERSION:
        raise DataError(f"{path}: schema_version={version!r} must be {SCHEMA_VERSION}; read it with the version that wrote it")
    return build(Record, values, path="record", form=RECORD)


def comparable(record: Record) -> dict[str, Any]:
    """What two runs of the same settings must agree on: the record without run id, versions, times and seals of ledgers."""
    values = {name: value for name, value in record.as_dict().items() if name not in PASSING}
    sites = [{name: value for name, value in site.items() if name not in OF_LEDGER} for site in values["privacy"]["sites"]]
    values["privacy"] = {**values["privacy"], "sites": sites}
    values["federation"] = {name: value for name, value in values["federation"].items() if name != "seconds_per_round"}
    return values


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON value")


def _require_time(name: str, value: str) -> None:
    try:
        moment = datetime.fromisoformat(value)
    except ValueError as error:
        raise DataError(f"{name}={value!r} must be a time in ISO 8601") from error
    if moment.tzinfo is None:
        raise DataError(f"{name}={value!r} must have a time zone")
