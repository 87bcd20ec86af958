"""The figures of one site of a record, recomputed from its events."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from mammo_fed.errors import DataError
from mammo_fed.privacy.events import PrivacyEvent, Unit
from mammo_fed.privacy.verification.figures import Sheet, events_of, number, whole
from mammo_fed.privacy.verification.prices import Price, Protected, beside, price_of

__all__ = ["Site", "Terms", "check_site", "read_site"]


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What a record says of the whole run.

    Attributes:
      delta, accountant, unit, relation, target_epsilon, rounds, local_steps: as in the record.
      run_alone: whether each site's ledger holds this run alone.
      min_survivors, colluders, shared_noise: the declared threat model.
    """

    delta: float
    accountant: str
    unit: Unit
    relation: str
    target_epsilon: float
    rounds: int
    local_steps: int
    run_alone: bool
    min_survivors: int
    colluders: int
    shared_noise: bool


@dataclass(frozen=True, kw_only=True)
class Site:
    """One site's section and the events in it, with what they cost once that was recomputed."""

    name: str
    values: Mapping[str, Any]
    events: tuple[PrivacyEvent, ...]
    epsilon: float = 0.0
    patient_epsilon: float = 0.0
    other_site: float = 0.0
    all_colluding: float = 0.0


def read_site(values: Any, *, relation: str) -> Site:
    """A site's section.

    Raises:
      DataError: If it is none, or holds no events though it has figures: records of earlier versions do not.
    """
    if not isinstance(values, dict) or not isinstance(values.get("site"), str):
        raise DataError("privacy.sites must be a list of sites with their names; this is no record of a run")
    after = values.get("epsilon_after_round")
    if not isinstance(after, list):
        raise DataError("privacy.sites.epsilon_after_round must be a list; this is no record of a run")
    if "events" not in values:
        raise DataError(
            "the record holds no privacy events: an earlier version wrote it, and its figures cannot be recomputed from it"
        )
    return Site(name=values["site"], values=values, events=events_of(values, "events", relation=relation))


def check_site(sheet: Sheet, site: Site, terms: Terms) -> Site:
    """Check every figure of a site; returns it with what its events cost."""
    after = [number(site.values, f"epsilon_after_round.{index}") for index in range(len(site.values["epsilon_after_round"]))]
    _check_events(sheet, site, terms, figures=len(after))
    own = _curve(sheet, site, terms, after)
    epsilon = number(site.values, "epsilon")
    sheet.same(f"{site.name}: epsilon is that after its last round", epsilon, after[-1] if after else 0.0)
    patient = _patient(sheet, site, terms, epsilon)
    other, colluding = _adversaries(sheet, site, terms, epsilon)
    _check_account(sheet, site, terms, epsilon=epsilon, patient=patient)
    _check_cap(sheet, site, terms)
    _check_rounds(sheet, site, terms)
    return replace(site, epsilon=own, patient_epsilon=patient, other_site=other, all_colluding=colluding)


def whole_schedule(site: Site, terms: Terms) -> tuple[PrivacyEvent, ...]:
    """Everything that the site had declared, as far as its events show it: the mean, and the steps of every round."""
    mean = [event for event in site.events if event.mechanism == "mean"][:1]
    steps = [event.repeated(max(1, terms.rounds)) for event in site.events if event.mechanism == "gradient"][:1]
    return (*mean, *steps)


def _check_events(sheet: Sheet, site: Site, terms: Terms, *, figures: int) -> None:
    name, events = site.name, site.events
    steps = [event for event in events if event.mechanism == "gradient"]
    means = [event for event in events if event.mechanism == "mean"]
    sheet.same(f"{name}: figures after rounds, one for each event", figures, len(events))
    met = (
        len({event.max_images_per_patient for event in events}) <= 1
        and len(set(steps)) <= 1
        and len(means) <= 1
        and (not means or events[0] == means[0])
        and len(steps) <= terms.rounds
    )
    rule = f"at most one mean, then at most {terms.rounds} rounds, all alike"
    sheet.holds(f"{name}: events are those of one declared schedule", f"{len(means)} + {len(steps)}", rule, met)
    sheet.same(
        f"{name}: steps of a round", sorted({event.steps for event in steps} or {terms.local_steps}), [terms.local_steps]
    )
    sheet.same(f"{name}: unit of the events", sorted({event.unit for event in events} or {terms.unit}), [terms.unit])
    shares = terms.min_survivors - terms.colluders if terms.shared_noise else 1
    sheet.same(f"{name}: sites that share the noise", sorted({event.noise_shares for event in events} or {shares}), [shares])
    if {event.mechanism for event in events} == {"mean", "gradient"} or (steps and not means):
        _check_target(sheet, site, terms)


