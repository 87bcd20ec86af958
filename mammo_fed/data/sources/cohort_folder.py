"""A site's cohort on its disk: PNG patches and plain tables that any tool reads, pseudonyms only, and a seal over all of it.

cohort.json        format, settings, counts of reasons, and the seal; written last
cohort.csv         image, patient, label, view, split: what `data=csv` reads too
unlabelled.csv     the same without label: findings without a biopsy, of use for pretraining only
provenance.csv     of every patch: hash of its source file, crop box, spacing, transfer syntax, windowing, and keyed
                   digests of what its header and its patient's identifier say of who it is; stays at the site
patches/NAME.png   16-bit grey
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mammo_fed.common.private_files import write_private
from mammo_fed.data.cohort import BENIGN, MALIGNANT, Cohort
from mammo_fed.data.preflight import CHECKS, Archive, Finding, check_waived, errors_of, preflight
from mammo_fed.data.sources.csv_table import read_csv
from mammo_fed.data.sources.rows import Split
from mammo_fed.errors import DataError

__all__ = [
    "COHORT_NAME",
    "PATCHES",
    "CohortRow",
    "OpenedCohort",
    "check_cohort_folder",
    "listed_patients",
    "open_cohort_folder",
    "read_cohort_folder",
    "write_cohort_folder",
]

FORMAT: Final = "mammo-fed cohort 1"
COHORT_NAME: Final = "cohort.json"
TABLE_NAME: Final = "cohort.csv"
UNLABELLED_NAME: Final = "unlabelled.csv"
PROVENANCE_NAME: Final = "provenance.csv"
PREFLIGHT_NAME: Final = "preflight.json"
PATCHES: Final = "patches"
WORDS: Final[Mapping[int, str]] = {BENIGN: "benign", MALIGNANT: "malignant"}


@dataclass(frozen=True, kw_only=True)
class CohortRow:
    """One patch of the folder.

    Attributes:
      name: its pseudonym; the file is patches/NAME.png.
      patient: the patient's pseudonym.
      label: MALIGNANT, BENIGN, or None where no biopsy says so.
      view: "CC", "MLO" or "".
      split: which part of the source it belongs to.
      sha256: of the PNG file.
      provenance: where its pixels come from.
    """

    name: str
    patient: str
    label: int | None
    view: str
    split: Split
    sha256: str
    provenance: Mapping[str, str]


def write_cohort_folder(
    folder: Path, rows: Sequence[CohortRow], *, settings: Mapping[str, Any], reasons: Mapping[str, int], public: bool
) -> None:
    """Write the tables and, last, the seal; patches lie in the folder already.

    Raises:
      DataError: If a patient is in more than one split.
    """
    ordered = sorted(rows, key=lambda row: row.name)
    splits: dict[str, str] = {}
    for row in ordered:
        if splits.setdefault(row.patient, row.split) != row.split:
            raise DataError(
                f"patient {row.patient} (a pseudonym) is in two splits; a patient may be in one only, check the source"
            )
    (folder / COHORT_NAME).unlink(missing_ok=True)
    labelled = [row for row in ordered if row.label is not None]
    write_private(folder / TABLE_NAME, _table(("image", "patient", "label", "view", "split"), map(_labelled, labelled)))
    rest = [(_image(row), row.patient, row.view, row.split) for row in ordered if row.label is None]
    write_private(folder / UNLABELLED_NAME, _table(("image", "patient", "view", "split"), rest))
    columns = sorted({name for row in ordered for name in row.provenance})
    kept = [(_image(row), *(row.provenance.get(name, "") for name in columns)) for row in ordered]
    write_private(folder / PROVENANCE_NAME, _table(("image", *columns), kept))
    about = {
        "format": FORMAT,
        "public": public,
        "settings": dict(settings),
        "images": len(labelled),
        "unlabelled": len(rest),
        "refused": dict(sorted(reasons.items())),
    }
    about["seal"] = _seal(folder, {_image(row): row.sha256 for row in ordered}, about=about)
    write_private(folder / COHORT_NAME, (json.dumps(about, indent=2, sort_keys=True) + "\n").encode())


def read_cohort_folder(folder: Path, *, split: str | None, public: bool, waived: Sequence[str] = ()) -> Cohort:
    """The labelled patches of a folder that passed its preflight; public if it was ingested as public and `public` says so too.

    Args:
      folder: of the cohort.
      split: the rows to read; None reads all.
      public: whether the reader's settings declare the patients' data public.
      waived: names of checks whose errors the site accepts.

    Raises:
      DataError: If there is no whole cohort, a file was changed after it was written, the preflight found an error that is not
        waived, or no row is of the split.
    """
    opened = open_cohort_folder(folder, public=public)
    _check_preflight(folder, opened.seal, waived)
    return read_csv(folder / TABLE_NAME, split=split, public=opened.public)


def listed_patients(folder: Path) -> frozenset[str]:
    """Pseudonyms of the patients whom a folder's tables list, whole or not; none where there is no table yet."""
    found: set[str] = set()
    for name in (TABLE_NAME, UNLABELLED_NAME):
        try:
            found |= {row.get("patient") or "" for row in _read_table(folder / name)}
        except (OSError, ValueError, csv.Error):
            # Not there, or damaged: a cohort that is ingested again does not depend on it.
            continue
    return frozenset(found)


