"""mammo-fed data ingest: from a hospital's DICOM files to a site's cohort."""

from __future__ import annotations

import argparse
from dataclasses import asdict, replace

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mammo_fed.cli.data.check import public_reference
from mammo_fed.common.command_line import print_json, say, warn
from mammo_fed.data.dicom.archives.registry import archive_named, archive_origin
from mammo_fed.data.dicom.findings import Finding, SkippedFinding
from mammo_fed.data.dicom.geometry import CropRule
from mammo_fed.data.dicom.ingest import IngestPlan, ingest
from mammo_fed.data.dicom.patch import PatchRecipe
from mammo_fed.data.preflight import errors_of
from mammo_fed.data.pseudonyms import Pseudonyms
from mammo_fed.data.sources.cohort_folder import check_cohort_folder
from mammo_fed.data.sources.rows import Split
from mammo_fed.errors import DataError, InvalidSetting

__all__ = ["ingest_command"]


def ingest_command(options: argparse.Namespace, console: Console) -> int:
    """Make a cohort of an archive, or bring it up to date, and check it; the exit code.

    Raises:
      DataError: If there is no archive, or no finding gave a labelled patch.
      InvalidSetting: If an option is out of its range, or the cohort would lie inside the archive.
    """
    if options.jobs < 1:
        raise InvalidSetting(f"--jobs={options.jobs} must be at least 1")
    root, cohort = options.root.expanduser(), options.cohort.expanduser()
    if not root.is_dir():
        raise DataError(f"ARCHIVE={root} is no folder; give the folder of the DICOM files")
    if cohort.resolve().is_relative_to(root.resolve()):
        raise InvalidSetting(
            f"COHORT={cohort} lies inside the archive; choose a folder outside, so that the archive stays as it is"
        )
    crop = CropRule(
        kind=options.crop, margin=options.margin, smallest=options.smallest, side_mm=options.side_mm, size=options.size
    )
    recipe = PatchRecipe(
        crop=crop, windowing=options.windowing, modality=None if options.any_modality else "MG", burned_in=options.burned_in
    )
    salt = options.salt or cohort.with_name(f"{cohort.name}.salt")

    def refusal(name: str, reason: str, detail: str) -> None:
        if options.explain:
            console.print(f"{name} {reason}: {detail}", markup=False, highlight=False, soft_wrap=True)

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=options.json) as progress:
        task = progress.add_task("findings", total=None)
        done = ingest(
            (_in_split(finding, options.split) for finding in archive_named(options.source)(root)),
            cohort,
            plan=IngestPlan(
                source=archive_origin(options.source), recipe=recipe, public=options.public, processes=options.jobs
            ),
            pseudonyms=Pseudonyms.kept_at(salt),
            on_progress=lambda count, total: progress.update(task, completed=count, total=total),
            on_refusal=refusal,
        )
    if options.json:
        print_json(asdict(done))
    else:
        say(
            console,
            f"{done.findings} findings: {done.images} patches of {done.patients} patients, {done.unlabelled} without a label",
        )
        for reason, count in sorted(done.refused.items()):
            say(console, f"  refused, {reason.replace('_', ' ')}: {count}")
        say(console, f"cohort: {cohort.resolve()}", f"key of the pseudonyms, for this site only: {salt.resolve()}")
    if not done.images:
        without = f"{done.unlabelled} patches without a label are listed in {cohort / 'unlabelled.csv'}, for pretraining only"
        raise DataError(f"no finding gave a labelled patch; {without if done.unlabelled else '--explain names the files'}")
    _, findings = check_cohort_folder(cohort, public=options.public, reference=public_reference(None))
    for finding in errors_of(findings):
        warn(console, f"preflight: {finding.name}: {finding.message}; no site can join with it (mammo-fed data check {cohort})")
    return 0


def _in_split(finding: Finding | SkippedFinding, split: Split | None) -> Finding | SkippedFinding:
    return replace(finding, split=split) if split is not None and isinstance(finding, Finding) else finding
