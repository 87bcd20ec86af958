"""mammo-fed data: from a hospital's DICOM files to a site's cohort."""

from __future__ import annotations

import argparse
import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mammo_fed.cli.data_check import add_check_command, public_reference
from mammo_fed.cli.data_fetch import add_fetch_command
from mammo_fed.common.command_line import print_json, say, warn
from mammo_fed.errors import DataError, InvalidSetting

if TYPE_CHECKING:
    from mammo_fed.data.dicom.findings import Finding, SkippedFinding
    from mammo_fed.data.sources.rows import Split

__all__ = ["add_data_commands"]

ENCODINGS: Final = ("explicit", "implicit", "deflated", "rle", "jpeg2000", "jpegls", "jpeg_lossless")
DEPTHS: Final = ("mono1_12", "mono2_16", "mono2_8", "signed_16")
SPLITS: Final = ("train", "val", "test", "external")
SOURCES: Final = ("csv", "cbis_ddsm", "bcdr", "inbreast", "cmmd")
INGEST: Final = """
sources (--source):
  csv        findings.csv (file, patient, label, and a box, mask or contour) beside DICOM files
  cbis_ddsm  CBIS-DDSM as The Cancer Imaging Archive ships it
  bcdr       BCDR: outline tables
  inbreast   INbreast: OsiriX XML; no biopsies, so of use for pretraining only
  cmmd       CMMD: labels of whole breasts

The cohort folder holds pseudonyms only. Their key is COHORT.salt: keep it at the site, and back it up.
Run again, it makes what is missing: an interrupted ingestion is simply started again.
Then: mammo-fed simulate data=cohort data.root=COHORT, or source = "cohort" in a site's file.
"""


