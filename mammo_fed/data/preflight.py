"""Is a cohort fit for training? Looked at before a site joins; an error keeps it out until it is fixed or waived by name."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy.stats import ks_2samp

from mammo_fed.data.cohort import BENIGN, MALIGNANT, Cohort
from mammo_fed.data.identity_checks import IDENTITY_CHECKS, SMALL_CELL, Identities, Level, count_text
from mammo_fed.errors import DataError
from mammo_fed.privacy.patient_identity import count_patients

__all__ = [
    "CHECKS",
    "SMALL_CELL",
    "TABLE_CHECKS",
    "Archive",
    "Finding",
    "Level",
    "check_waived",
    "count_text",
    "errors_of",
    "preflight",
    "table_findings",
]

# Share of findings that may be lost to unreadable files, or to annotations that do not fit, before that is an error.
MOST_LOST: Final = 0.05
UNREADABLE: Final = frozenset(
    {
        "missing_file",
        "not_dicom",
        "damaged",
        "no_pixels",
        "unsupported_encoding",
        "too_large",
        "size_mismatch",
        "decoding_failed",
        "decoder_crashed",
        "timed_out",
        "flat_image",
        "unclear_polarity",
    }
)
MISPLACED: Final = frozenset(
    {
        "no_mask",
        "unclear_mask",
        "several_regions",
        "mask_mismatch",
        "no_lesion",
        "lesions_apart",
        "lesion_outside",
        "lesion_off_breast",
        "lesion_too_small",
        "unreadable_annotation",
    }
)
# Part of the findings that may be refused, for whatever reason, before that is worth a warning.
MOST_REFUSED: Final = 0.2
# What `Intensity.notes` says of an image whose values were doubtful, in words.
DOUBTS: Final[Mapping[str, str]] = {
    "bright_air": "a bright background: they may be inverted",
    "incomplete_rescale": "a rescale slope without an intercept, or the other way round",
    "marker_left_out": "something beside the breast that is brighter than it, left out of the range",
    "text_made_black": "text beside the breast, made black",
}
# Standard deviation of a patch in [0, 1] below which it shows nothing.
FLAT: Final = 0.005
# Share of pixels at 0 or 1 above which a patch is clipped, and share of such patches that is worth a warning.
CLIPPED, MOST_CLIPPED = 0.5, 0.1
# Largest spacing over the smallest.
SPACING_RATIO: Final = 2.0
# Kolmogorov-Smirnov distance between patches of this site and the public reference set.
DRIFT: Final = 0.8


@dataclass(frozen=True, kw_only=True)
class Archive:
    """What ingestion wrote down beside the patches.

    Attributes:
      refused: findings without a patch, by reason.
      unlabelled: patches without a biopsy.
      provenance: of every patch, by image identifier.
    """

    refused: Mapping[str, int]
    unlabelled: int
    provenance: Mapping[str, Mapping[str, str]]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One check's outcome.

    Attributes:
      name: by which it is waived.
      level: "ok", "warning" or "error".
      message: what was found, without an identifier, small counts left out unless the patients are public.
    """

    name: str
    level: Level
    message: str


def preflight(
    cohort: Cohort, archive: Archive, *, reference: NDArray[np.float32] | None, names: Sequence[str] | None = None
) -> tuple[Finding, ...]:
    """Checks of `CHECKS`, in its order.

    Args:
      cohort: all labelled patches of the site.
      archive: what ingestion noted.
      reference: float32 in [0, 1], shape (images, height, width): the federation's public patches, or None.
      names: of the checks; None takes every one.
    """
    look = _Look(cohort, archive, reference)
    return tuple(
        Finding(name=name, level=level, message=text)
        for name, check in CHECKS.items()
        if names is None or name in names
        for level, text in [check(look)]
    )


def check_waived(waived: Sequence[str]) -> None:
    """Check that the names in `data.waived` are checks.

    Raises:
      DataError: If one is none.
    """
    unknown = sorted(set(waived) - set(CHECKS))
    if unknown:
        raise DataError(f"data.waived={unknown[0]} is no check; they are {', '.join(CHECKS)}")


def table_findings(cohort: Cohort) -> tuple[Finding, ...]:
    """The checks of `TABLE_CHECKS` on a cohort of which a table is all that there is."""
    archive = Archive(refused={}, unlabelled=0, provenance={})
    return preflight(cohort, archive, reference=None, names=TABLE_CHECKS)


def errors_of(findings: Sequence[Finding], *, waived: Sequence[str] = ()) -> tuple[Finding, ...]:
    """Errors that nobody waived."""
    return tuple(finding for finding in findings if finding.level == "error" and finding.name not in waived)