@dataclass(frozen=True, kw_only=True)
class OpenedCohort:
    """A whole folder whose seal is right.

    Attributes:
      public: whether its patients' data is declared public.
      seal: over all that it holds.
      images: labelled patches.
      archive: what ingestion noted.
    """

    public: bool
    seal: str
    images: int
    archive: Archive


def open_cohort_folder(folder: Path, *, public: bool) -> OpenedCohort:
    """Check a folder's seal.

    Raises:
      DataError: As `read_cohort_folder`, but for the preflight.
    """
    try:
        about = json.loads((folder / COHORT_NAME).read_text(encoding="utf-8"))
        known = about["format"] == FORMAT
        public, seal = public and about["public"] is True, str(about["seal"])
        declared = {name: value for name, value in about.items() if name != "seal"}
        refused = {str(reason): int(count) for reason, count in about["refused"].items()}
        unlabelled, images = int(about["unlabelled"]), int(about["images"])
    except OSError as error:
        raise DataError(
            f"{folder} holds no whole cohort ({COHORT_NAME}: {error.strerror}); make it with mammo-fed data ingest"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{folder / COHORT_NAME} is damaged; run mammo-fed data ingest again") from error
    if not known:
        raise DataError(f"{folder / COHORT_NAME} is of another format; run mammo-fed data ingest again")
    try:
        patches = sorted((folder / PATCHES).glob("*.png"))
        found = {f"{PATCHES}/{path.name}": hashlib.sha256(path.read_bytes()).hexdigest() for path in patches}
        tables = {name: _read_table(folder / name) for name in (TABLE_NAME, UNLABELLED_NAME, PROVENANCE_NAME)}
        listed = [row["image"] for name in (TABLE_NAME, UNLABELLED_NAME) for row in tables[name] if row.get("image")]
        seal_now = _seal(folder, {image: found.get(image, "") for image in listed}, about=declared)
    except OSError as error:
        raise DataError(f"cohort {folder} cannot be read ({error.strerror}); check its permissions") from error
    if seal_now != seal:
        raise DataError(
            f"cohort {folder} is not what was ingested: a patch, a table or {COHORT_NAME} was changed; "
            "run mammo-fed data ingest again"
        )
    provenance = {row["image"]: row for row in tables[PROVENANCE_NAME] if row.get("image")}
    archive = Archive(refused=refused, unlabelled=unlabelled, provenance=provenance)
    return OpenedCohort(public=public, seal=seal, images=images, archive=archive)


def check_cohort_folder(
    folder: Path, *, public: bool, reference: NDArray[np.float32] | None
) -> tuple[Cohort, tuple[Finding, ...]]:
    """Look at a whole cohort and keep the outcome beside it, bound to the seal: `read_cohort_folder` asks for it.

    Raises:
      DataError: As `read_cohort_folder`, but for the preflight.
    """
    opened = open_cohort_folder(folder, public=public)
    if not opened.images:
        raise DataError(
            f"cohort {folder} has no labelled patch, so there is nothing to check or to train a classifier with; "
            f"{UNLABELLED_NAME} lists {opened.archive.unlabelled} without a label, for pretraining"
        )
    cohort = read_csv(folder / TABLE_NAME, split=None, public=opened.public)
    findings = preflight(cohort, opened.archive, reference=reference)
    found = [asdict(finding) for finding in findings]
    about = {"seal": opened.seal, "findings": found, "sha256": _hash_findings(opened.seal, found)}
    write_private(folder / PREFLIGHT_NAME, (json.dumps(about, indent=2) + "\n").encode())
    return cohort, findings


def _check_preflight(folder: Path, seal: str, waived: Sequence[str]) -> None:
    check_waived(waived)
    try:
        about = json.loads((folder / PREFLIGHT_NAME).read_text(encoding="utf-8"))
        findings = [Finding(**values) for values in about["findings"]]
        whole = about["sha256"] == _hash_findings(seal, about["findings"])
        passed = whole and about["seal"] == seal and {finding.name for finding in findings} == set(CHECKS)
    except (OSError, ValueError, KeyError, TypeError):
        passed, findings = False, []
    if not passed:
        raise DataError(f"cohort {folder} has not been checked as it is now; run mammo-fed data check {folder}")
    errors = errors_of(findings, waived=waived)
    if errors:
        names = ", ".join(error.name for error in errors)
        raise DataError(
            f"cohort {folder} failed its preflight ({names}); mammo-fed data check {folder} says more; fix the archive, or "
            "name the checks in data.waived"
        )


def _hash_findings(seal: str, findings: Sequence[Mapping[str, Any]]) -> str:
    return hashlib.sha256(json.dumps([seal, findings], sort_keys=True).encode()).hexdigest()


def _image(row: CohortRow) -> str:
    return f"{PATCHES}/{row.name}.png"


def _labelled(row: CohortRow) -> tuple[str, ...]:
    return (_image(row), row.patient, WORDS[row.label or 0], row.view, row.split)


def _table(header: Sequence[str], rows: Any) -> bytes:
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return buffer.getvalue().encode()


def _read_table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _seal(folder: Path, images: Mapping[str, str], *, about: Mapping[str, Any]) -> str:
    """Hash over the tables, the patches' hashes and everything else that cohort.json says; no secret is in it."""
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for name in (TABLE_NAME, UNLABELLED_NAME, PROVENANCE_NAME):
        digest.update(hashlib.sha256((folder / name).read_bytes()).digest())
    for image, sha256 in sorted(images.items()):
        digest.update(f"{image}\0{sha256}\n".encode())
    return digest.hexdigest()
