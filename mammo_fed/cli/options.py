"""The options of the commands of `mammo-fed` that belong to no group; loads in no time, as --help does."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Final

__all__ = [
    "CANARIES",
    "REPORT_NAME",
    "SHADOWS",
    "add_audit_options",
    "add_demo_options",
    "add_predict_options",
    "add_report_options",
    "add_reproduce_options",
    "add_simulate_options",
]

# As mammo_fed.audit.canaries has them; that module takes seconds to import.
CANARIES: Final = ("gradient", "mislabelled", "blank")
SHADOWS: Final = 64
REPORT_NAME: Final = "audit.json"

OVERRIDES: Final = """
settings are given as key=value; `--cfg job` prints them all. The most used:
  data=phantom|mammo_dp|csv|cohort  data.root=PATH   where the patients come from
  federation.num_sites=4     federation.partition=uniform|size|label
  privacy.target_epsilon=6   privacy.unit=patient|image   privacy=dp_gd|dp_sgd
  synthesis.source=phantom|gan|folder          synthesis.use=[whiten,pretrain]
  federation.strategy=auto|FedAvg|FedAgree|...       federation.secure.use=none|masks|shared_noise
  model=efficientnet_pair|efficientnet_best|efficientnet_lite0|pooled|swin_tiny
  engine=in_process|ray      seed=0            hydra.run.dir=FOLDER      privacy.ledger=run|FOLDER
"""
REPRODUCE: Final = """
keys of this command (key=value), beside any setting of `mammo-fed simulate`:
  experiment=all             rows by key (dbr156, patient-phantom-4-6) or group (paper, real, augment, synthetic,
                             pretrain, beyond, ...), comma-separated; --list shows them
  seeds=42,43,44             runs of each row
  cv_seeds=0,1,2,3,4         runs of each cross-validated row and fold; cv_seeds= leaves cross-validation out
  epochs=300                 of the paper's rows
  every=3                    epochs between two models that the choice by validation score can take; 1 is the paper's
  backbone=lite0|swin_tiny   of the paper's rows; swin_tiny is the paper's, with weights from timm's hub
  jobs=N                     runs at a time; default one for each processor
  hydra.run.dir=FOLDER       default runs/reproduce; given again, it resumes where it stopped

needs a clone of RichardObi/mammo_dp: MAMMO_DP_ROOT=CLONE, or data.root=CLONE
examples:
  mammo-fed reproduce experiment=dbr156,image-phantom-1-6 epochs=30
  mammo-fed reproduce experiment=all synthesis.epochs=10
  flower-server run FEDERATION $(mammo-fed reproduce experiment=dbr156 --print-overrides) seed=1
"""


def add_demo_options(demo: argparse.ArgumentParser) -> None:
    """Add the options of `demo`."""
    demo.epilog = OVERRIDES
    demo.add_argument("overrides", nargs="*", metavar="key=value", help="settings to change")
    demo.add_argument("--cfg", choices=["job"], help="print the configuration and stop")


def add_simulate_options(simulate: argparse.ArgumentParser) -> None:
    """Add the options of `simulate`: those of `demo`, and sweeps."""
    add_demo_options(simulate)
    simulate.add_argument("-m", "--multirun", action="store_true", help="run every combination of comma-separated values")
    simulate.add_argument(
        "--resume", type=Path, metavar="FOLDER", help="resume an interrupted run or sweep, with the settings that it began with"
    )
    simulate.epilog = OVERRIDES + "\nsweeps: -m privacy.target_epsilon=1,6,12 seed=0,1 writes below hydra.sweep.dir\n"


def add_reproduce_options(reproduce: argparse.ArgumentParser) -> None:
    """Add the options of `reproduce`."""
    reproduce.epilog = REPRODUCE
    reproduce.add_argument("overrides", nargs="*", metavar="key=value", help="rows to run and settings to change")
    reproduce.add_argument("--list", action="store_true", help="show the rows and stop")
    reproduce.add_argument(
        "--print-overrides",
        action="store_true",
        help="print one row's settings for `mammo-fed simulate` or `flower-server run`, and stop",
    )


def add_audit_options(audit: argparse.ArgumentParser) -> None:
    """Add the options of `audit`."""
    audit.add_argument("run", type=Path, metavar="RUN", help="folder of a finished run that holds its sites")
    audit.add_argument("--site", help="whose messages the adversary sees; default the smallest site")
    audit.add_argument(
        "--trials", type=int, help="scored runs with and without each canary, and of the noise; default 1500, under dp_sgd 500"
    )
    audit.add_argument("--canary", choices=CANARIES, action="append", help="default all; may be given several times")
    audit.add_argument("--shadows", type=int, default=SHADOWS, help="models for membership inference; 0 leaves it out")
    audit.add_argument("--seed", type=int, default=0, help="whose seat the canary takes; never the noise")
    audit.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="processes; default all cores")
    audit.add_argument("--at-site", action="store_true", help="the patients are not public, and the report stays at their site")
    audit.add_argument("--output", type=Path, help=f"the report as JSON; default RUN/{REPORT_NAME}")
    audit.add_argument("--plot", type=Path, help="write the curves of membership inference as SVG")


def add_report_options(report: argparse.ArgumentParser) -> None:
    """Add the options of `report`."""
    report.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folders")
    report.add_argument("--output", type=Path, default=Path("comparison.html"), help="page for several runs")


def add_predict_options(predict: argparse.ArgumentParser) -> None:
    """Add the options of `predict`."""
    predict.add_argument("run", type=Path, metavar="RUN", help="run folder")
    predict.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="grey PNG patches, one mass each")
