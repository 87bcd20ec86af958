"""The words of a record's guarantee beside its numbers: what they claim must be what the rest of the record says."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from mammo_fed.privacy.verification.figures import Sheet, at, texts
from mammo_fed.privacy.verification.site_figures import Site, Terms

__all__ = ["check_names", "check_words"]

ONE: Final = r"\d+(?:\.\d+)?(?:e[+-]?\d+)?|∞"
# As people read it, and nothing before, between or behind: a figure that is written there in other words is not checked.
GUARANTEE: Final = re.compile(
    r"(?:Each patient's data \(all images\)|Each image, not each patient,) is protected with "
    rf"\(epsilon=(?:{ONE}), delta=(?:{ONE})\)-differential privacy"
    r"(?P<real> in exact arithmetic \(the noise was drawn in floating point\))? at its site "
    r"(?P<scope>for this run alone|over all runs in the site's ledger, by the cap that the ledger enforces"
    r"(?: \((?:since|schedule cost so far:) [^\n]*\))?)"
    r"(?:, against a server that controls (?:at most )?(?:no|\d+) other sites? and opens sums of at least \d+ sites only)?"
    r"(?:; for a patient with \d+ images? "
    r"(?:epsilon is|no cap is set, and (?:the schedule cost so far|this run alone) is epsilon)"
    rf" (?:at most )?(?:{ONE}))?"
    r"; neighbouring cohorts differ in one (?P<unit>patient|image) contributing nothing, cohort sizes are public constants\."
)
FLOATING: Final = "in floating point"
SAYS_FLOATING: Final = "Noise was drawn and sums were made in floating point"


def check_words(sheet: Sheet, record: Mapping[str, Any], terms: Terms, sentence: str) -> None:
    """Check what a guarantee with a figure claims in words: of whom, over which runs, and in which arithmetic."""
    found = GUARANTEE.fullmatch(sentence)
    sheet.holds("guarantee: its words", sentence, "those of a run, and no others", found is not None)
    if found is None:
        return
    sheet.same("guarantee: about this run alone", found["scope"] == "for this run alone", terms.run_alone)
    sheet.same("guarantee: unit of its neighbours", found["unit"], terms.unit)
    floating = found["real"] is not None
    sheet.same(
        "not covered: floating point",
        any(said.startswith(SAYS_FLOATING) for said in texts(at(record, "privacy.not_covered"))),
        floating,
        "said where the guarantee is about exact arithmetic",
    )
    mechanism = at(record, "privacy.mechanism")
    if isinstance(mechanism, str):
        met = floating or FLOATING not in mechanism
        sheet.holds("guarantee: arithmetic", mechanism, "floating point only where the guarantee says so", met)
        apart = [site.get("site") for site in at(record, "privacy.sites") if site.get("mechanism") != mechanism]
        sheet.holds("mechanism of every site", f"{apart or 'that of the run'}", "that of the run", not apart)


def check_names(sheet: Sheet, record: Mapping[str, Any], sites: Sequence[Site]) -> None:
    """Check that the sites with figures are those whose patients the record counts, in its order."""
    counted = at(record, "data.sites")
    if not isinstance(counted, list):
        sheet.unknown("sites by name", f"{len(sites)}", "the record does not say whose patients it counts")
        return
    names = [site.get("site") for site in counted if isinstance(site, dict)]
    # Of a site with another version of the protocol, which was asked for nothing, no patients are counted.
    own = [site.name for site in sites if site.events or site.name in names]
    sheet.holds("sites by name", f"{own}", f"those whose patients are counted: {names}", own == names)