class _Look:
    """The cohort, and what several checks ask of it."""

    def __init__(self, cohort: Cohort, archive: Archive, reference: NDArray[np.float32] | None) -> None:
        self.cohort, self.archive, self.reference = cohort, archive, reference
        self.findings = len(cohort) + archive.unlabelled + sum(archive.refused.values())
        self.units = cohort.unit_index("patient")
        self.identities = Identities(cohort, archive.provenance)
        self._rows: dict[str, list[int]] = defaultdict(list)
        for row, patch in enumerate(cohort.pixels):
            self._rows[hashlib.sha256(np.ascontiguousarray(patch).tobytes()).hexdigest()].append(row)

    def text(self, count: int) -> str:
        return count_text(count, public=self.cohort.public)

    def repeated(self, column: NDArray[Any]) -> int:
        """Patches whose pixels appear under more than one value of a column."""
        return sum(len(rows) for rows in self._rows.values() if len(set(column[rows].tolist())) > 1)

    def repeated_within(self) -> int:
        found = 0
        for rows in self._rows.values():
            found += sum(count for count in Counter(self.units[rows].tolist()).values() if count > 1)
        return found

    def lost(self, reasons: frozenset[str]) -> int:
        return sum(count for reason, count in self.archive.refused.items() if reason in reasons)

    def values(self, name: str) -> list[str]:
        return [about.get(name, "") for about in self.archive.provenance.values()]

    @property
    def whole_breasts(self) -> bool:
        """Whether patches show breasts, not masses."""
        return bool(self.archive.provenance) and set(self.values("lesion")) == {"breast"}


def _readable(look: _Look) -> tuple[Level, str]:
    lost = look.lost(UNREADABLE)
    level: Level = "error" if lost > MOST_LOST * look.findings else "warning" if lost else "ok"
    return level, f"{look.text(lost)} of {look.text(look.findings)} findings have files that cannot be read"


def _annotations(look: _Look) -> tuple[Level, str]:
    lost = look.lost(MISPLACED)
    level: Level = "error" if lost > MOST_LOST * look.findings else "warning" if lost else "ok"
    return level, f"{look.text(lost)} findings have masks, boxes or contours that do not fit their image"


def _refused(look: _Look) -> tuple[Level, str]:
    lost = sum(look.archive.refused.values())
    much = lost > MOST_REFUSED * look.findings
    most = max(look.archive.refused, key=lambda reason: look.archive.refused[reason], default="")
    why = f", most often as {most.replace('_', ' ')}" if much else ""
    return ("warning" if much else "ok"), f"{look.text(lost)} of {look.text(look.findings)} findings gave no patch{why}"


def _across_patients(look: _Look) -> tuple[Level, str]:
    count = look.repeated(look.units)
    return ("error" if count else "ok"), f"{look.text(count)} patches have the same pixels as one of another patient"


def _across_splits(look: _Look) -> tuple[Level, str]:
    count = look.repeated(look.cohort.splits)
    return ("error" if count else "ok"), f"{look.text(count)} patches have the same pixels as one of another split"


def _across_labels(look: _Look) -> tuple[Level, str]:
    count = look.repeated(look.cohort.labels.astype(np.str_))
    return ("error" if count else "ok"), f"{look.text(count)} patches have the same pixels as one of the other label"


def _within_patients(look: _Look) -> tuple[Level, str]:
    count = look.repeated_within()
    return ("warning" if count else "ok"), f"{look.text(count)} patches repeat one of the same patient"


def _classes(look: _Look) -> tuple[Level, str]:
    train = look.cohort.splits == "train"
    labels = look.cohort.labels[train]
    counts = {word: int((labels == label).sum()) for word, label in (("malignant", MALIGNANT), ("benign", BENIGN))}
    patients = {
        word: count_patients(look.cohort.patients[train][labels == label])
        for word, label in (("malignant", MALIGNANT), ("benign", BENIGN))
    }
    shown = "; ".join(f"{word}: {look.text(counts[word])} images of {look.text(patients[word])} patients" for word in counts)
    return ("error" if min(counts.values()) == 0 else "ok"), f"training patches, {shown}"


def _labels(look: _Look) -> tuple[Level, str]:
    lost = look.archive.refused.get("unknown_label", 0)
    unlabelled = look.archive.unlabelled
    much = lost + unlabelled > 0.5 * look.findings
    text = f"{look.text(unlabelled)} patches have no biopsy, {look.text(lost)} findings a label that is not understood"
    return ("warning" if much or lost else "ok"), text


