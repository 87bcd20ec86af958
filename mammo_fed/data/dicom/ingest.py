"""From an archive of DICOM files to a site's cohort folder: parallel, resumable, with every finding accounted for."""

from __future__ import annotations

import csv
import io
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from mammo_fed.common.private_files import check_private, file_lock, write_private
from mammo_fed.common.worker_pool import Lost, run_isolated
from mammo_fed.data.dicom.findings import REASONS, Finding, Masks, Outline, Reason, SkippedFinding
from mammo_fed.data.dicom.journal import Journal
from mammo_fed.data.dicom.patch import Job, MadePatch, PatchRecipe, Refusal, Unwritten, Wanted, make_patches
from mammo_fed.data.pseudonyms import Pseudonyms
from mammo_fed.data.sources.cohort_folder import COHORT_NAME, PATCHES, CohortRow, listed_patients, write_cohort_folder
from mammo_fed.errors import DataError, InvalidSetting, RunFailed
from mammo_fed.privacy.patient_identity import is_placeholder, loose_identifiers

__all__ = ["PROBLEMS_NAME", "IngestPlan", "Ingested", "ingest", "write_problems"]

# 3 notes the content of every source file, and how an image was taken: patches of an earlier format are made again.
FORMAT: Final = 3
JOURNAL_NAME: Final = "journal.jsonl"
PROBLEMS_NAME: Final = "problems.csv"
# A pseudonym of nobody, by which a salt is recognised.
SALT_CHECK_NAME: Final = "salt-check"
LOCK_NAME: Final = ".lock"
# A mammogram of 13 million pixels takes half a second; JPEG 2000 some seconds.
SECONDS: Final = 120.0
# The largest image that is read, five times over.
MEMORY_BYTES: Final = 768 << 20
LOST_AS: Final[Mapping[str, Reason]] = {"crashed": "decoder_crashed", "timed_out": "timed_out"}


@dataclass(frozen=True, kw_only=True)
class IngestPlan:
    """What is ingested, and how.

    Attributes:
      source: name of the source, for the cohort's own settings.
      recipe: how patches are made.
      public: whether the patients' data is declared public.
      processes: how many decode at once.
    """

    source: str
    recipe: PatchRecipe
    public: bool
    processes: int


@dataclass(frozen=True, kw_only=True)
class Ingested:
    """What came of an ingestion; counts only.

    Attributes:
      findings: inputs: `images`, `unlabelled` and `refused` add up to it.
      images: labelled patches.
      unlabelled: patches without a biopsy.
      patients: patients with a labelled patch.
      refused: number of findings by reason.
      reused: patches that an earlier, interrupted run had made.
      taken: number of patches by what their headers say, for "vendor", "intent", "view" and "year".
    """

    findings: int
    images: int
    unlabelled: int
    patients: int
    refused: Mapping[str, int]
    reused: int
    taken: Mapping[str, Mapping[str, int]]


def ingest(
    findings: Iterable[Finding | SkippedFinding],
    folder: Path,
    *,
    plan: IngestPlan,
    pseudonyms: Pseudonyms,
    on_progress: Callable[[int, int], None] = lambda *_: None,
    on_refusal: Callable[[str, str, str], None] = lambda *_: None,
    on_check: Callable[[int, int], None] = lambda *_: None,
) -> Ingested:
    """Make the cohort folder; run again, it makes only what is missing or whose source has changed.

    Args:
      findings: of one source.
      folder: of the cohort; made if it is not there, mode 0700.
      plan: what and how.
      pseudonyms: of this site.
      on_progress: called with (findings done, findings in all).
      on_refusal: called with (pseudonym, reason, detail); the detail may name a file and is for the operator's console only.
      on_check: called with (files compared, files in all) while an earlier run's sources are compared with what they were.

    Raises:
      DataError: If the folder was made with another salt.
      InvalidSetting: If the folder holds something else, another plan's cohort, or is in use.
      RunFailed: If the disk is full.
    """
    listed = list(findings)
    _prepare(folder)
    with file_lock(folder / LOCK_NAME, what="mammo-fed data ingest", folder=folder):
        try:
            return _Ingestion(folder, plan, pseudonyms, _Calls(on_progress, on_refusal, on_check)).run(listed)
        except OSError as error:
            raise RunFailed(
                f"cohort {folder} cannot be written ({error.strerror}); free disk space, or allow it to be written, "
                "and run it again: what is made stays"
            ) from error


@dataclass(frozen=True)
class _Calls:
    """Whom to tell what is going on."""

    progress: Callable[[int, int], None]
    refusal: Callable[[str, str, str], None]
    check: Callable[[int, int], None]


