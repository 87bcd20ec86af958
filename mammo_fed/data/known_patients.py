"""Whether two public data sets have a patient in common, judged by patients: other views of one patient are other images.

Identifiers say something of each other only where it is known whose they are. Those of CBIS-DDSM and those of a phantom's seed
are one numbering each: two that differ are two patients. A table has its own names: two that are equal are taken for one
patient, and two that differ prove nothing, for another table may call the same patient otherwise.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from mammo_fed.data.cohort import Cohort
from mammo_fed.errors import DataError
from mammo_fed.privacy.patient_identity import normal_identifier

__all__ = ["NOBODY_KNOWN", "KnownPatients", "Numbering", "Overlap", "known_patients", "patient_overlap"]

Numbering: TypeAlias = Literal["", "cbis-ddsm", "phantom", "own"]
"""Whose identifiers they are: a data set's numbering, a table's own names, or unknown."""

Overlap: TypeAlias = Literal["none", "some", "unknown"]
"""Whether a patient is in both of two data sets."""

DIGEST_BYTES: Final = 8
CBIS: Final = re.compile(r"(?:cbis[-_ ]?ddsm_*)?p_?0*([0-9]+)")


@dataclass(frozen=True, kw_only=True)
class KnownPatients:
    """Who is in a public data set.

    Attributes:
      numbering: whose identifiers they are, "" where that is not known.
      digests: of every patient, 16 hex digits each, sorted; whoever knows an identifier can compare.
    """

    numbering: Numbering
    digests: tuple[str, ...]


NOBODY_KNOWN: Final = KnownPatients(numbering="", digests=())


def known_patients(cohort: Cohort, *, source: str, drawn: bool = False, seed: int = 0) -> KnownPatients:
    """Who is in a public cohort.

    Args:
      cohort: of a public source.
      source: which one, as `data.source` names it.
      drawn: whether its images came from a generator (data.train=synthetic): who is behind them is not known.
      seed: of a phantom's images; patients of other seeds are others.

    Raises:
      DataError: If the cohort is not public: digests of its patients tell who is in it.
    """
    if not cohort.public:
        raise DataError(f"cohort {cohort.name} is not public: digests of its patients tell who is in it")
    names = {normal_identifier(patient) for patient in cohort.patients.tolist()}
    if drawn:
        return NOBODY_KNOWN
    if source == "phantom":
        return _known("phantom", (f"seed {seed}\0{name}" for name in names))
    numbers = {name: CBIS.fullmatch(name) for name in names}
    numbered = source == "mammo_dp" and all(numbers.values())
    # With or without the data set's name and leading zeros; in a table too, which may hold patients of CBIS-DDSM.
    said = (name if found is None else f"p_{found[1]}" for name, found in numbers.items())
    return _known("cbis-ddsm" if numbered else "own", said)


def patient_overlap(one: KnownPatients, other: KnownPatients) -> Overlap:
    """Whether a patient is in both: "none" is said only where one numbering covers both and nobody is in common."""
    if not one.digests or not other.digests or "" in (one.numbering, other.numbering):
        return "unknown"
    same = one.numbering == other.numbering
    if (same or "own" in (one.numbering, other.numbering)) and not set(one.digests).isdisjoint(other.digests):
        return "some"
    return "none" if same and one.numbering != "own" else "unknown"


def _known(numbering: Numbering, names: Iterable[str]) -> KnownPatients:
    digests = {hashlib.blake2b(name.encode(), digest_size=DIGEST_BYTES).hexdigest() for name in names}
    return KnownPatients(numbering=numbering, digests=tuple(sorted(digests)))
