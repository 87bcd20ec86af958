"""The options of `mammo-fed privacy`, and which of those of `plan` fit together; loads in no time, as --help does."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any, Final

from mammo_fed.errors import InvalidSetting

__all__ = [
    "BATCH_SIZE",
    "add_export_options",
    "add_plan_options",
    "add_show_options",
    "add_statement_options",
    "add_verify_options",
    "check_plan_options",
    "existing_ledger",
]

BATCH_SIZE: Final = 128
# As mammo_fed.privacy.accounting has them; that takes a second to import.
ACCOUNTANTS: Final = ("pld", "rdp", "gdp", "prv")
# As mammo_fed.reporting.statement has them.
LANGUAGES: Final = ("en", "de")
TARGET_HELP: Final = "folder of a finished run, its record.json, or a ledger"


def add_plan_options(plan: argparse.ArgumentParser) -> None:
    """Add the options of `privacy plan`. Those that a choice makes meaningless have no default, so that giving them is seen."""
    goal = plan.add_mutually_exclusive_group()
    goal.add_argument("--target-epsilon", type=float, help="of the whole run (default 6)")
    goal.add_argument("--noise-multiplier", type=float, help="of each gradient step; prints the epsilon instead")
    mean = plan.add_mutually_exclusive_group()
    mean.add_argument(
        "--mean-fraction", type=float, help="part of the budget for the private mean (default 0.1); 0 for no mean"
    )
    mean.add_argument("--mean-noise-multiplier", type=float, help="with --noise-multiplier: that of the private mean")
    plan.add_argument("--delta", type=float, default=1e-4, help="default 1e-4")
    plan.add_argument("--unit", choices=["patient", "image"], default="patient", help="whose data is protected")
    plan.add_argument("--mechanism", choices=["dp_gd", "dp_sgd"], default="dp_gd", help="full batch or Poisson sampling")
    plan.add_argument("--images", type=int, help="images at the site (public); with dp_sgd, which needs it")
    plan.add_argument("--batch-size", type=int, help="expected images a step; with dp_sgd (default 128)")
    plan.add_argument("--rounds", type=int, help="training rounds; default as a run with this target has")
    plan.add_argument("--local-steps", type=int, help="steps in each round (default 1, with dp_sgd 10)")
    plan.add_argument("--accountant", choices=ACCOUNTANTS, default="pld")
    plan.add_argument("--budget", type=float, help="site's maximum epsilon: prints what this run would leave of it")
    plan.add_argument("--filter", choices=["gdp", "rdp", "declared"], help="how a new account would enforce --budget")
    plan.add_argument("--ledger", type=Path, help="with --budget: the ledger in which the run would be charged")
    plan.add_argument("--account", help="with --ledger: its account, where there are several")
    plan.add_argument("--plot", type=Path, help="write epsilon over the rounds as SVG")


def add_show_options(show: argparse.ArgumentParser) -> None:
    """Add the options of `privacy show`."""
    _add_ledger(show)
    show.add_argument("--delta", type=float, help="default: that of the ledger's budget")
    show.add_argument("--accountant", choices=ACCOUNTANTS, default="pld")


def add_verify_options(verify: argparse.ArgumentParser) -> None:
    """Add the options of `privacy verify`."""
    verify.add_argument(
        "target", type=Path, metavar="RUN|LEDGER", help="folder of a finished run, its record.json, or a ledger"
    )
    verify.add_argument(
        "--reported", help="of a ledger: a head that the site reported before: detects a ledger put back from a copy"
    )


def add_statement_options(statement: argparse.ArgumentParser) -> None:
    """Add the options of `privacy statement`."""
    statement.add_argument("target", type=Path, metavar="RUN|LEDGER", help=TARGET_HELP)
    statement.add_argument("--patient-site", metavar="SITE", help="site of the patient; default: a statement for every site")
    statement.add_argument("--language", choices=LANGUAGES, default="en", help="default en")
    statement.add_argument("--output", type=Path, help="write a page (.html) or Markdown (any other name) in place of text")


def add_export_options(export: argparse.ArgumentParser) -> None:
    """Add the options of `privacy export`."""
    _add_ledger(export)


def _add_ledger(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("ledger", type=Path, metavar="LEDGER", help="folder, such as RUN/sites/site-1/ledger")


def check_plan_options(options: argparse.Namespace) -> None:
    """Refuse values out of range, and options that the others make meaningless, by the names of the options."""
    at_least = {"--images": 1, "--batch-size": 1, "--rounds": 1, "--local-steps": 1, "--budget": 0}
    for name, least in at_least.items():
        value = _given(options, name)
        if value is not None and not value >= least:
            raise InvalidSetting(f"{name}={value} must be at least {least}")
    for name in ("--noise-multiplier", "--mean-noise-multiplier"):
        value = _given(options, name)
        if value is not None and not (math.isfinite(value) and value > 0):
            raise InvalidSetting(f"{name}={value} must be a finite number above 0")
    if options.target_epsilon is not None and not options.target_epsilon > 0:
        raise InvalidSetting(f"--target-epsilon={options.target_epsilon} must be above 0")
    if options.mean_fraction is not None and not 0 <= options.mean_fraction < 1:
        raise InvalidSetting(f"--mean-fraction={options.mean_fraction} must be at least 0 and below 1")
    if not 0 < options.delta < 1:
        raise InvalidSetting(f"--delta={options.delta} must be above 0 and below 1")
    _check_together(options)


def _check_together(options: argparse.Namespace) -> None:
    if options.mechanism == "dp_sgd":
        if options.images is None:
            raise InvalidSetting("--images must be given with --mechanism dp_sgd; it sets the sampling rate")
        if options.accountant == "gdp" and options.images > (options.batch_size or BATCH_SIZE):
            raise InvalidSetting(
                "--accountant=gdp must be pld, rdp or prv with --mechanism dp_sgd: gdp prices no sampled steps"
            )
    needs = (
        ("--images", options.mechanism == "dp_sgd", "--mechanism dp_sgd"),
        ("--batch-size", options.mechanism == "dp_sgd", "--mechanism dp_sgd"),
        ("--mean-noise-multiplier", options.noise_multiplier is not None, "--noise-multiplier"),
        ("--ledger", options.budget is not None, "--budget: a ledger knows what was charged, not the site's cap"),
        ("--account", options.ledger is not None, "--ledger"),
        ("--filter", options.budget is not None, "--budget"),
        ("--filter", options.ledger is None, "no --ledger, whose account has a filter already"),
    )
    for name, met, what in needs:
        if _given(options, name) is not None and not met:
            raise InvalidSetting(f"{name}={_given(options, name)} has no effect here: it goes with {what}")
    if options.noise_multiplier is not None:
        if options.rounds is None:
            raise InvalidSetting("--rounds must be given with --noise-multiplier: there is no target to choose them by")
        if options.mechanism == "dp_sgd" and options.mean_noise_multiplier is None and options.mean_fraction != 0:
            raise InvalidSetting(
                "--mean-noise-multiplier must be given with --noise-multiplier and --mechanism dp_sgd, or --mean-fraction 0 "
                "for a run without a private mean"
            )


def _given(options: argparse.Namespace, name: str) -> Any:
    return getattr(options, name.removeprefix("--").replace("-", "_"))


def existing_ledger(ledger: Path, *, option: str) -> Path:
    """`ledger` if it is a folder.

    Raises:
      InvalidSetting: If not.
    """
    if not ledger.is_dir():
        raise InvalidSetting(f"{option}={ledger} must be a ledger's folder, such as RUN/sites/site-1/ledger; check the path")
    return ledger
