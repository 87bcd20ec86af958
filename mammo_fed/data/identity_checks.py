"""Is one person filed as two, or many as one? What files, headers, pixels and identifiers say of it; part of the preflight.

The ledger, the limit of images and the clip all go by the cohort's patients: a woman under two identifiers is protected as two
halves, each with a budget of its own.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping
from functools import cached_property
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from mammo_fed.data.cohort import Cohort
from mammo_fed.data.near_duplicates import near_duplicates
from mammo_fed.privacy.patient_identity import is_placeholder, loose_identifiers

__all__ = ["IDENTITY_CHECKS", "SMALL_CELL", "Identities", "Level", "count_text"]

Level = Literal["ok", "warning", "error"]
# Counts below this are not shown where patients are not public: they may point at one of them.
SMALL_CELL: Final = 5
# A header's value that this many patients and more than half of the cohort share was put there for everybody.
EVERYBODY: Final = 10
# Images of a cohort with one patient that are worth a warning.
MANY_IMAGES: Final = 4
# Header patients of one identifier: CBIS-DDSM has one for each of the four mammograms of an examination.
MOST_HEADER_PATIENTS: Final = 4
# Examinations of one patient: a mammogram a year for as long as there have been digital ones, and some more.
MOST_STUDIES: Final = 30


class Identities:
    """A cohort, and what was noted of each of its patches.

    Args:
      cohort: labelled patches.
      provenance: by image identifier, as ingestion noted it; empty where nothing was ingested.
    """

    def __init__(self, cohort: Cohort, provenance: Mapping[str, Mapping[str, str]]) -> None:
        self.cohort = cohort
        of_image = dict(zip(cohort.images.tolist(), cohort.patients.tolist(), strict=True))
        self.noted = [
            (about.get("patient") or of_image.get(image, ""), about)
            for image, about in provenance.items()
            if about.get("patient") or image in of_image
        ]
        self.units = cohort.unit_index("patient")

    def text(self, count: int) -> str:
        return count_text(count, public=self.cohort.public)

    def values(self, name: str) -> list[tuple[str, str]]:
        """(patient, value) of every patch that has the value noted."""
        return [(patient, about[name]) for patient, about in self.noted if about.get(name)]

    @cached_property
    def near(self) -> NDArray[np.int64]:
        """Pairs of rows of different patients that show one image, other than those whose pixels are the same."""
        pairs = near_duplicates(self.cohort.pixels, self.units)
        differ = [not np.array_equal(self.cohort.pixels[one], self.cohort.pixels[other]) for one, other in pairs]
        others: NDArray[np.int64] = pairs[np.array(differ, dtype=bool)]
        return others


def count_text(count: int, *, public: bool) -> str:
    """A count as it may be shown: small ones only where the patients are public."""
    return str(count) if public or count == 0 or count >= SMALL_CELL else f"fewer than {SMALL_CELL}"


def _groups(pairs: Iterable[tuple[str, Hashable]]) -> dict[Hashable, set[str]]:
    """Patients by value."""
    patients: dict[Hashable, set[str]] = defaultdict(set)
    for patient, value in pairs:
        patients[value].add(patient)
    return patients


def _shared(look: Identities, name: str, what: str, *, constant: bool = True) -> tuple[Level, str]:
    """One file, image, examination or person of the headers, under several patients."""
    values = look.values(name)
    if not values:
        return "ok", f"{what} is not noted"
    patients = _groups(values)
    everybody = max(EVERYBODY, 1 + len({patient for patient, _ in look.noted}) // 2)
    said = {value for value, who in patients.items() if constant and len(who) >= everybody}
    count = sum(1 for _, value in values if len(patients[value]) > 1 and value not in said)
    if count:
        return "error", f"{look.text(count)} patches share {what} with one of another patient"
    if said:
        return "warning", f"most headers have the same {what.removeprefix('the ')}: it tells nobody apart"
    return "ok", f"no patch shares {what} with one of another patient"


def _file(look: Identities) -> tuple[Level, str]:
    return _shared(look, "source_sha256", "the source file", constant=False)


def _instance(look: Identities) -> tuple[Level, str]:
    return _shared(look, "instance", "the SOP Instance UID")


def _study(look: Identities) -> tuple[Level, str]:
    return _shared(look, "study", "the Study Instance UID")


def _header_patient(look: Identities) -> tuple[Level, str]:
    return _shared(look, "header_patient", "the header's Patient ID")


def _near_duplicates(look: Identities) -> tuple[Level, str]:
    count = len(set(look.near.ravel().tolist()))
    level: Level = "error" if count else "ok"
    return level, f"{look.text(count)} patches show the same image as one of another patient, encoded, cropped or mirrored anew"


def _alike(look: Identities) -> tuple[Level, str]:
    """Identifiers that a person may have meant as one."""
    # A table's own identifiers; and of pseudonyms, which hide it, what ingestion noted.
    forms = [(patient, form) for patient in set(look.cohort.patients.tolist()) for form in loose_identifiers(patient)]
    forms += [(patient, form) for patient, noted in look.values("loose_patient") for form in noted.split()]
    alike = set().union(*(who for who in _groups(forms).values() if len(who) > 1))
    text = "patients have identifiers that differ only in zeros, separators, dashes, accents, look-alikes or the order of words"
    return ("warning" if alike else "ok"), f"{look.text(len(alike))} {text}"


def _many_as_one(look: Identities) -> tuple[Level, str]:
    """One identifier for many people: their images are cut and clipped as one woman's, and counts of patients are wrong."""
    images = Counter(look.units.tolist())
    if len(images) == 1 and len(look.cohort) >= MANY_IMAGES:
        return "warning", "all images are of one patient"
    nobody = _placeholders(look)
    if nobody:
        return "warning", f"{look.text(nobody)} images have an identifier that is written where there is none"
    crowded = _crowded(look)
    return (
        "warning" if crowded else "ok"
    ), f"{look.text(crowded)} patients have files of more people than one, by their headers"


def _placeholders(look: Identities) -> int:
    return sum(is_placeholder(patient) for patient in look.cohort.patients.tolist()) + len(look.values("placeholder"))


def _crowded(look: Identities) -> int:
    """Patients whose headers name more people, or more examinations, than one woman has."""
    people, studies, files = (
        {patient: {value for _, value in pairs} for patient, pairs in _by_patient(look.values(name)).items()}
        for name in ("header_patient", "study", "source_sha256")
    )
    several = [len(named) for patient, named in people.items() if len(files.get(patient, ())) > 1]
    # Where most patients with several files have one person in their headers, two are too many.
    by_person = len(several) > 1 and 2 * sum(named == 1 for named in several) > len(several)
    most = 1 if by_person else MOST_HEADER_PATIENTS
    return sum(
        len(people.get(patient, ())) > most or len(studies.get(patient, ())) > MOST_STUDIES for patient in {*people, *studies}
    )


def _by_patient(values: Iterable[tuple[str, str]]) -> dict[str, list[tuple[str, str]]]:
    found: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for patient, value in values:
        found[patient].append((patient, value))
    return found


IDENTITY_CHECKS: Final[Mapping[str, Callable[[Identities], tuple[Level, str]]]] = {
    "near_duplicates_across_patients": _near_duplicates,
    "one_file_two_patients": _file,
    "one_instance_two_patients": _instance,
    "one_study_two_patients": _study,
    "one_header_patient_two_patients": _header_patient,
    "similar_identifiers": _alike,
    "many_people_one_patient": _many_as_one,
}
"""By the names that a site waives; each says "not noted" where the cohort's folder is of an earlier format."""