def add_data_commands(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add `data ingest | check | phantom | fetch` to the command line."""
    text = "from a hospital's DICOM files to a site's cohort"
    data = commands.add_parser("data", help=text, description=text)
    group = data.add_subparsers(title="commands", metavar="COMMAND", required=True)
    text = "make a cohort of lesion patches from DICOM files"
    ingest = group.add_parser(
        "ingest",
        help=text,
        description=text,
        epilog=INGEST,
        parents=[common],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    ingest.set_defaults(command=_ingest)
    ingest.add_argument("root", type=Path, metavar="ARCHIVE", help="folder of the DICOM files and their tables")
    ingest.add_argument("cohort", type=Path, metavar="COHORT", help="folder to make, or to bring up to date")
    ingest.add_argument("--source", choices=SOURCES, default="csv", help="kind of archive (csv)")
    ingest.add_argument("--split", choices=SPLITS, help="put every patient into this split (as the archive says)")
    ingest.add_argument("--crop", choices=["centred", "paper"], default="centred", help="where the lesion lies (centred)")
    ingest.add_argument("--margin", type=float, default=0.25, help="around the lesion, part of its longer side (0.25)")
    ingest.add_argument("--smallest", type=int, default=128, metavar="PIXELS", help="least side of the crop (128)")
    ingest.add_argument("--side-mm", type=float, metavar="MM", help="one physical size for every crop instead")
    ingest.add_argument("--size", type=int, default=128, metavar="PIXELS", help="side of the patches (128)")
    ingest.add_argument(
        "--windowing",
        choices=["minmax", "window", "stored"],
        default="minmax",
        help="darkest to brightest pixel (minmax, as in the paper), the file's window, or all stored values",
    )
    ingest.add_argument("--any-modality", action="store_true", help="take files whose modality is not MG")
    ingest.add_argument("--burned-in", action="store_true", help="take images with text in their pixels: look at every patch")
    ingest.add_argument("--public", action="store_true", help="the patients' data is published: lifts rules that protect them")
    ingest.add_argument("--salt", type=Path, metavar="FILE", help="key of the pseudonyms (COHORT.salt)")
    ingest.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="processes (all cores)")
    ingest.add_argument("--explain", action="store_true", help="name the files of refused findings on this console")
    add_check_command(group, common)
    add_fetch_command(group, common)
    text = "write phantom patients as an archive of DICOM files, to try an ingestion without a patient's data"
    phantom = group.add_parser("phantom", help=text, description=text, parents=[common])
    phantom.set_defaults(command=_phantom)
    phantom.add_argument("root", type=Path, metavar="ARCHIVE", help="new folder")
    phantom.add_argument("--form", choices=SOURCES, default="csv", help="source whose files it imitates (csv)")
    phantom.add_argument("--encoding", choices=ENCODINGS, default="explicit", help="of the pixels (explicit)")
    phantom.add_argument("--depth", choices=DEPTHS, default="mono2_16", help="how values are stored (mono2_16)")
    phantom.add_argument("--images", type=int, default=60, help="masses of training patients, and half as many for tests (60)")
    phantom.add_argument("--size", type=int, default=128, metavar="PIXELS", help="side of a mass patch (128)")
    phantom.add_argument("--rows", type=int, default=512, help="height of a mammogram (512)")
    phantom.add_argument("--columns", type=int, default=384, help="width of a mammogram (384)")
    phantom.add_argument("--seed", type=int, default=0, help="of the patients")


def _ingest(options: argparse.Namespace, console: Console) -> int:
    # Late, as everywhere: --help should not wait for libraries.
    from mammo_fed.data.dicom.archives.registry import SOURCES as READERS
    from mammo_fed.data.dicom.geometry import CropRule
    from mammo_fed.data.dicom.ingest import IngestPlan, ingest
    from mammo_fed.data.dicom.patch import PatchRecipe
    from mammo_fed.data.pseudonyms import Pseudonyms

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
            (_in_split(finding, options.split) for finding in READERS[options.source](root)),
            cohort,
            plan=IngestPlan(source=options.source, recipe=recipe, public=options.public, processes=options.jobs),
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
        raise DataError("no finding gave a labelled patch; --explain names the files")
    from mammo_fed.data.preflight import errors_of
    from mammo_fed.data.sources.cohort_folder import check_cohort_folder

    _, findings = check_cohort_folder(cohort, public=options.public, reference=public_reference(None))
    for finding in errors_of(findings):
        warn(console, f"preflight: {finding.name}: {finding.message}; no site can join with it (mammo-fed data check {cohort})")
    return 0


def _in_split(finding: Finding | SkippedFinding, split: Split | None) -> Finding | SkippedFinding:
    from mammo_fed.data.dicom.findings import Finding

    return replace(finding, split=split) if split is not None and isinstance(finding, Finding) else finding


def _phantom(options: argparse.Namespace, console: Console) -> int:
    from mammo_fed.data.cohort import concatenate
    from mammo_fed.data.dicom.phantom_tree import PhantomTree, write_phantom_tree
    from mammo_fed.data.phantom.hospitals import phantom_cohort
    from mammo_fed.data.phantom.masses import EXTERNAL_STYLE

    parts = [
        phantom_cohort(
            name=f"phantom-{split}",
            num_images=count,
            style=EXTERNAL_STYLE,
            d_prime=2.4,
            image_size=options.size,
            seed=options.seed,
            split=split,
        )
        for split, count in (("train", options.images), ("test", max(8, options.images // 2)))
    ]
    tree = PhantomTree(
        form=options.form, encoding=options.encoding, depth=options.depth, rows=options.rows, columns=options.columns
    )
    root = options.root.expanduser()
    drawn = write_phantom_tree(root, concatenate(parts, name="phantom"), tree=tree)
    if options.json:
        print_json({"archive": str(root.resolve()), "mammograms": len(drawn)})
    else:
        say(console, f"{len(drawn)} mammograms of {len({one.patient for one in drawn})} phantom patients: {root.resolve()}")
        say(console, f"then: mammo-fed data ingest {root} COHORT --source {options.form} --public")
    return 0
