"""The options of `mammo-fed gan`; loads in no time, as --help does."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Final

__all__ = [
    "DESCRIPTORS",
    "add_check_options",
    "add_evaluate_options",
    "add_import_options",
    "add_sample_options",
    "add_train_options",
]

# As mammo_fed.synthesis.quality.descriptors has them; that module takes seconds to import.
DESCRIPTORS: Final = ("efficientnet", "inception")

OVERRIDES: Final = """
settings are given as key=value; `--cfg job` prints them all. The most used:
  data=phantom|mammo_dp|csv|cohort   data.root=PATH    whose masses
  gan=mcgan_64|mcgan_128|mcgan_paper   gan.steps=6000  the networks and their training
  privacy.target_epsilon=6   privacy.unit=patient|image   inf (the default) trains without privacy, on public cohorts
  donor.num_sites=4 donor.index=0                       one hospital of a simulated federation
  seed=0   threads=2   hydra.run.dir=FOLDER

--resume FOLDER continues a training that was interrupted. Losses and samples lie in the folder, as of its newest checkpoint.
With privacy one ledger pays for one generator: of two copies of a folder one goes on, and the other is refused.
Patients who are not public need --site: their site's policy and ledger then hold.
"""
EVALUATE: Final = """
what the sets are compared with is given as key=value, as for `gan train`: data=mammo_dp, donor.num_sites=4 donor.index=0, ...
Every figure depends on real images and no epsilon covers it. The page shows real images: it stays at the donor's site.
"""


def add_train_options(train: argparse.ArgumentParser) -> None:
    """Add the options of `gan train`."""
    train.epilog = OVERRIDES
    train.add_argument("overrides", nargs="*", metavar="key=value", help="settings to change")
    train.add_argument("--cfg", choices=["job"], help="print the configuration and stop")
    train.add_argument(
        "--resume", type=Path, metavar="FOLDER", help="resume an interrupted training, with the settings that it began with"
    )
    train.add_argument("--tensorboard", action="store_true", help="write TensorBoard's scalars too; mammo-fed[tensorboard]")
    train.add_argument("--site", type=Path, metavar="FOLDER", help="train on this site's cohort, under its policy and ledger")


def add_sample_options(sample: argparse.ArgumentParser) -> None:
    """Add the options of `gan sample`."""
    sample.add_argument("run", type=Path, metavar="RUN", help="folder of `gan train`")
    sample.add_argument("--output", type=Path, required=True, metavar="SET", help="new folder of the set")
    sample.add_argument("--count", type=int, default=3000, help="images, half of them malignant; default 3000")
    sample.add_argument("--seed", type=int, default=0, help="of the latent numbers")
    sample.add_argument("--step", type=int, help="another step that the ledger settled; the provenance says that it was chosen")
    sample.add_argument(
        "--site", type=Path, metavar="FOLDER", help="whose ledger paid for it; default the folder that `gan train` had"
    )
    sample.add_argument("--licence", help="of the images; default that of the donor's data set")


def add_evaluate_options(evaluate: argparse.ArgumentParser) -> None:
    """Add the options of `gan evaluate`."""
    evaluate.epilog = EVALUATE
    evaluate.add_argument("sets", nargs="+", metavar="SET|key=value", help="folders of sets; and settings of the real masses")
    evaluate.add_argument(
        "--output", type=Path, metavar="FOLDER", help="new folder for page and figures; default none is written"
    )
    evaluate.add_argument("--descriptor", choices=DESCRIPTORS, default="efficientnet", help="what images are compared by")
    evaluate.add_argument("--frd", action="store_true", help="the Frechet radiomics distance too, by frd-score; slow")
    evaluate.add_argument("--side", type=int, help="pixels at which all are compared; default the smallest set's")
    evaluate.add_argument("--no-baselines", action="store_true", help="leave out noise and an untrained generator")
    evaluate.add_argument("--site", type=Path, metavar="FOLDER", help="compare them with this site's cohort")


def add_import_options(imported: argparse.ArgumentParser) -> None:
    """Add the options of `gan import`."""
    imported.add_argument("clone", type=Path, metavar="CLONE", help="a clone of RichardObi/mammo_dp")
    imported.add_argument("--output", type=Path, required=True, metavar="SET", help="new folder of the set")


def add_check_options(check: argparse.ArgumentParser) -> None:
    """Add the options of `gan check`."""
    check.add_argument("set", type=Path, metavar="SET", help="folder of the set")
    check.add_argument("--sha256", help="the hash that it must have, known from elsewhere")