class _Ingestion:
    def __init__(self, folder: Path, plan: IngestPlan, pseudonyms: Pseudonyms, calls: _Calls) -> None:
        self._folder, self._plan, self._pseudonyms, self._calls = folder, plan, pseudonyms, calls
        self._problems: list[tuple[str, str]] = []
        self._settings = {"source": plan.source, **asdict(plan.recipe), "format": FORMAT}

    def run(self, listed: Sequence[Finding | SkippedFinding]) -> Ingested:
        """Make what is missing, then write the tables."""
        self._check_salt()
        found = self._named(listed)
        journal = Journal(self._folder / JOURNAL_NAME, self._folder / PATCHES)
        kept = journal.kept(found, stamp_of=self._stamp, processes=self._plan.processes, on_check=self._calls.check)
        todo = [name for name in found if name not in kept]
        done, reused = len(listed) - len(todo), len(kept)
        self._calls.progress(done, len(listed))
        with journal.opened():
            for answers in self._made(found, todo):
                for answer in answers:
                    if isinstance(answer, Refusal):
                        self._refuse(answer.name, answer.reason, f"{found[answer.name].image}: {answer.detail}")
                    elif isinstance(answer, Unwritten):
                        # Every further file would be decoded in vain.
                        raise OSError(answer.code, os.strerror(answer.code))
                    else:
                        kept[answer.name] = answer
                        journal.note(answer, stamp=self._stamp(found[answer.name]))
                journal.flush()
                done += len(answers)
                self._calls.progress(done, len(listed))
        patients = self._patients(finding.patient for finding in found.values())
        rows = [self._row(found[name], patch, patients[found[name].patient]) for name, patch in kept.items()]
        refused = Counter(reason for _, reason in self._problems)
        write_cohort_folder(self._folder, rows, settings=self._settings, reasons=refused, public=self._plan.public)
        write_problems(self._folder / PROBLEMS_NAME, ("finding", "reason"), sorted(self._problems))
        self._remove_strays({row.name for row in rows})
        labelled = [row for row in rows if row.label is not None]
        return Ingested(
            findings=len(listed),
            images=len(labelled),
            unlabelled=len(rows) - len(labelled),
            patients=len({row.patient for row in labelled}),
            refused=dict(refused),
            reused=reused,
            taken=_taken(rows),
        )

    def _check_salt(self) -> None:
        """With another salt every patient would be a new one to the site's ledger, with all of the budget to spend again."""
        path, mark = self._folder / SALT_CHECK_NAME, self._pseudonyms.of("salt", "check")
        if not path.exists():
            write_private(path, mark.encode())
        elif path.read_text(encoding="ascii", errors="replace") != mark:
            raise DataError(
                f"cohort {self._folder} was made with another salt, and every patient would become a new one to the ledger; "
                "restore that salt from a backup, over the one that is there now"
            )

    def _named(self, listed: Sequence[Finding | SkippedFinding]) -> dict[str, Finding]:
        """Findings by pseudonym; those that the source gave up, and those that contradict each other, are counted."""
        rows: dict[str, list[Finding]] = {}
        for one in listed:
            name = self._pseudonyms.of("finding", one.name)
            if isinstance(one, SkippedFinding):
                self._refuse(name, one.reason, one.detail)
            else:
                rows.setdefault(name, []).append(one)
        found: dict[str, Finding] = {}
        for name, alike in rows.items():
            # A row that stands twice is one lesion; of two that say different things nobody knows which is right.
            agree = len({(one.patient, one.label, one.split, one.image) for one in alike}) == 1
            if agree:
                found[name] = alike[0]
            for one in alike[agree:]:
                self._refuse(name, "repeated_row", f"{one.name} stands {len(alike)} times{'' if agree else ', differently'}")
        return self._of_one_split(found)

    def _of_one_split(self, found: Mapping[str, Finding]) -> dict[str, Finding]:
        """Without the patients who are in more than one split: a model would be tested on whom it was trained with."""
        splits: dict[str, set[str]] = {}
        patients = {name: self._pseudonyms.of("patient", finding.patient) for name, finding in found.items()}
        for name, finding in found.items():
            splits.setdefault(patients[name], set()).add(finding.split)
        kept = {}
        for name, finding in found.items():
            if len(splits[patients[name]]) > 1:
                self._refuse(name, "patient_in_two_splits", f"{finding.name}: its patient is in more than one")
            else:
                kept[name] = finding
        return kept

    def _made(self, found: Mapping[str, Finding], todo: Sequence[str]) -> Iterator[Sequence[MadePatch | Refusal | Unwritten]]:
        by_image: dict[Path, list[str]] = {}
        for name in todo:
            by_image.setdefault(found[name].image, []).append(name)
        jobs = [
            Job(
                image=image,
                wanted=tuple(Wanted(name=name, lesion=found[name].lesion) for name in names),
                recipe=self._plan.recipe,
                folder=self._folder / PATCHES,
                pseudonyms=self._pseudonyms,
            )
            for image, names in by_image.items()
        ]
        answers = run_isolated(make_patches, jobs, processes=self._plan.processes, seconds=SECONDS, memory_bytes=MEMORY_BYTES)
        for job, answer in answers:
            if isinstance(answer, Lost):
                detail = f"the process that read it {answer.how.replace('_', ' ')}"
                yield [Refusal(name=one.name, reason=LOST_AS[answer.how], detail=detail) for one in job.wanted]
            else:
                yield answer

    def _refuse(self, name: str, reason: Reason, detail: str) -> None:
        self._problems.append((name, reason if reason in REASONS else "damaged"))
        # Names of files may hold anything, also what moves a terminal's cursor or no text can.
        readable = "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in detail)
        self._calls.refusal(name, reason, readable)

    def _patients(self, spellings: Iterable[str]) -> dict[str, str]:
        """A patient's pseudonym by every spelling: the one that this folder gave before, where a ledger may know it.

        Before inner blanks and what is not seen made no difference, a spelling with them had a pseudonym of its own.
        """
        before = listed_patients(self._folder)
        chosen: dict[str, str] = {}
        earlier: dict[str, str] = {}
        for spelling in sorted(set(spellings)):
            name, old = self._pseudonyms.of("patient", spelling), self._pseudonyms.earlier_of_patient(spelling)
            chosen[spelling] = name
            if name not in before and old in before:
                earlier.setdefault(name, old)
        return {spelling: earlier.get(name, name) for spelling, name in chosen.items()}

    def _row(self, finding: Finding, patch: MadePatch, patient: str) -> CohortRow:
        return CohortRow(
            name=patch.name,
            patient=patient,
            label=finding.label,
            view=finding.view or patch.view,
            split=finding.split,
            sha256=patch.sha256,
            provenance={**patch.provenance, "patient": patient, **self._noted(finding.patient)},
        )

    def _noted(self, identifier: str) -> dict[str, str]:
        """What a pseudonym hides and the preflight asks: digests of looser forms, and whether the identifier is one at all."""
        loose = sorted(self._pseudonyms.of("loose patient", form) for form in loose_identifiers(identifier))
        return {"loose_patient": " ".join(loose), "placeholder": "yes" if is_placeholder(identifier) else ""}

    def _stamp(self, finding: Finding) -> str:
        """Changes with the recipe and the lesion; not with where the files lie, for their content is compared."""
        match finding.lesion:
            case Outline(points=points, drawn_on=drawn_on):
                about: object = [points.tolist(), drawn_on]
            case Masks(candidates=candidates, region=region):
                about = [len(candidates), region]
            case lesion:
                about = repr(lesion)
        return self._pseudonyms.of("stamp", json.dumps([self._settings, about], sort_keys=True, default=str))

    def _remove_strays(self, names: set[str]) -> None:
        """Patches of findings that the source no longer has, and what a killed worker left."""
        for path in (self._folder / PATCHES).iterdir():
            # Folders are of file servers and viewers, which keep thumbnails beside images.
            if (path.suffix != ".png" or path.stem not in names) and (path.is_symlink() or not path.is_dir()):
                path.unlink()


