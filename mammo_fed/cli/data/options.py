"""The options of `mammo-fed data`; loads in no time, as --help does."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Final

from mammo_fed.cli.data.fetch import FETCHED, STEPS

__all__ = [
    "DEPTHS",
    "ENCODINGS",
    "SOURCES",
    "SPLITS",
    "add_check_options",
    "add_fetch_options",
    "add_ingest_options",
    "add_phantom_options",
]

# As the modules below mammo_fed.data.dicom have them, which take a second to import.
ENCODINGS: Final = ("explicit", "implicit", "deflated", "rle", "jpeg2000", "jpegls", "jpeg_lossless")
DEPTHS: Final = ("mono1_12", "mono2_16", "mono2_8", "signed_16")
SPLITS: Final = ("train", "val", "test", "external")
SOURCES: Final = ("csv", "cbis_ddsm", "bcdr", "inbreast", "cmmd", "vindr_mammo", "embed")
INGEST: Final = """
sources (--source):
  csv          findings.csv (file, patient, label, and a box, mask, annotation or contour) beside DICOM or TIFF files
  cbis_ddsm    CBIS-DDSM as The Cancer Imaging Archive ships it
  bcdr         BCDR: outline tables beside TIFF or DICOM files; external: --split train to train on it
  inbreast     INbreast: OsiriX XML; no biopsies, so of use for pretraining only
  cmmd         CMMD: labels of whole breasts; external: --split train to train on it
  vindr_mammo  VinDr-Mammo: boxes; no biopsies, so of use for pretraining only
  embed        EMBED: its regions of masses, labelled by pathology
  NAME         what another installed distribution brings (docs/recipes.md)

The cohort folder holds pseudonyms only. Their key is COHORT.salt: keep it at the site, and back it up.
Run again, it makes what is missing or has changed: an interrupted ingestion is simply started again.
A finding that cannot be used is refused with a reason and counted (COHORT/problems.csv); the others are read.
Then: mammo-fed simulate data=cohort data.root=COHORT, or source = "cohort" in a site's file.
"""
CHECK: Final = """
An error keeps a site out of every run until it is fixed in the archive, or waived by name in the site's own file:
waived = ["drift", ...] under [data]. Exit code 2 where an error is left.
The page shows patients' images: it is for the site's own people and is not to be shared.
"""


def add_ingest_options(ingest: argparse.ArgumentParser) -> None:
    """Add the options of `data ingest`."""
    ingest.epilog = INGEST
    ingest.add_argument("root", type=Path, metavar="ARCHIVE", help="folder of the DICOM files and their tables")
    ingest.add_argument("cohort", type=Path, metavar="COHORT", help="folder to make, or to bring up to date")
    ingest.add_argument("--source", metavar="NAME", default="csv", help="kind of archive (csv): see below")
    ingest.add_argument("--split", choices=SPLITS, help="put every patient into this split (as the archive says)")
    ingest.add_argument("--crop", choices=["centred", "paper"], default="centred", help="where the lesion lies (centred)")
    ingest.add_argument("--margin", type=float, default=0.25, help="around the lesion, part of its longer side (0.25)")
    ingest.add_argument("--smallest", type=int, default=128, metavar="PIXELS", help="least side of the crop (128)")
    scale = ingest.add_mutually_exclusive_group()
    scale.add_argument("--side-mm", type=float, metavar="MM", help="one physical size for every crop instead")
    scale.add_argument(
        "--spacing-mm", type=float, metavar="MM", help="one physical size for every pixel of the patches instead"
    )
    ingest.add_argument("--size", type=int, default=128, metavar="PIXELS", help="side of the patches (128)")
    ingest.add_argument(
        "--windowing",
        choices=["minmax", "window", "stored", "paper"],
        default="minmax",
        help="darkest to brightest of air and breast (minmax), the file's window, all stored values, or darkest to brightest "
        "pixel with lead markers and labels (paper)",
    )
    ingest.add_argument(
        "--intent",
        choices=["presentation", "processing", "any"],
        default="presentation",
        help="images made to be looked at (presentation), the detector's raw data, or both",
    )
    ingest.add_argument(
        "--synthetic-views", action="store_true", help="take views that were computed of a tomosynthesis (C-View and the like)"
    )
    ingest.add_argument(
        "--blank-background", action="store_true", help="make everything beside the breast black: air, view markers, labels"
    )
    ingest.add_argument("--any-modality", action="store_true", help="take files whose modality is not MG")
    ingest.add_argument("--burned-in", action="store_true", help="take images with text in their pixels: look at every patch")
    ingest.add_argument("--public", action="store_true", help="the patients' data is published: lifts rules that protect them")
    ingest.add_argument("--salt", type=Path, metavar="FILE", help="key of the pseudonyms (COHORT.salt)")
    ingest.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="processes (all cores)")
    ingest.add_argument(
        "--explain", action="store_true", help="name the files of refused findings, here and in COHORT.problems.csv"
    )


def add_check_options(check: argparse.ArgumentParser) -> None:
    """Add the options of `data check`."""
    check.epilog = CHECK
    check.add_argument("cohort", type=Path, metavar="COHORT", help="folder from `mammo-fed data ingest`")
    check.add_argument(
        "--waive", action="append", default=[], metavar="NAME", help="accept a check's error here (data.waived does for a site)"
    )
    check.add_argument("--archive", type=Path, metavar="ARCHIVE", help="audit its headers for attributes that identify people")
    check.add_argument("--reference", type=Path, metavar="FOLDER", help="the federation's public patches (the phantom's)")
    check.add_argument(
        "--page", type=Path, metavar="FILE", help="page with contact sheet, stays at the site (COHORT/preflight.html)"
    )


def add_fetch_options(fetch: argparse.ArgumentParser) -> None:
    """Add the options of `data fetch`."""
    fetch.add_argument("name", choices=list(STEPS), metavar="NAME", help=", ".join(STEPS))
    fetch.add_argument(
        "folder",
        type=Path,
        nargs="?",
        metavar="FOLDER",
        help=f"fetch it into this folder ({', '.join(FETCHED)}); without, only the steps are printed",
    )
    fetch.add_argument("--url", metavar="URL", help="take it from a mirror")


def add_phantom_options(phantom: argparse.ArgumentParser) -> None:
    """Add the options of `data phantom`."""
    phantom.add_argument("root", type=Path, metavar="ARCHIVE", help="new folder")
    phantom.add_argument("--form", choices=SOURCES, default="csv", help="source whose files it imitates (csv)")
    phantom.add_argument("--encoding", choices=ENCODINGS, default="explicit", help="of the pixels (explicit)")
    phantom.add_argument("--depth", choices=DEPTHS, default="mono2_16", help="how values are stored (mono2_16)")
    phantom.add_argument(
        "--images", type=int, default=60, help="masses of training patients, and half as many for tests, at least 8 (60)"
    )
    phantom.add_argument("--size", type=int, default=128, metavar="PIXELS", help="side of a mass patch (128)")
    phantom.add_argument("--rows", type=int, default=512, help="height of a mammogram (512)")
    phantom.add_argument("--columns", type=int, default=384, help="width of a mammogram (384)")
    phantom.add_argument("--seed", type=int, default=0, help="of the patients")