def _intensity(look: _Look) -> tuple[Level, str]:
    kinds = {value.split(" ")[0] for value in look.values("windowing") if value}
    return ("warning" if len(kinds) > 1 else "ok"), f"intensities are mapped in {max(1, len(kinds))} way(s)"


def _intent(look: _Look) -> tuple[Level, str]:
    raw = look.values("intent").count("processing")
    mixed = 0 < raw < len(look.archive.provenance)
    text = "patches are of images for presentation" if not raw else f"{look.text(raw)} patches are of the detector's raw data"
    return ("warning" if mixed else "ok"), text + (", the others of images for presentation" if mixed else "")


def _doubts(look: _Look) -> tuple[Level, str]:
    counts = Counter(word for value in look.values("notes") for word in value.split() if word in DOUBTS)
    if not counts:
        return "ok", "no image's values were doubtful"
    # A marker of lead stands beside most breasts of an archive of films, and is dealt with.
    level: Level = "error" if "bright_air" in counts else "warning" if "incomplete_rescale" in counts else "ok"
    return level, "; ".join(f"{look.text(count)} images have {DOUBTS[word]}" for word, count in sorted(counts.items()))


def _spacing(look: _Look) -> tuple[Level, str]:
    values = look.values("spacing_down_mm")
    known = [float(value) for value in values if value]
    if not known:
        return "ok", "no file says its pixel spacing"
    mixed = len(known) < len(values) or max(known) > SPACING_RATIO * min(known)
    text = "pixel spacings differ by more than a factor of 2, or are not always known" if mixed else "pixel spacings agree"
    return ("warning" if mixed else "ok"), text


def _flat(look: _Look) -> tuple[Level, str]:
    count = int((look.cohort.pixels.std(axis=(1, 2)) < FLAT).sum())
    return ("error" if count else "ok"), f"{look.text(count)} patches show nothing"


def _clipped(look: _Look) -> tuple[Level, str]:
    ends = ((look.cohort.pixels <= 0.0) | (look.cohort.pixels >= 1.0)).mean(axis=(1, 2))
    count = int((ends > CLIPPED).sum())
    level: Level = "warning" if count > MOST_CLIPPED * len(look.cohort) else "ok"
    return level, f"{look.text(count)} patches are black or white for the larger part"


def _drift(look: _Look) -> tuple[Level, str]:
    if look.reference is None:
        return "ok", "no public reference set to compare with"
    if look.whole_breasts:
        return "ok", "patches show whole breasts: they are not compared with masses"
    distances = []
    for statistic in (np.mean, np.std):
        own, public = statistic(look.cohort.pixels, axis=(1, 2)), statistic(look.reference, axis=(1, 2))
        distances.append(float(ks_2samp(own, public).statistic))
    text = f"distance from the public reference set: brightness {distances[0]:.1f}, contrast {distances[1]:.1f} of at most 1"
    return ("warning" if max(distances) > DRIFT else "ok"), text


def _identity(check: Callable[[Identities], tuple[Level, str]]) -> Callable[[_Look], tuple[Level, str]]:
    return lambda look: check(look.identities)


def _near_duplicates(look: _Look) -> tuple[Level, str]:
    level, text = IDENTITY_CHECKS["near_duplicates_across_patients"](look.identities)
    # What is alike was measured on masses; breasts from afar are alike.
    return ("warning" if level == "error" and look.whole_breasts else level), text


CHECKS: Final[Mapping[str, Callable[[_Look], tuple[Level, str]]]] = {
    "unreadable_files": _readable,
    "misplaced_annotations": _annotations,
    "refused_findings": _refused,
    "duplicates_across_patients": _across_patients,
    "duplicates_across_splits": _across_splits,
    "duplicates_across_labels": _across_labels,
    "duplicates_within_patients": _within_patients,
    **{name: _identity(check) for name, check in IDENTITY_CHECKS.items()},
    "near_duplicates_across_patients": _near_duplicates,
    "one_class": _classes,
    "missing_labels": _labels,
    "mixed_intensities": _intensity,
    "mixed_intents": _intent,
    "doubtful_values": _doubts,
    "mixed_spacing": _spacing,
    "flat_patches": _flat,
    "clipped_patches": _clipped,
    "drift": _drift,
}
"""What is looked at, in the order of the page; the names are what a site waives."""

TABLE_CHECKS: Final = (
    "duplicates_across_patients",
    "near_duplicates_across_patients",
    "similar_identifiers",
    "many_people_one_patient",
)
"""Those that a hospital's own table is put to: whether the patients in it are the people in it."""