def _check_target(sheet: Sheet, site: Site, terms: Terms) -> None:
    name = f"{site.name}: price of the whole schedule against the target"
    if math.isinf(terms.target_epsilon):
        noiseless = all(event.noise_multiplier == 0 for event in site.events)
        sheet.holds(name, "no target", "no noise where no target was set", noiseless)
        return
    reached = _price(whole_schedule(site, terms), terms).epsilon
    if len({event.mechanism for event in site.events}) == 1 and reached < 0.98 * terms.target_epsilon:
        # A site that came late took no part in the mean, which was part of its schedule.
        sheet.unknown(name, f"{terms.target_epsilon:g}", "the site's mean is not among its events")
        return
    interval = 0.021 if terms.accountant == "prv" else 0.0
    target = terms.target_epsilon
    sheet.within(
        name, target, reached * (1 - 1e-4), max(reached * (1 + 1e-3), reached + interval), "target is reached, not passed"
    )


def _price(events: Sequence[PrivacyEvent], terms: Terms, *, protected: Protected = "unit", delta: float | None = None) -> Price:
    accountant = terms.accountant if protected == "unit" else "pld"
    return price_of(events, delta=delta or terms.delta, accountant=accountant, protected=protected)


def _curve(sheet: Sheet, site: Site, terms: Terms, after: Sequence[float]) -> float:
    """Every figure after a round, each from the events up to it; the last recomputed one."""
    reported = set(_rounds_of(site, "mismatches"))
    last = 0.0
    for index, recorded in enumerate(after):
        events = site.events[: index + 1]
        name = (
            f"{site.name}: epsilon after round {index}"
            if len(site.events) > terms.rounds
            else f"{site.name}: epsilon after {index + 1} rounds"
        )
        if reported:
            # The record then holds the larger of the server's figure and the site's.
            found = _price(events, terms)
            sheet.within(
                name, recorded, found.low, math.inf, f"{found.source}; at least this, as the site reported another figure"
            )
            last = found.epsilon
        else:
            last = sheet.priced(name, recorded, lambda events=events: _price(events, terms))  # type: ignore[misc]
    falls = any(later < earlier for earlier, later in pairwise(after))
    sheet.holds(f"{site.name}: epsilon never falls", f"{len(after)} figures", "each at least the one before", not falls)
    return last


def _patient(sheet: Sheet, site: Site, terms: Terms, epsilon: float) -> float:
    name, recorded = f"{site.name}: epsilon of a patient", number(site.values, "patient_epsilon")
    if terms.unit == "patient":
        found = _price(site.events, terms, protected="patient").epsilon
        # The larger of the price by PLD and the figure by the run's accountant.
        sheet.within(name, recorded, max(found, epsilon), max(found, epsilon), "as for the unit, which is the patient")
        return max(found, epsilon)
    return sheet.priced(name, recorded, lambda: _price(site.events, terms, protected="patient"))


def _adversaries(sheet: Sheet, site: Site, terms: Terms, epsilon: float) -> tuple[float, float]:
    """Against another site, and against all others together."""
    found = []
    known = {"other_site": max(1, terms.min_survivors - 1), "all_colluding": 1}
    for key, honest in known.items():
        name, recorded = f"{site.name}: epsilon, {key.replace('_', ' ')}", number(site.values, f"epsilon_{key}")
        if not terms.shared_noise:
            sheet.same(name, recorded, epsilon, "as for everybody: each site adds all of its noise")
            found.append(epsilon)
            continue
        seen = tuple(
            replace(event, noise_multiplier=event.noise_multiplier * math.sqrt(honest / event.noise_shares), noise_shares=1)
            for event in site.events
        )
        found.append(sheet.priced(name, recorded, lambda seen=seen: _price(seen, terms)))  # type: ignore[misc]
    return found[0], found[1]


def _check_account(sheet: Sheet, site: Site, terms: Terms, *, epsilon: float, patient: float) -> None:
    """What the site's ledger says: this run where it holds nothing else, and never less than it."""
    whole_run = max(_price(whole_schedule(site, terms), terms, protected="patient").figures) if site.events else 0.0
    exact = terms.run_alone and not _rounds_of(site, "mismatches")
    limits = {
        "epsilon_account": (epsilon, epsilon, "its ledger holds this run alone"),
        "patient_epsilon_account": (patient, max(patient, whole_run), "at most the whole declared run"),
    }
    for key, (low, high, why) in limits.items():
        name = f"{site.name}: {key.replace('_', ' ')}"
        if site.values.get("account_published") is False:
            if site.values.get(key) is not None:
                sheet.holds(name, f"{site.values[key]}", "no figure, as the site does not publish its account", False)
            else:
                sheet.unknown(name, "not published", "the site's policy does not publish its account")
            continue
        recorded = number(site.values, key, default=math.inf)
        if exact:
            sheet.within(name, recorded, low, high, why)
        elif recorded < low * (1 - 1e-6):
            sheet.within(name, recorded, low, math.inf, "at least what this run cost")
        else:
            sheet.unknown(name, f"{recorded:.6g}", "it is about other runs too, whose events are in the site's ledger only")