def write_problems(path: Path, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Write a table of findings without a patch."""
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    write_private(path, buffer.getvalue().encode())


def _taken(rows: Sequence[CohortRow]) -> dict[str, dict[str, int]]:
    """How many patches there are of each vendor, intent, view and year, the most frequent first."""
    counts = {kind: Counter(row.provenance.get(kind) or "not said" for row in rows) for kind in ("vendor", "intent", "year")}
    counts["view"] = Counter(row.view or "other" for row in rows)
    return {kind: dict(counter.most_common()) for kind, counter in counts.items()}


def _prepare(folder: Path) -> None:
    try:
        if not folder.exists():
            folder.mkdir(mode=0o700, parents=True)
        entries = {entry.name for entry in folder.iterdir()}
        if entries and not entries & {JOURNAL_NAME, COHORT_NAME, LOCK_NAME}:
            raise InvalidSetting(f"FOLDER={folder} holds something else than a cohort: nothing is overwritten; choose another")
        check_private(folder)
        if (folder / PATCHES).is_symlink():
            raise InvalidSetting(
                f"FOLDER={folder} has a link for its {PATCHES}: nothing is written where it leads; put all of FOLDER there"
            )
        (folder / PATCHES).mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise InvalidSetting(
            f"FOLDER={folder} cannot be made ({error.strerror}); choose a place that you may write to"
        ) from error
