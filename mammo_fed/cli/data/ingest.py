"""mammo-fed data ingest: from a hospital's DICOM files to a site's cohort."""

from __future__ import annotations

import argparse
import os
import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mammo_fed.cli.data.check import public_reference
from mammo_fed.common.command_line import print_json, say, warn
from mammo_fed.data.dicom.archives.registry import archive_named, archive_origin
from mammo_fed.data.dicom.findings import Finding, SkippedFinding
from mammo_fed.data.dicom.geometry import CropRule
from mammo_fed.data.dicom.ingest import Ingested, IngestPlan, ingest, write_problems
from mammo_fed.data.dicom.patch import PatchRecipe
from mammo_fed.data.pseudonyms import Pseudonyms
from mammo_fed.data.sources.cohort_folder import check_cohort_folder
from mammo_fed.data.sources.rows import Split
from mammo_fed.errors import DataError, InvalidSetting

__all__ = ["ingest_command"]

# Where there is no terminal to draw a bar on, a line tells how far it is every so often.
SAY_EVERY_SECONDS: Final = 60.0


def ingest_command(options: argparse.Namespace, console: Console) -> int:
    """Make a cohort of an archive, or bring it up to date, and check it; the exit code.

    Raises:
      DataError: If there is no archive, or no finding gave a patch.
      InvalidSetting: If an option is out of its range, or the cohort would lie inside the archive.
    """
    root, cohort = _folders(options)
    beside = Path(os.path.abspath(cohort))
    salt = options.salt or beside.with_name(f"{beside.name}.salt")
    source, recipe = archive_origin(options.source), _recipe(options)
    # Before there is a salt: an archive that cannot be read leaves nothing behind.
    findings = [_in_split(finding, options.split) for finding in archive_named(options.source)(root)]
    problems: list[tuple[str, str, str]] = []

    def refusal(name: str, reason: str, detail: str) -> None:
        problems.append((name, reason, detail))
        if options.explain:
            console.print(f"{name} {reason}: {detail}", markup=False, highlight=False, soft_wrap=True)

    with _told(console, quiet=options.json) as told:
        done = ingest(
            findings,
            cohort,
            plan=IngestPlan(source=source, recipe=recipe, public=options.public, processes=options.jobs),
            pseudonyms=Pseudonyms.kept_at(salt),
            on_progress=told.findings,
            on_refusal=refusal,
            on_check=told.files,
        )
    named = beside.with_name(f"{beside.name}.problems.csv") if options.explain else None
    if named is not None:
        write_problems(named, ("finding", "reason", "detail"), problems)
    if options.json:
        print_json(asdict(done))
    else:
        _say(console, done, cohort=cohort, salt=salt, named=named)
    if not done.images and not done.unlabelled:
        raise DataError("no finding gave a patch; --explain names the files")
    if done.images:
        _check(console, cohort, public=options.public)
    return 0


def _folders(options: argparse.Namespace) -> tuple[Path, Path]:
    if options.jobs < 1:
        raise InvalidSetting(f"--jobs={options.jobs} must be at least 1")
    root, cohort = options.root.expanduser(), options.cohort.expanduser()
    if not root.is_dir():
        raise DataError(f"ARCHIVE={root} is no folder; give the folder of the DICOM files")
    if cohort.resolve().is_relative_to(root.resolve()):
        raise InvalidSetting(
            f"COHORT={cohort} lies inside the archive; choose a folder outside, so that the archive stays as it is"
        )
    return root, cohort


def _recipe(options: argparse.Namespace) -> PatchRecipe:
    spacing, side_mm = options.spacing_mm, options.side_mm
    if spacing is not None:
        if not 0 < spacing <= 10:
            raise InvalidSetting(f"--spacing-mm={spacing} must be above 0 and at most 10")
        side_mm = spacing * options.size
    return PatchRecipe(
        crop=CropRule(kind=options.crop, margin=options.margin, smallest=options.smallest, side_mm=side_mm, size=options.size),
        windowing=options.windowing,
        modality=None if options.any_modality else "MG",
        burned_in=options.burned_in,
        intent=options.intent,
        synthetic_views=options.synthetic_views,
        blank_background=options.blank_background,
    )


class _Told:
    """Says how far an ingestion is: on a bar, or in a line a minute."""

    def __init__(self, progress: Progress, console: Console, *, lines: bool) -> None:
        self._progress, self._console, self._lines = progress, console, lines
        self._tasks = {name: progress.add_task(name, total=None, visible=False) for name in ("comparing", "findings")}
        self._begun: dict[str, tuple[float, int]] = {}
        self._said = time.monotonic()

    def files(self, count: int, total: int) -> None:
        """So many files of an earlier run were compared with what they were."""
        self._tell("comparing", count, total)

    def findings(self, count: int, total: int) -> None:
        """So many findings are done."""
        self._tell("findings", count, total)

    def _tell(self, name: str, count: int, total: int) -> None:
        now = time.monotonic()
        begun, first = self._begun.setdefault(name, (now, count))
        self._progress.update(self._tasks[name], completed=count, total=total, visible=True)
        if self._lines and count > first and now - self._said >= SAY_EVERY_SECONDS:
            self._said = now
            minutes = (now - begun) / (count - first) * (total - count) / 60
            say(self._console, f"{name}: {count} of {total}, about {max(1, round(minutes))} min left")


@contextmanager
def _told(console: Console, *, quiet: bool) -> Iterator[_Told]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=quiet or not console.is_terminal) as progress:
        yield _Told(progress, console, lines=not quiet and not console.is_terminal)


def _say(console: Console, done: Ingested, *, cohort: Path, salt: Path, named: Path | None) -> None:
    say(
        console,
        f"{done.findings} findings: {done.images} patches of {done.patients} patients, {done.unlabelled} without a label"
        + (f"; {done.reused} were there and are the same" if done.reused else ""),
    )
    for reason, count in sorted(done.refused.items()):
        say(console, f"  refused, {reason.replace('_', ' ')}: {count}")
    for kind, counts in done.taken.items():
        if counts:
            say(console, f"  by {kind}: {', '.join(f'{value} {count}' for value, count in counts.items())}")
    say(console, f"cohort: {cohort.resolve()}", f"key of the pseudonyms, for this site only: {salt.resolve()}")
    if named is not None:
        say(console, f"refused findings by name, for this site only: {named.resolve()}")
    if not done.images and done.unlabelled:
        say(console, f"no patch has a label: they are listed in {cohort / 'unlabelled.csv'}, for pretraining only")


def _check(console: Console, cohort: Path, *, public: bool) -> None:
    _, findings = check_cohort_folder(cohort, public=public, reference=public_reference(None))
    for finding in findings:
        if finding.level == "error":
            remedy = f"no site can join with it (mammo-fed data check {shlex.quote(str(cohort))})"
            warn(console, f"preflight error: {finding.name}: {finding.message}; {remedy}")
        elif finding.level == "warning":
            warn(console, f"preflight: {finding.name}: {finding.message}")


def _in_split(finding: Finding | SkippedFinding, split: Split | None) -> Finding | SkippedFinding:
    return replace(finding, split=split) if split is not None and isinstance(finding, Finding) else finding
