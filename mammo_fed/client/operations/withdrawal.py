"""Patients who withdraw: whom a file names, by which identifiers the ledger must know them, and who of them is here."""

from __future__ import annotations

import csv
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mammo_fed.client.charging import LedgerMemory, site_ledger
from mammo_fed.client.policy import SiteFile
from mammo_fed.data.cache import ArrayCache
from mammo_fed.data.dicom.ingest import SALT_CHECK_NAME
from mammo_fed.data.pseudonyms import Pseudonyms
from mammo_fed.data.run_cohorts import patients_of
from mammo_fed.errors import InvalidSetting, MammoFedError
from mammo_fed.privacy.patient_identity import normal_identifier

__all__ = ["NamedPatient", "Withdrawal", "read_patients", "site_salt", "withdraw_patients"]

HEADER: Final = "patient"
LARGEST_BYTES: Final = 1 << 26
LONGEST: Final = 1000
REMEDY: Final = "give a UTF-8 file with one identifier a line"


@dataclass(frozen=True, kw_only=True)
class NamedPatient:
    """One patient of a file: the first line that names them, and the identifier there. Never shown."""

    line: int
    identifier: str


@dataclass(frozen=True, kw_only=True)
class Withdrawal:
    """What became of a file of patients; safe to show at the site, as it names lines and nobody.

    Attributes:
      named: patients in the file, each counted once.
      new: of them, those who had not withdrawn under all of their identifiers before.
      in_cohort: of them, those in the site's cohort, in any split; None where the cohort cannot be read.
      in_ledger: of them, those whom the ledger had enrolled or noted before.
      unknown_lines: lines of those who are in neither: perhaps misspelt.
      at: ISO date of the ledger's last withdrawal, "" where there is none.
      dry_run: whether nothing was written.
      salt: whether pseudonyms of the identifiers were noted too.
      cohort_fault: why the cohort cannot be read, "" where it can.
    """

    named: int
    new: int
    in_cohort: int | None
    in_ledger: int
    unknown_lines: tuple[int, ...]
    at: str
    dry_run: bool
    salt: bool
    cohort_fault: str = ""


def read_patients(path: Path) -> tuple[NamedPatient, ...]:
    """The patients that a file names, in its order, each once.

    The file is UTF-8 text, with or without a byte order mark: one identifier a line, in quotes where it holds a comma. Blank
    lines are passed over, and so is a first line that reads `patient`.

    Raises:
      InvalidSetting: If it is no such file, or names nobody; says which line.
    """
    found: dict[str, NamedPatient] = {}
    first = True
    for number, line in enumerate(_lines(path), start=1):
        identifier = _identifier(path, number, line)
        normal = normal_identifier(identifier)
        if not normal or (first and normal == HEADER):
            first = first and not normal
            continue
        first = False
        found.setdefault(normal, NamedPatient(line=number, identifier=identifier))
    if not found:
        raise InvalidSetting(f"--patients={path} names nobody; {REMEDY}")
    return tuple(found.values())


def _lines(path: Path) -> list[str]:
    try:
        if path.stat().st_size > LARGEST_BYTES:
            raise InvalidSetting(f"--patients={path} has more than {LARGEST_BYTES >> 20} MiB; {REMEDY}, in several files")
        content = path.read_bytes()
    except OSError as error:
        raise InvalidSetting(f"--patients={path} cannot be read ({error.strerror}); {REMEDY}") from error
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise InvalidSetting(f"--patients={path} line {line} is not UTF-8; {REMEDY}") from error
    # Not splitlines(): it takes characters for the end of a line that no editor shows as one.
    return text.replace("\r\n", "\n").replace("\r", "\n").split("\n")


def _identifier(path: Path, number: int, line: str) -> str:
    if len(line) > LONGEST or "\0" in line:
        raise InvalidSetting(f"--patients={path} line {number} is no identifier: it is too long or holds a NUL; {REMEDY}")
    try:
        values = next(csv.reader([line.strip()], strict=True), [])
    except csv.Error as error:
        raise InvalidSetting(f"--patients={path} line {number} has quotes that do not close; correct the line") from error
    if len(values) > 1:
        raise InvalidSetting(
            f"--patients={path} line {number} has {len(values)} values; {REMEDY}, and put quotes around one that holds a comma"
        )
    return values[0] if values else ""


