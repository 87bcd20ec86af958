"""The figures of a whole record: its terms, every site, the sentences that people read, synthesis, and noise at the server."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from mammo_fed.errors import DataError
from mammo_fed.privacy.events import OLDER_RELATIONS, RELATION
from mammo_fed.privacy.verification.figures import Sheet, at, events_of, number, rounded, texts, whole
from mammo_fed.privacy.verification.prices import price_of, renyi_price
from mammo_fed.privacy.verification.sentence import check_names, check_words
from mammo_fed.privacy.verification.site_figures import Site, Terms, check_site, read_site

__all__ = ["check_record"]

NUMBER: Final = r"(\d+(?:\.\d+)?(?:e[+-]?\d+)?|∞)"
PAIR: Final = re.compile(rf"\(epsilon={NUMBER}, delta={NUMBER}\)")
OF_A_PATIENT: Final = re.compile(rf"for a patient with (\d+) images? [^;]*?(?:at most )?{NUMBER}(?=;)")
SCHEDULE_COST: Final = re.compile(rf"schedule cost so far: epsilon {NUMBER}")
SHARES: Final = re.compile(rf"sees epsilon at most {NUMBER}, .* sees epsilon {NUMBER}\.")
THREAT: Final = re.compile(r"controls (?:at most )?(no|\d+) other sites? and opens sums of at least (\d+) sites only")
NOTHING: Final = ("No patient's data was used", "Nothing computed from a patient was released")
KNOWN_UNITS: Final = ("patient", "image")


def check_record(record: Mapping[str, Any]) -> Sheet:
    """Every figure of a record that its events determine, recomputed.

    Raises:
      DataError: If it is no record of a run, or holds no events.
    """
    sheet = Sheet()
    if at(record, "schema_version") != 1 or not isinstance(at(record, "privacy.sites"), list):
        raise DataError("schema_version must be 1 and privacy.sites a list; this is no record of a run")
    terms = _terms(record)
    sites = [read_site(values, relation=terms.relation) for values in at(record, "privacy.sites")]
    if len({site.name for site in sites}) != len(sites):
        raise DataError("privacy.sites: a site is named more than once; this is no record of a run")
    _check_terms(sheet, record, terms, sites)
    check_names(sheet, record, sites)
    checked = [check_site(sheet, site, terms) for site in sites]
    _check_guarantee(sheet, record, terms, checked)
    _check_shares(sheet, record, terms, checked)
    _check_synthesis(sheet, record, terms, checked)
    _check_central(sheet, record, terms)
    for name in ("cap_since", "cap_raised", "withdrawn_at", "ledger_head"):
        if any(site.values.get(name) for site in sites):
            sheet.unknown(f"sites: {name.replace('_', ' ')}", "recorded", "the site's ledger proves it: privacy verify LEDGER")
    return sheet


def _terms(record: Mapping[str, Any]) -> Terms:
    delta = number(record, "privacy.delta")
    if not 0 < delta < 1:
        raise DataError(f"privacy.delta={delta:g} must be in (0, 1); this is no record of a run")
    accountant, unit, relation = (at(record, f"privacy.{name}") for name in ("accountant", "unit", "relation"))
    if not isinstance(accountant, str) or unit not in KNOWN_UNITS or not isinstance(relation, str):
        raise DataError("privacy.accountant, unit and relation must be those of a run; this is no record of one")
    if relation not in (RELATION, *OLDER_RELATIONS):
        raise DataError(f"privacy.relation must be {RELATION!r}: no other relation is priced")
    aggregation = at(record, "privacy.aggregation") or "plain"
    return Terms(
        delta=delta,
        accountant=accountant,
        unit=unit,
        relation=relation,
        target_epsilon=number(record, "privacy.target_epsilon"),
        rounds=whole(record, "privacy.rounds"),
        local_steps=whole(record, "privacy.local_steps"),
        run_alone=(at(record, "privacy.ledger") or "run") == "run",
        min_survivors=whole(record, "privacy.min_survivors", least=1) if aggregation != "plain" else 1,
        colluders=whole(record, "privacy.colluders") if aggregation != "plain" else 0,
        shared_noise=aggregation == "shared_noise",
    )


def _check_terms(sheet: Sheet, record: Mapping[str, Any], terms: Terms, sites: Sequence[Site]) -> None:
    sheet.same("rounds of the federation", whole(record, "federation.rounds"), terms.rounds, "as in the privacy section")
    sheet.same("sites of the federation", whole(record, "federation.sites"), len(sites), "sites in the privacy section")
    seed = at(record, "seeds")
    injected = isinstance(seed, dict) and seed.get("privacy.noise_seed") is not None
    silent = math.isinf(terms.target_epsilon)
    expected = "injected" if injected else "none" if silent else "operating system"
    sheet.same("origin of the noise", at(record, "privacy.noise"), expected, "by the seeds and the target")
    for mechanism in ("mean", "gradient"):
        events = [event for site in sites for event in site.events if event.mechanism == mechanism]
        norms = sorted({event.clipping_norm for event in events})
        sheet.holds(f"clipping norm of every {mechanism}", f"{norms}", "the same at all sites", len(norms) <= 1)
    failed = at(record, "federation.failed_rounds") or []
    met = isinstance(failed, list) and all(isinstance(index, int) and 0 <= index <= terms.rounds for index in failed)
    sheet.holds("rounds that failed", f"{failed}", f"0 to {terms.rounds}", met)


def _check_guarantee(sheet: Sheet, record: Mapping[str, Any], terms: Terms, sites: Sequence[Site]) -> None:
    sentence = at(record, "privacy.guarantee")
    if not isinstance(sentence, str):
        raise DataError("privacy.guarantee must be a sentence; this is no record of a run")
    charged = [site for site in sites if site.events]
    epsilon, delta = _promised(charged, terms)
    pairs = PAIR.findall(sentence)
    if not charged:
        sheet.holds("guarantee: nothing was released", sentence, "says so, and gives no figure", sentence.startswith(NOTHING))
        return
    if at(record, "privacy.noise") != "operating system" or math.isinf(epsilon):
        sheet.holds(
            "guarantee: there is none",
            sentence,
            'starts with "None" and gives no figure',
            sentence.startswith("None") and not pairs,
        )
        return
    check_words(sheet, record, terms, sentence)
    sheet.holds("guarantee: one pair of epsilon and delta", f"{len(pairs)}", "1", len(pairs) == 1)
    for shown, shown_delta in pairs:
        sheet.shown("guarantee: epsilon", shown, epsilon)
        sheet.same("guarantee: delta", float(shown_delta), delta)
    by_image = sentence.startswith("Each image, not each patient")
    sheet.same("guarantee: unit", "image" if by_image else "patient", terms.unit)
    for images, shown in OF_A_PATIENT.findall(sentence):
        if terms.run_alone:
            sheet.shown("guarantee: epsilon of a patient", shown, max(site.patient_epsilon for site in charged))
            most = max(event.max_images_per_patient for site in charged for event in site.events)
            sheet.same("guarantee: images of a patient", int(images), most)
        else:
            accounts = [number(site.values, "patient_epsilon_account", default=math.inf) for site in sites]
            sheet.shown("guarantee: epsilon of a patient, all runs", shown, max(accounts))
    costs = [number(site.values, "epsilon_account") for site in charged]
    for shown in SCHEDULE_COST.findall(sentence):
        sheet.shown("guarantee: schedule cost", shown, max(costs))
    for colluders, survivors in THREAT.findall(sentence):
        sheet.same("guarantee: colluding sites", 0 if colluders == "no" else int(colluders), terms.colluders)
        sheet.same("guarantee: sites in a sum", int(survivors), terms.min_survivors)


def _promised(charged: Sequence[Site], terms: Terms) -> tuple[float, float]:
    """Epsilon and delta of the guarantee: of this run, or the largest cap where ledgers carry over."""
    if terms.run_alone:
        return max((site.epsilon for site in charged), default=0.0), terms.delta
    caps = [max(number(site.values, "cap_epsilon", default=math.inf), site.epsilon) for site in charged]
    deltas = [number(site.values, "cap_delta", default=0.0) for site in charged]
    return max(caps, default=0.0), max(deltas, default=terms.delta)


def _check_shares(sheet: Sheet, record: Mapping[str, Any], terms: Terms, sites: Sequence[Site]) -> None:
    charged = [site for site in sites if site.events]
    if not terms.shared_noise or not charged:
        return
    found = [SHARES.search(sentence) for sentence in texts(at(record, "privacy.not_covered"))]
    matches = [match for match in found if match]
    sheet.holds("not covered: who knows more of the noise", f"{len(matches)} sentence", "1 sentence", len(matches) == 1)
    for match in matches:
        sheet.shown("not covered: epsilon, another site", match[1], max(site.other_site for site in charged))
        sheet.shown("not covered: epsilon, all colluding", match[2], max(site.all_colluding for site in charged))


def _check_synthesis(sheet: Sheet, record: Mapping[str, Any], terms: Terms, sites: Sequence[Site]) -> None:
    seen = at(record, "synthesis.provenance")
    if not isinstance(seen, dict):
        raise DataError("synthesis.provenance must be an object; this is no record of a run")
    epsilon, delta = number(seen, "epsilon"), number(seen, "delta")
    total, total_delta = number(seen, "total_epsilon", default=math.inf), number(seen, "total_delta", default=0.0)
    name = "synthetic set: epsilon of its generator"
    if not seen.get("events"):
        if 0 < epsilon < math.inf and "events" not in seen:
            sheet.unknown(name, rounded(epsilon), "the record does not hold the events of the generator's training")
            return
        met = epsilon in (0.0, math.inf) and delta == 0 and math.isinf(total) and total_delta == 0
        sheet.holds(
            name, rounded(epsilon), "0 for procedural images or no bound, and no total: its training has no events", met
        )
        return
    events = events_of(seen, "events", relation=terms.relation)
    if not 0 < delta < 1 or not 0 <= total_delta < 1:
        sheet.holds("synthetic set: delta", f"{delta:g}, {total_delta:g}", "in (0, 1)", False)
        return
    accountant = str(seen.get("generator_accountant", "pld"))
    own = sheet.priced(name, epsilon, lambda: price_of(events, delta=delta, accountant=accountant))
    sheet.same("synthetic set: unit", seen.get("generator_unit"), events[0].unit)
    charged = [site for site in sites if site.events]
    same = events[0].unit == terms.unit
    sheet.same("synthetic set: unit of the total", seen.get("total_unit"), terms.unit if same else "patient")
    name = "synthetic set: epsilon with this run"
    if at(record, "privacy.noise") != "operating system" or not charged:
        sheet.same(name, total, math.inf, "the run gives no guarantee, or charged nobody")
    elif terms.run_alone and same:
        both = [
            price_of((*events, *site.events), delta=max(delta, terms.delta), accountant=terms.accountant) for site in charged
        ]
        most = max(max(price.epsilon for price in both), own)
        sheet.within(name, total, most, most, "all events composed")
        sheet.same("synthetic set: delta with this run", total_delta, max(delta, terms.delta))
    else:
        mine = own if same else price_of(events, delta=delta, accountant="pld", protected="patient").epsilon
        theirs = _caps(charged) if same else [_of_patient(site, terms) for site in charged]
        sheet.within(name, total, mine + max(theirs), mine + max(theirs), "the two added up")
        deltas = [max(number(site.values, "cap_delta", default=0.0), terms.delta) for site in charged]
        sheet.same("synthetic set: delta with this run", total_delta, delta + max(deltas))
    _check_pairs(sheet, at(record, "synthesis.total"), (epsilon, delta), (total, total_delta))


def _caps(charged: Sequence[Site]) -> list[float]:
    return [max(number(site.values, "cap_epsilon", default=math.inf), site.epsilon) for site in charged]


def _of_patient(site: Site, terms: Terms) -> float:
    if terms.run_alone:
        return site.patient_epsilon
    return max(number(site.values, "patient_epsilon_account", default=math.inf), site.patient_epsilon)


def _check_pairs(sheet: Sheet, sentence: object, *wanted: tuple[float, float]) -> None:
    if not isinstance(sentence, str):
        return
    for place, (shown, (epsilon, delta)) in enumerate(zip(PAIR.findall(sentence), wanted, strict=False)):
        which = "with this run" if place else "of its generator"
        sheet.shown(f"synthetic set, sentence: epsilon {which}", shown[0], epsilon)
        sheet.same(f"synthetic set, sentence: delta {which}", float(shown[1]), delta)


def _check_central(sheet: Sheet, record: Mapping[str, Any], terms: Terms) -> None:
    central = at(record, "federation.central")
    if central is None:
        return
    releases, delta = whole(central, "releases") if at(central, "releases") is not None else 0, number(central, "delta")
    noise = number(central, "noise_multiplier")
    name = "each site as a whole: epsilon"
    if not releases:
        sheet.unknown(name, rounded(number(central, "epsilon")), "the record does not hold the number of aggregates")
        return
    failed = len(at(record, "federation.failed_rounds") or [])
    met = releases in (terms.rounds - failed, terms.rounds + 1 - failed)
    sheet.holds("each site as a whole: aggregates", f"{releases}", "rounds and the mean, less those that failed", met)
    if not (0 < delta < 1 and 0 < noise < math.inf):
        sheet.holds(name, f"noise {noise:g} at delta {delta:g}", "a finite noise multiplier, and delta in (0, 1)", False)
        return
    epsilon = sheet.priced(
        name, number(central, "epsilon"), lambda: renyi_price(noise_multiplier=noise, releases=releases, delta=delta)
    )
    for shown, shown_delta in PAIR.findall(str(at(central, "guarantee"))):
        sheet.shown("each site as a whole, sentence: epsilon", shown, epsilon)
        sheet.same("each site as a whole, sentence: delta", float(shown_delta), delta)
