"""The sentences of a report: what a run guarantees, and what it does not."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final

from mammo_fed.errors import InvalidSetting
from mammo_fed.federation.protocol.reasons import RejectionReason
from mammo_fed.privacy.events import Unit
from mammo_fed.privacy.names import LedgerScope, NoiseOrigin
from mammo_fed.reporting.formatting import delta_text, epsilon_text
from mammo_fed.reporting.record.arithmetic import FLOATING, in_reals
from mammo_fed.reporting.record.cap_words import CapHistory, account_sentences, cap_words
from mammo_fed.reporting.record.provenance import Provenance

__all__ = [
    "REJECTIONS",
    "guarantee_sentence",
    "not_covered_sentences",
    "shared_noise_sentence",
    "site_level_sentence",
    "synthetic_sentence",
    "threat_text",
    "warning_sentences",
]

# Why a site's answer was left out, behind "its answer was left out in round 3: ".
REJECTIONS: Final[Mapping[RejectionReason, str]] = {
    "schedule": "it declared other releases than it was asked for",
    "unit": "it declared another unit of privacy than it was asked for",
    "sampling": "it declared another sampling rate than its public size gives",
    "clipping": "it declared another clipping norm than it was asked for",
    "noise": "the noise that it declared is not what the target takes",
    "events": "it reported other privacy events than it had declared",
    "size": "it changed its public size",
    "task": "it answered another task",
    "shape": "the update had the wrong shape",
    "not_finite": "the update was not finite",
    "norm": "the update was longer than its steps can reach",
    "direction": "the update pointed against the others'",
    "weight": "it declared more images than it may weigh with",
    "version": "it spoke another version of the protocol",
    "unreadable": "what it sent could not be read",
}
# Above it an accountant gives an upper bound and no more.
LOOSE_ABOVE: Final = 1000.0
NONE_GIVEN: Final = "so this run gives no privacy guarantee."
HOW_TO_READ: Final = (
    "Epsilon bounds what the sites' messages reveal about one patient: apart from a failure probability delta, whatever anyone "
    "concludes from them is at most exp(epsilon) times as likely with that patient's data as without it. Smaller is stronger.",
    "The account adds up all runs in a site's ledger. A site refuses work that would pass its budget, whatever a server asks. "
    "Where ledgers carry over, later runs may depend on earlier ones: the cap is the guarantee, the account a schedule cost.",
    "AUROC is the chance that a malignant mass scores above a benign one: 0.5 is guessing, 1 is perfect. Its 95 % interval "
    "comes from resampling whole patients, because the views of one mass are alike.",
    "AUPRC depends on which class counts as positive and on how common it is, so both are given. Guessing reaches the "
    "prevalence of the positive class. Published values on these tasks often take benign as the positive class.",
    "The Brier score is the mean squared distance of the score to the truth: 0.25 is a constant one half, lower is better.",
    "Sensitivity at 90 % specificity is the fraction of malignant masses found by a threshold that calls at most one benign "
    "mass in ten malignant.",
    "The scores are research results on single patches. They are not a diagnosis.",
)


def guarantee_sentence(
    *,
    unit: Unit,
    epsilon: float,
    delta: float,
    noise: NoiseOrigin,
    ledger: LedgerScope,
    noise_seed: int | None = None,
    patient_epsilon: float | None = None,
    schedule_cost: float | None = None,
    account_published: bool = True,
    caps: Sequence[CapHistory] = (),
    max_images_per_patient: int | None = None,
    asked: bool = True,
    threat: str = "",
    floating: bool = False,
) -> str:
    """What a run guarantees, in one sentence that starts with "None" where it guarantees nothing.

    Args:
      unit: whose data is protected.
      epsilon: largest over the sites: of this run for ledger "run", the cap of the whole account for ledger "site"; infinite
        without noise or without a cap, 0 where every site refused.
      delta: of the same guarantee, in (0, 1).
      noise: where the noise came from.
      ledger: "run" for a fresh ledger in the run folder, "site" for one that carries over every run of its site.
      noise_seed: privacy.noise_seed, where noise is "injected".
      patient_epsilon: epsilon of a patient with `max_images_per_patient` images, where the unit is the image: of this run, or
        of everything in the account where that is published.
      schedule_cost: for ledger "site", the largest price of all that an account has released so far; None if not published.
      account_published: whether the sites publish figures of their accounts.
      caps: for ledger "site", since when the caps of the sites that took part hold, and every raise.
      max_images_per_patient: largest number of images of a patient, public by the sites' policies.
      asked: whether any site was asked for anything.
      threat: against whom it holds, where not against everybody; see `threat_text`.
      floating: whether the noise was drawn in floating point.

    Raises:
      InvalidSetting: If the unit is the image and `patient_epsilon` or `max_images_per_patient` is missing, the ledger is
        "site" with published accounts and `schedule_cost` is missing, or delta or epsilon is out of range.
    """
    if not epsilon >= 0 or not 0 < delta < 1:
        raise InvalidSetting(f"epsilon={epsilon} must be at least 0 and delta={delta} in (0, 1); check privacy.delta")
    if epsilon == 0 and not asked:
        return "No patient's data was used: the model is the public start."
    if epsilon == 0:
        return "Nothing computed from a patient was released: every site refused."
    if noise == "injected":
        return f"None: noise was injected with privacy.noise_seed={noise_seed}, {NONE_GIVEN}"
    if noise == "none":
        return f"None: no noise was added (privacy.target_epsilon is infinite), {NONE_GIVEN}"
    if math.isinf(epsilon):
        unbounded = "own figure for this run" if ledger == "run" else "policy for all runs in its ledger"
        return f"None: a site's {unbounded} has no bound, {NONE_GIVEN}"
    price = f"(epsilon={epsilon_text(epsilon)}, delta={delta_text(delta)})-differential privacy{in_reals(floating)}"
    scope = "for this run alone" if ledger == "run" else _over_all_runs(schedule_cost, account_published, caps)
    if unit == "patient":
        who, patient = "Each patient's data (all images)", ""
    elif patient_epsilon is None or max_images_per_patient is None:
        raise InvalidSetting(
            "patient_epsilon and max_images_per_patient must be given with unit=image: "
            "an image's guarantee alone says nothing about a patient; check the site's policy"
        )
    else:
        images = "1 image" if max_images_per_patient == 1 else f"{max_images_per_patient} images"
        who = "Each image, not each patient,"
        what = "the schedule cost so far" if account_published else "this run alone"
        verb = "epsilon is" if ledger == "run" else f"no cap is set, and {what} is epsilon"
        loose = "at most " if patient_epsilon > LOOSE_ABOVE else ""
        patient = f"; for a patient with {images} {verb} {loose}{epsilon_text(patient_epsilon)}"
    return (
        f"{who} is protected with {price} at its site {scope}{threat}{patient}; "
        f"neighbouring cohorts differ in one {unit} contributing nothing, cohort sizes are public constants."
    )


def threat_text(*, min_survivors: int, colluders: int) -> str:
    """Against whom noise in shares protects, behind the rest of the guarantee.

    >>> threat_text(min_survivors=3, colluders=0)
    ', against a server that controls no other site and opens sums of at least 3 sites only'
    >>> threat_text(min_survivors=5, colluders=1)
    ', against a server that controls at most 1 other site and opens sums of at least 5 sites only'
    """
    many = "no" if colluders == 0 else f"at most {colluders}"
    noun = "site" if colluders <= 1 else "sites"
    return f", against a server that controls {many} other {noun} and opens sums of at least {min_survivors} sites only"


def shared_noise_sentence(*, other_site: float, all_colluding: float) -> str:
    """What those see who know more shares of the noise than the declared threat model grants.

    >>> shared_noise_sentence(other_site=1.234, all_colluding=2.0)[:84]
    'The noise is made up of shares of all sites: another site, which knows its own, sees'
    """
    return (
        "The noise is made up of shares of all sites: another site, which knows its own, sees epsilon at most "
        f"{epsilon_text(other_site)}, and a server that controls all other sites, or makes them up, sees epsilon "
        f"{epsilon_text(all_colluding)}."
    )


def _over_all_runs(schedule_cost: float | None, published: bool, caps: Sequence[CapHistory]) -> str:
    over, words = "over all runs in the site's ledger, by the cap that the ledger enforces", cap_words(caps)
    if not published:
        return f"{over} ({words})" if words else over
    if schedule_cost is None:
        raise InvalidSetting("schedule_cost must be given with ledger=site: the cap is no price, and the price is no cap")
    cost = epsilon_text(schedule_cost)
    return f"{over} ({words + '; ' if words else ''}schedule cost so far: epsilon {cost})"


def warning_sentences(
    *,
    site: str,
    mismatches: Sequence[int],
    unanswered: Sequence[int],
    rejected: Sequence[tuple[int, RejectionReason]] = (),
    protocol_versions: Sequence[int] = (),
    missed: Sequence[int] = (),
    revoked: Sequence[int] = (),
) -> tuple[str, ...]:
    """What went otherwise than declared at a site, in sentences.

    Args:
      site: its name.
      mismatches: rounds after which its own epsilon was not the server's.
      unanswered: rounds whose task was sent and for which no readable reply came.
      rejected: rounds whose answer was left out (-1: that to the run's declaration), and why.
      protocol_versions: that of the site and that of the server, where they differ.
      missed: rounds that it had no part in, at no cost.
      revoked: the round from which on it could not come any more.

    >>> warning_sentences(site="a", mismatches=[], unanswered=[3])
    ('a: no readable reply came in round 3; it is charged, as the reply may be in other hands.',)
    """
    found = []
    if unanswered:
        verb = "it is" if len(unanswered) == 1 else "they are"
        found.append(
            f"{site}: no readable reply came in {_rounds(unanswered)}; {verb} charged, as the reply may be in other hands."
        )
    if missed:
        found.append(
            f"{site}: it was not there in {_rounds(missed)}, of which no task reached it; nothing is charged for that."
        )
    if revoked:
        found.append(
            f"{site}: its registration was revoked; it takes no part from {_rounds(revoked)} on, and what it gave stays."
        )
    if mismatches:
        found.append(f"{site}: its own epsilon is not the server's after {_rounds(mismatches)}; the larger one is shown.")
    for reason, words in REJECTIONS.items():
        if rounds := [index for index, why in rejected if why == reason]:
            where = f"its answer was left out in {_rounds(rounds)}" if min(rounds) >= 0 else "it was kept out of the run"
            if reason == "version" and len(protocol_versions) == 2:
                words = "it spoke version {} of the protocol, and the server version {}".format(*protocol_versions)
            found.append(f"{site}: {where}: {words}.")
    return tuple(found)


def _rounds(rounds: Sequence[int]) -> str:
    return ("round " if len(rounds) == 1 else "rounds ") + ", ".join(str(each) for each in rounds)


def site_level_sentence(
    *, epsilon: float, delta: float, noise_multiplier: float, clipping_norm: float, noise_seed: int | None = None
) -> str:
    """What site-level noise at the server guarantees, in one sentence that starts with "None" where it guarantees nothing.

    Args:
      epsilon: of one site's part in all released models.
      delta: of the same guarantee.
      noise_multiplier, clipping_norm: of the noise.
      noise_seed: privacy.noise_seed, where it injects the noise.

    >>> site_level_sentence(epsilon=2.0, delta=1e-4, noise_multiplier=4.0, clipping_norm=1.0)[:96]
    "Each site's part in the released models is protected with (epsilon=2, delta=1e-04)-differential "
    """
    if noise_seed is not None:
        return f"None for a site as a whole: noise was injected with privacy.noise_seed={noise_seed}."
    return (
        f"Each site's part in the released models is protected with (epsilon={epsilon_text(epsilon)}, delta="
        f"{delta_text(delta)})-differential privacy against whoever sees them, but not against the server, which sees every "
        f"update: it shortens each to norm {clipping_norm:g} and adds noise of {noise_multiplier:g} times that norm to their "
        "sum. Neighbouring federations differ in one site's updates being replaced by no change; what this record says of a "
        "site (name, sizes, spending) is not covered."
    )


def not_covered_sentences(
    *,
    evaluation_public: bool,
    synthetic_source: str,
    seen: Provenance,
    chosen_round: int | None = None,
    ledger: LedgerScope = "run",
    account_published: bool = True,
    floating: bool = False,
) -> tuple[str, ...]:
    """What the reported epsilon does not cover, one sentence each.

    Args:
      evaluation_public: whether every evaluation cohort is declared public.
      synthetic_source: "phantom", "gan", "folder", or "none" for a run without synthetic images.
      seen: what the generator saw, and what that adds up to.
      chosen_round: the round whose model was chosen by its score on validation patients, or None where nothing was chosen.
      ledger: "site" where the sites' ledgers carry over from run to run.
      account_published: whether the sites publish figures of their accounts.
      floating: whether the run's noise was drawn in floating point.
    """
    chosen = (
        ()
        if chosen_round is None
        else (
            f"The released model is that of round {chosen_round}, chosen without differential privacy by its score on the "
            "validation patients: epsilon does not cover what the choice reveals about them.",
        )
    )
    whose = "public cohorts" if evaluation_public else "a release that their sites' policies allow"
    return (
        f"Evaluation metrics are computed on validation and test patients without differential privacy ({whose}).",
        "Counts of patients and images per site, the weights made from them, the largest number of images per patient and, "
        "where shown, the share of malignant images are public by declaration of the site; so is the date of the last "
        "withdrawal of consent in its ledger, whoever it was and whether or not in this cohort.",
        "Hyper-parameters (features, clipping norms, learning rates, numbers of steps) were chosen without differential "
        "privacy; what that choice reveals about the patients it was made on is not in epsilon.",
        *chosen,
        *account_sentences(ledger=ledger, published=account_published),
        *([FLOATING] if floating else []),
        synthetic_sentence(synthetic_source, seen),
    )


def synthetic_sentence(source: str, seen: Provenance) -> str:
    """What a synthetic set and the run that used it guarantee together, in one sentence."""
    if source == "none":
        return "No synthetic images were used."
    if seen.epsilon == 0:
        return "The synthetic images are procedural: no patient's data went into them, so they cost no privacy."
    apart = "nobody of them is among the patients that this run trains on, by the identifiers of both"
    if math.isinf(seen.epsilon):
        where = apart if seen.overlap == "none" else "above all where they are in the training cohort too"
        return (
            f"The generator of the synthetic images was trained on {seen.trained_on} without differential privacy: the "
            f"reported epsilon does not cover what it reveals about them, {where}."
        )
    trained = (
        f"The generator of the synthetic images was trained on {seen.trained_on} with (epsilon={epsilon_text(seen.epsilon)}, "
        f"delta={delta_text(seen.delta)})-differential privacy{in_reals(seen.generator_floating)} for each "
        f"{seen.generator_unit}"
    )
    if seen.chosen == "by request":
        trained += " (which of its steps was taken is a choice that no epsilon covers, if real images led to it)"
    if seen.overlap == "none":
        return f"{trained}; {apart}, so that each cohort has its own guarantee; {_patient_in_both(seen)}."
    who = "who are in both cohorts are" if seen.overlap == "some" else "who may be in both cohorts are"
    if math.isinf(seen.total_epsilon):
        return f"{trained}; patients {who} not protected in all, since this run has no guarantee."
    return (
        f"{trained}; patients {who} protected with (epsilon={epsilon_text(seen.total_epsilon)}, "
        f"delta={delta_text(seen.total_delta)}) for each {seen.total_unit} by training and run composed."
    )


def _patient_in_both(seen: Provenance) -> str:
    """What a patient would have who is in both cohorts after all."""
    if math.isinf(seen.total_epsilon):
        return "a patient in both would not be protected in all, since this run has no guarantee"
    return (
        f"a patient in both would have (epsilon={epsilon_text(seen.total_epsilon)}, delta={delta_text(seen.total_delta)}) for "
        f"each {seen.total_unit} by training and run composed"
    )
