"""mammo-fed privacy: what a run would cost, and what a site's ledger says."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from mammo_fed.errors import DataError, InvalidSetting
from mammo_fed.privacy.accounting import epsilon, patient_epsilon
from mammo_fed.privacy.events import PrivacyEvent
from mammo_fed.privacy.ledger_report import LedgerEntry, export_ledger, show_ledger, verify_ledger
from mammo_fed.privacy.planning import Schedule, auto_rounds, epsilon_curve, plan_schedule, remaining_epsilon
from mammo_fed.reporting.plots import epsilon_per_round
from mammo_fed.reporting.record import write_atomically
from mammo_fed.typed import plain

__all__ = ["add_privacy_commands"]

IMAGES_SHOWN = (1, 2, 4, 8, 16)
Command = Callable[[argparse.Namespace, Console], int]


def add_privacy_commands(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add `privacy plan | show | verify | export` to the command line."""
    text = "plan what a run costs, and look into a site's ledger"
    privacy = commands.add_parser("privacy", help=text, description=text)
    kinds = privacy.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def add(name: str, words: str, command: Command) -> argparse.ArgumentParser:
        added: argparse.ArgumentParser = kinds.add_parser(name, help=words, description=words, parents=[common])
        added.set_defaults(command=command)
        return added

    plan = add("plan", "noise for a target epsilon, or epsilon for a noise; cost by images per patient; what is left", _plan)
    goal = plan.add_mutually_exclusive_group()
    goal.add_argument("--target-epsilon", type=float, default=6.0, help="of the whole run (default 6)")
    goal.add_argument("--noise-multiplier", type=float, help="of each gradient step; prints the epsilon instead")
    plan.add_argument("--mean-noise-multiplier", type=float, help="with --noise-multiplier: a private mean is released too")
    plan.add_argument("--delta", type=float, default=1e-4, help="default 1e-4")
    plan.add_argument("--unit", choices=["patient", "image"], default="patient", help="whose data is protected")
    plan.add_argument("--mechanism", choices=["dp_gd", "dp_sgd"], default="dp_gd", help="full batch or Poisson sampling")
    plan.add_argument("--images", type=int, help="images at the site (public); needed by dp_sgd")
    plan.add_argument("--batch-size", type=int, default=128, help="expected images a step under dp_sgd")
    plan.add_argument("--rounds", type=int, help="training rounds; default from a table by target")
    plan.add_argument("--local-steps", type=int, default=1, help="steps in each round")
    plan.add_argument("--mean-fraction", type=float, default=0.1, help="part of the budget for the private mean")
    plan.add_argument("--accountant", choices=["pld", "rdp", "gdp", "prv"], default="pld")
    plan.add_argument("--budget", type=float, help="site's maximum epsilon: prints what this run would leave of it")
    plan.add_argument("--ledger", type=Path, help="ledger whose reserved events count against --budget too")
    plan.add_argument("--plot", type=Path, help="write epsilon over the rounds as SVG")
    show = add("show", "accounts, runs and epsilon of a site's ledger", _show)
    verify = add("verify", "check every entry and stored reply of a ledger", _verify)
    export = add("export", "all entries as JSON lines, patients counted and never listed", _export)
    for command in (show, verify, export):
        command.add_argument("ledger", type=Path, metavar="LEDGER", help="folder, such as RUN/sites/site-1/ledger")
    show.add_argument("--delta", type=float, default=1e-4)
    show.add_argument("--accountant", choices=["pld", "rdp", "gdp", "prv"], default="pld")
    verify.add_argument("--reported", help="a head that the site reported before: detects a ledger put back from a copy")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a planned run costs.

    Attributes:
      unit, delta, accountant, rounds, local_steps, sample_rate: of the run.
      noise_multiplier, mean_noise_multiplier: standard deviation over the clipping norm; the second None without a mean.
      epsilon: of the whole run, for the unit.
      epsilon_after_round: cumulative, round 0 (the mean) first.
      epsilon_of_patient_with_images: by number of images of the patient.
      left: epsilon of the largest single full-batch release that still fits the budget; None without one.
    """

    unit: str
    delta: float
    accountant: str
    rounds: int
    local_steps: int
    sample_rate: float
    noise_multiplier: float
    mean_noise_multiplier: float | None
    epsilon: float
    epsilon_after_round: list[float]
    epsilon_of_patient_with_images: dict[str, float]
    left: float | None


def _plan(options: argparse.Namespace, console: Console) -> int:
    schedule = _schedule(options)
    events = schedule.events()
    curve = epsilon_curve(schedule, delta=options.delta, accountant=options.accountant)
    plan = Plan(
        unit=options.unit,
        delta=options.delta,
        accountant=options.accountant,
        rounds=schedule.rounds,
        local_steps=options.local_steps,
        sample_rate=schedule.step_event.sample_rate,
        noise_multiplier=schedule.step_event.noise_multiplier,
        mean_noise_multiplier=schedule.mean_event.noise_multiplier if schedule.mean_event else None,
        epsilon=epsilon(events, delta=options.delta, accountant=options.accountant),
        epsilon_after_round=curve,
        epsilon_of_patient_with_images=_by_images(events, options),
        left=_left(events, options),
    )
    if options.plot:
        write_atomically(options.plot, epsilon_per_round({"plan": curve}, target=curve[-1]))
    if options.json:
        sys.stdout.write(json.dumps(plain(plan), indent=2) + "\n")
        return 0
    Console().print(_plan_table(plan))
    console.print("for a run whose schedule is declared before its first output; later runs on the same patients add up")
    return 0


def _schedule(options: argparse.Namespace) -> Schedule:
    rate = 1.0
    if options.mechanism == "dp_sgd":
        if options.images is None or options.images < 1:
            raise InvalidSetting(
                f"--images={options.images} must be at least 1 with --mechanism dp_sgd; it sets the sampling rate"
            )
        rate = min(1.0, options.batch_size / options.images)
    rounds = options.rounds if options.rounds is not None else auto_rounds(options.target_epsilon)
    if options.noise_multiplier is None:
        return plan_schedule(
            unit=options.unit,
            target_epsilon=options.target_epsilon,
            delta=options.delta,
            accountant=options.accountant,
            rounds=rounds,
            local_steps=options.local_steps,
            sample_rate=rate,
            mean_fraction=options.mean_fraction,
            clipping_norm=1.0,
            max_images_per_patient=1,
        )
    step = PrivacyEvent(
        mechanism="gradient",
        noise_multiplier=options.noise_multiplier,
        steps=options.local_steps,
        sample_rate=rate,
        unit=options.unit,
        clipping_norm=1.0,
        max_images_per_patient=1,
    )
    mean = None
    if options.mean_noise_multiplier is not None:
        mean = replace(step, mechanism="mean", noise_multiplier=options.mean_noise_multiplier, steps=1, sample_rate=1.0)
    return Schedule(mean_event=mean, step_event=step, rounds=rounds)


def _by_images(events: Sequence[PrivacyEvent], options: argparse.Namespace) -> dict[str, float]:
    costs = {}
    for images in IMAGES_SHOWN:
        bounded = [replace(event, max_images_per_patient=images) for event in events]
        costs[str(images)] = patient_epsilon(bounded, delta=options.delta, accountant=options.accountant)
    return costs


def _left(events: Sequence[PrivacyEvent], options: argparse.Namespace) -> float | None:
    if options.budget is None:
        return None
    spent = [*_reserved(options.ledger), *events] if options.ledger else list(events)
    return remaining_epsilon(spent, target_epsilon=options.budget, delta=options.delta, accountant=options.accountant)


def _reserved(ledger: Path) -> list[PrivacyEvent]:
    return [
        PrivacyEvent.from_dict(values)
        for entry in export_ledger(_existing(ledger))
        if entry.kind == "reserved"
        for values in entry.details["events"]
    ]


def _plan_table(plan: Plan) -> Table:
    table = Table(title="Privacy plan", title_justify="left", show_header=False, box=None)
    rows = [
        ("unit, relation", f"{plan.unit}; its data zeroed out, cohort size public"),
        ("delta, accountant", f"{plan.delta:g}, {plan.accountant}"),
        ("rounds x local steps", f"{plan.rounds} x {plan.local_steps}, sampling rate {plan.sample_rate:.4g}"),
        ("noise multiplier", f"{_up(plan.noise_multiplier)} (each gradient step)"),
        ("", "no private mean" if plan.mean_noise_multiplier is None else f"{_up(plan.mean_noise_multiplier)} (private mean)"),
        ("epsilon", f"{_up(plan.epsilon)} for one {plan.unit}"),
        ("epsilon after rounds", _few(plan.epsilon_after_round)),
    ]
    if plan.unit == "image":
        costs = ", ".join(f"{images}: {_up(cost)}" for images, cost in plan.epsilon_of_patient_with_images.items())
        rows.append(("a patient with k images", costs))
    if plan.left is not None:
        rows.append(("left of the budget", f"one more run of epsilon {_down(plan.left)}"))
    for row in rows:
        table.add_row(*row)
    return table


def _few(values: Sequence[float]) -> str:
    shown = [_up(value) for value in values]
    return ", ".join(shown) if len(shown) <= 16 else ", ".join([*shown[:7], "...", *shown[-7:]])


def _up(value: float) -> str:
    """Four decimals, rounded up: a shown cost is never below the true one."""
    return "infinite" if math.isinf(value) else f"{math.ceil(value * 1e4 - 1e-9) / 1e4:.4f}"


def _down(value: float) -> str:
    return "infinite" if math.isinf(value) else f"{math.floor(value * 1e4) / 1e4:.4f}"


def _existing(ledger: Path) -> Path:
    if not ledger.is_dir():
        raise DataError(f"LEDGER={ledger} must be a ledger's folder, such as RUN/sites/site-1/ledger; check the path")
    return ledger


def _show(options: argparse.Namespace, console: Console) -> int:
    summary = show_ledger(_existing(options.ledger), delta=options.delta, accountant=options.accountant)
    if options.json:
        sys.stdout.write(json.dumps(plain(summary), indent=2) + "\n")
        return 0
    out = Console()
    for account in summary.accounts:
        table = Table(title=f"{summary.site}: account {', '.join(account.names)}", title_justify="left")
        for column in ("run", "rounds settled / reserved", "steps reserved / declared", "epsilon"):
            table.add_column(column)
        for run in account.runs:
            rounds, steps = f"{run.settled_rounds} / {run.reserved_rounds}", f"{run.reserved_steps} / {run.declared_steps}"
            table.add_row(run.run_id, rounds, steps, _up(run.epsilon))
        out.print(table)
        out.print(
            f"{account.patients} patients, unit {account.unit}; schedule cost {_up(account.epsilon)} at delta "
            f"{summary.delta:g} ({summary.accountant}); charged against the budget {_up(account.charged)} ({account.filter})",
            highlight=False,
        )
    console.print(f"verified, {summary.entries} entries, head {summary.head}", highlight=False, soft_wrap=True)
    return 0


def _verify(options: argparse.Namespace, console: Console) -> int:
    head = verify_ledger(_existing(options.ledger), reported=options.reported)
    if options.json:
        sys.stdout.write(json.dumps({"verified": True, "head": head}) + "\n")
    else:
        console.print(f"verified; head {head}", highlight=False, soft_wrap=True)
    return 0


def _export(options: argparse.Namespace, console: Console) -> int:
    del console
    for entry in export_ledger(_existing(options.ledger)):
        sys.stdout.write(_line(entry) + "\n")
    return 0


def _line(entry: LedgerEntry) -> str:
    return json.dumps(plain(asdict(entry)), sort_keys=True)
