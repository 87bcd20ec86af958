"""mammo-fed privacy plan: what a run would cost, and what it would leave of a site's budget."""

from __future__ import annotations

import argparse
import math
from dataclasses import replace
from typing import Final

from rich.console import Console

from mammo_fed.cli.privacy.options import BATCH_SIZE, check_plan_options, existing_ledger
from mammo_fed.cli.privacy.plan_table import Plan, plan_table
from mammo_fed.common.command_line import print_json
from mammo_fed.common.private_files import write_atomically
from mammo_fed.errors import InvalidSetting, PrivacyRefused
from mammo_fed.privacy.accounting.filters import as_steps, open_filter
from mammo_fed.privacy.accounting.pricing import coarsely_priced, epsilon, patient_epsilon
from mammo_fed.privacy.events import DEFAULT_ACCOUNT, PrivacyEvent
from mammo_fed.privacy.ledger.headroom import after_run
from mammo_fed.privacy.ledger.report import read_accounts
from mammo_fed.privacy.ledger.rules import Account, Budget, headroom
from mammo_fed.privacy.names import AccountantName, FilterKind
from mammo_fed.privacy.schedule import Schedule, auto_rounds, plan_schedule

__all__ = ["plan_command"]

IMAGES_SHOWN: Final = (1, 2, 4, 8, 16)
MEAN_FRACTION: Final = 0.1
# What a run does where its settings say "auto"; full-batch rounds come from a table by target.
POISSON_ROUNDS: Final = 10
POISSON_LOCAL_STEPS: Final = 10
MOST_STEPS: Final = 1_000_000
# Of a longer run, as many rounds are priced.
ROUNDS_SHOWN: Final = 40


def plan_command(options: argparse.Namespace, console: Console) -> int:
    """Print the plan; the exit code."""
    check_plan_options(options)
    schedule = _schedule(options)
    shown, curve = _curve(schedule, options)
    refused, left = _budget(schedule, options)
    # Several sampled images of one patient are a mixture that PLD alone prices.
    by: AccountantName = "pld" if options.unit == "image" and options.mechanism == "dp_sgd" else options.accountant
    by_images = _by_images(schedule, options, accountant=by, own=curve[-1])
    plan = Plan(
        unit=options.unit,
        delta=options.delta,
        accountant=options.accountant,
        rounds=schedule.rounds,
        local_steps=schedule.step_event.steps,
        sample_rate=schedule.step_event.sample_rate,
        noise_multiplier=schedule.step_event.noise_multiplier,
        mean_noise_multiplier=schedule.mean_event.noise_multiplier if schedule.mean_event else None,
        given=options.noise_multiplier is not None,
        epsilon=curve[-1],
        coarse=coarsely_priced(schedule.events(), delta=options.delta, accountant=options.accountant),
        rounds_shown=shown,
        epsilon_after_round=curve,
        accountant_of_patient=by,
        coarse_for_patient_with_images=[images for images, (_, coarse) in by_images.items() if coarse],
        epsilon_of_patient_with_images={str(images): price for images, (price, _) in by_images.items()},
        refused=refused,
        left=left,
    )
    if options.plot:
        # Late, for only --plot needs matplotlib, which takes as long as all the rest.
        from mammo_fed.reporting.plots.run_plots import epsilon_per_round

        try:
            write_atomically(options.plot, epsilon_per_round({"plan": curve}, target=curve[-1]))
        except OSError as error:
            raise InvalidSetting(f"--plot={options.plot} cannot be written ({error.strerror}); choose another path") from error
    if options.json:
        print_json(plan)
        return 0
    Console().print(plan_table(plan))
    console.print("for a run whose schedule is declared before its first output; later runs on the same patients add up")
    return 0


def _schedule(options: argparse.Namespace) -> Schedule:
    sampled = options.mechanism == "dp_sgd"
    rate = min(1.0, (options.batch_size or BATCH_SIZE) / options.images) if sampled else 1.0
    target = 6.0 if options.target_epsilon is None else options.target_epsilon
    rounds = options.rounds or (POISSON_ROUNDS if sampled else auto_rounds(target))
    local_steps = options.local_steps or (POISSON_LOCAL_STEPS if sampled else 1)
    fraction = MEAN_FRACTION if options.mean_fraction is None else options.mean_fraction
    if rounds * local_steps > MOST_STEPS:
        raise InvalidSetting(f"--rounds={rounds} times --local-steps={local_steps} must be at most {MOST_STEPS:,} steps")
    if options.noise_multiplier is not None:
        return _with_noise(options, rate=rate, rounds=rounds, local_steps=local_steps, fraction=fraction)
    try:
        return plan_schedule(
            unit=options.unit,
            target_epsilon=target,
            delta=options.delta,
            accountant=options.accountant,
            rounds=rounds,
            local_steps=local_steps,
            sample_rate=rate,
            mean_fraction=fraction,
            clipping_norm=1.0,
            max_images_per_patient=1,
        )
    except InvalidSetting as error:
        raise InvalidSetting(
            f"--target-epsilon={target:g} cannot be planned with --accountant {options.accountant}, --delta {options.delta:g} "
            f"and --mean-fraction {fraction:g}: {error}"
        ) from error


