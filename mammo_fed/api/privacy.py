"""Privacy from Python: what a run would cost, and a ledger that own releases are charged to."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mammo_fed.client.charging import Charge, charged_once
from mammo_fed.errors import InvalidSetting
from mammo_fed.privacy.accounting.pricing import epsilon
from mammo_fed.privacy.events import DEFAULT_ACCOUNT, PrivacyEvent, Unit, events_to_json
from mammo_fed.privacy.ledger.ledger import Ledger
from mammo_fed.privacy.ledger.rules import Budget
from mammo_fed.privacy.names import AccountantName, FilterKind, MechanismName
from mammo_fed.privacy.schedule import Schedule, auto_rounds, epsilon_curve, plan_schedule
from mammo_fed.training.recipe import POISSON_LOCAL_STEPS, POISSON_ROUNDS

__all__ = ["Plan", "charge", "open_ledger", "plan"]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a planned run releases and costs at one site.

    Attributes:
      events: everything it will release, for a ledger or an accountant.
      delta, accountant: at which and by whom it is priced.
      rounds: number of rounds with gradient steps.
      noise_multiplier: standard deviation of each gradient step's noise over the clipping norm.
      mean_noise_multiplier: that of the private mean; None without one.
      epsilon: of the whole run.
      epsilon_after_round: cumulative, round 0 (the mean) first.

    >>> from mammo_fed import plan
    >>> found = plan(target_epsilon=2.0, delta=1e-4)
    >>> found.epsilon <= 2.0, found.epsilon == found.epsilon_after_round[-1], len(found.events)
    (True, True, 2)
    """

    events: tuple[PrivacyEvent, ...]
    delta: float
    accountant: AccountantName
    rounds: int
    noise_multiplier: float
    mean_noise_multiplier: float | None
    epsilon: float
    epsilon_after_round: tuple[float, ...]


def plan(
    *,
    target_epsilon: float,
    delta: float,
    unit: Unit = "patient",
    accountant: AccountantName = "pld",
    mechanism: MechanismName = "dp_gd",
    images: int | None = None,
    batch_size: int = 128,
    rounds: int | None = None,
    local_steps: int | None = None,
    mean_fraction: float = 0.1,
    max_images_per_patient: int = 1,
) -> Plan:
    """The noise with which a whole run meets `target_epsilon` at one site: `mammo-fed privacy plan` as a function.

    Guarantee: the epsilon of the plan's events is at most `target_epsilon`; see mammo_fed.privacy.accounting.pricing.epsilon.

    Args:
      target_epsilon: of the whole run, > 0.
      delta: in (0, 1).
      unit: whose data is protected.
      accountant: who prices.
      mechanism: "dp_gd" (full batch) or "dp_sgd" (Poisson sampling).
      images: public number of images at the site; needed by dp_sgd.
      batch_size: expected images of a sampled step.
      rounds, local_steps: None takes what a run with this target has.
      mean_fraction: part of the budget for the private mean, in [0, 1); 0 releases no mean.
      max_images_per_patient: public bound; prices a patient where the unit is the image.

    Raises:
      InvalidSetting: If a value is out of its range, or the target cannot be met.

    >>> found = plan(target_epsilon=6.0, delta=1e-4, mechanism="dp_sgd", images=1000, rounds=5, mean_fraction=0.0)
    >>> found.rounds, found.mean_noise_multiplier, 5.99 < found.epsilon <= 6.0
    (5, None, True)
    """
    sampled = mechanism == "dp_sgd"
    if sampled and (images is None or images < 1):
        raise InvalidSetting(f"images={images} must be the site's public number of images, at least 1, for mechanism=dp_sgd")
    schedule = plan_schedule(
        unit=unit,
        target_epsilon=target_epsilon,
        delta=delta,
        accountant=accountant,
        rounds=(POISSON_ROUNDS if sampled else auto_rounds(target_epsilon)) if rounds is None else rounds,
        local_steps=(POISSON_LOCAL_STEPS if sampled else 1) if local_steps is None else local_steps,
        sample_rate=min(1.0, batch_size / images) if sampled and images else 1.0,
        mean_fraction=mean_fraction,
        clipping_norm=1.0,
        max_images_per_patient=max_images_per_patient,
    )
    return _priced(schedule, delta=delta, accountant=accountant)


