"""mammo-fed data fetch: public collections, fetched where that may be done, and step by step where it needs a person."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import asdict
from typing import Final

from rich.console import Console

from mammo_fed.common.command_line import print_json, say
from mammo_fed.errors import InvalidSetting

__all__ = ["FETCHED", "STEPS", "fetch_command"]

NBIA: Final = (
    "install the NBIA Data Retriever of The Cancer Imaging Archive (https://wiki.cancerimagingarchive.net/x/2QKPBQ)",
    "open the collection's page and download its manifest (.tcia) and its tables",
    'open the manifest with the retriever; choose "Descriptive Directory Name"',
)
# What `data fetch NAME FOLDER` fetches, and how large it is.
FETCHED: Final[Mapping[str, str]] = {
    "mammo_dp": "5,804 small images",
    "cbis_ddsm": "the masses of 164 GB",
    "cmmd": "23 GB",
}
STEPS: Final[Mapping[str, tuple[str, ...]]] = {
    "mammo_dp": (
        "mammo-fed data fetch mammo_dp CLONE, or: git clone https://github.com/RichardObi/mammo_dp CLONE",
        "export MAMMO_DP_ROOT=CLONE",
        "mammo-fed simulate data=mammo_dp",
    ),
    "cbis_ddsm": (
        "mammo-fed data fetch cbis_ddsm ARCHIVE fetches it; by hand:",
        *NBIA,
        'the collection is "CBIS-DDSM" (164 GB); CC BY 3.0',
        "put mass_case_description_train_set.csv and mass_case_description_test_set.csv beside the folders",
        "mammo-fed data ingest ARCHIVE COHORT --source cbis_ddsm --public",
    ),
    "cmmd": (
        "mammo-fed data fetch cmmd ARCHIVE fetches the images; by hand:",
        *NBIA,
        'the collection is "CMMD" (23 GB); CC BY 4.0',
        "save CMMD_clinicaldata_revision.xlsx as CMMD_clinicaldata_revision.csv beside the folders",
        "mammo-fed data ingest ARCHIVE COHORT --source cmmd --public --split train",
    ),
    "bcdr": (
        "ask for access at https://bcdr.eu; its terms forbid passing images on",
        "put the TIFF files where *_outlines.csv says; a DICOM export of the same name is read instead where there is one",
        "mammo-fed data ingest ARCHIVE COHORT --source bcdr: all of it is external; --split train to train on it",
    ),
    "inbreast": (
        "ask its authors (Moreira et al., 2012) for the archive with AllDICOMs and AllXML",
        "mammo-fed data ingest ARCHIVE COHORT --source inbreast: no biopsies, so its patches go to unlabelled.csv",
    ),
    "vindr_mammo": (
        "sign its agreement at https://physionet.org/content/vindr-mammo/1.0.0/ with an account there",
        "wget -r -N -c -np --user NAME --ask-password https://physionet.org/files/vindr-mammo/1.0.0/",
        "mammo-fed data ingest ARCHIVE COHORT --source vindr_mammo: no biopsies, so its patches go to unlabelled.csv",
    ),
    "embed": (
        "ask for access by the form at https://github.com/Emory-HITI/EMBED_Open_Data",
        "copy the images (cohort_1, cohort_2) and the tables of EMBED_OpenData from AWS, as its answer says, into one folder",
        "mammo-fed data ingest ARCHIVE COHORT --source embed",
    ),
}


def fetch_command(options: argparse.Namespace, console: Console) -> int:
    """Fetch a collection into a folder, or say how to get it; the exit code.

    Raises:
      DataError: If it was to be fetched and cannot be.
      InvalidSetting: If the folder cannot be written, the URL is none, or pooch is missing.
    """
    if options.folder is None or options.name not in FETCHED:
        steps = STEPS[options.name]
        if options.json:
            print_json({"collection": options.name, "steps": list(steps)})
        else:
            if options.folder is not None:
                say(console, f"{options.name} needs an agreement with those who keep it, and is not fetched by a program:")
            say(console, *(f"{number}. {step}" for number, step in enumerate(steps, start=1)))
        return 0
    return _fetch(options, console)


def _fetch(options: argparse.Namespace, console: Console) -> int:
    # Only a download needs them: this module is read for every --help.
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    from mammo_fed.data.downloads.github import fetch_mammo_dp
    from mammo_fed.data.downloads.nbia import COLLECTIONS, fetch_nbia

    folder = options.folder.expanduser()
    url = options.url.rstrip("/") if options.url is not None else None
    if url is not None and not url.lower().startswith(("https://", "http://")):
        raise InvalidSetting(f"--url={options.url} must begin with https:// or http://")
    if not options.json:
        say(console, f"{options.name}: {FETCHED[options.name]}; interrupted, it goes on where it stopped")
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=options.json) as progress:
        task = progress.add_task(options.name, total=None)

        def seen(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total)

        if options.name == "mammo_dp":
            done = fetch_mammo_dp(folder, url=url, on_progress=seen)
        else:
            done = fetch_nbia(COLLECTIONS[options.name], folder, url=url, on_progress=seen)
    if options.json:
        print_json({"collection": options.name, "folder": str(folder.resolve()), **asdict(done)})
    else:
        say(console, f"{done.fetched} fetched, {done.there} were there: {folder.resolve()}")
        say(console, *(f"left to do: {step}" for step in done.left), f"then: {STEPS[options.name][-1]}")
    return 0
