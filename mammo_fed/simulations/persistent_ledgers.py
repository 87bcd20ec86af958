"""Ledgers that carry over from simulation to simulation: whose they are, and what they allow, written down once beside them."""

from __future__ import annotations

import hashlib
import hmac
import json
import math
import secrets
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from mammo_fed.common.private_files import load_or_create, write_private
from mammo_fed.data.run_cohorts import Pool
from mammo_fed.errors import InvalidSetting, LedgerError, PrivacyRefused
from mammo_fed.privacy.patient_identity import normal_identifier
from mammo_fed.settings import Settings

__all__ = ["MANIFEST_NAME", "site_caps"]

MANIFEST_NAME: Final = "federation.json"
FORMAT: Final = 1
KEY_BYTES: Final = 16


def site_caps(settings: Settings, pool: Pool) -> tuple[float, ...]:
    """The largest epsilon of every simulated site: of this run, or of all runs where `privacy.ledger` is a folder.

    A folder keeps a ledger manifest from its first use: which patients are at which site (keyed digests), delta, the caps.
    The caps are `federation.site_budgets`, or else the first run's target. As at a real site they are promises: a run may give
    smaller ones, which hold from then on, and nothing loosens them; a simulation has no operator who could raise them.

    Raises:
      PrivacyRefused: If the folder belongs to another division of patients over sites, another delta, or smaller caps: the
        same patients would be charged to fresh ledgers, or past what they were told.
    """
    budgets = settings.federation.site_budgets or (settings.privacy.target_epsilon,) * settings.federation.num_sites
    if settings.privacy.ledger == "run":
        return budgets
    folder = Path(settings.privacy.ledger).expanduser().resolve()
    manifest = _manifest(folder, settings, pool, budgets)
    key = bytes.fromhex(manifest["key"])
    if manifest["patients"] not in (_digests(pool, key), _digests_by_spelling(pool, key)):
        raise PrivacyRefused(
            f"privacy.ledger={folder} belongs to another division of patients over sites ({_words(manifest['described'])}; now "
            f"{_words(_described(settings))}): the same patients would be charged to fresh ledgers; use those settings, or "
            "another folder for other patients"
        )
    if manifest["delta"] != settings.privacy.delta:
        raise PrivacyRefused(
            f"privacy.delta={settings.privacy.delta:g} must be {manifest['delta']:g}, as in the first run of "
            f"privacy.ledger={folder}"
        )
    caps = tuple(math.inf if cap is None else float(cap) for cap in manifest["caps"])
    if settings.federation.site_budgets and any(given > cap for given, cap in zip(budgets, caps, strict=True)):
        raise PrivacyRefused(
            f"federation.site_budgets={list(budgets)} must not loosen the caps {list(caps)} of privacy.ledger={folder}; "
            "give at most those; what was promised is not raised in a simulation: use another folder"
        )
    if not settings.federation.site_budgets or budgets == caps:
        return caps
    _lower(folder / MANIFEST_NAME, manifest, budgets)
    return budgets


def _lower(path: Path, manifest: Mapping[str, Any], budgets: tuple[float, ...]) -> None:
    """Write down smaller caps, which the ledgers note as well: a record quotes them over all runs."""
    try:
        write_private(path, json.dumps({**manifest, "caps": _caps_as_json(budgets)}, indent=2) + "\n")
    except OSError as error:
        raise InvalidSetting(f"{path} cannot be written ({error.strerror}); make its folder writable") from error


def _caps_as_json(caps: tuple[float, ...]) -> list[float | None]:
    return [None if math.isinf(cap) else cap for cap in caps]


def _manifest(folder: Path, settings: Settings, pool: Pool, budgets: tuple[float, ...]) -> Mapping[str, Any]:
    """What was written down on the first use of `folder`, which may be this one."""
    path, key = folder / MANIFEST_NAME, secrets.token_bytes(KEY_BYTES)
    written = {
        "format": FORMAT,
        "described": _described(settings),
        "key": key.hex(),
        "patients": _digests(pool, key),
        "delta": settings.privacy.delta,
        "caps": _caps_as_json(budgets),
    }
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = json.loads(load_or_create(path, (json.dumps(written, indent=2) + "\n").encode()))
    except OSError as error:
        raise InvalidSetting(f"privacy.ledger={folder} cannot be used ({error.strerror}); choose another folder") from error
    except ValueError as error:
        raise LedgerError(f"{path} is not what was written there; restore it from a backup") from error
    if not isinstance(found, dict) or found.keys() != written.keys() or found["format"] != FORMAT:
        raise LedgerError(f"{path} is not what was written there; restore it from a backup")
    return found


def _digests(pool: Pool, key: bytes) -> list[str]:
    """One keyed digest of every site's patients: what decides is who is charged where, not how the images were made."""
    digests = []
    for rows in pool.rows:
        names = sorted({normal_identifier(patient) for patient in pool.cohort.patients[rows].tolist()})
        digests.append(hmac.digest(key, json.dumps(names).encode(), hashlib.sha256).hex())
    return digests


def _digests_by_spelling(pool: Pool, key: bytes) -> list[str]:
    """As folders hold them that were written before patients were compared by identity."""
    spelt = (json.dumps(sorted(set(pool.cohort.patients[rows].tolist()))) for rows in pool.rows)
    return [hmac.digest(key, names.encode(), hashlib.sha256).hex() for names in spelt]


def _described(settings: Settings) -> dict[str, Any]:
    """The settings that decide who is where, for people to compare."""
    federation, data = settings.federation, asdict(settings.data)
    shown = {f"data.{name}": data[name] for name in ("source", "train", "fold", "images_train")}
    return shown | {
        "federation.num_sites": federation.num_sites,
        "federation.partition": federation.partition,
        "federation.partition_alpha": federation.partition_alpha,
        "seed": settings.seed,
    }


def _words(described: Mapping[str, Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in described.items())
