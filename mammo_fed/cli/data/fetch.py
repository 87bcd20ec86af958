"""mammo-fed data fetch: how to get the public collections, step by step."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Final

from rich.console import Console

from mammo_fed.common.command_line import print_json, say

__all__ = ["STEPS", "fetch_command"]

NBIA: Final = (
    "install the NBIA Data Retriever of The Cancer Imaging Archive (https://wiki.cancerimagingarchive.net/x/2QKPBQ)",
    "open the collection's page and download its manifest (.tcia) and its tables",
    'open the manifest with the retriever; choose "Descriptive Directory Name"',
)
STEPS: Final[Mapping[str, tuple[str, ...]]] = {
    "mammo_dp": (
        "git clone https://github.com/RichardObi/mammo_dp CLONE",
        "export MAMMO_DP_ROOT=CLONE",
        "mammo-fed simulate data=mammo_dp",
    ),
    "cbis_ddsm": (
        *NBIA,
        'the collection is "CBIS-DDSM" (164 GB); CC BY 3.0',
        "put mass_case_description_train_set.csv and mass_case_description_test_set.csv beside the folders",
        "mammo-fed data ingest ARCHIVE COHORT --source cbis_ddsm --public",
    ),
    "cmmd": (
        *NBIA,
        'the collection is "CMMD" (23 GB); CC BY 4.0',
        "save CMMD_clinicaldata_revision.xlsx as CMMD_clinicaldata_revision.csv beside the folders",
        "mammo-fed data ingest ARCHIVE COHORT --source cmmd --public --split train",
    ),
    "bcdr": (
        "ask for access at https://bcdr.eu; its terms forbid passing images on",
        "export the TIFF files as DICOM (modality MG) under the same names, beside *_outlines.csv",
        "mammo-fed data ingest ARCHIVE COHORT --source bcdr",
    ),
    "inbreast": (
        "ask its authors (Moreira et al., 2012) for the archive with AllDICOMs and AllXML",
        "mammo-fed data ingest ARCHIVE COHORT --source inbreast: no biopsies, so its patches go to unlabelled.csv",
    ),
}


def fetch_command(options: argparse.Namespace, console: Console) -> int:
    """Say how to get a collection; the exit code."""
    steps = STEPS[options.name]
    if options.json:
        print_json({"collection": options.name, "steps": list(steps)})
    else:
        say(console, *(f"{number}. {step}" for number, step in enumerate(steps, start=1)))
    return 0