def open_ledger(
    folder: Path | str, *, max_epsilon: float, delta: float, site: str = "notebook", filter: FilterKind = "rdp"
) -> Ledger:
    """A durable ledger in a folder of its own, opened or made; use it in a `with` statement.

    Args:
      folder: for the ledger alone, on a local disk.
      max_epsilon, delta: what an account may cost its patients in all. The first charge promises it: a larger one later is
        refused, unless `Ledger.raise_cap` has raised it.
      site: whose ledger it is.
      filter: how a new account enforces its budget. "rdp" is sound for releases of any kind that are chosen one after the
        other; "gdp" is tighter and takes full-batch events alone; "declared" suits one schedule that is fixed beforehand.

    Raises:
      LedgerError: If the ledger was tampered with, is another site's, or its disk cannot be written.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with open_ledger(folder + "/ledger", max_epsilon=2.0, delta=1e-5, filter="gdp") as ledger:
    ...         ledger.budget_left()
    2.0
    """
    return Ledger.open(Path(folder), site=site, budget=Budget(max_epsilon=max_epsilon, delta=delta), filter=filter, adopt=True)


def charge(ledger: Ledger, events: Sequence[PrivacyEvent], *, patients: Iterable[str], account: str = DEFAULT_ACCOUNT) -> float:
    """Charge `events` to the patients' account, durably, BEFORE they are released; returns what is left of the budget.

    Guarantee: on return the ledger has paid for one release of `events`. Each call is another release and is charged again,
    and nothing lowers a charge, whether the release then happens or not.

    Args:
      ledger: from `open_ledger`.
      events: what will be released, all of one unit.
      patients: identifiers of everybody whose data it uses, a text each; only keyed digests are stored.
      account: the budget to charge.

    Raises:
      InvalidSetting: If `patients` is one text, or holds something else than texts.
      PrivacyRefused: If the budget does not allow it; then nothing may be released.
      PolicyRefused: If the account's filter does not take such events, or its patients were promised a smaller cap.

    >>> import tempfile
    >>> from mammo_fed.errors import PrivacyRefused
    >>> event = PrivacyEvent(mechanism="mean", noise_multiplier=5.0, steps=1, sample_rate=1.0, unit="patient",
    ...                      clipping_norm=1.0, max_images_per_patient=4)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with open_ledger(folder + "/ledger", max_epsilon=2.0, delta=1e-5, filter="gdp") as ledger:
    ...         left = charge(ledger, [event], patients=["A", "B"])
    ...         try:
    ...             charge(ledger, [event.repeated(100)], patients=["A", "B"])
    ...         except PrivacyRefused:
    ...             print("refused;", ledger.budget_left() == left, round(left, 3))
    refused; True 1.816
    """
    # One text would be charged to its letters.
    patients = [] if isinstance(patients, str) else list(patients)
    if not (patients and all(isinstance(patient, str) for patient in patients)):
        raise InvalidSetting("patients must be a list of identifiers, a text each; give patients=[...]")
    events = tuple(events)
    run_id = f"charge-{secrets.token_hex(8)}"
    task = Charge(
        run_id=run_id, round_index=0, task_hash=hashlib.sha256(events_to_json(events).encode()).hexdigest(), events=events
    )
    ledger.declare(run_id=run_id, schedule=events, patients=patients, account=account)
    charged_once(ledger, task, train=lambda _: b"", failed=None, state=None)
    return ledger.budget_left(account=account)


def _priced(schedule: Schedule, *, delta: float, accountant: AccountantName) -> Plan:
    mean = schedule.mean_event
    return Plan(
        events=schedule.events(),
        delta=delta,
        accountant=accountant,
        rounds=schedule.rounds,
        noise_multiplier=schedule.step_event.noise_multiplier,
        mean_noise_multiplier=None if mean is None else mean.noise_multiplier,
        epsilon=epsilon(schedule.events(), delta=delta, accountant=accountant),
        epsilon_after_round=tuple(epsilon_curve(schedule, delta=delta, accountant=accountant)),
    )
