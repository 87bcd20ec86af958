"""A record says since when a site's cap holds and every raise of it, and shows no figure that a site does not publish."""

from __future__ import annotations

import io
import json
import math
from dataclasses import replace

import pytest
from rich.console import Console

from mammo_fed.errors import DataError
from mammo_fed.privacy.ledger.cap import CapRaise
from mammo_fed.reporting.console import privacy_table, results_table
from mammo_fed.reporting.pages.run_page import Curves, write_page
from mammo_fed.reporting.record.cap_words import CapHistory, account_sentences, cap_words
from mammo_fed.reporting.record.record import Record, read_record
from mammo_fed.reporting.record.statements import guarantee_sentence

FIRST, LATER = "2026-01-05T08:00:00+00:00", "2026-02-01T09:30:00+00:00"
STEP = CapRaise(at=LATER, from_epsilon=1.0, to_epsilon=50.0)
OVER_RUNS = {"unit": "patient", "epsilon": 50.0, "delta": 1e-4, "noise": "operating system", "ledger": "site"}
OF_ACCOUNT = ("epsilon_account", "patient_epsilon_account", "budget_left")


@pytest.fixture
def withheld(record) -> Record:
    """Sites of many studies, none of which publishes its account; the first has raised its cap."""
    sites = [
        replace(
            site, account_published=False, cap_epsilon=6.0, cap_delta=1e-4, cap_since=LATER, cap_raised=() if row else (STEP,)
        )
        for row, site in enumerate(record.privacy.sites)
    ]
    return replace(record, privacy=replace(record.privacy, ledger="site", sites=tuple(sites)))


def test_cap_of_a_guarantee_says_since_when_and_every_raise():
    caps = [CapHistory(site="north", since=LATER, raised=(STEP,)), CapHistory(site="south", since=FIRST)]
    said = guarantee_sentence(**OVER_RUNS, caps=caps, schedule_cost=3.207)
    assert (
        "by the cap that the ledger enforces (since 2026-01-05 to 2026-02-01, by site; raised at north on 2026-02-01 "
        "from 1 to 50; schedule cost so far: epsilon 3.21)"
    ) in said


def test_cap_of_a_guarantee_without_published_accounts_has_no_schedule_cost():
    said = guarantee_sentence(**OVER_RUNS, caps=[CapHistory(site="north", since=FIRST)], account_published=False)
    assert "by the cap that the ledger enforces (since 2026-01-05)" in said
    assert "schedule cost" not in said
    image = {**OVER_RUNS, "unit": "image", "patient_epsilon": 37.0, "max_images_per_patient": 4}
    assert "for a patient with 4 images no cap is set, and this run alone is epsilon 37" in guarantee_sentence(
        **image, account_published=False
    )


def test_cap_that_is_known_of_some_sites_only_says_so():
    caps = [CapHistory(site="north", since=FIRST), CapHistory(site="south", since="")]
    assert cap_words(caps) == "since 2026-01-05; elsewhere since when is not noted"


@pytest.mark.parametrize("published", [True, False])
def test_cap_and_what_else_is_seen_of_other_runs_is_named_as_not_covered(published):
    (said,) = account_sentences(ledger="site", published=published)
    assert ("is not published" in said) is not published
    assert "Whether a site refuses a run or a round for its budget or its accounts depends on that as well" in said
    assert account_sentences(ledger="run", published=published) == ()


def test_cap_account_figures_that_are_not_published_are_null_and_read_back_as_none(withheld, tmp_path):
    withheld.write(tmp_path)
    values = json.loads((tmp_path / "record.json").read_text(encoding="utf-8"))["privacy"]["sites"][0]
    assert [values[name] for name in (*OF_ACCOUNT, "account_published")] == [None, None, None, False]
    assert values["cap_raised"] == [{"at": LATER, "from_epsilon": 1.0, "to_epsilon": 50.0}]
    found = read_record(tmp_path)
    assert found == withheld
    assert [getattr(found.privacy.sites[0], name) for name in OF_ACCOUNT] == [None] * 3


def test_cap_account_figures_of_older_records_stay_infinite_where_they_are_null(record, tmp_path):
    record.write(tmp_path)
    path = tmp_path / "record.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    for site in values["privacy"]["sites"]:
        for name in ("account_published", "cap_since", "cap_raised"):
            del site[name]
        site["budget_left"] = None
    path.write_text(json.dumps(values), encoding="utf-8")
    sites = read_record(tmp_path).privacy.sites
    assert {(site.budget_left, site.cap_since, site.cap_raised) for site in sites} == {(math.inf, "", ())}


@pytest.mark.parametrize("since", ["yesterday", "2026-01-05", "2026-01-05T08:00:00"])
def test_cap_since_of_a_record_is_a_time(record, since):
    with pytest.raises(DataError, match="cap_since"):
        replace(record.privacy.sites[0], cap_since=since)


def test_cap_account_figures_that_are_not_published_are_named_in_tables_of_80_columns(withheld):
    out = io.StringIO()
    Console(file=out, width=80, color_system=None).print(results_table(withheld))
    assert max(map(len, out.getvalue().splitlines())) <= 80
    shown = io.StringIO()
    Console(file=shown, width=80, color_system=None).print(privacy_table(withheld))
    assert shown.getvalue().count("published") == 2 * len(withheld.privacy.sites)


def test_cap_and_figures_that_are_not_published_are_on_the_page(withheld, tmp_path):
    page = write_page(tmp_path, withheld, Curves()).read_text(encoding="utf-8")
    assert page.count("not published") >= 2 * len(withheld.privacy.sites)
    assert "raised at St. Anna on 2026-02-01 from 1 to 50" in page
