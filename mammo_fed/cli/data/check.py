"""mammo-fed data check: is a cohort fit for training, and what does its archive say of people?"""

from __future__ import annotations

import argparse
import os
from dataclasses import asdict
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from mammo_fed.common.command_line import print_json, say
from mammo_fed.data.dicom.identifiers.audit import HeaderAudit, audit_headers
from mammo_fed.data.phantom.hospitals import phantom_synthetic
from mammo_fed.data.preflight import CHECKS, errors_of
from mammo_fed.data.sources.cohort_folder import check_cohort_folder, open_cohort_folder
from mammo_fed.data.sources.image_folder import read_image_folder
from mammo_fed.errors import DataError, InvalidSetting
from mammo_fed.reporting.pages.preflight_page import write_preflight_page

__all__ = ["check_command", "public_reference"]

# The phantom's patches that a cohort is compared with; brightness and contrast do not depend on their size.
REFERENCE_IMAGES: Final = 100


def check_command(options: argparse.Namespace, console: Console) -> int:
    """Check a cohort, say what was found, and write the page; the exit code.

    Raises:
      DataError: If an error is left that was not waived.
      InvalidSetting: If a check to waive is none.
    """
    unknown = sorted(set(options.waive) - set(CHECKS))
    if unknown:
        raise InvalidSetting(f"--waive={unknown[0]} is no check; they are {', '.join(CHECKS)}")
    folder = options.cohort.expanduser()
    opened = open_cohort_folder(folder, public=True)
    cohort, findings = check_cohort_folder(folder, public=True, reference=public_reference(options.reference))
    audit = _audit(options.archive) if options.archive else None
    page = write_preflight_page(
        options.page or folder / "preflight.html",
        cohort,
        findings,
        refused=opened.archive.refused,
        identifying=audit.identifying if audit else {},
    )
    left = errors_of(findings, waived=options.waive)
    if options.json:
        about = {"findings": [asdict(finding) for finding in findings], "errors_left": [one.name for one in left]}
        print_json({**about, "headers": asdict(audit) if audit else None})
    else:
        for finding in findings:
            waived = " (waived)" if finding.level == "error" and finding.name in options.waive else ""
            say(console, f"{finding.level:8} {finding.name.replace('_', ' ')}{waived}: {finding.message}")
        if audit:
            _say_audit(console, audit)
        say(console, f"page, for this site only: {page.resolve()}")
    if left:
        raise DataError(f"{len(left)} check(s) failed: {', '.join(one.name for one in left)}")
    return 0


def _audit(archive: Path) -> HeaderAudit:
    if not archive.is_dir():
        raise DataError(f"ARCHIVE={archive} is no folder; give the folder of the DICOM files")
    paths = sorted(path for path in archive.rglob("*") if path.is_file())
    return audit_headers(paths, processes=len(os.sched_getaffinity(0)))


def _say_audit(console: Console, audit: HeaderAudit) -> None:
    say(console, f"headers: {audit.files} DICOM files, {audit.unreadable} others; the cohort keeps none of these attributes:")
    for name, count in audit.identifying.items():
        say(console, f"  {name}: in {count} files")
    for kind, count in audit.others.items():
        say(console, f"  beside them: {count} {kind} files")
    say(console, f"  text burned into pixels: {audit.burned_in} files say so, {audit.unsaid} do not say")


def public_reference(folder: Path | None) -> NDArray[np.float32]:
    """The federation's public patches: those of a folder, or the phantom's."""
    if folder is not None:
        return read_image_folder(folder, public=True).pixels
    return phantom_synthetic(count=REFERENCE_IMAGES, d_prime=2.4, image_size=64, seed=1).pixels