def _with_noise(options: argparse.Namespace, *, rate: float, rounds: int, local_steps: int, fraction: float) -> Schedule:
    """The schedule of a given noise; in the full batch the mean gets its part of mu squared, as in a run."""
    noise: float = options.noise_multiplier
    step = PrivacyEvent(
        mechanism="gradient",
        noise_multiplier=noise,
        steps=local_steps,
        sample_rate=rate,
        unit=options.unit,
        clipping_norm=1.0,
        max_images_per_patient=1,
    )
    mean_noise: float | None = options.mean_noise_multiplier
    if mean_noise is None and fraction > 0:
        mean_noise = noise * math.sqrt((1 - fraction) / (fraction * rounds * local_steps))
    if mean_noise is None:
        return Schedule(mean_event=None, step_event=step, rounds=rounds)
    mean = replace(step, mechanism="mean", noise_multiplier=mean_noise, steps=1, sample_rate=1.0)
    return Schedule(mean_event=mean, step_event=step, rounds=rounds)


def _curve(schedule: Schedule, options: argparse.Namespace) -> tuple[list[int], list[float]]:
    """Rounds, all or evenly chosen, and what is spent after each."""
    every = schedule.rounds
    parts = min(every, ROUNDS_SHOWN)
    shown = [every * part // parts for part in range(parts + 1)]
    spent = [0.0]
    try:
        for index in shown:
            price = epsilon(schedule.events_through(index), delta=options.delta, accountant=options.accountant)
            spent.append(max(spent[-1], price))
    except InvalidSetting as error:
        raise InvalidSetting(f"--accountant={options.accountant} cannot price this run: {error}") from error
    return shown, spent[1:]


def _by_images(
    schedule: Schedule, options: argparse.Namespace, *, accountant: AccountantName, own: float
) -> dict[int, tuple[float, bool]]:
    """What a patient pays, and whether that is a loose bound, by the number of images; the run's own price for unit=patient."""
    if options.unit == "patient":
        return dict.fromkeys(IMAGES_SHOWN, (own, False))
    found = {}
    for images in IMAGES_SHOWN:
        events = [replace(event, max_images_per_patient=images) for event in schedule.events()]
        price = patient_epsilon(events, delta=options.delta, accountant=accountant)
        loose = coarsely_priced(events, delta=options.delta, accountant=accountant, protected="patient")
        found[images] = (price, loose)
    return found


def _budget(schedule: Schedule, options: argparse.Namespace) -> tuple[str | None, float | None]:
    """Why the account would refuse the run, if it would, and what it leaves."""
    if options.budget is None:
        return None, None
    budget = Budget(max_epsilon=options.budget, delta=options.delta)
    account = _account(options, budget, full_batch=schedule.step_event.full_batch)
    try:
        after = after_run(account, as_steps(schedule.events()), budget=budget)
    except PrivacyRefused as error:
        return str(error), headroom(account, budget=budget)
    return None, headroom(after, budget=budget)


def _account(options: argparse.Namespace, budget: Budget, *, full_batch: bool) -> Account:
    """The account that would be charged: the ledger's, or a new one."""
    accounts = read_accounts(existing_ledger(options.ledger, option="--ledger")) if options.ledger else ()
    if not accounts:
        kind: FilterKind = options.filter or ("gdp" if full_batch else "declared")
        opened = open_filter(kind, max_epsilon=budget.max_epsilon, delta=budget.delta)
        return Account(
            names=(options.account or DEFAULT_ACCOUNT,), privacy_filter=opened, unit=options.unit, delta=budget.delta
        )
    names = [name for each in accounts for name in each.names]
    wanted = options.account or (DEFAULT_ACCOUNT if len(accounts) > 1 else names[0])
    if wanted not in names:
        raise InvalidSetting(f"--account={wanted} must be one of the ledger's: {', '.join(names)}")
    account = next(each for each in accounts if wanted in each.names)
    if account.unit != options.unit:
        raise InvalidSetting(f"--unit={options.unit} must be {account.unit}, the unit of the account in --ledger")
    if account.delta not in (None, options.delta):
        raise InvalidSetting(f"--delta={options.delta:g} must be {account.delta:g}, the delta of the account in --ledger")
    return account
