"""mammo-fed: simulate federations, reproduce the paper, plan and check privacy, look at results."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from typing import Final

from mammo_fed.cli import options
from mammo_fed.cli.data import options as data_options
from mammo_fed.cli.gan import options as gan_options
from mammo_fed.cli.privacy import options as privacy_options
from mammo_fed.common.command_line import Command, CommandGroup, CommandLine

__all__ = ["COMMANDS", "main"]

PRIVACY: Final = CommandGroup(
    "privacy",
    "plan what a run costs, and look into a site's ledger",
    (
        Command(
            "plan",
            "noise for a target epsilon, or epsilon for a noise; cost by images per patient; what is left",
            privacy_options.add_plan_options,
            "mammo_fed.cli.privacy.plan:plan_command",
        ),
        Command(
            "show",
            "accounts, runs and epsilon of a site's ledger",
            privacy_options.add_show_options,
            "mammo_fed.cli.privacy.ledger:show",
        ),
        Command(
            "verify",
            "recompute the figures of a run's record or of a ledger, and check every entry and stored reply of a ledger",
            privacy_options.add_verify_options,
            "mammo_fed.cli.privacy.verify:verify",
        ),
        Command(
            "export",
            "all entries as JSON lines, patients counted and never listed",
            privacy_options.add_export_options,
            "mammo_fed.cli.privacy.ledger:export",
        ),
        Command(
            "statement",
            "one page for one patient of one site, from a run's record or a site's ledger: what was done, and what is promised",
            privacy_options.add_statement_options,
            "mammo_fed.cli.privacy.statement:statement",
        ),
    ),
)
DATA: Final = CommandGroup(
    "data",
    "from a hospital's DICOM files to a site's cohort",
    (
        Command(
            "ingest",
            "make a cohort of lesion patches from DICOM files",
            data_options.add_ingest_options,
            "mammo_fed.cli.data.ingest:ingest_command",
        ),
        Command(
            "check",
            "look at a cohort before it is trained on: duplicates, labels, intensities, drift; "
            "writes a page for the site itself",
            data_options.add_check_options,
            "mammo_fed.cli.data.check:check_command",
        ),
        Command(
            "fetch",
            "fetch a public collection into a folder, or say how to get it",
            data_options.add_fetch_options,
            "mammo_fed.cli.data.fetch:fetch_command",
        ),
        Command(
            "phantom",
            "write phantom patients as an archive of DICOM files, to try an ingestion without a patient's data",
            data_options.add_phantom_options,
            "mammo_fed.cli.data.phantom:phantom_command",
        ),
    ),
)
GAN: Final = CommandGroup(
    "gan",
    "synthetic masses from a malignancy-conditioned GAN: train it, draw a set, evaluate it",
    (
        Command(
            "train",
            "train a generator on a donor's masses, with or without differential privacy",
            gan_options.add_train_options,
            "mammo_fed.cli.gan.train:train_command",
        ),
        Command(
            "sample",
            "draw a synthetic set from a finished training, with its provenance",
            gan_options.add_sample_options,
            "mammo_fed.cli.gan.sample:sample_command",
        ),
        Command(
            "evaluate",
            "compare synthetic sets with real masses: fidelity, classes, artefacts, memorisation; figures and a page",
            gan_options.add_evaluate_options,
            "mammo_fed.cli.gan.evaluate:evaluate_command",
        ),
        Command(
            "import",
            "make a synthetic set of the paper's 3,000 images, with their true provenance",
            gan_options.add_import_options,
            "mammo_fed.cli.gan.sample:import_command",
        ),
        Command(
            "check",
            "check every byte of a synthetic set against its hash, and say where it comes from",
            gan_options.add_check_options,
            "mammo_fed.cli.gan.sample:check_command",
        ),
    ),
)
COMMANDS: Final = (
    Command(
        "demo",
        "run four hospitals on embedded data: results and a report in minutes, no download",
        options.add_demo_options,
        "mammo_fed.cli.simulate:demo",
    ),
    Command(
        "simulate",
        "run a federation of simulated hospitals, everything configurable",
        options.add_simulate_options,
        "mammo_fed.cli.simulate:simulate",
    ),
    Command(
        "reproduce",
        "run the paper's experiments and ours, and write one table; resumable",
        options.add_reproduce_options,
        "mammo_fed.cli.reproduce:reproduce",
    ),
    PRIVACY,
    Command(
        "audit",
        "try to refute a run's privacy claim: canaries at one site, membership inference on the model",
        options.add_audit_options,
        "mammo_fed.cli.audit:audit",
    ),
    DATA,
    GAN,
    Command(
        "report",
        "show one run's results, or compare several on one page",
        options.add_report_options,
        "mammo_fed.cli.report:report",
    ),
    Command(
        "predict",
        "score images with a run's model; not a medical device",
        options.add_predict_options,
        "mammo_fed.cli.predict:predict_command",
    ),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code (0 done, 1 failure, 2 bad input, 3 refused for privacy, 130 interrupted)."""
    line = CommandLine(
        "mammo-fed",
        "Train a breast-mass malignancy classifier across hospitals, with a privacy guarantee for each patient.",
        interrupted="interrupted; no result was written, and what was begun is resumed by the same command where it can be",
        commands=COMMANDS,
    )
    return line.run(arguments)


if __name__ == "__main__":
    logging.captureWarnings(True)
    sys.exit(main())