def _check_cap(sheet: Sheet, site: Site, terms: Terms) -> None:
    cap, delta = number(site.values, "cap_epsilon", default=math.inf), number(site.values, "cap_delta", default=0.0)
    name = f"{site.name}: this run is within the site's cap"
    if math.isinf(cap):
        sheet.unknown(name, "no cap", "the site's policy sets no bound")
    elif not 0 < delta < 1:
        sheet.holds(name, f"cap_delta={delta:g}", "delta of a cap is in (0, 1)", False)
    elif site.events:
        found = _price(site.events, terms, delta=delta)
        met = found.low <= cap * (1 + 1e-6)
        sheet.holds(name, f"{cap:.6g}", f"at least {found.epsilon:.6g}, the price at delta {delta:g}", met)
    if terms.run_alone and math.isfinite(cap):
        sheet.same(f"{site.name}: delta of the cap", delta, terms.delta, "a ledger of this run alone is read at its delta")
    left = site.values.get("budget_left")
    if left is None and (math.isinf(cap) or site.values.get("account_published") is False):
        return
    most = beside(number(site.values, "epsilon"), cap=cap, delta=delta) if math.isfinite(cap) and 0 < delta < 1 else 0.0
    name = f"{site.name}: budget left"
    if math.isinf(cap):
        sheet.holds(name, f"{left}", "no bound, where the policy sets none", False)
    elif terms.run_alone and site.events and whole(site.values, "rounds") > 0:
        low, high = _left_alone(site, terms, cap=cap, delta=delta, most=most)
        sheet.within(name, number(site.values, "budget_left"), low, high, "what fits beside what its filter charged")
    else:
        sheet.within(name, number(site.values, "budget_left"), 0.0, most, "at most what fits under the cap beside this run")


def _left_alone(site: Site, terms: Terms, *, cap: float, delta: float, most: float) -> tuple[float, float]:
    """Between what and what the budget left is, where the account has this run alone.

    Earlier records hold the difference of the epsilons, later ones what the filter still admits: the recorded figure is
    compared with the nearer of the two.
    """
    spent = _filter_price(site, terms, delta=delta)
    if spent is None or not all(event.full_batch for event in site.events):
        # A filter at one Renyi order may leave less.
        return 0.0, most
    charged, seen = spent * (1 + 1e-4), number(site.values, "epsilon")
    fits = sorted((beside(charged, cap=cap, delta=delta) * (1 - 1e-6), most))
    differences = sorted((max(0.0, cap - charged), max(0.0, cap - seen)))
    left = number(site.values, "budget_left")
    low, high = min((fits, differences), key=lambda ends: max(ends[0] - left, left - ends[1]))
    return low, high


def _filter_price(site: Site, terms: Terms, *, delta: float) -> float | None:
    """What the site's own filter has charged at most: the whole declared run."""
    declared = whole_schedule(site, terms)
    return price_of(declared, delta=delta, accountant="pld").epsilon if declared and 0 < delta < 1 else None


def _check_rounds(sheet: Sheet, site: Site, terms: Terms) -> None:
    unanswered, mismatches = _rounds_of(site, "unanswered"), _rounds_of(site, "mismatches")
    answered = whole(site.values, "rounds")
    sheet.same(f"{site.name}: rounds answered", answered, len(site.events) - len(unanswered), "events less rounds unanswered")
    noted = [*unanswered, *mismatches]
    met = all(0 <= index <= terms.rounds for index in noted) and len(set(unanswered)) == len(unanswered)
    met = met and set(unanswered).isdisjoint(mismatches)
    sheet.holds(f"{site.name}: rounds that are named", f"{noted}", f"0 to {terms.rounds}, each once", met)


def _rounds_of(site: Site, key: str) -> list[int]:
    found = site.values.get(key, [])
    if not isinstance(found, list) or any(isinstance(item, bool) or not isinstance(item, int) for item in found):
        raise DataError(f"privacy.sites.{key} must be a list of rounds; this is no record of a run")
    return found