def site_salt(file: SiteFile, given: Path | None) -> Pseudonyms | None:
    """What makes the pseudonyms of the site's cohort: the salt that was given, else the one beside the cohort; None without.

    Raises:
      InvalidSetting: If the salt is missing, open to others, or not the one that the cohort was made with.
    """
    cohort = None
    if file.data.source == "cohort" and file.data.root is not None:
        cohort = Path(file.data.root).expanduser()
    path = given if given is not None or cohort is None else cohort.with_name(f"{cohort.name}.salt")
    if path is None or (given is None and not path.is_file()):
        return None
    if not path.is_file():
        raise InvalidSetting(f"--salt={path} must be the salt of `mammo-fed data ingest`, and is no file; check the path")
    pseudonyms = Pseudonyms.kept_at(path)
    mark = None if cohort is None else cohort / SALT_CHECK_NAME
    if (
        mark is not None
        and mark.is_file()
        and mark.read_text(encoding="ascii", errors="replace") != pseudonyms.of("salt", "check")
    ):
        raise InvalidSetting(f"--salt={path} is not the salt that the cohort {cohort} was made with; give that one")
    return pseudonyms


def withdraw_patients(
    file: SiteFile, patients: Sequence[NamedPatient], *, pseudonyms: Pseudonyms | None, dry_run: bool
) -> Withdrawal:
    """Note in the site's ledger, for good, that patients withdrew; a site that runs leaves them out from its next round on.

    Args:
      file: of the site.
      patients: who withdraws.
      pseudonyms: of the site's cohort; None where its identifiers are the hospital's own.
      dry_run: look only, write nothing.

    Raises:
      LedgerError: If the ledger is gone, an older copy, tampered with, or not writable; nobody has withdrawn then.
    """
    people = [_identities(one.identifier, pseudonyms) for one in patients]
    cohort, fault = _cohort(file)
    known, new, at = _noted(file, people, dry_run=dry_run)
    inside = [cohort is not None and not cohort.isdisjoint(map(normal_identifier, one)) for one in people]
    return Withdrawal(
        named=len(people),
        new=new,
        in_cohort=None if cohort is None else sum(inside),
        in_ledger=sum(known),
        unknown_lines=tuple(one.line for one, here, there in zip(patients, inside, known, strict=True) if not (here or there)),
        at=at,
        dry_run=dry_run,
        salt=pseudonyms is not None,
        cohort_fault=fault,
    )


def _noted(file: SiteFile, people: Sequence[Collection[str]], *, dry_run: bool) -> tuple[tuple[bool, ...], int, str]:
    """Whom the ledger knew, how many it newly notes (or would), and the date of its last withdrawal."""
    ledger = Path(file.ledger)
    if dry_run and not (ledger.is_dir() and any(ledger.iterdir())):
        LedgerMemory(Path(file.folder) / "ledger-head").check_exists(ledger)
        return (False,) * len(people), len(people), ""
    with site_ledger(file, usual="declared") as opened:
        known = opened.knows(people)
        new = opened.withdraw(people, dry_run=dry_run)
        return known, new, opened.withdrawn(()).at


def _identities(identifier: str, pseudonyms: Pseudonyms | None) -> tuple[str, ...]:
    """All that a patient may be called in the site's cohorts: the hospital's identifier, or a pseudonym of today or before."""
    if pseudonyms is None:
        return (identifier,)
    # Without repeats: for most identifiers the two pseudonyms are one.
    return tuple(
        {identifier: None, pseudonyms.of("patient", identifier): None, pseudonyms.earlier_of_patient(identifier): None}
    )


def _cohort(file: SiteFile) -> tuple[frozenset[str] | None, str]:
    """The normal identifiers of the site's patients, or why they cannot be read: a withdrawal does not wait for that."""
    try:
        found = patients_of(file.data, file.share, index=file.index, cache=ArrayCache(Path(file.cache)))
    except MammoFedError as error:
        return None, str(error)
    return frozenset(map(normal_identifier, found)), ""
